package e2e_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/bedfellow/bedfellow/pkg/progress"
)

// TestInterrupted: whatever an `up` is stopped by, and wherever, it says how to go on, the next one finishes the bed, and destroy
// leaves nothing.
func TestInterrupted(t *testing.T) {
	onlyQuickstart(t)
	p := newPlace(t, "interrupted", "quickstart", "e2e-int")
	before := census(t)
	t.Cleanup(func() { p.ok(t, "destroy", "-s", p.stack) })
	two := p.upArgs("nodes=2")
	ctrlC := func(t *testing.T, begins string) {
		up := p.start(t, nil, two...)
		up.await(t, progress.Started, begins)
		up.interrupt(t)
		c := up.wait(t)
		require.Equal(t, 1, c.code, "%s", c)
		for _, needle := range []string{"interrupted", "bed up -s " + p.stack, "bed destroy -s " + p.stack} {
			assert.Contains(t, c.stderr, needle, "%s", c)
		}
		for _, line := range census(t) {
			assert.False(t, strings.HasPrefix(line, "process") && strings.Contains(line, "work/bin"), "still at work: %s", line)
		}
	}
	t.Run("Ctrl-C while booting, then destroy", func(t *testing.T) {
		ctrlC(t, "boot ")
		p.ok(t, "destroy", "-s", p.stack)
		same(t, before)
	})
	t.Run("Ctrl-C while configuring", func(t *testing.T) { ctrlC(t, "configure") })
	for _, victim := range []string{"pulumi-resource-bedfellow", "pulumi", "bed"} {
		t.Run(victim+" killed", func(t *testing.T) {
			grow := p.start(t, nil, append(two, "-c", "memory="+map[string]string{"pulumi": "600MiB", "bed": "601MiB", "pulumi-resource-bedfellow": "602MiB"}[victim])...)
			grow.await(t, progress.Started, "boot ")
			kill(t, p.worker(t, victim))
			c := grow.wait(t)
			require.NotZero(t, c.code, "%s", c)
		})
	}
	t.Run("the next up finishes", func(t *testing.T) {
		inv, _ := p.up(t)
		p.computes(t, inv)
	})
	t.Run("Ctrl-C while destroying", func(t *testing.T) {
		destroy := p.start(t, nil, "destroy", "-s", p.stack, "-o", "json")
		destroy.await(t, progress.Started, "destroy ")
		destroy.interrupt(t)
		require.Equal(t, 1, destroy.wait(t).code)
	})
	p.ok(t, "destroy", "-s", p.stack)
	same(t, before)
}

// worker finds the process of this place that runs the command.
func (p place) worker(t *testing.T, command string) int {
	t.Helper()
	links, err := filepath.Glob("/proc/[0-9]*/exe")
	require.NoError(t, err)
	for _, link := range links {
		exe, _ := os.Readlink(link)
		environ, _ := os.ReadFile(filepath.Join(filepath.Dir(link), "environ"))
		if filepath.Base(exe) != command || !strings.Contains(string(environ), "HOME="+work(t, "home")) {
			continue
		}
		var pid int
		_, err := fmt.Sscanf(link, "/proc/%d/exe", &pid)
		require.NoError(t, err)
		return pid
	}
	require.Fail(t, "no process runs "+command)
	return 0
}

// TestBeside: beds of two clones stand beside each other; under one name the second is refused and the first not touched. Two
// commands on one stack do not get in each other's way either.
func TestBeside(t *testing.T) {
	onlyQuickstart(t)
	first := newPlace(t, "first", "quickstart", "e2e-one")
	second := newPlace(t, "second", "quickstart", "e2e-one")
	before := census(t)
	t.Cleanup(func() { first.ok(t, "destroy", "-s", "quickstart"); second.ok(t, "destroy", "-s", "quickstart") })

	up := first.start(t, nil, first.upArgs("nodes=2")...)
	up.await(t, progress.Started, "boot ")
	first.fails(t, 3, first.upArgs("nodes=2"), fmt.Sprint("process ", up.cmd.Process.Pid))
	first.fails(t, 3, []string{"destroy", "-s", "quickstart"}, fmt.Sprint("process ", up.cmd.Process.Pid))
	refused := []string{"e2e-one", first.dir, "-c name="}
	second.fails(t, 3, second.upArgs("nodes=1"), refused...)
	c := up.wait(t)
	require.Zero(t, c.code, "%s", c)
	inv := first.inventory(t)

	second.fails(t, 3, second.upArgs("nodes=1"), refused...)
	other := second
	other.bed = "e2e-two"
	beside, _ := other.up(t, "nodes=1")
	other.computes(t, beside)
	first.computes(t, inv)
	assert.Error(t, secondOf(other.on(t, beside, 0, "timeout 3 bash -c '</dev/tcp/"+inv.Nodes[0].BedAddress+"/22'")), "one bed reaches into the other")

	other.ok(t, "destroy", "-s", "quickstart")
	// Even a destroy that has the first's name: its state does not know it.
	again, said := first.up(t, "nodes=2")
	assert.Equal(t, inv, again)
	assert.Equal(t, []string{"same"}, kinds(t, said))
	first.ok(t, "destroy", "-s", "quickstart")
	same(t, before)
}

func kinds(t *testing.T, c call) (all []string) {
	for kind := range changes(t, c) {
		all = append(all, kind)
	}
	return all
}

// TestExpired: a bed past its time is removed without its state, and one that has time left is not.
func TestExpired(t *testing.T) {
	onlyQuickstart(t)
	p := newPlace(t, "expired", "quickstart", "e2e-ttl")
	before := census(t)
	t.Cleanup(func() { p.ok(t, "destroy", "-s", p.stack); same(t, before) })
	sweep := func() (swept []struct{ Owner struct{ Bed string } }) { // of ours alone: somebody's whole host is here
		c := p.ok(t, "sweep", "--expired", "--owner", p.bed, "-o", "json")
		require.NoError(t, json.Unmarshal([]byte(c.stdout), &swept), "%s", c)
		return swept
	}
	p.up(t, "nodes=1", "ttl=8h")
	assert.Empty(t, sweep())
	p.up(t, "ttl=1s")
	require.Eventually(t, func() bool { return len(sweep()) == 1 }, 30*time.Second, time.Second)
	assert.Contains(t, p.run(t, "status", "-s", p.stack).stdout, "missing")
}
