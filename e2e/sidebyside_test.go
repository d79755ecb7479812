package e2e_test

import (
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/bedfellow/bedfellow/images"
	"github.com/bedfellow/bedfellow/pkg/bed"
	"github.com/bedfellow/bedfellow/pkg/results"
	"github.com/bedfellow/bedfellow/scenarios/sidebyside"
	"github.com/bedfellow/bedfellow/scenarios/wlm"
)

// TestSideBySide: the talk's third model on nodes that have no Kubernetes but those that jobs bring up, two of them to a job, and Flux where there
// is one to be had.
func TestSideBySide(t *testing.T) {
	if driver(*stackFlag) == "nspawn" {
		t.Skip("Kubernetes without root needs nodes with a kernel and cgroup v2 of their own: `make e2e-full STACK=lima-ci` has them")
	}
	if !*fullFlag {
		t.Skip("CI has time for three such jobs on one emulated machine, TestKubernetes' two workflows and one that is killed; `make e2e-full STACK=lima-ci` has them on two")
	}
	p := newPlace(t, "sidebyside", *stackFlag, "e2e-side")
	p.bundled(t)
	before := census(t)
	t.Cleanup(func() {
		p.ok(t, "destroy", "-s", p.stack)
		same(t, before)
	})
	settings := []string{"nodes=3", "cpus=2", "memory=4GiB", "kubernetes=" + bed.JobsKubernetes}
	if artifact := os.Getenv(images.FluxEnv); artifact != "" {
		settings = append(settings, "workloadManager=flux", "flux="+artifact, "flux.matchPolicy=lonode") // so that two jobs share nodes
	} else {
		t.Logf("%s names no artifact of Flux, and so these are Slurm's jobs", images.FluxEnv)
	}
	inv, _ := p.up(t, settings...)
	require.Len(t, inv.Compute(), 2)
	p.fails(t, 3, []string{"run", "kubernetes-selftest", "-s", p.stack}, bed.JobsKubernetes, "kubernetes="+bed.OwnKubernetes)
	p.fails(t, 3, []string{"kubeconfig", "-s", p.stack}, bed.JobsKubernetes, "kubernetes="+bed.OwnKubernetes)
	t.Run("again", p.again)
	t.Run("node gone", p.nodeGone)
	t.Run("endings", p.endings)
	t.Run("workflow", p.workflow)
	t.Run("idle nodes", p.idleNodes)
	t.Run("faults", p.workflowFaults)
	t.Run("two users", p.twoUsers)
	for i := range inv.Nodes {
		assert.Empty(t, p.must(t, inv, i, "usernetes instances"), "node %s", inv.Nodes[i].Name)
	}
}

// workflow: a batch job brings a Kubernetes of its own up, has its service learn from simulations on the same nodes and predict others, and takes
// all of it down. The scenario itself holds what the service says it has learned against what was simulated, and looks whether anything is left.
func (p place) workflow(t *testing.T) {
	const train, test, y, z = 12, 4, 2, 2
	steps := "steps=4" // for CI's time
	if *fullFlag {
		steps = "steps=10"
	}
	args := []string{"run", "workflow", "-s", p.stack, "-o", "json", "--param", steps, "--param", "limit=2h", "--param", "ranks=1"}
	for name, n := range map[string]int{"train": train, "test": test, "x": 2, "y": y, "z": z} {
		args = append(args, "--param", fmt.Sprintf("%s=%d", name, n))
	}
	r := p.kept(t, args...)
	require.Equal(t, results.OK, r.Run.Status)
	count := map[string]int{}
	for _, s := range r.Samples {
		require.Equal(t, results.OK, s.Status, "%s: %s", s.Series, s.Reason)
		count[s.Series+", "+s.Metric]++
	}
	for want, n := range map[string]int{
		"training, simulation": train, "training, learn latency": train, "hold-out, simulation": test, "hold-out, predict latency": test, "job, set-up": 1, "job, teardown": 1,
	} {
		assert.Equal(t, n, count[want], want)
	}
	for _, model := range []string{"linear", "bayesian", "passive-aggressive", "linear+product", "bayesian+product", "passive-aggressive+product"} {
		assert.Equal(t, test, count[model+", predicted"], model)
		assert.Equal(t, 1, count[model+", RMSE"], model)
	}
	assert.NotEmpty(t, r.Run.Versions["service scikit-learn"])
}

