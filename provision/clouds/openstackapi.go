//go:build clouds

package clouds

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/gophercloud/gophercloud/v2"
	volumelimits "github.com/gophercloud/gophercloud/v2/openstack/blockstorage/v3/limits"
	"github.com/gophercloud/gophercloud/v2/openstack/compute/v2/flavors"
	"github.com/gophercloud/gophercloud/v2/openstack/compute/v2/limits"
	"github.com/gophercloud/gophercloud/v2/openstack/compute/v2/servers"
	"github.com/gophercloud/gophercloud/v2/openstack/identity/v3/tokens"
	"github.com/gophercloud/gophercloud/v2/openstack/image/v2/images"
	"github.com/gophercloud/gophercloud/v2/openstack/networking/v2/extensions/external"
	"github.com/gophercloud/gophercloud/v2/openstack/networking/v2/extensions/quotas"
	"github.com/gophercloud/gophercloud/v2/openstack/networking/v2/networks"
	"github.com/gophercloud/gophercloud/v2/pagination"
	"github.com/gophercloud/utils/v2/openstack/clientconfig"

	"github.com/bedfellow/bedfellow/pkg/bed"
	"github.com/bedfellow/bedfellow/provision"
)

// openStackCloud is one project of an OpenStack cloud, in one region.
type openStackCloud struct{ s OpenStack }

// openStackTimeout is for one question, and for logging in; what takes longer has its own.
const openStackTimeout = time.Minute

func openOpenStack(s OpenStack) (*openStackCloud, error) { return &openStackCloud{s: s}, nil }

// Info tells what machines there are.
func (o *openStackCloud) Info() provision.Info { return Info("openstack") }

// openStack is where one has logged in.
type openStack struct {
	compute, network, image *gophercloud.ServiceClient
	volume                  *gophercloud.ServiceClient // nil where there are no volumes
	project                 string                     // ours, by its id: who runs a cloud is shown all projects' networks; empty is not known
}

// attempts are how often a service is asked that is busy or away for a moment; openStackPause is until the second, and twice that until the third.
const attempts = 5

var openStackPause = time.Second

// again waits before a service is asked once more, or tells that it is not to be.
func again(ctx context.Context, _, _ string, _ *gophercloud.RequestOpts, err error, failed uint) error {
	var cut *url.Error
	passing := errors.As(err, &cut) && !cut.Timeout()
	for _, code := range []int{http.StatusTooManyRequests, http.StatusInternalServerError, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout} {
		passing = passing || gophercloud.ResponseCodeIs(err, code)
	}
	if !passing || failed >= attempts {
		return err
	}
	select {
	case <-ctx.Done():
		return err
	case <-time.After(openStackPause << (failed - 1)):
		return nil
	}
}

// login is done for each task: a token that lasted for the one before may not for this one.
func (o *openStackCloud) login(ctx context.Context) (*openStack, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, openStackTimeout, fmt.Errorf("it took more than %v", openStackTimeout))
	defer cancel()
	in := &openStack{}
	for _, service := range []struct {
		name string
		to   **gophercloud.ServiceClient
	}{{"compute", &in.compute}, {"network", &in.network}, {"image", &in.image}, {"volume", &in.volume}} {
		c, err := o.service(ctx, service.name)
		switch {
		case service.name == "volume" && nowhere(err):
		case err != nil:
			return nil, fmt.Errorf("log in to OpenStack's service %s: %w", service.name, said(err))
		default:
			c.HTTPClient.Timeout, c.RetryFunc = openStackTimeout, again
			*service.to = c
		}
	}
	if token, ok := in.network.GetAuthResult().(tokens.CreateResult); ok {
		if project, err := token.ExtractProject(); err == nil && project != nil {
			in.project = project.ID
		}
	}
	return in, nil
}

// service reads who we are from where every OpenStack tool does. The library looks at a service's versions without regard to ctx.
func (o *openStackCloud) service(ctx context.Context, name string) (*gophercloud.ServiceClient, error) {
	type answer struct {
		client *gophercloud.ServiceClient
		err    error
	}
	answers := make(chan answer, 1)
	go func() {
		c, err := clientconfig.NewServiceClient(ctx, name, &clientconfig.ClientOpts{RegionName: o.s.Region})
		answers <- answer{c, err}
	}()
	select {
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	case a := <-answers:
		return a.client, a.err
	}
}

// nowhere tells whether the region, or the cloud, has no such service.
func nowhere(err error) bool {
	var none *gophercloud.ErrEndpointNotFound
	return errors.As(err, &none)
}

// gone tells whether there is no such thing.
func gone(err error) bool { return gophercloud.ResponseCodeIs(err, http.StatusNotFound) }

// refusal is what a service said, without the request around it.
type refusal struct {
	error
	text string
}

