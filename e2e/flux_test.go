package e2e_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/bedfellow/bedfellow/images"
	"github.com/bedfellow/bedfellow/pkg/bed"
	"github.com/bedfellow/bedfellow/pkg/results"
	"github.com/bedfellow/bedfellow/scenarios/wlm"
)

// TestFlux brings a bed with Flux up, on the driver of the stack, and has it do what Flux is there for: three compute nodes at least.
func TestFlux(t *testing.T) {
	artifact := os.Getenv(images.FluxEnv)
	if artifact == "" {
		t.Skip(images.FluxEnv + " names no artifact of Flux, which no distribution has: a tar archive of what it installs, or packages, for the stack's image; " +
			"the same scenarios run under Slurm in TestBed")
	}
	p := newPlace(t, "flux", *stackFlag, "e2e-flux")
	before := census(t)
	data, err := os.ReadFile(artifact)
	require.NoError(t, err)
	artifact = filepath.Join(p.dir, "flux.tar")
	require.NoError(t, os.WriteFile(artifact, data, 0o600))
	t.Cleanup(func() {
		require.NoError(t, os.Remove(artifact)) // a bed is destroyed without it too
		p.ok(t, "destroy", "-s", p.stack)
		same(t, before)
	})
	p.fails(t, 3, p.upArgs("workloadManager=flux", "flux="+filepath.Join(p.dir, "none.tar")), "none.tar", images.FluxEnv)
	same(t, before)

	settings := []string{"workloadManager=flux", "flux=" + artifact, "nodes=4", "flux.mode=system"}
	inv, _ := p.up(t, settings...)
	require.Equal(t, "flux", inv.WorkloadManager)
	t.Run("again", p.again)
	t.Run("selftest", func(t *testing.T) {
		p.ok(t, "run", "flux-selftest", "-s", p.stack)
		p.ok(t, "run", "selftest", "-s", p.stack)
	})
	t.Run("lammps", func(t *testing.T) {
		c := p.ok(t, append([]string{"run", "lammps", "-s", p.stack, "-n", "2", "-o", "json"}, small...)...)
		var said struct{ Dir string }
		require.NoError(t, json.Unmarshal([]byte(c.stdout), &said), "%s", c)
		r, err := results.Load(said.Dir)
		require.NoError(t, err)
		assert.Empty(t, r.Problems)
		on := map[string]bool{}
		for _, rank := range r.Run.Ranks {
			on[rank.Node] = true
		}
		assert.Len(t, on, len(inv.Compute()), "ranks on every compute node and nowhere else: %v", on)
		for _, s := range r.Samples {
			assert.Equal(t, results.OK, s.Status, "%s: %s", s.Metric, s.Reason)
			assert.Equal(t, "flux", s.Parameters["manager"])
		}
	})
	t.Run("iperf", func(t *testing.T) { p.between(t, inv) })
	t.Run("interrupted run", func(t *testing.T) {
		run := p.start(t, nil, append([]string{"run", "lammps", "-s", p.stack, "-n", "500", "-o", "json"}, small...)...)
		eventually(t, "a job", p.patience(60*time.Second), func() error {
			if p.must(t, inv, 0, "flux jobs -n -o '{id}'") == "" {
				return errors.New("flux has none")
			}
			return nil
		})
		run.interrupt(t)
		c := run.wait(t)
		require.Equal(t, 1, c.code, "%s", c)
		eventually(t, "an empty queue", p.patience(15*time.Second), func() error {
			if jobs := p.must(t, inv, 0, "flux jobs -n -o '{id} {name} {state}'"); jobs != "" {
				return errors.New(jobs)
			}
			return nil
		})
		for i, n := range inv.Nodes {
			assert.Empty(t, p.must(t, inv, i, "pgrep -x lmp || true"), "LAMMPS still runs on %s", n.Name)
		}
	})
	t.Run("manager", p.manager)
	t.Run("secrets", func(t *testing.T) { p.fluxSecrets(t, inv) })
	t.Run("user mode", func(t *testing.T) {
		p.up(t, append(settings, "flux.mode=user")...)
		for i, n := range inv.Nodes {
			assert.Equal(t, "inactive", p.must(t, inv, i, "systemctl is-active flux || true"), "the system's on %s", n.Name)
		}
		p.ok(t, "run", "selftest", "-s", p.stack)
		p.ok(t, append([]string{"run", "lammps", "-s", p.stack, "-n", "1"}, small...)...)
		for i, n := range inv.Nodes {
			assert.Empty(t, p.must(t, inv, i, "pgrep -u bed flux-broker || true; ls -d /tmp/bedfellow-* 2>/dev/null || true"), n.Name)
		}
		p.up(t, append(settings, "flux.mode=system")...)
	})
	t.Run("a broker dies under a job", func(t *testing.T) {
		last := inv.Nodes[len(inv.Nodes)-1].Name
		p.brokerDies(t, inv, wlm.Job{Task: wlm.Task{Command: []string{"sleep", "600"}, Ranks: 1}, Request: wlm.Request{On: []string{last}}})
	})
	t.Run("a broker dies under a script on another node", func(t *testing.T) {
		n := len(inv.Nodes)
		p.brokerDies(t, inv, wlm.Job{Script: "sleep 600", Task: wlm.Task{Ranks: 2}, Request: wlm.Request{On: []string{inv.Nodes[n-2].Name, inv.Nodes[n-1].Name}}})
	})
	t.Run("nodes that do not fit", func(t *testing.T) { p.misfits(t, inv, settings) })
	t.Run("a broker that does not come", func(t *testing.T) { p.brokerAway(t, inv, settings) })
}

