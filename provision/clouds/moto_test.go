//go:build clouds

package clouds_test

import (
	"bytes"
	"context"
	"maps"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
	"github.com/aws/aws-sdk-go-v2/service/iam"
	iamtypes "github.com/aws/aws-sdk-go-v2/service/iam/types"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	s3types "github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/stretchr/testify/require"

	"github.com/bedfellow/bedfellow/provision"
	"github.com/bedfellow/bedfellow/provision/clouds"
	"github.com/bedfellow/bedfellow/provision/clouds/cloudtest"
)

// startMoto serves what stands in for AWS, moto's server, until the test ends, and has the environment name it. It runs in the tree.
func startMoto(t *testing.T) {
	t.Helper()
	tree := cloudtest.Tree(t, clouds.Trees)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	at := listener.Addr().String()
	require.NoError(t, listener.Close())
	_, port, _ := net.SplitHostPort(at)
	var said bytes.Buffer
	server := exec.Command("chroot", tree, "env", "HOME=/root", "moto_server", "-H", "127.0.0.1", "-p", port)
	server.Stdout, server.Stderr = &said, &said
	require.NoError(t, server.Start())
	ended := make(chan error, 1)
	go func() { ended <- server.Wait() }()
	t.Cleanup(func() { _ = server.Process.Kill(); <-ended })
	deadline := time.After(time.Minute)
	for {
		c, err := net.Dial("tcp", at)
		if err == nil {
			_ = c.Close()
			break
		}
		select {
		case err := <-ended:
			ended <- err
			require.Fail(t, "moto's server ended", "%v: %s", err, said.String())
		case <-deadline:
			require.Fail(t, "moto's server does not answer", said.String())
		case <-time.After(100 * time.Millisecond):
		}
	}
	for name, value := range map[string]string{
		"AWS_ENDPOINT_URL": "http://" + at, "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true",
		"AWS_CONFIG_FILE": os.DevNull, "AWS_SHARED_CREDENTIALS_FILE": os.DevNull,
	} {
		t.Setenv(name, value)
	}
}

// account is somebody's at AWS, in whose name a test makes things as the stack's program would.
type account struct {
	ec2 *ec2.Client
	s3  *s3.Client
	iam *iam.Client
}

func openAccount(t *testing.T) account {
	c, err := config.LoadDefaultConfig(t.Context())
	require.NoError(t, err)
	return account{ec2.NewFromConfig(c), s3.NewFromConfig(c, func(o *s3.Options) { o.UsePathStyle = true }), iam.NewFromConfig(c)}
}

func ec2Tags(kind types.ResourceType, tags map[string]string) []types.TagSpecification {
	s := types.TagSpecification{ResourceType: kind}
	for key, value := range tags {
		s.Tags = append(s.Tags, types.Tag{Key: &key, Value: &value})
	}
	return []types.TagSpecification{s}
}

