package lima

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const killPoll = 20 * time.Millisecond

// The processes of a bed are Lima's: each has the bed's LIMA_HOME in its environment, and what belongs to one node has a path of its
// instance or its name among the arguments. An ssh that stays as master of a connection overwrites its environment with its title,
// which names the instance's socket.

// process is one process of a bed.
type process struct {
	pid  int
	args []string
}

// of tells whether the process is one of the node's.
func (p process) of(home, node string) bool {
	prefix := instance(home, node) + "/"
	for _, arg := range p.args {
		if arg == node || strings.Contains(arg, prefix) {
			return true
		}
	}
	return false
}

// processes lists those of a LIMA_HOME, oldest ids first. There are none to be seen without /proc.
func processes(home string) []process {
	entries, _ := os.ReadDir("/proc")
	var found []process
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		if args, ok := belongs(pid, home); ok {
			found = append(found, process{pid, args})
		}
	}
	return found
}

// belongs reads a process's arguments if it is one of the LIMA_HOME's.
func belongs(pid int, home string) ([]string, bool) {
	cmdline, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil || len(cmdline) == 0 { // gone, or dead and not yet collected
		return nil, false
	}
	args := strings.Split(strings.TrimRight(string(cmdline), "\x00"), "\x00")
	if strings.HasPrefix(args[0], "ssh: "+home+"/") {
		return args, true
	}
	environ, _ := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
	for _, entry := range bytes.Split(environ, []byte{0}) {
		if string(entry) == "LIMA_HOME="+home {
			return args, true
		}
	}
	return nil, false
}

// kill ends all processes that choose selects, whatever they are doing, and waits until they are gone.
func kill(ctx context.Context, home string, choose func(process) bool) error {
	for {
		var left []process
		for _, p := range processes(home) {
			if choose(p) {
				left = append(left, p)
				_ = syscall.Kill(p.pid, syscall.SIGKILL)
			}
		}
		if len(left) == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("process %d (%s) does not die: %w", left[0].pid, strings.Join(left[0].args, " "), context.Cause(ctx))
		case <-time.After(killPoll):
		}
	}
}

// roles of the processes that a running machine has.
type roles struct{ agent, machine, network bool }

// look finds which of a node's processes are there, by Lima's pid files: one of a process that is gone may name another's by now.
func look(home, node string) roles {
	dir := instance(home, node)
	return roles{
		agent:   alive(home, filepath.Join(dir, "ha.pid")),
		machine: alive(home, filepath.Join(dir, vmType()+".pid")),
		network: alive(home, networkPID(home)),
	}
}

func networkPID(home string) string {
	return filepath.Join(home, "_networks", network, "usernet_"+network+".pid")
}

// alive tells whether the process that a pid file names is there and the bed's.
func alive(home, pidFile string) bool {
	pid := readPID(pidFile)
	if pid == 0 {
		return false
	}
	if runtime.GOOS != "linux" {
		return syscall.Kill(pid, 0) == nil
	}
	_, ok := belongs(pid, home)
	return ok
}

func readPID(file string) int {
	data, err := os.ReadFile(file)
	if err != nil {
		return 0
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(data)))
	if err != nil || pid <= 1 {
		return 0
	}
	return pid
}

// forgetDead removes pid files and sockets that name no process of the bed, in an instance without any and of a network that is gone.
// Lima takes whatever process has such a number by now for its own.
func forgetDead(home, node string) {
	dir := instance(home, node)
	for _, pattern := range []string{filepath.Join(dir, "*.pid"), filepath.Join(filepath.Dir(networkPID(home)), "*.pid")} {
		files, _ := filepath.Glob(pattern)
		for _, file := range files {
			if !alive(home, file) {
				_ = os.Remove(file)
			}
		}
	}
	if r := look(home, node); !r.agent && !r.machine {
		sockets, _ := filepath.Glob(filepath.Join(dir, "*.sock*"))
		for _, s := range sockets {
			_ = os.Remove(s)
		}
	}
	if !alive(home, networkPID(home)) { // Lima waits for the socket to appear, and an old one would do
		sockets, _ := filepath.Glob(filepath.Join(filepath.Dir(networkPID(home)), "*.sock"))
		for _, s := range sockets {
			_ = os.Remove(s)
		}
	}
}
