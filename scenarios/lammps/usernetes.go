package lammps

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/bedfellow/bedfellow/pkg/bed"
	"github.com/bedfellow/bedfellow/scenarios/scenario"
)

const (
	usernetesUp   = 40 * time.Minute // from its containers' start to its DNS; an emulated machine takes several
	usernetesDown = 2 * time.Minute
)

func usernetesFits(inv bed.Inventory, _ scenario.Values, value string) error {
	if value != "down" && inv.Kubernetes == "" {
		return fmt.Errorf("bed %s has no Kubernetes; bring it up with -c kubernetes=usernetes", inv.Bed)
	}
	return nil
}

// usernetes starts and stops a bed's Kubernetes, which is up to begin with. A bed without has none to stop.
type usernetes struct {
	*scenario.Env
	nodes []string
	down  bool
}

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
func (u *usernetes) set(ctx context.Context, up bool) error {
	if len(u.nodes) == 0 || up != u.down {
		return nil
	}
	if !up {
		u.down = true
		ctx, cancel := context.WithTimeoutCause(ctx, usernetesDown, fmt.Errorf("not within %s", usernetesDown))
		defer cancel()
		if _, err := u.OnEach(ctx, u.nodes, "usernetes down"); err != nil {
			return fmt.Errorf("stop Kubernetes: %w", err)
		}
		return nil
	}
	ctx, cancel := context.WithTimeoutCause(ctx, usernetesUp, fmt.Errorf("not within %s", usernetesUp))
	defer cancel()
	_, err := u.OnEach(ctx, u.nodes, "usernetes up")
	if err == nil {
		_, err = u.OnEach(ctx, []string{u.Inventory.Control().Name}, "usernetes init && usernetes ready u7s-"+strings.Join(u.nodes, " u7s-"))
	}
	if err == nil {
		_, err = u.OnEach(ctx, u.nodes, "usernetes dns")
	}
	if err != nil {
		return fmt.Errorf("start Kubernetes: %w", err)
	}
	u.down = false
	return nil
}

// restore starts what was stopped, also when the context has ended.
func (u *usernetes) restore(ctx context.Context) {
	if !u.down {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), usernetesDown)
	defer cancel()
	if _, err := u.OnEach(ctx, u.nodes, "docker start usernetes-node"); err != nil {
		_ = u.Note(ctx, "Kubernetes is left stopped: %v; `usernetes up` on each node starts it", err)
	}
}
