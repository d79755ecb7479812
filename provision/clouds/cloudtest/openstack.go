package cloudtest

import (
	"context"
	_ "embed"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/gophercloud/gophercloud/v2"
	"github.com/gophercloud/gophercloud/v2/openstack"
	"github.com/gophercloud/gophercloud/v2/openstack/compute/v2/flavors"
	"github.com/gophercloud/gophercloud/v2/openstack/compute/v2/keypairs"
	"github.com/gophercloud/gophercloud/v2/openstack/compute/v2/servergroups"
	"github.com/gophercloud/gophercloud/v2/openstack/compute/v2/servers"
	"github.com/gophercloud/gophercloud/v2/openstack/identity/v3/projects"
	"github.com/gophercloud/gophercloud/v2/openstack/identity/v3/roles"
	"github.com/gophercloud/gophercloud/v2/openstack/identity/v3/tokens"
	"github.com/gophercloud/gophercloud/v2/openstack/identity/v3/users"
	"github.com/gophercloud/gophercloud/v2/openstack/image/v2/images"
	"github.com/gophercloud/gophercloud/v2/openstack/networking/v2/extensions/external"
	"github.com/gophercloud/gophercloud/v2/openstack/networking/v2/extensions/layer3/floatingips"
	"github.com/gophercloud/gophercloud/v2/openstack/networking/v2/extensions/layer3/routers"
	"github.com/gophercloud/gophercloud/v2/openstack/networking/v2/extensions/provider"
	"github.com/gophercloud/gophercloud/v2/openstack/networking/v2/extensions/security/groups"
	"github.com/gophercloud/gophercloud/v2/openstack/networking/v2/networks"
	"github.com/gophercloud/gophercloud/v2/openstack/networking/v2/ports"
	"github.com/gophercloud/gophercloud/v2/openstack/networking/v2/subnets"
	"github.com/gophercloud/gophercloud/v2/pagination"
	"github.com/stretchr/testify/require"
)

// openStackServices runs the services; see there.
//
//go:embed openstack.py
var openStackServices string

// enterTree has the services in a tree that nothing is written to: what they write goes with the mount, and they with their PID 1.
const enterTree = `cd "$0" && mount --bind . . && cd "$PWD" && mount -o remount,bind,ro . && mount -t tmpfs none tmp && mount -t proc proc proc && ` +
	`printf %s "$1" >tmp/services.py && shift && exec chroot . python3 tmp/services.py "$@"`

// OpenStack is a cloud of Debian's own services: real ones, whose hypervisor makes machines of nothing, and whose networks nobody gives to machines.
type OpenStack struct {
	Env    map[string]string // somebody's, who is a member of project "ours": what OpenStack's tools go by
	Admin  gophercloud.AuthOptions
	Region gophercloud.EndpointOpts

	External        string // the network "public" that floating addresses come from
	Flavor, Nowhere string // of m1.small, and of one that no host has room for
}

