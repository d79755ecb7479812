// Package report draws runs as one HTML page that a person wants to look at: every repetition a dot, medians with their
// intervals, ratios, where the time went, and what was run on what.
//
// The page is one file. It needs no network and no script, follows the reader's light or dark scheme, fits a telephone and
// prints.
package report

import (
	"bytes"
	_ "embed"
	"errors"
	"fmt"
	"html/template"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/bedfellow/bedfellow/pkg/results"
)

//go:embed page.html
var pageHTML string

// Options of a report. The zero value is useful.
type Options struct {
	Title    string    // default: the scenario and the stacks
	Baseline string    // the series, as the page labels it, that ratios refer to; default: the run's, or the first
	Now      time.Time // when the page was made; left out when zero
}

// Write draws the runs side by side on one page. Their series become one list: a series keeps its name when only one run is
// given, else it is named after its run too. Runs are compared as they are; the page warns where their parameters differ.
func Write(w io.Writer, runs []*results.Result, opts Options) error {
	p, err := build(runs, opts)
	if err != nil {
		return fmt.Errorf("report: %w", err)
	}
	t, err := template.New("page").Parse(pageHTML)
	if err != nil {
		return fmt.Errorf("report: page template: %w", err)
	}
	var b bytes.Buffer // so that a failure writes no half of a page
	if err := t.Execute(&b, p); err != nil {
		return fmt.Errorf("report: page template: %w", err)
	}
	_, err = w.Write(b.Bytes())
	return err
}

// page is what the template draws.
type page struct {
	Title    string
	Subtitle string
	Now      string
	Warnings []string
	Legend   legend
	Figures  []figure
	Heats    []heat
	Scatter  *scatter
	Ratios   *forest
	Stacks   []stack
	Table    []tableRow
	Facts    facts
	Nodes    []nodeRow
	Places   []placeRow
	Specs    []spec
	Method   string
}

// legend says which marks the page uses.
type legend struct{ Warmup, Failed, Beyond bool }

func build(runs []*results.Result, opts Options) (*page, error) {
	if len(runs) == 0 {
		return nil, errors.New("no runs were given")
	}
	names := runNames(runs)
	samples, err := merge(runs, names)
	if err != nil {
		return nil, err
	}
	baseline := opts.Baseline
	if baseline == "" && len(runs) == 1 {
		baseline = runs[0].Run.Baseline
	}
	if baseline != "" && !slices.ContainsFunc(samples, func(s results.Sample) bool { return s.Series == baseline }) {
		return nil, fmt.Errorf("baseline %q is none of the series: %s", baseline, strings.Join(seriesOf(samples), ", "))
	}
	summary := results.Summarize(results.Run{Seed: runs[0].Run.Seed, Baseline: baseline}, samples)
	groups := results.Groups(samples)
	p := &page{
		Title:    opts.Title,
		Subtitle: subtitle(runs),
		Warnings: warnings(runs, names, samples),
		Facts:    newFacts(runs, names),
		Nodes:    nodeRows(runs, names),
		Places:   placeRows(runs, names),
		Specs:    specs(runs, names),
		Method: fmt.Sprintf("Intervals hold %.0f %% and are percentile bootstraps of the median from %d resamples, seed %d. "+
			"Warm-ups and failed repetitions are in no figure but their own counts.",
			100*summary.Confidence, summary.Resamples, summary.Seed),
	}
	if p.Title == "" {
		p.Title = title(runs)
	}
	if !opts.Now.IsZero() {
		p.Now = stamp(opts.Now)
	}
	labels := results.Labels(summary.Stats)
	looks := assignLooks(summary.Stats, labels)
	p.Heats = heats(summary.Stats)
	many := crowded(p.Heats, summary.Stats)
	if p.Scatter = newScatter(groups, labels, looks); p.Scatter != nil {
		many[measured], many[predicted] = true, true // a plot of both tells more
	}
	p.Figures = figures(groups, summary.Stats, labels, looks, many)
	for _, f := range p.Figures {
		p.Legend.Warmup = p.Legend.Warmup || f.Warmup
		p.Legend.Failed = p.Legend.Failed || f.Failed
		p.Legend.Beyond = p.Legend.Beyond || f.Beyond
	}
	summary.Ratios = slices.DeleteFunc(summary.Ratios, func(r results.Ratio) bool { return many[r.Metric] })
	p.Ratios = newForest(summary, labels, looks)
	p.Stacks = stacks(summary.Stats, labels)
	p.Table = table(summary.Stats, labels)
	return p, nil
}

