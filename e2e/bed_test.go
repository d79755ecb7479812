// Package e2e_test brings beds up with the command that people use, looks at them, breaks them and takes them down.
//
// `go test ./e2e` uses the quickstart's bed, `go test ./e2e -args -stack lima-ci` another. Every bed is named e2e…, so that a
// user's own is never touched. SKIP_<stage> skips a stage of TestBed; SKIP_destroy=1, then SKIP_up=1, keeps a bed between runs.
package e2e_test

import (
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/bedfellow/bedfellow/pkg/bed"
	"github.com/bedfellow/bedfellow/pkg/progress"
)

var stackFlag = flag.String("stack", "quickstart", "the preset whose bed is brought up")

func TestBed(t *testing.T) {
	p := newPlace(t, "clone", *stackFlag, "e2e")
	kept := work(t, "census.json")
	if !stage(t, "census", func(t *testing.T) {
		require.NoError(t, os.RemoveAll(filepath.Join(p.dir, "results"))) // of an earlier time
		data, err := json.Marshal(census(t))
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(kept, data, 0o600))
	}) {
		return
	}
	up := stage(t, "up", func(t *testing.T) {
		p.ok(t, "preview", "-s", p.stack, "-c", "name=e2e", "-c", "nodes=1")
		inv, _ := p.up(t)
		assert.Greater(t, len(inv.Nodes), 1, "what -c says on preview is for that call alone")
	})
	if up {
		for _, s := range []struct {
			name string
			run  func(*testing.T)
		}{
			{"check", p.check}, {"behind", p.behind}, {"noop", p.noop}, {"again", p.again}, {"preview", p.preview}, {"scenario", p.scenario}, {"drift", p.drift},
			{"machines", p.machines}, {"selftest", p.selftest}, {"manager", p.manager}, {"failedtask", p.failedTask}, {"grow", p.grow}, {"secrets", p.secrets},
			{"passphrase", p.passphrase}, {"kills", p.kills},
		} {
			stage(t, s.name, s.run)
		}
	}
	stage(t, "destroy", func(t *testing.T) {
		p.ok(t, "destroy", "-s", p.stack)
		var before []string
		data, err := os.ReadFile(kept)
		require.NoError(t, err)
		require.NoError(t, json.Unmarshal(data, &before))
		same(t, before)
	})
}

// check: the bed is what its configuration asks for, seen from the inside.
func (p place) check(t *testing.T) {
	inv := p.inventory(t)
	require.Equal(t, "e2e", inv.Bed)
	require.NotEmpty(t, inv.Compute())
	require.Less(t, len(inv.Compute()), len(inv.Nodes), "the control node computes nothing")
	if p.stack == "quickstart" {
		require.Len(t, inv.Compute(), 2)
	}
	for i, n := range inv.Nodes {
		assert.Equal(t, bed.NodeName("e2e", i), n.Name)
		assert.Equal(t, n.Name, p.must(t, inv, i, "hostname"))
		if n.Role == bed.Compute {
			assert.Equal(t, fmt.Sprint(n.CPUs), p.must(t, inv, i, "nproc"), "CPUs of %s", n.Name)
		}
		for _, other := range inv.Nodes { // by name, on the port that each serves
			assert.NoError(t, secondOf(p.on(t, inv, i, "timeout 5 bash -c '</dev/tcp/"+other.Name+"/22'")), "%s reaches %s", n.Name, other.Name)
		}
		routes := p.must(t, inv, i, `awk '$2 == "00000000"' /proc/net/route`)
		assert.Empty(t, routes, "%s is isolated and has a way out", n.Name)
		assert.Error(t, secondOf(p.on(t, inv, i, "timeout 3 bash -c '</dev/tcp/192.0.2.1/22'")))
	}
	eventually(t, "every compute node idle", p.patience(20*time.Second), func() error {
		out := p.must(t, inv, 0, `sinfo -h -N -o "%N %T %c"`)
		var want []string
		for _, n := range inv.Compute() {
			want = append(want, fmt.Sprintf("%s idle %d", n.Name, n.CPUs))
		}
		if out != strings.Join(want, "\n") {
			return fmt.Errorf("sinfo says\n%s\nnot\n%s", out, strings.Join(want, "\n"))
		}
		return nil
	})
	p.computes(t, inv)
	for name, m := range p.states(t) {
		assert.Equal(t, "running", m.State, name)
	}
	assert.Equal(t, inv.Nodes[1].Name, strings.TrimSpace(p.ok(t, "ssh", "-s", p.stack, "2", "--", "hostname").stdout))
	p.fails(t, 1, []string{"ssh", "-s", p.stack, "2", "--", "exit 7"}, "status 7")
	p.fails(t, 2, []string{"ssh", "-s", p.stack, "nobody", "--", "true"}, inv.Nodes[0].Name)
}

