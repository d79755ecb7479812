package report

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"

	"github.com/bedfellow/bedfellow/pkg/results"
)

// heat is a metric that was measured from node to node: a heat map of medians for each series, all on one scale.
type heat struct {
	Metric, Unit string
	Low, High    string // what the palest and the deepest colour stand for
	Maps         []heatMap
	pairs        int // in the largest of the maps
}

// heatMap has a row for every node that sent and a column for every node that received. Positions are in pixels.
type heatMap struct {
	Series, Desc  string
	Width, Height int
	Rows, Columns []heatLabel
	Cells         []heatCell
}

type heatLabel struct {
	X, Y        int
	Text, Title string
}

type heatCell struct {
	X, Y, W, H  int
	TextX       int
	TextY       int
	Share       int // of the colour, in percent of what it can be
	Failed      bool
	Text, Title string
}

// The names of the parameters that make samples those of a pair, and how many pairs may have a dot row each.
const (
	pairFrom = "from"
	pairTo   = "to"
	dotPairs = 6
)

// The heat maps' layout in pixels.
const (
	heatRow    = 34
	heatTop    = 46 // above the first row: "to" and the columns' names
	heatLetter = 8  // at most, of a letter in a name
	heatNames  = 22 // letters of a name that are shown
)

// isPair says whether a figure is one from node to node.
func isPair(parameters map[string]string) bool {
	_, from := parameters[pairFrom]
	_, to := parameters[pairTo]
	return from && to
}

// heats finds the metrics that were measured between pairs and draws them.
func heats(stats []results.Stat) []heat {
	var metrics []string
	of := map[string][]results.Stat{}
	for _, st := range stats {
		if _, _, part := results.Part(st.Metric); part || !isPair(st.Parameters) {
			continue
		}
		if st.Metric != "" && st.Median != nil && !slices.Contains(metrics, st.Metric) {
			metrics = append(metrics, st.Metric)
		}
		of[st.Metric] = append(of[st.Metric], st)
	}
	var all []heat
	for _, metric := range metrics {
		// Pairs that never had a figure have no metric either.
		all = append(all, newHeat(metric, append(slices.Clone(of[metric]), of[""]...)))
	}
	return all
}

func newHeat(metric string, stats []results.Stat) heat {
	h := heat{Metric: metric}
	lo, hi := math.Inf(1), math.Inf(-1)
	var series []string
	of := map[string][]results.Stat{}
	for _, st := range stats {
		rest := maps.Clone(st.Parameters)
		delete(rest, pairFrom)
		delete(rest, pairTo)
		name := st.Series
		if len(rest) > 0 {
			name += " (" + results.FormatParameters(rest) + ")"
		}
		if of[name] == nil {
			series = append(series, name)
		}
		of[name] = append(of[name], st)
		if st.Median == nil {
			continue
		}
		lo, hi = min(lo, *st.Median), max(hi, *st.Median)
		if st.Unit != "" {
			h.Unit = st.Unit
		}
	}
	lo = min(lo, 0) // so that a colour twice as deep is a figure twice as large
	h.Low, h.High = short(lo), short(hi)
	for _, name := range series {
		h.Maps = append(h.Maps, newHeatMap(name, h.Unit, of[name], lo, hi))
		h.pairs = max(h.pairs, len(of[name]))
	}
	return h
}

func newHeatMap(series, unit string, stats []results.Stat, lo, hi float64) heatMap {
	m := heatMap{Series: series}
	var nodes []string
	longest := 0
	for _, st := range stats {
		for _, n := range []string{st.Parameters[pairFrom], st.Parameters[pairTo]} {
			if !slices.Contains(nodes, n) {
				nodes = append(nodes, n)
				longest = max(longest, len([]rune(cut(n))))
			}
		}
	}
	slices.Sort(nodes) // a pair that failed comes last, whatever its nodes
	column := max(64, heatLetter*longest+12)
	left := max(56, heatLetter*longest+12)
	m.Width, m.Height = left+len(nodes)*column, heatTop+len(nodes)*heatRow
	for i, n := range nodes {
		m.Rows = append(m.Rows, heatLabel{left - 8, heatTop + i*heatRow + heatRow/2 + 4, cut(n), n})
		m.Columns = append(m.Columns, heatLabel{left + i*column + column/2, heatTop - 8, cut(n), n})
	}
	var least, most results.Stat
	for _, st := range stats {
		from, to := st.Parameters[pairFrom], st.Parameters[pairTo]
		c := heatCell{X: left + slices.Index(nodes, to)*column, Y: heatTop + slices.Index(nodes, from)*heatRow, W: column, H: heatRow}
		c.TextX, c.TextY = c.X+column/2, c.Y+heatRow/2+4
		middle, counts := notes(st)
		if st.Median == nil {
			c.Failed, c.Text = true, "failed"
		} else {
			c.Text = short3(*st.Median)
			if hi > lo {
				c.Share = int(math.Round(100 * math.Min(1, *st.Median/(hi-lo)-lo/(hi-lo))))
			}
			if least.Median == nil || *st.Median < *least.Median {
				least = st
			}
			if most.Median == nil || *st.Median > *most.Median {
				most = st
			}
		}
		c.Title = fmt.Sprintf("from %s to %s: %s", from, to, strings.TrimPrefix(middle+", "+counts, ", "))
		m.Cells = append(m.Cells, c)
	}
	m.Desc = fmt.Sprintf("Medians; rows send, columns receive, %s.", plural(len(nodes), "node"))
	for _, end := range []struct {
		word string
		st   results.Stat
	}{{"Least", least}, {"Most", most}} {
		if end.st.Median != nil {
			value := strings.TrimSpace(short3(*end.st.Median) + " " + unit)
			m.Desc += fmt.Sprintf(" %s: %s, from %s to %s.", end.word, value, end.st.Parameters[pairFrom], end.st.Parameters[pairTo])
		}
	}
	return m
}

// short3 writes three significant digits, as a cell has room for.
func short3(v float64) string {
	if a := math.Abs(v); a >= 1e6 || a > 0 && a < 1e-3 {
		return fmt.Sprintf("%.2e", v)
	} else if a >= 100 || a == 0 {
		return fmt.Sprintf("%.0f", v)
	} else if a >= 10 {
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.3g", v)
}

// cut shortens a name that would not fit.
func cut(name string) string {
	if letters := []rune(name); len(letters) > heatNames {
		return string(letters[:heatNames-1]) + "…"
	}
	return name
}

// crowded are the metrics whose pairs are so many that the heat map stands alone, without a row of dots for each.
func crowded(all []heat, stats []results.Stat) map[string]bool {
	many := map[string]bool{}
	for _, h := range all {
		many[h.Metric] = h.pairs > dotPairs
	}
	for _, st := range stats {
		if !isPair(st.Parameters) { // the map does not show it
			delete(many, st.Metric)
		}
	}
	return many
}
