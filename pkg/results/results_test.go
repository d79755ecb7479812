package results

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

var update = flag.Bool("update", false, "rewrite golden files")

var noon = time.Date(2026, 3, 4, 12, 0, 0, 0, time.UTC)

func sample(series string, rep int, v float64) Sample {
	return Sample{Series: series, Repetition: rep, Metric: "loop time", Value: v, Unit: "s", Status: OK, Time: noon}
}

func create(t *testing.T) *Recorder {
	t.Helper()
	r, err := Create(t.TempDir(), "quickstart", "lammps", Run{Seed: 5})
	require.NoError(t, err)
	t.Cleanup(func() { r.Close(Interrupted) })
	return r
}

func TestRoundTrip(t *testing.T) {
	r := create(t)
	log, err := r.Log("bare/1.log", []byte("raw\n"))
	require.NoError(t, err)
	require.Equal(t, "logs/bare/1.log", log)
	exact := sample("bare", 1, 0.1+0.2) // 0.30000000000000004
	exact.Log, exact.Parameters = log, map[string]string{"x": "2"}
	tiny := sample("bare", 2, math.SmallestNonzeroFloat64)
	failed := Sample{Series: "bare", Repetition: 3, Status: Failed, Reason: "exit status 1", Time: noon}
	require.NoError(t, r.Add(exact, tiny))
	require.NoError(t, r.Add(failed))
	require.NoError(t, r.Update(func(run *Run) {
		run.Nodes = []Node{{Name: "q-1", CPUs: 2, Memory: 1 << 30}}
		run.Seed = math.MaxUint64
		run.Spec = json.RawMessage(`{"nodes": 3}`)
		run.ID = "cannot be changed"
	}))
	require.NoError(t, r.Close(OK))
	require.NoError(t, r.Close(Failed), "only the first Close counts")

	got, err := Load(r.Dir())
	require.NoError(t, err)
	require.Equal(t, []Sample{exact, tiny, failed}, got.Samples)
	require.Equal(t, filepath.Base(r.Dir()), got.Run.ID)
	require.Equal(t, OK, got.Run.Status)
	require.Equal(t, uint64(math.MaxUint64), got.Run.Seed)
	require.False(t, got.Run.Ended.Before(got.Run.Started))
	require.Empty(t, got.Problems)
	require.Equal(t, Summarize(got.Run, got.Samples), got.Summary, "the stored summary is the computed one")
	require.ErrorContains(t, r.Add(exact), "closed")
	left, err := filepath.Glob(filepath.Join(r.Dir(), "*.tmp"))
	require.NoError(t, err)
	require.Empty(t, left)
}

func TestInterruptedRunKeepsWhatItHad(t *testing.T) {
	r := create(t)
	require.NoError(t, r.Add(sample("bare", 1, 1), sample("bare", 2, 3)))
	// What a SIGKILL leaves: no Close, and half a line.
	file := filepath.Join(r.Dir(), samplesFile)
	f, err := os.OpenFile(file, os.O_APPEND|os.O_WRONLY, 0)
	require.NoError(t, err)
	f.WriteString(`{"series":"bare","repetition":3,"val`)
	require.NoError(t, f.Close())
	got, err := Load(r.Dir())
	require.NoError(t, err)
	require.Equal(t, Running, got.Run.Status)
	require.Len(t, got.Samples, 2)
	require.Equal(t, 2.0, *got.Summary.Stats[0].Median)
	require.Len(t, got.Problems, 1)
	require.Contains(t, got.Problems[0], "samples.jsonl:3")
}

