// Package sidebyside runs simulations on bare nodes beside a service in Kubernetes, both in one batch job: the third of the talk's models.
package sidebyside

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"

	"github.com/bedfellow/bedfellow/pkg/bed"
	"github.com/bedfellow/bedfellow/pkg/results"
	"github.com/bedfellow/bedfellow/scenarios/scenario"
	"github.com/bedfellow/bedfellow/scenarios/wlm"
)

// IdleNodes is the series of Kubernetes on nodes without a job, which is what its ratios refer to.
const IdleNodes = "idle nodes"

// Scenario sets Kubernetes up within a batch job, uses it, and takes it down, however the job ends.
func Scenario() scenario.Scenario {
	endings := []string{string(Completed), string(Failed), string(Cancelled), string(TimedOut), string(Killed)}
	return scenario.Scenario{
		Name: "sidebyside", Summary: "one batch job with Kubernetes, a service in it, and simulations on the same nodes that talk to it", Repeats: 1,
		Parameters: append(Shape("10", "1h"),
			scenario.Parameter{Name: "simulations", Doc: "how many, of which the last is a prediction's", Default: "3", Check: scenario.Whole(2, 1000)},
			scenario.Parameter{Name: "cells", Doc: "the most of 304 atoms along x, y and z", Default: "2", Check: scenario.Whole(1, 1000)},
			scenario.Parameter{Name: "requests", Doc: "of each kind that the service is asked at the end, before simulations of cells³ beside it, idle and busy in turn",
				Default: "0", Check: scenario.Whole(0, 1_000_000)},
			scenario.Parameter{Name: "ending", Doc: "how the job is to end", Default: string(Completed), Check: scenario.OneOf(endings...)},
			scenario.Parameter{Name: "at", Doc: "the phase at which it ends otherwise than completed", Default: "points", Check: scenario.OneOf(Phases...), Fits: reached},
			scenario.Parameter{Name: "after", Doc: "how far into that phase a job is cancelled or killed; with 0s it waits at its beginning", Default: "0s", Check: noneOrLength, Fits: meanwhile},
			scenario.Parameter{Name: "users", Doc: "accounts, which `sudo usernetes admit` makes on each node, that have such a job each at once, the first of which ends so",
				Default: "the bed's own", Derive: func(inv bed.Inventory, _ scenario.Values) string { return inv.User }, Check: checkUsers, Fits: shareNodes},
			scenario.Parameter{Name: "idle", Doc: "whether Kubernetes is also brought up and down on the idle nodes, in turn with the job: yes or no", Default: "no",
				Check: scenario.OneOf("yes", "no"), Fits: completes},
		),
		Run: run,
	}
}

// Shape are the parameters of where and how long such a job runs.
func Shape(steps, limit string) []scenario.Parameter {
	return []scenario.Parameter{
		{Name: "nodes", Doc: "nodes of the job", Default: "all compute nodes", Check: scenario.Whole(1, bed.MaxNodes),
			Derive: func(inv bed.Inventory, _ scenario.Values) string { return strconv.Itoa(len(inv.Compute())) },
			Fits: func(inv bed.Inventory, _ scenario.Values, value string) error {
				if n, _ := strconv.Atoi(value); n > len(inv.Compute()) {
					return fmt.Errorf("bed %s has %d compute nodes", inv.Bed, len(inv.Compute()))
				}
				return nil
			}},
		{Name: "ranks", Doc: "MPI ranks of each simulation on a node; fewer than its CPUs leave some to Kubernetes", Default: "all CPUs of the smallest", Check: scenario.Whole(1, bed.MaxCPUs),
			Derive: func(inv bed.Inventory, v scenario.Values) string { return strconv.Itoa(leastCPUs(inv, v)) },
			Fits: func(inv bed.Inventory, v scenario.Values, value string) error {
				if n, _ := strconv.Atoi(value); n > leastCPUs(inv, v) {
					return fmt.Errorf("the smallest of the job's nodes has %d CPUs", leastCPUs(inv, v))
				}
				return nil
			}},
		{Name: "steps", Doc: "time steps of 0.1 fs of each simulation", Default: steps, Check: scenario.Whole(1, 100_000_000)},
		{Name: "limit", Doc: "of the job's time", Default: limit, Check: scenario.Length},
	}
}

// completes is an error where the job is not one that idle nodes can be held against.
func completes(_ bed.Inventory, v scenario.Values, value string) error {
	if value == "yes" && (Ending(v["ending"]) != Completed || strings.Contains(v["users"], ",")) {
		return errors.New("is for one job that completes; leave out ending and users")
	}
	return nil
}

// reached is an error where a job does not come to the phase.
func reached(inv bed.Inventory, v scenario.Values, value string) error {
	if value == joining && len(on(inv, v)) == 1 {
		return errors.New("is a phase of jobs on several nodes, and this is on one")
	}
	return nil
}

func noneOrLength(value string) error {
	if value == "0s" {
		return nil
	}
	return scenario.Length(value)
}

