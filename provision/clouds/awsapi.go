//go:build clouds

package clouds

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
	"github.com/aws/aws-sdk-go-v2/service/iam"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/servicequotas"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	"github.com/aws/smithy-go"

	"github.com/bedfellow/bedfellow/pkg/bed"
	"github.com/bedfellow/bedfellow/provision"
)

// awsCloud is one region of an account.
type awsCloud struct {
	s      AWS
	ec2    *ec2.Client
	s3     *s3.Client
	iam    *iam.Client
	sts    *sts.Client
	quotas *servicequotas.Client
}

// awsTimeout is for one question; waits for what takes longer have their own.
const awsTimeout = time.Minute

func openAWS(s AWS) (*awsCloud, error) {
	ctx, cancel := context.WithTimeout(context.Background(), awsTimeout)
	defer cancel()
	c, err := config.LoadDefaultConfig(ctx, config.WithRegion(s.Region), config.WithHTTPClient(http.NewBuildableClient().WithTimeout(awsTimeout)))
	if err != nil {
		return nil, fmt.Errorf("read the configuration of AWS: %w", err)
	}
	return &awsCloud{
		s: s, ec2: ec2.NewFromConfig(c), iam: iam.NewFromConfig(c), sts: sts.NewFromConfig(c), quotas: servicequotas.NewFromConfig(c),
		s3: s3.NewFromConfig(c, func(o *s3.Options) { o.UsePathStyle = c.BaseEndpoint != nil }), // a server that stands in for AWS has no name per bucket
	}, nil
}

// Info tells what machines there are.
func (a *awsCloud) Info() provision.Info { return Info("aws") }

// problem is one that the cloud has with us.
func problem(key, value, remedy string, format string, args ...any) bed.Problem {
	return bed.Problem{Key: key, Value: value, Reason: fmt.Sprintf(format, args...), Remedy: remedy, Host: true}
}

// Check tells whether we are somebody there, and whether the place exists.
func (a *awsCloud) Check(ctx context.Context) []bed.Problem {
	ctx, cancel := context.WithTimeout(ctx, awsTimeout)
	defer cancel()
	_, err := a.sts.Options().Credentials.Retrieve(ctx)
	known := err == nil
	if known {
		_, err = a.sts.GetCallerIdentity(ctx, &sts.GetCallerIdentityInput{})
	}
	switch {
	case err == nil:
	case known && code(err) == "": // nobody was there to refuse: a region that does not exist has no address
		return []bed.Problem{problem("aws.region", a.s.Region, "`aws ec2 describe-regions` lists yours; can this host reach AWS?", "does not answer: %v", err)}
	default:
		return []bed.Problem{problem("", "", "`aws configure`, or set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; docs/clouds.md has the rights that are needed. "+
			"A region that your account has not opted in to knows nobody either: `aws ec2 describe-regions` lists yours", "AWS does not know who you are in region %s: %v", a.s.Region, plainly(err))}
	}
	zones, err := a.ec2.DescribeAvailabilityZones(ctx, &ec2.DescribeAvailabilityZonesInput{})
	if err != nil {
		return []bed.Problem{problem("aws.region", a.s.Region, "docs/clouds.md has the rights that are needed", "cannot be asked for its zones: %v", plainly(err))}
	}
	var names []string
	for _, z := range zones.AvailabilityZones {
		names = append(names, aws.ToString(z.ZoneName))
	}
	if !slices.Contains(names, a.s.Zone) {
		return []bed.Problem{problem("aws.zone", a.s.Zone, "write -c aws.zone= one of them", "is none of the zones that region %s has for you: %s", a.s.Region, strings.Join(names, ", "))}
	}
	return nil
}

// plainly is what a service said, without the request around it.
func plainly(err error) error {
	var said smithy.APIError
	if errors.As(err, &said) {
		return fmt.Errorf("%s: %s", said.ErrorCode(), said.ErrorMessage())
	}
	return err
}

