// Package sim makes machines that exist on paper only, for tests of scale and of faults. They fail, stall and die on request.
package sim

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sort"
	"sync"
	"time"

	"github.com/bedfellow/bedfellow/pkg/bed"
	"github.com/bedfellow/bedfellow/provision"
)

// Fault is what goes wrong with an operation on a machine.
type Fault struct {
	// Op is create, read, update or delete; empty means each of them.
	Op string `json:"op"`
	// Times is how often it goes wrong before it goes well; 0 is always.
	Times int `json:"times"`
	// Stall waits this long, or until the context ends, before anything else.
	Stall time.Duration `json:"stall"`
	// Fail makes the operation fail after it changed nothing; Half makes a create fail with the machine left half made.
	Fail bool `json:"fail"`
	Half bool `json:"half"`
}

// Driver is the simulated driver. The zero value is of no use; call Open.
type Driver struct {
	mu       sync.Mutex
	machines map[string]provision.Status
	faults   map[string][]Fault
	journal  *os.File // nil: in memory only
}

// Open returns a driver whose machines live in memory or, when path is not empty, in that journal too, so that they outlast the
// process as real machines do.
func Open(path string) (*Driver, error) {
	d := &Driver{machines: map[string]provision.Status{}, faults: map[string][]Fault{}}
	if path == "" {
		return d, nil
	}
	data, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	for _, line := range bytes.SplitAfter(data, []byte("\n")) {
		var e entry
		if !bytes.HasSuffix(line, []byte("\n")) {
			continue // torn by a kill
		}
		if err := json.Unmarshal(line, &e); err != nil {
			return nil, fmt.Errorf("read %s: %w", path, err)
		}
		e.apply(d)
	}
	d.journal, err = os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	return d, err
}

// entry is one change of the journal.
type entry struct {
	Name   string            `json:"name"`
	Gone   bool              `json:"gone,omitempty"`
	Status *provision.Status `json:"status,omitempty"`
	Faults []Fault           `json:"faults,omitempty"`
}

func (e entry) apply(d *Driver) {
	if e.Gone {
		delete(d.machines, e.Name)
	}
	if e.Status != nil {
		d.machines[e.Name] = *e.Status
	}
	if e.Faults != nil {
		d.faults[e.Name] = e.Faults
	}
}

// record applies a change and writes it down. The caller holds the mutex.
func (d *Driver) record(e entry) error {
	e.apply(d)
	if d.journal == nil {
		return nil
	}
	line, err := json.Marshal(e)
	if err != nil {
		return err
	}
	_, err = d.journal.Write(append(line, '\n'))
	return err
}

// Inject makes the named machine's operations go wrong.
func (d *Driver) Inject(name string, faults ...Fault) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.record(entry{Name: name, Faults: faults})
}

// Kill makes a running machine a stopped one, as if it had died.
func (d *Driver) Kill(name string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	st, ok := d.machines[name]
	if !ok {
		return provision.ErrNotFound
	}
	st.State, st.Detail = provision.Stopped, "died on request"
	return d.record(entry{Name: name, Status: &st})
}

// fault takes the machine's next fault for op and suffers it.
func (d *Driver) fault(ctx context.Context, op, name string) (Fault, error) {
	d.mu.Lock()
	var hit Fault
	faults := d.faults[name]
	for i, f := range faults {
		if f.Op != "" && f.Op != op {
			continue
		}
		hit = f
		if f.Times == 1 {
			faults = append(faults[:i:i], faults[i+1:]...)
		} else if f.Times > 1 {
			faults[i].Times--
		}
		d.faults[name] = faults
		break
	}
	d.mu.Unlock()
	if hit.Stall > 0 {
		select {
		case <-ctx.Done():
		case <-time.After(hit.Stall):
		}
	}
	if err := ctx.Err(); err != nil {
		return hit, context.Cause(ctx)
	}
	if hit.Fail {
		return hit, fmt.Errorf("%s node %s: failed on request", op, name)
	}
	return hit, nil
}

// Info tells what the driver is.
func (d *Driver) Info() provision.Info {
	return provision.Info{Name: "sim", DiskLimit: true, Concurrency: 64}
}

// Check finds nothing amiss.
func (d *Driver) Check(context.Context) []bed.Problem { return nil }

// Create adopts or makes the machine.
func (d *Driver) Create(ctx context.Context, m provision.Machine) (provision.Status, error) {
	f, err := d.fault(ctx, "create", m.Name)
	if err != nil {
		return provision.Status{}, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	old, ok := d.machines[m.Name]
	if ok && !old.Owner.Same(m.Owner) {
		return provision.Status{}, &provision.ForeignError{Have: old.Owner, Want: m.Owner}
	}
	if ok && old.State == provision.Running && old.Owner == m.Owner && old.Digest == m.Digest() {
		return old, nil
	}
	at := address(m.Index + 1)
	st := provision.Status{
		Name: m.Name, Owner: m.Owner, State: provision.Running, Digest: m.Digest(), HostPublicKey: m.HostPublicKey,
		Address: at, Port: 22, BedAddress: at, Incarnation: rand.Text(), Expires: m.Expires,
	}
	if f.Half {
		st.State, st.Detail = provision.Broken, "half made"
		return provision.Status{}, errors.Join(fmt.Errorf("create node %s: half made on request", m.Name), d.record(entry{Name: m.Name, Status: &st}))
	}
	return st, d.record(entry{Name: m.Name, Status: &st})
}

// address is one of 198.18.0.0/15, which is for measuring and nobody's; no two indices below 131072 have the same.
func address(index int) string {
	return netip.AddrFrom4([4]byte{198, byte(18 + index>>16&1), byte(index >> 8), byte(index)}).String()
}

// Read tells how the machine is.
func (d *Driver) Read(ctx context.Context, name string) (provision.Status, error) {
	if _, err := d.fault(ctx, "read", name); err != nil {
		return provision.Status{}, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	st, ok := d.machines[name]
	if !ok {
		return st, fmt.Errorf("node %s: %w", name, provision.ErrNotFound)
	}
	return st, nil
}

// Update makes the machine anew when it is not as asked for.
func (d *Driver) Update(ctx context.Context, m provision.Machine) (provision.Status, error) {
	if _, err := d.fault(ctx, "update", m.Name); err != nil {
		return provision.Status{}, err
	}
	return d.Create(ctx, m)
}

// Delete forgets the machine.
func (d *Driver) Delete(ctx context.Context, name string) error {
	if _, err := d.fault(ctx, "delete", name); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, ok := d.machines[name]; !ok {
		return nil
	}
	return d.record(entry{Name: name, Gone: true})
}

// List shows the machines of a bed, or all.
func (d *Driver) List(_ context.Context, owner string) ([]provision.Status, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	var all []provision.Status
	for _, st := range d.machines {
		if owner == "" || st.Owner.Bed == owner {
			all = append(all, st)
		}
	}
	sort.Slice(all, func(i, j int) bool { return all[i].Name < all[j].Name })
	return all, nil
}
