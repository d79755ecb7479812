// Package throughput measures how many jobs that do nothing a workload manager gets through in a time.
package throughput

import (
	"context"
	"fmt"
	"path"
	"time"

	"github.com/bedfellow/bedfellow/pkg/bed"
	"github.com/bedfellow/bedfellow/scenarios/scenario"
	"github.com/bedfellow/bedfellow/scenarios/wlm"
)

// Scenario submits many jobs by one command and waits for them all; and one, as every scenario does it and by that command, whose ratio is what our
// way costs.
func Scenario() scenario.Scenario {
	return scenario.Scenario{
		Name: "throughput", Summary: "how many jobs that do nothing the workload manager gets through in a second",
		Parameters: []scenario.Parameter{
			{Name: "jobs", Doc: "jobs of one CPU, submitted by one command; Slurm takes 1000 at most", Default: "100", Check: scenario.Whole(1, 1_000_000), Fits: jobsFit},
			{Name: "warmups", Doc: "repetitions before the measured ones, recorded but not counted", Default: "1", Check: scenario.Whole(0, 1000)},
			{Name: "limit", Doc: "of the time of each repetition", Default: "20m", Check: scenario.Length},
		},
		Run: run,
	}
}

// jobsFit knows the MaxArraySize that Slurm has by itself.
func jobsFit(inv bed.Inventory, v scenario.Values, _ string) error {
	if inv.WorkloadManager == "slurm" && v.Int("jobs") > 1000 {
		return fmt.Errorf("bed %s has Slurm, which takes 1000 jobs at most by one command", inv.Bed)
	}
	return nil
}

// The series, in turn: many jobs by one command, one job that is submitted and waited for as scenarios do it, and one by that command.
const (
	many   = "no-op jobs"
	one    = "one no-op job"
	byHand = "one no-op job by the manager's command"
)

func run(ctx context.Context, env *scenario.Env) error {
	var nodes []string
	for _, n := range env.Inventory.Compute() {
		nodes = append(nodes, n.Name)
	}
	dir, remove, err := env.Scratch(ctx, nodes, "")
	if err != nil {
		return err
	}
	defer remove()
	var series []scenario.Series
	for _, name := range []string{many, one, byHand} {
		jobs := "1"
		if name == many {
			jobs = env.Params["jobs"]
		}
		// What ran them is a parameter and not the series, so that reports set the managers side by side.
		series = append(series, scenario.Series{Name: name, Warmups: env.Params.Int("warmups"), Parameters: map[string]string{"jobs": jobs, "manager": env.Manager.Name()}})
	}
	return env.Interleave(ctx, series, func(ctx context.Context, s scenario.Series, r scenario.Repetition) (m scenario.Measured, err error) {
		ctx, cancel := context.WithTimeoutCause(ctx, env.Params.Duration("limit"), fmt.Errorf("not all jobs were over within %s", env.Params["limit"]))
		defer cancel()
		name := path.Base(env.Record.Dir()) + "-" + r.String()
		var took time.Duration
		switch s.Name {
		case many:
			jobs := env.Params.Int("jobs")
			if took, err = env.Manager.Burst(ctx, name, jobs); err == nil {
				m.Metrics = []scenario.Metric{{Name: "throughput", Value: float64(jobs) / took.Seconds(), Unit: "1/s"}}
			}
		case one:
			took, err = single(ctx, env, name, path.Join(dir, r.String()))
		case byHand:
			took, err = env.Manager.Burst(ctx, name, 1)
		}
		if err == nil {
			m.Metrics = append(m.Metrics, scenario.Metric{Name: "time", Value: took.Seconds(), Unit: "s"})
		}
		return m, err
	})
}

// single submits a job that does nothing, waits for it, and returns what both took.
func single(ctx context.Context, env *scenario.Env, name, output string) (time.Duration, error) {
	begin := time.Now()
	id, err := env.Manager.Submit(ctx, wlm.Job{
		Name: "one-" + name, Output: output, Task: wlm.Task{Command: []string{"true"}, Dir: "/", Ranks: 1},
		Request: wlm.Request{Nodes: 1, Limit: env.Params.Duration("limit"), Shared: true},
	})
	if err != nil {
		return 0, err
	}
	o, err := env.Manager.Wait(ctx, id)
	if err == nil {
		err = o.Err()
	}
	return time.Since(begin), err
}
