package report

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/bedfellow/bedfellow/pkg/results"
	"github.com/stretchr/testify/require"
)

var update = flag.Bool("update", false, "rewrite golden files")

var noon = time.Date(2026, 3, 4, 12, 0, 0, 0, time.UTC)

// newRun is a finished run without samples.
func newRun(stack string) *results.Result {
	ended := noon.Add(3*time.Minute + 12*time.Second)
	return &results.Result{
		Dir: "results/" + stack + "/lammps/20260304T120000Z-0badcafe",
		Run: results.Run{
			Format: results.Format, ID: "20260304T120000Z-0badcafe", Stack: stack, Scenario: "lammps", Status: results.OK,
			Started: noon, Ended: &ended, Seed: 42,
			Parameters: map[string]string{"x": "2", "y": "2", "z": "2", "steps": "100", "ranks": "2"},
			Bed: results.Bed{Driver: "nspawn", Image: "debian-12", WorkloadManager: "slurm",
				ImageDigest: "sha256:3f1b8c5d0f2a4c6e8091a2b3c4d5e6f708192a3b4c5d6e7f8091a2b3c4d5e6f7"},
			Spec:     json.RawMessage(`{"nodes":3,"memory":"1GiB"}`),
			Versions: map[string]string{"bed": "0.1.0", "lammps": "6 Jan 2022"},
			Digests:  map[string]string{"lmp": "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"},
			Nodes: []results.Node{
				{Name: stack + "-1", Role: "control", CPUs: 2, Memory: 1 << 30, OS: "Debian GNU/Linux 12 (bookworm)", Kernel: "6.1.0-28-amd64", CPUModel: "AMD EPYC 7763"},
				{Name: stack + "-2", Role: "compute", CPUs: 1, HostCPUs: "0", Memory: 1 << 30, OS: "Debian GNU/Linux 12 (bookworm)", Kernel: "6.1.0-28-amd64", CPUModel: "AMD EPYC 7763"},
				{Name: stack + "-3", Role: "compute", CPUs: 1, HostCPUs: "1", Memory: 1 << 30, OS: "Debian GNU/Linux 12 (bookworm)", Kernel: "6.1.0-28-amd64", CPUModel: "AMD EPYC 7763"},
			},
			Ranks: []results.Rank{{Series: "bare", Repetition: 1, Rank: 0, Node: stack + "-2", PID: 311}, {Series: "bare", Repetition: 1, Rank: 1, Node: stack + "-3", PID: 298}},
		},
	}
}

// measure adds a warm-up and n repetitions around a loop time in seconds, with what LAMMPS says besides.
func measure(r *results.Result, series string, n int, loop float64, seed uint64) {
	rng := rand.New(rand.NewPCG(seed, 1))
	add := func(rep int, warmup bool, metric, unit string, v float64) {
		r.Samples = append(r.Samples, results.Sample{Series: series, Repetition: rep, Warmup: warmup, Metric: metric, Value: v, Unit: unit,
			Status: results.OK, Time: noon})
	}
	for rep := 0; rep <= n; rep++ {
		t := loop * (1 + 0.006*rng.NormFloat64())
		warmup := rep == 0
		if warmup {
			t *= 1.15
		}
		at := max(rep, 1)
		add(at, warmup, "loop time", "s", t)
		add(at, warmup, "speed", "timesteps/s", 100/t)
		add(at, warmup, "CPU use", "%", 99.2+0.3*rng.Float64())
		for _, p := range []struct {
			name  string
			share float64
		}{{"Pair", .69}, {"Neigh", .0175}, {"Comm", .0747}, {"Output", .0002}, {"Modify", .2175}, {"Other", .0001}} {
			add(at, warmup, "loop time/"+p.name, "s", t*p.share)
		}
	}
}

func fail(r *results.Result, series string, rep int, reason string) {
	r.Samples = append(r.Samples, results.Sample{Series: series, Repetition: rep, Status: results.Failed, Reason: reason,
		Log: fmt.Sprintf("logs/%s/%d.log", series, rep), Time: noon})
}

func single() []*results.Result {
	r := newRun("quickstart")
	measure(r, "bare", 5, 13.2, 1)
	return []*results.Result{r}
}

