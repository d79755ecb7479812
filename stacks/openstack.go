//go:build clouds

package stacks

import (
	"fmt"
	"path/filepath"
	"slices"

	"github.com/pulumi/pulumi-go-provider/infer"
	"github.com/pulumi/pulumi-openstack/sdk/v5/go/openstack"
	"github.com/pulumi/pulumi-openstack/sdk/v5/go/openstack/compute"
	"github.com/pulumi/pulumi-openstack/sdk/v5/go/openstack/images"
	"github.com/pulumi/pulumi-openstack/sdk/v5/go/openstack/networking"
	"github.com/pulumi/pulumi/sdk/v3/go/pulumi"

	"github.com/bedfellow/bedfellow/pkg/bed"
	"github.com/bedfellow/bedfellow/provision/clouds"
)

// OpenStackMachines are a bed's machines on an OpenStack cloud, with the network, the firewall and the image that are theirs alone.
type OpenStackMachines struct {
	pulumi.ResourceState
	// Machines are as a Pool shows its own: the first has a public address, and the others are reached through it.
	Machines pulumi.ArrayOutput `pulumi:"machines"`

	r        rented
	s        clouds.OpenStack
	provider *openstack.Provider
	options  []pulumi.ResourceOption // of each part: parent and provider
}

// Annotate describes the component in the schema.
func (m *OpenStackMachines) Annotate(a infer.Annotator) {
	a.SetToken("index", "OpenStackMachines")
	a.Describe(m, "A bed's machines on an OpenStack cloud, with the network, the firewall and the image that are theirs alone.")
	a.Describe(&m.Machines, "The machines in the order of the nodes: name, address, port, bedAddress, incarnation, and via, the node through which one is reached.")
}

// NewOpenStackMachines makes them. Wrong settings are an error before anything is made.
func NewOpenStackMachines(ctx *pulumi.Context, name string, args MachinesArgs, opts ...pulumi.ResourceOption) (*OpenStackMachines, error) {
	s, problems := clouds.ReadOpenStack(args.Settings)
	if err := problems.Err(); err != nil {
		return nil, err
	}
	r, err := newRented("openstack", args)
	if err != nil {
		return nil, err
	}
	m := &OpenStackMachines{r: r, s: s}
	if err := ctx.RegisterComponentResource("bedfellow:index:OpenStackMachines", name, m, opts...); err != nil {
		return nil, err
	}
	who := &openstack.ProviderArgs{} // who one is there is the environment's
	if s.Region != "" {
		who.Region = pulumi.String(s.Region)
	}
	if m.provider, err = openstack.NewProvider(ctx, args.Bed+"-openstack", who, pulumi.Parent(m)); err != nil {
		return nil, err
	}
	m.options = []pulumi.ResourceOption{pulumi.Parent(m), pulumi.Provider(m.provider)}
	network, subnet, way, err := m.network(ctx)
	if err != nil {
		return nil, err
	}
	group, err := m.firewall(ctx)
	if err != nil {
		return nil, err
	}
	if err := m.instances(ctx, network, subnet, group, way); err != nil {
		return nil, err
	}
	return m, ctx.RegisterResourceOutputs(m, pulumi.Map{"machines": m.Machines})
}

func (m *OpenStackMachines) with(more ...pulumi.ResourceOption) []pulumi.ResourceOption {
	return slices.Concat(m.options, more)
}

// description is the owner's mark on what Neutron has: its tags would come with a second request.
func (m *OpenStackMachines) description() pulumi.StringOutput {
	return m.r.mark.ApplyT(clouds.Description).(pulumi.StringOutput)
}