// StartOpenStack starts the services in a tree that Tree has made, until the test ends, with floating addresses of that range.
func StartOpenStack(t *testing.T, tree, addresses string) OpenStack {
	t.Helper()
	args := []string{"--mount", "--pid", "--fork", "--kill-child", "sh", "-c", enterTree, tree, openStackServices}
	var taken []net.Listener
	for range 5 {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		taken = append(taken, listener) // none is given twice
		_, port, _ := net.SplitHostPort(listener.Addr().String())
		args = append(args, port)
	}
	identity := "http://" + taken[0].Addr().String() + "/v3"
	for _, listener := range taken {
		_ = listener.Close()
	}
	services := exec.Command("unshare", args...)
	alive, err := services.StdinPipe() // they end when nobody has it any more, however that came about
	require.NoError(t, err)
	said, err := services.StdoutPipe()
	require.NoError(t, err)
	log, err := os.Create(filepath.Join(t.TempDir(), "log"))
	require.NoError(t, err)
	services.Stderr = log
	require.NoError(t, services.Start())
	t.Cleanup(func() {
		_ = alive.Close()
		_ = services.Process.Kill()
		_ = services.Wait()
		_ = log.Close()
		if text, _ := os.ReadFile(log.Name()); t.Failed() {
			t.Logf("the services said:\n%s", text)
		}
	})
	late := time.AfterFunc(5*time.Minute, func() { _ = services.Process.Kill() })
	_, err = io.ReadFull(said, make([]byte, len("ready")))
	require.NoError(t, err, "the services ended")
	require.True(t, late.Stop(), "the services were not there within five minutes")
	o := OpenStack{
		Admin: gophercloud.AuthOptions{
			IdentityEndpoint: identity, Username: "admin", Password: "admin", DomainName: "Default", Scope: &gophercloud.AuthScope{ProjectName: "admin", DomainName: "Default"}, AllowReauth: true,
		},
		Region: gophercloud.EndpointOpts{Region: "RegionOne"},
		Env: map[string]string{
			"OS_AUTH_URL": identity, "OS_USERNAME": "someone", "OS_PASSWORD": "swordfish", "OS_PROJECT_NAME": "ours", "OS_USER_DOMAIN_NAME": "Default", "OS_PROJECT_DOMAIN_NAME": "Default",
		},
	}
	o.furnish(t, addresses)
	return o
}

// furnish makes what a cloud's administrator does: a project and somebody in it, flavors, and an external network.
func (o *OpenStack) furnish(t *testing.T, addresses string) {
	ctx := t.Context()
	admin, err := openstack.AuthenticatedClient(ctx, o.Admin)
	require.NoError(t, err)
	identity, err := openstack.NewIdentityV3(admin, o.Region)
	require.NoError(t, err)
	project, err := projects.Create(ctx, identity, projects.CreateOpts{Name: o.Env["OS_PROJECT_NAME"], DomainID: "default"}).Extract()
	require.NoError(t, err)
	user, err := users.Create(ctx, identity, users.CreateOpts{Name: o.Env["OS_USERNAME"], DomainID: "default", Password: o.Env["OS_PASSWORD"]}).Extract()
	require.NoError(t, err)
	page, err := roles.List(identity, nil).AllPages(ctx)
	require.NoError(t, err)
	known, err := roles.ExtractRoles(page)
	require.NoError(t, err)
	authenticated := admin.GetAuthResult().(tokens.CreateResult)
	services, err := authenticated.ExtractUser()
	require.NoError(t, err)
	theirs, err := authenticated.ExtractProject()
	require.NoError(t, err)
	for _, role := range known {
		switch role.Name {
		case "member":
			require.NoError(t, roles.Assign(ctx, identity, role.ID, roles.AssignOpts{UserID: user.ID, ProjectID: project.ID}).ExtractErr())
		case "service": // they are the administrator here; without it, Nova could not let go of a port
			require.NoError(t, roles.Assign(ctx, identity, role.ID, roles.AssignOpts{UserID: services.ID, ProjectID: theirs.ID}).ExtractErr())
		}
	}
	compute, err := openstack.NewComputeV2(admin, o.Region)
	require.NoError(t, err)
	for _, f := range []struct {
		name            string
		cpus, ram, disk int
		id              *string
	}{{"m1.small", 1, 2048, 20, &o.Flavor}, {"m3.quad", 4, 15360, 20, nil}, {"diskless", 1, 2048, 0, nil}, {"nowhere", 1, 1024, 1 << 30, &o.Nowhere}} { // a disk that no host has
		made, err := flavors.Create(ctx, compute, flavors.CreateOpts{Name: f.name, VCPUs: f.cpus, RAM: f.ram, Disk: &f.disk}).Extract()
		require.NoError(t, err)
		if f.id != nil {
			*f.id = made.ID
		}
	}
	network, err := openstack.NewNetworkV2(admin, o.Region)
	require.NoError(t, err)
	yes, no := true, false
	public, err := networks.Create(ctx, network, provider.CreateOptsExt{
		CreateOptsBuilder: external.CreateOptsExt{CreateOptsBuilder: networks.CreateOpts{Name: "public"}, External: &yes},
		Segments:          []provider.Segment{{NetworkType: "flat", PhysicalNetwork: "outside"}},
	}).Extract()
	require.NoError(t, err)
	o.External = public.ID
	_, err = subnets.Create(ctx, network, subnets.CreateOpts{NetworkID: public.ID, CIDR: addresses, IPVersion: gophercloud.IPv4, EnableDHCP: &no}).Extract()
	require.NoError(t, err)
	_, err = networks.Create(ctx, network, networks.CreateOpts{Name: "not outside", Shared: &yes}).Extract()
	require.NoError(t, err)
}