// Fit looks at the types of instance, at the machine image that is named, and at how much of them the account may have.
func (a *awsCloud) Fit(ctx context.Context, spec bed.Spec) []bed.Problem {
	ctx, cancel := context.WithTimeout(ctx, awsTimeout)
	defer cancel()
	image, problems := a.fitImage(ctx)
	known := map[string]types.InstanceTypeInfo{}
	for i := range spec.Pools {
		name, key := typeName(spec, i)
		t, ok := known[name]
		if !ok {
			found, err := a.ec2.DescribeInstanceTypes(ctx, &ec2.DescribeInstanceTypesInput{InstanceTypes: []types.InstanceType{types.InstanceType(name)}})
			if err != nil || len(found.InstanceTypes) == 0 {
				problems = once(problems, problem(key, name, "`aws ec2 describe-instance-types` lists them", "is no type that region %s has: %v", a.s.Region, plainly(err)))
				continue
			}
			t = found.InstanceTypes[0]
			known[name], problems = t, append(problems, a.fitZone(ctx, name)...)
		}
		problems = once(problems, a.fitType(spec, i, t, image)...)
	}
	return slices.Concat(problems, a.fitQuota(ctx, spec, known), a.fitNetwork(ctx, spec))
}

// fitImage finds the image that the instances boot, as far as it tells; of our own that is its architecture.
func (a *awsCloud) fitImage(ctx context.Context) (image types.Image, problems []bed.Problem) {
	if a.s.AMI == "" {
		return types.Image{Architecture: Architecture}, nil
	}
	images, err := a.ec2.DescribeImages(ctx, &ec2.DescribeImagesInput{ImageIds: []string{a.s.AMI}, Owners: []string{a.s.AMIOwner}})
	if err != nil || len(images.Images) == 0 {
		return image, []bed.Problem{problem("aws.ami", a.s.AMI, "name one that is there, and whose it is with -c aws.amiOwner=", "is no machine image of account %s in region %s: %v", a.s.AMIOwner, a.s.Region, plainly(err))}
	}
	if image = images.Images[0]; image.State != types.ImageStateAvailable {
		problems = append(problems, problem("aws.ami", a.s.AMI, "wait until it is available, or name another", "cannot be used: it is %s", image.State))
	}
	return image, problems
}

// fitZone tells whether the bed's zone has the type. An account that may not ask is told by AWS later.
func (a *awsCloud) fitZone(ctx context.Context, name string) []bed.Problem {
	offered, err := a.ec2.DescribeInstanceTypeOfferings(ctx, &ec2.DescribeInstanceTypeOfferingsInput{
		LocationType: types.LocationTypeAvailabilityZone, Filters: []types.Filter{filter("instance-type", name)},
	})
	if err != nil {
		return nil
	}
	var zones []string
	for _, o := range offered.InstanceTypeOfferings {
		zones = append(zones, aws.ToString(o.Location))
	}
	if len(zones) == 0 || slices.Contains(zones, a.s.Zone) {
		return nil
	}
	return []bed.Problem{problem("aws.zone", a.s.Zone, "write -c aws.zone="+zones[0], "has no %s; there are some in %s", name, strings.Join(zones, ", "))}
}