func secondOf[T any](_ T, err error) error { return err }

// noop: a second up changes no resource, starts no machine, runs no Ansible and writes to no node.
func (p place) noop(t *testing.T) {
	inv := p.inventory(t)
	files := func() (all []map[string]string) {
		for i := range inv.Nodes {
			found := map[string]string{}
			// What a node writes by itself, or because somebody looked, is left out: logs, Slurm's and systemd's own state.
			out := p.must(t, inv, i, `sudo find / -xdev \( -path /proc -o -path /sys -o -path /dev -o -path /run -o -path /var/log -o -path /var/spool -o -path /var/lib/systemd -o -path '/var/lib/slurm*' -o -path /tmp -o -path /var/tmp \) -prune -o -printf '%T@ %C@ %i %p\n'`)
			for line := range strings.Lines(out) {
				stamp, path, _ := strings.Cut(strings.TrimSpace(line), " /")
				found[path] = stamp
			}
			require.Greater(t, len(found), 5000, "find saw the node's disk")
			all = append(all, found)
		}
		return all
	}
	before := files()
	again, c := p.up(t)
	after := files()
	for i, n := range inv.Nodes {
		for path, stamp := range after[i] {
			assert.Equal(t, before[i][path], stamp, "%s: /%s was written", n.Name, path)
		}
	}
	assert.Equal(t, inv, again)
	for kind := range changes(t, c) {
		assert.Equal(t, "same", kind, "%s", c)
	}
	for _, e := range c.steps() {
		assert.False(t, strings.HasPrefix(e.Step, "boot") || strings.HasPrefix(e.Step, "configure") || strings.HasPrefix(e.Step, "machines"), "it did %q", e.Step)
	}
}

// preview says what up would do, does nothing and keeps nothing.
func (p place) preview(t *testing.T) {
	inv := p.inventory(t)
	p.needTime(t, inv)
	config := filepath.Join(p.dir, ".bed/config/Pulumi."+p.stack+".yaml")
	before, err := os.ReadFile(config)
	require.NoError(t, err)
	c := p.ok(t, "preview", "-s", p.stack, "-o", "json", "-c", fmt.Sprintf("nodes=%d", len(inv.Nodes)+1))
	assert.Positive(t, changes(t, c)["update"], "%s", c)
	after, err := os.ReadFile(config)
	require.NoError(t, err)
	assert.Equal(t, string(before), string(after))
	c = p.ok(t, "preview", "-s", p.stack, "-o", "json")
	assert.Equal(t, []string{"same"}, kinds(t, c), "%s", c)
	assert.Equal(t, inv, p.inventory(t))
}

// drift: what is broken by hand is shown by status and refresh, and up mends it and nothing else.
func (p place) drift(t *testing.T) {
	inv := p.inventory(t)
	needNspawn(t, inv)
	control, first, second := inv.Nodes[0].Name, inv.Nodes[1].Name, inv.Nodes[2].Name

	t.Run("supervisor killed and sshd stopped", func(t *testing.T) {
		kill(t, supervisor(t, first))
		p.must(t, inv, 2, "sudo systemctl stop ssh.socket ssh.service 2>/dev/null; sudo systemctl stop ssh")
		inv = p.mend(t, inv, map[string]string{first: "", second: "unreachable"})
	})
	t.Run("init killed and host key replaced", func(t *testing.T) {
		kill(t, initOf(t, control))
		p.must(t, inv, 1, "sudo rm /etc/ssh/ssh_host_ed25519_key && sudo ssh-keygen -q -t ed25519 -N '' -f /etc/ssh/ssh_host_ed25519_key && sudo systemctl restart ssh")
		p.fails(t, 1, []string{"ssh", "-s", p.stack, first, "--", "true"}, "ost key")
		inv = p.mend(t, inv, map[string]string{control: "", first: "host key"})
	})
}

