package workflow

import (
	"math"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/bedfellow/bedfellow/pkg/results"
	"github.com/bedfellow/bedfellow/scenarios/sidebyside"
)

func said(use sidebyside.Use, seconds float64, predictions map[string]float64) sidebyside.Said {
	return sidebyside.Said{Use: use, Seconds: &seconds, Latency: 0.001, Predictions: predictions}
}

func TestModelsAreScoredOnTheHoldOutAlone(t *testing.T) {
	all := []sidebyside.Said{
		said(sidebyside.Train, 100, nil),
		said(sidebyside.Test, 1, map[string]float64{"a": 1.5, "b": 1}),
		{Use: sidebyside.Test}, // it failed, and nothing was asked
		said(sidebyside.Test, 2, map[string]float64{"a": 2, "b": 2}),
		said(sidebyside.Test, 4, map[string]float64{"a": 3, "b": 4}),
	}
	scores := Evaluate(all)
	require.Len(t, scores, 2)
	assert.Equal(t, Score{N: 3, R2: 1}, scores["b"])
	assert.Equal(t, 3, scores["a"].N)
	assert.InDelta(t, 0.5, scores["a"].MAE, 1e-12)
	assert.InDelta(t, math.Sqrt(1.25/3), scores["a"].RMSE, 1e-12)
	assert.InDelta(t, 1-1.25/(14.0/3), scores["a"].R2, 1e-12)
	assert.True(t, math.IsNaN(Evaluate([]sidebyside.Said{said(sidebyside.Test, 1, map[string]float64{"a": 1})})["a"].R2))

	kept := scored(scores, 11, "job.log")
	for i, s := range all {
		kept = append(kept, simulated(s, 11+i, "job.log")...)
	}
	count := map[string]int{}
	for _, s := range kept {
		count[s.Series+"/"+s.Metric+"/"+string(s.Status)]++
		assert.Equal(t, "job.log", s.Log)
		assert.Greater(t, s.Repetition, 10)
	}
	assert.Equal(t, map[string]int{
		"training/simulation/ok": 1, "training/learn latency/ok": 1, "hold-out/simulation/ok": 3, "hold-out/simulation/failed": 1, "hold-out/predict latency/ok": 3,
		"a/measured/ok": 3, "a/predicted/ok": 3, "b/measured/ok": 3, "b/predicted/ok": 3, "a/R²/ok": 1, "a/MAE/ok": 1, "a/RMSE/ok": 1, "b/R²/ok": 1, "b/MAE/ok": 1, "b/RMSE/ok": 1,
	}, count)
	i := 0
	for kept[i].Status != results.Failed {
		i++
	}
	assert.Contains(t, kept[i].Reason, "0x0x0 cells failed")

	unlearned := simulated(said(sidebyside.Test, 1, nil), 1, "job.log")
	assert.Equal(t, []string{"prediction", "failed", "the service had learned nothing"}, []string{unlearned[2].Metric, string(unlearned[2].Status), unlearned[2].Reason})
}