func TestLoadRefusesWhatItDoesNotKnow(t *testing.T) {
	good := `{"series":"a","repetition":1,"metric":"m","value":1,"unit":"s","status":"ok","time":"2026-03-04T12:00:00Z"}`
	for name, c := range map[string]struct{ file, was, is, says string }{
		"unknown field":     {samplesFile, `"unit"`, `"unti"`, `samples.jsonl:2: json: unknown field "unti"`},
		"unknown status":    {samplesFile, `"ok"`, `"fine"`, `samples.jsonl:2: status "fine"`},
		"no value":          {samplesFile, `"value":1`, `"value":null`, `samples.jsonl:2: "value" is missing`},
		"out of range":      {samplesFile, `"value":1`, `"value":1e999`, "samples.jsonl:2: json: cannot unmarshal number 1e999"},
		"torn in between":   {samplesFile, `"value":1,`, "\n", "samples.jsonl:2: unexpected end"},
		"blank line":        {samplesFile, "{", "\n{", "samples.jsonl:2: unexpected end"},
		"unit changes":      {samplesFile, `"unit":"s"`, `"unit":"ms"`, `samples.jsonl:2: metric m is in "ms", but was in "s"`},
		"twice":             {samplesFile, `"repetition":2`, `"repetition":1`, `samples.jsonl:2: repetition 1 of series "a" has metric m twice`},
		"log outside":       {samplesFile, `"unit"`, `"log":"../../etc/passwd","unit"`, "samples.jsonl:2: log"},
		"failed, no reason": {samplesFile, `"ok"`, `"failed"`, "samples.jsonl:2: a failed sample without a reason"},
		"unknown run field": {runFile, `"seed"`, `"sead"`, `run.json:9: json: unknown field "sead"`},
		"wrong type":        {runFile, `"seed": 5`, `"seed": "5"`, "run.json:9: json: cannot unmarshal string"},
		"newer format":      {runFile, `"format": 1`, `"format": 2`, "format 2 is not known"},
		"run status":        {runFile, `"ok"`, `"great"`, `status "great" is not known`},
		"summary":           {summaryFile, `"stats"`, `"statz"`, `summary.json:6: json: unknown field "statz"`},
	} {
		t.Run(name, func(t *testing.T) {
			r := create(t)
			require.NoError(t, r.Close(OK))
			second := strings.Replace(good, `"repetition":1`, `"repetition":2`, 1)
			if c.file == samplesFile {
				require.Contains(t, second, c.was)
				second = strings.Replace(second, c.was, c.is, 1)
			}
			require.NoError(t, os.WriteFile(filepath.Join(r.Dir(), samplesFile), []byte(good+"\n"+second+"\n"), 0o644))
			if c.file != samplesFile {
				file := filepath.Join(r.Dir(), c.file)
				data, err := os.ReadFile(file)
				require.NoError(t, err)
				require.Contains(t, string(data), c.was)
				require.NoError(t, os.WriteFile(file, bytes.Replace(data, []byte(c.was), []byte(c.is), 1), 0o644))
			}
			_, err := Load(r.Dir())
			require.ErrorContains(t, err, c.says)
		})
	}
	_, err := Load(t.TempDir())
	require.ErrorContains(t, err, "is not a run directory")
}

func TestAddKeepsAllOrNone(t *testing.T) {
	r := create(t)
	for says, bad := range map[string]Sample{
		"not a finite number":   sample("a", 2, math.NaN()),
		"finite":                sample("a", 2, math.Inf(-1)),
		"no series":             sample("", 2, 1),
		"count from 1":          sample("a", 0, 1),
		"twice":                 sample("a", 1, 1),
		"without a metric":      {Series: "a", Repetition: 2, Status: OK},
		"status \"\"":           {Series: "a", Repetition: 2, Metric: "m"},
		"is not inside the run": {Series: "a", Repetition: 2, Status: Failed, Reason: "r", Log: "/etc/passwd"},
	} {
		require.ErrorContains(t, r.Add(sample("a", 1, 1), bad), says)
	}
	require.NoError(t, r.Add(sample("a", 1, 1)), "what was refused left no trace")
	warm := sample("a", 1, 9)
	warm.Warmup = true
	require.NoError(t, r.Add(warm), "warm-ups count for themselves")
	require.ErrorContains(t, r.Add(Sample{Series: "a", Repetition: 1, Status: Failed, Reason: "late"}), "good metrics and is failed")
	got, err := Load(r.Dir())
	require.NoError(t, err)
	require.Len(t, got.Samples, 2)
}

func TestNamesStayInside(t *testing.T) {
	for _, bad := range []string{"", ".", "..", "a/b", "../x", ".hidden", "a b", "a\n"} {
		_, err := Create(t.TempDir(), bad, "lammps", Run{})
		require.ErrorContains(t, err, "stack name", "%q", bad)
	}
	r := create(t)
	for _, bad := range []string{"", ".", "../run.json", "/etc/x", "a/../b", "a//b"} {
		_, err := r.Log(bad, nil)
		require.Error(t, err, "%q", bad)
	}
	outside := t.TempDir()
	require.NoError(t, os.Symlink(outside, filepath.Join(r.Dir(), logDir, "link")))
	_, err := r.Log("link/x", []byte("x"))
	require.Error(t, err, "links out of the run directory are not followed")
}

func TestManyRunsAndWritersAtOnce(t *testing.T) {
	root := t.TempDir()
	var mu sync.Mutex
	dirs := map[string]bool{}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			r, err := Create(root, "s", "lammps", Run{})
			if err != nil {
				t.Error(err)
				return
			}
			var writers sync.WaitGroup
			for rep := range 4 {
				writers.Go(func() {
					if err := r.Add(sample("a", rep+1, 1)); err != nil {
						t.Error(err)
					}
					r.Update(func(run *Run) { run.Notes = append(run.Notes, fmt.Sprint(rep)) })
				})
			}
			writers.Wait()
			if err := r.Close(OK); err != nil {
				t.Error(err)
			}
			mu.Lock()
			defer mu.Unlock()
			dirs[r.Dir()] = true
		})
	}
	wg.Wait()
	require.Len(t, dirs, 8)
	for dir := range dirs {
		got, err := Load(dir)
		require.NoError(t, err)
		require.Len(t, got.Samples, 4)
		require.Len(t, got.Run.Notes, 4)
	}
}

