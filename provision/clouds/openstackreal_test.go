//go:build clouds

package clouds

import (
	"cmp"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gophercloud/gophercloud/v2"
	"github.com/gophercloud/gophercloud/v2/openstack/compute/v2/keypairs"
	"github.com/gophercloud/gophercloud/v2/openstack/compute/v2/servergroups"
	"github.com/gophercloud/gophercloud/v2/openstack/compute/v2/servers"
	"github.com/gophercloud/gophercloud/v2/openstack/image/v2/imagedata"
	"github.com/gophercloud/gophercloud/v2/openstack/image/v2/images"
	"github.com/gophercloud/gophercloud/v2/openstack/networking/v2/extensions/layer3/floatingips"
	"github.com/gophercloud/gophercloud/v2/openstack/networking/v2/extensions/layer3/routers"
	"github.com/gophercloud/gophercloud/v2/openstack/networking/v2/extensions/security/groups"
	"github.com/gophercloud/gophercloud/v2/openstack/networking/v2/extensions/security/rules"
	"github.com/gophercloud/gophercloud/v2/openstack/networking/v2/networks"
	"github.com/gophercloud/gophercloud/v2/openstack/networking/v2/ports"
	"github.com/gophercloud/gophercloud/v2/openstack/networking/v2/subnets"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ssh"

	"github.com/bedfellow/bedfellow/pkg/bed"
	"github.com/bedfellow/bedfellow/pkg/hosttest"
	"github.com/bedfellow/bedfellow/provision"
	"github.com/bedfellow/bedfellow/provision/clouds/cloudtest"
)

// realOpenStack is a cloud of Debian's own services, without hypervisors and without agents that would give networks to machines. The
// environment names a project there.
type realOpenStack struct {
	*openStack
	cloudtest.OpenStack
}

func newRealOpenStack(t *testing.T) realOpenStack {
	r := realOpenStack{OpenStack: cloudtest.StartOpenStack(t, cloudtest.Tree(t, Trees), "203.0.113.0/24")}
	for _, name := range []string{"OS_CLOUD", "OS_TOKEN", "OS_REGION_NAME", "OS_INTERFACE", "OS_CLIENT_CONFIG_FILE", "OS_PROJECT_ID", "OS_CACERT"} {
		t.Setenv(name, "")
	}
	for name, value := range r.Env {
		t.Setenv(name, value)
	}
	var err error
	r.openStack, err = (&openStackCloud{}).login(t.Context())
	require.NoError(t, err)
	return r
}

// madeBed are the ids of what a test names of a bed.
type madeBed struct {
	network, subnet, router, way, group, image string
	ports, servers                             []string
}

