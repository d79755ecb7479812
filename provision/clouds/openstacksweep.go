//go:build clouds

package clouds

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/gophercloud/gophercloud/v2"
	"github.com/gophercloud/gophercloud/v2/openstack/blockstorage/v3/volumes"
	"github.com/gophercloud/gophercloud/v2/openstack/compute/v2/keypairs"
	"github.com/gophercloud/gophercloud/v2/openstack/compute/v2/servergroups"
	"github.com/gophercloud/gophercloud/v2/openstack/compute/v2/servers"
	"github.com/gophercloud/gophercloud/v2/openstack/image/v2/images"
	"github.com/gophercloud/gophercloud/v2/openstack/networking/v2/extensions/layer3/floatingips"
	"github.com/gophercloud/gophercloud/v2/openstack/networking/v2/extensions/layer3/routers"
	"github.com/gophercloud/gophercloud/v2/openstack/networking/v2/extensions/security/groups"
	"github.com/gophercloud/gophercloud/v2/openstack/networking/v2/networks"
	"github.com/gophercloud/gophercloud/v2/openstack/networking/v2/ports"
	"github.com/gophercloud/gophercloud/v2/openstack/networking/v2/subnets"
	"github.com/gophercloud/gophercloud/v2/pagination"

	"github.com/bedfellow/bedfellow/provision"
)

// The kinds of things, as people call them.
const (
	kindServer        = "server"
	kindFloating      = "floating IP"
	kindPort          = "port"
	kindRouter        = "router"
	kindSubnet        = "subnet"
	kindNetwork       = "network"
	kindSecurityGroup = "security group"
	kindKeyPair       = "key pair"
	kindServerGroup   = "server group"
	kindVolume        = "volume"
	kindImage         = "image"
)

// pairs reads a mark that is in words.
func pairs(words []string) map[string]string {
	tags := map[string]string{}
	for _, word := range words {
		key, value, _ := strings.Cut(word, "=")
		tags[key] = value
	}
	return tags
}

// lister lists what bears a bed's mark.
type lister func(context.Context) ([]thing, error)

// list does so for one kind of thing. No service can be asked for a part of a word.
func list[T any](kind string, pages pagination.Pager, extract func(pagination.Page) ([]T, error), of func(T) (id string, tags map[string]string)) lister {
	return func(ctx context.Context) (found []thing, err error) {
		there, err := all(ctx, kind+"s", pages, extract)
		for _, one := range there {
			if id, tags := of(one); tags[TagBed] != "" {
				found = append(found, thing{kind: kind, id: id, tags: tags})
			}
		}
		return found, err
	}
}

// things are everything that bears a bed's mark. Key pairs and server groups bear none.
func (in *openStack) things(ctx context.Context) (found []thing, err error) {
	lists := []lister{
		list(kindServer, servers.List(in.compute, servers.ListOpts{}), servers.ExtractServers,
			func(s servers.Server) (string, map[string]string) { return s.ID, s.Metadata }),
		list(kindFloating, floatingips.List(in.network, floatingips.ListOpts{ProjectID: in.project}), floatingips.ExtractFloatingIPs,
			func(f floatingips.FloatingIP) (string, map[string]string) { return f.ID, Described(f.Description) }),
		list(kindPort, ports.List(in.network, ports.ListOpts{ProjectID: in.project}), ports.ExtractPorts,
			func(p ports.Port) (string, map[string]string) { return p.ID, Described(p.Description) }),
		list(kindRouter, routers.List(in.network, routers.ListOpts{ProjectID: in.project}), routers.ExtractRouters,
			func(r routers.Router) (string, map[string]string) { return r.ID, Described(r.Description) }),
		list(kindSubnet, subnets.List(in.network, subnets.ListOpts{ProjectID: in.project}), subnets.ExtractSubnets,
			func(s subnets.Subnet) (string, map[string]string) { return s.ID, Described(s.Description) }),
		list(kindNetwork, networks.List(in.network, networks.ListOpts{ProjectID: in.project}), networks.ExtractNetworks,
			func(n networks.Network) (string, map[string]string) { return n.ID, Described(n.Description) }),
		list(kindSecurityGroup, groups.List(in.network, groups.ListOpts{ProjectID: in.project}), groups.ExtractGroups,
			func(g groups.SecGroup) (string, map[string]string) { return g.ID, Described(g.Description) }),
		list(kindImage, images.List(in.image, images.ListOpts{Visibility: images.ImageVisibilityPrivate, Owner: in.project}), images.ExtractImages,
			func(i images.Image) (string, map[string]string) { return i.ID, pairs(i.Tags) }),
	}
	for _, list := range lists {
		some, err := list(ctx)
		if err != nil {
			return nil, err
		}
		found = append(found, some...)
	}
	return found, nil
}

