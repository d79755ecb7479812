//go:build clouds

package clouds

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
	"github.com/aws/aws-sdk-go-v2/service/iam"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	s3types "github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/aws/smithy-go"

	"github.com/bedfellow/bedfellow/provision"
)

// thing is something of a bed's in a cloud.
type thing struct {
	kind string // as DescribeTags has them; bucket and role besides
	id   string
	tags map[string]string
}

// things are everything that bears a bed's mark: what EC2 has, in one list, the buckets and the roles.
func (a *awsCloud) things(ctx context.Context) ([]thing, error) {
	var found []thing
	pages := ec2.NewDescribeTagsPaginator(a.ec2, &ec2.DescribeTagsInput{Filters: []types.Filter{filter("key", TagBed, TagID, TagState, TagExpires, TagKeep, TagNode, TagDigest)}})
	for pages.HasMorePages() {
		page, err := pages.NextPage(ctx)
		if err != nil {
			return nil, fmt.Errorf("list tags: %w", plainly(err))
		}
		for _, t := range page.Tags {
			kind, id := string(t.ResourceType), aws.ToString(t.ResourceId)
			i := slices.IndexFunc(found, func(f thing) bool { return f.kind == kind && f.id == id })
			if i < 0 {
				i = len(found)
				found = append(found, thing{kind: kind, id: id, tags: map[string]string{}})
			}
			found[i].tags[aws.ToString(t.Key)] = aws.ToString(t.Value)
		}
	}
	live, err := a.instances(ctx, "")
	if err != nil {
		return nil, err
	}
	found = slices.DeleteFunc(found, func(t thing) bool { // instances that are gone keep their tags for an hour
		return t.kind == string(types.ResourceTypeInstance) && !slices.ContainsFunc(live, func(i types.Instance) bool { return aws.ToString(i.InstanceId) == t.id })
	})
	buckets, err := a.buckets(ctx)
	if err != nil {
		return nil, err
	}
	roles, err := a.roles(ctx)
	found = slices.Concat(found, buckets, roles)
	for i, b := range found {
		of := slices.IndexFunc(found, func(t thing) bool { return t.tags[TagBed] != "" && Label(t.tags[TagBed], t.tags[TagID]) == b.id })
		if b.kind == "bucket" && b.tags[TagBed] == "" && of >= 0 { // its maker was killed before the tags, which come with a second request
			found[i].tags = Tags(provision.Owner{Bed: found[of].tags[TagBed], ID: found[of].tags[TagID], State: unescape(found[of].tags[TagState])}, time.Time{})
		}
	}
	if err != nil {
		return nil, err
	}
	found = slices.DeleteFunc(found, func(t thing) bool { return t.tags[TagBed] == "" })
	if found, err = a.withUntaggedImages(ctx, found); err != nil {
		return nil, err
	}
	for _, t := range found { // what is kept is an image: what has not become one is nobody's
		if t.kind == importTask || t.kind == "snapshot" && !slices.ContainsFunc(found, func(i thing) bool {
			return i.kind == "image" && i.tags[TagKeep] != "" && i.tags[TagID] == t.tags[TagID] && i.tags[TagDigest] == t.tags[TagDigest]
		}) {
			delete(t.tags, TagKeep)
		}
	}
	return a.withoutEndedImports(ctx, found)
}

func (a *awsCloud) buckets(ctx context.Context) (found []thing, err error) {
	pages := s3.NewListBucketsPaginator(a.s3, &s3.ListBucketsInput{Prefix: aws.String("bedfellow-"), BucketRegion: &a.s.Region})
	for pages.HasMorePages() {
		page, err := pages.NextPage(ctx)
		if err != nil {
			return nil, fmt.Errorf("list buckets: %w", plainly(err))
		}
		for _, b := range page.Buckets {
			tagged, err := a.s3.GetBucketTagging(ctx, &s3.GetBucketTaggingInput{Bucket: b.Name})
			if code(err) == "NoSuchBucket" {
				continue
			}
			if code(err) == "NoSuchTagSet" {
				tagged, err = &s3.GetBucketTaggingOutput{}, nil
			}
			if err != nil {
				return nil, fmt.Errorf("read the tags of bucket %s: %w", aws.ToString(b.Name), plainly(err))
			}
			t := thing{kind: "bucket", id: aws.ToString(b.Name), tags: map[string]string{}}
			for _, tag := range tagged.TagSet {
				t.tags[aws.ToString(tag.Key)] = aws.ToString(tag.Value)
			}
			found = append(found, t)
		}
	}
	return found, nil
}