// bed makes what stacks/openstack.go makes for a bed, as its provider does. An empty mark is somebody's without one.
func (r realOpenStack) bed(t *testing.T, mark map[string]string, nodes int, keep bool) (b madeBed) {
	ctx, text, words, label := t.Context(), "", []string(nil), "somebody"
	if mark != nil {
		text, words, label = Description(mark), append(Words(mark), TagDigest+"=sha256:1"), Label(mark[TagBed], mark[TagID])
	}
	if keep {
		words = append(words, TagKeep+"=true")
	}
	yes, private := true, images.ImageVisibilityPrivate
	network, err := networks.Create(ctx, r.network, networks.CreateOpts{Name: "n", AdminStateUp: &yes, Description: text}).Extract()
	require.NoError(t, err)
	subnet, err := subnets.Create(ctx, r.network, subnets.CreateOpts{NetworkID: network.ID, CIDR: "10.106.0.0/16", IPVersion: gophercloud.IPv4, Description: text}).Extract()
	require.NoError(t, err)
	router, err := routers.Create(ctx, r.network, routers.CreateOpts{AdminStateUp: &yes, GatewayInfo: &routers.GatewayInfo{NetworkID: r.External}, Description: text}).Extract()
	require.NoError(t, err)
	way, err := routers.AddInterface(ctx, r.network, router.ID, routers.AddInterfaceOpts{SubnetID: subnet.ID}).Extract()
	require.NoError(t, err)
	group, err := groups.Create(ctx, r.network, groups.CreateOpts{Name: "firewall", Description: text}).Extract()
	require.NoError(t, err)
	for _, rule := range group.Rules { // the default ones
		require.NoError(t, rules.Delete(ctx, r.network, rule.ID).ExtractErr())
	}
	for _, rule := range []rules.CreateOpts{
		{Direction: rules.DirIngress, RemoteGroupID: group.ID}, {Direction: rules.DirEgress, RemoteGroupID: group.ID},
		{Direction: rules.DirIngress, RemoteIPPrefix: "192.0.2.0/24", Protocol: rules.ProtocolTCP, PortRangeMin: 22, PortRangeMax: 22},
		{Direction: rules.DirEgress, RemoteIPPrefix: "0.0.0.0/0"},
	} {
		rule.EtherType, rule.SecGroupID = rules.EtherType4, group.ID
		_, err := rules.Create(ctx, r.network, rule).Extract()
		require.NoError(t, err)
	}
	image, err := images.Create(ctx, r.image, images.CreateOpts{Name: "bedfellow-" + label, ContainerFormat: "bare", DiskFormat: "qcow2", Visibility: &private, Tags: words}).Extract()
	require.NoError(t, err)
	require.NoError(t, imagedata.Upload(ctx, r.image, image.ID, strings.NewReader(qcow2)).ExtractErr())
	signer, _ := hosttest.NewKey(t)
	_, err = keypairs.Create(ctx, r.compute, keypairs.CreateOpts{Name: label, PublicKey: string(ssh.MarshalAuthorizedKey(signer.PublicKey()))}).Extract()
	require.NoError(t, err)
	soft := *r.compute
	soft.Microversion = "2.15" // the first with such a policy
	spread, err := servergroups.Create(ctx, &soft, servergroups.CreateOpts{Name: label, Policies: []string{"soft-anti-affinity"}}).Extract()
	require.NoError(t, err)
	b = madeBed{network: network.ID, subnet: subnet.ID, router: router.ID, way: way.PortID, group: group.ID, image: image.ID}
	for i := range nodes {
		port, err := ports.Create(ctx, r.network, ports.CreateOpts{
			NetworkID: network.ID, AdminStateUp: &yes, SecurityGroups: &[]string{group.ID}, FixedIPs: []ports.IP{{SubnetID: subnet.ID}}, Description: text,
		}).Extract()
		require.NoError(t, err)
		tags := maps.Clone(mark)
		if mark != nil {
			tags[TagNode] = fmt.Sprintf("%s-%02d", mark[TagBed], i+1)
		}
		b.ports, b.servers = append(b.ports, port.ID), append(b.servers, r.server(t, tags, r.Flavor, image.ID, port.ID, label, spread.ID))
		if i == 0 && mark != nil {
			floating, err := floatingips.Create(ctx, r.network, floatingips.CreateOpts{FloatingNetworkID: r.External, Description: text}).Extract()
			require.NoError(t, err)
			_, err = floatingips.Update(ctx, r.network, floating.ID, floatingips.UpdateOpts{PortID: &port.ID}).Extract()
			require.NoError(t, err)
		}
	}
	return b
}

// qcow2 is the head of a disk of one MiB, which Glance looks at.
var qcow2 = "QFI\xfb\x00\x00\x00\x02" + strings.Repeat("\x00", 12) + "\x00\x00\x00\x10" + "\x00\x00\x00\x00\x00\x10\x00\x00" + strings.Repeat("\x00", 480)

// server makes one, and waits until Nova is done with it, whatever has become of it.
func (r realOpenStack) server(t *testing.T, tags map[string]string, flavor, image, port, key, group string) string {
	yes := true
	s, err := servers.Create(t.Context(), r.compute, keypairs.CreateOptsExt{KeyName: key, CreateOptsBuilder: servers.CreateOpts{
		Name: cmp.Or(tags[TagNode], "somebody"), FlavorRef: flavor, ImageRef: image, ConfigDrive: &yes, UserData: []byte("#cloud-config\n"), Metadata: tags, Networks: []servers.Network{{Port: port}},
	}}, servers.SchedulerHintOpts{Group: group}).Extract()
	require.NoError(t, err)
	require.Eventually(t, func() bool {
		now, err := servers.Get(t.Context(), r.compute, s.ID).Extract()
		return err == nil && now.Status != "BUILD"
	}, 2*time.Minute, 200*time.Millisecond)
	return s.ID
}