func troubled() []*results.Result {
	r := newRun("star-trek")
	r.Run.Notes = []string{"oversubscribed: 48 ranks on 2 host CPUs, so times say nothing about the network"}
	r.Run.Baseline = "bare"
	measure(r, "bare", 20, 82.1, 1)
	measure(r, "bare, Usernetes up", 20, 82.9, 2)
	measure(r, "Usernetes", 20, 87.4, 3)
	r.Samples[9*7].Value = 97.2 // an outlier
	fail(r, "Usernetes", 21, "srun: error: star-trek-4: task 17: Killed")
	fail(r, "Usernetes", 22, "no result after 10m0s: the job is still queued, see squeue")
	return []*results.Result{r}
}

func sideBySide() []*results.Result {
	a, b := newRun("quickstart"), newRun("lima-ci")
	measure(a, "bare", 8, 13.2, 1)
	measure(b, "bare", 8, 14.9, 2)
	b.Run.Bed.Driver, b.Run.Parameters["ranks"] = "lima", "4"
	b.Run.Status, b.Run.Ended = results.Running, nil
	b.Problems = []string{"samples.jsonl:81: the last line was not written whole and is left out"}
	return []*results.Result{a, b}
}

func render(t *testing.T, runs []*results.Result, opts Options) string {
	t.Helper()
	var b bytes.Buffer
	require.NoError(t, Write(&b, runs, opts))
	return b.String()
}

func TestGolden(t *testing.T) {
	for name, runs := range map[string][]*results.Result{"single": single(), "troubled": troubled(), "side-by-side": sideBySide()} {
		t.Run(name, func(t *testing.T) {
			got := render(t, runs, Options{Now: noon})
			file := filepath.Join("testdata", name+".golden.html")
			if *update {
				require.NoError(t, os.WriteFile(file, []byte(got), 0o644))
			}
			want, err := os.ReadFile(file)
			require.NoError(t, err, "run go test ./pkg/report -update, look at the page, then commit it")
			require.True(t, string(want) == got, "%s differs: run go test ./pkg/report -update and look at what changed", file)
			check(t, got)
		})
	}
}

var (
	svgs     = regexp.MustCompile(`(?s)<svg.*?</svg>`)
	ids      = regexp.MustCompile(` id="([^"]*)"`)
	labelled = regexp.MustCompile(`aria-labelledby="([^"]*)"`)
	uses     = regexp.MustCompile(`href="#([^"]*)"`)
)

// check holds for every page: SVGs are well-formed XML, nothing comes from elsewhere, references lead somewhere, numbers are
// numbers.
func check(t *testing.T, page string) {
	t.Helper()
	for _, svg := range svgs.FindAllString(page, -1) {
		d := xml.NewDecoder(strings.NewReader(svg))
		for {
			if _, err := d.Token(); err == io.EOF {
				break
			} else if err != nil {
				t.Fatalf("not well-formed: %v in\n%s", err, svg)
			}
		}
	}
	for _, outside := range []string{"http://", "https://", "//cdn", "<script", "<link", "<img", "@import", "url(", "javascript:"} {
		require.NotContains(t, page, outside)
	}
	known := map[string]bool{}
	for _, m := range ids.FindAllStringSubmatch(page, -1) {
		require.False(t, known[m[1]], "id %s is there twice", m[1])
		known[m[1]] = true
	}
	for _, m := range append(uses.FindAllStringSubmatch(page, -1), labelled.FindAllStringSubmatch(page, -1)...) {
		for id := range strings.FieldsSeq(m[1]) {
			require.True(t, known[id], "nothing has id %s", id)
		}
	}
	for _, bad := range []string{"NaN", "Inf%", "ZgotmplZ", "%!", "<nil>", "0xc0"} {
		require.NotContains(t, page, bad)
	}
}

// What comes from logs, nodes and names is text and stays text.
func TestHostileTextStaysText(t *testing.T) {
	evil := `"></title></svg><script>alert(1)</script><img src=https://evil/ onerror=x>'{{.}}`
	r := troubled()[0]
	r.Run.Notes = append(r.Run.Notes, evil)
	r.Run.Versions[evil], r.Run.Parameters["x"], r.Run.Bed.Image = evil, evil, evil
	r.Run.Nodes[0].CPUModel, r.Run.Ranks[0].Node = evil, evil
	r.Run.Spec = json.RawMessage(`"</pre><script>"`)
	for i := range r.Samples {
		r.Samples[i].Series += evil
		r.Samples[i].Reason += evil
		if r.Samples[i].Metric != "" {
			r.Samples[i].Metric += evil
		}
		if r.Samples[i].Unit != "" {
			r.Samples[i].Unit += evil
		}
	}
	r.Run.Baseline = r.Samples[0].Series
	page := render(t, []*results.Result{r}, Options{Title: evil})
	page = strings.ReplaceAll(page, "https://evil/", "") // as text it may be there
	check(t, page)
	require.NotContains(t, page, "<script")
	require.NotContains(t, page, "<img")
}