// idleNodes: what a job's Kubernetes takes to come and go beside what it takes on nodes without a job, and the service under load.
func (p place) idleNodes(t *testing.T) {
	r := p.kept(t, "run", "sidebyside", "-s", p.stack, "-o", "json", "--param", "idle=yes", "--param", "requests=100", "--param", "cells=1", "--param", "limit=2h")
	have := map[string]bool{}
	for _, s := range r.Samples {
		require.Equal(t, results.OK, s.Status, "%s: %s", s.Series, s.Reason)
		assert.Positive(t, s.Value, "%s, %s", s.Series, s.Metric)
		have[s.Series+", "+s.Metric] = true
	}
	for _, want := range []string{"completed, set-up", "idle nodes, set-up", "completed, teardown", "idle nodes, teardown", "completed, learn requests", "completed, predict requests", "completed, simulation, service busy over idle"} {
		assert.True(t, have[want], want)
	}
	ratios := map[string]string{}
	for _, ratio := range r.Summary.Ratios {
		ratios[ratio.Metric] = ratio.Series + " to " + ratio.Baseline
	}
	for _, metric := range []string{"set-up", "teardown"} {
		assert.Equal(t, "completed to "+sidebyside.IdleNodes, ratios[metric], metric)
	}
}

// ownAgain: the bed's own Kubernetes, which was stopped for the jobs, is started again, and comes back as it was.
func (p place) ownAgain(t *testing.T) {
	inv := p.inventory(t)
	eventually(t, "the bed's own Kubernetes", p.patience(5*time.Minute), func() error {
		_, err := p.on(t, inv, 0, "usernetes init && usernetes dns")
		return err
	})
	p.kubeconfig(t)
}

// podDeleted and controlRestarted are commands that a node's user has what a job's service runs on fail with.
const (
	podDeleted       = "usernetes kubectl delete pod -l app=ml-server --wait=false"
	controlRestarted = "docker restart -t 5 usernetes-$USERNETES_INSTANCE"
)

// workflowFaults: what its service runs on fails under a workflow that goes on.
func (p place) workflowFaults(t *testing.T) {
	t.Run("pod deleted", func(t *testing.T) { p.struck(t, podDeleted) })
	t.Run("control plane's container restarted", func(t *testing.T) { p.struck(t, controlRestarted) })
}

// struck: a fault between two points of a workflow loses none and counts none twice: the scenario looks.
func (p place) struck(t *testing.T, fault string) {
	inv := p.inventory(t)
	first := slices.IndexFunc(inv.Nodes, func(n bed.InventoryNode) bool { return n.Name == inv.Compute()[0].Name })
	run := p.start(t, nil, "run", "workflow", "-s", p.stack, "-o", "json", "--param", "train=8", "--param", "test=2",
		"--param", "x=1", "--param", "y=1", "--param", "z=1", "--param", "steps=10", "--param", "limit=2h", "--param", "ranks=1")
	eventually(t, "the second simulation", p.patience(5*time.Minute), func() error {
		if c := run.sofar(-1); !strings.Contains(c.stderr, "2 of 10 simulations") {
			return errors.New("it is not there yet")
		}
		return nil
	})
	struck := strings.Fields(p.must(t, inv, first, `export USERNETES_INSTANCE=$(usernetes instances); `+fault+` >&2; date +%s.%N`))
	c := run.wait(t)
	require.Zero(t, c.code, "%s", c)
	r := p.load(t, c)
	log, err := os.ReadFile(filepath.Join(r.Dir, r.Samples[0].Log))
	require.NoError(t, err)
	models := regexp.MustCompile(`(?m)^([0-9.]+) models$`).FindSubmatch(log) // the job's script is on the same node
	require.Len(t, models, 2, "%s", log)
	assert.Less(t, struck[len(struck)-1], string(models[1]), "there were points to come when it was struck")
}

// nodeGone: a machine is gone in the middle of a job. The run says which, those that are left have nothing of the job any more, and what the machine
// itself had is taken down by the next job on it.
func (p place) nodeGone(t *testing.T) {
	if driver(p.stack) != "lima" {
		t.Skip("it is Lima that stops a machine here")
	}
	inv := p.inventory(t)
	gone := inv.Compute()[1].Name
	run := p.start(t, nil, "run", "sidebyside", "-s", p.stack, "-o", "json", "--param", "simulations=100", "--param", "ranks=1", "--param", "limit=2h")
	eventually(t, "a simulation", p.patience(15*time.Minute), func() error {
		if c := run.sofar(-1); !strings.Contains(c.stderr, "1 of 100 simulations") {
			return errors.New("there is none yet")
		}
		return nil
	})
	p.limactl(t, "stop", "-f", gone)
	c := run.wait(t)
	require.NotZero(t, c.code, "%s", c)
	assert.Contains(t, c.stderr, gone)
	for i, n := range inv.Nodes {
		if n.Name != gone {
			assert.Empty(t, p.must(t, inv, i, "usernetes instances"), "node %s", n.Name)
		}
	}
	p.up(t)
	p.ends(t, sidebyside.Completed, "points")
}

