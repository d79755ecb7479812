package engine

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/bedfellow/bedfellow/pkg/bed"
	"github.com/bedfellow/bedfellow/pkg/progress"
)

// markEnv marks every process that works on a stack; its value is the workspace's Mark.
const markEnv = "BEDFELLOW_MARK"

type holder struct {
	PID     int       `json:"pid"`
	Since   time.Time `json:"since"`
	Command string    `json:"command"`
}

// lock takes the stack for one command. It ends with the process, so a dead owner's is free. Then whatever a killed command left
// at work is ended, and Pulumi's own lock of it broken.
func (w *Workspace) lock(ctx context.Context, command string) (unlock func(), err error) {
	path := w.stackDir("lock")
	for {
		if err := os.MkdirAll(w.stackDir(), 0o700); err != nil {
			return nil, err
		}
		f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
		if errors.Is(err, fs.ErrNotExist) {
			continue // a destroy removed the folder just now
		}
		if err != nil {
			return nil, err
		}
		if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
			defer f.Close()
			if errors.Is(err, syscall.EINTR) {
				continue
			}
			var h holder
			_ = json.NewDecoder(f).Decode(&h)
			return nil, bed.Problems{{
				Key: "stack", Value: w.Stack, Host: true,
				Reason: fmt.Sprintf("`bed %s` is at work on it (process %d, since %s)", h.Command, h.PID, h.Since.Local().Format(time.TimeOnly)),
				Remedy: fmt.Sprintf("wait for it, or end it with `kill %d`", h.PID),
			}}
		}
		held, errHeld := f.Stat()
		there, errThere := os.Stat(path)
		if errHeld != nil || errThere != nil || !os.SameFile(held, there) {
			_ = f.Close()
			continue
		}
		data, _ := json.Marshal(holder{PID: os.Getpid(), Since: time.Now(), Command: command})
		if err := errors.Join(f.Truncate(0), write(f, data)); err != nil {
			_ = f.Close()
			return nil, err
		}
		unlock = func() { _ = f.Close() }
		if err := w.recover(ctx); err != nil {
			unlock()
			return nil, err
		}
		return unlock, nil
	}
}

func write(f *os.File, data []byte) error {
	_, err := f.WriteAt(append(data, '\n'), 0)
	return err
}

// recover ends what a killed command of this stack left at work: its engine, plugin, bakes and Ansible, known by the mark in
// their environment. Machines do not bear it.
func (w *Workspace) recover(ctx context.Context) error {
	deadline := time.Now().Add(10 * time.Second)
	for told := false; ; {
		pids := w.marked()
		if len(pids) == 0 {
			break
		}
		if !told {
			progress.Note(ctx, "ending %d processes that an interrupted command left at work on %s", len(pids), w.Stack)
			told = true
		}
		for _, pid := range pids {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("processes %v of an interrupted command do not die; look at them with ps", pids)
		}
		time.Sleep(20 * time.Millisecond) // a poll: death takes a moment
	}
	if err := os.RemoveAll(w.tmp()); err != nil {
		return err
	}
	return w.breakPulumiLock(ctx)
}

// marked lists the processes other than this one that bear the workspace's mark.
func (w *Workspace) marked() []int {
	entries, _ := os.ReadDir("/proc")
	mark := []byte(markEnv + "=" + w.Mark())
	var pids []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() || pid == os.Getppid() {
			continue
		}
		environ, _ := os.ReadFile(filepath.Join("/proc", e.Name(), "environ"))
		line, _ := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		// A master connection of ssh writes its title over its environment; the title names its socket.
		if bytes.HasPrefix(line, []byte("ssh: "+w.tmp()+"/")) || slices.ContainsFunc(bytes.Split(environ, []byte{0}), func(v []byte) bool { return bytes.Equal(v, mark) }) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// breakPulumiLock removes the locks that dead engines of this host left in a file-backed state. A living one's is kept, and the
// engine will say whose it is.
func (w *Workspace) breakPulumiLock(ctx context.Context) error {
	dir, ok := strings.CutPrefix(w.StateURL(), "file://")
	if !ok {
		return nil
	}
	locks, err := filepath.Glob(filepath.Join(dir, ".pulumi/locks/organization", "bedfellow", w.Stack, "*.json"))
	if err != nil {
		return err
	}
	host, _ := os.Hostname()
	for _, path := range locks {
		var owner struct {
			PID      int    `json:"pid"`
			Hostname string `json:"hostname"`
		}
		data, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		torn := json.Unmarshal(data, &owner) != nil
		if !torn && (owner.Hostname != host || isPulumi(owner.PID)) {
			continue
		}
		progress.Note(ctx, "breaking the lock that a dead engine left on the state of %s", w.Stack)
		if err := os.Remove(path); err != nil {
			return err
		}
	}
	return nil
}

// isPulumi says whether a process runs the CLI or a plugin. One that is dead, and that its parent has not asked after yet, does not.
func isPulumi(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid)) // "pid (name) state …"
	_, state, _ := strings.Cut(string(stat), ") ")
	return err == nil && strings.Contains(string(stat), "(pulumi") && !strings.HasPrefix(state, "Z")
}
