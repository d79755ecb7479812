package stacks

import (
	"cmp"
	"fmt"

	"github.com/pulumi/pulumi-go-provider/infer"
	"github.com/pulumi/pulumi/sdk/v3/go/pulumi"

	"github.com/bedfellow/bedfellow/pkg/bed"
	"github.com/bedfellow/bedfellow/provision"
	"github.com/bedfellow/bedfellow/provision/clouds"
	"github.com/bedfellow/bedfellow/provision/drivers"
)

// User is whom scenarios, Ansible and people log in as, on every node of every driver. Images have it, and it may sudo.
const User = "bed"

// BedArgs ask for a bed. They are plain, and no inputs: they decide which resources there are.
type BedArgs struct {
	Name              string                 `pulumi:"name"`
	Driver            string                 `pulumi:"driver"`
	Image             string                 `pulumi:"image"`
	Roles             []string               `pulumi:"roles,optional"`
	WorkloadManager   string                 `pulumi:"workloadManager"`
	Flux              string                 `pulumi:"flux,optional"`
	FluxSettings      *bed.FluxSettings      `pulumi:"fluxSettings,optional"`
	Kubernetes        string                 `pulumi:"kubernetes,optional"`
	KubernetesNetwork *bed.KubernetesNetwork `pulumi:"kubernetesNetwork,optional"`
	KubernetesFor     string                 `pulumi:"kubernetesFor,optional"`
	Network           string                 `pulumi:"network"`
	Slow              bool                   `pulumi:"slow,optional"`
	TTL               string                 `pulumi:"ttl,optional"`
	Settings          map[string]string      `pulumi:"settings,optional"`
	// State is the URL of the Pulumi state that knows the bed, part of the owner mark; found by itself when empty.
	State string    `pulumi:"state,optional"`
	Nodes []BedNode `pulumi:"nodes"`
}

// BedNode is one machine of a bed.
type BedNode struct {
	Name      string `pulumi:"name"`
	Index     int    `pulumi:"index"`
	Role      string `pulumi:"role"`
	CPUs      int    `pulumi:"cpus"`
	MemoryMiB int    `pulumi:"memoryMiB"`
	DiskMiB   int    `pulumi:"diskMiB,optional"`
	// Type of machine, in a cloud.
	Type string `pulumi:"type,optional"`
}

// Bed is a whole test bed: image, keys, machines and their configuration.
type Bed struct {
	pulumi.ResourceState
	// Inventory is the bed as it stands, a bed.Inventory in JSON.
	Inventory pulumi.StringOutput `pulumi:"inventory"`
	// PrivateKey logs in to every node.
	PrivateKey pulumi.StringOutput `pulumi:"privateKey" provider:"secret"`
}

// Annotate describes the component in the schema.
func (b *Bed) Annotate(a infer.Annotator) {
	a.Describe(b, "A whole test bed: image, keys, machines and their configuration.")
	a.Describe(&b.Inventory, "The bed as it stands: nodes, addresses, public host keys; JSON without secrets.")
	a.Describe(&b.PrivateKey, "Logs in to every node as the bed's user; OpenSSH PEM.")
}

// Annotate describes the inputs in the schema.
func (b *BedArgs) Annotate(a infer.Annotator) {
	a.Describe(&b.Name, "Unique on a host; begins the nodes' names.")
	a.Describe(&b.Settings, "The driver's own settings, by the names of its configuration keys.")
	a.Describe(&b.Driver, "Who makes the machines: nspawn, lima, ovirt, sim, or the cloud aws or openstack.")
	a.Describe(&b.Image, "What is on their disks, such as debian-12.")
	a.Describe(&b.Roles, "Ansible roles on the image; none is all of them.")
	a.Describe(&b.WorkloadManager, "slurm or flux")
	a.Describe(&b.Flux, "Flux for the image: a path, an address with a digest, or pinned for the lock's. Needed where the workload manager is flux.")
	a.Describe(&b.FluxSettings, "Quorum and policies of the Flux system instance.")
	a.Describe(&b.Kubernetes, "What Kubernetes comes from: the Go module that it is built from, a directory, or pinned for the lock's container images; empty is a bed without Kubernetes.")
	a.Describe(&b.KubernetesNetwork, "Driver and MTU of the network of Kubernetes' nodes; none is slirp4netns with the most that there can be.")
	a.Describe(&b.KubernetesFor, "Whose clusters there are: usernetes, one of the bed's own, unless it is said; or jobs, those that jobs bring up.")
	a.Describe(&b.Network, "isolated, or outbound for a route out of the bed.")
	a.Describe(&b.Slow, "Emulated machines: every time-out is longer.")
	a.Describe(&b.TTL, "How long the bed is meant to live, such as 8h; empty is forever.")
	a.Describe(&b.State, "URL of the Pulumi state that knows the bed; found by itself when empty.")
	a.Describe(&b.Nodes, "The machines, in order; the one with the role control serves and does not compute.")
}

