// Package ovirt makes virtual machines on an oVirt engine, as the talk's were.
//
// Everything that it makes bears its bed's mark: a VM in its description and comment, in the very request that makes it. An engine does most
// things after it has answered, and may do what it was asked for although the answer is lost; so no request that makes something is made
// again before the engine has been asked whether that is there.
package ovirt

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	ovirtsdk "github.com/ovirt/go-ovirt"

	"github.com/bedfellow/bedfellow/pkg/bed"
	"github.com/bedfellow/bedfellow/pkg/progress"
	"github.com/bedfellow/bedfellow/pkg/remote"
	"github.com/bedfellow/bedfellow/provision"
)

// Driver makes machines on one engine. It is safe for concurrent use.
type Driver struct {
	settings Settings
	timing   timing
	log      *slog.Logger
	port     int    // of machines' sshds
	cache    string // directory for what uploads have come to, and for their locks

	placing sync.Mutex
	at      place
	open    bed.Problems   // what is yet to be chosen for that, as Check found it
	disks   map[string]int // MiB of templates' disks, by the templates' ids; 0 is not shown to this user

	labelling sync.Mutex
	groups    map[string]string // affinity groups by bed, whose tag is there too; empty without
	labels    map[string]labels // by cluster and bed, as they were a moment ago

	mu     sync.Mutex
	client *client
	made   map[string]string // templates by their names

	looking chan struct{} // held by who looks
	looked  time.Time
	seen    map[string]*ovirtsdk.Vm // by id, as it was then
}

// New returns a driver for an engine. Nothing is asked of it yet. What uploads have come to is kept in cache, to be gone on with.
func New(s Settings, cache string, log *slog.Logger) *Driver {
	return &Driver{settings: s, timing: usualTiming(), port: 22, cache: cache, log: log, groups: map[string]string{}, labels: map[string]labels{}, disks: map[string]int{}, made: map[string]string{}, looking: make(chan struct{}, 1)}
}

var (
	_ provision.Driver  = (*Driver)(nil)
	_ provision.Fitter  = (*Driver)(nil)
	_ provision.Sweeper = (*Driver)(nil)
	_ provision.Adviser = (*Driver)(nil)

	_ provision.ImageKeeper = (*Driver)(nil)
	_ provision.Uploader    = (*Driver)(nil)
)

// Info tells what the driver is.
func (d *Driver) Info() provision.Info {
	return provision.Info{Name: "ovirt", SSH: true, Image: bed.VM, RootlessKubernetes: true, DiskLimit: true, Concurrency: cmp.Or(d.settings.Concurrency, defaultConcurrency)}
}

// Requests is how many requests of the engine's API were made so far, tokens and images' data left out.
func (d *Driver) Requests() int64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.client == nil {
		return 0
	}
	return d.client.requests.Load()
}

func (d *Driver) connected(ctx context.Context) (*client, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.client != nil {
		return d.client, nil
	}
	c, err := connect(ctx, d.settings, d.timing, d.log)
	if err != nil {
		return nil, err
	}
	d.client = c
	return c, nil
}

// placed is connected, with the place that machines are made at.
func (d *Driver) placed(ctx context.Context) (*client, place, error) {
	c, err := d.connected(ctx)
	if err != nil {
		return nil, place{}, err
	}
	d.placing.Lock()
	defer d.placing.Unlock()
	if d.at == (place{}) {
		at, problems, open, err := c.where(ctx)
		if err := errors.Join(err, append(problems, open...).Err()); err != nil {
			return nil, place{}, err
		}
		d.at = at
	}
	return c, d.at, nil
}

