package proc

import (
	"math"
	"syscall"

	"golang.org/x/sys/unix"
)

// DieWithParent has the child killed when the thread that starts it ends, and so with its process at the latest.
func DieWithParent(attr *syscall.SysProcAttr) *syscall.SysProcAttr {
	attr.Pdeathsig = syscall.SIGKILL
	return attr
}

// CloseOnExec has children get no file but those they are given. What a caller left open for this process, such as a lock of flock(1),
// would else stay open for as long as a node lives. A kernel before 5.11 does not know how.
func CloseOnExec() { _ = unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC) }
