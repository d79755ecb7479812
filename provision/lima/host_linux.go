package lima

import (
	"context"

	"golang.org/x/sys/unix"

	"github.com/bedfellow/bedfellow/pkg/bed"
)

func hostMemory() bed.Size {
	var info unix.Sysinfo_t
	if unix.Sysinfo(&info) != nil {
		return 1 << 60
	}
	return bed.Size(info.Totalram) * bed.Size(info.Unit) / bed.MiB * bed.MiB
}

// onNFS tells whether a directory is on a network file system, which holds no sockets.
func onNFS(dir string) bool {
	var info unix.Statfs_t
	return unix.Statfs(dir, &info) == nil && info.Type == unix.NFS_SUPER_MAGIC
}

// socketPath is how long the path of a socket may be, with its final zero.
const socketPath = 108

// forceDelete has nothing to do where a bed's processes can be found without limactl.
func forceDelete(context.Context, string, string) error { return nil }
