package lammps

import (
	"context"
	"errors"
	"fmt"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/bedfellow/bedfellow/pkg/bed"
	"github.com/bedfellow/bedfellow/pkg/remote"
	"github.com/bedfellow/bedfellow/pkg/results"
	"github.com/bedfellow/bedfellow/scenarios/scenario"
	"github.com/bedfellow/bedfellow/scenarios/wlm"
)

// Where playbooks/roles/lammps puts things on every node.
const (
	home    = "/opt/lammps"
	Binary  = home + "/bin/lmp"
	Example = home + "/examples/reaxff/HNS" // the directory to run it in
	input   = "in.reaxff.hns"
)

// The series: with no Kubernetes at work on the nodes, and with one that has nothing to do.
const (
	bare            = "bare"
	besideUsernetes = "bare+usernetes"
)

// Scenario runs the HNS example on bare nodes.
func Scenario() scenario.Scenario {
	whole := scenario.Whole
	return scenario.Scenario{
		Name: "lammps", Summary: "LAMMPS' ReaxFF HNS example across the compute nodes, the benchmark of the talk",
		Parameters: []scenario.Parameter{
			{Name: "x", Doc: "cells of 304 atoms along x", Default: "2", Check: whole(1, 1000)},
			{Name: "y", Doc: "cells along y", Default: "2", Check: whole(1, 1000)},
			{Name: "z", Doc: "cells along z", Default: "2", Check: whole(1, 1000)},
			{Name: "steps", Doc: "time steps of 0.1 fs", Default: "100", Check: whole(1, 100_000_000)},
			{Name: "nodes", Doc: "nodes to run on", Default: "all compute nodes", Check: whole(1, bed.MaxNodes),
				Derive: func(inv bed.Inventory, _ scenario.Values) string { return strconv.Itoa(len(inv.Compute())) },
				Fits:   nodesFit},
			{Name: "ranks", Doc: "MPI ranks in all", Default: "all CPUs of the nodes", Check: whole(1, bed.MaxNodes*bed.MaxCPUs),
				Derive: func(inv bed.Inventory, v scenario.Values) string { return strconv.Itoa(cpus(inv, v.Int("nodes"))) },
				Fits:   ranksFit},
			{Name: "warmups", Doc: "repetitions before the measured ones, recorded but not counted", Default: "1", Check: whole(0, 1000)},
			{Name: "tolerance", Doc: "of the final energy against the first repetition's, relative", Default: "1e-6", Check: scenario.Fraction},
			{Name: "limit", Doc: "of the time of each repetition", Default: "10m", Check: scenario.Length},
			{Name: "usernetes", Doc: "what Kubernetes does meanwhile, which has no pods of ours: up, down, or both in turn", Default: "as the bed has it", Check: scenario.OneOf("up", "down", "both"),
				Derive: func(inv bed.Inventory, _ scenario.Values) string {
					if inv.Kubernetes == bed.OwnKubernetes {
						return "up"
					}
					return "down"
				},
				Fits: usernetesFits},
		},
		Run: run,
	}
}

func usernetesFits(inv bed.Inventory, _ scenario.Values, value string) error {
	if value != "down" && inv.Kubernetes != bed.OwnKubernetes {
		return fmt.Errorf("bed %s has no Kubernetes of its own, which -c kubernetes=usernetes asks for", inv.Bed)
	}
	return nil
}

// on are the nodes a run takes: the first of the compute nodes, always the same.
func on(inv bed.Inventory, n int) []bed.InventoryNode {
	return inv.Compute()[:min(n, len(inv.Compute()))]
}

func cpus(inv bed.Inventory, nodes int) int {
	n := 0
	for _, node := range on(inv, nodes) {
		n += node.CPUs
	}
	return n
}

func nodesFit(inv bed.Inventory, _ scenario.Values, value string) error {
	n, _ := strconv.Atoi(value)
	if have := len(inv.Compute()); n > have || have == 0 {
		return fmt.Errorf("bed %s has %d compute nodes with %d CPUs in all", inv.Bed, have, cpus(inv, have))
	}
	return nil
}

