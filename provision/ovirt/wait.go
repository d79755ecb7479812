package ovirt

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	ovirtsdk "github.com/ovirt/go-ovirt"

	"github.com/bedfellow/bedfellow/pkg/remote"
	"github.com/bedfellow/bedfellow/provision"
)

// boot starts a VM unless it runs, and waits until its sshd shows the pinned host key. vm is how it was a moment ago.
func (d *Driver) boot(ctx context.Context, c *client, vm *ovirtsdk.Vm, have mark, m provision.Machine) (provision.Status, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, d.timing.boot, fmt.Errorf("it was not up within %s; see its console and its events in the engine", d.timing.boot))
	defer cancel()
	id := idOf(vm)
	have.VM = id
	var deaf error
	for next := pauses(d.timing.poll); ; {
		said, _ := vm.Status()
		st := d.status(vm, have)
		switch said {
		case ovirtsdk.VMSTATUS_DOWN, ovirtsdk.VMSTATUS_SUSPENDED, ovirtsdk.VMSTATUS_PAUSED:
			start, err := written(ovirtsdk.NewActionBuilder().UseCloudInit(true).MustBuild(), ovirtsdk.XMLActionWriteOne)
			if err != nil {
				return st, err
			}
			// Twice is once here: a second start of what starts is refused.
			if _, err := c.create(ctx, "/vms/"+id+"/start", start, func(ctx context.Context) (string, error) { return c.running(ctx, id) }); err != nil {
				return st, fmt.Errorf("start it: %w", err)
			}
		case ovirtsdk.VMSTATUS_UP, ovirtsdk.VMSTATUS_POWERING_UP:
			if st.Address != "" {
				deaf = remote.Answers(ctx, remote.Target{Name: m.Name, Address: st.Address, Port: st.Port, HostKey: m.HostPublicKey})
				if deaf == nil {
					return st, nil
				}
			}
		}
		late := func() error {
			at := "and its guest agent has told no address"
			if st.Address != "" {
				at = "and no sshd with its key answers at " + st.Address
			}
			if deaf != nil {
				return fmt.Errorf("%w (the engine says that it is %s, %s: %w)", context.Cause(ctx), said, at, deaf)
			}
			return fmt.Errorf("%w (the engine says that it is %s, %s)", context.Cause(ctx), said, at)
		}
		if !sleep(ctx, next()) {
			return st, late()
		}
		now, _, err := d.look(ctx, c, id)
		if err == nil && now == nil {
			err = errors.New("somebody has removed its VM meanwhile")
		}
		if err != nil && ctx.Err() != nil { // the time ended in the middle of a look
			return st, late()
		}
		if err != nil {
			return st, err
		}
		vm = now
	}
}

// pauses are those between looks at what the engine is doing: they become longer.
func pauses(poll time.Duration) func() time.Duration {
	n := 0
	return func() time.Duration {
		n = min(n+1, 3)
		return time.Duration(n) * 5 * poll / 2
	}
}

// look is how a VM of ours is, nil if it is gone, seen no longer ago than a poll takes: those who wait at one time share a look at all VMs. The
// caller has waited that long since it did something itself.
func (d *Driver) look(ctx context.Context, c *client, id string) (*ovirtsdk.Vm, ovirtsdk.VmStatus, error) {
	select {
	case d.looking <- struct{}{}:
		defer func() { <-d.looking }()
	case <-ctx.Done():
		return nil, "", context.Cause(ctx)
	}
	if now := time.Now(); now.Sub(d.looked) >= d.timing.poll {
		vms, _, err := c.found(ctx, oursAll(), "")
		if err != nil {
			return nil, "", err
		}
		d.seen, d.looked = map[string]*ovirtsdk.Vm{}, now
		for _, vm := range vms {
			d.seen[idOf(vm)] = vm
		}
	}
	vm := d.seen[id]
	if vm == nil {
		return nil, "", nil
	}
	said, _ := vm.Status()
	return vm, said, nil
}

// running says, by the VM's id, that it is on its way up.
func (c *client) running(ctx context.Context, id string) (string, error) {
	data, err := c.call(ctx, http.MethodGet, "/vms/"+id, nil, nil)
	vm, err := one(data, err, ovirtsdk.XMLVmReadOne)
	if err != nil {
		return "", err
	}
	if said, _ := vm.Status(); said == ovirtsdk.VMSTATUS_DOWN {
		return "", nil
	}
	return id, nil
}

// remaining is how long a wait of the engine's own work may still take, as a context.
func (c *client) remaining(ctx context.Context, what string) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, c.timing.settle, fmt.Errorf("the engine took more than %s to %s", c.timing.settle, what))
}

// until looks again and again, ever less often, until the look is content.
func (c *client) until(ctx context.Context, look func(context.Context) (bool, error)) error {
	for next := pauses(c.timing.poll); ; {
		done, err := look(ctx)
		if err != nil || done {
			return err
		}
		if !sleep(ctx, next()) {
			return context.Cause(ctx)
		}
	}
}
