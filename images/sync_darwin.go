package images

import "golang.org/x/sys/unix"

// syncFilesystem has all that was written to a directory's file system on disk, and to every other.
func syncFilesystem(string) { unix.Sync() }
