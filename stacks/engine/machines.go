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
	"github.com/bedfellow/bedfellow/provision/drivers"
)

// Machine is how a node is now.
type Machine struct {
	Name   string `json:"name"`
	State  string `json:"state"` // running, stopped, broken, missing, unreachable
	Detail string `json:"detail,omitempty"`
}

// Machines asks the driver and each running node, side by side, in the order of the inventory. It records nothing.
func (w *Workspace) Machines(ctx context.Context, s Standing) ([]Machine, error) {
	d, err := drivers.Open(s.Inventory.Driver, w.driverSettings())
	if err != nil {
		return nil, err
	}
	patience := 5 * time.Second
	if d.Info().Emulated {
		patience *= 6
	}
	signer, _ := ssh.ParsePrivateKey(s.PrivateKey) // without it, nodes behind another are unreachable, and say why
	now := s.Inventory                             // where the driver says that its machines are
	now.Nodes = slices.Clone(now.Nodes)
	found := make([]Machine, len(now.Nodes))
	err = remote.Each(ctx, s.Inventory.Nodes, max(d.Info().Concurrency, 1), func(ctx context.Context, i int, n bed.InventoryNode) error {
		st, err := d.Read(ctx, n.Name)
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
	if err != nil || !d.Info().SSH {
		return found, err
	}
	return found, remote.Each(ctx, now.Nodes, max(d.Info().Concurrency, 1), func(ctx context.Context, i int, n bed.InventoryNode) error {
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