func ranksFit(inv bed.Inventory, v scenario.Values, value string) error {
	nodes := v.Int("nodes")
	if nodes == 0 {
		return nil // nodes themselves do not fit, which is said already
	}
	n, _ := strconv.Atoi(value)
	switch have := cpus(inv, nodes); {
	case n > have:
		return fmt.Errorf("the %d nodes of bed %s have %d CPUs, one rank each", nodes, inv.Bed, have)
	case n < nodes:
		return fmt.Errorf("is less than the %d nodes, each of which runs a rank", nodes)
	}
	return nil
}

// experiment is one run of the scenario.
type experiment struct {
	*scenario.Env
	nodes []string
	ranks int
	dir   string // the run's own, on every node
	want  Want
}

func run(ctx context.Context, env *scenario.Env) error {
	v := env.Params
	e := &experiment{Env: env, ranks: v.Int("ranks"), want: Want{
		X: v.Int("x"), Y: v.Int("y"), Z: v.Int("z"), Steps: v.Int("steps"), Ranks: v.Int("ranks"), Tolerance: v.Float("tolerance"),
	}}
	for _, n := range on(env.Inventory, v.Int("nodes")) {
		e.nodes = append(e.nodes, n.Name)
	}
	dir, remove, err := env.Scratch(ctx, e.nodes, "")
	if err != nil {
		return err
	}
	defer remove()
	e.dir = dir
	if err := e.prepare(ctx); err != nil {
		return fmt.Errorf("prepare LAMMPS: %w", err)
	}
	// What ran it is a parameter and not the series, so that reports set the same problem on the same number of ranks side by side.
	var series []scenario.Series
	for _, name := range map[string][]string{"down": {bare}, "up": {besideUsernetes}, "both": {bare, besideUsernetes}}[v["usernetes"]] {
		series = append(series, scenario.Series{Name: name, Warmups: v.Int("warmups"), Parameters: map[string]string{
			"cells": fmt.Sprintf("%dx%dx%d", e.want.X, e.want.Y, e.want.Z), "steps": v["steps"], "nodes": v["nodes"], "ranks": v["ranks"],
			"manager": env.Manager.Name(),
		}})
	}
	k := scenario.NewKubernetes(env)
	defer k.Restore(ctx)
	return env.Interleave(ctx, series, func(ctx context.Context, s scenario.Series, r scenario.Repetition) (scenario.Measured, error) {
		set := k.Down
		if s.Name == besideUsernetes {
			set = k.Up
		}
		if err := set(ctx); err != nil {
			return scenario.Measured{}, err
		}
		return e.repetition(ctx, s, r)
	})
}

// prepare looks at what LAMMPS is on the nodes, which must be the same on all, and puts the launcher and the input there.
func (e *experiment) prepare(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	sums, err := e.OnEach(ctx, e.nodes, fmt.Sprintf("cd %s && sha256sum * && cd %s && sha256sum %s && nproc", Example, path.Dir(Binary), path.Base(Binary)))
	if err != nil {
		return fmt.Errorf("%w; `bed up` with an image that has the role lammps puts it there", err)
	}
	allowed := 0
	for i := range sums {
		at := strings.LastIndexByte(sums[i], '\n')
		n, err := strconv.Atoi(sums[i][at+1:])
		if err != nil {
			return fmt.Errorf("node %s: CPUs: %w", e.nodes[i], err)
		}
		allowed += n
		if sums[i] = sums[i][:max(at, 0)]; sums[i] != sums[0] {
			return fmt.Errorf("nodes %s and %s have different files under %s: they are not of one image; `bed up` makes them so", e.nodes[0], e.nodes[i], home)
		}
	}
	if e.ranks > allowed {
		if err := e.Note(ctx, "oversubscribed: %d ranks on the %d CPUs that processes may use on %s", e.ranks, allowed, strings.Join(e.nodes, ", ")); err != nil {
			return err
		}
	}
	about, err := e.Nodes.Run(ctx, e.nodes[0], fmt.Sprintf("cat %s/VERSION && mpirun --version", home))
	if err != nil {
		return err
	}
	text, err := Input(ctx, e.Env, e.nodes[0], e.want.Steps)
	if err != nil {
		return err
	}
	if _, err := e.Record.Log(input, []byte(text)); err != nil {
		return err
	}
	err = e.Record.Update(func(r *results.Run) {
		for line := range strings.Lines(sums[0]) {
			if sum, file, ok := strings.Cut(strings.TrimSpace(line), "  "); ok {
				r.Digests["lammps "+file] = "sha256:" + sum
			}
		}
		versions(r.Versions, string(about.Stdout))
	})
	return errors.Join(err,
		e.Put(ctx, e.nodes, path.Join(e.dir, "launch"), []byte(launcher), 0o700),
		e.Put(ctx, e.nodes, path.Join(e.dir, input), []byte(text), 0o600))
}

