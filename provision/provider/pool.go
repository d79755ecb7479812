package provider

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"time"

	p "github.com/pulumi/pulumi-go-provider"
	"github.com/pulumi/pulumi-go-provider/infer"
	"golang.org/x/crypto/ssh"

	"github.com/bedfellow/bedfellow/pkg/bed"
	"github.com/bedfellow/bedfellow/pkg/progress"
	"github.com/bedfellow/bedfellow/pkg/remote"
	"github.com/bedfellow/bedfellow/provision"
	"github.com/bedfellow/bedfellow/provision/drivers"
)

// Pool is a bed's machines of one driver. It is one resource, not one per machine: a file-backed state is written whole per
// resource, which makes a thousand of them take minutes.
type Pool struct{ host Host }

// PoolArgs say which machines.
type PoolArgs struct {
	Driver         string            `pulumi:"driver"`
	Owner          provision.Owner   `pulumi:"owner"`
	Nodes          []PoolNode        `pulumi:"nodes"`
	Image          string            `pulumi:"image,optional"`
	ImageDigest    string            `pulumi:"imageDigest,optional"`
	Network        string            `pulumi:"network"`
	User           string            `pulumi:"user"`
	UserPrivateKey string            `pulumi:"userPrivateKey" provider:"secret"`
	UserPublicKey  string            `pulumi:"userPublicKey"`
	HostKeys       map[string]string `pulumi:"hostKeys" provider:"secret"`
	HostPublicKeys map[string]string `pulumi:"hostPublicKeys"`
	TTL            string            `pulumi:"ttl,optional"`
	Slow           bool              `pulumi:"slow,optional"`
	Settings       map[string]string `pulumi:"settings,optional"`
}

// PoolNode is one machine as asked for.
type PoolNode struct {
	Name      string `pulumi:"name"`
	Index     int    `pulumi:"index"`
	Role      string `pulumi:"role"`
	CPUs      int    `pulumi:"cpus"`
	MemoryMiB int    `pulumi:"memoryMiB"`
	DiskMiB   int    `pulumi:"diskMiB,optional"`
}

// PoolState is what stands.
type PoolState struct {
	PoolArgs
	Expires  string        `pulumi:"expires,optional"`
	Machines []PoolMachine `pulumi:"machines"`
}

// PoolMachine is one machine as found.
type PoolMachine struct {
	Name           string `pulumi:"name"`
	State          string `pulumi:"state"`
	Detail         string `pulumi:"detail,optional"`
	Address        string `pulumi:"address,optional"`
	Port           int    `pulumi:"port,optional"`
	Via            string `pulumi:"via,optional"`
	BedAddress     string `pulumi:"bedAddress,optional"`
	HostCPUs       string `pulumi:"hostCPUs,optional"`
	Oversubscribed bool   `pulumi:"oversubscribed,optional"`
	Incarnation    string `pulumi:"incarnation,optional"`
	Digest         string `pulumi:"digest,optional"`
	// What the machine itself says.
	BootID string `pulumi:"bootId,optional"`
	CPUs   int    `pulumi:"cpus,optional"`
	// MemoryMiB as its kernel shows it.
	MemoryMiB int    `pulumi:"memoryMiB,optional"`
	Kernel    string `pulumi:"kernel,optional"`
}

// States beside the driver's: a machine that is not there at all, and one that is there and was never recorded.
const (
	missing = "missing"
	surplus = "surplus"
)

// Annotate describes the resource in the schema.
func (r *Pool) Annotate(a infer.Annotator) {
	a.Describe(r, "The machines of a bed that one driver makes, side by side. Refresh asks each machine itself; update mends what it found.")
}

// Annotate describes the inputs in the schema.
func (r *PoolArgs) Annotate(a infer.Annotator) {
	a.Describe(&r.Driver, "Who makes the machines: nspawn, lima, ovirt, sim.")
	a.Describe(&r.Settings, "The driver's own settings, by the names of its configuration keys.")
	a.Describe(&r.Owner, "The mark on everything the pool makes.")
	a.Describe(&r.Nodes, "The machines, in order.")
	a.Describe(&r.Image, "Path of the image they boot from.")
	a.Describe(&r.ImageDigest, "Digest of that image.")
	a.Describe(&r.Network, "isolated, or outbound for a route out of the bed.")
	a.Describe(&r.User, "The user to log in as.")
	a.Describe(&r.UserPrivateKey, "Their private key, to ask the machines with.")
	a.Describe(&r.UserPublicKey, "Their public key, which may log in.")
	a.Describe(&r.HostKeys, "Private host key by machine name.")
	a.Describe(&r.HostPublicKeys, "Public host key by machine name.")
	a.Describe(&r.TTL, "How long the machines are meant to live, such as 8h; empty is forever.")
	a.Describe(&r.Slow, "Emulated machines: every time-out is longer.")
}

