package e2e_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/bedfellow/bedfellow/pkg/bed"
	"github.com/bedfellow/bedfellow/pkg/results"
	"github.com/bedfellow/bedfellow/scenarios/scenario"
	"github.com/bedfellow/bedfellow/scenarios/wlm"
)

const repeats = 2

// small is the scenario's smallest problem: what is tested is that it runs everywhere and is kept, not how fast it is.
var small = []string{"--param", "x=1", "--param", "y=1", "--param", "z=1", "--param", "steps=20"}

// scenario: LAMMPS runs a rank on every compute node, every repetition is kept with its physics right, and the page is made.
func (p place) scenario(t *testing.T) {
	inv := p.inventory(t)
	c := p.ok(t, append([]string{"run", "lammps", "-s", p.stack, "-n", "2", "-o", "json"}, small...)...)
	var said struct {
		Dir     string          `json:"dir"`
		Summary results.Summary `json:"summary"`
	}
	require.NoError(t, json.Unmarshal([]byte(c.stdout), &said), "%s", c)
	assert.True(t, strings.HasPrefix(said.Dir, filepath.Join(p.dir, "results", p.stack, "lammps")), said.Dir)
	r, err := results.Load(said.Dir)
	require.NoError(t, err)
	assert.Empty(t, r.Problems)
	assert.Equal(t, results.OK, r.Run.Status)

	ranks := map[string]map[int]bool{} // node → the repetitions it ran a rank of
	for _, rank := range r.Run.Ranks {
		if !rank.Warmup {
			if ranks[rank.Node] == nil {
				ranks[rank.Node] = map[int]bool{}
			}
			ranks[rank.Node][rank.Repetition] = true
			assert.Positive(t, rank.PID)
		}
	}
	for _, n := range inv.Compute() {
		assert.Len(t, ranks[n.Name], repeats, "repetitions with a rank on %s", n.Name)
	}
	assert.Len(t, ranks, len(inv.Compute()), "the control node computes nothing: %v", ranks)

	measured := map[string]int{}
	for _, s := range r.Samples {
		assert.Equal(t, results.OK, s.Status, "%s: %s", s.Metric, s.Reason)
		if !s.Warmup {
			measured[s.Metric]++
		}
		if s.Log != "" {
			log, err := os.ReadFile(filepath.Join(said.Dir, s.Log))
			require.NoError(t, err)
			assert.Contains(t, string(log), "304 atoms", s.Log)
		}
	}
	require.NotEmpty(t, measured)
	for metric, n := range measured {
		assert.Equal(t, repeats, n, "repetitions of %s", metric)
	}
	for _, stat := range said.Summary.Stats {
		assert.Equal(t, repeats, stat.N, stat.Metric)
		assert.Zero(t, stat.Failed, stat.Metric)
	}

	page := filepath.Join(p.dir, "report.html")
	p.ok(t, "report", said.Dir, "-o", page)
	html, err := os.ReadFile(page)
	require.NoError(t, err)
	assert.Contains(t, string(html), "<svg")
	assert.Contains(t, string(html), inv.Nodes[1].Name)
	outside := regexp.MustCompile(`(?i)(src|href)\s*=\s*["']?(https?:)?//|url\(\s*["']?https?:|@import`)
	assert.Empty(t, outside.FindString(string(html)), "the page needs the network")

	p.between(t, inv)
	p.interruptedRun(t, inv)
	p.fails(t, 2, []string{"run", "lamps", "-s", p.stack}, "lammps")
	p.fails(t, 3, []string{"run", "lammps", "-s", p.stack, "--param", "nodes=99"}, "nodes")
}

// between: iperf3 measures two compute nodes in either direction, alone and at once, and leaves no process.
func (p place) between(t *testing.T, inv bed.Inventory) {
	c := p.ok(t, "run", "iperf", "-s", p.stack, "-n", "1", "--param", "nodes=2", "--param", "seconds=1", "-o", "json")
	var said struct{ Summary results.Summary }
	require.NoError(t, json.Unmarshal([]byte(c.stdout), &said), "%s", c)
	rates := map[string]float64{}
	for _, s := range said.Summary.Stats {
		if s.Metric == "bandwidth" && assert.NotNil(t, s.Median, "%s", c) {
			rates[s.Series+" from "+s.Parameters["from"]] = *s.Median
			assert.Positive(t, *s.Median)
		}
	}
	assert.Len(t, rates, 4, "%v", rates)
	for i, n := range inv.Nodes {
		assert.Empty(t, p.must(t, inv, i, "pgrep -x iperf3 || true"), n.Name)
	}
}

