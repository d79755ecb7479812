package lammps

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/bedfellow/bedfellow/pkg/bed"
	"github.com/bedfellow/bedfellow/pkg/progress"
	"github.com/bedfellow/bedfellow/scenarios/scenario"
)

const (
	usernetesUp   = 40 * time.Minute // from its containers' start to its DNS; an emulated machine takes several
	usernetesDown = 5 * time.Minute
	restoring     = 10 * time.Minute // without its being ready
)

func usernetesFits(inv bed.Inventory, _ scenario.Values, value string) error {
	if value != "down" && inv.Kubernetes == "" {
		return fmt.Errorf("bed %s has no Kubernetes, which -c kubernetes=usernetes asks for", inv.Bed)
	}
	return nil
}

// usernetes starts and stops a bed's Kubernetes. A bed without has none to stop.
type usernetes struct {
	*scenario.Env
	nodes []string
	is    state
}

// state is what is known of Kubernetes. Not before something was done to the end is anything known.
type state int

const (
	unknown state = iota
	up
	down
)

func newUsernetes(env *scenario.Env) *usernetes {
	u := &usernetes{Env: env}
	if env.Inventory.Kubernetes != "" {
		for _, n := range env.Inventory.Nodes {
			u.nodes = append(u.nodes, n.Name)
		}
	}
	return u
}

// set has Kubernetes up, ready and answering, or down.
func (u *usernetes) set(ctx context.Context, want state) error {
	if len(u.nodes) == 0 || u.is == want {
		return nil
	}
	u.is = unknown
	timeout, what, do := usernetesUp, "start", u.start
	if want == down {
		timeout, what, do = usernetesDown, "stop", u.stop
	}
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, fmt.Errorf("not within %s", timeout))
	defer cancel()
	if err := do(ctx); err != nil {
		return fmt.Errorf("%s Kubernetes: %w", what, err)
	}
	u.is = want
	return nil
}

func (u *usernetes) stop(ctx context.Context) error {
	_, err := u.OnEach(ctx, u.nodes, "usernetes down")
	return err
}

// start does nothing to one that is up but to see that it is.
func (u *usernetes) start(ctx context.Context) error {
	_, err := u.OnEach(ctx, u.nodes, "usernetes up")
	if err == nil {
		_, err = u.OnEach(ctx, []string{u.Inventory.Control().Name}, "usernetes init && usernetes ready u7s-"+strings.Join(u.nodes, " u7s-"))
	}
	if err == nil {
		_, err = u.OnEach(ctx, u.nodes, "usernetes dns")
	}
	return err
}

// restore starts what was stopped, also when the context has ended. A stop that was interrupted goes on by itself and would undo a start: the
// second waits for it.
func (u *usernetes) restore(ctx context.Context) {
	if len(u.nodes) == 0 || u.is == up {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), restoring)
	defer cancel()
	step := progress.Start(ctx, "start Kubernetes again")
	_, err := u.OnEach(ctx, u.nodes, "usernetes down && usernetes up")
	if step.End(err) != nil {
		_ = u.Note(ctx, "Kubernetes is left stopped: %v; `usernetes up` on each node starts it", err)
	}
}
