//go:build clouds

package stacks

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/pulumi/pulumi-aws/sdk/v7/go/aws"
	"github.com/pulumi/pulumi-aws/sdk/v7/go/aws/ebs"
	"github.com/pulumi/pulumi-aws/sdk/v7/go/aws/ec2"
	"github.com/pulumi/pulumi-aws/sdk/v7/go/aws/iam"
	"github.com/pulumi/pulumi-aws/sdk/v7/go/aws/s3"
	"github.com/pulumi/pulumi-aws/sdk/v7/go/aws/vpc"
	"github.com/pulumi/pulumi-go-provider/infer"
	"github.com/pulumi/pulumi/sdk/v3/go/pulumi"

	"github.com/bedfellow/bedfellow/pkg/bed"
	"github.com/bedfellow/bedfellow/provision/clouds"
)

// AWSMachines are a bed's machines on AWS, with the network, the firewall and the machine image that are theirs alone.
type AWSMachines struct {
	pulumi.ResourceState
	// Machines are as a Pool shows its own.
	Machines pulumi.ArrayOutput `pulumi:"machines"`

	r        rented
	s        clouds.AWS
	provider *aws.Provider
	options  []pulumi.ResourceOption // of each part: parent and provider
}

// Annotate describes the component in the schema.
func (m *AWSMachines) Annotate(a infer.Annotator) {
	a.SetToken("index", "AwsMachines")
	a.Describe(m, "A bed's machines on AWS, with the network, the firewall and the machine image that are theirs alone.")
	a.Describe(&m.Machines, "The machines in the order of the nodes: name, address, port, bedAddress, incarnation, and via, the node through which one is reached.")
}

// NewAWSMachines makes them. Wrong settings are an error before anything is made.
func NewAWSMachines(ctx *pulumi.Context, name string, args MachinesArgs, opts ...pulumi.ResourceOption) (*AWSMachines, error) {
	s, problems := clouds.ReadAWS(args.Settings)
	if err := problems.Err(); err != nil {
		return nil, err
	}
	r, err := newRented("aws", args)
	if err != nil {
		return nil, err
	}
	m := &AWSMachines{r: r, s: s}
	if err := ctx.RegisterComponentResource("bedfellow:index:AwsMachines", name, m, opts...); err != nil {
		return nil, err
	}
	// Whoever runs the program is who the usual variables and files of AWS say; only the place is ours.
	if m.provider, err = aws.NewProvider(ctx, args.Bed+"-aws", &aws.ProviderArgs{Region: pulumi.String(s.Region)}, pulumi.Parent(m)); err != nil {
		return nil, err
	}
	m.options = []pulumi.ResourceOption{pulumi.Parent(m), pulumi.Provider(m.provider)}
	subnet, group, reachable, err := m.network(ctx)
	if err != nil {
		return nil, err
	}
	ami, err := m.ami(ctx)
	if err != nil {
		return nil, err
	}
	templates, err := m.templates(ctx, ami, subnet, group)
	if err != nil {
		return nil, err
	}
	if err := m.instances(ctx, templates, reachable); err != nil {
		return nil, err
	}
	return m, ctx.RegisterResourceOutputs(m, pulumi.Map{"machines": m.Machines})
}

func (m *AWSMachines) with(more ...pulumi.ResourceOption) []pulumi.ResourceOption {
	return slices.Concat(m.options, more)
}

// tags are the owner's mark, and the name that the console shows.
func (m *AWSMachines) tags(name string) pulumi.StringMapOutput {
	return m.r.tags(map[string]string{"Name": name})
}

