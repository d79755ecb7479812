package results

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
)

// The NIST Statistical Reference Datasets for univariate statistics that break naive formulas, with certified values.
func TestMeanSDAgainstNIST(t *testing.T) {
	alternating := func(first, a, b float64) []float64 {
		values := []float64{first}
		for range 500 {
			values = append(values, a, b)
		}
		return values
	}
	for name, c := range map[string]struct {
		values   []float64
		mean, sd float64
	}{
		"NumAcc1": {[]float64{10000001, 10000003, 10000002}, 10000002, 1},
		"NumAcc2": {alternating(1.2, 1.1, 1.3), 1.2, 0.1},
		"NumAcc3": {alternating(1000000.2, 1000000.1, 1000000.3), 1000000.2, 0.1},
		"NumAcc4": {alternating(10000000.2, 10000000.1, 10000000.3), 10000000.2, 0.1},
	} {
		t.Run(name, func(t *testing.T) {
			mean, sd := meanSD(c.values)
			require.InEpsilon(t, c.mean, mean, 1e-14)
			require.InEpsilon(t, c.sd, sd, 1e-7)
		})
	}
}

func TestMedian(t *testing.T) {
	require.Equal(t, 7.0, median([]float64{7}))
	require.Equal(t, 2.0, median([]float64{1, 2, 9}))
	require.Equal(t, 2.5, median([]float64{1, 2, 3, 9}))
	require.Equal(t, math.MaxFloat64, median([]float64{math.MaxFloat64, math.MaxFloat64}), "no overflow")
}

// The mouse data of Efron and Tibshirani, An Introduction to the Bootstrap (1993): table 2.2 gives 37.83 for the bootstrap
// standard error of the treatment group's median with infinitely many resamples.
var mouseTreatment, mouseControl = []float64{94, 197, 16, 38, 99, 141, 23}, []float64{52, 104, 146, 10, 51, 30, 40, 27, 46}

func TestBootstrapAgainstEfronTibshirani(t *testing.T) {
	sorted := slices.Sorted(slices.Values(mouseTreatment))
	_, sd := meanSD(bootstrap(sorted, generator(1, "mouse")))
	require.InDelta(t, 37.83, sd, 0.8)
}

// For an odd n the bootstrap distribution of the median has a closed form (Efron 1979): the resampled median is at most the
// k-th value when at least (n+1)/2 of n draws are, which is a binomial tail.
func TestBootstrapAgainstClosedForm(t *testing.T) {
	for _, n := range []int{3, 9, 21} {
		sorted := make([]float64, n)
		for i := range sorted {
			sorted[i] = float64(i + 1)
		}
		got := make([]float64, n+1)
		for _, m := range bootstrap(sorted, generator(2, "closed form")) {
			for k := int(m); k <= n; k++ {
				got[k] += 1.0 / Resamples
			}
		}
		for k := 1; k <= n; k++ {
			p := float64(k) / float64(n)
			want, choose := 0.0, 1.0
			for j := n; j > n/2; j-- {
				want += choose * math.Pow(p, float64(j)) * math.Pow(1-p, float64(n-j))
				choose = choose * float64(j) / float64(n-j+1)
			}
			require.InDelta(t, want, got[k], 5*math.Sqrt(0.25/Resamples), "n=%d, k=%d", n, k)
		}
	}
}

// An interval that says 95 % should hold the true median in about 95 % of experiments. The bootstrap median is known to be a
// little off at small n; the bounds say how much we bear.
func TestIntervalCoverage(t *testing.T) {
	rng := rand.New(rand.NewPCG(20, 26))
	const experiments = 200
	for name, draw := range map[string]func() float64{
		"normal":      rng.NormFloat64,
		"exponential": func() float64 { return rng.ExpFloat64() - math.Ln2 },
	} {
		held := 0
		for e := range experiments {
			values := make([]float64, 21)
			for i := range values {
				values[i] = draw()
			}
			i, reason := MedianInterval(values, uint64(e), name)
			require.Empty(t, reason)
			if i.Low <= 0 && 0 <= i.High {
				held++
			}
		}
		share := float64(held) / experiments
		require.Greater(t, share, 0.9, name)
		require.Less(t, share, 0.99, name)
	}
}

func TestRatioCoverage(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	const experiments, truth = 150, 1.25
	held := 0
	for e := range experiments {
		a, b := make([]float64, 20), make([]float64, 20)
		for i := range a {
			a[i], b[i] = truth*math.Exp(0.1*rng.NormFloat64()), math.Exp(0.1*rng.NormFloat64())
		}
		_, i, reason := MedianRatio(a, b, uint64(e), "ratio")
		require.Empty(t, reason)
		if i.Low <= truth && truth <= i.High {
			held++
		}
	}
	require.InDelta(t, Confidence, float64(held)/experiments, 0.05)
}

func TestIntervalIsReproducible(t *testing.T) {
	a, _ := MedianInterval(mouseTreatment, 7, "x")
	reversed := slices.Clone(mouseTreatment)
	slices.Reverse(reversed)
	b, _ := MedianInterval(reversed, 7, "x")
	require.Equal(t, a, b, "the order of values does not matter")
	c, _ := MedianInterval(mouseTreatment, 8, "x")
	d, _ := MedianInterval(mouseTreatment, 7, "x")
	require.Equal(t, a, d)
	_ = c // another seed may or may not give another interval
	q, i, reason := MedianRatio(mouseTreatment, mouseControl, 7, "x")
	require.Empty(t, reason)
	require.InDelta(t, 94.0/46, *q, 1e-15)
	require.Less(t, i.Low, *q)
	require.Greater(t, i.High, *q)
}

func TestNoInterval(t *testing.T) {
	i, reason := MedianInterval([]float64{1}, 1, "")
	require.Nil(t, i)
	require.Contains(t, reason, "at least 2")
	for name, c := range map[string]struct {
		a, b  []float64
		ratio bool
		says  string
	}{
		"one value":    {[]float64{2}, []float64{1, 1}, true, "at least 2"},
		"none":         {nil, []float64{1, 1}, false, "good repetition in both"},
		"zero":         {[]float64{1, 2}, []float64{0, 1}, false, "positive"},
		"negative":     {[]float64{-1, 2}, []float64{1, 1}, false, "positive"},
		"out of range": {[]float64{1e300, 1e300}, []float64{1e-300, 1e-300}, false, "range"},
	} {
		q, i, reason := MedianRatio(c.a, c.b, 1, "")
		require.Nil(t, i, name)
		require.Equal(t, c.ratio, q != nil, name)
		require.Contains(t, reason, c.says, name)
	}
}

func TestQuantile(t *testing.T) {
	v := []float64{1, 2, 3, 4}
	require.Equal(t, 1.0, quantile(v, 0))
	require.Equal(t, 4.0, quantile(v, 1))
	require.Equal(t, 2.5, quantile(v, 0.5))
	require.InDelta(t, 1.75, quantile(v, 0.25), 1e-15, "as R's quantile(1:4, .25)")
}