// versions reads the file VERSION, whose lines are a word and its value, and what Open MPI's mpirun says of itself.
func versions(to map[string]string, text string) {
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if mpi, ok := strings.CutPrefix(line, "mpirun (Open MPI) "); ok {
			to["MPI"] = "Open MPI " + strings.TrimSpace(mpi)
		} else if word, rest, ok := strings.Cut(line, " "); ok && slices.Contains([]string{"LAMMPS", "source", "flags", "compiler"}, word) {
			if word != "LAMMPS" {
				word = "LAMMPS " + word
			}
			to[word] = rest
		}
	}
}

var runCommand = regexp.MustCompile(`(?m)^[ \t]*run[ \t]+\S+[ \t]*$`)

// Input is a node's input of the example, for that many steps. Its variables x, y and z are numbers of cells.
func Input(ctx context.Context, env *scenario.Env, node string, steps int) (string, error) {
	original, err := env.Nodes.Run(ctx, node, "cat "+path.Join(Example, input))
	if err != nil {
		return "", fmt.Errorf("%w; `bed up` with an image that has the role lammps puts it there", err)
	}
	text, err := withSteps(string(original.Stdout), steps)
	if err != nil {
		return "", fmt.Errorf("%s on node %s: %w", path.Join(Example, input), node, err)
	}
	return text, nil
}

// withSteps sets the number of steps of an input, which must have one run command.
func withSteps(text string, steps int) (string, error) {
	if n := len(runCommand.FindAllString(text, -1)); n != 1 {
		return "", fmt.Errorf("%d run commands, where one was expected: the number of steps cannot be set", n)
	}
	return runCommand.ReplaceAllLiteralString(text, fmt.Sprintf("run %d", steps)), nil
}

// repetition runs LAMMPS once as a job. Whatever the job left is kept, also when it failed.
func (e *experiment) repetition(ctx context.Context, s scenario.Series, r scenario.Repetition) (m scenario.Measured, err error) {
	name := r.String() // of its files
	if s.Name != bare {
		name = s.Name + "-" + name
	}
	at := path.Join(e.dir, name)
	logFile, ranksPrefix := at+".log", at+".rank"
	w := e.want
	command := []string{path.Join(e.dir, "launch"), ranksPrefix, Binary, "-in", path.Join(e.dir, input), "-log", logFile, "-nocite",
		"-v", "x", strconv.Itoa(w.X), "-v", "y", strconv.Itoa(w.Y), "-v", "z", strconv.Itoa(w.Z)}
	id, err := e.Manager.Submit(ctx, wlm.Job{
		Name: "lammps-" + r.String(), Output: at + ".out", Error: at + ".err",
		Task:    wlm.Task{Command: command, Dir: Example, Ranks: e.ranks},
		Request: wlm.Request{On: e.nodes, Limit: e.Params.Duration("limit")},
	})
	if err != nil {
		return m, err
	}
	o, err := e.Manager.Wait(ctx, id)
	if err != nil {
		return m, err
	}
	// The context may end while this is read, and then the repetition counts as interrupted.
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	job, errKeep := e.keep(ctx, o, name)
	m.Log = job.kept
	if err := errors.Join(o.Err(), errKeep); err != nil {
		return m, fmt.Errorf("%w%s", err, job.complaint())
	}
	if m.Ranks, err = parseRanks(job.ranks, e.ranks); err != nil {
		return m, err
	}
	log, err := ParseLog(strings.NewReader(job.log))
	if err == nil {
		err = Check(log, e.want)
	}
	if err != nil {
		return m, err
	}
	if e.want.First == nil {
		e.want.First = &log
	}
	m.Metrics = append(metrics(log), scenario.Metric{Name: "job time", Value: o.Ended.Sub(o.Started).Seconds(), Unit: "s"})
	return m, nil
}

