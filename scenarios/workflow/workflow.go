// Package workflow runs the talk's workflow: simulations on bare nodes tell a service in Kubernetes how long they took, which learns to predict
// that, all in one batch job.
package workflow

import (
	"context"
	"errors"
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
		first := (r.Number - 1) * len(j.Points)
		log, err := env.Record.Log(j.LogName(), nil) // samples name it while it is to come
		if err != nil {
			return scenario.Measured{}, err
		}
		// What was simulated counts, whatever becomes of the rest.
		j.Told = func(s sidebyside.Said, i int) error { return env.Record.Add(simulated(s, first+i+1, log)...) }
		ran, err := j.Run(ctx, env)
		m := scenario.Measured{Log: log}
		scores := Evaluate(ran.Said)
		if errRecord := env.Record.Add(scored(scores, first+1, log)...); errRecord != nil {
			return m, errors.Join(err, errRecord)
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
			why := fmt.Sprintf("none of the %d simulations to be predicted came to its end", v.Int("test"))
			if slices.ContainsFunc(ran.Said, func(s sidebyside.Said) bool { return s.Use == sidebyside.Test && s.Seconds != nil }) {
				why = fmt.Sprintf("the service learned nothing, since none of the %d simulations to learn from came to its end", v.Int("train"))
			}
			return m, fmt.Errorf("no model can be scored: %s; what they said is in %s of the run", why, log)
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

// simulated is what is kept of a simulation and of its prediction.
func simulated(s sidebyside.Said, repetition int, log string) (out []results.Sample) {
	add := func(series, metric string, value float64, unit string) {
		out = append(out, results.Sample{Series: series, Metric: metric, Repetition: repetition, Value: value, Unit: unit, Status: results.OK, Log: log})
	}
	failed := func(series, metric, reason string) {
		out = append(out, results.Sample{Series: series, Metric: metric, Repetition: repetition, Unit: "s", Status: results.Failed, Log: log, Reason: reason})
	}
	series, request := "training", "learn latency"
	if s.Use == sidebyside.Test {
		series, request = "hold-out", "predict latency"
	}
	if s.Seconds == nil {
		failed(series, "simulation", fmt.Sprintf("LAMMPS on %dx%dx%d cells failed", s.X, s.Y, s.Z))
		return out
	}
	add(series, "simulation", *s.Seconds, "s")
	add(series, request, s.Latency*1000, "ms")
	if s.Use == sidebyside.Test && len(s.Predictions) == 0 {
		failed(series, "prediction", "the service had learned nothing")
	}
	for _, model := range slices.Sorted(maps.Keys(s.Predictions)) {
		add(model, "measured", *s.Seconds, "s")
		add(model, "predicted", s.Predictions[model], "s")
	}
	return out
}

// scored is what is kept of how well each model did.
func scored(scores map[string]Score, repetition int, log string) (out []results.Sample) {
	for _, model := range slices.Sorted(maps.Keys(scores)) {
		add := func(metric string, value float64, unit string) {
			out = append(out, results.Sample{Series: model, Metric: metric, Repetition: repetition, Value: value, Unit: unit, Status: results.OK, Log: log})
		}
		score := scores[model]
		if !math.IsNaN(score.R2) {
			add("R²", score.R2, "")
		}
		add("MAE", score.MAE, "s")
		add("RMSE", score.RMSE, "s")
	}
	return out
}