// meanwhile is an error where a job is not ended from outside.
func meanwhile(_ bed.Inventory, v scenario.Values, value string) error {
	if e := Ending(v["ending"]); value != "0s" && e != Cancelled && e != Killed {
		return fmt.Errorf("is for jobs that are %s or %s", Cancelled, Killed)
	}
	return nil
}

// on are the nodes that a job is to run on.
func on(inv bed.Inventory, v scenario.Values) []bed.InventoryNode {
	return inv.Compute()[:min(v.Int("nodes"), len(inv.Compute()))]
}

// Shaped is a job on the nodes and of the length that its parameters say.
func Shaped(env *scenario.Env, name string) Job {
	j := Job{Name: name, Steps: env.Params.Int("steps"), Limit: env.Params.Duration("limit"), Ending: Completed}
	for _, n := range on(env.Inventory, env.Params) {
		j.Nodes, j.Ranks = append(j.Nodes, n.Name), j.Ranks+env.Params.Int("ranks")
	}
	return j
}

// leastCPUs are those of the smallest of a job's nodes.
func leastCPUs(inv bed.Inventory, v scenario.Values) int {
	least := 0
	for i, n := range on(inv, v) {
		if i == 0 || n.CPUs < least {
			least = n.CPUs
		}
	}
	return least
}

func run(ctx context.Context, env *scenario.Env) error {
	if err := Needs(env.Inventory); err != nil {
		return err
	}
	v := env.Params
	users, err := admitted(ctx, env, strings.Split(v["users"], ","))
	if err != nil {
		return err
	}
	k := scenario.NewKubernetes(env)
	defer k.Restore(ctx)
	if err := k.Down(ctx); err != nil { // it would take its part of what the job is measured with
		return err
	}
	series := []scenario.Series{{Name: v["ending"], Parameters: map[string]string{"nodes": v["nodes"], "simulations": v["simulations"]}}}
	if Ending(v["ending"]) != Completed {
		series[0].Parameters["at"], series[0].Parameters["after"] = v["at"], v["after"]
	}
	if len(users) > 1 {
		series[0].Parameters["users"] = v["users"]
	}
	if v["idle"] == "yes" { // of the same parameters, or there would be no ratio
		series = append(series, scenario.Series{Name: IdleNodes, Parameters: series[0].Parameters})
		if err := env.Record.Update(func(r *results.Run) { r.Baseline = IdleNodes }); err != nil {
			return err
		}
	}
	return env.Interleave(ctx, series, func(ctx context.Context, s scenario.Series, r scenario.Repetition) (m scenario.Measured, err error) {
		if s.Name == IdleNodes {
			ran, err := outside(ctx, env, on(env.Inventory, v), v.Duration("limit"))
			if err == nil {
				m.Metrics = ran.Metrics()
			}
			return m, err
		}
		j := Shaped(env, "sidebyside-"+r.String())
		j.Ending, j.At, j.After = Ending(v["ending"]), v["at"], v.Duration("after")
		j.Points = Draw(env.Seed+uint64(r.Number), v.Int("simulations")-1, 1, [3]int{v.Int("cells"), v.Int("cells"), v.Int("cells")})
		j.Requests, j.BusyCells = v.Int("requests"), v.Int("cells")
		if len(users) > 1 {
			return atOnce(ctx, users, j.share(env, len(users)))
		}
		ran, err := j.checked(ctx, users[0])
		if err == nil {
			m.Metrics = ran.Metrics()
		}
		m.Log = ran.Log
		return m, err
	})
}

// checked runs a job, and holds what became of it against what was to become of it.
func (j Job) checked(ctx context.Context, env *scenario.Env) (Ran, error) {
	ran, err := j.Run(ctx, env)
	if err == nil {
		err = ran.check(j)
	}
	return ran, err
}

// Draw are points with numbers of cells drawn evenly from 1 up to those along each edge, the same for the same seed: first those to learn from.
func Draw(seed uint64, train, test int, most [3]int) []Point {
	random := rand.New(rand.NewPCG(seed, 0))
	points := make([]Point, train+test)
	for i := range points {
		p := Point{ID: fmt.Sprintf("train-%04d", i+1), Use: Train, X: 1 + random.IntN(most[0]), Y: 1 + random.IntN(most[1]), Z: 1 + random.IntN(most[2])}
		if i >= train {
			p.ID, p.Use = fmt.Sprintf("test-%04d", i-train+1), Test
		}
		points[i] = p
	}
	return points
}

// failsWith is the status of the job's script where it is told to fail.
const failsWith = 7

