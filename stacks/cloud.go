package stacks

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"github.com/pulumi/pulumi-go-provider/infer"
	"github.com/pulumi/pulumi/sdk/v3/go/pulumi"

	"github.com/bedfellow/bedfellow/pkg/bed"
	"github.com/bedfellow/bedfellow/provision"
	"github.com/bedfellow/bedfellow/provision/cloudinit"
	"github.com/bedfellow/bedfellow/provision/clouds"
)

// bedRange is the network of every bed in a cloud: each has one of its own.
const bedRange = "10.106.0.0/16"

// MachinesArgs ask a cloud for a bed's machines. What decides which resources there are is plain; what others make, such as keys, is an input.
type MachinesArgs struct {
	Bed            string                `pulumi:"bed"`
	State          string                `pulumi:"state"`
	Nodes          []BedNode             `pulumi:"nodes"`
	Settings       map[string]string     `pulumi:"settings"`
	Network        string                `pulumi:"network"`
	TTL            string                `pulumi:"ttl,optional"`
	Image          string                `pulumi:"image"`
	ImagePath      pulumi.StringInput    `pulumi:"imagePath,optional"`
	ImageDigest    pulumi.StringInput    `pulumi:"imageDigest,optional"`
	BedID          pulumi.StringInput    `pulumi:"bedId"`
	Made           pulumi.StringInput    `pulumi:"made"`
	UserPublicKey  pulumi.StringInput    `pulumi:"userPublicKey"`
	HostKeys       pulumi.StringMapInput `pulumi:"hostKeys" provider:"secret"`
	HostPublicKeys pulumi.StringMapInput `pulumi:"hostPublicKeys"`
}

// Annotate describes the inputs in the schema.
func (m *MachinesArgs) Annotate(a infer.Annotator) {
	a.Describe(&m.Bed, "Name of the bed; begins the names of its resources.")
	a.Describe(&m.State, "What else the bed's things are marked by: URL of the Pulumi state that knows it.")
	a.Describe(&m.Nodes, "The machines, in order; with one public address alone, it is the first's.")
	a.Describe(&m.Settings, "The cloud's own settings, by the names of its configuration keys.")
	a.Describe(&m.Network, "isolated, or outbound for a route out of the bed.")
	a.Describe(&m.TTL, "How long the bed is meant to live from when its keys were made, such as 8h; empty is forever.")
	a.Describe(&m.Image, "What is on the disks, such as debian-12; in names and descriptions.")
	a.Describe(&m.ImagePath, "Folder of the baked image that is sent; needed where the settings name none that is there.")
	a.Describe(&m.ImageDigest, "Digest of that image.")
	a.Describe(&m.BedID, "Tells this life of the bed from others.")
	a.Describe(&m.Made, "When the keys were made, RFC 3339.")
	a.Describe(&m.UserPublicKey, "Key that logs in to every node, a line of authorized_keys.")
	a.Describe(&m.HostKeys, "Private host key of each node by its name, OpenSSH PEM.")
	a.Describe(&m.HostPublicKeys, "Public host key of each node by its name.")
}

// newMachines has a cloud make a bed's machines, and returns them as a Pool shows its own.
func newMachines(ctx *pulumi.Context, name string, args BedArgs, k *keys, img *image, parent pulumi.ResourceOption) (pulumi.ArrayOutput, error) {
	m := MachinesArgs{
		Bed: args.Name, State: args.State, Nodes: args.Nodes, Settings: args.Settings, Network: args.Network, TTL: args.TTL, Image: args.Image,
		BedID: k.BedID, Made: k.Made, UserPublicKey: k.UserPublicKey, HostKeys: k.HostKeys, HostPublicKeys: k.HostPublicKeys,
	}
	if img != nil {
		m.ImagePath, m.ImageDigest = img.Path, img.Digest
	}
	return rent(ctx, args.Driver, name+"-machines", m, parent)
}

// rented is what a cloud's machines are made of, whichever cloud it is.
type rented struct {
	args    MachinesArgs
	typeKey string // of the settings: the type of nodes that say none
	// mark is the owner's, and expires when the bed's time is over. Everything bears both.
	mark pulumi.StringMapOutput
}

// newRented finds when the bed's time is over: it counts from when its keys were made. A bed whose time is over is not made,
// nor one with a node of no type.
func newRented(cloud string, args MachinesArgs) (rented, error) {
	r := rented{args: args, typeKey: clouds.TypeKey(cloud)}
	for _, node := range args.Nodes {
		if r.kind(node) == "" {
			return r, fmt.Errorf("bed %s: node %s has no type of machine: give it one, or %s in the settings for all", args.Bed, node.Name, r.typeKey)
		}
		// As the node of a bed that has no other. A program of one's own may do without a time to live.
		alone := bed.Spec{Name: args.Bed, Driver: cloud, Settings: maps.Clone(args.Settings), TTL: time.Hour, Pools: []bed.Pool{{Name: node.Name, Nodes: 1, Type: r.kind(node)}}}
		if node.Role != string(bed.Compute) {
			delete(alone.Settings, "efa") // it gets none
		}
		if err := append(clouds.Check(alone), clouds.CheckHost(alone)...).Err(); err != nil {
			return r, fmt.Errorf("bed %s: node %s cannot be made:\n%w", args.Bed, node.Name, err)
		}
	}
	r.mark = pulumi.All(args.BedID, args.Made).ApplyT(func(v []any) (map[string]string, error) {
		expires, err := expiry(args.TTL, v[1].(string), time.Now())
		if err != nil {
			return nil, fmt.Errorf("bed %s: %w", args.Bed, err)
		}
		return mark(cloud, provision.Owner{Bed: args.Bed, ID: v[0].(string), State: args.State}, expires)
	}).(pulumi.StringMapOutput)
	return r, nil
}

