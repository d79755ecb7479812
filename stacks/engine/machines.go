package engine

import (
	"context"
	"errors"
	"slices"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/bedfellow/bedfellow/pkg/bed"
	"github.com/bedfellow/bedfellow/pkg/remote"
	"github.com/bedfellow/bedfellow/provision"
	"github.com/bedfellow/bedfellow/provision/clouds"
	"github.com/bedfellow/bedfellow/provision/drivers"
	"github.com/bedfellow/bedfellow/stacks"
)

// Machine is how a node is now.
type Machine struct {
	Name   string `json:"name"`
	State  string `json:"state"` // running, stopped, broken, missing, unreachable
	Detail string `json:"detail,omitempty"`
}

// Machines asks the driver and each running node, side by side, in the order of the inventory. It records nothing. The profile is slow where the
// stack says so or the machines are emulated, and normal elsewhere.
func (w *Workspace) Machines(ctx context.Context, s Standing) (found []Machine, profile string, err error) {
	read, on, err := w.reader(ctx, s.Inventory)
	if err != nil {
		return nil, "", err
	}
	spec, _ := stacks.Parse(w.Stack, w.values)
	profile = spec.Profile
	patience := 5 * time.Second
	if on.Emulated {
		profile = "slow"
		patience *= 6
	}
	signer, _ := ssh.ParsePrivateKey(s.PrivateKey) // without it, nodes behind another are unreachable, and say why
	now := s.Inventory                             // where the driver says that its machines are
	now.Nodes = slices.Clone(now.Nodes)
	found = make([]Machine, len(now.Nodes))
	err = remote.Each(ctx, s.Inventory.Nodes, max(on.Concurrency, 1), func(ctx context.Context, i int, n bed.InventoryNode) error {
		st, err := read(ctx, n.Name)
		switch {
		case errors.Is(err, provision.ErrNotFound):
			found[i] = Machine{Name: n.Name, State: "missing"}
			return nil
		case err != nil:
			return err
		}
		found[i] = Machine{Name: n.Name, State: string(st.State), Detail: st.Detail}
		now.Nodes[i].Address, now.Nodes[i].Port = st.Address, st.Port
		return nil
	})
	if err != nil || !on.SSH {
		return found, profile, err
	}
	return found, profile, remote.Each(ctx, now.Nodes, max(on.Concurrency, 1), func(ctx context.Context, i int, n bed.InventoryNode) error {
		if found[i].State != string(provision.Running) {
			return nil
		}
		ctx, cancel := context.WithTimeout(ctx, patience)
		defer cancel()
		if err := remote.Answers(ctx, remote.Node(now, n, signer)); err != nil {
			found[i].State, found[i].Detail = "unreachable", err.Error()
		}
		return nil
	})
}

// reader is what looks at a machine of the bed's. A cloud is asked for all at once.
func (w *Workspace) reader(ctx context.Context, inv bed.Inventory) (func(ctx context.Context, name string) (provision.Status, error), provision.Info, error) {
	if !clouds.Is(inv.Driver) {
		d, err := drivers.Open(inv.Driver, w.driverSettings())
		if err != nil {
			return nil, provision.Info{}, err
		}
		return d.Read, d.Info(), nil
	}
	spec, _ := stacks.Parse(w.Stack, w.values)
	c, problems := openCloud(bed.Spec{Driver: inv.Driver, Settings: spec.Settings})
	if err := problems.Err(); err != nil {
		return nil, provision.Info{}, err
	}
	list, err := c.List(ctx, inv.Bed)
	return func(_ context.Context, name string) (provision.Status, error) {
		for _, st := range list {
			if st.Name != name || st.Owner.ID != inv.ID {
				continue
			}
			// It need not know which of a machine's addresses leads to it from here.
			if n, err := inv.Node(name); err == nil {
				st.Address, st.Port = n.Address, n.Port
			}
			return st, nil
		}
		return provision.Status{}, provision.ErrNotFound
	}, c.Info(), err
}