// Annotate describes the outputs in the schema.
func (r *PoolState) Annotate(a infer.Annotator) {
	a.Describe(&r.Expires, "When the machines may be swept, RFC 3339.")
	a.Describe(&r.Machines, "The machines as last seen.")
}

// Check asks the driver whether the host can serve and hold the machines, before anything is made.
func (r *Pool) Check(ctx context.Context, req infer.CheckRequest) (infer.CheckResponse[PoolArgs], error) {
	args, failures, err := infer.DefaultCheck[PoolArgs](ctx, req.NewInputs)
	if err != nil || len(failures) > 0 {
		return infer.CheckResponse[PoolArgs]{Inputs: args, Failures: failures}, err
	}
	d, err := r.host.driver(args.Driver, args.Settings)
	if err != nil {
		return infer.CheckResponse[PoolArgs]{}, err
	}
	problems := []bed.Problem(drivers.CheckSettings(args.Driver, args.Settings))
	for _, name := range slices.Sorted(maps.Keys(args.Settings)) {
		if key := args.Driver + "." + name; bed.Secret(key) {
			problems = append(problems, bed.Problem{Key: key, Reason: "is a secret, and a pool's settings are in the state in the clear", Remedy: "take it out of them, and write `pulumi config set --secret bedfellow:" + key + "`"})
		}
	}
	if len(problems) == 0 {
		problems = d.Check(ctx)
	}
	if fitter, ok := d.(provision.Fitter); ok && len(args.Nodes) > 0 {
		problems = append(problems, fitter.Fit(ctx, machines(args, time.Time{}))...)
	}
	for _, problem := range problems {
		failures = append(failures, p.CheckFailure{Property: problem.Key, Reason: problem.String()})
	}
	return infer.CheckResponse[PoolArgs]{Inputs: args, Failures: failures}, nil
}

func machines(args PoolArgs, expires time.Time) []provision.Machine {
	list := make([]provision.Machine, len(args.Nodes))
	for i, n := range args.Nodes {
		list[i] = provision.Machine{
			Name: n.Name, Owner: args.Owner, Index: n.Index, Role: bed.Role(n.Role), CPUs: n.CPUs,
			Memory: bed.Size(n.MemoryMiB) * bed.MiB, Disk: bed.Size(n.DiskMiB) * bed.MiB,
			Image: args.Image, ImageDigest: args.ImageDigest, Network: args.Network, User: args.User, AuthorizedKey: args.UserPublicKey,
			HostKey: args.HostKeys[n.Name], HostPublicKey: args.HostPublicKeys[n.Name], Expires: expires, Slow: args.Slow,
		}
	}
	return list
}

// Create makes or adopts the machines. When some fail the others stay, and the state says which is which.
func (r *Pool) Create(ctx context.Context, req infer.CreateRequest[PoolArgs]) (infer.CreateResponse[PoolState], error) {
	state := PoolState{PoolArgs: req.Inputs}
	id := req.Inputs.Owner.Bed
	if req.DryRun {
		return infer.CreateResponse[PoolState]{ID: id, Output: state}, nil
	}
	var err error
	if state.Expires, err = expiry(req.Inputs.TTL); err != nil {
		return infer.CreateResponse[PoolState]{}, err
	}
	state, err = r.apply(ctx, state, nil)
	return infer.CreateResponse[PoolState]{ID: id, Output: state}, err
}

// expiry is the time a bed made now may be swept; empty for one that lives for ever.
func expiry(ttl string) (string, error) {
	if ttl == "" {
		return "", nil
	}
	d, err := time.ParseDuration(ttl)
	if err != nil {
		return "", fmt.Errorf("ttl %q: %w", ttl, err)
	}
	return time.Now().Add(d).UTC().Format(time.RFC3339), nil
}