// volumesLeft are the volumes that Nova made of a bed's image for servers and that no server has: it gives them neither a name nor anything of ours.
// Of one that is made of an image which is kept, or which is not the bed's, nobody can tell whose it is.
func (in *openStack) volumesLeft(ctx context.Context, found []thing) (left []thing, err error) {
	if in.volume == nil {
		return nil, nil
	}
	there, err := all(ctx, kindVolume+"s", volumes.List(in.volume, volumes.ListOpts{}), volumes.ExtractVolumes)
	for _, v := range there {
		i := slices.IndexFunc(found, func(t thing) bool {
			return t.kind == kindImage && t.id == v.VolumeImageMetadata["image_id"] && t.tags[TagKeep] == ""
		})
		if i >= 0 && v.Name == "" && len(v.Attachments) == 0 {
			left = append(left, thing{kind: kindVolume, id: v.ID})
		}
	}
	return left, err
}

// Owners lists the marks of all beds of which something is there. What is kept after its bed makes no bed.
func (o *openStackCloud) Owners(ctx context.Context) ([]provision.Owner, error) {
	in, err := o.login(ctx)
	if err != nil {
		return nil, err
	}
	found, err := in.things(ctx)
	var owners []provision.Owner
	for _, t := range found {
		if o, _, ok := OwnerOf(t.tags); ok && t.tags[TagKeep] == "" && !slices.Contains(owners, o) {
			owners = append(owners, o)
		}
	}
	return owners, err
}

// Expires is when the time of the owner's bed is over, in whichever life, for a sweep removes all that is not kept: zero is never, or nothing of it is there.
func (o *openStackCloud) Expires(ctx context.Context, owner provision.Owner) (expires time.Time, err error) {
	in, err := o.login(ctx)
	if err != nil {
		return time.Time{}, err
	}
	found, err := in.things(ctx)
	for _, t := range found {
		if o, at, _ := OwnerOf(t.tags); o.Same(owner) && t.tags[TagKeep] == "" && at.After(expires) {
			expires = at
		}
	}
	return expires, err
}

// How long servers take to be gone, the slow ones; and how long until what depends on them can go too.
var (
	openStackServerTimeout = 10 * time.Minute
	openStackSweepTimeout  = 5 * time.Minute
	openStackPoll          = 2 * time.Second
)

// Sweep removes everything that bears the owner's mark but what it is to keep, in the order in which one thing lets another go.
func (o *openStackCloud) Sweep(ctx context.Context, owner provision.Owner) error {
	in, err := o.login(ctx)
	if err != nil {
		return err
	}
	found, err := in.things(ctx)
	if err != nil {
		return err
	}
	found = slices.DeleteFunc(found, func(t thing) bool {
		o, _, _ := OwnerOf(t.tags)
		return !o.Same(owner)
	})
	named, err := in.named(ctx, owner, found)
	if err != nil {
		return err
	}
	found = slices.DeleteFunc(append(found, named...), func(t thing) bool { return t.tags[TagKeep] != "" })
	if err := in.end(ctx, slices.DeleteFunc(slices.Clone(found), func(t thing) bool { return t.kind != kindServer })); err != nil {
		return err
	}
	left, err := in.volumesLeft(ctx, found)
	if err != nil {
		return err
	}
	found = append(found, left...)
	for _, step := range in.removers() {
		for _, t := range found {
			if t.kind != step.kind {
				continue
			}
			if err := removed(ctx, t, openStackSweepTimeout, step.remove); err != nil {
				return err
			}
		}
	}
	return nil
}