// Check asks the engine whether it is there, lets the user in, and has what the settings name. What is yet to be chosen is Fit's to tell: without it
// no machine is made.
func (d *Driver) Check(ctx context.Context) []bed.Problem {
	ctx, cancel := context.WithTimeoutCause(ctx, d.timing.retry/12, errors.New("no answer came")) // who asks this waits for it
	defer cancel()
	c, err := d.connected(ctx)
	if err == nil {
		var about string
		if about, err = c.describe(ctx); err == nil {
			d.log.Debug("engine", "is", about)
			var problems, open bed.Problems
			_, problems, open, err = c.where(ctx)
			d.placing.Lock()
			d.open = open
			d.placing.Unlock()
			if err == nil { // not every user may see them all
				_, err = c.call(ctx, http.MethodGet, "/vms", url.Values{"max": {"1"}}, nil)
			}
			if err == nil {
				if d.settings.Insecure {
					progress.Note(ctx, "ovirt.insecure: nobody checks whether %s is the engine that it says it is; give its CA with ovirt.caFile or ovirt.fingerprint", d.settings.URL)
				}
				return problems
			}
		}
	}
	remedy := "see whether the engine runs, and the keys ovirt.… of the stack"
	switch {
	case errors.As(err, new(*refusedError)):
		remedy = "give the right ones there; a name ends in its profile's, as admin@internal does"
		if d.settings.Token != "" {
			remedy = "give a new one there, or a name and a password instead"
		}
	case strings.Contains(err.Error(), "x509:"):
		remedy = "give the CA of this engine with ovirt.caFile, as " + strings.TrimSuffix(d.settings.URL, "/api") + "/services/pki-resource?resource=ca-certificate&format=X509-PEM-CA has it, or its SHA-256 with ovirt.fingerprint"
	}
	return []bed.Problem{{Key: "ovirt.url", Value: d.settings.URL, Host: true, Reason: err.Error(), Remedy: remedy}}
}

// Advise tells what Check has found that there is to choose from, and what the user cannot have.
func (d *Driver) Advise(ctx context.Context) (advice []string) {
	if c, err := d.connected(ctx); err == nil && c.filtered.Load() {
		advice = append(advice, "this user has no role of an administrator there: beds get no tag and are not spread over hosts, and an administrator makes the images' templates")
	}
	d.placing.Lock()
	defer d.placing.Unlock()
	for _, p := range d.open {
		advice = append(advice, fmt.Sprintf("%s %s; `bed up` wants one with -c %s=…", p.Key, p.Reason, p.Key))
	}
	return advice
}

// Fit tells what Check has found to be chosen yet, and looks whether there are addresses for all.
func (d *Driver) Fit(_ context.Context, machines []provision.Machine) []bed.Problem {
	d.placing.Lock()
	defer d.placing.Unlock()
	if len(d.open) > 0 {
		return d.open
	}
	if have := len(d.settings.Addresses); have > 0 {
		for _, m := range machines {
			if m.Index >= have {
				return []bed.Problem{{Key: "ovirt.addresses", Value: fmt.Sprintf("%s-%s", d.settings.Addresses[0].Addr(), d.settings.Addresses[have-1]), Host: true,
					Reason: fmt.Sprintf("has %d addresses, and the bed %d nodes", have, len(machines)), Remedy: "give more, or ask for fewer nodes"}}
			}
		}
	}
	return nil
}

// found are the VMs that a search finds, those of ours, with what it follows besides.
func (c *client) found(ctx context.Context, query url.Values, follow string) (vms []*ovirtsdk.Vm, marks []mark, err error) {
	query.Set("follow", "reported_devices"+follow)
	data, err := c.call(ctx, http.MethodGet, "/vms", query, nil)
	list, err := many(data, err, ovirtsdk.XMLVmReadMany)
	if err != nil {
		return nil, nil, err
	}
	for _, vm := range list.Slice() {
		if m, ok := readMark(vm); ok {
			vms, marks = append(vms, vm), append(marks, m)
		}
	}
	return vms, marks, nil
}

// node finds a node's VM, whatever it is called now. nil is none.
func (c *client) node(ctx context.Context, name string) (*ovirtsdk.Vm, mark, error) {
	vms, marks, err := c.found(ctx, oursCalled(name), ",disk_attachments.disk")
	if err != nil {
		return nil, mark{}, err
	}
	for i, m := range marks {
		if m.Name == name {
			return vms[i], m, nil
		}
	}
	return nil, mark{}, nil
}

