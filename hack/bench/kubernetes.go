package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os/exec"
	"slices"
	"strconv"
	"strings"

	"github.com/bedfellow/bedfellow/pkg/progress"
)

// clusters are the figures of Kubernetes without root, brought up on virtual machines that have all else.
type clusters struct {
	Nodes   int     `json:"nodes"`
	Ready   float64 `json:"readySeconds"` // median of `bed up` that brings it up, until all nodes are ready and the cluster's DNS answers on each
	Slowest float64 `json:"slowestSeconds"`
	// Tasks are the medians of what that is made of, by the task's name in role usernetes.
	Tasks map[string]float64 `json:"taskSeconds"`
	// Joins are the last run's: of every node but the control plane.
	Joins    []join `json:"joins,omitempty"`
	measured []float64
	tasks    map[string][]float64
}

// join is when a node had the cluster's certificate and when it belonged to it, in seconds from the first node's beginning. Where those of two nodes
// overlap, neither waited for the other.
type join struct {
	Node  string  `json:"node"`
	Began float64 `json:"began"`
	Ended float64 `json:"ended"`
}

// cluster makes a bed whose Kubernetes is left to jobs, gives it one of its own, and removes it, whatever happens.
func (b *bench) cluster(ctx context.Context, c *clusters) (err error) {
	const stack = "lima-ci"
	defer func() {
		_, e := b.command(context.WithoutCancel(ctx), "destroy", "-s", stack)
		err = errors.Join(err, e)
	}()
	up := func(kubernetes string) (measurement, error) {
		return b.command(ctx, "up", "-s", stack, "-c", "name=bench", "-c", "nodes="+strconv.Itoa(c.Nodes), "-c", "cpus=2", "-c", "memory=4GiB", "-c", "kubernetes="+kubernetes)
	}
	if _, err := up("jobs"); err != nil {
		return err
	}
	m, err := up("usernetes")
	if err != nil {
		return err
	}
	c.measured = append(c.measured, m.total)
	if c.tasks == nil {
		c.tasks = map[string][]float64{}
	}
	for task, seconds := range tasks(m.said, "usernetes : ") {
		c.tasks[task] = append(c.tasks[task], seconds)
	}
	c.Joins, err = b.joins(ctx, stack)
	return err
}

// tasks is how long each of a role's tasks took, from what `bed -o json` said of its progress. A task ends where the next one begins, or the
// step that it is part of ends.
func tasks(said []byte, role string) map[string]float64 {
	took := map[string]float64{}
	var last progress.Event
	for line := range strings.Lines(string(said)) {
		var e progress.Event
		if json.Unmarshal([]byte(line), &e) != nil || last.Step != "" && e.Step != last.Step {
			continue
		}
		if task, ok := strings.CutPrefix(last.Detail, role); ok {
			took[task] += e.Time.Sub(last.Time).Seconds()
		}
		last = progress.Event{}
		if e.Kind == progress.Updated && strings.HasPrefix(e.Detail, role) {
			last = e
		}
	}
	return took
}

// joins reads from each node but the first when it joined.
func (b *bench) joins(ctx context.Context, stack string) (joined []join, err error) {
	out, err := b.output(ctx, "inventory", "-s", stack, "-o", "json")
	if err != nil {
		return nil, err
	}
	var inv struct{ Nodes []struct{ Name string } }
	if err := json.Unmarshal(out, &inv); err != nil {
		return nil, err
	}
	for _, n := range inv.Nodes[min(1, len(inv.Nodes)):] {
		out, err := b.output(ctx, "ssh", n.Name, "-s", stack, "--", "docker exec usernetes-node stat -c %.3Y /etc/kubernetes/pki/ca.crt /etc/kubernetes/bedfellow-join")
		if err != nil {
			return nil, err
		}
		j := join{Node: n.Name}
		if _, err := fmt.Sscan(string(out), &j.Began, &j.Ended); err != nil {
			return nil, fmt.Errorf("node %s said %q of when it joined: %w", n.Name, out, err)
		}
		joined = append(joined, j)
	}
	first := 0.0
	for i, j := range joined {
		if i == 0 || j.Began < first {
			first = j.Began
		}
	}
	for i := range joined {
		joined[i].Began, joined[i].Ended = milli(joined[i].Began-first), milli(joined[i].Ended-first)
	}
	return joined, nil
}

// output is what a command of bed prints.
func (b *bench) output(ctx context.Context, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, b.bed, args...)
	cmd.Dir = b.dir
	out, err := cmd.Output()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		err = fmt.Errorf("bed %s: %w: %s", strings.Join(args, " "), err, exit.Stderr)
	}
	return out, err
}

// conclude fills in the medians.
func (c *clusters) conclude() {
	c.Slowest, c.Ready = milli(slices.Max(c.measured)), median(c.measured)
	c.Tasks = map[string]float64{}
	for _, task := range slices.Sorted(maps.Keys(c.tasks)) {
		c.Tasks[task] = median(c.tasks[task])
	}
}