func (r refusal) Error() string { return r.text }
func (r refusal) Unwrap() error { return r.error }

// said is the error in the service's own words, where it had some: each service has its own wrapping for them.
func said(err error) error {
	var answer gophercloud.ErrUnexpectedResponseCode
	if !errors.As(err, &answer) {
		return err
	}
	text := fmt.Sprintf("%d %s", answer.Actual, http.StatusText(answer.Actual))
	var body map[string]json.RawMessage
	_ = json.Unmarshal(answer.Body, &body) // it may be no JSON
	for _, part := range body {
		var words struct{ Message string }
		if json.Unmarshal(part, &words) == nil && words.Message != "" {
			text += ": " + words.Message
		}
	}
	return refusal{err, text}
}

// all are those of all pages.
func all[T any](ctx context.Context, what string, pages pagination.Pager, extract func(pagination.Page) ([]T, error)) ([]T, error) {
	page, err := pages.AllPages(ctx)
	if err != nil {
		return nil, fmt.Errorf("list %s: %w", what, said(err))
	}
	return extract(page)
}

// Check tells whether we are somebody there, and whether the place exists.
func (o *openStackCloud) Check(ctx context.Context) []bed.Problem {
	_, err := o.login(ctx)
	return o.outside(err)
}

// outside says why we are not in.
func (o *openStackCloud) outside(err error) []bed.Problem {
	switch {
	case err == nil:
		return nil
	case nowhere(err):
		return []bed.Problem{problem("openstack.region", o.s.Region,
			"write -c openstack.region= one that `openstack catalog list` shows, and name your project with OS_PROJECT_ID or in clouds.yaml",
			"is no region where your project has what a bed needs: %v", err)}
	default:
		return []bed.Problem{problem("", "",
			"set OS_CLOUD to a cloud of your clouds.yaml, or OS_AUTH_URL and the others of your project's openrc file; docs/clouds.md has the rights that are needed",
			"OpenStack does not let you in: %v", err)}
	}
}

// Fit looks at the flavors, at the external network, at the image that is named, and at how much the project may have.
func (o *openStackCloud) Fit(ctx context.Context, spec bed.Spec) []bed.Problem {
	ctx, cancel := context.WithTimeout(ctx, openStackTimeout)
	defer cancel()
	in, err := o.login(ctx)
	if err != nil {
		return o.outside(err)
	}
	image, problems := o.fitImage(ctx, in, spec)
	problems = append(problems, o.fitNetwork(ctx, in)...)
	found, err := all(ctx, "flavors", flavors.ListDetail(in.compute, flavors.ListOpts{}), flavors.ExtractFlavors)
	if err != nil {
		return append(problems, problem("", "", "docs/clouds.md has the rights that are needed", "OpenStack does not tell its flavors: %v", err))
	}
	for i := range spec.Pools {
		name, key := typeName(spec, i)
		at := slices.IndexFunc(found, func(f flavors.Flavor) bool { return f.Name == name })
		if at < 0 {
			problems = once(problems, problem(key, name, "write one of them", "is none of the flavors that there are for you: %s", names(found, func(f flavors.Flavor) string { return f.Name })))
			continue
		}
		problems = once(problems, fitFlavor(spec, i, found[at])...)
		problems = once(problems, in.fitDisk(spec, i, found[at], image)...)
	}
	return append(problems, fitQuota(ctx, in, spec)...)
}

// names are for people to choose from.
func names[T any](list []T, name func(T) string) string {
	var text []string
	for _, one := range list {
		text = append(text, name(one))
	}
	slices.Sort(text)
	return cmp.Or(strings.Join(text, ", "), "there are none")
}

func fitFlavor(spec bed.Spec, i int, f flavors.Flavor) (problems []bed.Problem) {
	pool := spec.Pools[i]
	if pool.CPUs != f.VCPUs {
		at, remedy := saying(spec, i, "cpus", f.VCPUs)
		problems = append(problems, problem(at, fmt.Sprint(pool.CPUs), remedy, "is not what a %s has, which is %d", f.Name, f.VCPUs))
	}
	if memory := bed.Size(f.RAM) * bed.MiB; pool.Memory != memory {
		at, remedy := saying(spec, i, "memory", memory)
		problems = append(problems, problem(at, pool.Memory.String(), remedy, "is not what a %s has, which is %v", f.Name, memory))
	}
	return problems
}

