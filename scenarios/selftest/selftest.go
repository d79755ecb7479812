// Package selftest looks whether a bed's nodes have what experiments with Kubernetes and HPC side by side need of them.
package selftest

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/bedfellow/bedfellow/pkg/bed"
	"github.com/bedfellow/bedfellow/pkg/progress"
	"github.com/bedfellow/bedfellow/pkg/remote"
	"github.com/bedfellow/bedfellow/pkg/results"
	"github.com/bedfellow/bedfellow/scenarios/scenario"
	"github.com/bedfellow/bedfellow/scenarios/wlm"
)

//go:embed selftest.sh
var script string

// Limits of a look at one node; an emulated one needs most of it.
const (
	lookTimeout = 10 * time.Minute
	jobLimit    = 2 * time.Minute
	maxSkew     = 5 * time.Second // of the clocks, the time for asking aside: munge would refuse more than minutes
)

// The properties that every node must have. Of a node on the host's kernel no more is asked, for the host has it or not.
var everywhere = slices.Concat([]string{"host name", "siblings reached by name", "clock", runsAJob}, ofFlux, ofKubernetes)

const runsAJob = "runs a job"

// Scenario looks at every node once.
func Scenario() scenario.Scenario {
	return scenario.Scenario{
		Name: "selftest", Summary: "has every node what rootless Kubernetes and jobs beside it need? A line per property and node",
		Repeats: 1, Run: run, Table: table,
	}
}

// finding is what was seen of one property.
type finding struct {
	property string
	ok       bool
	seen     string
}

func run(ctx context.Context, env *scenario.Env) error {
	for r := range env.Repeats {
		if err := look(ctx, env, r+1); err != nil {
			return err
		}
	}
	return nil
}

func look(ctx context.Context, env *scenario.Env, repetition int) error {
	nodes := env.Inventory.Nodes
	found := make([][]finding, len(nodes))
	step := progress.Start(ctx, "look at %d nodes from the inside", len(nodes))
	err := remote.Each(ctx, nodes, 32, func(ctx context.Context, i int, n bed.InventoryNode) (err error) {
		found[i], err = ask(ctx, env, n)
		return err
	})
	if step.End(err) != nil {
		return err
	}
	jobs, err := runsJobs(ctx, env)
	if err != nil {
		return err
	}
	for i, n := range nodes {
		if seen, computes := jobs[n.Name]; computes {
			found[i] = append(found[i], seen)
		}
	}
	return keep(env, repetition, found)
}

// keep records what was found on each of the bed's nodes. What does not hold is a failure, unless it is as the host has it.
func keep(env *scenario.Env, repetition int, found [][]finding) error {
	failed := &scenario.FailedError{Name: fmt.Sprint(repetition)}
	for i, n := range env.Inventory.Nodes {
		for _, f := range found[i] {
			s := results.Sample{
				Series: f.property, Parameters: map[string]string{"node": n.Name}, Repetition: repetition, Metric: "holds", Status: results.OK, Value: 1, Reason: f.seen,
			}
			switch {
			case f.ok:
			case env.Inventory.SharedKernel && !slices.Contains(everywhere, f.property):
				s.Value = 0 // as the host is
			default:
				s.Status, s.Value = results.Failed, 0
				if failed.Failed++; failed.First == nil {
					failed.First = fmt.Errorf("node %s: %s: %s", n.Name, f.property, f.seen)
				}
			}
			failed.Of++
			if err := env.Record.Add(s); err != nil {
				return err
			}
		}
	}
	if failed.Failed > 0 {
		return failed
	}
	return nil
}