func (a *awsCloud) fitType(spec bed.Spec, pool int, t types.InstanceTypeInfo, image types.Image) (problems []bed.Problem) {
	name, key := typeName(spec, pool)
	if p := t.ProcessorInfo; p != nil && image.Architecture != "" && !slices.Contains(p.SupportedArchitectures, types.ArchitectureType(image.Architecture)) {
		problems = append(problems, problem(key, name, "choose a type or an image of the other's architecture", "is a machine of architecture %v, and the image is for %s", p.SupportedArchitectures, image.Architecture))
	}
	if n := t.NetworkInfo; a.s.EFA && computes(spec, pool) && n != nil && !aws.ToBool(n.EfaSupported) {
		problems = append(problems, problem("aws.efa", "true", "choose a type that has one, or write -c aws.efa=false", "asks for an Elastic Fabric Adapter, and %s has none", name))
	}
	if u := t.SupportedUsageClasses; a.s.Spot && len(u) > 0 && !slices.Contains(u, types.UsageClassTypeSpot) {
		problems = append(problems, problem("aws.spot", "true", "write -c aws.spot=false", "asks for spot instances, which there are none of as %s", name))
	}
	if g := t.PlacementGroupInfo; spec.Size() > 1 && g != nil && !slices.Contains(g.SupportedStrategies, types.PlacementGroupStrategyCluster) {
		problems = append(problems, problem(key, name, "choose a type for computing, such as c7i.2xlarge", "cannot be placed close to its siblings"))
	}
	if v := t.VCpuInfo; v != nil {
		want := vcpus(t)
		if a.s.ThreadsPerCore > 0 {
			want = want / max(int(aws.ToInt32(v.DefaultThreadsPerCore)), 1) * a.s.ThreadsPerCore
		}
		if have := spec.Pools[pool].CPUs; have != want {
			at, remedy := saying(spec, pool, "cpus", want)
			problems = append(problems, problem(at, fmt.Sprint(have), remedy, "is not what a %s has, which is %d", name, want))
		}
	}
	if m := t.MemoryInfo; m != nil {
		want := bed.Size(aws.ToInt64(m.SizeInMiB)) * bed.MiB
		if have := spec.Pools[pool].Memory; have != want {
			at, remedy := saying(spec, pool, "memory", want)
			problems = append(problems, problem(at, have.String(), remedy, "is not what a %s has, which is %v", name, want))
		}
	}
	for _, d := range image.BlockDeviceMappings {
		if d.Ebs == nil || aws.ToString(d.DeviceName) != aws.ToString(image.RootDeviceName) {
			continue
		}
		if least, have := bed.Size(aws.ToInt32(d.Ebs.VolumeSize))*bed.GiB, cmp.Or(spec.Pools[pool].Disk, DefaultDisk); have < least {
			at, remedy := saying(spec, pool, "disk", least)
			problems = append(problems, problem(at, have.String(), remedy, "is less than the %v that image %s takes", least, a.s.AMI))
		}
	}
	return problems
}

// standard are the families whose vCPUs count to the quotas of standard instances.
var standard = regexp.MustCompile(`^[acdhimrtz][0-9]`)

// quotaOf is the code of the quota that a type's vCPUs count to; empty for families with one that is not known here.
func quotaOf(instanceType string, spot bool) (code string) {
	switch {
	case strings.HasPrefix(instanceType, "hpc"):
		return "L-F7808C92" // Running On-Demand HPC instances
	case !standard.MatchString(instanceType):
		return ""
	case spot:
		return "L-34B43A08" // All Standard Spot Instance Requests
	default:
		return "L-1216C47A" // Running On-Demand Standard instances
	}
}

// quota is what the account may have of something in this region; ok is false where it may not ask, and is told by AWS later.
func (a *awsCloud) quota(ctx context.Context, service, code string) (name string, value float64, ok bool) {
	found, err := a.quotas.GetServiceQuota(ctx, &servicequotas.GetServiceQuotaInput{ServiceCode: &service, QuotaCode: &code})
	if err != nil || found.Quota == nil {
		return "", 0, false
	}
	return aws.ToString(found.Quota.QuotaName), aws.ToFloat64(found.Quota.Value), true
}

const moreQuota = "ask for more at https://console.aws.amazon.com/servicequotas, "