// network is one subnet in one zone: brokers and pods of a bed that was spread over zones did not find each other. Inside everything may talk
// to everything, as EFA needs; in comes ssh from one place. reachable is what must be there before a node is of use.
func (m *AWSMachines) network(ctx *pulumi.Context) (subnet *ec2.Subnet, group *ec2.SecurityGroup, reachable []pulumi.Resource, err error) {
	name := m.r.args.Bed
	from, err := sshSource(ctx.Context(), m.s.SSHFrom, addressService)
	if err != nil {
		return nil, nil, nil, err
	}
	outbound := pulumi.Bool(m.r.args.Network == "outbound") // no rule keeps nodes from the VPC's resolver, which asks the world
	network, err := ec2.NewVpc(ctx, name+"-vpc", &ec2.VpcArgs{
		CidrBlock: pulumi.String(bedRange), EnableDnsSupport: outbound, EnableDnsHostnames: outbound, Tags: m.tags(name),
	}, m.options...)
	if err != nil {
		return nil, nil, nil, err
	}
	gateway, err := ec2.NewInternetGateway(ctx, name+"-gateway", &ec2.InternetGatewayArgs{VpcId: network.ID(), Tags: m.tags(name)}, m.options...)
	if err != nil {
		return nil, nil, nil, err
	}
	if subnet, err = ec2.NewSubnet(ctx, name+"-subnet", &ec2.SubnetArgs{
		VpcId: network.ID(), CidrBlock: pulumi.String(bedRange), AvailabilityZone: pulumi.String(m.s.Zone), Tags: m.tags(name),
	}, m.options...); err != nil {
		return nil, nil, nil, err
	}
	routes, err := ec2.NewRouteTable(ctx, name+"-routes", &ec2.RouteTableArgs{
		VpcId: network.ID(), Tags: m.tags(name),
		Routes: ec2.RouteTableRouteArray{&ec2.RouteTableRouteArgs{CidrBlock: pulumi.String("0.0.0.0/0"), GatewayId: gateway.ID()}},
	}, m.options...)
	if err != nil {
		return nil, nil, nil, err
	}
	routed, err := ec2.NewRouteTableAssociation(ctx, name+"-routed", &ec2.RouteTableAssociationArgs{SubnetId: subnet.ID(), RouteTableId: routes.ID()}, m.options...)
	if err != nil {
		return nil, nil, nil, err
	}
	if group, err = ec2.NewSecurityGroup(ctx, name+"-firewall", &ec2.SecurityGroupArgs{
		VpcId: network.ID(), Description: pulumi.String("Nodes of the bedfellow bed " + m.r.args.Bed), Tags: m.tags(name),
	}, m.options...); err != nil {
		return nil, nil, nil, err
	}
	reachable = []pulumi.Resource{routed}
	for _, rule := range []struct {
		name     string
		protocol string
		port     int
	}{{"siblings", "-1", 0}, {"ssh", "tcp", 22}} {
		in := &vpc.SecurityGroupIngressRuleArgs{SecurityGroupId: group.ID(), IpProtocol: pulumi.String(rule.protocol), Tags: m.tags(name + " " + rule.name)}
		if rule.port == 0 {
			in.ReferencedSecurityGroupId = group.ID()
		} else {
			in.CidrIpv4, in.FromPort, in.ToPort = pulumi.String(from.String()), pulumi.Int(rule.port), pulumi.Int(rule.port)
		}
		made, err := vpc.NewSecurityGroupIngressRule(ctx, name+"-from-"+rule.name, in, m.options...)
		if err != nil {
			return nil, nil, nil, err
		}
		reachable = append(reachable, made)
	}
	out := map[string]*vpc.SecurityGroupEgressRuleArgs{"siblings": {ReferencedSecurityGroupId: group.ID()}}
	if outbound {
		out["anywhere"] = &vpc.SecurityGroupEgressRuleArgs{CidrIpv4: pulumi.String("0.0.0.0/0")}
	}
	for to, rule := range out {
		rule.SecurityGroupId, rule.IpProtocol, rule.Tags = group.ID(), pulumi.String("-1"), m.tags(name+" "+to)
		made, err := vpc.NewSecurityGroupEgressRule(ctx, name+"-to-"+to, rule, m.options...)
		if err != nil {
			return nil, nil, nil, err
		}
		reachable = append(reachable, made)
	}
	return subnet, group, reachable, nil
}

// rootDevice is what our machine images call their disk.
const rootDevice = "/dev/xvda"

// amiOf is a machine image with the name of its disk.
type amiOf struct {
	id     pulumi.StringOutput
	device pulumi.StringOutput
}

