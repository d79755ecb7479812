// Package throughput measures how many jobs that do nothing a workload manager gets through in a time.
package throughput

import (
	"context"
	"fmt"
	"path"

	"github.com/bedfellow/bedfellow/pkg/bed"
	"github.com/bedfellow/bedfellow/scenarios/scenario"
)

// Scenario submits many jobs by one command and waits for them all.
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

func run(ctx context.Context, env *scenario.Env) error {
	jobs := env.Params.Int("jobs")
	// What ran them is a parameter and not the series, so that reports set the managers side by side.
	return env.Repeat(ctx, scenario.Series{Name: "no-op jobs", Warmups: env.Params.Int("warmups"), Parameters: map[string]string{
		"jobs": env.Params["jobs"], "manager": env.Manager.Name(),
	}}, func(ctx context.Context, r scenario.Repetition) (m scenario.Measured, err error) {
		ctx, cancel := context.WithTimeoutCause(ctx, env.Params.Duration("limit"), fmt.Errorf("not all jobs were over within %s", env.Params["limit"]))
		defer cancel()
		took, err := env.Manager.Burst(ctx, path.Base(env.Record.Dir())+"-"+r.String(), jobs)
		if err != nil {
			return m, err
		}
		m.Metrics = []scenario.Metric{{Name: "throughput", Value: float64(jobs) / took.Seconds(), Unit: "1/s"}, {Name: "time", Value: took.Seconds(), Unit: "s"}}
		return m, nil
	})
}
