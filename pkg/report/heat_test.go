package report

import (
	"fmt"
	"math/rand/v2"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/bedfellow/bedfellow/pkg/results"
)

// between is a run of iperf on n compute nodes, three repetitions each, in which the second node is slow to send.
func between(n int) *results.Result {
	r := newRun("quickstart")
	r.Run.Scenario = "iperf"
	rng := rand.New(rand.NewPCG(1, 2))
	name := func(i int) string { return fmt.Sprintf("quickstart-%02d", i+2) }
	for _, series := range []string{"one way", "both ways"} {
		for i := range n * n {
			from, to := i/n, i%n
			if from == to {
				continue
			}
			for rep := range 3 {
				s := results.Sample{Series: series, Parameters: map[string]string{"from": name(from), "to": name(to)}, Repetition: rep + 1, Status: results.OK, Time: noon}
				if series == "both ways" && from == 0 && to == 1 {
					s.Status, s.Reason = results.Failed, "unable to connect to server: Connection refused"
					r.Samples = append(r.Samples, s)
					continue
				}
				s.Metric, s.Unit, s.Value = "bandwidth", "Gbit/s", 20+rng.Float64()
				if series == "both ways" {
					s.Value *= 0.6
				}
				if from == 1 {
					s.Value /= 4
				}
				r.Samples = append(r.Samples, s)
				s.Metric, s.Unit, s.Value = "retransmits", "", 0
				r.Samples = append(r.Samples, s)
			}
		}
	}
	return r
}

func TestHeatMaps(t *testing.T) {
	cells := regexp.MustCompile(`<rect class="cell( lost)?" style="--share: (\d+)%"[^>]*><title>([^<]*)</title></rect><text[^>]*>([^<]*)</text>`)
	for n, dots := range map[int]bool{2: true, 3: true, 4: false} {
		page := render(t, []*results.Result{between(n)}, Options{Now: noon})
		check(t, page)
		if file := os.Getenv("HEAT_PAGE"); file != "" && n == 4 {
			require.NoError(t, os.WriteFile(file, []byte(page), 0o644))
		}
		require.Equal(t, 2*2, strings.Count(page, `<figure class="heat">`), "two metrics of two series")
		all := cells.FindAllStringSubmatch(page, -1)
		require.Len(t, all, 2*2*n*(n-1), "a cell for every pair and none on the diagonal")
		require.Regexp(t, `^(9[5-9]|100)$`, all[0][2], "a deep colour")
		require.Regexp(t, `^from quickstart-02 to quickstart-03: 20\.\S+ \[.*\] Gbit/s, n.=.3$`, all[0][3])
		require.Regexp(t, `^20\.\d$`, all[0][4])
		lost := slices.DeleteFunc(slices.Clone(all), func(c []string) bool { return c[1] == "" })
		require.Len(t, lost, 2, "a pair that failed is so in both metrics")
		require.Equal(t, []string{"0", "from quickstart-02 to quickstart-03: n\u00a0=\u00a00, 3\u00a0failed", "failed"}, lost[0][2:])
		require.Contains(t, page, "Least: 5.")
		require.Contains(t, page, "from quickstart-03 to quickstart-02.")
		require.Equal(t, dots, strings.Contains(page, "<h2>Measurements</h2>"), "%d nodes", n)
		require.Equal(t, dots, strings.Contains(page, "<h2>Ratios to one way</h2>"), "%d nodes", n)
	}
	require.NotContains(t, render(t, single(), Options{}), `<figure class="heat">`)
}

func TestHeatMapsOfOddRuns(t *testing.T) {
	r := between(5)
	evil := `"><script>alert(1)</script>` + strings.Repeat("ü", 40)
	for i := range r.Samples {
		r.Samples[i].Parameters["to"] += evil
		r.Samples[i].Parameters["size"] = evil
		r.Samples[i].Value -= 30
	}
	page := render(t, []*results.Result{r}, Options{})
	check(t, page)
	// Where something was not measured from node to node, its dots are drawn.
	r = between(5)
	r.Samples = append(r.Samples, results.Sample{Series: "all at once", Repetition: 1, Metric: "bandwidth", Unit: "Gbit/s", Value: 7, Status: results.OK})
	page = render(t, []*results.Result{r}, Options{})
	check(t, page)
	require.Contains(t, page, "<h2>Measurements</h2>")
	// Two runs side by side have maps of their own.
	a, b := between(3), between(3)
	b.Run.Stack = "lima-ci"
	page = render(t, []*results.Result{a, b}, Options{})
	check(t, page)
	require.Contains(t, page, "one way · lima-ci</h3>")
}
