// Package scenario is what scenarios are made of: their description, their parameters and what they get to run with.
package scenario

import (
	"context"
	"fmt"
	"io"
	"path"
	"strings"
	"time"

	"github.com/bedfellow/bedfellow/pkg/bed"
	"github.com/bedfellow/bedfellow/pkg/progress"
	"github.com/bedfellow/bedfellow/pkg/remote"
	"github.com/bedfellow/bedfellow/pkg/results"
	"github.com/bedfellow/bedfellow/scenarios/wlm"
)

// Scenario is an experiment on a bed.
type Scenario struct {
	Name       string // one word, as in `bed run NAME`
	Summary    string // one line
	Parameters []Parameter
	Repeats    int // when nobody says how many; 0 is DefaultRepeats
	// Run measures. What it recorded counts, also when it fails; a *FailedError says that some repetitions did. When the context
	// ends it returns soon, with nothing of its own left on any node.
	Run func(ctx context.Context, env *Env) error
	// Table writes what was measured for a terminal; nil is the summary's own table.
	Table func(w io.Writer, samples []results.Sample) error
}

// DefaultRepeats are the measured repetitions of most scenarios.
const DefaultRepeats = 5

// Env is what a scenario gets to run with.
type Env struct {
	Scenario  string
	Inventory bed.Inventory
	Nodes     *Nodes
	Manager   wlm.Manager
	Params    Values // checked, defaults included
	Repeats   int    // measured repetitions of each series
	Seed      uint64 // of whatever the scenario chooses at random
	Record    *results.Recorder
}

// As is the run as another user of the nodes, whom the bed's own key lets in.
func (e *Env) As(user string) (*Env, error) {
	other := *e
	other.Inventory.User, other.Nodes = user, e.Nodes.As(user)
	var err error
	other.Manager, err = wlm.Open(other.Inventory, other.Nodes)
	return &other, err
}

// Note keeps a warning with the run and shows it.
func (e *Env) Note(ctx context.Context, format string, args ...any) error {
	note := fmt.Sprintf(format, args...)
	progress.Note(ctx, "%s", note)
	return e.Record.Update(func(r *results.Run) { r.Notes = append(r.Notes, note) })
}

// Series is a number of repetitions that differ in nothing.
type Series struct {
	Name       string
	Parameters map[string]string // as in results.Sample
	Warmups    int               // run first, recorded as such
}

// Repetition is one of a series.
type Repetition struct {
	Number int // from 1; warm-ups count for themselves
	Warmup bool
}

// String names the repetition, for files too: 3 or warmup-1.
func (r Repetition) String() string {
	if r.Warmup {
		return fmt.Sprintf("warmup-%d", r.Number)
	}
	return fmt.Sprint(r.Number)
}

// Measured is what a repetition yields.
type Measured struct {
	Metrics []Metric
	Ranks   []results.Rank // Series, Repetition and Warmup are filled in
	Log     string         // as Recorder.Log returned it
}

// Metric is one figure.
type Metric struct {
	Name  string
	Value float64
	Unit  string
}

// FailedError says that some of a run's repetitions failed. The others were measured.
type FailedError struct {
	Failed, Of int
	Name       string // of the first that failed: warmup-1
	First      error  // its reason
	Log        string // its log, a path; may be empty
}

func (e *FailedError) Error() string {
	s := fmt.Sprintf("%d of %d repetitions failed; the first, %s: %s", e.Failed, e.Of, e.Name, e.First)
	if e.Log != "" {
		s += "; see " + e.Log
	}
	return s
}

func (e *FailedError) Unwrap() error { return e.First }

// Repeat calls measure for every warm-up and then every repetition of a series, one after the other, each a progress step, and
// records each at once. One that fails is recorded with its reason, and the rest go on; the result is then a *FailedError. When
// the context ends, the repetition under way is not recorded.
func (e *Env) Repeat(ctx context.Context, s Series, measure func(context.Context, Repetition) (Measured, error)) error {
	return e.Interleave(ctx, []Series{s}, func(ctx context.Context, _ Series, r Repetition) (Measured, error) { return measure(ctx, r) })
}