// named is what bears a name for its mark. It names no state, so only the ids tell that it is the owner's: they are random.
func (in *openStack) named(ctx context.Context, owner provision.Owner, marked []thing) (found []thing, err error) {
	labels := []string{Label(owner.Bed, owner.ID)}
	for _, t := range marked {
		if label := Label(owner.Bed, t.tags[TagID]); !slices.Contains(labels, label) {
			labels = append(labels, label)
		}
	}
	for _, label := range labels { // one that is not there is none to list either
		found = append(found, thing{kind: kindKeyPair, id: label})
	}
	spread, err := all(ctx, "server groups", servergroups.List(in.compute, servergroups.ListOpts{}), servergroups.ExtractServerGroups)
	for _, g := range spread {
		if slices.Contains(labels, g.Name) {
			found = append(found, thing{kind: kindServerGroup, id: g.ID})
		}
	}
	return found, err
}

// EndOthers ends the owner's servers that are none of those.
func (o *openStackCloud) EndOthers(ctx context.Context, owner provision.Owner, ids []string) error {
	in, err := o.login(ctx)
	if err != nil {
		return err
	}
	live, err := in.servers(ctx, TagBed, "")
	if err != nil {
		return err
	}
	var list []thing
	for _, s := range live {
		if others(s.Metadata, owner, s.ID, ids) {
			list = append(list, thing{kind: kindServer, id: s.ID, tags: s.Metadata})
		}
	}
	return in.end(ctx, list)
}

// errStays says that something takes its time to be gone.
var errStays = errors.New("it is still there")

// end removes servers, all at once, and waits until they are gone.
func (in *openStack) end(ctx context.Context, list []thing) error {
	for _, t := range list {
		if err := removed(ctx, t, openStackServerTimeout, func(ctx context.Context, id string) error { return servers.Delete(ctx, in.compute, id).ExtractErr() }); err != nil {
			return err
		}
	}
	for _, t := range list {
		if err := removed(ctx, t, openStackServerTimeout, in.ended); err != nil {
			return err
		}
	}
	return nil
}

// ended tells whether a server is gone. One that the cloud keeps for a while, to be restored, counts as gone.
func (in *openStack) ended(ctx context.Context, id string) error {
	s, err := servers.Get(ctx, in.compute, id).Extract()
	switch {
	case err != nil:
		return err
	case s.Status == "DELETED" || s.Status == "SOFT_DELETED":
		return nil
	}
	return fmt.Errorf("%w, and %s", errStays, strings.TrimSpace(s.Status+" "+s.Fault.Message))
}

// removers are in the order in which things let each other go. Rules go with their security groups, and volumes with their servers; those
// that a launch cut short has left are here all the same, before the image that they may be a layer of. What has a name for its mark goes before
// what tells whose that is.
func (in *openStack) removers() []remover {
	return []remover{
		{kindKeyPair, func(ctx context.Context, name string) error {
			return keypairs.Delete(ctx, in.compute, name, nil).ExtractErr()
		}},
		{kindServerGroup, func(ctx context.Context, id string) error {
			return servergroups.Delete(ctx, in.compute, id).ExtractErr()
		}},
		{kindFloating, func(ctx context.Context, id string) error {
			return floatingips.Delete(ctx, in.network, id).ExtractErr()
		}},
		{kindPort, func(ctx context.Context, id string) error { return ports.Delete(ctx, in.network, id).ExtractErr() }},
		{kindRouter, in.removeRouter},
		{kindSubnet, func(ctx context.Context, id string) error { return subnets.Delete(ctx, in.network, id).ExtractErr() }},
		{kindNetwork, func(ctx context.Context, id string) error { return networks.Delete(ctx, in.network, id).ExtractErr() }},
		{kindSecurityGroup, func(ctx context.Context, id string) error { return groups.Delete(ctx, in.network, id).ExtractErr() }},
		{kindVolume, in.removeVolume},
		{kindImage, func(ctx context.Context, id string) error { return images.Delete(ctx, in.image, id).ExtractErr() }},
	}
}