// network is one subnet behind a router of the bed's own. way is what must be there before a floating address leads in.
func (m *OpenStackMachines) network(ctx *pulumi.Context) (*networking.Network, *networking.Subnet, pulumi.Resource, error) {
	name := m.r.args.Bed
	outside := true
	external, err := networking.LookupNetwork(ctx, &networking.LookupNetworkArgs{Name: &m.s.ExternalNetwork, External: &outside}, pulumi.Parent(m), pulumi.Provider(m.provider))
	if err != nil {
		return nil, nil, nil, fmt.Errorf("external network %s: %w; `openstack network list --external` shows them", m.s.ExternalNetwork, err)
	}
	network, err := networking.NewNetwork(ctx, name+"-network", &networking.NetworkArgs{AdminStateUp: pulumi.Bool(true), Description: m.description()}, m.options...)
	if err != nil {
		return nil, nil, nil, err
	}
	subnet, err := networking.NewSubnet(ctx, name+"-subnet", &networking.SubnetArgs{
		NetworkId: network.ID(), Cidr: pulumi.String(bedRange), IpVersion: pulumi.Int(4), DnsNameservers: pulumi.ToStringArray(m.s.Nameservers), Description: m.description(),
	}, m.options...)
	if err != nil {
		return nil, nil, nil, err
	}
	router, err := networking.NewRouter(ctx, name+"-router", &networking.RouterArgs{ExternalNetworkId: pulumi.String(external.Id), AdminStateUp: pulumi.Bool(true), Description: m.description()}, m.options...)
	if err != nil {
		return nil, nil, nil, err
	}
	way, err := networking.NewRouterInterface(ctx, name+"-way", &networking.RouterInterfaceArgs{RouterId: router.ID(), SubnetId: subnet.ID()}, m.options...)
	return network, subnet, way, err
}

// firewall lets everything through among siblings, and ssh in from one place.
func (m *OpenStackMachines) firewall(ctx *pulumi.Context) (*networking.SecGroup, error) {
	name := m.r.args.Bed
	from, err := sshSource(ctx.Context(), m.s.SSHFrom, addressService)
	if err != nil {
		return nil, err
	}
	group, err := networking.NewSecGroup(ctx, name+"-firewall", &networking.SecGroupArgs{
		Description: m.description(), DeleteDefaultRules: pulumi.Bool(true),
	}, m.options...)
	if err != nil {
		return nil, err
	}
	rules := map[string]*networking.SecGroupRuleArgs{
		"from-siblings": {Direction: pulumi.String("ingress"), RemoteGroupId: group.ID()},
		"to-siblings":   {Direction: pulumi.String("egress"), RemoteGroupId: group.ID()},
		"ssh": {
			Direction: pulumi.String("ingress"), RemoteIpPrefix: pulumi.String(from.String()), Protocol: pulumi.String("tcp"), PortRangeMin: pulumi.Int(22), PortRangeMax: pulumi.Int(22),
		},
	}
	if m.r.args.Network == "outbound" {
		rules["anywhere"] = &networking.SecGroupRuleArgs{Direction: pulumi.String("egress"), RemoteIpPrefix: pulumi.String("0.0.0.0/0")}
	}
	for what, rule := range rules {
		rule.SecurityGroupId, rule.Ethertype = group.ID(), pulumi.String("IPv4")
		if _, err := networking.NewSecGroupRule(ctx, name+"-"+what, rule, m.options...); err != nil {
			return nil, err
		}
	}
	return group, nil
}

// disk is the image that the configuration names, or the bed's, sent there.
func (m *OpenStackMachines) disk(ctx *pulumi.Context) (pulumi.StringOutput, error) {
	if m.s.Image != "" {
		found, err := images.LookupImage(ctx, &images.LookupImageArgs{Name: &m.s.Image}, pulumi.Parent(m), pulumi.Provider(m.provider))
		if err != nil {
			return pulumi.StringOutput{}, fmt.Errorf("image %s: %w; `openstack image list` shows them", m.s.Image, err)
		}
		return pulumi.String(found.Id).ToStringOutput(), nil
	}
	path, digest, err := m.r.baked()
	if err != nil {
		return pulumi.StringOutput{}, err
	}
	keep := m.s.KeepImage
	words := pulumi.All(m.r.mark, digest).ApplyT(func(v []any) []string {
		all := clouds.Words(v[0].(map[string]string))
		if keep {
			all = append(all, clouds.TagKeep+"=true")
		}
		return append(all, clouds.TagDigest+"="+v[1].(string))
	}).(pulumi.StringArrayOutput)
	made, err := images.NewImage(ctx, m.r.args.Bed+"-image", &images.ImageArgs{
		Name: pulumi.Sprintf("bedfellow-%s-%s-%s", m.r.args.Image, m.r.args.BedID, digest.ApplyT(last12)), ContainerFormat: pulumi.String("bare"), DiskFormat: pulumi.String("qcow2"),
		LocalFilePath: path.ApplyT(func(dir string) string { return filepath.Join(dir, bed.DiskFile) }).(pulumi.StringOutput),
		Visibility:    pulumi.String("private"), Tags: words,
	}, m.with(pulumi.RetainOnDelete(keep), pulumi.ReplaceOnChanges([]string{"name"}))...)
	if err != nil {
		return pulumi.StringOutput{}, err
	}
	return made.ID().ToStringOutput(), nil
}

