package images

import (
	"os"

	"golang.org/x/sys/unix"
)

// syncFilesystem has all that was written to a directory's file system on disk.
func syncFilesystem(dir string) {
	if f, err := os.Open(dir); err == nil {
		_ = unix.Syncfs(int(f.Fd()))
		f.Close()
	}
}
