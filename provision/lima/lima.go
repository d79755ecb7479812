// Package lima makes machines that are virtual machines with kernels of their own, by Lima 2 and its command limactl. It needs QEMU on
// Linux and nothing more on macOS, and no root; where it has root, Lima, which refuses it, runs as the user bedfellow.
//
// Each bed is a LIMA_HOME of its own. What a node is made of is written down there before it is made, and every process of a bed bears
// that directory in its environment, so that a node can be taken apart whatever killed its maker, and without limactl. Lima's own
// `stop` and `delete` are not used for that: they stop the network whenever no machine of the LIMA_HOME is up entirely, and with it
// cut off those that are booting.
package lima

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"
	"time"

	"github.com/bedfellow/bedfellow/pkg/bed"
	"github.com/bedfellow/bedfellow/pkg/progress"
	"github.com/bedfellow/bedfellow/provision"
)

const (
	hostAddress   = "127.0.0.1" // where Lima forwards to a machine's sshd
	deleteTimeout = 25 * time.Second
	stopTimeout   = 4 * time.Minute // for a guest's shutdown; Lima gives it three
	mendTimeout   = time.Minute     // for that of one which does not answer
	stopPoll      = 100 * time.Millisecond
)

// Driver is the lima driver.
type Driver struct {
	root    string
	account string
	// bootTimeout of a machine, and grace for the rest of its boot; 0 is what the accelerator needs.
	bootTimeout, grace time.Duration

	mu    sync.Mutex
	host  *host
	noted sync.Once
}

// New returns a driver whose beds lie under root.
func New(root string) *Driver { return &Driver{root: resolved(root), account: Account} }

// DefaultRoot is where beds lie: of the system for root, of the user for anybody else. It is short because sockets lie in it.
func DefaultRoot() (string, error) {
	if os.Geteuid() == 0 {
		return "/var/lib/bedfellow/lima", nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", err
	}
	return filepath.Join(home, ".bedfellow/lima"), nil
}

// resolved follows the links in a path of which the end may not be there yet: Lima does so, and its processes name what it found.
func resolved(path string) string {
	if found, err := filepath.EvalSymlinks(path); err == nil {
		return found
	}
	if parent := filepath.Dir(path); parent != path {
		return filepath.Join(resolved(parent), filepath.Base(path))
	}
	return path
}

var (
	_ provision.Driver  = (*Driver)(nil)
	_ provision.Fitter  = (*Driver)(nil)
	_ provision.Sweeper = (*Driver)(nil)
	_ provision.Adviser = (*Driver)(nil)
)

// Info tells what the driver is.
func (d *Driver) Info() provision.Info {
	info := provision.Info{Name: "lima", SSH: true, Image: bed.VM, RootlessKubernetes: true, DiskLimit: true, Concurrency: 8}
	ctx, cancel := context.WithTimeout(context.Background(), versionTimeout+probeTimeout)
	defer cancel()
	if h, err := d.openHost(ctx); err == nil && !h.accel.KVM {
		info.Emulated = true
		info.Concurrency = 2 * runtime.NumCPU() // each booting guest keeps one busy, and none is to idle while the last boots
	}
	return info
}

// Create adopts, starts again or makes the machine. See provision.Driver. One that is stopped or broken and otherwise as asked for
// comes up with the disk it has.
func (d *Driver) Create(ctx context.Context, m provision.Machine) (st provision.Status, err error) {
	st, err = d.adopt(ctx, m)
	if !errors.Is(err, errDiffers) {
		return st, err
	}
	h, err := d.openHost(ctx)
	if err != nil {
		return provision.Status{}, fmt.Errorf("node %s: %w", m.Name, err)
	}
	if note := h.accel.note(); note != "" {
		d.noted.Do(func() { progress.Note(ctx, "lima: %s", note) })
	}
	step := progress.Start(ctx, "boot %s", m.Name)
	defer func() { step.EndWith(fmt.Sprintf("%s:%d", st.Address, st.Port), err) }()
	home := d.home(m.Owner.Bed)
	if n, ok := keeps(home, m); ok {
		ran := false
		if ran, err = d.restart(ctx, step, h, home, n, m); err == nil || ctx.Err() != nil {
			return d.status(home, m.Name), err
		}
		if !ran {
			err = fmt.Errorf("%w\n  The node's disk is kept: `bed up` tries again with it, and makes the node anew after `%s`", err, h.byHand(home, "delete", "-f", m.Name))
			return d.status(home, m.Name), err
		}
		progress.Note(ctx, "node %s did not come up with the disk it had, and is made anew: %v", m.Name, err)
	}
	defer func() {
		if err != nil {
			cleanup, cancel := context.WithTimeout(context.WithoutCancel(ctx), deleteTimeout)
			defer cancel()
			err = errors.Join(err, d.undo(cleanup, m))
		}
	}()
	home, n, err := d.register(ctx, h, m)
	if err != nil {
		return provision.Status{}, err
	}
	if err := d.assemble(ctx, h, home, n, m); err != nil {
		return provision.Status{}, err
	}
	if err := d.boot(ctx, step, h, home, m); err != nil {
		return provision.Status{}, err
	}
	n.Ready = true
	if err := writeNode(home, m.Name, n); err != nil {
		return provision.Status{}, err
	}
	return d.status(home, m.Name), nil
}

