package e2e_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/bedfellow/bedfellow/pkg/bed"
	"github.com/bedfellow/bedfellow/pkg/hosttest"
	"github.com/bedfellow/bedfellow/pkg/results"
	"github.com/bedfellow/bedfellow/provision/lima"
)

// limaRoot is where the driver's beds lie.
func limaRoot(t testing.TB) string {
	root, err := lima.DefaultRoot()
	require.NoError(t, err)
	return root
}

// limactl runs Lima's own command in the bed's LIMA_HOME.
func (p place) limactl(t *testing.T, args ...string) string {
	t.Helper()
	return limactl(t, filepath.Join(limaRoot(t), p.bed), args...)
}

// limactl runs Lima's own command in a LIMA_HOME, as the user that Lima runs as, and returns what it printed.
func limactl(t *testing.T, home string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 2*callTimeout) // it is also what cleans up
	defer cancel()
	out, err := lima.New(limaRoot(t)).Limactl(ctx, home, args...)
	require.NoError(t, err, out)
	return out
}

// TestOffline: a bed comes up from a kept image where there is no network at all but the host's own loopback interface.
func TestOffline(t *testing.T) {
	if !*fullFlag || driver(*stackFlag) != "lima" {
		t.Skip("one more virtual machine; `make e2e-full` does")
	}
	if os.Geteuid() != 0 {
		hosttest.Lacks(t, "root, to take the network away")
	}
	p := newPlace(t, "offline", *stackFlag, "e2e-off")
	before := census(t)
	t.Cleanup(func() {
		p.ok(t, "destroy", "-s", p.stack)
		same(t, before)
	})
	lonely := p
	lonely.within = []string{"unshare", "--net", "--", "sh", "-c", `ip link set lo up && exec "$@"`, "sh"}
	inv, _ := lonely.up(t, "nodes=1")
	assert.Len(t, inv.Nodes, 1)
}

// machines: what happens to virtual machines is shown by status and refresh and mended by up: in place where it can be, with the disk
// that a machine has where it has one.
func (p place) machines(t *testing.T) {
	inv := p.inventory(t)
	if inv.Driver != "lima" {
		t.Skipf("this test knows how to break machines of the lima driver, not of %s", inv.Driver)
	}
	last := len(inv.Nodes) - 1
	assert.Equal(t, len(inv.Nodes), strings.Count(p.limactl(t, "list", "--format", "{{.Name}} {{.Status}}"), "Running"), "a person sees them with limactl list")
	p.holdsImage(t, inv)

	t.Run("the written file starts elsewhere", func(t *testing.T) {
		p.needBoots(t)
		p.startsElsewhere(t, inv.Nodes[last].Name)
	})
	t.Run("all stopped, as by a restart of the host, and wanted larger", func(t *testing.T) {
		p.needBoots(t)
		home := filepath.Join(limaRoot(t), p.bed)
		for range 5 { // a process may start another meanwhile
			for killAny(t, func(_, _, environ string) bool { return strings.Contains(environ, "LIMA_HOME="+home) }) {
			}
		}
		for name, m := range p.states(t) {
			assert.NotEqual(t, "running", m.State, name)
		}
		p.holdsImage(t, inv)
		back, _ := p.up(t, "memory=1152MiB", "disk=21GiB")
		assert.Equal(t, incarnations(inv), incarnations(back), "they come back with the disks they had")
		for name, m := range p.states(t) {
			assert.Equal(t, "running", m.State, "%s: %s", name, m.Detail)
		}
		for i, n := range back.Nodes {
			assert.Equal(t, 1152, n.MemoryMiB)
			assert.Equal(t, fmt.Sprint(21<<30), p.must(t, back, i, "lsblk -bdno SIZE /dev/vda"), "disk of %s", n.Name)
			assert.Equal(t, "yes", p.must(t, back, i, "[ $(df --output=size -k / | tail -1) -gt 19000000 ] && echo yes"), "file system of %s", n.Name)
		}
		p.computes(t, back)
		inv = back
	})
	t.Run("one deleted with limactl, the other's kernel panics", func(t *testing.T) {
		const allocated = "for _ in $(seq 60); do squeue --noheader --states=RUNNING | grep . && exit; sleep 1; done; exit 1"
		p.must(t, inv, 0, "setsid srun --mpi=none --exclusive sleep infinity </dev/null >/dev/null 2>&1 & "+allocated) // dies with its node, and is to hold nothing for that
		gone := inv.Nodes[last].Name
		p.bootsAgain(t, inv, "sh -c 'echo c >/proc/sysrq-trigger'", func() { p.limactl(t, "delete", "-f", gone) })
		assert.NotEqual(t, "running", p.states(t)[gone].State)
		p.mend(t, inv, map[string]string{gone: ""})
	})
}