// check holds what became of a job against what was to become of it.
func (r Ran) check(j Job) error {
	want := map[Ending][]wlm.State{
		Completed: {wlm.Completed}, Failed: {wlm.Failed}, Cancelled: {wlm.Cancelled}, TimedOut: {wlm.Timeout}, Killed: {wlm.Failed, wlm.Cancelled, wlm.NodeFail},
	}[j.Ending]
	if !slices.Contains(want, r.Outcome.State) {
		return errors.Join(fmt.Errorf("the job is %s, and was to be %s; it was last at %s", r.Outcome.State, j.Ending, r.last()), r.Outcome.Err())
	}
	if j.Ending == Completed {
		if err := r.Complete(j); err != nil {
			return err
		}
		for _, s := range r.Said {
			if s.Seconds == nil {
				return fmt.Errorf("simulation %s of %dx%dx%d cells failed; what it said is in the run's %s", s.ID, s.X, s.Y, s.Z, r.Log)
			}
		}
		return nil
	}
	if !slices.ContainsFunc(r.Phases, func(p Phase) bool { return p.Name == j.At }) {
		return errors.Join(fmt.Errorf("the job was to end at %s, and was last at %s", j.At, r.last()), r.Outcome.Err())
	}
	if j.Ending == Failed && r.Outcome.ExitCode != failsWith {
		return errors.Join(fmt.Errorf("the job failed by itself at %s, and was to fail with status %d", r.last(), failsWith), r.Outcome.Err())
	}
	return nil
}

// Complete looks whether a completed job told of each of its points, and whether the service learned those once that it simulated for that.
func (r Ran) Complete(j Job) error {
	if len(r.Said) != len(j.Points) || r.Models == nil {
		return fmt.Errorf("the job told of %d simulations of %d", len(r.Said), len(j.Points))
	}
	learned := 0
	for i, s := range r.Said {
		if p := j.Points[i]; s.ID != p.ID || s.X != p.X || s.Y != p.Y || s.Z != p.Z {
			return fmt.Errorf("the job told of %s where it was to tell of %s", s.ID, p.ID)
		}
		if s.Use == Train && s.Seconds != nil {
			learned++
		}
	}
	for _, b := range r.Beside {
		if b.Seconds == nil {
			return fmt.Errorf("a simulation with the service %s beside it failed", b.Beside)
		}
	}
	if j.Requests > 0 && (len(r.Loads) != 2 || len(r.Beside) == 0) {
		return fmt.Errorf("the job told of %d kinds of requests of 2, and of %d simulations beside them", len(r.Loads), len(r.Beside))
	}
	if r.Models.Service.Points != learned {
		return fmt.Errorf("the service has learned %d points, and %d were simulated for it", r.Models.Service.Points, learned)
	}
	return nil
}

func (r Ran) last() string {
	if len(r.Phases) == 0 {
		return "its beginning"
	}
	return r.Phases[len(r.Phases)-1].Name
}

// setUp are the phases before Kubernetes is there.
var setUp = []string{"holding", "containers", "control-plane", joining, "readiness"}

// Metrics are what a completed job's phases and requests took.
func (r Ran) Metrics() []scenario.Metric {
	var m []scenario.Metric
	total := 0.0
	for _, name := range setUp {
		if d, ok := r.Took(name); ok {
			total += d.Seconds()
			m = append(m, scenario.Metric{Name: "set-up/" + name, Value: d.Seconds(), Unit: "s"})
		}
	}
	m = append([]scenario.Metric{{Name: "set-up", Value: total, Unit: "s"}}, m...)
	for _, phase := range []struct{ name, metric string }{{"service", "service"}, {"points", "simulations"}} {
		if d, ok := r.Took(phase.name); ok {
			m = append(m, scenario.Metric{Name: phase.metric, Value: d.Seconds(), Unit: "s"})
		}
	}
	latencies := map[Use][]float64{}
	for _, s := range r.Said {
		if s.Seconds != nil {
			latencies[s.Use] = append(latencies[s.Use], s.Latency)
		}
	}
	for _, use := range []struct {
		of   Use
		name string
	}{{Train, "learn"}, {Test, "predict"}} {
		if l := latencies[use.of]; len(l) > 0 {
			slices.Sort(l)
			m = append(m, scenario.Metric{Name: use.name + " latency", Value: l[len(l)/2] * 1000, Unit: "ms"})
		}
	}
	for _, load := range r.Loads {
		slices.Sort(load.Latencies)
		n := len(load.Latencies)
		m = append(m, scenario.Metric{Name: load.Load + " requests", Value: float64(n) / load.Seconds, Unit: "1/s"},
			scenario.Metric{Name: load.Load + " requests, median latency", Value: load.Latencies[n/2] * 1000, Unit: "ms"},
			scenario.Metric{Name: load.Load + " requests, 99th percentile latency", Value: load.Latencies[n*99/100] * 1000, Unit: "ms"})
	}
	beside := map[string][]float64{}
	for _, b := range r.Beside {
		if b.Seconds != nil {
			beside[b.Beside] = append(beside[b.Beside], *b.Seconds)
		}
	}
	for _, service := range []string{"idle", "busy"} {
		if times := beside[service]; len(times) > 0 {
			slices.Sort(times)
			m = append(m, scenario.Metric{Name: "simulation, service " + service, Value: times[len(times)/2], Unit: "s"})
			if service == "busy" && len(beside["idle"]) > 0 {
				m = append(m, scenario.Metric{Name: "simulation, service busy over idle", Value: times[len(times)/2] / beside["idle"][len(beside["idle"])/2]})
			}
		}
	}
	if d, ok := r.Took("leaving"); ok {
		m = append(m, scenario.Metric{Name: "teardown", Value: d.Seconds(), Unit: "s"})
	}
	return m
}