// ami is the machine image that the configuration names, of the account that it names, or one that is made of the bed's image: a file in a
// bucket, a snapshot of that, and the image.
func (m *AWSMachines) ami(ctx *pulumi.Context) (amiOf, error) {
	if m.s.AMI != "" {
		found, err := ec2.LookupAmi(ctx, &ec2.LookupAmiArgs{
			Owners: []string{m.s.AMIOwner}, Filters: []ec2.GetAmiFilter{{Name: "image-id", Values: []string{m.s.AMI}}},
		}, pulumi.Parent(m), pulumi.Provider(m.provider))
		if err != nil {
			return amiOf{}, err
		}
		return amiOf{pulumi.String(found.Id).ToStringOutput(), pulumi.String(found.RootDeviceName).ToStringOutput()}, nil
	}
	name := m.r.args.Bed
	path, digest, err := m.r.baked()
	if err != nil {
		return amiOf{}, err
	}
	bucket, err := s3.NewBucket(ctx, name+"-import", &s3.BucketArgs{
		Bucket: m.r.label(), ForceDestroy: pulumi.Bool(true), Tags: m.tags(name),
	}, m.options...)
	if err != nil {
		return amiOf{}, err
	}
	private, err := s3.NewBucketPublicAccessBlock(ctx, name+"-import-private", &s3.BucketPublicAccessBlockArgs{
		Bucket: bucket.ID(), BlockPublicAcls: pulumi.Bool(true), BlockPublicPolicy: pulumi.Bool(true), IgnorePublicAcls: pulumi.Bool(true), RestrictPublicBuckets: pulumi.Bool(true),
	}, m.options...)
	if err != nil {
		return amiOf{}, err
	}
	file, err := s3.NewBucketObjectv2(ctx, name+"-disk", &s3.BucketObjectv2Args{
		Bucket: bucket.ID(), Key: pulumi.String(bed.RawFile), SourceHash: digest, ServerSideEncryption: pulumi.String("AES256"), Tags: m.tags(name),
		Source: path.ApplyT(func(dir string) pulumi.AssetOrArchive { return pulumi.NewFileAsset(filepath.Join(dir, bed.RawFile)) }).(pulumi.AssetOrArchiveOutput),
	}, m.with(pulumi.DependsOn([]pulumi.Resource{private}))...)
	if err != nil {
		return amiOf{}, err
	}
	importer, allowed, err := m.importer(ctx, bucket)
	if err != nil {
		return amiOf{}, err
	}
	keep := pulumi.RetainOnDelete(m.s.KeepImage)
	tags := m.r.tags(map[string]string{"Name": name})
	if m.s.KeepImage {
		tags = m.r.tags(map[string]string{"Name": name, clouds.TagKeep: "true"})
	}
	tags = pulumi.All(tags, digest).ApplyT(func(v []any) map[string]string {
		all := v[0].(map[string]string)
		all[clouds.TagDigest] = v[1].(string)
		return all
	}).(pulumi.StringMapOutput)
	snapshot, err := ebs.NewSnapshotImport(ctx, name+"-snapshot", &ebs.SnapshotImportArgs{
		Description: pulumi.String("Image " + m.r.args.Image + " of bedfellow"), Encrypted: pulumi.Bool(true), RoleName: importer.Name, Tags: tags,
		DiskContainer: &ebs.SnapshotImportDiskContainerArgs{
			Format:     pulumi.String("RAW"),
			UserBucket: &ebs.SnapshotImportDiskContainerUserBucketArgs{S3Bucket: bucket.Bucket, S3Key: file.Key},
		},
	}, m.with(keep, pulumi.DependsOn([]pulumi.Resource{allowed}), pulumi.ReplaceOnChanges([]string{"tags." + clouds.TagDigest}))...)
	if err != nil {
		return amiOf{}, err
	}
	made, err := ec2.NewAmi(ctx, name+"-image", &ec2.AmiArgs{
		Name:         pulumi.Sprintf("bedfellow-%s-%s-%s", m.r.args.Image, m.r.args.BedID, digest.ApplyT(last12)),
		Architecture: pulumi.String(clouds.Architecture), BootMode: pulumi.String("uefi-preferred"), VirtualizationType: pulumi.String("hvm"), EnaSupport: pulumi.Bool(true),
		ImdsSupport: pulumi.String("v2.0"), RootDeviceName: pulumi.String(rootDevice), Tags: tags,
		EbsBlockDevices: ec2.AmiEbsBlockDeviceArray{&ec2.AmiEbsBlockDeviceArgs{
			DeviceName: pulumi.String(rootDevice), SnapshotId: snapshot.ID(), VolumeType: pulumi.String("gp3"), DeleteOnTermination: pulumi.Bool(true),
		}},
	}, m.with(keep)...)
	if err != nil {
		return amiOf{}, err
	}
	return amiOf{made.ID().ToStringOutput(), pulumi.String(rootDevice).ToStringOutput()}, nil
}