// mend expects status and refresh to show the broken nodes, each with a word of its detail or state, and up to make those anew.
func (p place) mend(t *testing.T, inv bed.Inventory, broken map[string]string) bed.Inventory {
	t.Helper()
	for name, m := range p.states(t) {
		if word, ok := broken[name]; ok {
			assert.NotEqual(t, "running", m.State, name)
			assert.Contains(t, m.State+" "+m.Detail, word)
		} else {
			assert.Equal(t, "running", m.State, name)
		}
	}
	refreshed := p.ok(t, "refresh", "-s", p.stack, "-o", "json")
	assert.Positive(t, changes(t, refreshed)["update"], "%s", refreshed)
	for name := range broken {
		assert.Contains(t, refreshed.stderr, name, "refresh names it")
	}
	mended, _ := p.up(t)
	before, after := incarnations(inv), incarnations(mended)
	for name, was := range before {
		if _, ok := broken[name]; ok {
			assert.NotEqual(t, was, after[name], "%s was to be made anew", name)
		} else {
			assert.Equal(t, was, after[name], "%s was well and is another now", name)
		}
	}
	for name, m := range p.states(t) {
		assert.Equal(t, "running", m.State, "%s: %s", name, m.Detail)
	}
	// An allocation whose srun died with its node is given back after InactiveLimit, a third of that and MessageTimeout.
	p.computesWithin(t, mended, 150*time.Second)
	return mended
}

// failedTask: a task that fails is named, with its node, what it said and how to enter; mended, the next up goes on.
func (p place) failedTask(t *testing.T) {
	inv := p.inventory(t)
	p.needTime(t, inv)
	p.must(t, inv, 1, "sudo mv /usr/bin/python3 /usr/bin/python3.gone")
	c := p.fails(t, 1, p.upArgs(fmt.Sprintf("nodes=%d", len(inv.Nodes)+1)), "failed on "+inv.Nodes[1].Name, "python3", "bed ssh "+inv.Nodes[1].Name, "task \"")
	_, failed := c.step(progress.Failed, "configure")
	assert.True(t, failed, "%s", c)
	p.must(t, inv, 1, "sudo mv /usr/bin/python3.gone /usr/bin/python3")
	grown, _ := p.up(t)
	require.Len(t, grown.Nodes, len(inv.Nodes)+1, "-c of the failed call is kept")
	p.up(t, fmt.Sprintf("nodes=%d", len(inv.Nodes)))
}

// fullFlag asks for what an emulated bed takes too long for in CI.
var fullFlag = flag.Bool("full", false, "also run the parts that take long on emulated machines")

// needTime skips, on emulated machines, what does not depend on the driver or makes more of them: the quickstart's bed shows the same in seconds.
func (p place) needTime(t *testing.T, inv bed.Inventory) {
	if inv.Driver == "lima" && !*fullFlag {
		t.Skip("takes minutes where machines are emulated, and the quickstart's bed shows the same; `make e2e-full` does")
	}
}

// grow: a bed that grows and shrinks keeps the nodes it has, under their names.
func (p place) grow(t *testing.T) {
	inv := p.inventory(t)
	p.needTime(t, inv)
	n := len(inv.Nodes)
	grown, _ := p.up(t, fmt.Sprintf("nodes=%d", n+1))
	require.Len(t, grown.Nodes, n+1)
	want := incarnations(inv)
	want[bed.NodeName("e2e", n)] = grown.Nodes[n].Incarnation
	assert.Equal(t, want, incarnations(grown))
	p.computes(t, grown)

	shrunk, _ := p.up(t, fmt.Sprintf("nodes=%d", n))
	assert.Equal(t, incarnations(inv), incarnations(shrunk))
	p.computes(t, shrunk)
	names := strings.Fields(p.must(t, shrunk, 0, "sinfo -h -N -o %N"))
	assert.Len(t, names, len(shrunk.Compute()), "Slurm forgets the node that is gone: %v", names)
	keys := maps.Keys(p.states(t))
	for name := range keys {
		assert.NotEqual(t, bed.NodeName("e2e", n), name)
	}
}

// passphrase: a wrong one is called so, with what to do.
func (p place) passphrase(t *testing.T) {
	c := p.start(t, []string{"PULUMI_CONFIG_PASSPHRASE=wrong"}, "status", "-s", p.stack).wait(t)
	assert.Equal(t, 3, c.code, "%s", c)
	assert.Contains(t, c.stderr, "PULUMI_CONFIG_PASSPHRASE")
	assert.Contains(t, c.stderr, filepath.Join(".bed", "passphrase"))
}