// undo removes what a failed Create made; never what is another's, who may have been quicker by the same name.
func (d *Driver) undo(ctx context.Context, m provision.Machine) error {
	home := d.home(m.Owner.Bed)
	if b, err := readBed(home); err == nil && b.Owner != m.Owner {
		return nil
	}
	return errors.Join(removeNode(ctx, home, m.Name), removeEmpty(ctx, home))
}

// errDiffers says that there is no such machine, or one that must be started or made anew.
var errDiffers = errors.New("the machine is not as asked for")

// adopt returns the machine if it stands exactly as asked for. A machine of another state is a *provision.ForeignError; when the
// context ends, nothing was decided.
func (d *Driver) adopt(ctx context.Context, m provision.Machine) (provision.Status, error) {
	home := d.home(m.Owner.Bed)
	if b, err := readBed(home); err == nil && !b.Owner.Same(m.Owner) {
		return provision.Status{}, &provision.ForeignError{Have: b.Owner, Want: m.Owner}
	}
	st, err := d.Read(ctx, m.Name)
	if err != nil || st.Owner != m.Owner || st.State != provision.Running || st.Digest != m.Digest() {
		return st, errDiffers
	}
	waiting, cancel := context.WithTimeout(ctx, time.Minute) // an emulated sshd on a busy host takes half of that
	defer cancel()
	if await(waiting, home, m) != nil {
		if ctx.Err() != nil {
			return st, context.Cause(ctx)
		}
		return st, errDiffers
	}
	if !st.Expires.Equal(m.Expires) {
		n, err := readNode(home, m.Name)
		if err != nil {
			return st, err
		}
		n.Expires, st.Expires = m.Expires, m.Expires
		return st, writeNode(home, m.Name, n)
	}
	return st, nil
}

// keeps tells whether there is a machine that was up once and is as asked for, whatever its processes do.
func keeps(home string, m provision.Machine) (nodeRecord, bool) {
	n, err := readNode(home, m.Name)
	if err != nil || n.Owner != m.Owner || n.Digest != m.Digest() || !n.Ready {
		return n, false
	}
	_, err = os.Stat(filepath.Join(instance(home, m.Name), "disk"))
	return n, err == nil
}

// restart starts a machine with the disk it has, after whatever is left of its last run. When the context ends, it is stopped. One that ran and could
// not be reached has a disk that is good for nothing; one that did not run may lack what the host lacks.
func (d *Driver) restart(ctx context.Context, step *progress.Step, h host, home string, n nodeRecord, m provision.Machine) (ran bool, err error) {
	err = stop(ctx, home, m.Name, mendTimeout)
	if err == nil {
		err = d.boot(ctx, step, h, home, m)
	}
	if err != nil {
		ran = look(home, m.Name).machine
		clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), deleteTimeout)
		defer cancel()
		return ran, errors.Join(err, kill(clean, home, func(p process) bool { return p.of(home, m.Name) }))
	}
	n.Expires = m.Expires
	return true, writeNode(home, m.Name, n)
}