// importer is who AWS reads the bucket as when it makes a snapshot of the file: the role that its documentation calls vmimport, for this bucket alone.
func (m *AWSMachines) importer(ctx *pulumi.Context, bucket *s3.Bucket) (*iam.Role, *iam.RolePolicy, error) {
	trust, err := document(map[string]any{
		"Effect": "Allow", "Action": "sts:AssumeRole", "Principal": map[string]any{"Service": "vmie.amazonaws.com"},
		"Condition": map[string]any{"StringEquals": map[string]any{"sts:Externalid": "vmimport"}},
	})
	if err != nil {
		return nil, nil, err
	}
	role, err := iam.NewRole(ctx, m.r.args.Bed+"-importer", &iam.RoleArgs{
		Path: pulumi.String(clouds.RolePath), AssumeRolePolicy: pulumi.String(trust), Tags: m.r.tags(map[string]string{"Name": m.r.args.Bed, clouds.TagRegion: m.s.Region}),
	}, m.options...)
	if err != nil {
		return nil, nil, err
	}
	rights := bucket.Arn.ApplyT(func(arn string) (string, error) {
		return document(
			map[string]any{"Effect": "Allow", "Action": []string{"s3:GetBucketLocation", "s3:GetObject", "s3:ListBucket"}, "Resource": []string{arn, arn + "/*"}},
			map[string]any{"Effect": "Allow", "Action": []string{"ec2:ModifySnapshotAttribute", "ec2:CopySnapshot", "ec2:RegisterImage", "ec2:Describe*"}, "Resource": "*"},
		)
	}).(pulumi.StringOutput)
	policy, err := iam.NewRolePolicy(ctx, m.r.args.Bed+"-importer-rights", &iam.RolePolicyArgs{Role: role.ID(), Policy: rights}, m.options...)
	return role, policy, err
}

// document is an IAM policy.
func document(statements ...map[string]any) (string, error) {
	text, err := json.Marshal(map[string]any{"Version": "2012-10-17", "Statement": statements})
	return string(text), err
}

// kind is what like instances have in common.
type kind struct {
	name    string
	diskGiB int
	efa     bool
}

func (m *AWSMachines) kind(node BedNode) kind {
	disk := node.DiskMiB
	if disk == 0 {
		disk = int(clouds.DefaultDisk / bed.MiB)
	}
	return kind{m.r.kind(node), (disk + 1023) / 1024, m.s.EFA && node.Role == string(bed.Compute)}
}

// templates are what instances are made by, one for each kind.
func (m *AWSMachines) templates(ctx *pulumi.Context, ami amiOf, subnet *ec2.Subnet, group *ec2.SecurityGroup) (map[kind]*ec2.LaunchTemplate, error) {
	name := m.r.args.Bed
	key, err := ec2.NewKeyPair(ctx, name+"-key", &ec2.KeyPairArgs{PublicKey: m.r.args.UserPublicKey, Tags: m.tags(name)}, m.options...)
	if err != nil {
		return nil, err
	}
	var placed *ec2.LaunchTemplatePlacementArgs
	if len(m.r.args.Nodes) > 1 { // close to each other, on one part of the network
		close, err := ec2.NewPlacementGroup(ctx, name+"-placement", &ec2.PlacementGroupArgs{Strategy: pulumi.String("cluster"), Tags: m.tags(name)}, m.options...)
		if err != nil {
			return nil, err
		}
		placed = &ec2.LaunchTemplatePlacementArgs{GroupName: close.Name}
	}
	made := map[kind]*ec2.LaunchTemplate{}
	for _, node := range m.r.args.Nodes {
		k := m.kind(node)
		if made[k] != nil {
			continue
		}
		args := m.template(k, node.CPUs, ami, subnet, group)
		args.KeyName = key.KeyName
		if placed != nil { // in an interface, none is not nil
			args.Placement = placed
		}
		called := fmt.Sprintf("%s-template-%s-%dGiB", name, k.name, k.diskGiB)
		if k.efa {
			called += "-efa"
		}
		options := m.options
		if len(made) == 0 { // as it was called when a bed had one
			options = m.with(pulumi.Aliases([]pulumi.Alias{{Name: pulumi.String(name + "-template")}}))
		}
		if made[k], err = ec2.NewLaunchTemplate(ctx, called, args, options...); err != nil {
			return nil, err
		}
	}
	return made, nil
}