// interruptedRun: Ctrl-C ends a run at once and the job with it, and what was measured until then is kept.
func (p place) interruptedRun(t *testing.T, inv bed.Inventory) {
	run := p.start(t, nil, append([]string{"run", "lammps", "-s", p.stack, "-n", "500", "-o", "json"}, small...)...)
	dirs := func() []string {
		all, err := filepath.Glob(filepath.Join(p.dir, "results", p.stack, "lammps", "*"))
		require.NoError(t, err)
		return all
	}
	eventually(t, "the first repetition of a long run", p.patience(60*time.Second), func() error {
		all := dirs()
		r, err := results.Load(all[len(all)-1])
		if err == nil && (r.Run.Status != results.Running || len(r.Samples) == 0) {
			err = fmt.Errorf("%s is %s with %d samples", r.Dir, r.Run.Status, len(r.Samples))
		}
		return err
	})
	run.interrupt(t)
	c := run.wait(t)
	require.Equal(t, 1, c.code, "%s", c)
	assert.Contains(t, c.stderr, "interrupt")
	all := dirs()
	r, err := results.Load(all[len(all)-1])
	require.NoError(t, err)
	assert.Equal(t, results.Interrupted, r.Run.Status)
	assert.NotEmpty(t, r.Samples)
	assert.Contains(t, c.stdout+c.stderr, r.Run.ID, "it says where the results are")
	eventually(t, "an empty queue", p.patience(15*time.Second), func() error {
		if queue := p.must(t, inv, 0, "squeue -h"); queue != "" {
			return errors.New(queue)
		}
		return nil
	})
	for i, n := range inv.Nodes {
		assert.Empty(t, p.must(t, inv, i, "pgrep -x lmp || true"), "LAMMPS still runs on %s", n.Name)
	}
}

// manager: the bed's manager shows what a job prints while it runs; it takes a node out and back in, says why meanwhile, and does not
// mind being asked twice.
func (p place) manager(t *testing.T) {
	inv := p.inventory(t)
	p.needTime(t, inv)
	m := p.open(t, inv)
	node := inv.Compute()[0].Name
	p.attach(t, inv, m)
	p.script(t, inv, m)
	p.burst(t, inv, m)
	usable := func() (bool, string) {
		have, err := m.Resources(t.Context())
		require.NoError(t, err)
		i := slices.IndexFunc(have.Nodes, func(n wlm.NodeState) bool { return n.Name == node })
		require.GreaterOrEqual(t, i, 0, "%s", have)
		return have.Nodes[i].Usable, have.Nodes[i].Reason
	}
	for range 2 {
		require.NoError(t, m.Drain(t.Context(), node, "the suite looks"))
		is, why := usable()
		assert.False(t, is)
		assert.Equal(t, "the suite looks", why)
	}
	for range 2 {
		require.NoError(t, m.Undrain(t.Context(), node))
		eventually(t, node+" usable", p.patience(10*time.Second), func() error {
			if is, why := usable(); !is {
				return errors.New(why)
			}
			return nil
		})
	}
}

// burst: many jobs at once are run, and none is left of those that are cut short.
func (p place) burst(t *testing.T, inv bed.Inventory, m wlm.Manager) {
	c := p.ok(t, "run", "throughput", "-s", p.stack, "-n", "1", "--param", "jobs=20", "--param", "warmups=0", "-o", "json")
	var said struct{ Summary results.Summary }
	require.NoError(t, json.Unmarshal([]byte(c.stdout), &said), "%s", c)
	require.Len(t, said.Summary.Stats, 4, "many jobs by number and time, one as scenarios have it, one by hand: %s", c)
	for _, stat := range said.Summary.Stats {
		if assert.NotNil(t, stat.Median, "%s", c) {
			assert.Positive(t, *stat.Median)
		}
	}

	list := map[string]string{"slurm": "squeue -h -r", "flux": "flux jobs -n -c 0"}[m.Name()]
	ctx, cancel := context.WithCancelCause(t.Context())
	stop := errors.New("the suite has seen enough")
	ended := make(chan error, 1)
	go func() {
		_, err := m.Burst(ctx, "suite", 1000)
		ended <- err
	}()
	eventually(t, "jobs", p.patience(30*time.Second), func() error {
		if p.must(t, inv, 0, list) == "" {
			return errors.New("there is none")
		}
		return nil
	})
	cancel(stop)
	require.ErrorIs(t, <-ended, stop)
	eventually(t, "an empty queue", p.patience(30*time.Second), func() error {
		if jobs := p.must(t, inv, 0, list); jobs != "" {
			return errors.New(jobs)
		}
		return nil
	})
}