// holdsImage: the image that machines' disks lie over is not removed, be they running or not.
func (p place) holdsImage(t *testing.T, inv bed.Inventory) {
	var names []string
	for _, n := range inv.Nodes {
		names = append(names, n.Name)
	}
	p.fails(t, 3, []string{"image", "remove", inv.ImageDigest}, append(names, "bed destroy")...)
}

// needBoots skips what boots emulated machines once more, which CI's time does not hold.
func (p place) needBoots(t *testing.T) {
	if !*fullFlag {
		t.Skip("CI's time holds one more boot of its emulated machines, which is after a panic; `make e2e-full` does this")
	}
}

// bootsAgain: the first node is up again after a command that takes it down, and what happens meanwhile.
func (p place) bootsAgain(t *testing.T, inv bed.Inventory, command string, meanwhile func()) {
	const id = "cat /proc/sys/kernel/random/boot_id"
	boot := p.must(t, inv, 0, id)
	p.must(t, inv, 0, "sudo systemd-run --on-active=1 "+command)
	meanwhile()
	eventually(t, "the next boot of "+inv.Nodes[0].Name, p.patience(30*time.Second), func() error {
		now, err := p.on(t, inv, 0, id)
		if err == nil && now == boot {
			return fmt.Errorf("it is still up")
		}
		return err
	})
}

// startsElsewhere: a node's Lima YAML alone makes the machine, in another LIMA_HOME and by limactl alone.
func (p place) startsElsewhere(t *testing.T, node string) {
	var file string
	for line := range strings.Lines(p.ok(t, "inventory", "-s", p.stack, "--format", "lima").stdout) {
		if line = strings.TrimSpace(line); strings.Contains(line, node) {
			file = line
		}
	}
	text, err := os.ReadFile(file)
	require.NoError(t, err)
	home, err := os.MkdirTemp("", "bl")
	require.NoError(t, err)
	defer func() { require.NoError(t, os.RemoveAll(home)) }()
	yaml := filepath.Join(home, node+".yaml")
	require.NoError(t, os.WriteFile(yaml, text, 0o600))
	require.NoError(t, lima.New(limaRoot(t)).Own(home, yaml))
	defer limactl(t, home, "delete", "-f", node)
	limactl(t, home, "start", "--timeout="+p.patience(2*time.Minute).String(), yaml)
	assert.Equal(t, node+"\n", limactl(t, home, "shell", node, "hostname"))
}

// selftest: every property holds on every node, after what else the suite has done to them.
func (p place) selftest(t *testing.T) {
	inv := p.inventory(t)
	c := p.ok(t, "run", "selftest", "-s", p.stack, "-o", "json")
	var said struct{ Dir string }
	require.NoError(t, json.Unmarshal([]byte(c.stdout), &said), "%s", c)
	r, err := results.Load(said.Dir)
	require.NoError(t, err)
	seen := map[string]int{}
	for _, s := range r.Samples {
		assert.Equal(t, results.OK, s.Status, "%s on %s: %s", s.Series, s.Parameters["node"], s.Reason)
		if !inv.SharedKernel {
			assert.Equal(t, 1.0, s.Value, "%s on %s: %s", s.Series, s.Parameters["node"], s.Reason)
		}
		seen[s.Series]++
	}
	for _, property := range []string{"host name", "siblings reached by name", "clock", "cgroup v2", "a user's service has limits", "module br_netfilter", "module vxlan", "lingering", "rootless Docker"} {
		assert.Equal(t, len(inv.Nodes), seen[property], property)
	}
	assert.Equal(t, len(inv.Compute()), seen["runs a job"])
	if inv.Driver == "lima" && !*fullFlag {
		return // how it is shown, the quickstart's bed tells in seconds
	}
	text := p.ok(t, "run", "selftest", "-s", p.stack).stdout
	for _, n := range inv.Nodes {
		assert.GreaterOrEqual(t, strings.Count(text, "\n"+n.Name+"  "), 12, "a line per property of %s:\n%s", n.Name, text)
	}
}
