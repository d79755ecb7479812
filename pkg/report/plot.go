package report

import (
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/bedfellow/bedfellow/pkg/results"
)

// Plots are SVGs without a viewBox: horizontal positions are percentages of whatever width the page gives them, vertical ones
// and all text are in pixels. So they fit a telephone without shrinking their letters.

// percent is a horizontal position or width, in percent of the plot.
type percent float64

func (p percent) String() string { return strconv.FormatFloat(float64(p), 'f', 2, 64) + "%" }

// look is how a series is drawn wherever it appears: a colour and a shape, so that neither alone carries the meaning.
type look struct{ Colour, Shape int }

// The page's style has this many colours and marks.
const (
	colours = 7
	shapes  = 5
)

// assignLooks gives every label a look, in the order in which they come.
func assignLooks(stats []results.Stat, labels []string) map[string]look {
	looks := map[string]look{}
	for i := range stats {
		if _, ok := looks[labels[i]]; !ok {
			n := len(looks)
			looks[labels[i]] = look{Colour: n % colours, Shape: n % shapes}
		}
	}
	return looks
}

// scale maps values to horizontal positions.
type scale struct {
	lo, hi     float64 // of the axis
	left, span percent // where lo is, and how far hi is from it
}

// Left, Middle and Right are where the axis begins, has its label and ends.
func (s scale) Left() percent   { return s.left }
func (s scale) Middle() percent { return s.left + s.span/2 }
func (s scale) Right() percent  { return s.left + s.span }

func (s scale) at(v float64) percent {
	return s.left + percent((v-s.lo)/(s.hi-s.lo))*s.span
}

// axis is a scale with what is written below it.
type axis struct {
	Label string
	Ticks []tick
	// Failed is the middle of the gutter for what has no value; 0 when there is none. Edge is its right edge.
	Failed, Edge percent
	scale
}

type tick struct {
	At    percent
	Label string
}

// newAxis spans the values with round ticks. With a gutter it leaves the left edge to failed repetitions.
func newAxis(label string, lo, hi float64, gutter bool) axis {
	pad := (hi - lo) * 0.05
	if pad == 0 || math.IsInf(pad, 0) {
		pad = math.Max(math.Abs(lo)*0.05, 1e-12)
	}
	low := lo - pad
	if lo >= 0 && low < 0 {
		low = 0
	}
	a := axis{Label: label, scale: scale{lo: low, hi: hi + pad, left: 2, span: 96}}
	if gutter {
		a.Failed, a.Edge = 5.5, 11.5
		a.left, a.span = 16, 82
	}
	step := roundStep(a.hi-a.lo, 6)
	decimals := max(0, -int(math.Floor(math.Log10(step)+1e-9)))
	for i := math.Ceil(a.lo / step); i*step <= a.hi && len(a.Ticks) < 20; i++ {
		v := i * step
		text := strconv.FormatFloat(v, 'f', min(decimals, 12), 64)
		if math.Abs(v) >= 1e7 || decimals > 6 {
			text = strconv.FormatFloat(v, 'g', 6, 64)
		}
		a.Ticks = append(a.Ticks, tick{At: a.at(v), Label: text})
	}
	return a
}

// roundStep is a step of 1, 2 or 5 times a power of ten that divides span into about n.
func roundStep(span float64, n int) float64 {
	raw := span / float64(n)
	power := math.Pow(10, math.Floor(math.Log10(raw)))
	for _, m := range []float64{1, 2, 5} {
		if raw <= m*power*1.0001 {
			return m * power
		}
	}
	return 10 * power
}

// figure is the dot plot of one metric, a strip for each series.
type figure struct {
	Metric string
	Strips []strip
	Axis   axis
	// Which marks it has, for the legend.
	Warmup, Failed, Beyond bool
}

type strip struct {
	look
	Label   string
	Middle  string // median and interval, in words
	Counts  string // how many repetitions, in words
	Size    string // class of the dots, smaller the more there are
	Dots    []dot
	Crosses []dot // failed repetitions
	Median  percent
	Low     percent
	Width   percent // of the interval; 0 when there is none
	HasMid  bool
	Desc    string
}

type dot struct {
	X      percent
	Y      float64 // pixels
	Title  string
	Warmup bool
	Beyond int // −1 and 1: a warm-up left and right of the axis
}

// The strip's vertical layout in pixels: dots around dotsAt, as far as spread away, above the interval.
const (
	dotsAt = 21
	spread = 13.0
)

// figures draws the dot plot of every metric that is not a part of another and not in without. Groups and stats are of the same
// order.
func figures(groups []results.Group, stats []results.Stat, labels []string, looks map[string]look, without map[string]bool) []figure {
	var all []figure
	for i := 0; i < len(groups); {
		end := i
		for end < len(groups) && groups[end].Metric == groups[i].Metric {
			end++
		}
		if _, _, part := results.Part(groups[i].Metric); !part && groups[i].Metric != "" && !without[groups[i].Metric] {
			if f, ok := newFigure(groups[i:end], stats[i:end], labels[i:end], looks); ok {
				all = append(all, f)
			}
		}
		i = end
	}
	return all
}