// fitDisk tells whether the node's disk can be had where it would be: the flavor's own, or a volume. Nova makes no server of an image on a
// flavor without a disk but for administrators. The image is the one that is named, or nothing.
func (in *openStack) fitDisk(spec bed.Spec, i int, f flavors.Flavor, image images.Image) []bed.Problem {
	disk := spec.Pools[i].Disk
	at, remedy := saying(spec, i, "disk", "20GiB")
	least := max(bed.Size(image.MinDiskGigabytes)*bed.GiB, bed.Size(image.VirtualSize))
	if have := cmp.Or(disk, bed.Size(f.Disk)*bed.GiB); have > 0 && have < least {
		_, remedy := saying(spec, i, "disk", (least+bed.GiB-1)/bed.GiB*bed.GiB)
		return []bed.Problem{problem(at, have.String(), remedy+", which is then a volume", "is less than the %v that image %s takes", least, image.Name)}
	}
	switch {
	case disk == 0 && f.Disk == 0 && in.volume != nil:
		return []bed.Problem{problem(at, "", remedy+", which is then a volume, or choose another flavor", "is not set, and a %s has no disk of its own", f.Name)}
	case disk == 0 && f.Disk == 0:
		return []bed.Problem{problem(at, "", "choose another flavor", "is not set, and a %s has no disk of its own, nor has this cloud a service for volumes", f.Name)}
	case disk > 0 && in.volume == nil:
		return []bed.Problem{problem(at, disk.String(), "leave it out, and choose a flavor with a disk of its own", "would be a volume, and this cloud has no service for them")}
	}
	return nil
}

func (o *openStackCloud) fitNetwork(ctx context.Context, in *openStack) []bed.Problem {
	outside := true
	found, err := all(ctx, "external networks", networks.List(in.network, external.ListOptsExt{ListOptsBuilder: networks.ListOpts{}, External: &outside}), networks.ExtractNetworks)
	switch {
	case err != nil:
		return []bed.Problem{problem("openstack.externalNetwork", o.s.ExternalNetwork, "docs/clouds.md has the rights that are needed", "cannot be looked for: %v", err)}
	case !slices.ContainsFunc(found, func(n networks.Network) bool { return n.Name == o.s.ExternalNetwork }):
		return []bed.Problem{problem("openstack.externalNetwork", o.s.ExternalNetwork, "write -c openstack.externalNetwork= one of them",
			"is none of the external networks that there are for you: %s",
			names(found, func(n networks.Network) string { return n.Name }))}
	}
	return nil
}

// fitImage finds the image that is named, and what is wrong with it.
func (o *openStackCloud) fitImage(ctx context.Context, in *openStack, spec bed.Spec) (image images.Image, problems []bed.Problem) {
	if o.s.Image == "" {
		return image, nil
	}
	found, err := all(ctx, "images", images.List(in.image, images.ListOpts{Name: o.s.Image}), images.ExtractImages)
	switch {
	case err != nil:
		return image, []bed.Problem{problem("openstack.image", o.s.Image, "docs/clouds.md has the rights that are needed", "cannot be looked for: %v", err)}
	case len(found) != 1:
		return image, []bed.Problem{problem("openstack.image", o.s.Image, "name one that there is once: `openstack image list` shows them", "is the name of %d images", len(found))}
	case found[0].Status != images.ImageStatusActive:
		return image, []bed.Problem{problem("openstack.image", o.s.Image, "wait until it is active, or name another", "cannot be used yet: it is %s", found[0].Status)}
	}
	of, said := found[0].Properties["architecture"].(string)
	if of == "aarch64" {
		of = "arm64"
	}
	for i := range spec.Pools {
		name, _ := typeName(spec, i)
		if t, ok := typeOf("openstack", name); ok && said && of != t.Architecture {
			problems = once(problems, problem("openstack.image", o.s.Image, "choose a flavor or an image of the other's architecture", "is for %s, and a %s is a machine of architecture %s", of, name, t.Architecture))
		}
	}
	return found[0], problems
}