// bed makes a whole bed's things, with nodes called so.
func (a account) bed(t *testing.T, owner provision.Owner, expires time.Time, keepImage bool, nodes ...string) {
	ctx, tags := t.Context(), clouds.Tags(owner, expires)
	with := func(more ...string) map[string]string {
		all := maps.Clone(tags)
		for i := 0; i < len(more); i += 2 {
			all[more[i]] = more[i+1]
		}
		return all
	}
	vpc, err := a.ec2.CreateVpc(ctx, &ec2.CreateVpcInput{CidrBlock: aws.String("10.106.0.0/16"), TagSpecifications: ec2Tags("vpc", tags)})
	require.NoError(t, err)
	gateway, err := a.ec2.CreateInternetGateway(ctx, &ec2.CreateInternetGatewayInput{TagSpecifications: ec2Tags("internet-gateway", tags)})
	require.NoError(t, err)
	_, err = a.ec2.AttachInternetGateway(ctx, &ec2.AttachInternetGatewayInput{InternetGatewayId: gateway.InternetGateway.InternetGatewayId, VpcId: vpc.Vpc.VpcId})
	require.NoError(t, err)
	subnet, err := a.ec2.CreateSubnet(ctx, &ec2.CreateSubnetInput{VpcId: vpc.Vpc.VpcId, CidrBlock: aws.String("10.106.0.0/16"), TagSpecifications: ec2Tags("subnet", tags)})
	require.NoError(t, err)
	routes, err := a.ec2.CreateRouteTable(ctx, &ec2.CreateRouteTableInput{VpcId: vpc.Vpc.VpcId, TagSpecifications: ec2Tags("route-table", tags)})
	require.NoError(t, err)
	_, err = a.ec2.AssociateRouteTable(ctx, &ec2.AssociateRouteTableInput{RouteTableId: routes.RouteTable.RouteTableId, SubnetId: subnet.Subnet.SubnetId})
	require.NoError(t, err)
	group, err := a.ec2.CreateSecurityGroup(ctx, &ec2.CreateSecurityGroupInput{
		GroupName: aws.String("bed-" + owner.Bed + owner.ID), Description: aws.String("nodes"), VpcId: vpc.Vpc.VpcId, TagSpecifications: ec2Tags("security-group", tags),
	})
	require.NoError(t, err)
	_, err = a.ec2.AuthorizeSecurityGroupIngress(ctx, &ec2.AuthorizeSecurityGroupIngressInput{GroupId: group.GroupId, IpPermissions: []types.IpPermission{
		{IpProtocol: aws.String("-1"), UserIdGroupPairs: []types.UserIdGroupPair{{GroupId: group.GroupId}}},
	}})
	require.NoError(t, err)
	name := "bed-" + owner.Bed + owner.ID
	_, err = a.ec2.CreateKeyPair(ctx, &ec2.CreateKeyPairInput{KeyName: &name, TagSpecifications: ec2Tags("key-pair", tags)})
	require.NoError(t, err)
	_, err = a.ec2.CreatePlacementGroup(ctx, &ec2.CreatePlacementGroupInput{GroupName: &name, Strategy: "cluster", TagSpecifications: ec2Tags("placement-group", tags)})
	if err != nil { // moto's of Debian 13 knows none
		require.ErrorContains(t, err, "CreatePlacementGroup")
	}
	_, err = a.ec2.CreateLaunchTemplate(ctx, &ec2.CreateLaunchTemplateInput{
		LaunchTemplateName: &name, LaunchTemplateData: &types.RequestLaunchTemplateData{InstanceType: "c7i.2xlarge"}, TagSpecifications: ec2Tags("launch-template", tags),
	})
	require.NoError(t, err)
	volume, err := a.ec2.CreateVolume(ctx, &ec2.CreateVolumeInput{AvailabilityZone: aws.String("us-east-1a"), Size: aws.Int32(8), TagSpecifications: ec2Tags("volume", tags)})
	require.NoError(t, err)
	kept := with(clouds.TagDigest, "sha256:1")
	if keepImage {
		kept[clouds.TagKeep] = "true"
	}
	snapshot, err := a.ec2.CreateSnapshot(ctx, &ec2.CreateSnapshotInput{VolumeId: volume.VolumeId, TagSpecifications: ec2Tags("snapshot", kept)})
	require.NoError(t, err)
	image, err := a.ec2.RegisterImage(ctx, &ec2.RegisterImageInput{Name: &name, RootDeviceName: aws.String("/dev/xvda"), BlockDeviceMappings: []types.BlockDeviceMapping{
		{DeviceName: aws.String("/dev/xvda"), Ebs: &types.EbsBlockDevice{SnapshotId: snapshot.SnapshotId}},
	}, TagSpecifications: ec2Tags("image", kept)})
	require.NoError(t, err)
	tagged := []types.Tag{}
	for key, value := range kept {
		tagged = append(tagged, types.Tag{Key: &key, Value: &value})
	}
	_, err = a.ec2.CreateTags(ctx, &ec2.CreateTagsInput{Resources: []string{*image.ImageId}, Tags: tagged})
	require.NoError(t, err)
	for _, node := range nodes {
		_, err = a.ec2.RunInstances(ctx, &ec2.RunInstancesInput{
			ImageId: image.ImageId, InstanceType: "c7i.2xlarge", MinCount: aws.Int32(1), MaxCount: aws.Int32(1), SubnetId: subnet.Subnet.SubnetId, SecurityGroupIds: []string{*group.GroupId},
			TagSpecifications: ec2Tags("instance", with(clouds.TagNode, node)),
		})
		require.NoError(t, err)
	}
	bucket := "bedfellow-" + owner.Bed + "-" + owner.ID
	_, err = a.s3.CreateBucket(ctx, &s3.CreateBucketInput{Bucket: &bucket})
	require.NoError(t, err)
	var set []s3types.Tag
	var roleTags []iamtypes.Tag
	for key, value := range tags {
		set, roleTags = append(set, s3types.Tag{Key: &key, Value: &value}), append(roleTags, iamtypes.Tag{Key: &key, Value: &value})
	}
	_, err = a.s3.PutBucketTagging(ctx, &s3.PutBucketTaggingInput{Bucket: &bucket, Tagging: &s3types.Tagging{TagSet: set}})
	require.NoError(t, err)
	_, err = a.s3.PutObject(ctx, &s3.PutObjectInput{Bucket: &bucket, Key: aws.String("disk.raw"), Body: strings.NewReader("a disk")})
	require.NoError(t, err)
	_, err = a.s3.CreateMultipartUpload(ctx, &s3.CreateMultipartUploadInput{Bucket: &bucket, Key: aws.String("cut-short")})
	require.NoError(t, err)
	roleTags = append(roleTags, iamtypes.Tag{Key: aws.String(clouds.TagRegion), Value: aws.String("us-east-1")})
	_, err = a.iam.CreateRole(ctx, &iam.CreateRoleInput{RoleName: &name, Path: aws.String(clouds.RolePath), AssumeRolePolicyDocument: aws.String(`{"Version":"2012-10-17","Statement":[]}`), Tags: roleTags})
	require.NoError(t, err)
	_, err = a.iam.PutRolePolicy(ctx, &iam.PutRolePolicyInput{RoleName: &name, PolicyName: aws.String("rights"), PolicyDocument: aws.String(
		`{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"s3:GetObject","Resource":"arn:aws:s3:::x/*"}]}`)})
	require.NoError(t, err)
}

