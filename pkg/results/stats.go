package results

import (
	"hash/fnv"
	"math"
	"math/rand/v2"
	"slices"
)

// Confidence is the level of every interval and Resamples the number of bootstrap resamples behind it.
const (
	Confidence = 0.95
	Resamples  = 10_000
)

// Interval is a 95 % interval, in the unit of what it is about.
type Interval struct {
	Low  float64 `json:"low"`
	High float64 `json:"high"`
}

// Median of values that are sorted and at least one.
func median(sorted []float64) float64 {
	n := len(sorted)
	return mid(sorted[(n-1)/2], sorted[n/2])
}

// mid is the mean of a and b without overflow.
func mid(a, b float64) float64 {
	if a == b {
		return a
	}
	return a/2 + b/2
}

// meanSD returns the mean and the sample standard deviation (divisor n−1), by Welford's method, of at least one value. The
// standard deviation of one value is NaN.
func meanSD(values []float64) (mean, sd float64) {
	var m2 float64
	for i, v := range values {
		d := v - mean
		mean += d / float64(i+1)
		m2 += d * (v - mean)
	}
	return mean, math.Sqrt(m2 / float64(len(values)-1))
}

// MedianInterval is the percentile-bootstrap interval of the median: the 2.5 % and 97.5 % points of the medians of Resamples
// resamples. Percentile and not BCa, because BCa's acceleration rests on the jackknife, which is not consistent for medians.
// The same values, seed and name give the same interval, whatever their order. When there is none, reason says why.
func MedianInterval(values []float64, seed uint64, name string) (interval *Interval, reason string) {
	if len(values) < 2 {
		return nil, "an interval needs at least 2 good repetitions"
	}
	sorted := slices.Sorted(slices.Values(values))
	medians := bootstrap(sorted, generator(seed, name))
	slices.Sort(medians)
	return tails(medians), ""
}

// MedianRatio is the ratio of the medians of two independent series and its percentile-bootstrap interval, for which both
// series are resampled. When one of the two does not exist, reason says why.
func MedianRatio(values, baseline []float64, seed uint64, name string) (ratio *float64, interval *Interval, reason string) {
	if len(values) == 0 || len(baseline) == 0 {
		return nil, nil, "a ratio needs a good repetition in both series"
	}
	a, b := slices.Sorted(slices.Values(values)), slices.Sorted(slices.Values(baseline))
	if a[0] <= 0 || b[0] <= 0 {
		return nil, nil, "a ratio needs positive values"
	}
	q := median(a) / median(b)
	if q == 0 || math.IsInf(q, 0) {
		return nil, nil, "the ratio is out of a number's range"
	}
	if len(a) < 2 || len(b) < 2 {
		return &q, nil, "an interval needs at least 2 good repetitions in both series"
	}
	rng := generator(seed, name)
	ratios, below := bootstrap(a, rng), bootstrap(b, rng)
	for i := range ratios {
		ratios[i] /= below[i]
	}
	slices.Sort(ratios)
	if math.IsInf(ratios[len(ratios)-1], 0) {
		return &q, nil, "the interval is out of a number's range"
	}
	return &q, tails(ratios), ""
}

// generator is a PCG of its own for each name, so that one series' interval does not depend on what else was measured.
func generator(seed uint64, name string) *rand.Rand {
	h := fnv.New64a()
	h.Write([]byte(name))
	return rand.New(rand.NewPCG(seed, h.Sum64()))
}

// bootstrap returns the medians of Resamples resamples, with replacement, of sorted. Each counts how often it drew every value
// and walks the counts to the middle, which needs no sorting.
func bootstrap(sorted []float64, rng *rand.Rand) []float64 {
	n := len(sorted)
	counts := make([]int, n)
	medians := make([]float64, Resamples)
	for i := range medians {
		clear(counts)
		for range n {
			counts[rng.IntN(n)]++
		}
		at, seen := 0, counts[0]
		for seen <= (n-1)/2 {
			at++
			seen += counts[at]
		}
		low := sorted[at]
		for seen <= n/2 {
			at++
			seen += counts[at]
		}
		medians[i] = mid(low, sorted[at])
	}
	return medians
}

// tails cuts the same share from both ends of a sorted bootstrap distribution.
func tails(sorted []float64) *Interval {
	const tail = (1 - Confidence) / 2
	return &Interval{Low: quantile(sorted, tail), High: quantile(sorted, 1-tail)}
}

// quantile interpolates between the two nearest order statistics (Hyndman and Fan's type 7, R's default).
func quantile(sorted []float64, p float64) float64 {
	h := p * float64(len(sorted)-1)
	i := int(h)
	if i+1 >= len(sorted) || sorted[i] == sorted[i+1] {
		return sorted[i]
	}
	f := h - float64(i)
	return sorted[i]*(1-f) + sorted[i+1]*f
}