// Read tells how the machine is.
func (d *Driver) Read(ctx context.Context, name string) (provision.Status, error) {
	c, err := d.connected(ctx)
	if err != nil {
		return provision.Status{}, err
	}
	vm, m, err := c.node(ctx, name)
	if err != nil {
		return provision.Status{}, fmt.Errorf("node %s: %w", name, err)
	}
	if vm == nil {
		return provision.Status{}, fmt.Errorf("node %s: %w", name, provision.ErrNotFound)
	}
	st := d.status(vm, m)
	if m.VM == "" {
		return st, nil
	}
	cluster, _ := vm.Cluster()
	lacks, err := d.lacks(ctx, c, idOf(cluster), m.Owner.Bed, m.VM)
	if err != nil {
		return provision.Status{}, fmt.Errorf("node %s: %w", name, err)
	}
	if said := lacks.String(); said != "" {
		st.Digest, st.Detail = "", strings.TrimPrefix(st.Detail+"; "+said, "; ")
	}
	return st, nil
}

// List shows the machines of all beds, or of one.
func (d *Driver) List(ctx context.Context, owner string) ([]provision.Status, error) {
	c, err := d.connected(ctx)
	if err != nil {
		return nil, err
	}
	query := oursAll()
	if owner != "" {
		query = oursOf(owner)
	}
	vms, marks, err := c.found(ctx, query, "")
	if err != nil {
		return nil, err
	}
	var all []provision.Status
	for i, vm := range vms {
		if owner == "" || marks[i].Owner.Bed == owner {
			all = append(all, d.status(vm, marks[i]))
		}
	}
	slices.SortFunc(all, func(a, b provision.Status) int { return cmp.Compare(a.Name, b.Name) })
	return all, nil
}

// Create adopts, starts again or makes the machine. See provision.Driver. One that was stopped and is otherwise as asked for comes up with the
// disk it has.
func (d *Driver) Create(ctx context.Context, m provision.Machine) (st provision.Status, err error) {
	c, at, err := d.placed(ctx)
	if err != nil {
		return st, fmt.Errorf("node %s: %w", m.Name, err)
	}
	vm, have, err := c.node(ctx, m.Name)
	if err != nil {
		return st, fmt.Errorf("node %s: %w", m.Name, err)
	}
	if vm != nil && have.Owner.State != "" && !have.Owner.Same(m.Owner) {
		return st, &provision.ForeignError{Have: have.Owner, Want: m.Owner}
	}
	step := progress.Start(ctx, "boot %s", m.Name)
	defer func() { step.EndWith(st.Address, err) }()
	if vm != nil && have.Owner == m.Owner && have.Digest == m.Digest() && have.Frame == frame(m, d.settings) && have.VM != "" {
		st, err = d.mend(ctx, c, at, vm, have, m)
		if !errors.As(err, new(*remote.HostKeyError)) { // somebody else is on that disk; anything else may pass, and what is on it is worth keeping
			if err != nil && ctx.Err() == nil {
				err = fmt.Errorf("node %s: %w; remove its VM in the engine, and `bed up` makes it anew", m.Name, err)
			}
			return st, err
		}
		progress.Note(ctx, "node %s is made anew: %v", m.Name, err)
	}
	if vm != nil {
		if err := c.remove(ctx, idOf(vm)); err != nil {
			return st, fmt.Errorf("node %s: remove the one that is not as asked for: %w", m.Name, err)
		}
	}
	template, err := d.template(ctx, c, at, m)
	if err != nil {
		return st, fmt.Errorf("node %s: %w", m.Name, err)
	}
	defer func() {
		if err != nil {
			clean, cancel := context.WithTimeoutCause(context.WithoutCancel(ctx), d.timing.retry, errors.New("the engine took too long to take it away again"))
			defer cancel()
			err = errors.Join(err, d.undo(clean, c, m, errors.As(err, new(*uncertainError))))
		}
	}()
	if st, err = d.make(ctx, c, at, template, m); err != nil {
		return provision.Status{}, fmt.Errorf("node %s: %w", m.Name, err)
	}
	return st, nil
}

