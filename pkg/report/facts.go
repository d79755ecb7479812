package report

import (
	"bytes"
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/bedfellow/bedfellow/pkg/results"
)

// warnings are what a reader must know before the figures: notes, runs that did not end well, failures with their reasons, and
// runs that are not alike.
func warnings(runs []*results.Result, names []string, samples []results.Sample) []string {
	var all []string
	for i, r := range runs {
		prefix := ""
		if len(runs) > 1 {
			prefix = names[i] + ": "
		}
		for _, note := range r.Run.Notes {
			all = append(all, prefix+note)
		}
		switch r.Run.Status {
		case results.OK:
		case results.Running:
			all = append(all, prefix+"the run was still going on, or was killed, when this page was made")
		default:
			all = append(all, prefix+"the run ended as "+string(r.Run.Status))
		}
		for _, p := range r.Problems {
			all = append(all, prefix+p)
		}
	}
	all = append(all, failures(samples)...)
	if len(samples) == 0 {
		all = append(all, "nothing was measured")
	}
	return append(all, differences(runs)...)
}

// failures names every failed repetition once, those of a series with one reason together.
func failures(samples []results.Sample) []string {
	type why struct{ series, reason string }
	var order []why
	which := map[why][]string{}
	for _, s := range samples {
		if s.Status != results.Failed {
			continue
		}
		k := why{s.Series, s.Reason}
		name := strconv.Itoa(s.Repetition)
		if s.Warmup {
			name = "warm-up " + name
		}
		if p := results.FormatParameters(s.Parameters); p != "" {
			name += " (" + p + ")"
		}
		if s.Log != "" {
			name += " (" + s.Log + ")"
		}
		if which[k] == nil {
			order = append(order, k)
		}
		if !slices.Contains(which[k], name) {
			which[k] = append(which[k], name)
		}
	}
	var all []string
	for _, k := range order {
		what := "repetition"
		if len(which[k]) > 1 {
			what += "s"
		}
		all = append(all, fmt.Sprintf("%s: %s %s failed: %s", k.series, what, shorten(which[k], 8), k.reason))
	}
	return all
}

// differences says in which parameters runs are not alike, for then a ratio compares more than the beds.
func differences(runs []*results.Result) []string {
	values := map[string][]string{}
	for _, r := range runs {
		for k := range r.Run.Parameters {
			values[k] = nil
		}
	}
	for k := range values {
		for _, r := range runs {
			v, ok := r.Run.Parameters[k]
			if !ok {
				v = "unset"
			}
			if !slices.Contains(values[k], v) {
				values[k] = append(values[k], v)
			}
		}
	}
	var all []string
	for _, k := range sortedKeys(values) {
		if len(values[k]) > 1 {
			all = append(all, fmt.Sprintf("the runs differ in %s: %s", k, strings.Join(values[k], ", ")))
		}
	}
	return all
}

// facts is the table of what was run, a column for each run.
type facts struct {
	Runs []string
	Rows []factRow
}

type factRow struct {
	Name  string
	Cells []string
}

func newFacts(runs []*results.Result, names []string) facts {
	f := facts{Runs: names}
	add := func(name string, of func(results.Run) string) {
		row := factRow{Name: name}
		for _, r := range runs {
			row.Cells = append(row.Cells, of(r.Run))
		}
		if strings.Join(row.Cells, "") != "" {
			f.Rows = append(f.Rows, row)
		}
	}
	add("Bed", func(r results.Run) string { return r.Stack })
	add("Driver", func(r results.Run) string { return r.Bed.Driver })
	add("Nodes", func(r results.Run) string {
		if len(r.Nodes) == 0 {
			return ""
		}
		return strconv.Itoa(len(r.Nodes))
	})
	add("Workload manager", func(r results.Run) string { return r.Bed.WorkloadManager })
	add("Kubernetes", func(r results.Run) string { return r.Bed.Kubernetes })
	add("Kubernetes' network", func(r results.Run) string { return r.Bed.KubernetesNetwork })
	add("Network", func(r results.Run) string { return r.Bed.Network })
	add("Image", func(r results.Run) string { return r.Bed.Image })
	add("Image digest", func(r results.Run) string { return r.Bed.ImageDigest })
	add("Started", func(r results.Run) string { return stamp(r.Started) })
	add("Took", func(r results.Run) string {
		if r.Ended == nil {
			return ""
		}
		return r.Ended.Sub(r.Started).Round(time.Second).String()
	})
	add("Ended as", func(r results.Run) string { return string(r.Status) })
	add("Seed", func(r results.Run) string { return strconv.FormatUint(r.Seed, 10) })
	for _, of := range []struct {
		name string
		get  func(results.Run) map[string]string
	}{
		{"Parameter ", func(r results.Run) map[string]string { return r.Parameters }},
		{"Version of ", func(r results.Run) map[string]string { return r.Versions }},
		{"Digest of ", func(r results.Run) map[string]string { return r.Digests }},
	} {
		keys := map[string]bool{}
		for _, r := range runs {
			for k := range of.get(r.Run) {
				keys[k] = true
			}
		}
		for _, k := range sortedKeys(keys) {
			add(of.name+k, func(r results.Run) string { return of.get(r)[k] })
		}
	}
	for i := range runs {
		if i == 0 {
			f.Rows = append(f.Rows, factRow{Name: "Directory"})
		}
		last := &f.Rows[len(f.Rows)-1]
		last.Cells = append(last.Cells, filepath.ToSlash(runs[i].Dir))
	}
	return f
}