func TestRealOpenStack(t *testing.T) {
	r := newRealOpenStack(t)
	hurried(t, 2*time.Minute)
	openStackPoll = 200 * time.Millisecond
	ctx, c := t.Context(), opened(t).(*openStackCloud)
	r.bed(t, nil, 1, false)
	r.bed(t, Tags(foreign, time.Time{}), 1, false)
	theirs := r.Things(t)
	b := r.bed(t, Tags(ours, expires), 2, true)

	t.Run("check", func(t *testing.T) { r.check(t) })
	t.Run("fit", func(t *testing.T) { r.fit(t, b) })
	t.Run("look", func(t *testing.T) {
		owners, err := c.Owners(ctx)
		require.NoError(t, err)
		assert.ElementsMatch(t, []provision.Owner{ours, foreign}, owners)
		at, err := c.Expires(ctx, ours)
		require.NoError(t, err)
		assert.Equal(t, expires, at)
		at, err = c.Expires(ctx, foreign)
		require.NoError(t, err)
		assert.Zero(t, at)
		var list []provision.Status
		require.Eventually(t, func() bool { // Neutron tells Nova of a floating address when it gets to it
			list, err = c.List(ctx, ours.Bed)
			require.NoError(t, err)
			list = slices.DeleteFunc(list, func(s provision.Status) bool { return s.Owner != ours })
			require.Len(t, list, 2)
			slices.SortFunc(list, func(a, b provision.Status) int { return cmp.Compare(a.Name, b.Name) })
			return strings.HasPrefix(list[0].Address, "203.0.113.")
		}, time.Minute, time.Second)
		for i, s := range list {
			assert.Equal(t, provision.Status{
				Name: fmt.Sprintf("u2204-%02d", i+1), Owner: ours, State: provision.Running, Address: s.Address, Port: 22, BedAddress: s.BedAddress, Incarnation: b.servers[i], Expires: expires,
			}, s)
			assert.Regexp(t, `^10\.106\.`, s.BedAddress)
		}
		assert.Empty(t, list[1].Address)
	})
	t.Run("order", func(t *testing.T) { r.order(t, b) })
	t.Run("sweep", func(t *testing.T) {
		port, err := ports.Create(ctx, r.network, ports.CreateOpts{NetworkID: b.network, Description: Description(Tags(ours, expires))}).Extract()
		require.NoError(t, err)
		nowhere := r.server(t, Tags(ours, expires), r.Nowhere, b.image, port.ID, Label(ours.Bed, ours.ID), "")
		list, err := c.List(ctx, ours.Bed)
		require.NoError(t, err)
		at := slices.IndexFunc(list, func(s provision.Status) bool { return s.Incarnation == nowhere })
		require.GreaterOrEqual(t, at, 0)
		assert.Equal(t, provision.Broken, list[at].State)
		assert.Equal(t, "error: No valid host was found.", list[at].Detail)
		kept := provision.KeptImage{ID: b.image, Name: "bedfellow-" + Label(ours.Bed, ours.ID), Digest: "sha256:1", Used: 3}
		images, err := c.KeptImages(ctx)
		require.NoError(t, err)
		assert.Equal(t, []provision.KeptImage{kept}, images)

		require.NoError(t, c.Sweep(ctx, ours))
		with := slices.Sorted(slices.Values(append(slices.Clone(theirs), kindImage+" "+b.image)))
		assert.Equal(t, with, r.Things(t))
		require.NoError(t, c.Sweep(ctx, ours), "a clean bed is no error")
		assert.Equal(t, with, r.Things(t))
		owners, err := c.Owners(ctx)
		require.NoError(t, err)
		assert.Equal(t, []provision.Owner{foreign}, owners)
		kept.Used = 0
		images, err = c.KeptImages(ctx)
		require.NoError(t, err)
		assert.Equal(t, []provision.KeptImage{kept}, images)
		require.NoError(t, c.RemoveImage(ctx, b.image))
		require.NoError(t, c.RemoveImage(ctx, b.image), "what is gone is no error")
		assert.Equal(t, theirs, r.Things(t))
	})
	t.Run("stranger", func(t *testing.T) {
		hurried(t, 20*time.Second)
		openStackPoll = 200 * time.Millisecond
		b := r.bed(t, Tags(ours, expires), 0, false)
		port, err := ports.Create(ctx, r.network, ports.CreateOpts{NetworkID: b.network}).Extract()
		require.NoError(t, err)
		server := r.server(t, nil, r.Flavor, b.image, port.ID, "somebody", "")
		require.ErrorContains(t, c.Sweep(ctx, ours), "remove subnet "+b.subnet+": it took more than 20s (last: 409 Conflict: Unable to complete operation on subnet "+b.subnet)
		with := append(slices.Clone(theirs), kindImage+" "+b.image, kindNetwork+" "+b.network, kindPort+" "+port.ID, kindSecurityGroup+" "+b.group, kindServer+" "+server, kindSubnet+" "+b.subnet)
		assert.ElementsMatch(t, with, r.Things(t))
		require.NoError(t, servers.Delete(ctx, r.compute, server).ExtractErr())
		require.NoError(t, removed(ctx, thing{kind: kindServer, id: server}, time.Minute, r.ended))
		require.NoError(t, ports.Delete(ctx, r.network, port.ID).ExtractErr())
		require.NoError(t, c.Sweep(ctx, ours))
		assert.Equal(t, theirs, r.Things(t))
	})
}