// undo removes what a failed Create made; never what is another's, who may have been quicker by the same name.
// What the engine was asked for without an answer may come late.
func (d *Driver) undo(ctx context.Context, c *client, m provision.Machine, late bool) error {
	end := time.Now().Add(d.timing.most)
	for {
		vm, have, err := c.node(ctx, m.Name)
		if err != nil || vm != nil && have.Owner != m.Owner {
			return err
		}
		if vm != nil {
			return d.Delete(ctx, m.Name)
		}
		if !late || time.Now().After(end) || !sleep(ctx, d.timing.pause) {
			return nil
		}
	}
}

// make makes a VM and starts it.
func (d *Driver) make(ctx context.Context, c *client, at place, template string, m provision.Machine) (st provision.Status, err error) {
	want, err := render(m, d.settings, at.cluster, template)
	if err != nil {
		return st, err
	}
	body, err := written(want, ovirtsdk.XMLVmWriteOne)
	if err != nil {
		return st, err
	}
	id, err := c.create(ctx, "/vms", body, func(ctx context.Context) (string, error) {
		vm, have, err := c.node(ctx, m.Name)
		if vm == nil || have.Digest != m.Digest() {
			return "", err
		}
		return idOf(vm), nil
	})
	if err != nil {
		return st, nameTaken(err, m.Name)
	}
	vm, err := c.awaitVM(ctx, id, "be made", ovirtsdk.VMSTATUS_DOWN, d.look)
	if err != nil {
		return st, err
	}
	if d.settings.Template != "" { // which may have interfaces of its own
		if err := c.clearNICs(ctx, id); err != nil {
			return st, err
		}
	}
	nic, err := written(ovirtsdk.NewNicBuilder().Name("nic1").Interface(ovirtsdk.NICINTERFACE_VIRTIO).
		VnicProfile(ovirtsdk.NewVnicProfileBuilder().Id(at.vnicProfile).MustBuild()).MustBuild(), ovirtsdk.XMLNicWriteOne)
	if err != nil {
		return st, err
	}
	if _, err := c.create(ctx, "/vms/"+id+"/nics", nic, byName(c, "/vms/"+id+"/nics", nil, "nic1", ovirtsdk.XMLNicReadMany, (*ovirtsdk.NicSlice).Slice)); err != nil {
		return st, fmt.Errorf("give it a network interface: %w", err)
	}
	have, _ := readMark(want)
	if have.DiskIs, err = d.templateDisk(ctx, c, template); err != nil {
		return st, err
	}
	if asked := int(m.Disk / bed.MiB); asked > have.DiskIs {
		disk, err := c.bootDisk(ctx, "/vms/"+id)
		if err == nil && disk.MiB < asked {
			err = c.grow(ctx, id, disk, m.Disk)
		}
		if err != nil {
			return st, fmt.Errorf("give its disk %s: %w", m.Disk, err)
		}
		have.DiskIs = max(disk.MiB, asked)
	}
	if err := d.label(ctx, c, at, id, m.Owner.Bed, unlabelled); err != nil {
		return st, err
	}
	if st, err = d.boot(ctx, c, vm, have, m); err != nil {
		return st, err
	}
	have.VM = id
	return st, c.change(ctx, id, ovirtsdk.NewVmBuilder().Comment(have.String()))
}

// nameTaken explains the refusal of a name that somebody else's VM has.
func nameTaken(err error, name string) error {
	var f *Fault
	if errors.As(err, &f) && strings.Contains(f.Detail, "already in use") {
		return fmt.Errorf("the engine has a VM called %s that is none of Bedfellow's; rename it there, or give the bed another name with -c name=…: %w", name, err)
	}
	return err
}