func (a *awsCloud) roles(ctx context.Context) (found []thing, err error) {
	pages := iam.NewListRolesPaginator(a.iam, &iam.ListRolesInput{PathPrefix: aws.String(RolePath)})
	for pages.HasMorePages() {
		page, err := pages.NextPage(ctx)
		if err != nil {
			return nil, fmt.Errorf("list roles: %w", plainly(err))
		}
		for _, r := range page.Roles {
			tagged, err := a.iam.ListRoleTags(ctx, &iam.ListRoleTagsInput{RoleName: r.RoleName})
			if code(err) == "NoSuchEntity" {
				continue
			}
			if err != nil {
				return nil, fmt.Errorf("read the tags of role %s: %w", aws.ToString(r.RoleName), plainly(err))
			}
			t := thing{kind: "role", id: aws.ToString(r.RoleName), tags: map[string]string{}}
			for _, tag := range tagged.Tags {
				t.tags[aws.ToString(tag.Key)] = aws.ToString(tag.Value)
			}
			if t.tags[TagRegion] == a.s.Region { // roles are an account's, and of a bed in another region nothing else is seen here
				found = append(found, t)
			}
		}
	}
	return found, nil
}

// code is that of a service's error; empty is none.
func code(err error) string {
	var said smithy.APIError
	if errors.As(err, &said) {
		return said.ErrorCode()
	}
	return ""
}

// Owners lists the marks of all beds of which something is there. What is kept after its bed makes no bed.
func (a *awsCloud) Owners(ctx context.Context) ([]provision.Owner, error) {
	found, err := a.things(ctx)
	var owners []provision.Owner
	for _, t := range found {
		if o, _, ok := OwnerOf(t.tags); ok && t.tags[TagKeep] == "" && !slices.Contains(owners, o) {
			owners = append(owners, o)
		}
	}
	return owners, err
}

// Expires is when the time of the owner's bed is over, in whichever life, for a sweep removes all that is not kept: zero is never, or nothing of it is there.
func (a *awsCloud) Expires(ctx context.Context, owner provision.Owner) (expires time.Time, err error) {
	found, err := a.things(ctx)
	for _, t := range found {
		if o, at, _ := OwnerOf(t.tags); o.Same(owner) && t.tags[TagKeep] == "" && at.After(expires) {
			expires = at
		}
	}
	return expires, err
}

// sweepTimeout is how long it takes until what depends on instances that are gone can go too.
var sweepTimeout = 5 * time.Minute

// Sweep removes everything that bears the owner's mark but what it is to keep, in the order in which one thing lets another go.
func (a *awsCloud) Sweep(ctx context.Context, owner provision.Owner) error {
	found, err := a.things(ctx)
	if err != nil {
		return err
	}
	found = slices.DeleteFunc(found, func(t thing) bool {
		o, _, _ := OwnerOf(t.tags)
		return !o.Same(owner) || t.tags[TagKeep] != ""
	})
	var live []types.Instance
	for _, t := range found {
		if t.kind == string(types.ResourceTypeInstance) {
			live = append(live, types.Instance{InstanceId: &t.id})
		}
	}
	if err := a.terminate(ctx, live); err != nil {
		return err
	}
	for _, step := range a.removers() {
		for _, t := range found {
			if t.kind != step.kind {
				continue
			}
			if err := a.removed(ctx, t, step.remove); err != nil {
				return err
			}
		}
	}
	return nil
}