// Annotate describes a node in the schema.
func (n *BedNode) Annotate(a infer.Annotator) {
	a.Describe(n, "One machine of a bed.")
	a.Describe(&n.Name, "Its host name.")
	a.Describe(&n.Index, "Its place among the nodes, from 0.")
	a.Describe(&n.Role, "control, of the one that serves, or compute.")
	a.Describe(&n.CPUs, "CPUs, as many as its type has where it is in a cloud.")
	a.Describe(&n.MemoryMiB, "Memory in MiB, as much as its type has where it is in a cloud.")
	a.Describe(&n.DiskMiB, "Disk in MiB; none leaves it to who makes the machine.")
	a.Describe(&n.Type, "Type of machine, in a cloud, such as c7i.2xlarge; none is that of the settings.")
}

// NewBed makes a bed.
func NewBed(ctx *pulumi.Context, name string, args BedArgs, opts ...pulumi.ResourceOption) (*Bed, error) {
	on, err := info(args)
	if err != nil {
		return nil, err
	}
	args.Slow = args.Slow || on.Emulated
	if args.State == "" {
		if args.State, err = stateURL(); err != nil {
			return nil, err
		}
	}
	b := &Bed{}
	if err := ctx.RegisterComponentResource("bedfellow:index:Bed", name, b, opts...); err != nil {
		return nil, err
	}
	child := pulumi.Parent(b)
	var names pulumi.StringArray
	var nodes pulumi.Array
	for _, n := range args.Nodes {
		names = append(names, pulumi.String(n.Name))
		node := pulumi.Map{
			"name": pulumi.String(n.Name), "index": pulumi.Int(n.Index), "role": pulumi.String(n.Role),
			"cpus": pulumi.Int(n.CPUs), "memoryMiB": pulumi.Int(n.MemoryMiB),
		}
		if n.DiskMiB != 0 {
			node["diskMiB"] = pulumi.Int(n.DiskMiB)
		}
		nodes = append(nodes, node)
	}
	k := &keys{}
	if err := ctx.RegisterResource("bedfellow:index:Keys", name+"-keys", pulumi.Map{"nodes": names}, k, child); err != nil {
		return nil, err
	}
	there := clouds.Is(args.Driver) && clouds.Image(args.Settings) != ""
	digest := pulumi.String(clouds.Image(args.Settings)).ToStringOutput()
	var img *image
	if on.Image != "" && !there {
		img = &image{}
		inputs := pulumi.Map{"definition": pulumi.String(args.Image), "format": pulumi.String(on.Image), "roles": pulumi.ToStringArray(args.Roles)}
		if args.Flux != "" {
			inputs["flux"] = pulumi.String(args.Flux)
		}
		if args.Kubernetes != "" {
			inputs["kubernetes"] = pulumi.String(args.Kubernetes)
		}
		if err := ctx.RegisterResource("bedfellow:index:Image", name+"-image", inputs, img, child); err != nil {
			return nil, err
		}
		digest = img.Digest
	}
	var machines pulumi.ArrayOutput
	if clouds.Is(args.Driver) {
		machines, err = newMachines(ctx, name, args, k, img, child)
	} else {
		machines, err = newPool(ctx, name, args, k, img, nodes, child)
	}
	if err != nil {
		return nil, err
	}
	inventory := pulumi.All(k.BedID, k.HostPublicKeys, digest, machines).ApplyT(func(v []any) (bed.Inventory, error) {
		return args.inventory(on, v[0].(string), v[1].(map[string]string), v[2].(string), v[3].([]any))
	})
	ready := inventory
	if on.SSH {
		c := &configuration{}
		inputs := pulumi.Map{
			"inventory": inventory.ApplyT(func(v any) map[string]any { return inventoryMap(v.(bed.Inventory)) }), "privateKey": k.UserPrivateKey, "mungeKey": k.MungeKey,
			"curveKey": k.CurveKey, "slow": pulumi.Bool(args.Slow),
		}
		if f := args.FluxSettings; f != nil {
			inputs["fluxSettings"] = pulumi.Map{"mode": pulumi.String(f.Mode), "quorum": pulumi.Int(f.Quorum), "queuePolicy": pulumi.String(f.QueuePolicy), "matchPolicy": pulumi.String(f.MatchPolicy)}
		}
		if err := ctx.RegisterResource("bedfellow:index:Configuration", name+"-configuration", inputs, c, child); err != nil {
			return nil, err
		}
		ready = pulumi.All(inventory, c.URN()).ApplyT(func(v []any) any { return v[0] })
	}
	b.Inventory = pulumi.JSONMarshal(ready)
	b.PrivateKey = pulumi.ToSecret(k.UserPrivateKey).(pulumi.StringOutput)
	return b, ctx.RegisterResourceOutputs(b, pulumi.Map{"inventory": b.Inventory, "privateKey": b.PrivateKey})
}