// mend has a machine that is as asked for run and answer, with its bed's tag, and in the bed's affinity group or in none.
func (d *Driver) mend(ctx context.Context, c *client, at place, vm *ovirtsdk.Vm, have mark, m provision.Machine) (provision.Status, error) {
	id, changed := idOf(vm), ovirtsdk.NewVmBuilder()
	now := have
	now.Expires, now.Shape, now.DiskIs = m.Expires, d.settings.shape(), max(diskOf(vm).MiB, int(m.Disk/bed.MiB))
	if sizeOf(vm) != sizeOf(sizes(ovirtsdk.NewVmBuilder(), m, d.settings).MustBuild()) || now.Shape != have.Shape {
		if err := c.stop(ctx, id); err != nil {
			return provision.Status{}, err
		}
		vm.SetStatus(ovirtsdk.VMSTATUS_DOWN)
		sizes(changed, m, d.settings)
	}
	switch disk := diskOf(vm); {
	case disk.MiB == 0: // a user who is not shown it
		now.DiskIs = have.DiskIs
	case disk.MiB < now.DiskIs:
		err := c.grow(ctx, id, disk, m.Disk)
		if err == nil {
			err = c.awaitDisk(ctx, disk.id)
		}
		if err != nil {
			return provision.Status{}, fmt.Errorf("give its disk %s: %w", m.Disk, err)
		}
	case have.DiskIs > 0 && disk.MiB > have.DiskIs:
		progress.Note(ctx, "node %s keeps the disk of %d MiB that somebody has given it in the engine: none shrinks", m.Name, disk.MiB)
	}
	lacks, err := d.lacks(ctx, c, at.cluster, m.Owner.Bed, id)
	if err == nil {
		err = d.label(ctx, c, at, id, m.Owner.Bed, lacks)
	}
	if err != nil {
		return provision.Status{}, err
	}
	if len(drift(vm, have)) > 0 || now.String() != have.String() {
		changed.Name(m.Name).Description(aboutNode(m.Owner.Bed, m.Name)).Comment(now.String())
		if err := c.change(ctx, id, changed); err != nil {
			return provision.Status{}, err
		}
	}
	if _, err := d.boot(ctx, c, vm, now, m); err != nil {
		return provision.Status{}, err
	}
	return d.Read(ctx, m.Name)
}

// Update changes CPUs and memory and lets the disk grow in place, by a stop and a start; for anything else the machine is made anew.
func (d *Driver) Update(ctx context.Context, m provision.Machine) (provision.Status, error) {
	c, err := d.connected(ctx)
	if err != nil {
		return provision.Status{}, err
	}
	vm, have, err := c.node(ctx, m.Name)
	if err != nil {
		return provision.Status{}, fmt.Errorf("node %s: %w", m.Name, err)
	}
	shrinks := m.Disk > 0 && int(m.Disk/bed.MiB) < have.DiskMiB
	if vm == nil || have.Owner != m.Owner || have.Frame != frame(m, d.settings) || have.Digest == m.Digest() || have.VM == "" || shrinks {
		return d.Create(ctx, m)
	}
	id := idOf(vm)
	if err := c.stop(ctx, id); err != nil {
		return provision.Status{}, fmt.Errorf("change node %s: %w", m.Name, err)
	}
	now := markOf(m, d.settings, have.Address)
	now.VM, now.DiskIs = id, have.DiskIs
	if err := c.change(ctx, id, sizes(ovirtsdk.NewVmBuilder(), m, d.settings).Comment(now.String())); err != nil {
		return provision.Status{}, fmt.Errorf("change node %s: %w", m.Name, err)
	}
	return d.Create(ctx, m) // which lets its disk grow, and starts it
}

// Delete removes the VM and its disk, and with the bed's last one what they shared.
func (d *Driver) Delete(ctx context.Context, name string) error {
	c, err := d.connected(ctx)
	if err != nil {
		return err
	}
	vm, have, err := c.node(ctx, name)
	if err != nil || vm == nil {
		return err
	}
	if err := c.remove(ctx, idOf(vm)); err != nil {
		return fmt.Errorf("remove node %s: %w", name, err)
	}
	left, err := d.List(ctx, have.Owner.Bed)
	if err != nil || len(left) > 0 {
		return err
	}
	return d.unlabel(ctx, have.Owner.Bed)
}