// fitQuota compares the quotas with what the bed needs of them besides what others have running.
func (a *awsCloud) fitQuota(ctx context.Context, spec bed.Spec, known map[string]types.InstanceTypeInfo) (problems []bed.Problem) {
	needs := map[string]int{}
	for i, pool := range spec.Pools {
		name, _ := typeName(spec, i)
		needs[quotaOf(name, a.s.Spot)] += pool.Nodes * vcpus(known[name])
	}
	for _, code := range slices.Sorted(maps.Keys(needs)) {
		name, value, ok := a.quota(ctx, "ec2", code)
		if code == "" || !ok {
			continue
		}
		used, err := a.used(ctx, spec.Name, code)
		if err != nil {
			return []bed.Problem{problem("nodes", fmt.Sprint(spec.Size()), "docs/clouds.md has the rights that are needed", "cannot be compared with what your account has running: %v", err)}
		}
		if need := float64(needs[code]); need+used > value {
			problems = append(problems, problem("nodes", fmt.Sprint(spec.Size()), moreQuota+"or for fewer nodes, or end what you need no more",
				"take %g vCPUs, and of the quota %q your account has %g left of %g in region %s", need, name, max(value-used, 0), value, a.s.Region))
		}
	}
	return problems
}

// vcpus are what quotas count, also where an instance does without some.
func vcpus(t types.InstanceTypeInfo) int {
	if t.VCpuInfo == nil {
		return 0
	}
	return int(aws.ToInt32(t.VCpuInfo.DefaultVCpus))
}

// used are the vCPUs that count to the quota and are not of a bed of that name.
func (a *awsCloud) used(ctx context.Context, bedName, code string) (used float64, err error) {
	live, err := a.filtered(ctx)
	if err != nil {
		return 0, err
	}
	others := map[string]int{}
	for _, i := range live {
		counts := i.State != nil && (i.State.Name == types.InstanceStateNamePending || i.State.Name == types.InstanceStateNameRunning)
		if counts && tagsOf(i.Tags)[TagBed] != bedName && quotaOf(string(i.InstanceType), i.InstanceLifecycle == types.InstanceLifecycleTypeSpot) == code {
			others[string(i.InstanceType)]++
		}
	}
	if len(others) == 0 {
		return 0, nil
	}
	pages := ec2.NewDescribeInstanceTypesPaginator(a.ec2, &ec2.DescribeInstanceTypesInput{Filters: []types.Filter{filter("instance-type", slices.Collect(maps.Keys(others))...)}})
	for pages.HasMorePages() {
		page, err := pages.NextPage(ctx)
		if err != nil {
			return 0, fmt.Errorf("look at the types of instances: %w", plainly(err))
		}
		for _, t := range page.InstanceTypes {
			used += float64(others[string(t.InstanceType)] * vcpus(t))
		}
	}
	return used, nil
}

// fitNetwork tells whether the account may have one more VPC, where the bed has none yet.
func (a *awsCloud) fitNetwork(ctx context.Context, spec bed.Spec) []bed.Problem {
	name, value, ok := a.quota(ctx, "vpc", "L-F678F1CE") // VPCs per Region
	if !ok {
		return nil
	}
	there := 0
	pages := ec2.NewDescribeVpcsPaginator(a.ec2, &ec2.DescribeVpcsInput{})
	for pages.HasMorePages() {
		page, err := pages.NextPage(ctx)
		if err != nil {
			return []bed.Problem{problem("aws.region", a.s.Region, "docs/clouds.md has the rights that are needed", "cannot be asked for its VPCs: %v", plainly(err))}
		}
		for _, v := range page.Vpcs {
			if tagsOf(v.Tags)[TagBed] == spec.Name {
				return nil
			}
		}
		there += len(page.Vpcs)
	}
	if float64(there+1) > value {
		return []bed.Problem{problem("aws.region", a.s.Region, moreQuota+"or remove a VPC that nobody needs: `bed sweep` lists beds", "has no room for the bed's VPC: there are %d, and the quota %q of your account is %g", there, name, value)}
	}
	return nil
}

func filter(name string, values ...string) types.Filter {
	return types.Filter{Name: &name, Values: values}
}

