// Package scenarios runs experiments on a bed that stands, and keeps what they measure.
package scenarios

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"strings"
	"time"

	"github.com/bedfellow/bedfellow/pkg/bed"
	"github.com/bedfellow/bedfellow/pkg/progress"
	"github.com/bedfellow/bedfellow/pkg/remote"
	"github.com/bedfellow/bedfellow/pkg/results"
	"github.com/bedfellow/bedfellow/scenarios/iperf"
	"github.com/bedfellow/bedfellow/scenarios/lammps"
	"github.com/bedfellow/bedfellow/scenarios/scenario"
	"github.com/bedfellow/bedfellow/scenarios/selftest"
	"github.com/bedfellow/bedfellow/scenarios/sidebyside"
	"github.com/bedfellow/bedfellow/scenarios/throughput"
	"github.com/bedfellow/bedfellow/scenarios/wlm"
	"github.com/bedfellow/bedfellow/scenarios/workflow"
)

// All lists the scenarios there are.
func All() []scenario.Scenario {
	return []scenario.Scenario{lammps.Scenario(), iperf.Scenario(), throughput.Scenario(), selftest.Scenario(), selftest.FluxScenario(), selftest.KubernetesScenario(),
		sidebyside.Scenario(), workflow.Scenario()}
}

// Find returns the scenario of that name.
func Find(name string) (scenario.Scenario, bool) {
	for _, s := range All() {
		if s.Name == name {
			return s, true
		}
	}
	return scenario.Scenario{}, false
}

// MaxRepeats bounds the repetitions of a run.
const MaxRepeats = 10000

// Options say what to run on which bed.
type Options struct {
	Inventory   bed.Inventory
	PrivateKey  []byte // the bed user's, PEM
	Stack       string
	Spec        json.RawMessage // the bed's, without secrets, for the record; the inventory when empty
	Scenario    string
	Repeats     int
	Seed        uint64
	Params      map[string]string // of the scenario; what is missing has its default
	ResultsRoot string            // runs are kept in <root>/<stack>/<scenario>/<run>/
	Versions    map[string]string // of what made the bed, for the record
}

// lookAround bounds the time for reaching all nodes before anything is run.
const lookAround = time.Minute

// Run runs a scenario and returns the directory with what it measured. Errors before anything was run leave no directory: wrong
// options are bed.Problems, all of them at once. Afterwards directory and summary are those of what was measured, whatever the
// error: a *scenario.FailedError when repetitions failed, the context's cause when it ended.
func Run(ctx context.Context, o Options) (dir string, summary results.Summary, err error) {
	s, params, err := o.check()
	if err != nil {
		return "", summary, err
	}
	nodes, err := scenario.NewNodes(o.Inventory, o.PrivateKey)
	if err != nil {
		return "", summary, err
	}
	defer nodes.Close()
	manager, err := wlm.Open(o.Inventory, nodes)
	if err != nil {
		return "", summary, err
	}
	if s, ok := manager.(wlm.Starter); ok {
		step := progress.Start(ctx, "start %s on %d nodes", manager.Name(), len(o.Inventory.Compute()))
		if err = step.End(s.Start(ctx)); err != nil {
			return "", summary, err
		}
		defer func() { err = errors.Join(err, s.Close()) }()
	}
	run, err := describe(ctx, o, params, nodes, manager)
	if err != nil {
		return "", summary, fmt.Errorf("before scenario %s: %w", s.Name, err)
	}
	record, err := results.Create(o.ResultsRoot, o.Stack, s.Name, run)
	if err != nil {
		return "", summary, err
	}
	for _, note := range run.Notes {
		progress.Note(ctx, "%s", note)
	}
	err = s.Run(ctx, &scenario.Env{
		Scenario: s.Name, Inventory: o.Inventory, Nodes: nodes, Manager: manager, Params: params, Repeats: o.Repeats, Seed: o.Seed, Record: record,
	})
	status := results.OK
	switch {
	case ctx.Err() != nil:
		status = results.Interrupted
	case err != nil:
		status = results.Failed
	}
	summary = record.Summary()
	return record.Dir(), summary, errors.Join(err, record.Close(status))
}