// brokerDies: a job on the last node, whose first node sleeps, is over with that node's broker, which comes back.
func (p place) brokerDies(t *testing.T, inv bed.Inventory, job wlm.Job) {
	m, last := p.open(t, inv), len(inv.Nodes)-1
	first := last + 1 - len(job.On)
	job.Name, job.Limit, job.Output = "victim", 10*time.Minute, "/tmp/bedfellow-victim.out"
	id, err := m.Submit(t.Context(), job)
	require.NoError(t, err)
	eventually(t, "the job", p.patience(30*time.Second), func() error {
		_, err := p.on(t, inv, first, "pgrep -x sleep -u bed")
		return err
	})
	p.must(t, inv, last, "sudo systemctl kill --kill-who=main --signal=KILL flux")
	ctx, cancel := context.WithTimeout(t.Context(), p.patience(2*time.Minute)) // the job's own end is later
	defer cancel()
	o, err := m.Wait(ctx, id)
	require.NoError(t, err)
	assert.Equal(t, wlm.NodeFail, o.State, "%+v", o)
	assert.Contains(t, o.Reason, inv.Nodes[last].Name)
	eventually(t, "the broker back, and nothing of the job", p.patience(time.Minute), func() error {
		if up := p.must(t, inv, 0, "flux resource list -s up -no '{nnodes}'"); up != fmt.Sprint(len(inv.Compute())) {
			return fmt.Errorf("%s nodes are up", up)
		}
		for i := first; i <= last; i++ {
			if left := p.must(t, inv, i, "pgrep -x sleep -u bed || true"); left != "" {
				return fmt.Errorf("the job's process %s lives on on node %s", left, inv.Nodes[i].Name)
			}
		}
		return nil
	})
	p.must(t, inv, first, "rm -f /tmp/bedfellow-victim.out")
}

// fluxSecrets: the brokers' certificate is one and the same, readable by its owner alone, and in the clear nowhere in the state.
func (p place) fluxSecrets(t *testing.T, inv bed.Inventory) {
	const path = "/etc/flux/system/curve.cert"
	first := p.must(t, inv, 0, "sudo cat "+path)
	require.Contains(t, first, "secret-key")
	for i, n := range inv.Nodes {
		assert.Equal(t, first, p.must(t, inv, i, "sudo cat "+path), n.Name)
		assert.Equal(t, "flux 400", p.must(t, inv, i, "sudo stat -c '%U %a' "+path), n.Name)
	}
	assert.NotContains(t, string(p.pulumi(t, nil, "stack", "export")), first[len(first)-45:len(first)-5])
}

// misfits: a node whose clock or name is wrong is refused before anything of Flux is changed; a certificate that others may read, which
// Flux would not take, is mended.
func (p place) misfits(t *testing.T, inv bed.Inventory, settings []string) {
	last := len(inv.Nodes) - 1
	name := inv.Nodes[last].Name
	for _, c := range []struct{ fault, broken, mended, says string }{
		// Containers have the host's clock, so that what tells it is false: two minutes.
		{"clock", `printf '#!/bin/sh\necho $(($(/usr/bin/date +%%s) - 120))\n' | sudo tee /usr/local/bin/date && sudo chmod 755 /usr/local/bin/date`,
			"sudo rm /usr/local/bin/date", "clocks are 1"},
		{"name", "sudo hostname another", "sudo hostname " + name, name + " is broken: calls itself another"},
	} {
		t.Run(c.fault, func(t *testing.T) {
			p.must(t, inv, last, c.broken)
			p.oldPlaybooks(t)
			up := p.run(t, p.upArgs(settings...)...)
			p.must(t, inv, last, c.mended)
			assert.Equal(t, 1, up.code, "%s", up)
			assert.Contains(t, up.stderr, c.says)
			p.up(t, settings...)
		})
	}
	t.Run("certificate's mode", func(t *testing.T) {
		p.must(t, inv, last, "sudo chmod 644 /etc/flux/system/curve.cert")
		p.oldPlaybooks(t)
		p.up(t, settings...)
		assert.Equal(t, "flux 400", p.must(t, inv, last, "sudo stat -c '%U %a' /etc/flux/system/curve.cert"))
	})
	assert.Equal(t, fmt.Sprint(len(inv.Compute())), p.must(t, inv, 0, "flux resource list -s up -no '{nnodes}'"))
}

// brokerAway: a node whose broker cannot start is named by `up`, with where to look.
func (p place) brokerAway(t *testing.T, inv bed.Inventory, settings []string) {
	last := len(inv.Nodes) - 1
	p.must(t, inv, last, `sudo sh -c 'mkdir -p /etc/systemd/system/flux.service.d && printf "[Unit]\\nConditionPathExists=/nonexistent\\n" >/etc/systemd/system/flux.service.d/away.conf && systemctl daemon-reload && systemctl stop flux'`)
	p.oldPlaybooks(t)
	c := p.run(t, p.upArgs(settings...)...)
	assert.Equal(t, 1, c.code, "%s", c)
	assert.Contains(t, c.stderr, inv.Nodes[last].Name)
	p.must(t, inv, last, "sudo rm /etc/systemd/system/flux.service.d/away.conf && sudo systemctl daemon-reload")
	p.up(t, settings...)
	eventually(t, "all of Flux", p.patience(30*time.Second), func() error {
		want := fmt.Sprintf("%d", len(inv.Compute()))
		if up := p.must(t, inv, 0, "flux resource list -s up -no '{nnodes}'"); up != want {
			return fmt.Errorf("%s nodes are up, not %s", up, want)
		}
		return nil
	})
}