// removed removes a thing, and waits for those that hold it to let go. One that is gone already is no error.
func removed(ctx context.Context, t thing, timeout time.Duration, remove func(context.Context, string) error) error {
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, fmt.Errorf("it took more than %v", timeout))
	defer cancel()
	tick := time.NewTicker(openStackPoll)
	defer tick.Stop()
	var last error
	for {
		err := remove(ctx, t.id)
		if last == nil || ctx.Err() == nil { // what our own deadline cut short says nothing
			last = err
		}
		switch {
		case err == nil || gone(err):
			return nil
		case ctx.Err() == nil && !errors.Is(err, errStays) && !gophercloud.ResponseCodeIs(err, http.StatusConflict):
			return fmt.Errorf("remove %s %s: %w", t.kind, t.id, said(err))
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("remove %s %s: %w (last: %w); look at what uses it, and call this again", t.kind, t.id, context.Cause(ctx), said(last))
		case <-tick.C:
		}
	}
}

// interfaces are what Neutron calls a router's port on a subnet, by the kind of router.
func interfaces() []string {
	return []string{"network:router_interface", "network:router_interface_distributed", "network:ha_router_replicated_interface"}
}

func (in *openStack) removeRouter(ctx context.Context, id string) error {
	found, err := all(ctx, "the router's interfaces", ports.List(in.network, ports.ListOpts{DeviceID: id}), ports.ExtractPorts)
	if err != nil {
		return err
	}
	for _, p := range found {
		if !slices.Contains(interfaces(), p.DeviceOwner) {
			continue
		}
		if _, err := routers.RemoveInterface(ctx, in.network, id, routers.RemoveInterfaceOpts{PortID: p.ID}).Extract(); err != nil && !gone(err) {
			return err
		}
	}
	return routers.Delete(ctx, in.network, id).ExtractErr()
}

func (in *openStack) removeVolume(ctx context.Context, id string) error {
	err := volumes.Delete(ctx, in.volume, id, nil).ExtractErr()
	if gophercloud.ResponseCodeIs(err, http.StatusBadRequest) { // what Cinder calls a conflict
		return fmt.Errorf("%w: %w", errStays, said(err))
	}
	return err
}

// KeptImages are the images that outlast their beds, with how many servers are of each, on a disk of their own or on a volume.
func (o *openStackCloud) KeptImages(ctx context.Context) ([]provision.KeptImage, error) {
	in, err := o.login(ctx)
	if err != nil {
		return nil, err
	}
	found, err := all(ctx, "images", images.List(in.image, images.ListOpts{Visibility: images.ImageVisibilityPrivate, Owner: in.project}), images.ExtractImages)
	if err != nil {
		return nil, err
	}
	used, err := in.imagesUsed(ctx)
	if err != nil {
		return nil, err
	}
	var kept []provision.KeptImage
	for _, i := range found {
		if tags := pairs(i.Tags); tags[TagKeep] != "" {
			kept = append(kept, provision.KeptImage{ID: i.ID, Name: i.Name, Digest: tags[TagDigest], Used: used[i.ID]})
		}
	}
	return kept, nil
}

// imagesUsed counts servers by their image.
func (in *openStack) imagesUsed(ctx context.Context) (map[string]int, error) {
	live, err := all(ctx, "servers", servers.List(in.compute, servers.ListOpts{}), servers.ExtractServers)
	if err != nil {
		return nil, err
	}
	copies := map[string]string{} // volumes, and what they were made of
	if in.volume != nil {
		found, err := all(ctx, "volumes", volumes.List(in.volume, volumes.ListOpts{}), volumes.ExtractVolumes)
		if err != nil {
			return nil, err
		}
		for _, v := range found {
			copies[v.ID] = v.VolumeImageMetadata["image_id"]
		}
	}
	used := map[string]int{}
	for _, s := range live {
		if id, ok := s.Image["id"].(string); ok {
			used[id]++
		}
		for _, v := range s.AttachedVolumes {
			used[copies[v.ID]]++
		}
	}
	return used, nil
}

// RemoveImage removes one.
func (o *openStackCloud) RemoveImage(ctx context.Context, id string) error {
	in, err := o.login(ctx)
	if err != nil {
		return err
	}
	if err := images.Delete(ctx, in.image, id).ExtractErr(); err != nil && !gone(err) {
		return fmt.Errorf("remove image %s: %w", id, said(err))
	}
	return nil
}