func TestDegenerateRuns(t *testing.T) {
	empty := newRun("empty")
	failed := newRun("failed")
	fail(failed, "bare", 1, "exit status 1")
	one := newRun("one")
	measure(one, "bare", 1, 13, 1)
	same := newRun("same")
	for i := range 4 {
		same.Samples = append(same.Samples, results.Sample{Series: "a", Repetition: i + 1, Metric: "m", Status: results.OK, Value: 0})
	}
	huge := newRun("huge")
	for i, v := range []float64{1e-300, 1e300, -1e300, 5} {
		huge.Samples = append(huge.Samples, results.Sample{Series: "a", Repetition: i + 1, Metric: "m", Status: results.OK, Value: v})
	}
	far := newRun("far")
	measure(far, "bare", 5, 13, 1)
	far.Samples[0].Value = 500
	for _, r := range []*results.Result{empty, failed, one, same, huge, far} {
		t.Run(r.Run.Stack, func(t *testing.T) {
			page := render(t, []*results.Result{r}, Options{})
			check(t, page)
			switch r.Run.Stack {
			case "failed":
				require.Contains(t, page, "bare: repetition 1 (logs/bare/1.log) failed: exit status 1")
			case "far":
				require.Contains(t, page, "500 s, beyond the axis")
			}
		})
	}
}

// A page of a run that was recorded and read back is that of the run in memory.
func TestFromDisk(t *testing.T) {
	want := troubled()[0]
	r, err := results.Create(t.TempDir(), want.Run.Stack, want.Run.Scenario, want.Run)
	require.NoError(t, err)
	require.NoError(t, r.Add(want.Samples...))
	require.NoError(t, r.Close(results.OK))
	got, err := results.Load(r.Dir())
	require.NoError(t, err)
	want.Run.ID, want.Run.Started, want.Run.Ended, want.Dir = got.Run.ID, got.Run.Started, got.Run.Ended, got.Dir
	page := render(t, []*results.Result{got}, Options{Now: noon})
	check(t, page)
	require.True(t, render(t, []*results.Result{want}, Options{Now: noon}) == page)
}

func TestWriteRefuses(t *testing.T) {
	same := newRun("quickstart")
	other := newRun("other")
	other.Run.Scenario = "iperf"
	unit := newRun("unit")
	measure(unit, "bare", 1, 13, 1)
	for i := range unit.Samples {
		unit.Samples[i].Unit = "ms"
	}
	for says, runs := range map[string][]*results.Result{
		"no runs":               nil,
		"is given twice":        {same, same},
		"only runs of one":      {same, other},
		"cannot share an axis":  {single()[0], unit},
		"is none of the series": single(),
	} {
		opts := Options{}
		if says == "is none of the series" {
			opts.Baseline = "nobody"
		}
		require.ErrorContains(t, Write(io.Discard, runs, opts), says)
	}
}

func TestAxis(t *testing.T) {
	for _, c := range []struct{ lo, hi float64 }{{0, 1}, {13.1, 13.4}, {82, 97}, {-5, 5}, {1e-9, 2e-9}, {1e6, 1.2e6}, {7, 7}, {0, 0}} {
		a := newAxis("x", c.lo, c.hi, false)
		require.GreaterOrEqual(t, len(a.Ticks), 2, "%v", c)
		require.LessOrEqual(t, len(a.Ticks), 8, "%v", c)
		seen := map[string]bool{}
		for _, k := range a.Ticks {
			require.False(t, seen[k.Label], "%v: tick %s twice", c, k.Label)
			seen[k.Label] = true
			require.GreaterOrEqual(t, float64(k.At), 1.99)
			require.LessOrEqual(t, float64(k.At), 98.01)
		}
	}
}