// check finds everything that is wrong with the options before any node is reached.
func (o Options) check() (_ scenario.Scenario, params scenario.Values, err error) {
	var problems bed.Problems
	if o.Repeats < 1 || o.Repeats > MaxRepeats {
		problems = append(problems, bed.Problem{Key: "repeats", Value: fmt.Sprint(o.Repeats),
			Reason: fmt.Sprintf("must be a whole number from 1 to %d", MaxRepeats), Remedy: "write such a number after -n"})
	}
	var names []string
	for _, one := range All() {
		names = append(names, one.Name)
	}
	s, ok := Find(o.Scenario)
	if !ok {
		remedy := "choose one of them"
		if n := bed.Nearest(o.Scenario, names); n != "" {
			remedy = "did you mean " + n + "?"
		}
		return s, nil, append(problems, bed.Problem{Key: "scenario", Value: o.Scenario,
			Reason: "is not known here; there is " + strings.Join(names, ", "), Remedy: remedy})
	}
	if len(o.Inventory.Nodes) == 0 {
		return s, nil, append(problems, bed.Problem{Key: "stack", Value: o.Stack, Host: true,
			Reason: "has no nodes", Remedy: "bring the bed up with `bed up -s " + o.Stack + "`"})
	}
	params, more := s.Resolve(o.Inventory, o.Params)
	return s, params, append(problems, more...).Err()
}

// describe asks every node and the workload manager what they are.
func describe(ctx context.Context, o Options, params scenario.Values, nodes *scenario.Nodes, manager wlm.Manager) (run results.Run, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, lookAround, fmt.Errorf("not all nodes answered within %s", lookAround))
	defer cancel()
	step := progress.Start(ctx, "look at %d nodes", len(o.Inventory.Nodes))
	defer func() { step.End(err) }()
	inv := o.Inventory
	run = results.Run{
		Seed: o.Seed, Parameters: maps.Clone(params), Spec: o.Spec, Versions: map[string]string{}, Digests: map[string]string{},
		Bed:   results.Bed{Driver: inv.Driver, Image: inv.Image, ImageDigest: inv.ImageDigest, WorkloadManager: manager.Name(), Kubernetes: inv.Kubernetes},
		Nodes: make([]results.Node, len(inv.Nodes)),
	}
	if inv.KubernetesNetwork != nil {
		run.Bed.KubernetesNetwork = inv.KubernetesNetwork.String()
	}
	if run.Spec == nil {
		if run.Spec, err = json.Marshal(inv); err != nil {
			return run, err
		}
	}
	maps.Copy(run.Versions, o.Versions)
	if run.Versions[manager.Name()], err = manager.Version(ctx); err != nil {
		return run, err
	}
	if inv.ImageDigest != "" {
		run.Digests["image "+inv.Image] = inv.ImageDigest
	}
	err = remote.Each(ctx, inv.Nodes, 32, func(ctx context.Context, i int, n bed.InventoryNode) error {
		client, err := nodes.Client(ctx, n.Name)
		if err != nil {
			return err
		}
		facts, err := client.Ask(ctx)
		if err != nil {
			return err
		}
		release, err := client.Run(ctx, `. /etc/os-release && echo "$PRETTY_NAME"`)
		run.Nodes[i] = results.Node{Name: n.Name, Role: string(n.Role), OS: strings.TrimSpace(string(release.Stdout)), Kernel: facts.Kernel,
			CPUModel: facts.CPUModel, CPUs: facts.CPUs, HostCPUs: n.HostCPUs, Memory: facts.MemoryMiB << 20}
		if inv.SharedKernel { // it shows the host's memory
			run.Nodes[i].Memory = int64(n.MemoryMiB) << 20
		}
		return err
	})
	run.Notes = warnings(inv)
	return run, err
}

// warnings tells what about a bed makes its figures mean less.
func warnings(inv bed.Inventory) []string {
	var shared []string
	for _, n := range inv.Nodes {
		if n.Oversubscribed {
			shared = append(shared, fmt.Sprintf("%s on host CPUs %s", n.Name, n.HostCPUs))
		}
	}
	if shared == nil {
		return nil
	}
	return []string{"oversubscribed: nodes share host CPUs with other nodes, so times are longer and spread wider than on machines of their own: " +
		strings.Join(shared, ", ")}
}