// EndOthers ends the owner's instances that are none of those.
func (a *awsCloud) EndOthers(ctx context.Context, owner provision.Owner, ids []string) error {
	live, err := a.instances(ctx, "")
	if err != nil {
		return err
	}
	return a.terminate(ctx, slices.DeleteFunc(live, func(i types.Instance) bool { return !others(tagsOf(i.Tags), owner, aws.ToString(i.InstanceId), ids) }))
}

// remover removes a thing of its kind.
type remover struct {
	kind   string
	remove func(ctx context.Context, id string) error
}

// removers are in the order in which things let each other go. Security groups' rules go with them, and volumes with their instances; those
// that a launch cut short has left are here all the same.
func (a *awsCloud) removers() []remover {
	return []remover{
		{"launch-template", func(ctx context.Context, id string) error {
			_, err := a.ec2.DeleteLaunchTemplate(ctx, &ec2.DeleteLaunchTemplateInput{LaunchTemplateId: &id})
			return err
		}},
		{"placement-group", func(ctx context.Context, id string) error {
			found, err := a.ec2.DescribePlacementGroups(ctx, &ec2.DescribePlacementGroupsInput{GroupIds: []string{id}})
			if err != nil {
				return err
			}
			for _, p := range found.PlacementGroups {
				if aws.ToString(p.GroupId) == id {
					_, err = a.ec2.DeletePlacementGroup(ctx, &ec2.DeletePlacementGroupInput{GroupName: p.GroupName})
				}
			}
			return err
		}},
		{"key-pair", func(ctx context.Context, id string) error {
			found, err := a.ec2.DescribeKeyPairs(ctx, &ec2.DescribeKeyPairsInput{KeyPairIds: []string{id}})
			if err != nil {
				return err
			}
			for _, k := range found.KeyPairs {
				if aws.ToString(k.KeyPairId) == id {
					_, err = a.ec2.DeleteKeyPair(ctx, &ec2.DeleteKeyPairInput{KeyName: k.KeyName})
				}
			}
			return err
		}},
		{"volume", func(ctx context.Context, id string) error {
			_, err := a.ec2.DeleteVolume(ctx, &ec2.DeleteVolumeInput{VolumeId: &id})
			return err
		}},
		{"image", func(ctx context.Context, id string) error {
			_, err := a.ec2.DeregisterImage(ctx, &ec2.DeregisterImageInput{ImageId: &id})
			return err
		}},
		{"snapshot", func(ctx context.Context, id string) error {
			_, err := a.ec2.DeleteSnapshot(ctx, &ec2.DeleteSnapshotInput{SnapshotId: &id})
			return err
		}},
		{importTask, a.removeImport},
		{"network-interface", func(ctx context.Context, id string) error {
			_, err := a.ec2.DeleteNetworkInterface(ctx, &ec2.DeleteNetworkInterfaceInput{NetworkInterfaceId: &id})
			return err
		}},
		{"subnet", func(ctx context.Context, id string) error {
			_, err := a.ec2.DeleteSubnet(ctx, &ec2.DeleteSubnetInput{SubnetId: &id})
			return err
		}},
		{"route-table", a.removeRoutes},
		{"security-group", func(ctx context.Context, id string) error {
			_, err := a.ec2.DeleteSecurityGroup(ctx, &ec2.DeleteSecurityGroupInput{GroupId: &id})
			return err
		}},
		{"internet-gateway", a.removeGateway},
		{"vpc", func(ctx context.Context, id string) error {
			_, err := a.ec2.DeleteVpc(ctx, &ec2.DeleteVpcInput{VpcId: &id})
			return err
		}},
		{"bucket", a.removeBucket},
		{"role", a.removeRole},
	}
}

