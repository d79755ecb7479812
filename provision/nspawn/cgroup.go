package nspawn

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/bedfellow/bedfellow/pkg/bed"
)

// cgroups gives each node a cgroup of its own, so that its processes can be limited, counted and ended without asking anybody.
// Where PID 1 is systemd the group is a transient scope, for systemd wants to be asked; elsewhere it is made by hand as
// bedfellow/<bed>/<node> in every hierarchy, because two nodes started from one group would share the child groups that nspawn
// and the node's own systemd make.
type cgroups struct {
	mount   string // /sys/fs/cgroup
	unified bool   // pure cgroup v2
	systemd bool   // PID 1 is systemd
}

type limits struct {
	cpus   int      // how many CPUs' worth of time
	pinned string   // these host CPUs and no others, as "0-1"; empty: any
	memory bed.Size // bytes
}

func openCgroups() cgroups {
	c := cgroups{mount: "/sys/fs/cgroup"}
	_, err := os.Stat(filepath.Join(c.mount, "cgroup.controllers"))
	c.unified = err == nil
	_, err = os.Stat("/run/systemd/system")
	c.systemd = err == nil
	return c
}

// hierarchies are the roots a group is made under.
func (c cgroups) hierarchies() []string {
	if c.unified {
		return []string{c.mount}
	}
	entries, _ := os.ReadDir(c.mount)
	var roots []string
	seen := map[string]bool{}
	for _, e := range entries {
		path, err := filepath.EvalSymlinks(filepath.Join(c.mount, e.Name())) // cpu → cpu,cpuacct
		if err != nil || seen[path] {
			continue
		}
		if _, err := os.Stat(filepath.Join(path, "cgroup.procs")); err == nil {
			seen[path] = true
			roots = append(roots, path)
		}
	}
	return roots
}

// parent is where under a hierarchy a bed's groups lie; node is a node's group there.
func (c cgroups) parent(bedName string) string {
	if c.systemd {
		return "bedfellow.slice"
	}
	return filepath.Join("bedfellow", bedName)
}

func (c cgroups) node(bedName, node string) string {
	if c.systemd {
		return filepath.Join("bedfellow.slice", scopeName(node))
	}
	return filepath.Join(c.parent(bedName), node)
}

func scopeName(node string) string { return "bedfellow-" + node + ".scope" }

// launch returns the command line that runs argv in the node's group, which it makes and limits.
func (c cgroups) launch(bedName, node string, l limits, argv []string) ([]string, error) {
	if c.systemd {
		cmd := []string{
			"systemd-run", "--scope", "--quiet", "--collect", "--slice=bedfellow.slice", "--unit=" + scopeName(node),
			"--property=Delegate=yes", fmt.Sprintf("--property=MemoryMax=%d", l.memory), "--property=MemorySwapMax=0",
		}
		if l.pinned != "" {
			cmd = append(cmd, "--property=AllowedCPUs="+l.pinned)
		} else {
			cmd = append(cmd, fmt.Sprintf("--property=CPUQuota=%d%%", l.cpus*100))
		}
		return append(append(cmd, "--"), argv...), nil
	}
	var enter strings.Builder
	for _, root := range c.hierarchies() {
		dir := filepath.Join(root, c.node(bedName, node))
		err := c.mkdirAll(root, dir)
		for range 10 { // a neighbour that goes away may take an empty parent with it
			if !errors.Is(err, os.ErrNotExist) {
				break
			}
			err = c.mkdirAll(root, dir)
		}
		if err != nil {
			return nil, err
		}
		if err := c.limit(root, dir, l); err != nil {
			return nil, err
		}
		fmt.Fprintf(&enter, "echo $$ > '%s/cgroup.procs' || exit 125; ", dir)
	}
	return append([]string{"sh", "-c", enter.String() + `exec "$@"`, "sh"}, argv...), nil
}

// mkdirAll makes dir and its parents under root, giving each what a cpuset or a v2 tree needs before it takes processes.
func (c cgroups) mkdirAll(root, dir string) error {
	rel, err := filepath.Rel(root, dir)
	if err != nil {
		return err
	}
	at := root
	for _, part := range strings.Split(rel, "/") {
		parent := at
		at = filepath.Join(at, part)
		if c.unified {
			for _, controller := range []string{"cpuset", "cpu", "memory", "pids", "io"} {
				_ = os.WriteFile(filepath.Join(parent, "cgroup.subtree_control"), []byte("+"+controller), 0o644) // what the host lacks, limit misses
			}
		}
		if err := os.Mkdir(at, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
			return fmt.Errorf("make cgroup %s: %w (is the cgroup file system writable here?)", at, err)
		}
		for _, file := range []string{"cpuset.mems", "cpuset.cpus"} { // v1: a child starts empty and takes no process
			if inherited, err := os.ReadFile(filepath.Join(parent, file)); err == nil && !c.unified {
				if err := os.WriteFile(filepath.Join(at, file), inherited, 0o644); err != nil {
					return fmt.Errorf("set up cgroup %s: %w", at, err)
				}
			}
		}
	}
	return nil
}

