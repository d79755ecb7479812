package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/bedfellow/bedfellow/pkg/bed"
	"github.com/bedfellow/bedfellow/pkg/progress"
	"github.com/bedfellow/bedfellow/pkg/remote"
)

const (
	drainTimeout = 3 * time.Minute // for one node's pods; an emulated control plane takes a minute to ask for it
	goneTimeout  = 20 * time.Second
)

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
// says. What it returns is for when the bed has, or has not, become what it is to be: nodes that are there after all have pods again. A run that is
// killed before leaves that to the next.
func (w *Workspace) drain(ctx context.Context, s *session) (after func(done bool)) {
	nothing := func(bool) {}
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
	return w.evict(ctx, standing, leaving(standing.Inventory, spec))
}

// evict is drain once it is known which nodes leave.
func (w *Workspace) evict(ctx context.Context, standing Standing, leaving []string) (after func(done bool)) {
	// One that does not answer has no pods that could end.
	names := slices.DeleteFunc(leaving, func(name string) bool { return !answers(ctx, standing, name) })
	cordoned := w.cordoned()
	for _, name := range names {
		if !slices.Contains(cordoned, name) {
			cordoned = append(cordoned, name)
		}
	}
	if len(cordoned) == 0 {
		return func(bool) {}
	}
	if err := w.keepCordoned(cordoned); err != nil {
		progress.Note(ctx, "a run that is killed now would leave %s without pods: %v", strings.Join(cordoned, ", "), err)
	}
	if all := strings.Join(names, ", "); all != "" {
		step := progress.Start(ctx, "drain %s", all)
		// Of all before the first is emptied, or its pods would go to the next.
		if err := kubectl(ctx, standing, names, "cordon", "drain --force --ignore-daemonsets --delete-emptydir-data --timeout 2m"); err != nil {
			progress.Note(ctx, "Kubernetes did not drain %s, whose pods go with it: %v", all, err)
			step.EndWith("not drained", nil)
		} else {
			step.End(nil)
		}
	}
	return func(done bool) {
		ctx := context.WithoutCancel(ctx)
		stay := slices.DeleteFunc(cordoned, func(name string) bool {
			return done && slices.Contains(names, name) || !answers(ctx, standing, name)
		})
		if len(stay) > 0 {
			if err := kubectl(ctx, standing, stay, "uncordon"); err != nil {
				progress.Note(ctx, "Kubernetes gives %s no pods until they are uncordoned: %v", strings.Join(stay, ", "), err)
				return
			}
		}
		_ = os.Remove(w.cordonedFile())
	}
}

// cordonedFile names the nodes that have no pods because they were about to leave.
func (w *Workspace) cordonedFile() string { return w.stackDir("cordoned.json") }

func (w *Workspace) cordoned() (names []string) {
	data, err := os.ReadFile(w.cordonedFile())
	if err == nil {
		_ = json.Unmarshal(data, &names) // written in one step, by keepCordoned
	}
	return names
}

func (w *Workspace) keepCordoned(names []string) error {
	data, err := json.Marshal(names)
	if err != nil {
		return err
	}
	return writeFile(w.cordonedFile(), data)
}

// answers tells whether a node of the bed is there.
func answers(ctx context.Context, s Standing, name string) bool {
	n, err := s.Inventory.Node(name)
	if err != nil {
		return false
	}
	signer, _ := ssh.ParsePrivateKey(s.PrivateKey)
	ctx, cancel := context.WithTimeout(ctx, goneTimeout)
	defer cancel()
	return remote.Answers(ctx, remote.Node(s.Inventory, n, signer)) == nil
}

// kubectl has the control node run each command for each of the nodes: a node that one fails for is left out of those after it, and
// kubectl gives up on all if it has not heard of one.
func kubectl(ctx context.Context, s Standing, names []string, commands ...string) (err error) {
	signer, err := ssh.ParsePrivateKey(s.PrivateKey)
	if err != nil {
		return fmt.Errorf("the bed's user key: %w", err)
	}
	do := func(command, name string) error {
		ctx, cancel := context.WithTimeoutCause(ctx, drainTimeout, fmt.Errorf("it took longer than %s", drainTimeout))
		defer cancel()
		client, err := remote.Dial(ctx, remote.Node(s.Inventory, s.Inventory.Control(), signer))
		if err != nil {
			return err
		}
		defer client.Close()
		_, err = client.Run(ctx, fmt.Sprintf("usernetes kubectl %s u7s-%s", command, name))
		return err
	}
	left := slices.Clone(names)
	for _, command := range commands {
		left = slices.DeleteFunc(left, func(name string) bool {
			errOne := do(command, name)
			err = errors.Join(err, errOne)
			return errOne != nil
		})
	}
	return err
}