// Things are the ids of everything in the project, each after what it is, by another way than the code that is tested: of each thing, not of what
// bears a mark.
func (o OpenStack) Things(t *testing.T) (things []string) {
	t.Helper()
	ctx := context.WithoutCancel(t.Context())
	ours, err := openstack.AuthenticatedClient(ctx, gophercloud.AuthOptions{
		IdentityEndpoint: o.Env["OS_AUTH_URL"], Username: o.Env["OS_USERNAME"], Password: o.Env["OS_PASSWORD"], DomainName: o.Env["OS_USER_DOMAIN_NAME"],
		Scope: &gophercloud.AuthScope{ProjectName: o.Env["OS_PROJECT_NAME"], DomainName: o.Env["OS_PROJECT_DOMAIN_NAME"]},
	})
	require.NoError(t, err)
	compute, err := openstack.NewComputeV2(ours, o.Region)
	require.NoError(t, err)
	network, err := openstack.NewNetworkV2(ours, o.Region)
	require.NoError(t, err)
	image, err := openstack.NewImageV2(ours, o.Region)
	require.NoError(t, err)
	things = append(things, listed(t, "server", servers.List(compute, servers.ListOpts{}), servers.ExtractServers, func(s servers.Server) string { return s.ID })...)
	things = append(things, listed(t, "floating IP", floatingips.List(network, floatingips.ListOpts{}), floatingips.ExtractFloatingIPs, func(f floatingips.FloatingIP) string { return f.ID })...)
	things = append(things, listed(t, "port", ports.List(network, ports.ListOpts{}), ports.ExtractPorts, func(p ports.Port) string { return p.ID })...)
	things = append(things, listed(t, "router", routers.List(network, routers.ListOpts{}), routers.ExtractRouters, func(r routers.Router) string { return r.ID })...)
	things = append(things, listed(t, "subnet", subnets.List(network, subnets.ListOpts{}), subnets.ExtractSubnets, func(s subnets.Subnet) string { return s.ID })...)
	things = append(things, listed(t, "network", networks.List(network, networks.ListOpts{}), networks.ExtractNetworks, func(n networks.Network) string { return n.ID })...)
	things = append(things, listed(t, "security group", groups.List(network, groups.ListOpts{}), groups.ExtractGroups, func(g groups.SecGroup) string { return g.ID })...)
	things = append(things, listed(t, "image", images.List(image, images.ListOpts{}), images.ExtractImages, func(i images.Image) string { return i.ID })...)
	things = append(things, listed(t, "key pair", keypairs.List(compute, nil), keypairs.ExtractKeyPairs, func(k keypairs.KeyPair) string { return k.Name })...)
	things = append(things, listed(t, "server group", servergroups.List(compute, servergroups.ListOpts{}), servergroups.ExtractServerGroups, func(g servergroups.ServerGroup) string { return g.ID })...)
	slices.Sort(things)
	return things
}

func listed[T any](t *testing.T, kind string, pages pagination.Pager, extract func(pagination.Page) ([]T, error), id func(T) string) (things []string) {
	t.Helper()
	page, err := pages.AllPages(context.WithoutCancel(t.Context()))
	require.NoError(t, err)
	found, err := extract(page)
	require.NoError(t, err)
	for _, one := range found {
		things = append(things, kind+" "+id(one))
	}
	return things
}