func metrics(log Log) []scenario.Metric {
	m := []scenario.Metric{{Name: "loop time", Value: log.LoopTime, Unit: "s"}}
	for _, s := range log.Breakdown {
		m = append(m, scenario.Metric{Name: "loop time/" + s.Name, Value: s.Avg, Unit: "s"})
	}
	return append(m,
		scenario.Metric{Name: "wall time", Value: log.WallTime.Seconds(), Unit: "s"},
		scenario.Metric{Name: "CPU use", Value: log.CPUUse, Unit: "%"},
		scenario.Metric{Name: "atoms", Value: float64(log.Atoms)},
		scenario.Metric{Name: "timestep rate", Value: log.StepsPerSecond, Unit: "1/s"},
		scenario.Metric{Name: "performance", Value: log.NsPerDay, Unit: "ns/day"})
}

// left is what a job left on its nodes.
type left struct {
	ranks       map[string]string // node to what launcher wrote there
	log         string
	out, errOut string
	kept        string // log, in the results
}

// complaint is the part of the job's output that tells why it failed.
func (l left) complaint() string {
	for _, text := range []string{l.errOut, l.out} {
		if text = strings.TrimSpace(text); text != "" {
			if lines := strings.Split(text, "\n"); len(lines) > 8 {
				text = strings.Join(lines[len(lines)-8:], "\n")
			}
			return ": " + text
		}
	}
	return ""
}

// keep reads what a job left and puts its logs into the results: LAMMPS' own, or what the job printed where there is none.
func (e *experiment) keep(ctx context.Context, o wlm.Outcome, name string) (left, error) {
	at := path.Join(e.dir, name)
	l := left{ranks: map[string]string{}}
	cat := func(suffix string) string {
		return fmt.Sprintf("cat %s%s 2>/dev/null || true", remote.Quote(at), suffix)
	}
	// One node may be gone; what the others have is kept nevertheless.
	wrote, err := e.OnEach(ctx, e.nodes, cat(".rank.*"))
	first := o.Host // rank 0 writes the log
	for i, node := range e.nodes {
		l.ranks[node] = wrote[i]
		if strings.HasPrefix(wrote[i], "0 ") {
			first = node
		}
	}
	read := func(node, suffix string) string {
		if node == "" {
			return ""
		}
		result, errRead := e.Nodes.Run(ctx, node, cat(suffix))
		err = errors.Join(err, errRead)
		return string(result.Stdout)
	}
	l.out, l.errOut, l.log = read(o.Host, ".out"), read(o.Host, ".err"), read(first, ".log")
	for _, file := range []struct{ suffix, text string }{{".err", l.errOut}, {".out", l.out}, {".log", l.log}} {
		// What a good run prints is its log once more.
		if file.text == "" || file.suffix == ".out" && o.State == wlm.Completed && l.log != "" {
			continue
		}
		kept, errLog := e.Record.Log(name+file.suffix, []byte(file.text))
		l.kept, err = kept, errors.Join(err, errLog)
	}
	return l, err
}
