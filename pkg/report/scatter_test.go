package report

import (
	"bytes"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/bedfellow/bedfellow/pkg/results"
)

func predictions(series string, pairs ...[2]float64) (all []results.Sample) {
	for i, p := range pairs {
		for k, metric := range []string{measured, predicted} {
			all = append(all, results.Sample{Series: series, Metric: metric, Repetition: i + 1, Value: p[k], Unit: "s", Status: results.OK})
		}
	}
	return all
}

func TestPredictionsAreDrawnOverWhatWasMeasured(t *testing.T) {
	samples := predictions("good", [2]float64{1, 1}, [2]float64{4, 4})
	samples = append(samples, predictions("bad", [2]float64{1, -90}, [2]float64{4, 90})...)
	samples = append(samples, results.Sample{Series: "half", Metric: measured, Repetition: 1, Value: 2, Unit: "s", Status: results.OK})
	run := &results.Result{Run: results.Run{Scenario: "workflow", Stack: "lima"}, Samples: samples}
	p, err := build([]*results.Result{run}, Options{})
	require.NoError(t, err)
	require.NotNil(t, p.Scatter)
	require.Len(t, p.Scatter.Plots, 2, "what has one of the two only is in none")
	assert.Empty(t, p.Figures, "the plot tells all that they would")
	good, bad := p.Scatter.Plots[0], p.Scatter.Plots[1]
	for _, d := range good.Dots {
		assert.InDelta(t, d.X, scatterSide-d.Y, 0.11, "on the line")
	}
	assert.Contains(t, good.Dots[0].Title, "1 s measured, 1 predicted")
	assert.Equal(t, []float64{scatterSide, 0}, []float64{bad.Dots[0].Y, bad.Dots[1].Y}, "at the edges")
	assert.Contains(t, bad.Note, "2 beyond the plot")
	assert.InDelta(t, p.Scatter.Zero, scatterSide-p.Scatter.ZeroY, 0.01)

	var page bytes.Buffer
	require.NoError(t, Write(&page, []*results.Result{run}, Options{}))
	assert.Contains(t, page.String(), "Predicted against measured (s)")

	run.Samples = nil
	p, err = build([]*results.Result{run}, Options{})
	require.NoError(t, err)
	assert.Nil(t, p.Scatter)
}
