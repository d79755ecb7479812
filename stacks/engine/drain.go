package engine

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/bedfellow/bedfellow/pkg/bed"
	"github.com/bedfellow/bedfellow/pkg/progress"
	"github.com/bedfellow/bedfellow/pkg/remote"
)

// drainTimeout is for the pods of all nodes that leave; an emulated control plane takes a minute to ask for it.
const drainTimeout = 3 * time.Minute

// leaving are the nodes that a bed with a Kubernetes of its own is about to lose, if it keeps that and its control node.
func leaving(inv bed.Inventory, spec bed.Spec) (names []string) {
	if inv.Kubernetes != bed.OwnKubernetes || spec.Kubernetes != bed.OwnKubernetes || inv.Bed != spec.Name {
		return nil
	}
	stays := map[string]bool{}
	for _, n := range spec.Nodes() {
		stays[n.Name] = true
	}
	if !stays[inv.Control().Name] {
		return nil
	}
	for _, n := range inv.Nodes {
		if !stays[n.Name] {
			names = append(names, n.Name)
		}
	}
	return names
}

// drain has Kubernetes evict what runs on the nodes that the bed is about to lose. A node that cannot be drained is lost with its pods, as a note
// says. What it returns lets the nodes have pods again, for when they stay after all.
func (w *Workspace) drain(ctx context.Context, s *session) (stay func()) {
	nothing := func() {}
	spec, err := w.Spec()
	if err != nil || spec.Kubernetes != bed.OwnKubernetes {
		return nothing
	}
	outputs, err := s.stack.Outputs(ctx)
	if err != nil {
		return nothing // the engine will say so
	}
	standing, err := w.parse(outputs)
	if err != nil {
		return nothing // no bed yet, or none that is whole
	}
	names := leaving(standing.Inventory, spec)
	if len(names) == 0 {
		return nothing
	}
	kubectl := func(ctx context.Context, arguments string) error {
		ctx, cancel := context.WithTimeoutCause(ctx, drainTimeout, fmt.Errorf("it took longer than %s", drainTimeout))
		defer cancel()
		signer, err := ssh.ParsePrivateKey(standing.PrivateKey)
		if err != nil {
			return fmt.Errorf("the bed's user key: %w", err)
		}
		client, err := remote.Dial(ctx, remote.Node(standing.Inventory, standing.Inventory.Control(), signer))
		if err != nil {
			return err
		}
		defer client.Close()
		for _, name := range names { // kubectl gives up on all, if it has not heard of one
			_, errOne := client.Run(ctx, fmt.Sprintf("usernetes kubectl %s u7s-%s", arguments, name))
			err = errors.Join(err, errOne)
		}
		return err
	}
	all := strings.Join(names, ", ")
	step := progress.Start(ctx, "drain %s", all)
	if err := kubectl(ctx, "drain --force --ignore-daemonsets --delete-emptydir-data --timeout 2m"); err != nil {
		progress.Note(ctx, "Kubernetes did not drain %s, whose pods go with it: %v", all, err)
		step.EndWith("not drained", nil)
	} else {
		step.End(nil)
	}
	return func() {
		if err := kubectl(context.WithoutCancel(ctx), "uncordon"); err != nil {
			progress.Note(ctx, "Kubernetes gives %s no pods until they are uncordoned: %v", all, err)
		}
	}
}