// Update removes machines that are no longer asked for, and makes those that are missing, broken or different.
func (r *Pool) Update(ctx context.Context, req infer.UpdateRequest[PoolArgs, PoolState]) (infer.UpdateResponse[PoolState], error) {
	state := req.State
	state.PoolArgs = req.Inputs
	if req.DryRun {
		return infer.UpdateResponse[PoolState]{Output: state}, nil
	}
	var err error
	if req.State.TTL != req.Inputs.TTL {
		if state.Expires, err = expiry(req.Inputs.TTL); err != nil {
			return infer.UpdateResponse[PoolState]{Output: req.State}, err
		}
	}
	state, err = r.apply(ctx, state, req.State.Machines)
	return infer.UpdateResponse[PoolState]{Output: state}, err
}

// apply brings the machines to what state asks for, given what stood before. The error is partial: the state is true in any case.
func (r *Pool) apply(ctx context.Context, state PoolState, before []PoolMachine) (PoolState, error) {
	ctx, done := withProgress(ctx)
	defer done()
	d, err := r.host.driver(state.Driver, state.Settings)
	if err != nil {
		return state, err
	}
	wanted := map[string]bool{}
	for _, n := range state.Nodes {
		wanted[n.Name] = true
	}
	standing, err := d.List(ctx, state.Owner.Bed) // also what a killed run made and nobody recorded
	if err != nil {
		return state, err
	}
	var gone []string
	was := map[string]provision.Status{}
	for _, st := range standing {
		was[st.Name] = st
		if !wanted[st.Name] && st.Owner.Same(state.Owner) {
			gone = append(gone, st.Name)
		}
	}
	limit := d.Info().Concurrency
	if err := remote.Each(ctx, gone, limit, func(ctx context.Context, _ int, name string) error { return d.Delete(ctx, name) }); err != nil {
		state.Machines = before
		return state, infer.ResourceInitFailedError{Reasons: []string{err.Error()}}
	}
	expires, _ := time.Parse(time.RFC3339, state.Expires)
	list := machines(state.PoolArgs, expires)
	state.Machines = make([]PoolMachine, len(list))
	failures := make([]error, len(list))
	step := progress.Start(ctx, "machines of %s", state.Owner.Bed)
	_ = remote.Each(ctx, list, limit, func(ctx context.Context, i int, m provision.Machine) error {
		make := d.Create
		if st, stands := was[m.Name]; stands && st.Owner == m.Owner && st.Digest != m.Digest() {
			make = d.Update // in place, where the driver can
		}
		st, err := make(ctx, m)
		if err != nil {
			failures[i] = err
			st = provision.Status{Name: m.Name, State: missing, Detail: err.Error()}
		}
		state.Machines[i] = r.machine(ctx, d, state.PoolArgs, st)
		return nil
	})
	var reasons []string
	for i, m := range state.Machines {
		if m.Name == "" { // cancelled before its turn
			state.Machines[i] = PoolMachine{Name: list[i].Name, State: missing, Detail: "not made: interrupted"}
			failures[i] = fmt.Errorf("node %s: interrupted before it was made", list[i].Name)
		} else if failures[i] == nil && m.State != string(provision.Running) {
			failures[i] = fmt.Errorf("node %s is %s: %s", list[i].Name, m.State, m.Detail)
		}
		if failures[i] != nil {
			reasons = append(reasons, failures[i].Error())
		}
	}
	if len(reasons) > 0 {
		step.EndWith("", fmt.Errorf("%d of %d failed", len(reasons), len(list)))
		return state, infer.ResourceInitFailedError{Reasons: reasons}
	}
	step.EndWith(fmt.Sprintf("%d running", len(list)), nil)
	return state, nil
}

// askTimeout is for a machine to say what it is and what runs on it; an emulated one gets six times that.
const askTimeout = 10 * time.Second