// instances are the nodes, spread over hosts as far as there are hosts. Their data comes on a disk, so that an isolated bed needs no way to
// the cloud's own service.
func (m *OpenStackMachines) instances(ctx *pulumi.Context, network *networking.Network, subnet *networking.Subnet, group *networking.SecGroup, way pulumi.Resource) error {
	name := m.r.args.Bed
	disk, err := m.disk(ctx)
	if err != nil {
		return err
	}
	named := m.with(pulumi.DependsOn([]pulumi.Resource{network})) // which tells whose they are
	key, err := compute.NewKeypair(ctx, name+"-key", &compute.KeypairArgs{Name: m.r.label(), PublicKey: m.r.args.UserPublicKey}, named...)
	if err != nil {
		return err
	}
	spread, err := compute.NewServerGroup(ctx, name+"-spread", &compute.ServerGroupArgs{Name: m.r.label(), Policies: pulumi.String("soft-anti-affinity")}, named...)
	if err != nil {
		return err
	}
	var machines pulumi.Array
	for i, node := range m.r.args.Nodes {
		port, err := networking.NewPort(ctx, node.Name+"-port", &networking.PortArgs{
			NetworkId: network.ID(), SecurityGroupIds: pulumi.StringArray{group.ID()}, AdminStateUp: pulumi.Bool(true), Description: m.description(),
			FixedIps: networking.PortFixedIpArray{&networking.PortFixedIpArgs{SubnetId: subnet.ID()}},
		}, m.options...)
		if err != nil {
			return err
		}
		args := &compute.InstanceArgs{
			Name: pulumi.String(node.Name), FlavorName: pulumi.String(m.r.kind(node)), KeyPair: key.Name, ConfigDrive: pulumi.Bool(true), UserData: m.r.userData(node.Name),
			Networks: compute.InstanceNetworkArray{&compute.InstanceNetworkArgs{Port: port.ID()}}, Metadata: m.r.tags(map[string]string{clouds.TagNode: node.Name}),
			SchedulerHints: compute.InstanceSchedulerHintArray{&compute.InstanceSchedulerHintArgs{Group: spread.ID()}},
		}
		if node.DiskMiB == 0 {
			args.ImageId = disk
		} else {
			args.BlockDevices = compute.InstanceBlockDeviceArray{&compute.InstanceBlockDeviceArgs{
				SourceType: pulumi.String("image"), Uuid: disk, DestinationType: pulumi.String("volume"), VolumeSize: pulumi.Int((node.DiskMiB + 1023) / 1024),
				BootIndex: pulumi.Int(0), DeleteOnTermination: pulumi.Bool(true),
			}}
		}
		// A changed image would rebuild the server in place: a new disk on the same server, which nobody would configure.
		made, err := compute.NewInstance(ctx, node.Name, args, m.with(pulumi.DeleteBeforeReplace(true), pulumi.ReplaceOnChanges([]string{"imageId"}))...)
		if err != nil {
			return err
		}
		inside := port.AllFixedIps.Index(pulumi.Int(0))
		if i > 0 {
			machines = append(machines, machine(node.Name, inside, inside, made.ID().ToStringOutput(), m.r.args.Nodes[0].Name))
			continue
		}
		floating, err := networking.NewFloatingIp(ctx, name+"-address", &networking.FloatingIpArgs{Pool: pulumi.String(m.s.ExternalNetwork), Description: m.description()}, m.options...)
		if err != nil {
			return err
		}
		reached, err := networking.NewFloatingIpAssociate(ctx, name+"-reached", &networking.FloatingIpAssociateArgs{FloatingIp: floating.Address, PortId: port.ID()},
			m.with(pulumi.DependsOn([]pulumi.Resource{way}))...)
		if err != nil {
			return err
		}
		machines = append(machines, machine(node.Name, reached.FloatingIp, inside, made.ID().ToStringOutput(), ""))
	}
	m.Machines = machines.ToArrayOutput()
	return nil
}