// nodeRow is a line of the table of nodes: those of a run that are alike in all but their name and their place on the host.
type nodeRow struct {
	Run, Names, Role, CPUs, HostCPUs, Memory, OS, Kernel, CPUModel string
}

func nodeRows(runs []*results.Result, runNames []string) []nodeRow {
	var rows []nodeRow
	for i, r := range runs {
		var order []results.Node
		names, host := map[results.Node][]string{}, map[results.Node][]string{}
		for _, n := range r.Run.Nodes {
			alike := n
			alike.Name, alike.HostCPUs = "", ""
			if names[alike] == nil {
				order = append(order, alike)
			}
			names[alike] = append(names[alike], n.Name)
			if n.HostCPUs != "" && !slices.Contains(host[alike], n.HostCPUs) {
				host[alike] = append(host[alike], n.HostCPUs)
			}
		}
		for _, n := range order {
			row := nodeRow{Run: runNames[i], Names: shorten(names[n], 8), Role: n.Role, HostCPUs: shorten(host[n], 8), OS: n.OS,
				Kernel: n.Kernel, CPUModel: n.CPUModel}
			if n.CPUs > 0 {
				row.CPUs = strconv.Itoa(n.CPUs)
			}
			if n.Memory > 0 {
				row.Memory = fmt.Sprintf("%.1f GiB", float64(n.Memory)/(1<<30))
			}
			rows = append(rows, row)
		}
	}
	return rows
}

// placeRow is where the ranks of one repetition ran.
type placeRow struct {
	Label, Repetition, Ranks string
}

func placeRows(runs []*results.Result, runNames []string) []placeRow {
	type at struct {
		series string
		warmup bool
		rep    int
	}
	var rows []placeRow
	for i, r := range runs {
		var order []at
		nodes := map[at][]string{}
		ranks := map[at]map[string][]string{}
		for _, k := range r.Run.Ranks {
			a := at{k.Series, k.Warmup, k.Repetition}
			if ranks[a] == nil {
				order = append(order, a)
				ranks[a] = map[string][]string{}
			}
			if !slices.Contains(nodes[a], k.Node) {
				nodes[a] = append(nodes[a], k.Node)
			}
			text := strconv.Itoa(k.Rank)
			if k.PID != 0 {
				text += " (pid " + strconv.Itoa(k.PID) + ")"
			}
			ranks[a][k.Node] = append(ranks[a][k.Node], text)
		}
		for _, a := range order {
			row := placeRow{Label: a.series, Repetition: strconv.Itoa(a.rep)}
			if len(runs) > 1 {
				row.Label += " · " + runNames[i]
			}
			if a.warmup {
				row.Repetition = "warm-up " + row.Repetition
			}
			var parts []string
			for _, n := range nodes[a] {
				parts = append(parts, n+": "+strings.Join(ranks[a][n], ", "))
			}
			row.Ranks = strings.Join(parts, "; ")
			rows = append(rows, row)
		}
	}
	return rows
}

// spec is a bed's specification, indented.
type spec struct{ Run, Text string }

func specs(runs []*results.Result, names []string) []spec {
	var all []spec
	for i, r := range runs {
		if len(r.Run.Spec) == 0 {
			continue
		}
		var b bytes.Buffer
		if json.Indent(&b, r.Run.Spec, "", "  ") != nil {
			b.Reset()
			b.Write(r.Run.Spec)
		}
		all = append(all, spec{names[i], b.String()})
	}
	return all
}

// shorten joins up to n strings and says how many there are when there are more.
func shorten(all []string, n int) string {
	if len(all) <= n {
		return strings.Join(all, ", ")
	}
	return fmt.Sprintf("%s … (%d in all)", strings.Join(all[:n], ", "), len(all))
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
