package e2e_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/bedfellow/bedfellow/pkg/hosttest"
	"github.com/bedfellow/bedfellow/provision/nspawn"
)

// TestCensus: what the other tests rely on. Each thing that a careless destroy would leave is seen, and seen to be gone.
func TestCensus(t *testing.T) {
	if os.Geteuid() != 0 {
		hosttest.Lacks(t, "root")
	}
	require.NoError(t, os.MkdirAll(work(t, "home"), 0o755))
	t.Cleanup(func() { _ = os.Remove(tmp()) })
	group := "/sys/fs/cgroup"
	if _, err := os.Stat(group + "/systemd"); err == nil {
		group += "/systemd"
	}
	group += "/bedfellow/e2e-left"
	seen := func(t *testing.T, kind string, before []string) {
		more := slices.DeleteFunc(census(t), func(line string) bool { return slices.Contains(before, line) })
		assert.True(t, slices.ContainsFunc(more, func(line string) bool { return strings.HasPrefix(line, kind+" ") }), "a %s left behind is not seen: %v", kind, more)
	}
	for name, c := range map[string]struct{ leave, clear, kind string }{
		"cgroup":           {"mkdir -p " + group, "rmdir " + group + "; rmdir " + filepath.Dir(group), "cgroup"},
		"mount":            {"mount -t tmpfs e2e " + work(t, "home"), "umount " + work(t, "home"), "mount"},
		"device and route": {"ip link add bfe2eleft type veth peer name bfe2epeer && ip addr add 10.255.255.1/24 dev bfe2eleft && ip link set bfe2eleft up", "ip link del bfe2eleft", "route"},
		"namespace":        {"mkdir -p /run/netns && touch /run/netns/bedfellow-e2e-left && unshare --net=/run/netns/bedfellow-e2e-left true", "umount /run/netns/bedfellow-e2e-left; rm /run/netns/bedfellow-e2e-left", "namespace"},
		"bed":              {"mkdir -p " + nspawn.DefaultRoot + "/e2e-left", "rmdir " + nspawn.DefaultRoot + "/e2e-left; rmdir " + nspawn.DefaultRoot, "bed"},
		"nspawn's lock":    {"mkdir -p /run/systemd/nspawn/locks && touch /run/systemd/nspawn/locks/inode-1:2", "rm /run/systemd/nspawn/locks/inode-1:2", "nspawn"},
		"temporary file":   {"mkdir -p " + tmp() + " && touch " + tmp() + "/left", "rm " + tmp() + "/left", "temporary"},
		"state":            {"mkdir -p " + work(t, "left/.bed/home"), "rm -r " + work(t, "left"), "state"},
	} {
		t.Run(name, func(t *testing.T) {
			before := census(t)
			out, err := exec.Command("sh", "-c", c.leave).CombinedOutput()
			require.NoError(t, err, "%s: %s", c.leave, out)
			seen(t, c.kind, before)
			_ = exec.Command("sh", "-c", c.clear).Run() // a directory that others use stays
			same(t, before)
		})
	}
	for name, leave := range map[string]func(*exec.Cmd){
		"process by its home":         func(c *exec.Cmd) { c.Env = []string{"HOME=" + work(t, "home")} },
		"process by its folder":       func(c *exec.Cmd) { c.Dir = work(t, "home") },
		"process by its command line": func(c *exec.Cmd) { c.Args = append(c.Args, "--machine=e2e-left") },
	} {
		t.Run(name, func(t *testing.T) {
			before := census(t)
			cmd := exec.Command("sh", "-c", "read line")
			leave(cmd)
			_, err := cmd.StdinPipe()
			require.NoError(t, err)
			require.NoError(t, cmd.Start())
			seen(t, "process", before)
			require.NoError(t, cmd.Process.Kill())
			_ = cmd.Wait()
			same(t, before)
		})
	}
}

// census lists everything a bed may leave on this host, by asking the host and not Bedfellow: processes, mounts, cgroups, network
// devices, routes, named namespaces and files. What belongs to beds of other people on the host is left out, so that it can be
// compared while they work. A namespace without a name lives by a process or a mount, which are listed.
func census(t *testing.T) []string {
	c := &counting{work: work(t), lima: limaRoot(t), others: foreignMarks(limaRoot(t))}
	c.processes()
	c.lines(t, "mount", "/proc/self/mounts", regexp.MustCompile(`bedfellow|e2e|nspawn|/run/netns|`+regexp.QuoteMeta(c.work)))
	c.tree("cgroup", "/sys/fs/cgroup", func(path string, d fs.DirEntry) bool {
		return d.IsDir() && regexp.MustCompile(`bedfellow|machine|nspawn|payload|supervisor|e2e`).MatchString(path)
	})
	c.names("device", "/sys/class/net")
	c.names("namespace", "/run/netns")
	c.lines(t, "route", "/proc/net/route", regexp.MustCompile(``))
	all := func(string, fs.DirEntry) bool { return true }
	c.tree("nspawn", "/run/systemd/nspawn", func(_ string, d fs.DirEntry) bool { return !d.IsDir() || strings.HasPrefix(d.Name(), "e2e") })
	c.tree("bed", nspawn.DefaultRoot, all)
	c.tree("bed", limaRoot(t), func(path string, _ fs.DirEntry) bool { // what the probe for KVM found stays until the next boot
		return path != filepath.Join(limaRoot(t), "accel.json")
	})
	c.tree("temporary", tmp(), all)
	c.tree("home", filepath.Join(c.work, "home"), all)
	places, err := filepath.Glob(filepath.Join(c.work, "*", ".bed"))
	require.NoError(t, err)
	for _, dir := range places {
		c.tree("state", dir, all)
	}
	slices.Sort(c.found)
	return slices.Compact(c.found)
}