// info tells what the machines of who makes them are.
func info(args BedArgs) (provision.Info, error) {
	if clouds.Is(args.Driver) {
		return clouds.Info(args.Driver), nil
	}
	d, err := drivers.Open(args.Driver, drivers.Settings{Ovirt: args.Settings})
	if err != nil {
		return provision.Info{}, err
	}
	return d.Info(), nil
}

// newPool has a driver make the machines.
func newPool(ctx *pulumi.Context, name string, args BedArgs, k *keys, img *image, nodes pulumi.Array, parent pulumi.ResourceOption) (pulumi.ArrayOutput, error) {
	inputs := pulumi.Map{
		"driver": pulumi.String(args.Driver),
		"owner":  pulumi.Map{"bed": pulumi.String(args.Name), "id": k.BedID, "state": pulumi.String(args.State)},
		"nodes":  nodes, "network": pulumi.String(args.Network), "user": pulumi.String(User), "userPrivateKey": k.UserPrivateKey,
		"userPublicKey": k.UserPublicKey, "hostKeys": k.HostKeys, "hostPublicKeys": k.HostPublicKeys,
		"ttl": pulumi.String(args.TTL), "slow": pulumi.Bool(args.Slow),
	}
	if len(args.Settings) > 0 {
		inputs["settings"] = pulumi.ToStringMap(args.Settings)
	}
	if img != nil {
		inputs["image"], inputs["imageDigest"] = img.Path, img.Digest
	}
	machines := &pool{}
	err := ctx.RegisterResource("bedfellow:index:Pool", name+"-nodes", inputs, machines, parent)
	return machines.Machines, err
}

// inventory joins what was asked for with what the pool found.
func (args BedArgs) inventory(on provision.Info, id string, hostKeys map[string]string, digest string, machines []any) (bed.Inventory, error) {
	inv := bed.Inventory{
		Bed: args.Name, ID: id, Driver: args.Driver, SharedKernel: on.SharedKernel, Image: args.Image, ImageDigest: digest,
		WorkloadManager: args.WorkloadManager, User: User,
	}
	if f := args.FluxSettings; f != nil {
		if inv.FluxMatchPolicy = f.MatchPolicy; f.Mode == "user" {
			inv.FluxMode = "user"
		}
	}
	if args.Kubernetes != "" {
		network := bed.DefaultKubernetesNetwork()
		if args.KubernetesNetwork != nil {
			network = *args.KubernetesNetwork
		}
		inv.Kubernetes, inv.KubernetesNetwork = cmp.Or(args.KubernetesFor, bed.OwnKubernetes), &network
	}
	found := map[string]map[string]any{}
	for _, machine := range machines {
		if m, ok := machine.(map[string]any); ok {
			found[fmt.Sprint(m["name"])] = m
		}
	}
	for _, n := range args.Nodes {
		m := found[n.Name] // none in a preview that would make it
		text := func(key string) string { s, _ := m[key].(string); return s }
		port, _ := m["port"].(float64)
		oversubscribed, _ := m["oversubscribed"].(bool)
		inv.Nodes = append(inv.Nodes, bed.InventoryNode{
			Name: n.Name, Address: text("address"), Port: int(port), Via: text("via"), BedAddress: text("bedAddress"), Role: bed.Role(n.Role), CPUs: n.CPUs, MemoryMiB: n.MemoryMiB,
			HostKey: hostKeys[n.Name], HostCPUs: text("hostCPUs"), Oversubscribed: oversubscribed, Incarnation: text("incarnation"),
		})
	}
	return inv, nil
}

// inventoryMap renders the inventory as the Configuration resource's input, without what configures nothing: which host CPUs run
// a node may change with a neighbouring bed.
func inventoryMap(inv bed.Inventory) map[string]any {
	nodes := make([]any, len(inv.Nodes))
	for i, n := range inv.Nodes {
		nodes[i] = map[string]any{
			"name": n.Name, "address": n.Address, "port": n.Port, "bedAddress": n.BedAddress, "role": string(n.Role), "cpus": n.CPUs, "memoryMiB": n.MemoryMiB,
			"hostKey": n.HostKey, "incarnation": n.Incarnation, "via": n.Via,
		}
	}
	m := map[string]any{
		"bed": inv.Bed, "id": inv.ID, "driver": inv.Driver, "sharedKernel": inv.SharedKernel, "image": inv.Image,
		"imageDigest": inv.ImageDigest, "workloadManager": inv.WorkloadManager, "user": inv.User, "nodes": nodes,
	}
	if inv.Kubernetes != "" {
		m["kubernetes"] = inv.Kubernetes
		m["kubernetesNetwork"] = map[string]any{"driver": inv.KubernetesNetwork.Driver, "mtu": inv.KubernetesNetwork.MTU}
	}
	return m
}
