package report

import (
	"fmt"
	"maps"
	"math"
	"slices"

	"github.com/bedfellow/bedfellow/pkg/results"
)

// The metrics of which each repetition is a pair: what was, and what was said before that it would be.
const (
	measured  = "measured"
	predicted = "predicted"
)

// scatter is a plot of predictions against what was measured, one for each series, all on one scale. Positions are in pixels.
type scatter struct {
	Unit  string
	Side  int // of the square
	Plots []scatterPlot
	Ticks []scatterTick
	// Zero is where nothing is, from the left; ZeroY the same from the top. The line of equality begins there.
	Zero, ZeroY float64
}

type scatterPlot struct {
	look
	Label, Note, Desc string
	Size              string // class of the dots, smaller the more there are
	Dots              []scatterDot
}

type scatterDot struct {
	X, Y  float64
	Title string
}

type scatterTick struct {
	At   float64 // from the left, and from the bottom up
	From float64 // the same, from the top down
	Text string
}

const (
	scatterSide = 250
	scatterLow  = -0.25 // how far below nothing and above the largest measured a prediction is drawn, as shares of that
	scatterHigh = 1.25
)

// newScatter draws the series that have both metrics; nil where none has.
func newScatter(groups []results.Group, labels []string, looks map[string]look) *scatter {
	type pair struct{ was, said *results.Sample }
	pairs, order, largest, least := map[string]map[int]*pair{}, []string{}, 0.0, 0.0
	s := &scatter{Side: scatterSide}
	for i, g := range groups {
		if g.Metric != measured && g.Metric != predicted {
			continue
		}
		name := labels[i]
		if pairs[name] == nil {
			pairs[name], order = map[int]*pair{}, append(order, name)
		}
		for k := range g.Samples {
			one := &g.Samples[k]
			if one.Status != results.OK || one.Warmup {
				continue
			}
			p := pairs[name][one.Repetition]
			if p == nil {
				p = &pair{}
				pairs[name][one.Repetition] = p
			}
			if s.Unit = g.Unit; g.Metric == measured {
				p.was, largest = one, max(largest, one.Value)
			} else {
				p.said, least = one, min(least, one.Value)
			}
		}
	}
	if largest == 0 {
		return nil
	}
	lo, hi := max(least, scatterLow*largest), scatterHigh*largest
	at := func(v float64) float64 { return math.Round(10*scatterSide*(min(max(v, lo), hi)-lo)/(hi-lo)) / 10 }
	s.Zero, s.ZeroY = at(0), scatterSide-at(0)
	for _, t := range newAxis("", lo, hi, false).Ticks {
		var v float64
		if _, err := fmt.Sscan(t.Label, &v); err == nil && v >= lo && v <= hi {
			s.Ticks = append(s.Ticks, scatterTick{at(v), scatterSide - at(v), t.Label})
		}
	}
	for _, name := range order {
		plot := scatterPlot{look: looks[name], Label: name}
		beyond := 0
		for _, repetition := range slices.Sorted(maps.Keys(pairs[name])) {
			p := pairs[name][repetition]
			if p.was == nil || p.said == nil {
				continue
			}
			d := scatterDot{at(p.was.Value), scatterSide - at(p.said.Value), fmt.Sprintf("%s, repetition %d: %.4g %s measured, %.4g predicted", name, repetition, p.was.Value, s.Unit, p.said.Value)}
			if p.said.Value < lo || p.said.Value > hi {
				beyond++
				d.Title += ", beyond the plot"
			}
			plot.Dots = append(plot.Dots, d)
		}
		if len(plot.Dots) == 0 {
			continue
		}
		plot.Size = dotSize(len(plot.Dots))
		plot.Note = fmt.Sprintf("n\u00a0=\u00a0%d", len(plot.Dots))
		if beyond > 0 {
			plot.Note += fmt.Sprintf(", %d beyond the plot, drawn at its edge", beyond)
		}
		plot.Desc = "Predicted over measured; on the line both are the same, " + plot.Note + "."
		s.Plots = append(s.Plots, plot)
	}
	if len(s.Plots) == 0 {
		return nil
	}
	return s
}
