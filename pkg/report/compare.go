package report

import (
	"fmt"
	"math"
	"slices"

	"github.com/bedfellow/bedfellow/pkg/results"
)

// forest is the plot of the ratios of medians, around a line at 1.
type forest struct {
	Baseline string
	Groups   []forestGroup
	Axis     axis
	One      percent
}

type forestGroup struct {
	Metric string
	Rows   []forestRow
}

type forestRow struct {
	look
	Label, Note, Desc string
	At, Low, Width    percent
	HasMid            bool
}

// newForest draws the summary's ratios; nil when there is none.
func newForest(summary results.Summary, labels []string, looks map[string]look) *forest {
	if len(summary.Ratios) == 0 {
		return nil
	}
	f := &forest{Baseline: summary.Ratios[0].Baseline}
	lo, hi := 1.0, 1.0
	for _, r := range summary.Ratios {
		if r.Ratio != nil {
			lo, hi = min(lo, *r.Ratio), max(hi, *r.Ratio)
		}
		if r.Interval != nil {
			lo, hi = min(lo, r.Interval.Low), max(hi, r.Interval.High)
		}
	}
	// A ratio of 1.001 should look like next to nothing.
	lo, hi = min(lo, 0.95), max(hi, 1.05)
	f.Axis = newAxis("ratio of medians to "+f.Baseline, lo, hi, false)
	f.One = f.Axis.at(1)
	for _, r := range summary.Ratios {
		if len(f.Groups) == 0 || f.Groups[len(f.Groups)-1].Metric != r.Metric {
			f.Groups = append(f.Groups, forestGroup{Metric: r.Metric})
		}
		label := r.Series
		for i, st := range summary.Stats {
			if st.Series == r.Series && st.Metric == r.Metric && results.FormatParameters(st.Parameters) == results.FormatParameters(r.Parameters) {
				label = labels[i]
			}
		}
		row := forestRow{look: looks[label], Label: label, Note: results.FormatEstimate(r.Ratio, r.Interval, 3)}
		if r.Reason != "" {
			row.Note += " (" + r.Reason + ")"
		}
		if r.Ratio != nil {
			row.HasMid, row.At = true, f.Axis.at(*r.Ratio)
		}
		if r.Interval != nil {
			row.Low, row.Width = f.Axis.at(r.Interval.Low), f.Axis.at(r.Interval.High)-f.Axis.at(r.Interval.Low)
		}
		row.Desc = fmt.Sprintf("%s of %s to %s: %s", r.Metric, label, f.Baseline, row.Note)
		g := &f.Groups[len(f.Groups)-1]
		g.Rows = append(g.Rows, row)
	}
	return f
}

// stack is the stacked bars of one metric's parts, a bar for each series. Bars are means, which add up; medians do not.
type stack struct {
	Whole string
	Unit  string
	Parts []partRow
	Bars  []bar
	Axis  axis
}

type bar struct {
	Label, Note, Desc string
	Segments          []segment
}

type segment struct {
	Part     int
	X, W     percent
	Middle   percent
	Label    string // empty where it would not fit
	Title    string
	Relative string // share of the bar
}

// partRow is a line of the table below the bars: what every series spends in one part.
type partRow struct {
	Name  string
	Part  int // its colour
	Cells []string
}

// stacks draws every metric that has parts.
func stacks(stats []results.Stat, labels []string) []stack {
	type key struct{ part, label string }
	var all []stack
	means := map[string]map[key]float64{}
	var wholes []string
	order := map[string]*struct{ parts, labels []string }{}
	units := map[string]string{}
	for i, st := range stats {
		whole, part, ok := results.Part(st.Metric)
		if !ok || st.Mean == nil {
			continue
		}
		if means[whole] == nil {
			means[whole], order[whole] = map[key]float64{}, &struct{ parts, labels []string }{}
			wholes = append(wholes, whole)
		}
		// Other is a remainder and may be a rounding error below zero.
		means[whole][key{part, labels[i]}] = math.Max(0, *st.Mean)
		units[whole] = st.Unit
		o := order[whole]
		if !slices.Contains(o.parts, part) {
			o.parts = append(o.parts, part)
		}
		if !slices.Contains(o.labels, labels[i]) {
			o.labels = append(o.labels, labels[i])
		}
	}
	for _, whole := range wholes {
		o := order[whole]
		s := stack{Whole: whole, Unit: units[whole]}
		longest := 0.0
		totals := map[string]float64{}
		for _, label := range o.labels {
			for _, part := range o.parts { // in order: a sum of floats depends on it
				totals[label] += means[whole][key{part, label}]
			}
			longest = max(longest, totals[label])
		}
		if longest == 0 {
			continue
		}
		s.Axis = newAxis("mean "+whole+" ("+s.Unit+")", 0, longest, false)
		for i, part := range o.parts {
			s.Parts = append(s.Parts, partRow{Name: part, Part: i % colours})
		}
		for _, label := range o.labels {
			total := totals[label]
			b := bar{Label: label, Note: fmt.Sprintf("%s %s", short(total), s.Unit)}
			b.Desc = fmt.Sprintf("%s of %s, %s:", whole, label, b.Note)
			sum := 0.0
			for i, part := range o.parts {
				v := means[whole][key{part, label}]
				share := 0.0
				if total > 0 {
					share = v / total
				}
				g := segment{Part: i % colours, X: s.Axis.at(sum), W: s.Axis.at(sum+v) - s.Axis.at(sum), Relative: fmt.Sprintf("%.1f %%", 100*share)}
				g.Middle = g.X + g.W/2
				g.Title = fmt.Sprintf("%s: %s %s, %s", part, short(v), s.Unit, g.Relative)
				if g.W >= percent(3+1.8*float64(len(part))) {
					g.Label = part
				}
				b.Segments = append(b.Segments, g)
				b.Desc += " " + g.Title + "."
				s.Parts[i].Cells = append(s.Parts[i].Cells, short(v)+" "+s.Unit, g.Relative)
				sum += v
			}
			s.Bars = append(s.Bars, b)
		}
		all = append(all, s)
	}
	return all
}

// short writes four significant digits, without an exponent in the usual range.
func short(v float64) string {
	if v == 0 {
		return "0"
	}
	st := results.Stat{Median: &v, Min: &v, Max: &v}
	return results.FormatValue(&v, min(st.Decimals(), 6))
}

// tableRow is a line of the summary table, which leaves parts of metrics to the bars and their table.
type tableRow struct {
	First                                           bool // of its metric
	Metric, Label, Unit                             string
	N, Failed                                       int
	Median, Interval, Mean, SD, CV, Min, Max, Title string
}

func table(stats []results.Stat, labels []string) []tableRow {
	var rows []tableRow
	for i, st := range stats {
		if _, _, part := results.Part(st.Metric); part {
			continue
		}
		d := st.Decimals()
		r := tableRow{
			Metric: st.Metric, Label: labels[i], Unit: st.Unit, N: st.N, Failed: st.Failed, Interval: "–", Title: st.Reason,
			Median: results.FormatValue(st.Median, d), Mean: results.FormatValue(st.Mean, d), SD: results.FormatValue(st.SD, d),
			CV: results.FormatPercent(st.CV), Min: results.FormatValue(st.Min, d), Max: results.FormatValue(st.Max, d),
		}
		if st.Metric == "" {
			r.Metric = "–"
		}
		r.First = i == 0 || stats[i-1].Metric != st.Metric
		if st.Interval != nil {
			r.Interval = results.FormatValue(&st.Interval.Low, d) + " – " + results.FormatValue(&st.Interval.High, d)
		}
		rows = append(rows, r)
	}
	return rows
}