func tagsOf(list []types.Tag) map[string]string {
	tags := map[string]string{}
	for _, t := range list {
		tags[aws.ToString(t.Key)] = aws.ToString(t.Value)
	}
	return tags
}

// instances are a bed's, or all beds' where none is named, that are not gone.
func (a *awsCloud) instances(ctx context.Context, bedName string) ([]types.Instance, error) {
	if bedName != "" {
		return a.filtered(ctx, filter("tag:"+TagBed, bedName))
	}
	return a.filtered(ctx, filter("tag-key", TagBed))
}

func (a *awsCloud) filtered(ctx context.Context, by ...types.Filter) (found []types.Instance, err error) {
	pages := ec2.NewDescribeInstancesPaginator(a.ec2, &ec2.DescribeInstancesInput{
		Filters: append(by, filter("instance-state-name", "pending", "running", "shutting-down", "stopping", "stopped")),
	})
	for pages.HasMorePages() {
		page, err := pages.NextPage(ctx)
		if err != nil {
			return nil, fmt.Errorf("list instances: %w", plainly(err))
		}
		for _, r := range page.Reservations {
			found = append(found, r.Instances...)
		}
	}
	return found, nil
}

// List shows the instances that are a bed's nodes.
func (a *awsCloud) List(ctx context.Context, owner string) ([]provision.Status, error) {
	found, err := a.instances(ctx, owner)
	if err != nil {
		return nil, err
	}
	var list []provision.Status
	for _, i := range found {
		tags := tagsOf(i.Tags)
		st := provision.Status{Name: tags[TagNode], State: provision.Broken, Address: aws.ToString(i.PublicIpAddress), Port: 22, BedAddress: aws.ToString(i.PrivateIpAddress), Incarnation: aws.ToString(i.InstanceId)}
		st.Owner, st.Expires, _ = OwnerOf(tags)
		if i.State != nil {
			st.Detail = string(i.State.Name)
			switch i.State.Name {
			case types.InstanceStateNameRunning:
				st.State, st.Detail = provision.Running, ""
			case types.InstanceStateNameStopped:
				st.State = provision.Stopped
			}
		}
		list = append(list, st)
	}
	return list, nil
}

// terminateTimeout is how long instances take to be gone, the slow ones, and terminateAtOnce how many go with one request.
const (
	terminateTimeout = 10 * time.Minute
	terminateAtOnce  = 100
	awsPoll          = 2 * time.Second
)

func (a *awsCloud) terminate(ctx context.Context, list []types.Instance) error {
	ctx, cancel := context.WithTimeoutCause(ctx, terminateTimeout, fmt.Errorf("it took more than %v", terminateTimeout))
	defer cancel()
	tick := time.NewTicker(awsPoll)
	defer tick.Stop()
	for len(list) > 0 {
		var ids, ask []string
		for _, i := range list {
			ids = append(ids, aws.ToString(i.InstanceId))
			if i.State == nil || i.State.Name != types.InstanceStateNameShuttingDown {
				ask = append(ask, aws.ToString(i.InstanceId))
			}
		}
		// The SDK's own waiter takes one that only just begins, or stops, for a failure. One that is gone meanwhile has all refused, and is not there next time.
		for some := range slices.Chunk(ask, terminateAtOnce) {
			if _, err := a.ec2.TerminateInstances(ctx, &ec2.TerminateInstancesInput{InstanceIds: some}); err != nil && code(err) != "InvalidInstanceID.NotFound" {
				return fmt.Errorf("terminate %v: %w", some, plainly(err))
			}
		}
		live, err := a.instances(ctx, "") // a filter takes no more than 200 ids
		if err != nil {
			return fmt.Errorf("wait for %v to be gone: %w", ids, err)
		}
		list = slices.DeleteFunc(live, func(i types.Instance) bool { return !slices.Contains(ids, aws.ToString(i.InstanceId)) })
		if len(list) == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for %v to be gone: %w", ids, context.Cause(ctx))
		case <-tick.C:
		}
	}
	return nil
}
