package proc

import "syscall"

// DieWithParent does nothing: macOS has no such signal. What a killed command leaves, the next finds by its mark.
func DieWithParent(attr *syscall.SysProcAttr) *syscall.SysProcAttr { return attr }

// CloseOnExec does nothing here.
func CloseOnExec() {}