// fitQuota compares what the project has left with what the bed needs besides what it has already. What a cloud does not tell, it says later.
func fitQuota(ctx context.Context, in *openStack, spec bed.Spec) (problems []bed.Problem) {
	compare := func(what string, need, used, limit int) {
		if left := limit - used; limit >= 0 && need > 0 && need > left { // -1 is no limit
			problems = append(problems, problem("nodes", fmt.Sprint(spec.Size()), "ask those who run the cloud for more, or for fewer nodes, or remove what you need no more",
				"take %d %s, and your project has %d left of %d", need, what, max(left, 0), limit))
		}
	}
	found, err := in.things(ctx)
	if err != nil {
		return []bed.Problem{problem("", "", "docs/clouds.md has the rights that are needed", "OpenStack does not tell what there is of the bed: %v", err)}
	}
	have, there := map[string]int{}, map[string]bool{}
	for _, t := range found {
		if t.tags[TagBed] == spec.Name {
			have[t.kind]++
			there[t.tags[TagNode]] = true
		}
	}
	more, cpus, memory, volumes, gigabytes := 0, 0, bed.Size(0), 0, 0
	for _, n := range spec.Nodes() {
		if there[n.Name] {
			continue
		}
		if more, cpus, memory = more+1, cpus+n.CPUs, memory+n.Memory; n.Disk > 0 {
			volumes, gigabytes = volumes+1, gigabytes+int((n.Disk+bed.GiB-1)/bed.GiB)
		}
	}
	if l, err := limits.Get(ctx, in.compute, nil).Extract(); err == nil {
		a := l.Absolute
		compare("servers", more, a.TotalInstancesUsed, a.MaxTotalInstances)
		compare("vCPUs", cpus, a.TotalCoresUsed, a.MaxTotalCores)
		compare("MiB of memory", int(memory/bed.MiB), a.TotalRAMUsed, a.MaxTotalRAMSize)
		if more > 0 && a.MaxServerGroupMembers != 0 { // those that say nothing of it have none
			compare("places in one server group", spec.Size(), 0, a.MaxServerGroupMembers)
		}
		if have[kindNetwork] == 0 && a.MaxServerGroups != 0 { // nothing else tells whether the group is there
			compare("server groups", 1, a.TotalServerGroupsUsed, a.MaxServerGroups)
		}
	}
	if q, err := quotas.GetDetail(ctx, in.network, in.project).Extract(); in.project != "" && err == nil {
		router := 1 - have[kindRouter]
		for _, of := range []struct {
			what string
			need int
			quotas.QuotaDetail
		}{
			{kindFloating + "s", 1 - have[kindFloating], q.FloatingIP}, {kindNetwork + "s", 1 - have[kindNetwork], q.Network}, {kindSubnet + "s", 1 - have[kindSubnet], q.Subnet},
			{kindRouter + "s", router, q.Router}, {kindPort + "s", spec.Size() + router - have[kindPort], q.Port}, {"security groups", 1 - have[kindSecurityGroup], q.SecurityGroup},
		} {
			compare(of.what, of.need, of.Used+of.Reserved, of.Limit)
		}
	}
	if in.volume != nil && volumes > 0 {
		if l, err := volumelimits.Get(ctx, in.volume).Extract(); err == nil {
			compare("volumes", volumes, l.Absolute.TotalVolumesUsed, l.Absolute.MaxTotalVolumes)
			compare("GiB of volumes", gigabytes, l.Absolute.TotalGigabytesUsed, l.Absolute.MaxTotalVolumeGigabytes)
		}
	}
	return problems
}

// servers are those with the tag, of any value where none is given.
func (in *openStack) servers(ctx context.Context, tag, value string) ([]servers.Server, error) {
	found, err := all(ctx, "servers", servers.List(in.compute, servers.ListOpts{}), servers.ExtractServers)
	return slices.DeleteFunc(found, func(s servers.Server) bool {
		have, ok := s.Metadata[tag]
		return !ok || value != "" && have != value
	}), err
}

// List shows the servers that are a bed's nodes.
func (o *openStackCloud) List(ctx context.Context, owner string) ([]provision.Status, error) {
	in, err := o.login(ctx)
	if err != nil {
		return nil, err
	}
	found, err := in.servers(ctx, TagBed, owner)
	if err != nil {
		return nil, err
	}
	var list []provision.Status
	for _, s := range found {
		st := provision.Status{Name: s.Metadata[TagNode], State: provision.Broken, Detail: strings.ToLower(s.Status), Port: 22, Incarnation: s.ID}
		st.Owner, st.Expires, _ = OwnerOf(s.Metadata)
		st.Address, st.BedAddress = addressesOf(s)
		switch {
		case s.TaskState == "deleting":
			st.Detail = s.TaskState
		case s.Status == "ACTIVE":
			st.State, st.Detail = provision.Running, ""
		case s.Status == "SHUTOFF":
			st.State = provision.Stopped
		case s.Status == "ERROR":
			one, err := servers.Get(ctx, in.compute, s.ID).Extract() // a list has no faults of what is in another cell than its service's
			if err != nil && !gone(err) {
				return nil, fmt.Errorf("look at server %s: %w", s.ID, said(err))
			}
			if err == nil && one.Fault.Message != "" {
				st.Detail += ": " + strings.TrimSpace(one.Fault.Message)
			}
		}
		list = append(list, st)
	}
	return list, nil
}

// addressesOf a server: the one from outside, if it has one, and the one on the bed's network.
func addressesOf(s servers.Server) (floating, fixed string) {
	for _, network := range s.Addresses {
		list, _ := network.([]any)
		for _, one := range list {
			a, _ := one.(map[string]any)
			address, _ := a["addr"].(string)
			if a["OS-EXT-IPS:type"] == "floating" {
				floating = address
			} else {
				fixed = address
			}
		}
	}
	return floating, fixed
}
