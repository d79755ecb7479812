// Package workflow runs the talk's workflow: simulations on bare nodes tell a service in Kubernetes how long they took, which learns to predict
// that, all in one batch job.
package workflow

import (
	"context"
	"fmt"
	"maps"
	"math"
	"slices"

	"github.com/bedfellow/bedfellow/pkg/results"
	"github.com/bedfellow/bedfellow/scenarios/scenario"
	"github.com/bedfellow/bedfellow/scenarios/sidebyside"
)

// Scenario is the workflow with the talk's sizes as defaults: 1,000 simulations to learn from and 250 to be predicted, of up to 32 × 8 × 16 cells.
func Scenario() scenario.Scenario {
	whole := scenario.Whole
	return scenario.Scenario{
		Name: "workflow", Summary: "the talk's workflow: a service in Kubernetes learns from simulations on the same nodes how long they take", Repeats: 1,
		Parameters: append(sidebyside.Shape("100", "24h"),
			scenario.Parameter{Name: "train", Doc: "simulations to learn from", Default: "1000", Check: whole(1, 100_000)},
			scenario.Parameter{Name: "test", Doc: "simulations to be predicted", Default: "250", Check: whole(2, 100_000)},
			scenario.Parameter{Name: "x", Doc: "the most cells of 304 atoms along x, drawn evenly from 1 on", Default: "32", Check: whole(1, 1000)},
			scenario.Parameter{Name: "y", Doc: "the most along y", Default: "8", Check: whole(1, 1000)},
			scenario.Parameter{Name: "z", Doc: "the most along z", Default: "16", Check: whole(1, 1000)},
		),
		Run: run,
	}
}

func run(ctx context.Context, env *scenario.Env) error {
	if err := sidebyside.Needs(env.Inventory); err != nil {
		return err
	}
	k := scenario.NewKubernetes(env)
	defer k.Restore(ctx)
	if err := k.Down(ctx); err != nil {
		return err
	}
	v := env.Params
	return env.Repeat(ctx, scenario.Series{Name: "job"}, func(ctx context.Context, r scenario.Repetition) (scenario.Measured, error) {
		j := sidebyside.Shaped(env, "workflow-"+r.String())
		j.Points = sidebyside.Draw(env.Seed+uint64(r.Number)-1, v.Int("train"), v.Int("test"), [3]int{v.Int("x"), v.Int("y"), v.Int("z")})
		ran, err := j.Run(ctx, env)
		m := scenario.Measured{Log: ran.Log}
		// What was simulated counts, whatever became of the rest.
		scores := Evaluate(ran.Said)
		if errRecord := env.Record.Add(samples(ran, scores, (r.Number-1)*len(j.Points), ran.Log)...); errRecord != nil {
			return m, errRecord
		}
		if err == nil {
			err = ran.Outcome.Err()
		}
		if err == nil {
			err = ran.Complete(j)
		}
		if err != nil {
			return m, err
		}
		if len(scores) == 0 {
			return m, fmt.Errorf("no model can be scored: none of the %d simulations to be predicted came to its end; what they said is in %s of the run", v.Int("test"), ran.Log)
		}
		err = env.Record.Update(func(run *results.Run) {
			for name, version := range ran.Models.Service.Versions {
				run.Versions["service "+name] = version
			}
		})
		// Each request's latency is kept by itself.
		m.Metrics = slices.DeleteFunc(ran.Metrics(), func(metric scenario.Metric) bool { return metric.Unit == "ms" })
		return m, err
	})
}

// Score is how well a model predicted the simulations that it had not learned from: coefficient of determination, mean absolute error, and root
// of the mean square error, both in seconds.
type Score struct {
	N             int
	R2, MAE, RMSE float64 // R2 is NaN where all took the same time
}

// Evaluate scores every model on the predictions that were asked for and can be held against a simulation.
func Evaluate(said []sidebyside.Said) map[string]Score {
	truth, predicted := map[string][]float64{}, map[string][]float64{}
	for _, s := range said {
		for model, p := range s.Predictions {
			truth[model], predicted[model] = append(truth[model], *s.Seconds), append(predicted[model], p)
		}
	}
	scores := map[string]Score{}
	for model, y := range truth {
		s, n, mean := Score{N: len(y)}, float64(len(y)), 0.0
		for _, v := range y {
			mean += v / n
		}
		residual, total := 0.0, 0.0
		for i, v := range y {
			e := v - predicted[model][i]
			residual, total, s.MAE = residual+e*e, total+(v-mean)*(v-mean), s.MAE+math.Abs(e)/n
		}
		s.R2, s.RMSE = 1-residual/total, math.Sqrt(residual/n)
		if total == 0 {
			s.R2 = math.NaN()
		}
		scores[model] = s
	}
	return scores
}

// samples are what is kept of each simulation, of each prediction and of each model. Repetitions of simulations count from first + 1.
func samples(ran sidebyside.Ran, scores map[string]Score, first int, log string) []results.Sample {
	var out []results.Sample
	add := func(series, metric string, repetition int, value float64, unit string) {
		out = append(out, results.Sample{Series: series, Metric: metric, Repetition: repetition, Value: value, Unit: unit, Status: results.OK, Log: log})
	}
	series := map[sidebyside.Use]string{sidebyside.Train: "training", sidebyside.Test: "hold-out"}
	request := map[sidebyside.Use]string{sidebyside.Train: "learn latency", sidebyside.Test: "predict latency"}
	for i, s := range ran.Said {
		repetition := first + i + 1
		if s.Seconds == nil {
			out = append(out, results.Sample{Series: series[s.Use], Metric: "simulation", Repetition: repetition, Unit: "s", Status: results.Failed, Log: log,
				Reason: fmt.Sprintf("LAMMPS on %dx%dx%d cells failed", s.X, s.Y, s.Z)})
			continue
		}
		add(series[s.Use], "simulation", repetition, *s.Seconds, "s")
		add(series[s.Use], request[s.Use], repetition, s.Latency*1000, "ms")
		for _, model := range slices.Sorted(maps.Keys(s.Predictions)) {
			add(model, "measured", repetition, *s.Seconds, "s")
			add(model, "predicted", repetition, s.Predictions[model], "s")
		}
	}
	for _, model := range slices.Sorted(maps.Keys(scores)) {
		score := scores[model]
		if !math.IsNaN(score.R2) {
			add(model, "R²", first+1, score.R2, "")
		}
		add(model, "MAE", first+1, score.MAE, "s")
		add(model, "RMSE", first+1, score.RMSE, "s")
	}
	return out
}