// Interleave is Repeat for several series in turn, so that what changes on the bed meanwhile changes for all.
func (e *Env) Interleave(ctx context.Context, series []Series, measure func(context.Context, Series, Repetition) (Measured, error)) error {
	failed := &FailedError{}
	most := 0
	for _, s := range series {
		failed.Of += s.Warmups + e.Repeats
		most = max(most, s.Warmups+e.Repeats)
	}
	for i := range most {
		for _, s := range series {
			if i >= s.Warmups+e.Repeats {
				continue
			}
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			r, title := Repetition{Number: i + 1, Warmup: true}, fmt.Sprintf("%s %s warm-up %d/%d", e.Scenario, s.Name, i+1, s.Warmups)
			if i >= s.Warmups {
				r = Repetition{Number: i + 1 - s.Warmups}
				title = fmt.Sprintf("%s %s %d/%d", e.Scenario, s.Name, r.Number, e.Repeats)
			}
			step := progress.Start(ctx, "%s", title)
			m, err := measure(ctx, s, r)
			if err != nil && ctx.Err() != nil {
				return step.End(err)
			}
			if errRecord := e.record(s, r, m, err); errRecord != nil {
				return step.End(errRecord)
			}
			detail := ""
			if len(m.Metrics) > 0 {
				detail = fmt.Sprintf("%s %.6g %s", m.Metrics[0].Name, m.Metrics[0].Value, m.Metrics[0].Unit)
			}
			step.EndWith(detail, err)
			if err != nil {
				failed.add(s, r, err, e.kept(m.Log), len(series) > 1)
			}
		}
	}
	if failed.Failed > 0 {
		return failed
	}
	return nil
}

// kept is the path of a log, which may be none.
func (e *Env) kept(log string) string {
	if log == "" {
		return ""
	}
	return path.Join(e.Record.Dir(), log)
}

// add counts a repetition that failed, and describes the first.
func (e *FailedError) add(s Series, r Repetition, reason error, log string, several bool) {
	if e.Failed++; e.Failed > 1 {
		return
	}
	e.Name, e.First, e.Log = r.String(), reason, log
	if several {
		e.Name += " of " + s.Name
	}
}

func (e *Env) record(s Series, r Repetition, m Measured, failure error) error {
	if len(m.Ranks) > 0 {
		for i := range m.Ranks {
			m.Ranks[i].Series, m.Ranks[i].Repetition, m.Ranks[i].Warmup = s.Name, r.Number, r.Warmup
		}
		if err := e.Record.Update(func(run *results.Run) { run.Ranks = append(run.Ranks, m.Ranks...) }); err != nil {
			return err
		}
	}
	sample := results.Sample{Series: s.Name, Parameters: s.Parameters, Repetition: r.Number, Warmup: r.Warmup, Log: m.Log, Status: results.OK}
	if failure != nil {
		sample.Status, sample.Reason = results.Failed, failure.Error()
		return e.Record.Add(sample)
	}
	var samples []results.Sample
	for _, metric := range m.Metrics {
		sample.Metric, sample.Value, sample.Unit = metric.Name, metric.Value, metric.Unit
		samples = append(samples, sample)
	}
	return e.Record.Add(samples...)
}

// Scratch makes an empty directory of one path on each of the nodes, for this run alone, and for the part of it that is called so if it has
// several at a time. remove deletes it with all that is in it, also when the context has ended; what it cannot delete is named in the run's notes.
func (e *Env) Scratch(ctx context.Context, nodes []string, part string) (dir string, remove func(), err error) {
	// The run's id has a random part, and mkdir takes nothing that is there already.
	dir = "/tmp/bedfellow-" + path.Base(e.Record.Dir()) + part
	remove = func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanUp)
		defer cancel()
		_ = remote.Each(ctx, nodes, fanOut, func(ctx context.Context, _ int, node string) error {
			if _, err := e.Nodes.Run(ctx, node, "rm -rf -- "+remote.Quote(dir)); err != nil {
				return e.Note(ctx, "%s is left on node %s: %v", dir, node, err)
			}
			return nil
		})
	}
	err = remote.Each(ctx, nodes, fanOut, func(ctx context.Context, _ int, node string) error {
		_, err := e.Nodes.Run(ctx, node, "mkdir -m 0700 -- "+remote.Quote(dir))
		return err
	})
	if err != nil {
		remove()
		return "", nil, fmt.Errorf("make a directory for the run: %w", err)
	}
	return dir, remove, nil
}

const (
	fanOut  = 32               // nodes talked to at once
	cleanUp = 30 * time.Second // for removing what a run left
)

// Put writes a file of the run to each of the nodes.
func (e *Env) Put(ctx context.Context, nodes []string, file string, data []byte, mode uint32) error {
	return remote.Each(ctx, nodes, fanOut, func(ctx context.Context, _ int, node string) error {
		client, err := e.Nodes.Client(ctx, node)
		if err == nil {
			err = client.Write(ctx, file, data, mode)
		}
		if err != nil {
			return fmt.Errorf("write %s on node %s: %w", file, node, err)
		}
		return nil
	})
}

// OnEach runs a shell command on each of the nodes and returns what each printed, without space around it, in the nodes' order.
func (e *Env) OnEach(ctx context.Context, nodes []string, command string) ([]string, error) {
	out := make([]string, len(nodes))
	err := remote.Each(ctx, nodes, fanOut, func(ctx context.Context, i int, node string) error {
		r, err := e.Nodes.Run(ctx, node, command)
		out[i] = strings.TrimSpace(string(r.Stdout))
		return err
	})
	return out, err
}