// ask runs the script on a node and reads what it says.
func ask(ctx context.Context, env *scenario.Env, n bed.InventoryNode) ([]finding, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, lookTimeout, fmt.Errorf("it took longer than %s", lookTimeout))
	defer cancel()
	command := "bash -s -- " + remote.Quote(n.Name) + " " + remote.Quote(env.Inventory.User)
	for _, other := range env.Inventory.Nodes {
		if other.Name != n.Name {
			command += " " + remote.Quote(other.Name)
		}
	}
	before := time.Now()
	r, err := env.Nodes.Feed(ctx, n.Name, command, []byte(script))
	if err != nil {
		return nil, fmt.Errorf("look at node %s: %w", n.Name, err)
	}
	found, err := parse(string(r.Stdout))
	if err != nil {
		return nil, fmt.Errorf("look at node %s: %w", n.Name, err)
	}
	for i := range found {
		if found[i].property == "clock" {
			if found[i], err = clock(found[i].seen, before, time.Now()); err != nil {
				return nil, fmt.Errorf("node %s: %w", n.Name, err)
			}
		}
	}
	return found, nil
}

// parse reads the script's lines.
func parse(text string) ([]finding, error) {
	var found []finding
	for line := range strings.Lines(text) {
		f := strings.Split(strings.TrimSuffix(line, "\n"), "\t")
		if len(f) != 3 || f[0] == "" || f[1] != "ok" && f[1] != "no" {
			return nil, fmt.Errorf("it said %q, which is no finding", line)
		}
		found = append(found, finding{property: f[0], ok: f[1] == "ok", seen: f[2]})
	}
	if len(found) == 0 {
		return nil, errors.New("it said nothing")
	}
	return found, nil
}

// clock compares a node's clock, in seconds since 1970, with ours before and after the question.
func clock(seen string, before, after time.Time) (finding, error) {
	seconds, err := strconv.ParseInt(seen, 10, 64)
	if err != nil {
		return finding{}, fmt.Errorf("its clock shows %q: %w", seen, err)
	}
	at := time.Unix(seconds, 0)
	skew := max(before.Sub(at.Add(time.Second)), at.Sub(after), 0).Round(time.Second)
	return finding{property: "clock", ok: skew <= maxSkew, seen: fmt.Sprintf("%s from this host's", skew)}, nil
}

// runsJobs has every compute node run a job of its own, and tells which did.
func runsJobs(ctx context.Context, env *scenario.Env) (map[string]finding, error) {
	var names []string
	for _, n := range env.Inventory.Nodes {
		if n.Role == bed.Compute {
			names = append(names, n.Name)
		}
	}
	dir, remove, err := env.Scratch(ctx, names, "")
	if err != nil {
		return nil, err
	}
	defer remove()
	step := progress.Start(ctx, "a job on each of %d nodes", len(names))
	found := make([]finding, len(names))
	err = remote.Each(ctx, names, 32, func(ctx context.Context, i int, name string) error {
		output := path.Join(dir, "out")
		id, err := env.Manager.Submit(ctx, wlm.Job{
			Name: "selftest", Task: wlm.Task{Command: []string{"uname", "-n"}, Dir: "/", Ranks: 1}, Request: wlm.Request{On: []string{name}, Limit: jobLimit}, Output: output,
		})
		if err == nil {
			var o wlm.Outcome
			if o, err = env.Manager.Wait(ctx, id); err == nil {
				err = o.Err()
			}
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		found[i] = finding{property: runsAJob}
		if err != nil {
			found[i].seen = err.Error()
			return nil
		}
		r, err := env.Nodes.Run(ctx, name, "cat "+remote.Quote(output))
		if err != nil {
			return err
		}
		on := strings.TrimSpace(string(r.Stdout))
		found[i].ok, found[i].seen = on == name, "it ran on "+on
		return nil
	})
	if step.End(err) != nil {
		return nil, err
	}
	jobs := map[string]finding{}
	for i, name := range names {
		jobs[name] = found[i]
	}
	return jobs, nil
}

// table prints a line per property and node.
func table(w io.Writer, samples []results.Sample) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "NODE\tPROPERTY\tHOLDS\tSEEN")
	for _, s := range samples {
		holds := "yes"
		switch {
		case s.Status != results.OK:
			holds = "NO"
		case s.Value == 0:
			holds = "no, as the host"
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", s.Parameters["node"], s.Series, holds, firstLine(s.Reason))
	}
	return t.Flush()
}

func firstLine(text string) string {
	line, rest, _ := strings.Cut(strings.TrimSpace(text), "\n")
	if rest != "" {
		line += " …"
	}
	return line
}