// kind is the type of a node's machine.
func (r rented) kind(node BedNode) string { return cmp.Or(node.Type, r.args.Settings[r.typeKey]) }

// baked are the path and the digest of the image that is sent.
func (r rented) baked() (path, digest pulumi.StringOutput, err error) {
	if r.args.ImagePath == nil || r.args.ImageDigest == nil {
		return path, digest, fmt.Errorf("bed %s: there is no image for its machines: give imagePath and imageDigest, or name one that is there in the settings", r.args.Bed)
	}
	return r.args.ImagePath.ToStringOutput(), r.args.ImageDigest.ToStringOutput(), nil
}

// maxTag is what the clouds take of a tag, its key included, and Neutron of a description.
const maxTag = 255

// mark is the owner's, or an error before anything is made where the clouds would not take it.
func mark(cloud string, owner provision.Owner, expires time.Time) (map[string]string, error) {
	tags := clouds.Tags(owner, expires)
	texts := clouds.Words(tags)
	if cloud == "openstack" {
		texts = append(texts, clouds.Description(tags))
	}
	for _, text := range texts {
		if len(text) > maxTag {
			return nil, fmt.Errorf("bed %s: the address of its state, %s, is too long for a tag, and nothing could be found by it; keep the state at a shorter one, "+
				"with the clone in a folder higher up, or by PULUMI_BACKEND_URL", owner.Bed, owner.State)
		}
	}
	return tags, nil
}

// expiry is when a bed that was made then and may live for ttl is to be gone.
func expiry(ttl, made string, now time.Time) (time.Time, error) {
	if ttl == "" || made == "" { // a preview knows no time
		return time.Time{}, nil
	}
	length, err := time.ParseDuration(ttl)
	if err != nil {
		return time.Time{}, fmt.Errorf("its time to live: %w", err)
	}
	since, err := time.Parse(time.RFC3339, made)
	if err != nil {
		return time.Time{}, fmt.Errorf("when it was made: %w", err)
	}
	expires := since.Add(length)
	if expires.Before(now) {
		return time.Time{}, fmt.Errorf("its time to live, %s, was over at %s; `bed destroy` removes it, and -c ttl=%s gives it as long from now on",
			ttl, expires.Local().Format(time.DateTime), (now.Sub(since) + length).Round(time.Minute))
	}
	return expires, nil
}

// tags are the mark, with more.
func (r rented) tags(more map[string]string) pulumi.StringMapOutput {
	return r.mark.ApplyT(func(mark map[string]string) map[string]string {
		all := map[string]string{}
		for _, from := range []map[string]string{mark, more} {
			for key, value := range from {
				all[key] = value
			}
		}
		return all
	}).(pulumi.StringMapOutput)
}

// label is the name of what a cloud marks in no other way, or only when it is there: the sweep goes by it.
func (r rented) label() pulumi.StringOutput {
	return r.mark.ApplyT(func(mark map[string]string) string { return clouds.Label(mark[clouds.TagBed], mark[clouds.TagID]) }).(pulumi.StringOutput)
}

// userData is what makes a machine the node of that name. It holds its private host key, and so is a secret.
func (r rented) userData(node string) pulumi.StringOutput {
	text := pulumi.All(r.args.HostKeys, r.args.HostPublicKeys, r.args.UserPublicKey).ApplyT(func(v []any) (string, error) {
		return cloudinit.UserData(cloudinit.Node{
			Name: node, User: User, HostKey: v[0].(map[string]string)[node], HostPublicKey: v[1].(map[string]string)[node], AuthorizedKey: v[2].(string), Metadata: true,
		})
	})
	return pulumi.ToSecret(text).(pulumi.StringOutput)
}

// addressService tells whoever asks which address they come from.
const addressService = "https://checkip.amazonaws.com"

// sshSource is who may reach the bed's sshd: what the configuration says, or the one address that we come from.
func sshSource(ctx context.Context, said netip.Prefix, service string) (netip.Prefix, error) {
	if said.IsValid() {
		return said, nil
	}
	help := func(err error) error {
		return fmt.Errorf("find the address that this host comes from, which alone may log in to the bed: %w; say it with -c …sshFrom=CIDR", err)
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, service, nil)
	if err != nil {
		return netip.Prefix{}, help(err)
	}
	answer, err := http.DefaultClient.Do(req)
	if err != nil {
		return netip.Prefix{}, help(err)
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(io.LimitReader(answer.Body, 64))
	if err != nil {
		return netip.Prefix{}, help(err)
	}
	address, err := netip.ParseAddr(strings.TrimSpace(string(text)))
	if err != nil || answer.StatusCode != http.StatusOK || !address.Is4() {
		return netip.Prefix{}, help(fmt.Errorf("%s answered %s, %.40q, which is no IPv4 address", service, answer.Status, text))
	}
	return netip.PrefixFrom(address, 32), nil
}

// last12 is enough of a digest to tell images apart by.
func last12(digest string) string { return digest[max(0, len(digest)-12):] }

// machine is a rented one, as a Pool shows its own.
func machine(name string, address, bedAddress, incarnation pulumi.StringInput, via string) pulumi.Map {
	m := pulumi.Map{
		"name": pulumi.String(name), "address": address, "port": pulumi.Float64(22), "bedAddress": bedAddress, "incarnation": incarnation,
	}
	if via != "" {
		m["via"] = pulumi.String(via)
	}
	return m
}
