package lima

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/bedfellow/bedfellow/pkg/bed"
)

func hostMemory() bed.Size {
	bytes, err := unix.SysctlUint64("hw.memsize")
	if err != nil {
		return 1 << 60
	}
	return bed.Size(bytes) / bed.MiB * bed.MiB
}

// onNFS tells whether a directory is on a network file system, which holds no sockets.
func onNFS(dir string) bool {
	var info unix.Statfs_t
	return unix.Statfs(dir, &info) == nil && unix.ByteSliceToString(info.Fstypename[:]) == "nfs"
}

// socketPath is how long the path of a socket may be, with its final zero.
const socketPath = 104

// forceDelete has limactl end a machine's processes: without /proc nobody else can tell which they are.
func forceDelete(ctx context.Context, home, node string) error {
	if _, err := os.Stat(filepath.Join(instance(home, node), "lima.yaml")); errors.Is(err, fs.ErrNotExist) {
		return nil // limactl refuses to delete half an instance
	}
	limactl, err := findLimactl(filepath.Dir(home))
	if err != nil {
		return err
	}
	_, err = run(ctx, host{limactl: limactl}.command(home, limactl, "delete", "--tty=false", "--force", node))
	return err
}
