package results

import (
	"fmt"
	"io"
	"math"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Table writes the summary for a terminal: a line per metric and series, then the ratios. Columns are as wide as their widest
// entry. Parts of metrics are left to the report.
func (s Summary) Table(w io.Writer) error {
	labels := Labels(s.Stats)
	rows := [][]string{{"METRIC", "SERIES", "UNIT", "N", "FAILED", "MEDIAN [95 %]", "MEAN ± SD", "CV", "MIN", "MAX"}}
	for i, st := range s.Stats {
		if _, _, part := Part(st.Metric); part {
			continue
		}
		d := st.Decimals()
		rows = append(rows, []string{orNone(st.Metric), labels[i], st.Unit, fmt.Sprint(st.N), fmt.Sprint(st.Failed),
			FormatEstimate(st.Median, st.Interval, d), FormatValue(st.Mean, d) + suffix(" ± ", st.SD, d), FormatPercent(st.CV),
			FormatValue(st.Min, d), FormatValue(st.Max, d)})
	}
	if err := writeAligned(w, rows, "lll"); err != nil || len(s.Ratios) == 0 {
		return err
	}
	rows = [][]string{{"RATIO OF MEDIANS", "SERIES", "TO", "RATIO [95 %]"}}
	for _, r := range s.Ratios {
		label := r.Series
		if p := FormatParameters(r.Parameters); p != "" {
			label += " (" + p + ")"
		}
		rows = append(rows, []string{r.Metric, label, r.Baseline, FormatEstimate(r.Ratio, r.Interval, 3)})
	}
	if _, err := fmt.Fprintln(w); err != nil {
		return err
	}
	return writeAligned(w, rows, "llll")
}

// Labels names each Stat's series for a reader: with the parameters in which the points of the summary differ, if any.
func Labels(stats []Stat) []string {
	differ := map[string]bool{}
	for _, st := range stats {
		for _, other := range stats {
			for k, v := range st.Parameters {
				if o, ok := other.Parameters[k]; !ok || o != v {
					differ[k] = true
				}
			}
		}
	}
	labels := make([]string, len(stats))
	for i, st := range stats {
		shown := map[string]string{}
		for k, v := range st.Parameters {
			if differ[k] {
				shown[k] = v
			}
		}
		labels[i] = st.Series
		if len(shown) > 0 {
			labels[i] += " (" + FormatParameters(shown) + ")"
		}
	}
	return labels
}

// Decimals is how many digits after the point this metric's values deserve: at least four of the value in all, and up to six
// when the standard deviation is small enough to show two of it.
func (st Stat) Decimals() int {
	if st.Median == nil {
		return 0
	}
	size := max(math.Abs(*st.Median), math.Abs(*st.Min), math.Abs(*st.Max))
	d := 3 - exponent(size)
	if st.SD != nil && *st.SD > 0 {
		d = max(d, min(1-exponent(*st.SD), 5-exponent(size)))
	}
	return min(max(d, 0), 12)
}

// exponent is the decimal exponent of v; 0 for 0.
func exponent(v float64) int {
	if v == 0 {
		return 0
	}
	return int(math.Floor(math.Log10(v)))
}

// FormatValue writes a value with d digits after the point; "–" when there is none.
func FormatValue(v *float64, d int) string {
	switch {
	case v == nil:
		return "–"
	case math.Abs(*v) >= 1e12 || (*v != 0 && math.Abs(*v) < math.Pow10(-d)/2):
		return fmt.Sprintf("%.3g", *v)
	}
	return fmt.Sprintf("%.*f", d, *v)
}

// FormatEstimate writes "median [low, high]", without the interval when there is none.
func FormatEstimate(v *float64, i *Interval, d int) string {
	if i == nil {
		return FormatValue(v, d)
	}
	return FormatValue(v, d) + " [" + FormatValue(&i.Low, d) + ", " + FormatValue(&i.High, d) + "]"
}

// FormatPercent writes a share of 1 as a percentage.
func FormatPercent(v *float64) string {
	if v == nil {
		return "–"
	}
	return fmt.Sprintf("%.1f %%", 100**v)
}

func suffix(sep string, v *float64, d int) string {
	if v == nil {
		return ""
	}
	return sep + FormatValue(v, d)
}

func orNone(metric string) string {
	if metric == "" {
		return "–"
	}
	return metric
}

// writeAligned writes rows in columns two spaces apart: to the left those for which left has a letter, the others to the right.
// Characters that would drive the terminal are shown as �.
func writeAligned(w io.Writer, rows [][]string, left string) error {
	widths := make([]int, len(rows[0]))
	for _, row := range rows {
		for i := range row {
			row[i] = strings.Map(printable, row[i])
			widths[i] = max(widths[i], utf8.RuneCountInString(row[i]))
		}
	}
	for _, row := range rows {
		var b strings.Builder
		for i, cell := range row {
			gap := strings.Repeat(" ", widths[i]-utf8.RuneCountInString(cell))
			if i < len(left) {
				b.WriteString(cell + gap + "  ")
			} else {
				b.WriteString(gap + cell + "  ")
			}
		}
		if _, err := fmt.Fprintln(w, strings.TrimRight(b.String(), " ")); err != nil {
			return err
		}
	}
	return nil
}

func printable(r rune) rune {
	if unicode.IsPrint(r) {
		return r
	}
	return unicode.ReplacementChar
}
