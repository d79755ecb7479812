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
	drainTimeout  = 3 * time.Minute // for one node's pods; an emulated control plane takes a minute to ask for it
	answerTimeout = time.Minute     // for nodes to say that they are there, which a busy emulated one takes
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
// says. What it returns is to be called with the bed that the engine has made of it, nil if it failed: nodes that are there after all have pods
// again. Which those are is kept, for when this is killed before.
func (w *Workspace) drain(ctx context.Context, s *session) (after func(now *Standing)) {
	nothing := func(*Standing) {}
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
	if made, err := w.halfMade(ctx, s); err == nil { // an up that failed has made some that the outputs do not have
		standing.Inventory.Nodes = made.Inventory.Nodes
	}
	return w.evict(ctx, standing, leaving(standing.Inventory, spec))
}

// evict is drain once it is known which nodes leave.
func (w *Workspace) evict(ctx context.Context, standing Standing, names []string) (after func(now *Standing)) {
	cordoned := w.cordoned()
	for _, name := range names {
		if !slices.Contains(cordoned, name) {
			cordoned = append(cordoned, name)
		}
	}
	if len(cordoned) == 0 {
		return func(*Standing) {}
	}
	w.keepCordoned(ctx, cordoned)
	if all := strings.Join(names, ", "); all != "" {
		step := progress.Start(ctx, "drain %s", all)
		// None gets what another loses. One that does not answer has no pods that could end.
		left, err := kubectl(ctx, standing, names, "cordon")
		there := answering(ctx, standing, left)
		if len(there) < len(left) {
			progress.Note(ctx, "Kubernetes drains only those of %s that answer", all)
		}
		_, errDrain := kubectl(ctx, standing, there, "drain --force --ignore-daemonsets --delete-emptydir-data --timeout 2m")
		if err := errors.Join(err, errDrain); err != nil {
			progress.Note(ctx, "Kubernetes did not drain %s, whose pods go with it: %v", all, err)
			step.EndWith("not drained", nil)
		} else {
			step.End(nil)
		}
	}
	return func(now *Standing) {
		ctx := context.WithoutCancel(ctx)
		if now == nil {
			now = &standing
		}
		stay := slices.DeleteFunc(cordoned, func(name string) bool {
			_, err := now.Inventory.Node(name)
			return err != nil
		})
		there := answering(ctx, *now, stay)
		if _, err := kubectl(ctx, *now, there, "uncordon"); err != nil {
			progress.Note(ctx, "Kubernetes gives %s no pods until the next up: %v", strings.Join(there, ", "), err)
			there = nil
		}
		w.keepCordoned(ctx, slices.DeleteFunc(stay, func(name string) bool { return slices.Contains(there, name) }))
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

func (w *Workspace) keepCordoned(ctx context.Context, names []string) {
	data, err := json.Marshal(names)
	if err == nil {
		err = writeFile(w.cordonedFile(), data)
	}
	if err != nil {
		progress.Note(ctx, "it is not kept that %s were cordoned: %v; if this is killed, `usernetes kubectl uncordon` on the control node gives them pods again", strings.Join(names, ", "), err)
	}
}

// answering are those of the nodes that do.
func answering(ctx context.Context, s Standing, names []string) (there []string) {
	signer, _ := ssh.ParsePrivateKey(s.PrivateKey) // without it none behind another does
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	found := make([]bool, len(names))
	_ = remote.Each(ctx, names, 32, func(ctx context.Context, i int, name string) error {
		n, err := s.Inventory.Node(name)
		if err == nil {
			err = remote.Answers(ctx, remote.Node(s.Inventory, n, signer))
		}
		found[i] = err == nil
		return err
	})
	for i, name := range names {
		if found[i] {
			there = append(there, name)
		}
	}
	return there
}

// kubectl has the control node run a command for each of the nodes, and returns those that it went well for. One that the cluster does not have is
// not of them, and no error.
func kubectl(ctx context.Context, s Standing, names []string, command string) (done []string, err error) {
	signer, err := ssh.ParsePrivateKey(s.PrivateKey)
	if err != nil {
		return nil, fmt.Errorf("the bed's user key: %w", err)
	}
	do := func(name string) error {
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
	for _, name := range names { // kubectl gives up on all, if it has not heard of one
		errOne := do(name)
		switch {
		case errOne == nil:
			done = append(done, name)
		case !strings.Contains(errOne.Error(), "(NotFound)"):
			err = errors.Join(err, errOne)
		}
	}
	return done, err
}