// machine turns a driver's status into the resource's, after asking the machine itself.
func (r *Pool) machine(ctx context.Context, d provision.Driver, args PoolArgs, st provision.Status) PoolMachine {
	m := PoolMachine{
		Name: st.Name, State: string(st.State), Detail: st.Detail, Address: st.Address, Port: st.Port, Via: st.Via, BedAddress: st.BedAddress, HostCPUs: st.HostCPUs,
		Oversubscribed: st.Oversubscribed, Incarnation: st.Incarnation, Digest: st.Digest,
	}
	if st.State != provision.Running || !d.Info().SSH {
		return m
	}
	timeout := askTimeout
	if args.Slow || d.Info().Emulated {
		timeout *= 6
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	facts, err := ask(ctx, d, args, st)
	if err != nil {
		m.State, m.Detail = string(provision.Broken), err.Error()
		return m
	}
	if facts.Hostname != st.Name {
		m.State, m.Detail = string(provision.Broken), fmt.Sprintf("calls itself %s; restart it, or give its name back with `sudo hostname %s` on it", facts.Hostname, st.Name)
	}
	m.BootID, m.CPUs, m.MemoryMiB, m.Kernel = facts.BootID, facts.CPUs, int(facts.MemoryMiB), facts.Kernel
	return m
}

func ask(ctx context.Context, d provision.Driver, args PoolArgs, st provision.Status) (remote.Facts, error) {
	signer, err := ssh.ParsePrivateKey([]byte(args.UserPrivateKey))
	if err != nil {
		return remote.Facts{}, fmt.Errorf("the bed's user key: %w", err)
	}
	target := func(st provision.Status) remote.Target {
		return remote.Target{Name: st.Name, Address: st.Address, Port: st.Port, User: args.User, HostKey: args.HostPublicKeys[st.Name], Signer: signer}
	}
	t := target(st)
	if st.Via != "" {
		jump, err := d.Read(ctx, st.Via)
		if err != nil {
			return remote.Facts{}, fmt.Errorf("on the way to node %s: %w", st.Name, err)
		}
		via := target(jump)
		t.Via = &via
	}
	client, err := remote.Dial(ctx, t)
	if err != nil {
		return remote.Facts{}, err
	}
	defer client.Close()
	return client.Ask(ctx)
}

// Read looks at every machine, and asks those that run for themselves.
func (r *Pool) Read(ctx context.Context, req infer.ReadRequest[PoolArgs, PoolState]) (infer.ReadResponse[PoolArgs, PoolState], error) {
	ctx, done := withProgress(ctx)
	defer done()
	state := req.State
	d, err := r.host.driver(state.Driver, state.Settings)
	if err != nil {
		return infer.ReadResponse[PoolArgs, PoolState]{}, err
	}
	found := make([]PoolMachine, len(state.Machines))
	err = remote.Each(ctx, state.Machines, d.Info().Concurrency, func(ctx context.Context, i int, old PoolMachine) error {
		st, err := d.Read(ctx, old.Name)
		switch {
		case errors.Is(err, provision.ErrNotFound):
			st = provision.Status{Name: old.Name, State: missing, Detail: "there is no such machine"}
		case err != nil:
			return err
		case st.Owner != state.Owner:
			st.State, st.Detail = provision.Broken, "bears the mark of another bed or life"
		}
		found[i] = r.machine(ctx, d, state.PoolArgs, st)
		if found[i].State != old.State {
			progress.Note(ctx, "node %s: %s → %s: %s", old.Name, old.State, found[i].State, found[i].Detail)
		} else if found[i].Digest != old.Digest && found[i].Detail != "" { // it runs, and is not what it was
			progress.Note(ctx, "node %s %s", old.Name, found[i].Detail)
		}
		return nil
	})
	if err != nil {
		return infer.ReadResponse[PoolArgs, PoolState]{}, err
	}
	standing, err := d.List(ctx, state.Owner.Bed)
	if err != nil {
		return infer.ReadResponse[PoolArgs, PoolState]{}, err
	}
	for _, st := range standing {
		known := slices.ContainsFunc(found, func(m PoolMachine) bool { return m.Name == st.Name })
		if !known && st.Owner.Same(state.Owner) {
			progress.Note(ctx, "node %s stands and is not recorded: an interrupted run made it", st.Name)
			found = append(found, PoolMachine{Name: st.Name, State: surplus, Detail: "an interrupted run made it"})
		}
	}
	state.Machines = found
	return infer.ReadResponse[PoolArgs, PoolState]{ID: req.ID, Inputs: req.Inputs, State: state}, nil
}

// Diff sees changed inputs and machines that are not as they should be.
func (r *Pool) Diff(_ context.Context, req infer.DiffRequest[PoolArgs, PoolState]) (infer.DiffResponse, error) {
	diff := infer.DiffResponse{DetailedDiff: map[string]p.PropertyDiff{}, DeleteBeforeReplace: true}
	mark := func(field string, kind p.DiffKind, changed bool) {
		if changed {
			diff.HasChanges, diff.DetailedDiff[field] = true, p.PropertyDiff{Kind: kind, InputDiff: true}
		}
	}
	old, now := req.State.PoolArgs, req.Inputs
	mark("driver", p.UpdateReplace, old.Driver != now.Driver)
	mark("owner", p.UpdateReplace, old.Owner != now.Owner)
	mark("nodes", p.Update, !reflect.DeepEqual(old.Nodes, now.Nodes))
	mark("image", p.Update, old.Image != now.Image || old.ImageDigest != now.ImageDigest)
	mark("network", p.Update, old.Network != now.Network)
	mark("user", p.Update, old.User != now.User || old.UserPrivateKey != now.UserPrivateKey)
	mark("hostKeys", p.Update, !reflect.DeepEqual(old.HostPublicKeys, now.HostPublicKeys))
	mark("slow", p.Update, old.Slow != now.Slow)
	mark("settings", p.Update, !maps.Equal(old.Settings, now.Settings))
	mark("ttl", p.Update, old.TTL != now.TTL)
	digests := map[string]string{} // a run that was killed may have left a machine of another spec than the state's
	for _, m := range machines(now, time.Time{}) {
		digests[m.Name] = m.Digest()
	}
	for i, m := range req.State.Machines {
		if m.State != string(provision.Running) || m.Digest != digests[m.Name] {
			diff.HasChanges = true
			diff.DetailedDiff[fmt.Sprintf("machines[%d].state", i)] = p.PropertyDiff{Kind: p.Update}
		}
	}
	if len(req.State.Machines) != len(now.Nodes) {
		mark("machines", p.Update, true)
	}
	return diff, nil
}

// Delete removes the machines and whatever else the bed has on the driver's host.
func (r *Pool) Delete(ctx context.Context, req infer.DeleteRequest[PoolState]) (infer.DeleteResponse, error) {
	ctx, done := withProgress(ctx)
	defer done()
	d, err := r.host.driver(req.State.Driver, req.State.Settings)
	if err != nil {
		return infer.DeleteResponse{}, err
	}
	return infer.DeleteResponse{}, Clear(ctx, d, req.State.Owner)
}

// Clear removes every machine of the owner's bed and what they shared. A bed of another state is not touched: that is a
// *provision.ForeignError.
func Clear(ctx context.Context, b provision.Beds, owner provision.Owner) error {
	d, byName := b.(provision.Driver) // a cloud may have machines of one name in several hands, and removes by the mark alone
	var all []provision.Status
	if byName {
		var err error
		if all, err = d.List(ctx, owner.Bed); err != nil {
			return err
		}
	}
	if len(all) > 0 {
		step := progress.Start(ctx, "remove machines of %s", owner.Bed)
		err := remote.Each(ctx, all, d.Info().Concurrency, func(ctx context.Context, _ int, st provision.Status) error {
			if st.Owner.State != "" && !st.Owner.Same(owner) {
				return &provision.ForeignError{Have: st.Owner, Want: owner}
			}
			return d.Delete(ctx, st.Name)
		})
		step.EndWith(fmt.Sprintf("%d removed", len(all)), err)
		if err != nil {
			return err
		}
	}
	if sweeper, ok := b.(provision.Sweeper); ok {
		return sweeper.Sweep(ctx, owner)
	}
	return nil
}

// ClearState removes every bed that bears the mark of the state, under whatever name, and what uploads have left: one may have been cut short before
// there was a machine to bear it.
func ClearState(ctx context.Context, d provision.Beds, state string) error {
	owners, err := Owners(ctx, d)
	if err != nil {
		return err
	}
	for _, owner := range owners {
		if owner.State == state {
			if err := Clear(ctx, d, owner); err != nil {
				return err
			}
		}
	}
	if u, ok := d.(provision.Uploader); ok {
		return u.ClearUploads(ctx)
	}
	return nil
}

// Owners lists the marks of all beds that there are.
func Owners(ctx context.Context, d provision.Beds) ([]provision.Owner, error) {
	if sweeper, ok := d.(provision.Sweeper); ok {
		return sweeper.Owners(ctx)
	}
	all, err := d.List(ctx, "")
	if err != nil {
		return nil, err
	}
	return provision.OwnersOf(all), nil
}