// shared: jobs that share a node run on it at once. Each waits for the other.
func (p place) shared(t *testing.T) {
	inv := p.inventory(t)
	m := p.open(t, inv)
	node := inv.Compute()[0]
	dir := "/tmp/bedfellow-shared-" + rand.Text()[:8]
	at := slices.IndexFunc(inv.Nodes, func(n bed.InventoryNode) bool { return n.Name == node.Name })
	p.must(t, inv, at, "mkdir "+dir)
	var ids []wlm.ID
	for i := range 2 {
		id, err := m.Submit(t.Context(), wlm.Job{
			Name: fmt.Sprintf("shared-%d", i), Task: wlm.Task{Ranks: 1}, Request: wlm.Request{On: []string{node.Name}, Limit: p.patience(time.Minute), Shared: true},
			Output: fmt.Sprintf("%s/%d", dir, i), Script: fmt.Sprintf("touch %[1]s/here-%[2]d; until [ -e %[1]s/here-%[3]d ]; do sleep 0.2; done", dir, i, 1-i),
		})
		require.NoError(t, err)
		ids = append(ids, id)
	}
	for _, id := range ids {
		o, err := m.Wait(t.Context(), id)
		require.NoError(t, err)
		require.NoError(t, o.Err())
	}
	p.must(t, inv, at, "rm -r "+dir)
}

// twoUsers: each of two users has such a job, on the same nodes at once, and the end of one does nothing to the other's.
func (p place) twoUsers(t *testing.T) {
	p.fails(t, 1, []string{"run", "sidebyside", "-s", p.stack, "--param", "users=bed,guest"}, "usernetes admit guest")
	inv := p.inventory(t)
	for range 2 {
		var admits []*process
		for _, n := range inv.Nodes { // at once: the node's image goes into another Docker, which takes a quarter of an hour where emulated
			admits = append(admits, p.start(t, nil, "ssh", n.Name, "-s", p.stack, "--", "sudo usernetes admit guest"))
		}
		for _, admit := range admits {
			c := admit.wait(t)
			require.Zero(t, c.code, "%s", c)
		}
	}
	r := p.kept(t, "run", "sidebyside", "-s", p.stack, "-o", "json", "--param", "users=bed,guest", "--param", "limit=2h")
	require.Equal(t, results.OK, r.Run.Status)
	p.ends(t, sidebyside.Cancelled, "points", "--param", "users=bed,guest", "--param", "limit=2h")
}

// killed: every process of such a job is killed while it sets Kubernetes up, and its nodes take down what there was.
func (p place) killed(t *testing.T) { p.ends(t, sidebyside.Killed, "control-plane") }

// endings: the same, in all ways a job can end before its time, in each of its phases.
func (p place) endings(t *testing.T) {
	for _, at := range sidebyside.Phases {
		t.Run("cancelled at "+at, func(t *testing.T) { p.ends(t, sidebyside.Cancelled, at) })
	}
	for _, at := range []string{"containers", "control-plane", "joining"} { // while Docker and kubeadm make things
		t.Run("cancelled within "+at, func(t *testing.T) { p.ends(t, sidebyside.Cancelled, at, "--param", "after=5s") })
	}
	t.Run("killed", func(t *testing.T) { p.ends(t, sidebyside.Killed, "points") })
	t.Run("killed within joining", func(t *testing.T) { p.ends(t, sidebyside.Killed, "joining", "--param", "after=5s") })
	t.Run("failed", func(t *testing.T) { p.ends(t, sidebyside.Failed, "service") })
	t.Run("out of time", func(t *testing.T) { p.ends(t, sidebyside.TimedOut, "control-plane", "--param", "limit=5m") }) // its containers take a minute or two where emulated
}

func (p place) ends(t *testing.T, how sidebyside.Ending, at string, args ...string) {
	r := p.kept(t, append([]string{"run", "sidebyside", "-s", p.stack, "-o", "json", "--param", "ending=" + string(how), "--param", "at=" + at, "--param", "ranks=1"}, args...)...)
	assert.Equal(t, results.OK, r.Run.Status, "it ended so, and nothing is left")
}
