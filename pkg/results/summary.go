package results

import (
	"math"
	"slices"
	"strings"
)

// Summary is the statistics of a run: summary.json. Metrics are in the order in which they were first measured, and so are the
// series of each.
type Summary struct {
	Format     int     `json:"format"`
	Seed       uint64  `json:"seed"`
	Confidence float64 `json:"confidence"` // of the intervals, 0.95
	Resamples  int     `json:"resamples"`  // behind each
	Stats      []Stat  `json:"stats"`
	Ratios     []Ratio `json:"ratios"`
}

// Stat describes one metric of one series. Warm-ups are in no figure but Warmups. A figure that does not exist is null: all of
// them when nothing succeeded, the spread when one repetition did.
type Stat struct {
	Series     string            `json:"series"`
	Parameters map[string]string `json:"parameters,omitempty"`
	Metric     string            `json:"metric"` // empty when every repetition of the series failed as a whole
	Unit       string            `json:"unit"`
	N          int               `json:"n"`      // good repetitions
	Failed     int               `json:"failed"` // failed repetitions
	Warmups    int               `json:"warmups"`
	Median     *float64          `json:"median"`
	Interval   *Interval         `json:"interval"`         // of the median
	Reason     string            `json:"reason,omitempty"` // why there is no interval
	Mean       *float64          `json:"mean"`
	SD         *float64          `json:"sd"` // of the sample, divisor n−1
	CV         *float64          `json:"cv"` // SD / |Mean|
	Min        *float64          `json:"min"`
	Max        *float64          `json:"max"`
}

// Ratio compares the medians of two series that have the same parameters.
type Ratio struct {
	Metric     string            `json:"metric"`
	Parameters map[string]string `json:"parameters,omitempty"`
	Series     string            `json:"series"`
	Baseline   string            `json:"baseline"`
	Ratio      *float64          `json:"ratio"` // median of Series / median of Baseline
	Interval   *Interval         `json:"interval"`
	Reason     string            `json:"reason,omitempty"` // why one of the two is missing
}

// Part splits the name of a metric that is a part of another, "whole/part".
func Part(metric string) (whole, part string, ok bool) {
	return strings.Cut(metric, "/")
}

// Group is the samples of one metric in one series, in the order in which they came. Failures of whole repetitions are in the
// group of every metric.
type Group struct {
	Series     string
	Parameters map[string]string
	Metric     string
	Unit       string
	Samples    []Sample
}

// Values are those of good repetitions, without warm-ups.
func (g Group) Values() []float64 {
	var values []float64
	for _, s := range g.Samples {
		if s.Status == OK && !s.Warmup {
			values = append(values, s.Value)
		}
	}
	return values
}

// Stat computes the group's statistics. The seed is the run's.
func (g Group) Stat(seed uint64) Stat {
	st := Stat{Series: g.Series, Parameters: g.Parameters, Metric: g.Metric, Unit: g.Unit}
	for _, s := range g.Samples {
		switch {
		case s.Warmup:
			st.Warmups++
		case s.Status == Failed:
			st.Failed++
		default:
			st.N++
		}
	}
	values := slices.Sorted(slices.Values(g.Values()))
	st.Interval, st.Reason = MedianInterval(values, seed, g.name())
	if len(values) == 0 {
		return st
	}
	mean, sd := meanSD(values)
	st.Median, st.Mean, st.SD = finite(median(values)), finite(mean), finite(sd)
	st.Min, st.Max = &values[0], &values[len(values)-1]
	if st.Mean != nil && st.SD != nil {
		st.CV = finite(sd / math.Abs(mean))
	}
	return st
}

func (g Group) name() string {
	return strings.Join([]string{g.Series, FormatParameters(g.Parameters), g.Metric}, "\x00")
}

func finite(v float64) *float64 {
	if math.IsNaN(v) || math.IsInf(v, 0) {
		return nil
	}
	return &v
}

// Groups sorts samples by metric, and within a metric by series and parameters, each in the order of first appearance.
func Groups(samples []Sample) []Group {
	var metrics, series []string
	var whole []Sample // repetitions that failed before they had a metric
	groups := map[[2]string]*Group{}
	for _, s := range samples {
		key := keyOf(s)
		if !slices.Contains(series, key) {
			series = append(series, key)
		}
		if s.Metric == "" {
			whole = append(whole, s)
			continue
		}
		if !slices.Contains(metrics, s.Metric) {
			metrics = append(metrics, s.Metric)
		}
		g := groups[[2]string{s.Metric, key}]
		if g == nil {
			g = &Group{Series: s.Series, Parameters: s.Parameters, Metric: s.Metric}
			groups[[2]string{s.Metric, key}] = g
		}
		if s.Status == OK {
			g.Unit = s.Unit
		}
		g.Samples = append(g.Samples, s)
	}
	measured := map[string]bool{}
	for at := range groups {
		measured[at[1]] = true
	}
	for _, s := range whole {
		key := keyOf(s)
		if measured[key] {
			for at, g := range groups {
				if at[1] == key {
					g.Samples = append(g.Samples, s)
				}
			}
			continue
		}
		g := groups[[2]string{"", key}]
		if g == nil {
			g = &Group{Series: s.Series, Parameters: s.Parameters}
			groups[[2]string{"", key}] = g
		}
		g.Samples = append(g.Samples, s)
	}
	var sorted []Group
	for _, m := range append(metrics, "") {
		for _, key := range series {
			if g := groups[[2]string{m, key}]; g != nil {
				sorted = append(sorted, *g)
			}
		}
	}
	return sorted
}

// Summarize computes a run's statistics from its samples, with intervals from the run's seed. Ratios are those to the run's
// baseline, or to the first series measured; parts of metrics and series without a counterpart have none.
func Summarize(run Run, samples []Sample) Summary {
	s := Summary{Format: Format, Seed: run.Seed, Confidence: Confidence, Resamples: Resamples, Stats: []Stat{}, Ratios: []Ratio{}}
	groups := Groups(samples)
	baseline := run.Baseline
	if baseline == "" && len(samples) > 0 {
		baseline = samples[0].Series
	}
	for _, g := range groups {
		s.Stats = append(s.Stats, g.Stat(run.Seed))
		if _, _, part := Part(g.Metric); part || g.Metric == "" || g.Series == baseline {
			continue
		}
		for _, b := range groups {
			if b.Series == baseline && b.Metric == g.Metric && FormatParameters(b.Parameters) == FormatParameters(g.Parameters) {
				r := Ratio{Metric: g.Metric, Parameters: g.Parameters, Series: g.Series, Baseline: baseline}
				r.Ratio, r.Interval, r.Reason = MedianRatio(g.Values(), b.Values(), run.Seed, g.name())
				s.Ratios = append(s.Ratios, r)
			}
		}
	}
	return s
}