type counting struct {
	work   string
	lima   string
	others []*regexp.Regexp // what is of other people's beds
	found  []string
}

// foreignMarks are the marks that the beds of other people leave: paths, groups and namespaces by name, the host's link, the
// lock files of their nodes.
func foreignMarks(limaRoot string) []*regexp.Regexp {
	marks := []*regexp.Regexp{regexp.MustCompile(`/var/lib/bedfellow/images|conformance`)} // bakes and the drivers' own tests
	homes, _ := filepath.Glob(filepath.Join(limaRoot, "*"))
	for _, home := range homes {
		if name := filepath.Base(home); !strings.HasPrefix(name, "e2e") {
			marks = append(marks, regexp.MustCompile(`/lima/`+name+`\b`))
		}
	}
	records, _ := filepath.Glob(filepath.Join(nspawn.DefaultRoot, "*"))
	for _, dir := range records {
		name := filepath.Base(dir)
		if strings.HasPrefix(name, "e2e") {
			continue
		}
		marks = append(marks, regexp.MustCompile(`/bedfellow$|/beds/host\.json$`)) // what all beds share stays while theirs does
		pattern := fmt.Sprintf(`(bedfellow-(node-)?|bedfellow/|beds/|machine=|nspawn/.*/)%s\b|\b%s\b`, name, nspawn.Link(name))
		nodes, _ := filepath.Glob(filepath.Join(dir, "*", "node.json"))
		for _, path := range nodes {
			var node struct{ RootInode string }
			if data, err := os.ReadFile(path); err == nil && json.Unmarshal(data, &node) == nil && node.RootInode != "" {
				pattern += "|" + regexp.QuoteMeta(node.RootInode)
			}
		}
		marks = append(marks, regexp.MustCompile(pattern))
	}
	return marks
}

func (c *counting) add(kind, what string) {
	for _, other := range c.others {
		if other.MatchString(what) {
			return
		}
	}
	c.found = append(c.found, kind+" "+what)
}

// processes finds those that a command of this suite started, by the home that each of them inherits or by a path, and those of
// nodes, by their group or command line.
func (c *counting) processes() {
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		dir := filepath.Join("/proc", e.Name())
		pid, err := strconv.Atoi(e.Name())
		if err != nil || !alive(pid) {
			continue
		}
		line, _ := os.ReadFile(filepath.Join(dir, "cmdline"))
		environ, _ := os.ReadFile(filepath.Join(dir, "environ"))
		groups, _ := os.ReadFile(filepath.Join(dir, "cgroup"))
		exe, _ := os.Readlink(filepath.Join(dir, "exe"))
		cwd, _ := os.Readlink(filepath.Join(dir, "cwd"))
		of := append(append(bytes.ReplaceAll(line, []byte{0}, []byte{' '}), exe+" "+cwd+" "...), environ...)
		if bytes.Contains(of, []byte(c.work)) || bytes.Contains(groups, []byte("/bedfellow")) || bytes.Contains(line, []byte("--machine=e2e")) || bytes.Contains(environ, []byte("LIMA_HOME="+c.lima+"/e2e")) {
			group := ""
			if _, after, ok := bytes.Cut(groups, []byte("/bedfellow")); ok {
				group, _, _ = strings.Cut("/bedfellow"+string(after), "\n")
			}
			c.add("process", strings.TrimSpace(fmt.Sprintf("%s %s%s", e.Name(), bytes.ReplaceAll(line, []byte{0}, []byte{' '}), group)))
		}
	}
}

// lines adds those of a file that are like a bed's; what else is mounted on a host comes and goes with other people's work.
func (c *counting) lines(t *testing.T, kind, path string, like *regexp.Regexp) {
	data, err := os.ReadFile(path)
	require.NoError(t, err)
	for line := range strings.Lines(string(data)) {
		if like.MatchString(line) {
			c.add(kind, strings.TrimSpace(line))
		}
	}
}

func (c *counting) names(kind, dir string) {
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		c.add(kind, strings.TrimPrefix(dir+"/"+e.Name(), "/sys/class/net/"))
	}
}

// tree adds what is under dir, as far as two levels below a bed: the files inside a node are of no interest.
func (c *counting) tree(kind, dir string, keep func(string, fs.DirEntry) bool) {
	_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == dir {
			return nil
		}
		if keep(path, d) {
			c.add(kind, path)
		}
		if kind == "bed" && d.IsDir() && strings.Count(strings.TrimPrefix(path, dir), "/") == 3 {
			return fs.SkipDir
		}
		return nil
	})
}

// same fails the test when the host holds more, or less, than it did before.
func same(t *testing.T, before []string) {
	t.Helper()
	var more, less []string
	after := census(t)
	for _, line := range after {
		if !slices.Contains(before, line) {
			more = append(more, line)
		}
	}
	for _, line := range before {
		if !slices.Contains(after, line) && !strings.HasPrefix(line, "process") {
			less = append(less, line)
		}
	}
	require.Empty(t, more, "left behind on the host")
	require.Empty(t, less, "taken from the host")
}