// runNames gives every run a name that tells it from the others: its stack, with the date where a stack is there twice, with
// the run's id where that does not do.
func runNames(runs []*results.Result) []string {
	names := make([]string, len(runs))
	for _, name := range []func(r results.Run) string{
		func(r results.Run) string { return r.Stack },
		func(r results.Run) string { return r.Stack + " " + r.Started.UTC().Format("2 Jan 2006 15:04") },
		func(r results.Run) string { return r.Stack + " " + r.ID },
	} {
		seen := map[string]bool{}
		for i, r := range runs {
			names[i] = name(r.Run)
			seen[names[i]] = true
		}
		if len(seen) == len(runs) {
			break
		}
	}
	return names
}

// merge puts the samples of all runs into one list, with series that carry their run's name when there are several.
func merge(runs []*results.Result, names []string) ([]results.Sample, error) {
	for i, name := range names {
		if slices.Contains(names[:i], name) {
			return nil, fmt.Errorf("run %s is given twice", name)
		}
		if was, is := runs[0].Run.Scenario, runs[i].Run.Scenario; was != is {
			return nil, fmt.Errorf("%s ran %s, but %s ran %s: only runs of one scenario fit on a page", names[0], was, name, is)
		}
	}
	series := map[string]bool{}
	for _, r := range runs {
		for _, s := range r.Samples {
			series[s.Series] = true
		}
	}
	units := map[string]string{}
	var all []results.Sample
	for i, r := range runs {
		for _, s := range r.Samples {
			if s.Status == results.OK {
				if unit, ok := units[s.Metric]; ok && unit != s.Unit {
					return nil, fmt.Errorf("%s is in %q in one run and in %q in %s: they cannot share an axis", s.Metric, unit, s.Unit, names[i])
				}
				units[s.Metric] = s.Unit
			}
			switch {
			case len(runs) > 1 && len(series) == 1:
				s.Series = names[i]
			case len(runs) > 1:
				s.Series += " · " + names[i]
			}
			all = append(all, s)
		}
	}
	return all, nil
}

func seriesOf(samples []results.Sample) []string {
	var names []string
	for _, s := range samples {
		if !slices.Contains(names, s.Series) {
			names = append(names, s.Series)
		}
	}
	return names
}

func title(runs []*results.Result) string {
	var stacks []string
	for _, r := range runs {
		if !slices.Contains(stacks, r.Run.Stack) {
			stacks = append(stacks, r.Run.Stack)
		}
	}
	return runs[0].Run.Scenario + " on " + strings.Join(stacks, ", ")
}

func subtitle(runs []*results.Result) string {
	first, last := runs[0].Run.Started, runs[0].Run.Started
	nodes := 0
	for _, r := range runs {
		nodes = max(nodes, len(r.Run.Nodes))
		if r.Run.Started.Before(first) {
			first = r.Run.Started
		}
		if r.Run.Started.After(last) {
			last = r.Run.Started
		}
	}
	if len(runs) > 1 && stamp(first) == stamp(last) {
		return fmt.Sprintf("%d runs, %s", len(runs), stamp(first))
	}
	if len(runs) > 1 {
		return fmt.Sprintf("%d runs, %s to %s", len(runs), stamp(first), stamp(last))
	}
	r := runs[0].Run
	parts := []string{stamp(r.Started)}
	if nodes > 0 {
		parts = append(parts, plural(nodes, "node"))
	}
	for _, s := range []string{r.Bed.Driver, r.Bed.Image, r.Bed.WorkloadManager} {
		if s != "" {
			parts = append(parts, s)
		}
	}
	return strings.Join(parts, " · ")
}

func stamp(t time.Time) string { return t.UTC().Format("2 Jan 2006 15:04 UTC") }

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