// check is what the services say to who is nobody, or asks for what is nowhere.
func (r realOpenStack) check(t *testing.T) {
	assert.Empty(t, opened(t).Check(t.Context()))
	problems := (&openStackCloud{s: OpenStack{Region: "Mars"}}).Check(t.Context())
	require.Len(t, problems, 1)
	assert.Equal(t, "openstack.region", problems[0].Key)
	assert.Contains(t, problems[0].Reason, "service compute")
	for name, wrong := range map[string]string{"OS_PASSWORD": "wrong", "OS_USERNAME": "nobody", "OS_PROJECT_NAME": "admin"} {
		t.Run(name, func(t *testing.T) {
			t.Setenv(name, wrong)
			problems := opened(t).Check(t.Context())
			require.Len(t, problems, 1)
			assert.Equal(t, "OpenStack does not let you in: log in to OpenStack's service compute: 401 Unauthorized: The request you have made requires authentication.", problems[0].Reason)
		})
	}
}

// fit is of a project with two beds and a server in it, each bed with a floating address, of which the project may have two.
func (r realOpenStack) fit(t *testing.T, b madeBed) {
	for name, c := range map[string]struct {
		bed, flavor, network, image string
		nodes                       int
		disk                        bed.Size
		want                        []string // the beginning of each problem
	}{
		"no more than there is": {},
		"one node more":         {nodes: 3},
		"no such flavor":        {flavor: "m5.huge", want: []string{"openstack.flavor: \"m5.huge\": is none of the flavors that there are for you: diskless, m1.small, m3.quad, nowhere\n"}},
		"another size":          {flavor: "nowhere", want: []string{"memory: \"2GiB\": is not what a nowhere has, which is 1GiB\n"}},
		"no disk":               {flavor: "diskless", want: []string{"disk: is not set, and a diskless has no disk of its own, nor has this cloud a service for volumes\n"}},
		"no volumes":            {disk: 8 * bed.GiB, want: []string{"disk: \"8GiB\": would be a volume, and this cloud has no service for them\n"}},
		"no external network":   {network: "not outside", want: []string{"openstack.externalNetwork: \"not outside\": is none of the external networks that there are for you: public\n"}},
		"an image":              {image: "bedfellow-" + Label(ours.Bed, ours.ID)},
		"no such image":         {image: "ubuntu", want: []string{"openstack.image: \"ubuntu\": is the name of 0 images\n"}},
		"another bed": {bed: "other", nodes: 7, want: []string{
			"nodes: \"7\": take 7 servers, and your project has 6 left of 10\n", "nodes: \"7\": take 1 floating IPs, and your project has 0 left of 2\n"}},
	} {
		t.Run(name, func(t *testing.T) {
			s := OpenStack{ExternalNetwork: cmp.Or(c.network, "public"), Image: c.image}
			problems := (&openStackCloud{s: s}).Fit(t.Context(), bed.Spec{
				Name: cmp.Or(c.bed, ours.Bed), Driver: "openstack", Settings: map[string]string{"flavor": cmp.Or(c.flavor, "m1.small")},
				Pools: []bed.Pool{{Nodes: cmp.Or(c.nodes, 2), CPUs: 1, Memory: 2 * bed.GiB, Disk: c.disk}},
			})
			require.Len(t, problems, len(c.want), "%v", problems)
			for i, want := range c.want {
				assert.True(t, strings.HasPrefix(problems[i].String(), want), problems[i].String())
			}
		})
	}
}

// order is what the removal's goes by: what holds what, and in which words the services say so.
func (r realOpenStack) order(t *testing.T, b madeBed) {
	ctx := t.Context()
	_, err := routers.RemoveInterface(ctx, r.network, b.router, routers.RemoveInterfaceOpts{PortID: b.way}).Extract()
	for want, err := range map[string]error{
		"Router interface for subnet " + b.subnet + " on router " + b.router + " cannot be deleted, as it is required by one or more floating IPs.": err,
		"Port " + b.way + " cannot be deleted directly via the port API":                                                                            ports.Delete(ctx, r.network, b.way).ExtractErr(),
		"Router " + b.router + " has ports still attached: " + b.way:                                                                                routers.Delete(ctx, r.network, b.router).ExtractErr(),
		"Unable to complete operation on subnet " + b.subnet + ": One or more ports have an IP":                                                     subnets.Delete(ctx, r.network, b.subnet).ExtractErr(),
		"Unable to complete operation on network " + b.network + ". There are one or more ports":                                                    networks.Delete(ctx, r.network, b.network).ExtractErr(),
		"Security Group " + b.group + " in use.":                                                                                                    groups.Delete(ctx, r.network, b.group).ExtractErr(),
	} {
		require.Error(t, err, want)
		assert.True(t, gophercloud.ResponseCodeIs(err, http.StatusConflict), "%v", err)
		assert.Contains(t, said(err).Error(), "409 Conflict: "+want)
	}
}