// mixed is two series with a warm-up, an outlier, a failed metric, a repetition that failed as a whole, and parts.
func mixed() []Sample {
	var all []Sample
	for i, v := range []float64{12.31, 12.29, 12.40, 12.35, 19.8} {
		all = append(all, sample("bare", i+1, v), sample("singularity", i+1, v*1.02))
		part := sample("bare", i+1, v*0.8)
		part.Metric = "loop time/Pair"
		all = append(all, part)
	}
	warm := sample("bare", 1, 50)
	warm.Warmup = true
	lost := sample("bare", 6, 0)
	lost.Status, lost.Reason = Failed, "no loop time"
	return append(all, warm, lost,
		Sample{Series: "singularity", Repetition: 6, Status: Failed, Reason: "exit status 1"},
		Sample{Series: "usernetes", Repetition: 1, Status: Failed, Reason: "image not found\x1b[31m"})
}

func TestSummarize(t *testing.T) {
	s := Summarize(Run{Seed: 5}, mixed())
	require.Len(t, s.Stats, 4)
	bare := s.Stats[0]
	require.Equal(t, []int{5, 1, 1}, []int{bare.N, bare.Failed, bare.Warmups})
	require.Equal(t, 12.35, *bare.Median)
	require.Equal(t, 19.8, *bare.Max, "an outlier stays, a warm-up does not")
	require.InDelta(t, 13.83, *bare.Mean, 1e-12)
	require.InDelta(t, *bare.SD / *bare.Mean, *bare.CV, 1e-15)
	require.Equal(t, 1, s.Stats[1].Failed, "a whole repetition's failure counts in every metric")
	require.Equal(t, "usernetes", s.Stats[3].Series)
	require.Nil(t, s.Stats[3].Median)
	require.NotEmpty(t, s.Stats[3].Reason)
	require.Len(t, s.Ratios, 1)
	require.InDelta(t, 1.02, *s.Ratios[0].Ratio, 1e-12)
	require.Equal(t, "bare", s.Ratios[0].Baseline)

	empty := Summarize(Run{}, nil)
	data, err := json.Marshal(empty)
	require.NoError(t, err)
	require.Contains(t, string(data), `"stats":[],"ratios":[]`)
}

func TestTable(t *testing.T) {
	var b bytes.Buffer
	require.NoError(t, Summarize(Run{Seed: 5}, mixed()).Table(&b))
	require.NotContains(t, b.String(), "\x1b", "no escape reaches the terminal")
	for line := range strings.Lines(b.String()) {
		require.Equal(t, strings.TrimRight(line, " \n"), strings.TrimSuffix(line, "\n"))
	}
	golden := filepath.Join("testdata", "table.golden")
	if *update {
		require.NoError(t, os.MkdirAll("testdata", 0o755))
		require.NoError(t, os.WriteFile(golden, b.Bytes(), 0o644))
	}
	want, err := os.ReadFile(golden)
	require.NoError(t, err)
	require.Equal(t, string(want), b.String())
}

func TestDecimals(t *testing.T) {
	for _, c := range []struct {
		values []float64
		want   string
	}{
		{[]float64{12.3456}, "12.35"},
		{[]float64{82.1, 82.3}, "82.20"},
		{[]float64{1245184, 1245184}, "1245184"},
		{[]float64{0.000123, 0.000125}, "0.0001240"},
		{[]float64{0, 0}, "0.000"},
		{[]float64{100, 100.0000001}, "100.000"},
	} {
		var g Group
		for i, v := range c.values {
			g.Samples = append(g.Samples, sample("a", i+1, v))
		}
		st := g.Stat(1)
		require.Equal(t, c.want, FormatValue(st.Median, st.Decimals()))
	}
}

// FuzzLoadSamples: no line crashes the reader, and what it accepts is finite and can be written again.
func FuzzLoadSamples(f *testing.F) {
	for _, s := range mixed() {
		line, err := json.Marshal(s)
		require.NoError(f, err)
		f.Add(append(line, '\n'))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		file := filepath.Join(t.TempDir(), samplesFile)
		require.NoError(t, os.WriteFile(file, data, 0o600))
		var r Result
		if r.loadSamples(file) != nil {
			return
		}
		for _, s := range r.Samples {
			require.NoError(t, s.check())
			_, err := json.Marshal(s)
			require.NoError(t, err)
		}
	})
}
