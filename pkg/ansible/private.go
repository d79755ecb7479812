package ansible

import (
	_ "embed"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"
)

//go:embed callback.py
var callback []byte

// socketRoom is what is left of a socket's path (108 bytes) after the names Ansible and ssh put behind the directory's.
const socketRoom = 60

const privatePrefix = "bed-ansible-"

// private is a run's directory: mode 0700, locked as long as its run lives, so that the next run can tell what a killed one left.
type private struct {
	path string
	lock *os.File
}

// newPrivate makes one under parent, or under the system's temporary directory when parent is empty or its path too long for
// a socket. What killed runs left in the same place is removed first.
func newPrivate(parent string) (*private, error) {
	if abs, err := filepath.Abs(parent); parent == "" || err != nil || len(abs) > socketRoom-len(privatePrefix)-12 {
		parent = os.TempDir()
	} else {
		parent = abs
	}
	sweep(parent)
	path, err := os.MkdirTemp(parent, privatePrefix)
	if err != nil {
		return nil, fmt.Errorf("making a private directory for Ansible: %w", err)
	}
	lock, err := os.OpenFile(filepath.Join(path, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		os.RemoveAll(path)
		return nil, fmt.Errorf("making a private directory for Ansible: %w", err)
	}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		lock.Close()
		os.RemoveAll(path)
		return nil, fmt.Errorf("locking %s: %w", lock.Name(), err)
	}
	return &private{path: path, lock: lock}, nil
}

// sweep removes the directories of runs that are dead. One of another user, or that is only just being made, is left alone.
func sweep(parent string) {
	dirs, _ := filepath.Glob(filepath.Join(parent, privatePrefix+"*"))
	for _, dir := range dirs {
		info, err := os.Lstat(dir)
		if err != nil || !info.IsDir() || info.Sys().(*syscall.Stat_t).Uid != uint32(os.Geteuid()) ||
			time.Since(info.ModTime()) < 10*time.Second {
			continue
		}
		lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|syscall.O_NOFOLLOW, 0)
		if err != nil {
			continue
		}
		if syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) == nil {
			os.RemoveAll(dir)
		}
		lock.Close()
	}
}

func (p *private) file(name string) string { return filepath.Join(p.path, name) }

func (p *private) write(name string, content []byte) error {
	if err := os.MkdirAll(filepath.Dir(p.file(name)), 0o700); err != nil {
		return err
	}
	return os.WriteFile(p.file(name), content, 0o600)
}

// closeMasters ends the ssh connections that were kept open between tasks; they left the run's process group.
func (p *private) closeMasters() {
	sockets, _ := filepath.Glob(filepath.Join(p.file("cp"), "*"))
	slots := make(chan struct{}, 32)
	var wg sync.WaitGroup
	for _, socket := range sockets {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			_ = exec.Command("ssh", "-F", "/dev/null", "-o", "ControlPath="+socket, "-O", "exit", "x").Run()
		})
	}
	wg.Wait()
}

func (p *private) remove() {
	os.RemoveAll(p.path)
	p.lock.Close()
}