// template is that of a kind, whose instances have so many CPUs.
func (m *AWSMachines) template(k kind, cpus int, ami amiOf, subnet *ec2.Subnet, group *ec2.SecurityGroup) *ec2.LaunchTemplateArgs {
	attached := "interface"
	if k.efa {
		attached = "efa"
	}
	args := &ec2.LaunchTemplateArgs{
		InstanceType: pulumi.String(k.name), ImageId: ami.id, Tags: m.tags(m.r.args.Bed),
		MetadataOptions: &ec2.LaunchTemplateMetadataOptionsArgs{
			HttpEndpoint: pulumi.String("enabled"), HttpTokens: pulumi.String("required"), HttpPutResponseHopLimit: pulumi.Int(1), // not from containers
		},
		BlockDeviceMappings: ec2.LaunchTemplateBlockDeviceMappingArray{&ec2.LaunchTemplateBlockDeviceMappingArgs{
			DeviceName: ami.device,
			Ebs: &ec2.LaunchTemplateBlockDeviceMappingEbsArgs{
				Encrypted: pulumi.String("true"), VolumeType: pulumi.String("gp3"), VolumeSize: pulumi.Int(k.diskGiB), DeleteOnTermination: pulumi.String("true"),
			},
		}},
		NetworkInterfaces: ec2.LaunchTemplateNetworkInterfaceArray{&ec2.LaunchTemplateNetworkInterfaceArgs{
			DeviceIndex: pulumi.Int(0), InterfaceType: pulumi.String(attached), SubnetId: subnet.ID(), SecurityGroups: pulumi.StringArray{group.ID()},
			AssociatePublicIpAddress: pulumi.String("true"), DeleteOnTermination: pulumi.String("true"),
		}},
	}
	// Without when the bed's time is over: a template with another is another, and its instances are made anew. Theirs is among their own tags.
	lasting := m.tags(m.r.args.Bed).ApplyT(func(tags map[string]string) map[string]string {
		delete(tags, clouds.TagExpires)
		return tags
	}).(pulumi.StringMapOutput)
	var tagged ec2.LaunchTemplateTagSpecificationArray
	for _, made := range []string{"volume", "network-interface"} {
		tagged = append(tagged, &ec2.LaunchTemplateTagSpecificationArgs{ResourceType: pulumi.String(made), Tags: lasting})
	}
	args.TagSpecifications = tagged
	if m.s.ThreadsPerCore > 0 {
		args.CpuOptions = &ec2.LaunchTemplateCpuOptionsArgs{ThreadsPerCore: pulumi.Int(m.s.ThreadsPerCore), CoreCount: pulumi.Int(cpus / m.s.ThreadsPerCore)}
	}
	if m.s.Spot {
		args.InstanceMarketOptions = &ec2.LaunchTemplateInstanceMarketOptionsArgs{
			MarketType: pulumi.String("spot"), SpotOptions: &ec2.LaunchTemplateInstanceMarketOptionsSpotOptionsArgs{SpotInstanceType: pulumi.String("one-time")},
		}
	}
	return args
}

// instances are the nodes. One whose template, image or keys change is made anew.
func (m *AWSMachines) instances(ctx *pulumi.Context, templates map[kind]*ec2.LaunchTemplate, reachable []pulumi.Resource) error {
	var machines pulumi.Array
	for _, node := range m.r.args.Nodes {
		template := templates[m.kind(node)]
		made, err := ec2.NewInstance(ctx, node.Name, &ec2.InstanceArgs{
			LaunchTemplate: &ec2.InstanceLaunchTemplateArgs{
				Id: template.ID(), Version: template.LatestVersion.ApplyT(strconv.Itoa).(pulumi.StringOutput),
			},
			UserDataBase64:          m.r.userData(node.Name).ApplyT(func(text string) string { return base64.StdEncoding.EncodeToString([]byte(text)) }).(pulumi.StringOutput),
			UserDataReplaceOnChange: pulumi.Bool(true), Tags: m.r.tags(map[string]string{"Name": node.Name, clouds.TagNode: node.Name}),
		}, m.with(pulumi.DependsOn(reachable), pulumi.ReplaceOnChanges([]string{"launchTemplate"}), pulumi.DeleteBeforeReplace(true))...)
		if err != nil {
			return err
		}
		machines = append(machines, machine(node.Name, made.PublicIp, made.PrivateIp, made.ID().ToStringOutput(), ""))
	}
	m.Machines = machines.ToArrayOutput()
	return nil
}