// removed removes a thing, and waits for those that hold it to let go. One that is gone already is no error.
func (a *awsCloud) removed(ctx context.Context, t thing, remove func(context.Context, string) error) error {
	ctx, cancel := context.WithTimeoutCause(ctx, sweepTimeout, fmt.Errorf("it took more than %v", sweepTimeout))
	defer cancel()
	tick := time.NewTicker(awsPoll)
	defer tick.Stop()
	for {
		err := remove(ctx, t.id)
		said := code(err)
		switch {
		case err == nil || strings.Contains(said, "NotFound") || strings.HasPrefix(said, "NoSuch") || strings.HasSuffix(said, ".Unknown") || strings.HasSuffix(said, ".Unavailable"):
			return nil
		case said == "InvalidParameterValue" && strings.Contains(err.Error(), "in use"): // as EC2 has it of a network interface
		case said != "DependencyViolation" && !strings.HasSuffix(said, "InUse") && said != "DeleteConflict" && said != "OperationAborted":
			return fmt.Errorf("remove %s %s: %w", t.kind, t.id, plainly(err))
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("remove %s %s: %w (last: %w); look at what uses it, and call this again", t.kind, t.id, context.Cause(ctx), plainly(err))
		case <-tick.C:
		}
	}
}

func (a *awsCloud) removeRoutes(ctx context.Context, id string) error {
	found, err := a.ec2.DescribeRouteTables(ctx, &ec2.DescribeRouteTablesInput{RouteTableIds: []string{id}})
	if err != nil {
		return err
	}
	for _, table := range found.RouteTables {
		for _, to := range table.Associations {
			if _, err := a.ec2.DisassociateRouteTable(ctx, &ec2.DisassociateRouteTableInput{AssociationId: to.RouteTableAssociationId}); err != nil {
				return err
			}
		}
	}
	_, err = a.ec2.DeleteRouteTable(ctx, &ec2.DeleteRouteTableInput{RouteTableId: &id})
	return err
}

func (a *awsCloud) removeGateway(ctx context.Context, id string) error {
	found, err := a.ec2.DescribeInternetGateways(ctx, &ec2.DescribeInternetGatewaysInput{InternetGatewayIds: []string{id}})
	if err != nil {
		return err
	}
	for _, g := range found.InternetGateways {
		for _, at := range g.Attachments {
			if _, err := a.ec2.DetachInternetGateway(ctx, &ec2.DetachInternetGatewayInput{InternetGatewayId: &id, VpcId: at.VpcId}); err != nil {
				return err
			}
		}
	}
	_, err = a.ec2.DeleteInternetGateway(ctx, &ec2.DeleteInternetGatewayInput{InternetGatewayId: &id})
	return err
}

// removeBucket removes what is in it, uploads that were cut short too, and then it.
func (a *awsCloud) removeBucket(ctx context.Context, name string) error {
	pages := s3.NewListObjectsV2Paginator(a.s3, &s3.ListObjectsV2Input{Bucket: &name})
	for pages.HasMorePages() {
		page, err := pages.NextPage(ctx)
		if err != nil {
			return err
		}
		var ids []s3types.ObjectIdentifier
		for _, o := range page.Contents {
			ids = append(ids, s3types.ObjectIdentifier{Key: o.Key})
		}
		if len(ids) == 0 {
			continue
		}
		if _, err := a.s3.DeleteObjects(ctx, &s3.DeleteObjectsInput{Bucket: &name, Delete: &s3types.Delete{Objects: ids}}); err != nil {
			return err
		}
	}
	uploads, err := a.s3.ListMultipartUploads(ctx, &s3.ListMultipartUploadsInput{Bucket: &name})
	if err != nil {
		return err
	}
	for _, u := range uploads.Uploads {
		if _, err := a.s3.AbortMultipartUpload(ctx, &s3.AbortMultipartUploadInput{Bucket: &name, Key: u.Key, UploadId: u.UploadId}); err != nil {
			return err
		}
	}
	_, err = a.s3.DeleteBucket(ctx, &s3.DeleteBucketInput{Bucket: &name})
	return err
}

func (a *awsCloud) removeRole(ctx context.Context, name string) error {
	rights, err := a.iam.ListRolePolicies(ctx, &iam.ListRolePoliciesInput{RoleName: &name})
	if err != nil {
		return err
	}
	for _, policy := range rights.PolicyNames {
		if _, err := a.iam.DeleteRolePolicy(ctx, &iam.DeleteRolePolicyInput{RoleName: &name, PolicyName: &policy}); err != nil {
			return err
		}
	}
	_, err = a.iam.DeleteRole(ctx, &iam.DeleteRoleInput{RoleName: &name})
	return err
}