func (c cgroups) limit(root, dir string, l limits) error {
	settings := map[string]string{}
	quota := fmt.Sprint(l.cpus * 100000)
	if c.unified {
		settings["memory.max"] = fmt.Sprint(int64(l.memory))
		if l.pinned != "" {
			settings["cpuset.cpus"] = l.pinned
		} else {
			settings["cpu.max"] = quota + " 100000"
		}
	} else {
		switch filepath.Base(root) {
		case "memory":
			settings["memory.limit_in_bytes"] = fmt.Sprint(int64(l.memory))
		case "cpuset":
			if l.pinned != "" {
				settings["cpuset.cpus"] = l.pinned
			}
		case "cpu", "cpu,cpuacct", "cpuacct,cpu":
			if l.pinned == "" {
				settings["cpu.cfs_quota_us"] = quota
			}
		}
	}
	for file, value := range settings {
		if err := os.WriteFile(filepath.Join(dir, file), []byte(value), 0o644); err != nil {
			return fmt.Errorf("limit the node by %s=%s: %w (the host's kernel lacks that controller, or a parent group allows less)", filepath.Join(dir, file), value, err)
		}
	}
	return nil
}

// pids lists the processes in the node's group and below, over all hierarchies.
func (c cgroups) pids(bedName, node string) []int {
	found := map[int]bool{}
	for _, root := range c.hierarchies() {
		_ = filepath.WalkDir(filepath.Join(root, c.node(bedName, node)), func(path string, d os.DirEntry, err error) error {
			if err != nil || !d.IsDir() {
				return nil
			}
			data, _ := os.ReadFile(filepath.Join(path, "cgroup.procs"))
			for _, field := range strings.Fields(string(data)) {
				if pid, err := strconv.Atoi(field); err == nil && pid > 0 {
					found[pid] = true
				}
			}
			return nil
		})
	}
	var pids []int
	for pid := range found {
		pids = append(pids, pid)
	}
	sort.Ints(pids)
	return pids
}

// kill ends every process of the node, whoever started it, and waits until the last is gone. The processes are those in the
// node's own group, so none is anybody else's.
func (c cgroups) kill(ctx context.Context, bedName, node string) error {
	for {
		pids := c.pids(bedName, node)
		if len(pids) == 0 {
			return nil
		}
		for _, pid := range pids {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("processes %v of node %s do not die: %w; `ps -o pid,stat,wchan,cmd -p PID` shows what holds them (often a file system that hangs)", pids, node, context.Cause(ctx))
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// remove removes the node's empty groups, and the bed's when no node is left in it.
func (c cgroups) remove(ctx context.Context, bedName, node string) error {
	var errs []error
	for _, root := range c.hierarchies() {
		top := filepath.Join(root, c.node(bedName, node))
		if c.systemd && c.unified { // systemd removes an empty scope itself, a moment later
			if _, err := os.Stat(top); err == nil {
				_, _ = run(ctx, "systemctl", "stop", scopeName(node))
			}
			continue
		}
		errs = append(errs, removeGroup(top))
		if !c.systemd {
			for dir := filepath.Dir(top); dir != root; dir = filepath.Dir(dir) {
				if os.Remove(dir) != nil { // other nodes or beds are in it
					break
				}
			}
		}
	}
	return errors.Join(errs...)
}

// removeAll removes what all beds shared, with the last of them.
func (c cgroups) removeAll(ctx context.Context) {
	if c.systemd {
		_, _ = run(ctx, "systemctl", "stop", "bedfellow.slice")
	}
}

func removeGroup(top string) error {
	var dirs []string
	_ = filepath.WalkDir(top, func(path string, d os.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			dirs = append(dirs, path)
		}
		return nil
	})
	for i := len(dirs) - 1; i >= 0; i-- {
		deadline := time.Now().Add(2 * time.Second)
		for {
			err := os.Remove(dirs[i])
			if err == nil || errors.Is(err, os.ErrNotExist) {
				break
			}
			if time.Now().After(deadline) { // a group stays busy for a moment after its last process is gone
				return fmt.Errorf("remove cgroup %s: %w", dirs[i], err)
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
	return nil
}