// stop has the guest shut down within a time, where it can still be asked, and ends what is left.
func stop(ctx context.Context, home, node string, timeout time.Duration) error {
	if r := look(home, node); r.agent && r.machine && r.network {
		waiting, cancel := context.WithTimeout(ctx, timeout)
		defer cancel()
		pid := readPID(filepath.Join(instance(home, node), "ha.pid")) // none, if it has just ended
		if pid > 0 {
			if err := syscall.Kill(pid, syscall.SIGINT); err != nil && !errors.Is(err, syscall.ESRCH) {
				return fmt.Errorf("stop node %s: %w", node, err)
			}
		}
		for r := look(home, node); (r.agent || r.machine) && waiting.Err() == nil; r = look(home, node) {
			time.Sleep(stopPoll) // a poll, bounded by waiting: it is no child of ours
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, deleteTimeout)
	defer cancel()
	return kill(ctx, home, func(p process) bool { return p.of(home, node) })
}

// Read tells how the machine is.
func (d *Driver) Read(_ context.Context, name string) (provision.Status, error) {
	home, ok := d.homeOf(name)
	if !ok {
		return provision.Status{}, fmt.Errorf("node %s: %w", name, provision.ErrNotFound)
	}
	return d.status(home, name), nil
}

// status tells how a machine is by its record and its processes. limactl is not asked: it takes seconds for one that hangs, and does
// not know whether the network is there.
func (d *Driver) status(home, name string) provision.Status {
	st := provision.Status{Name: name, Address: hostAddress, State: provision.Running}
	n, err := readNode(home, name)
	if err != nil {
		st.Owner.Bed, st.State, st.Detail = filepath.Base(home), provision.Broken, err.Error()
		return st
	}
	st.Owner, st.Digest, st.HostPublicKey, st.Incarnation, st.Expires = n.Owner, n.Digest, n.HostPublicKey, n.Incarnation, n.Expires
	st.BedAddress, st.Port = n.BedAddress, sshPort(home, name)
	r := look(home, name)
	switch {
	case !r.agent && !r.machine:
		st.State, st.Detail = provision.Stopped, "none of its processes is there"
	case !r.agent:
		st.State, st.Detail = provision.Broken, "its limactl hostagent was killed; "+vmType()+" is left"
	case !r.machine:
		st.State, st.Detail = provision.Broken, "its "+vmType()+" was killed; limactl hostagent is left"
	case !r.network:
		st.State, st.Detail = provision.Broken, "the bed's network was killed: its limactl usernet is gone"
	}
	if !n.Ready {
		st.State, st.Detail = provision.Broken, "half made"
	}
	return st
}

// Update changes CPUs and memory and lets the disk grow in place, by a shutdown and a start; for anything else the machine is made
// anew.
func (d *Driver) Update(ctx context.Context, m provision.Machine) (provision.Status, error) {
	home := d.home(m.Owner.Bed)
	n, err := readNode(home, m.Name)
	if err != nil || n.Owner != m.Owner || !n.Ready || n.Frame != frame(m) || n.Digest == m.Digest() {
		return d.Create(ctx, m)
	}
	h, err := d.openHost(ctx)
	if err != nil {
		return provision.Status{}, fmt.Errorf("node %s: %w", m.Name, err)
	}
	size, err := diskSize(m)
	if err != nil || m.Disk != 0 && size < n.Disk { // a disk does not shrink
		return d.Create(ctx, m)
	}
	n.CPUs, n.Memory, n.Disk, n.Digest, n.Expires = m.CPUs, m.Memory, max(size, n.Disk), m.Digest(), m.Expires
	if err := d.change(ctx, h, home, n, m); err != nil {
		return provision.Status{}, fmt.Errorf("change node %s: %w", m.Name, err)
	}
	return d.Create(ctx, m) // which starts it
}

// change stops a machine and writes down what it is to be. Lima grows the disk at the next start.
func (d *Driver) change(ctx context.Context, h host, home string, n nodeRecord, m provision.Machine) error {
	if err := stop(ctx, home, m.Name, stopTimeout); err != nil {
		return err
	}
	text, err := render(m, n.Disk, limaKey(home))
	if err != nil {
		return err
	}
	file := own(home, m.Name+".yaml")
	if err := errors.Join(os.WriteFile(file, text, 0o600), h.account.own(file)); err != nil {
		return err
	}
	if err := os.Rename(file, filepath.Join(instance(home, m.Name), "lima.yaml")); err != nil {
		return err
	}
	cmdlinePath := filepath.Join(instance(home, m.Name), cmdlineFile)
	if cmdline, ok := direct(m); ok && usesQEMU() {
		if err := errors.Join(os.WriteFile(cmdlinePath, []byte(cmdline), 0o600), h.account.own(cmdlinePath)); err != nil {
			return err
		}
	}
	return writeNode(home, m.Name, n)
}

// List shows the machines of all beds, or of one.
func (d *Driver) List(_ context.Context, owner string) ([]provision.Status, error) {
	var all []provision.Status
	for _, b := range d.beds() {
		if owner != "" && owner != b {
			continue
		}
		for _, n := range nodes(d.home(b)) {
			all = append(all, d.status(d.home(b), n))
		}
	}
	return all, nil
}

// Delete removes the machine, and with the last one the bed's LIMA_HOME.
func (d *Driver) Delete(ctx context.Context, name string) error {
	home, ok := d.homeOf(name)
	if !ok {
		return nil
	}
	if err := removeNode(ctx, home, name); err != nil {
		return err
	}
	return removeEmpty(ctx, home)
}

// Owners lists the marks of all beds here, those without a node included.
func (d *Driver) Owners(context.Context) ([]provision.Owner, error) {
	var owners []provision.Owner
	for _, b := range d.beds() {
		r, err := readBed(d.home(b))
		if err != nil { // killed before it was written: nobody's, but named
			r.Owner = provision.Owner{Bed: b}
		}
		owners = append(owners, r.Owner)
	}
	return owners, nil
}

// Sweep removes whatever there is of the bed, provided that it is the owner's.
func (d *Driver) Sweep(ctx context.Context, owner provision.Owner) error {
	home := d.home(owner.Bed)
	if b, err := readBed(home); err == nil && !b.Owner.Same(owner) {
		return &provision.ForeignError{Have: b.Owner, Want: owner}
	}
	for _, n := range nodes(home) {
		if err := removeNode(ctx, home, n); err != nil {
			return err
		}
	}
	return removeEmpty(ctx, home)
}

// removeNode takes a node apart: processes, instance, record. Each may be missing; what has no record is not ours.
func removeNode(ctx context.Context, home, node string) error {
	record := own(home, node+".json")
	if _, err := os.Stat(record); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	ctx, cancel := context.WithTimeoutCause(ctx, deleteTimeout, fmt.Errorf("not within %s", deleteTimeout))
	defer cancel()
	if err := forceDelete(ctx, home, node); err != nil {
		return fmt.Errorf("remove node %s: %w", node, err)
	}
	if err := kill(ctx, home, func(p process) bool { return p.of(home, node) }); err != nil {
		return fmt.Errorf("remove node %s: %w", node, err)
	}
	for _, path := range []string{instance(home, node), own(home, node+".new"), own(home, node+".yaml"), own(home, node+".log"), record} {
		if err := os.RemoveAll(path); err != nil { // the record is the last to go
			return fmt.Errorf("remove node %s: %w", node, err)
		}
	}
	return nil
}

// removeEmpty removes a bed without nodes: its network and its LIMA_HOME. Instances that somebody else put there stay, and then so does
// what they use.
func removeEmpty(ctx context.Context, home string) error {
	if len(nodes(home)) > 0 {
		return nil
	}
	ctx, cancel := context.WithTimeoutCause(ctx, deleteTimeout, fmt.Errorf("not within %s", deleteTimeout))
	defer cancel()
	unlock, err := lock(ctx, home)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unlock()
	if len(nodes(home)) > 0 { // one was made meanwhile
		return nil
	}
	if len(foreign(home)) > 0 {
		return errors.Join(os.RemoveAll(filepath.Join(home, tempDir)), os.RemoveAll(filepath.Join(home, ownDir)))
	}
	if err := kill(ctx, home, func(process) bool { return true }); err != nil {
		return fmt.Errorf("remove bed %s: %w", filepath.Base(home), err)
	}
	entries, err := os.ReadDir(home)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.Name() != ownDir { // our mark is the last to go
			if err := os.RemoveAll(filepath.Join(home, e.Name())); err != nil {
				return err
			}
		}
	}
	return os.RemoveAll(home)
}
