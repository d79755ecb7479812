package scenario

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/bedfellow/bedfellow/pkg/bed"
	"github.com/bedfellow/bedfellow/pkg/progress"
)

const (
	kubernetesUp   = 40 * time.Minute // from its containers' start to its DNS; an emulated machine takes several
	kubernetesDown = 5 * time.Minute
	restoring      = 10 * time.Minute // without its being ready
)

// Kubernetes starts and stops a bed's own. A bed without has none to stop. It is not safe for concurrent use.
type Kubernetes struct {
	*Env
	nodes []string
	is    state
	// stopped: a stop was begun.
	stopped bool
}

// state is what is known of Kubernetes. Not before something was done to the end is anything known.
type state int

const (
	unknown state = iota
	up
	down
)

// NewKubernetes takes the bed's as it is.
func NewKubernetes(env *Env) *Kubernetes {
	k := &Kubernetes{Env: env}
	if env.Inventory.Kubernetes == bed.OwnKubernetes {
		for _, n := range env.Inventory.Nodes {
			k.nodes = append(k.nodes, n.Name)
		}
	}
	return k
}

// Up has it up, ready and answering; one that is so already is looked at.
func (k *Kubernetes) Up(ctx context.Context) error {
	return k.set(ctx, up, kubernetesUp, "start", k.start)
}

// Down has it down.
func (k *Kubernetes) Down(ctx context.Context) error {
	return k.set(ctx, down, kubernetesDown, "stop", k.stop)
}

func (k *Kubernetes) set(ctx context.Context, want state, timeout time.Duration, what string, do func(context.Context) error) error {
	if len(k.nodes) == 0 || k.is == want {
		return nil
	}
	k.is = unknown
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, fmt.Errorf("not within %s", timeout))
	defer cancel()
	if err := do(ctx); err != nil {
		return fmt.Errorf("%s Kubernetes: %w", what, err)
	}
	k.is = want
	return nil
}

func (k *Kubernetes) stop(ctx context.Context) error {
	k.stopped = true
	_, err := k.OnEach(ctx, k.nodes, "usernetes down")
	return err
}

// start does nothing to one that is up but to see that it is.
func (k *Kubernetes) start(ctx context.Context) error {
	_, err := k.OnEach(ctx, k.nodes, "usernetes up")
	if err == nil {
		_, err = k.OnEach(ctx, []string{k.Inventory.Control().Name}, "usernetes init && usernetes ready u7s-"+strings.Join(k.nodes, " u7s-"))
	}
	if err == nil {
		_, err = k.OnEach(ctx, k.nodes, "usernetes dns")
	}
	return err
}

// Restore starts what was stopped, also when the context has ended. A stop that was interrupted goes on by itself and would undo a start: the
// second waits for it. What was only to be started is not stopped for that.
func (k *Kubernetes) Restore(ctx context.Context) {
	if len(k.nodes) == 0 || k.is == up {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), restoring)
	defer cancel()
	step := progress.Start(ctx, "start Kubernetes again")
	command := "usernetes up"
	if k.stopped {
		command = "usernetes down && " + command
	}
	_, err := k.OnEach(ctx, k.nodes, command)
	if step.End(err) != nil {
		_ = k.Note(ctx, "Kubernetes is left stopped: %v; `usernetes up` on each node starts it", err)
	}
}
