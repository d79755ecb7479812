package proc

import "syscall"

// DieWithParent has the child killed when the thread that starts it ends, and so with its process at the latest.
func DieWithParent(attr *syscall.SysProcAttr) *syscall.SysProcAttr {
	attr.Pdeathsig = syscall.SIGKILL
	return attr
}