// left are the ids of all beds' things that are there. Their tags alone do not tell: moto keeps those of what is gone.
func (a account) left(t *testing.T) (things []string) {
	ctx, marked := context.WithoutCancel(t.Context()), []types.Filter{{Name: aws.String("tag-key"), Values: []string{clouds.TagBed}}}
	add := func(id *string) { things = append(things, *id) }
	must := func(err error) { require.NoError(t, err) }
	vpcs, err := a.ec2.DescribeVpcs(ctx, &ec2.DescribeVpcsInput{Filters: marked})
	must(err)
	for _, v := range vpcs.Vpcs {
		add(v.VpcId)
	}
	gateways, err := a.ec2.DescribeInternetGateways(ctx, &ec2.DescribeInternetGatewaysInput{Filters: marked})
	must(err)
	for _, g := range gateways.InternetGateways {
		add(g.InternetGatewayId)
	}
	subnets, err := a.ec2.DescribeSubnets(ctx, &ec2.DescribeSubnetsInput{Filters: marked})
	must(err)
	for _, s := range subnets.Subnets {
		add(s.SubnetId)
	}
	tables, err := a.ec2.DescribeRouteTables(ctx, &ec2.DescribeRouteTablesInput{Filters: marked})
	must(err)
	for _, r := range tables.RouteTables {
		add(r.RouteTableId)
	}
	groups, err := a.ec2.DescribeSecurityGroups(ctx, &ec2.DescribeSecurityGroupsInput{Filters: marked})
	must(err)
	for _, g := range groups.SecurityGroups {
		add(g.GroupId)
	}
	pairs, err := a.ec2.DescribeKeyPairs(ctx, &ec2.DescribeKeyPairsInput{Filters: marked})
	must(err)
	for _, k := range pairs.KeyPairs {
		add(k.KeyPairId)
	}
	templates, err := a.ec2.DescribeLaunchTemplates(ctx, &ec2.DescribeLaunchTemplatesInput{Filters: marked})
	must(err)
	for _, l := range templates.LaunchTemplates {
		add(l.LaunchTemplateId)
	}
	volumes, err := a.ec2.DescribeVolumes(ctx, &ec2.DescribeVolumesInput{Filters: marked})
	must(err)
	for _, v := range volumes.Volumes {
		add(v.VolumeId)
	}
	snapshots, err := a.ec2.DescribeSnapshots(ctx, &ec2.DescribeSnapshotsInput{Filters: marked, OwnerIds: []string{"self"}})
	must(err)
	for _, s := range snapshots.Snapshots {
		add(s.SnapshotId)
	}
	images, err := a.ec2.DescribeImages(ctx, &ec2.DescribeImagesInput{Filters: marked, Owners: []string{"self"}})
	must(err)
	for _, i := range images.Images {
		add(i.ImageId)
	}
	instances, err := a.ec2.DescribeInstances(ctx, &ec2.DescribeInstancesInput{Filters: append(marked, types.Filter{Name: aws.String("instance-state-name"), Values: []string{"running"}})})
	must(err)
	for _, r := range instances.Reservations {
		add(r.Instances[0].InstanceId)
	}
	buckets, err := a.s3.ListBuckets(ctx, &s3.ListBucketsInput{})
	must(err)
	for _, b := range buckets.Buckets {
		add(b.Name)
	}
	roles, err := a.iam.ListRoles(ctx, &iam.ListRolesInput{PathPrefix: aws.String(clouds.RolePath)})
	must(err)
	for _, r := range roles.Roles {
		add(r.RoleName)
	}
	slices.Sort(things)
	return things
}