// open is the bed's workload manager.
func (p place) open(t *testing.T, inv bed.Inventory) wlm.Manager {
	key, err := os.ReadFile(p.keyFile())
	require.NoError(t, err)
	nodes, err := scenario.NewNodes(inv, key)
	require.NoError(t, err)
	t.Cleanup(func() { _ = nodes.Close() })
	m, err := wlm.Open(inv, nodes)
	require.NoError(t, err)
	return m
}

// attach follows a job that goes on only when what it printed so far has been read.
func (p place) attach(t *testing.T, inv bed.Inventory, m wlm.Manager) {
	node := len(inv.Nodes) - 1
	dir := "/tmp/bedfellow-attach-" + rand.Text()[:8]
	ctx, cancel := context.WithTimeout(t.Context(), p.patience(time.Minute))
	defer cancel()
	script := `mkdir "$0" && echo first && until [ -e "$0/read" ]; do sleep 0.1; done; echo second; rm -r "$0"`
	id, err := m.Submit(ctx, wlm.Job{
		Name: "attach", Task: wlm.Task{Command: []string{"sh", "-c", script, dir}, Ranks: 1},
		Request: wlm.Request{On: []string{inv.Nodes[node].Name}, Limit: p.patience(time.Minute)}, Output: dir + ".out",
	})
	require.NoError(t, err)
	var said bytes.Buffer
	require.NoError(t, m.Attach(ctx, id, writerFunc(func(b []byte) (int, error) {
		if said.Write(b); strings.HasSuffix(said.String(), "first\n") {
			p.must(t, inv, node, "touch "+dir+"/read")
		}
		return len(b), nil
	})))
	assert.Equal(t, "first\nsecond\n", said.String())
	o, err := m.Wait(ctx, id)
	require.NoError(t, err)
	require.NoError(t, o.Err())
	require.ErrorContains(t, m.Attach(ctx, id, io.Discard), "was waited for already")
	p.must(t, inv, node, "rm "+dir+".out*")
}

// script: a job that is a script runs commands on each of its nodes, with its environment and no input, and MPI ranks over all, beside one that waits.
func (p place) script(t *testing.T, inv bed.Inventory, m wlm.Manager) {
	var on []string
	ranks := 0
	for _, n := range inv.Compute() {
		on, ranks = append(on, n.Name), ranks+n.CPUs
	}
	file := "/tmp/bedfellow-script-" + rand.Text()[:8]
	ctx, cancel := context.WithTimeout(t.Context(), p.patience(2*time.Minute))
	defer cancel()
	id, err := m.Submit(ctx, wlm.Job{
		Name: "script", Task: wlm.Task{Ranks: ranks, Env: map[string]string{"WORD": "it's"}}, Request: wlm.Request{On: on, Limit: p.patience(2 * time.Minute)}, Output: file, Error: file + ".err",
		Script: fmt.Sprintf(`each sleep 286 &
echo "hosts" $job_hosts; [ "$job_number" -gt 0 ] && echo "$WORD"
export FED=fed
echo not | each sh -c 'echo "$(uname -n) is $FED$(cat)"' | sort
ranks %d sh -c 'echo rank' </dev/null | wc -l
exit 5`, ranks),
	})
	require.NoError(t, err)
	o, err := m.Wait(ctx, id)
	require.NoError(t, err)
	host := slices.IndexFunc(inv.Nodes, func(n bed.InventoryNode) bool { return n.Name == o.Host })
	require.GreaterOrEqual(t, host, 0)
	want := "hosts " + strings.Join(on, " ") + "\nit's\n"
	for _, name := range on {
		want += name + " is fed\n"
	}
	assert.Equal(t, want+fmt.Sprint(ranks), p.must(t, inv, host, "cat "+file))
	assert.Equal(t, []any{wlm.Failed, 5}, []any{o.State, o.ExitCode})
	eventually(t, "the end of what the job had in the background", p.patience(10*time.Second), func() error {
		for i, n := range inv.Nodes {
			if left := p.must(t, inv, i, "pgrep -fa 'slee[p] 286' || true"); left != "" {
				return fmt.Errorf("node %s has %s", n.Name, left)
			}
		}
		return nil
	})
	p.must(t, inv, host, "rm "+file+"*")
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }
