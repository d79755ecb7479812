package selftest

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/bedfellow/bedfellow/pkg/bed"
	"github.com/bedfellow/bedfellow/pkg/progress"
	"github.com/bedfellow/bedfellow/pkg/remote"
	"github.com/bedfellow/bedfellow/scenarios/scenario"
	"github.com/bedfellow/bedfellow/scenarios/wlm"
)

//go:embed hello.py
var hello []byte

// The properties of a Flux system instance.
const (
	allResources  = "Flux has what hwloc finds"
	drainedIdle   = "drained, gets no job"
	rejoins       = "rejoins after its broker is killed"
	endsLongJobs  = "a job longer than its limit is ended"
	nestsInstance = "an instance in a job has that job's nodes"
	openMPI       = "Open MPI ranks are where Flux put them"
	mpich         = "MPICH ranks are where Flux put them"
)

var ofFlux = []string{allResources, drainedIdle, rejoins, endsLongJobs, nestsInstance, openMPI, mpich}

const (
	rejoinTimeout = 5 * time.Minute // an emulated node needs most of it
	longJob       = 2 * time.Second // the limit of the job that is longer
)

// FluxScenario looks whether a bed's Flux does what it is there for.
func FluxScenario() scenario.Scenario {
	return scenario.Scenario{
		Name: "flux-selftest", Summary: "does the bed's Flux have all resources, and drain, rejoin, limit, nest and start MPI as it should?",
		Repeats: 1, Table: table,
		Run: func(ctx context.Context, env *scenario.Env) error {
			if env.Manager.Name() != "flux" {
				return bed.Problems{{Key: "workloadManager", Value: env.Manager.Name(), Host: true, Reason: "flux-selftest looks at Flux, which bed " + env.Inventory.Bed + " does not have",
					Remedy: "bring the bed up with -c workloadManager=flux"}}
			}
			if env.Inventory.FluxMode == "user" {
				return bed.Problems{{Key: "flux.mode", Value: "user", Host: true, Reason: "flux-selftest looks at a system instance, and each run on bed " + env.Inventory.Bed + " has one of its own",
					Remedy: "bring the bed up with -c flux.mode=system"}}
			}
			for r := range env.Repeats {
				if err := lookAtFlux(ctx, env, r+1); err != nil {
					return err
				}
			}
			return nil
		},
	}
}

// fluxLook is one look at a bed's Flux.
type fluxLook struct {
	*scenario.Env
	compute []string
	found   map[string][]finding // by node
}

func lookAtFlux(ctx context.Context, env *scenario.Env, repetition int) error {
	l := &fluxLook{Env: env, found: map[string][]finding{}}
	for _, n := range env.Inventory.Compute() {
		l.compute = append(l.compute, n.Name)
	}
	first, last := l.compute[0], l.compute[len(l.compute)-1]
	jobs, err := runsJobs(ctx, env)
	if err != nil {
		return err
	}
	for name, f := range jobs {
		l.found[name] = append(l.found[name], f)
	}
	dir, remove, err := env.Scratch(ctx, l.compute, "")
	if err != nil {
		return err
	}
	defer remove()
	if err := env.Put(ctx, l.compute, path.Join(dir, "hello.py"), hello, 0o600); err != nil {
		return err
	}
	for _, c := range []struct {
		property, node string
		alone          bool // makes sense with one compute node
		check          func(ctx context.Context) (seen string, err error)
	}{
		{allResources, env.Inventory.Control().Name, true, l.resources},
		{endsLongJobs, env.Inventory.Control().Name, true, l.longJob},
		{openMPI, first, true, func(ctx context.Context) (string, error) { return l.mpi(ctx, dir, "openmpi") }},
		{mpich, first, true, func(ctx context.Context) (string, error) { return l.mpi(ctx, dir, "mpich") }},
		{nestsInstance, first, true, func(ctx context.Context) (string, error) { return l.nested(ctx) }},
		{drainedIdle, last, false, func(ctx context.Context) (string, error) { return l.drained(ctx, last) }},
		{rejoins, last, true, func(ctx context.Context) (string, error) { return l.rejoins(ctx, last) }},
	} {
		if !c.alone && len(l.compute) == 1 {
			continue
		}
		step := progress.Start(ctx, "%s", c.property)
		seen, err := c.check(ctx)
		if ctx.Err() != nil {
			return step.End(context.Cause(ctx))
		}
		f := finding{property: c.property, ok: err == nil, seen: seen}
		if err != nil {
			f.seen = err.Error()
		}
		step.EndWith(seen, err)
		l.found[c.node] = append(l.found[c.node], f)
	}
	found := make([][]finding, len(env.Inventory.Nodes))
	for i, n := range env.Inventory.Nodes {
		found[i] = l.found[n.Name]
	}
	return keep(env, repetition, found)
}

// resources compares what Flux has with what hwloc finds on each compute node.
func (l *fluxLook) resources(ctx context.Context) (string, error) {
	have, err := l.Manager.Resources(ctx)
	if err != nil {
		return "", err
	}
	counts, err := l.OnEach(ctx, l.compute, "flux R encode --local | flux R decode --count=core")
	if err != nil {
		return "", err
	}
	sum := 0
	for i, text := range counts {
		n, err := strconv.Atoi(text)
		if err != nil {
			return "", fmt.Errorf("hwloc on node %s: %w", l.compute[i], err)
		}
		sum += n
	}
	if len(have.Nodes) != len(l.compute) || have.CPUs() != sum {
		return "", fmt.Errorf("flux has %s, and hwloc finds %d cores on %d nodes", have, sum, len(l.compute))
	}
	return have.String(), nil
}

// longJob has Flux itself end a job.
func (l *fluxLook) longJob(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, jobLimit)
	defer cancel()
	_, err := l.Nodes.Run(ctx, l.Inventory.Control().Name, fmt.Sprintf("flux run --time-limit=%ds sleep %d", int(longJob.Seconds()), int(2*jobLimit.Seconds())))
	var exit *remote.ExitError
	if !errors.As(err, &exit) {
		return "", fmt.Errorf("it went on: %w", err)
	}
	said := strings.TrimSpace(string(exit.Result.Stderr))
	if !strings.Contains(said, "timeout") {
		return "", fmt.Errorf("it ended with status %d: %s", exit.Result.Code, said)
	}
	return fmt.Sprintf("status %d", exit.Result.Code), nil
}

// mpi has a rank on each of two nodes, or of one where there is no other, say where it is, and add all up by MPI.
func (l *fluxLook) mpi(ctx context.Context, dir, library string) (string, error) {
	nodes := l.compute[:min(2, len(l.compute))]
	output := path.Join(dir, library)
	id, err := l.Manager.Submit(ctx, wlm.Job{
		Name: "hello", Task: wlm.Task{Command: []string{"python3", path.Join(dir, "hello.py"), library}, Dir: "/", Ranks: len(nodes)},
		Request: wlm.Request{On: nodes, Limit: jobLimit}, Output: output,
	})
	if err != nil {
		return "", err
	}
	o, err := l.Manager.Wait(ctx, id)
	if err == nil {
		err = o.Err()
	}
	said := ""
	if o.Host != "" {
		r, errRead := l.Nodes.Run(ctx, o.Host, "cat "+remote.Quote(output))
		said, err = string(r.Stdout), errors.Join(err, errRead)
	}
	if err != nil {
		return "", fmt.Errorf("%w: %s", err, said)
	}
	return ranksOf(said, o.Nodes)
}

// ranksOf reads the lines of hello.py and holds them against the nodes of the job, one rank each in order.
func ranksOf(said string, nodes []string) (string, error) {
	var want []string
	for i, node := range nodes {
		want = append(want, fmt.Sprintf("%d %d %s %d", i, len(nodes), node, len(nodes)*(len(nodes)-1)/2))
	}
	have := strings.Split(strings.TrimSpace(said), "\n")
	slices.Sort(have)
	if !slices.Equal(have, want) {
		return "", fmt.Errorf("ranks said %q, where %q was expected", have, want)
	}
	return fmt.Sprintf("%d ranks on %s", len(nodes), strings.Join(nodes, ", ")), nil
}

// nested has an instance in a job say how many nodes it has.
func (l *fluxLook) nested(ctx context.Context) (seen string, err error) {
	nodes := min(2, len(l.compute))
	a, err := l.Manager.Allocate(ctx, wlm.Request{Nodes: nodes, Ranks: nodes, Limit: 2 * jobLimit})
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, a.Release(ctx)) }()
	r, err := a.Run(ctx, wlm.Task{Command: []string{"sh", "-c", `echo "$(uname -n) $(flux getattr size) $(flux getattr instance-level)"`}, Ranks: nodes})
	if err != nil {
		return "", err
	}
	have := strings.Split(strings.TrimSpace(string(r.Stdout)), "\n")
	slices.Sort(have)
	var want []string
	for _, node := range a.Nodes() {
		want = append(want, fmt.Sprintf("%s %d 1", node, nodes))
	}
	slices.Sort(want)
	if !slices.Equal(have, want) {
		return "", fmt.Errorf("its tasks said %q, where %q was expected", have, want)
	}
	return "of " + strings.Join(a.Nodes(), ", "), nil
}

// drained takes a node out, runs as many jobs as there are nodes at once, and looks where they were.
func (l *fluxLook) drained(ctx context.Context, node string) (seen string, err error) {
	// Taken back by the control node itself when this process is no more.
	guard, err := l.Nodes.Hold(ctx, l.Inventory.Control().Name, "cat >/dev/null; sudo flux resource undrain --update "+remote.Quote(node), nil)
	if err != nil {
		return "", err
	}
	defer func() {
		err = errors.Join(err, guard.Release())
		if err == nil {
			err = l.runsOn(ctx, node)
		}
	}()
	if err := l.Manager.Drain(ctx, node, "flux-selftest looks whether it gets a job"); err != nil {
		return "", err
	}
	have, err := l.Manager.Resources(ctx)
	if err != nil {
		return "", err
	}
	if !slices.ContainsFunc(have.Nodes, func(n wlm.NodeState) bool { return n.Name == node && !n.Usable && n.Reason != "" }) {
		return "", fmt.Errorf("flux does not say so: %s", have)
	}
	used := make([]string, len(l.compute))
	err = remote.Each(ctx, used, len(used), func(ctx context.Context, i int, _ string) error {
		o, err := l.job(ctx, wlm.Request{Nodes: 1, Limit: jobLimit})
		used[i] = strings.Join(o.Nodes, ",")
		return err
	})
	if err != nil {
		return "", err
	}
	if slices.Contains(used, node) {
		return "", fmt.Errorf("a job ran there: %v", used)
	}
	return fmt.Sprintf("%d jobs ran on the others; undrained, it runs one", len(used)), nil
}

// rejoins kills a node's broker and looks whether the node runs jobs again.
func (l *fluxLook) rejoins(ctx context.Context, node string) (string, error) {
	const pid = "systemctl show -p MainPID --value flux"
	before, err := l.Nodes.Run(ctx, node, pid+" && sudo systemctl kill --kill-who=main --signal=KILL flux")
	if err != nil {
		return "", err
	}
	start := time.Now()
	ctx, cancel := context.WithTimeoutCause(ctx, rejoinTimeout, fmt.Errorf("it was not back within %s", rejoinTimeout))
	defer cancel()
	for {
		now, err := l.Nodes.Run(ctx, node, pid)
		if err != nil {
			return "", err
		}
		have, err := l.Manager.Resources(ctx) // of a bed of one node, the first broker is the one that was killed
		there := err == nil && slices.ContainsFunc(have.Nodes, func(n wlm.NodeState) bool { return n.Name == node && n.Usable })
		if text := strings.TrimSpace(string(now.Stdout)); there && text != "0" && text != strings.TrimSpace(string(before.Stdout)) {
			break
		}
		select {
		case <-ctx.Done():
			return "", errors.Join(fmt.Errorf("%w; flux has %s", context.Cause(ctx), have), err)
		case <-time.After(500 * time.Millisecond):
		}
	}
	took := time.Since(start).Round(100 * time.Millisecond)
	return fmt.Sprintf("after %s, and runs a job", took), l.runsOn(ctx, node)
}

// runsOn runs a job on a node.
func (l *fluxLook) runsOn(ctx context.Context, node string) error {
	_, err := l.job(ctx, wlm.Request{On: []string{node}, Limit: jobLimit})
	return err
}

// job runs a job that does nothing but take half a second.
func (l *fluxLook) job(ctx context.Context, r wlm.Request) (wlm.Outcome, error) {
	id, err := l.Manager.Submit(ctx, wlm.Job{Name: "selftest", Task: wlm.Task{Command: []string{"sleep", "0.5"}, Ranks: 1}, Request: r, Output: "/dev/null"})
	if err != nil {
		return wlm.Outcome{}, err
	}
	o, err := l.Manager.Wait(ctx, id)
	if err == nil {
		err = o.Err()
	}
	return o, err
}