// newFigure draws one metric; ok is false when no repetition has a value.
func newFigure(groups []results.Group, stats []results.Stat, labels []string, looks map[string]look) (f figure, ok bool) {
	f.Metric = groups[0].Metric
	lo, hi, unit := math.Inf(1), math.Inf(-1), ""
	for i, st := range stats {
		if st.Median != nil {
			lo, hi = min(lo, *st.Min), max(hi, *st.Max)
		}
		if groups[i].Unit != "" {
			unit = groups[i].Unit
		}
		f.Failed = f.Failed || st.Failed > 0
	}
	if lo > hi {
		return f, false
	}
	// A warm-up may widen the axis a little, but never squeezes what counts: further out it is drawn at the edge.
	reach := max(hi-lo, 0.02*math.Abs(hi)) / 2
	wide := [2]float64{lo - reach, hi + reach}
	for _, g := range groups {
		for _, s := range g.Samples {
			f.Failed = f.Failed || s.Status == results.Failed
			if s.Status == results.OK && s.Value >= wide[0] && s.Value <= wide[1] {
				lo, hi = min(lo, s.Value), max(hi, s.Value)
			}
		}
	}
	label := f.Metric
	if unit != "" {
		label += " (" + unit + ")"
	}
	f.Axis = newAxis(label, lo, hi, f.Failed)
	for i, g := range groups {
		s := newStrip(g, stats[i], labels[i], f.Axis)
		s.look = looks[labels[i]]
		f.Strips = append(f.Strips, s)
		for _, d := range s.Dots {
			f.Warmup = f.Warmup || d.Warmup
			f.Beyond = f.Beyond || d.Beyond != 0
		}
	}
	return f, true
}

func newStrip(g results.Group, st results.Stat, label string, a axis) strip {
	s := strip{Label: label}
	s.Middle, s.Counts = notes(st)
	s.Size = dotSize(len(g.Samples))
	height := spread * math.Min(1, math.Sqrt(float64(len(g.Samples))/40)+0.25)
	for i, sample := range g.Samples {
		name := fmt.Sprintf("%s, repetition %d", label, sample.Repetition)
		if sample.Warmup {
			name = fmt.Sprintf("%s, warm-up %d", label, sample.Repetition)
		}
		if sample.Status == results.Failed {
			s.Crosses = append(s.Crosses, dot{Title: name + " failed: " + sample.Reason, Warmup: sample.Warmup})
			continue
		}
		d := dot{X: a.at(sample.Value), Y: dotsAt + height*jitter(i), Warmup: sample.Warmup,
			Title: fmt.Sprintf("%s: %s %s", name, strconv.FormatFloat(sample.Value, 'g', -1, 64), sample.Unit)}
		switch {
		case sample.Value < a.lo:
			d.X, d.Beyond = a.left, -1
		case sample.Value > a.hi:
			d.X, d.Beyond = a.left+a.span, 1
		}
		if d.Beyond != 0 {
			d.Title += ", beyond the axis"
		}
		s.Dots = append(s.Dots, d)
	}
	placeCrosses(s.Crosses, a.Failed)
	if st.Median != nil {
		s.HasMid, s.Median = true, a.at(*st.Median)
	}
	if st.Interval != nil {
		s.Low, s.Width = a.at(st.Interval.Low), a.at(st.Interval.High)-a.at(st.Interval.Low)
	}
	s.Desc = strings.TrimPrefix(s.Middle+", "+s.Counts, ", ")
	return s
}

// dotSize is the class of that many dots.
func dotSize(n int) string {
	switch {
	case n <= 30:
		return "large"
	case n <= 150:
		return "medium"
	default:
		return "small"
	}
}

// jitter spreads neighbours evenly between −1 and 1: the van der Corput sequence, the same on every page.
func jitter(i int) float64 {
	v, f := 0.0, 0.5
	for i++; i > 0; i /= 2 {
		v += f * float64(i%2)
		f /= 2
	}
	return 2*v - 1
}

// placeCrosses stacks them in the gutter, in up to three columns.
func placeCrosses(crosses []dot, middle percent) {
	columns := min(3, (len(crosses)+2)/3)
	rows := (len(crosses) + columns - 1) / max(columns, 1)
	for i := range crosses {
		column, row := i%columns, i/columns
		crosses[i].X = middle + percent(3*(float64(column)-float64(columns-1)/2))
		crosses[i].Y = dotsAt + 2*spread/float64(max(rows, 2))*(float64(row)-float64(rows-1)/2)
	}
}

// notes say in words what a strip shows: the median with its interval, and how many repetitions there are. No-break spaces
// keep a number with what it counts.
func notes(st results.Stat) (middle, counts string) {
	if st.Median != nil {
		middle = strings.TrimSpace(results.FormatEstimate(st.Median, st.Interval, st.Decimals()) + " " + st.Unit)
	}
	parts := []string{"n\u00a0=\u00a0" + strconv.Itoa(st.N)}
	if st.Failed > 0 {
		parts = append(parts, strconv.Itoa(st.Failed)+"\u00a0failed")
	}
	if st.Warmups > 0 {
		parts = append(parts, strings.NewReplacer(" ", "\u00a0", "-", "\u2011").Replace(plural(st.Warmups, "warm-up")))
	}
	return middle, strings.Join(parts, ", ")
}
