package e2e_test

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gophercloud/gophercloud/v2"
	"github.com/gophercloud/gophercloud/v2/openstack"
	"github.com/gophercloud/gophercloud/v2/openstack/compute/v2/servers"
	"github.com/gophercloud/gophercloud/v2/openstack/networking/v2/extensions/layer3/floatingips"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/bedfellow/bedfellow/images"
	"github.com/bedfellow/bedfellow/pkg/results"
	"github.com/bedfellow/bedfellow/provision/clouds/cloudtest"
	"github.com/bedfellow/bedfellow/provision/drivers"
	"github.com/bedfellow/bedfellow/provision/ovirt/enginetest"
)

// TestOpenStack brings a bed up by the engine, Pulumi's own provider for OpenStack and OpenStack's own services. Only their hypervisor makes machines
// of nothing, and so each machine is a container here: a real node, reached as it would be. LAMMPS runs; what somebody deletes is seen and mended;
// and in the end the project has what it had.
func TestOpenStack(t *testing.T) {
	if _, err := exec.LookPath("pulumi-resource-openstack"); err != nil {
		t.Skip("Pulumi's provider for OpenStack is not on the PATH; `pulumi plugin install resource openstack 5.0.2` makes ~/.pulumi/plugins/resource-openstack-v5.0.2, which goes there")
	}
	p := newPlace(t, "openstack", "quickstart", "e2e-os")
	bin := work(t, "clouds", "bin")
	build := exec.Command("go", "build", "-tags", "clouds", "-o", bin+"/", "./cmd/...")
	build.Dir = ".."
	out, err := build.CombinedOutput()
	require.NoError(t, err, "%s", out)
	for _, link := range []struct{ to, at string }{{work(t, "bin/pulumi"), filepath.Join(bin, "pulumi")}, {bin, filepath.Join(p.dir, "bin")}} {
		_ = os.Remove(link.at)
		require.NoError(t, os.Symlink(link.to, link.at))
	}
	var image images.Image
	require.NoError(t, json.Unmarshal([]byte(p.ok(t, "image", "build", "debian-12", "-o", "json").stdout), &image))
	before := census(t)
	machines, err := drivers.Open("nspawn", drivers.Settings{})
	require.NoError(t, err)

	cloud := cloudtest.StartOpenStack(t, cloudtest.Tree(t, t.TempDir()), "127.113.0.0/24")
	p.stack = "openstack"
	for name, value := range cloud.Env {
		p.env = append(p.env, name+"="+value)
	}
	none := cloud.Things(t)
	h := boots(t, cloud, enginetest.NewNodes(machines, image.Path))
	t.Cleanup(func() { same(t, before) })
	t.Cleanup(h.end)
	t.Cleanup(func() {
		p.ok(t, "destroy", "-s", p.stack)
		assert.Equal(t, none, cloud.Things(t))
	})
	settings := []string{"nodes=3", "cpus=1", "memory=2GiB", "image=debian-13", "openstack.flavor=m1.small", "openstack.externalNetwork=public", "openstack.sshFrom=192.0.2.0/24"}
	start := time.Now()
	inv, _ := p.up(t, settings...)
	t.Logf("up took %s", time.Since(start).Round(time.Second))
	require.Len(t, inv.Nodes, 3)
	assert.Regexp(t, `^127\.113\.0\.`, inv.Nodes[0].Address)
	assert.Equal(t, inv.Nodes[0].Name, inv.Nodes[1].Via)
	t.Run("lammps", func(t *testing.T) {
		r := p.kept(t, "run", "lammps", "-s", p.stack, "-n", "1", "-o", "json", "--param", "warmups=0", "--param", "x=1", "--param", "y=1", "--param", "z=1", "--param", "steps=2")
		assert.Equal(t, results.OK, r.Run.Status)
	})
	t.Run("again", p.noop)
	t.Run("by hand", func(t *testing.T) {
		require.NoError(t, servers.Delete(t.Context(), h.compute, inv.Nodes[2].Incarnation).ExtractErr())
		assert.Contains(t, p.ok(t, "refresh", "-s", p.stack, "-o", "json").stderr, inv.Nodes[2].Name+" (Instance) is gone")
		again, _ := p.up(t, settings...)
		assert.Equal(t, inv.Nodes[1].Incarnation, again.Nodes[1].Incarnation)
		assert.NotEqual(t, inv.Nodes[2].Incarnation, again.Nodes[2].Incarnation)
		p.computes(t, again)
	})
	p.ok(t, "destroy", "-s", p.stack)
	require.Equal(t, none, cloud.Things(t))
	t.Run("killed in a launch", func(t *testing.T) {
		run := p.start(t, nil, p.upArgs(settings...)...)
		ids := func() (ids []string) {
			page, err := servers.List(h.compute, servers.ListOpts{AllTenants: true}).AllPages(t.Context())
			require.NoError(t, err)
			found, err := servers.ExtractServers(page)
			require.NoError(t, err)
			for _, s := range found {
				ids = append(ids, s.ID)
			}
			return ids
		}
		eventually(t, "a launch", callTimeout, func() error {
			if len(ids()) == 0 {
				return errors.New("there is no server yet")
			}
			return nil
		})
		require.True(t, p.strike(t, run, "pulumi"))
		require.NotZero(t, run.wait(t).code)
		launched := ids()
		again, _ := p.up(t, settings...)
		var noted []string
		for _, n := range again.Nodes {
			noted = append(noted, n.Incarnation)
		}
		assert.ElementsMatch(t, noted, ids())
		assert.True(t, slices.ContainsFunc(launched, func(id string) bool { return !slices.Contains(noted, id) }), "%v, of which nothing was unnoted", launched)
		p.computes(t, again)
		p.ok(t, "destroy", "-s", p.stack)
		require.Equal(t, none, cloud.Things(t))
	})
	t.Run("state lost", func(t *testing.T) {
		p.up(t, append(settings, "nodes=1")...)
		require.NoError(t, os.RemoveAll(filepath.Join(p.dir, ".bed")))
		assert.Contains(t, p.sweep(t), `"`+p.bed+`"`)
		p.ok(t, "sweep", "--delete", "--owner", p.bed)
		assert.Equal(t, none, cloud.Things(t))
	})
}

// hypervisor has each of a cloud's servers be a node while it is there, and leads its floating address to it, both of which nothing else of that
// cloud does.
type hypervisor struct {
	compute, network *gophercloud.ServiceClient
	nodes            *enginetest.Nodes
	running          map[string]string // addresses by server, on this host
	ways             map[string]way    // by floating address
	cancel           func()
	done             sync.WaitGroup
}

// way is what leads from a floating address to a node.
type way struct {
	net.Listener
	to string
}

func boots(t *testing.T, cloud cloudtest.OpenStack, nodes *enginetest.Nodes) *hypervisor {
	admin, err := openstack.AuthenticatedClient(t.Context(), cloud.Admin)
	require.NoError(t, err)
	h := &hypervisor{nodes: nodes, running: map[string]string{}, ways: map[string]way{}}
	h.compute, err = openstack.NewComputeV2(admin, cloud.Region)
	require.NoError(t, err)
	h.compute.Microversion = "2.3" // the first with a server's data
	h.network, err = openstack.NewNetworkV2(admin, cloud.Region)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	h.cancel = cancel
	h.done.Go(func() {
		again := time.NewTicker(time.Second) // of what the services do, nobody is told
		defer again.Stop()
		for ctx.Err() == nil {
			if err := h.look(ctx); err != nil && ctx.Err() == nil {
				fmt.Fprintln(os.Stderr, "hypervisor:", err)
			}
			select {
			case <-ctx.Done():
			case <-again.C:
			}
		}
	})
	return h
}

// end ends what is left of it.
func (h *hypervisor) end() {
	h.cancel()
	h.done.Wait()
	for id := range h.running {
		h.nodes.Remove(id)
	}
	for _, w := range h.ways {
		_ = w.Close()
	}
}

// look does what has changed.
func (h *hypervisor) look(ctx context.Context) error {
	page, err := servers.List(h.compute, servers.ListOpts{AllTenants: true}).AllPages(ctx)
	if err != nil {
		return err
	}
	there, err := servers.ExtractServers(page)
	if err != nil {
		return err
	}
	ids := map[string]bool{}
	for _, s := range there {
		ids[s.ID] = true
	}
	for id := range h.running { // first: who comes after has its name
		if !ids[id] {
			h.nodes.Remove(id)
			delete(h.running, id)
		}
	}
	at := map[string]string{} // on this host, by the address that the cloud has given
	for _, s := range there {
		if s.Status != "ACTIVE" {
			continue
		}
		inside, err := fixedAddress(s)
		if err == nil && h.running[s.ID] == "" {
			h.running[s.ID], err = h.boot(ctx, s, inside)
		}
		if err != nil {
			return fmt.Errorf("server %s: %w", s.Name, err)
		}
		at[inside] = h.running[s.ID]
	}
	page, err = floatingips.List(h.network, floatingips.ListOpts{}).AllPages(ctx)
	if err != nil {
		return err
	}
	ways, err := floatingips.ExtractFloatingIPs(page)
	if err != nil {
		return err
	}
	lead := map[string]string{}
	for _, w := range ways {
		if to := at[w.FixedIP]; to != "" {
			lead[w.FloatingIP] = to
		}
	}
	for address, w := range h.ways {
		if lead[address] != w.to {
			_ = w.Close()
			delete(h.ways, address)
		}
	}
	for address, to := range lead {
		if _, ok := h.ways[address]; !ok {
			l, err := forward(net.JoinHostPort(address, "22"), net.JoinHostPort(to, "22"))
			if err != nil {
				return err
			}
			h.ways[address] = way{l, to}
		}
	}
	return nil
}

// fixedAddress is the server's in its network.
func fixedAddress(s servers.Server) (string, error) {
	data, err := json.Marshal(s.Addresses)
	if err != nil {
		return "", err
	}
	var networks map[string][]struct {
		Address string `json:"addr"`
		Kind    string `json:"OS-EXT-IPS:type"`
	}
	if err := json.Unmarshal(data, &networks); err != nil {
		return "", err
	}
	for _, addresses := range networks {
		for _, a := range addresses {
			if a.Kind == "fixed" {
				return a.Address, nil
			}
		}
	}
	return "", errors.New("it has no address")
}

// boot makes the node that the server's data tell of, and gives it a device with the server's address besides its own: on one device, two would
// have Open MPI wait for ever.
func (h *hypervisor) boot(ctx context.Context, s servers.Server, inside string) (string, error) {
	if s.Userdata == nil {
		return "", errors.New("it has no data")
	}
	data, err := base64.StdEncoding.DecodeString(*s.Userdata)
	if err != nil {
		return "", err
	}
	g := enginetest.Guest{ID: s.ID, Name: s.Name, CPUs: 1, Memory: 1 << 30}
	if err := g.Read(string(data)); err != nil {
		return "", err
	}
	outside, err := h.nodes.Start(ctx, g)
	if err != nil {
		return "", err
	}
	batch := exec.CommandContext(ctx, "ip", "-n", "bedfellow-"+g.Name+".node", "-batch", "-")
	batch.Stdin = strings.NewReader("link add link eth0 name cloud0 type macvlan mode bridge\naddr add " + inside + "/16 dev cloud0\nlink set cloud0 up\n")
	if out, err := batch.CombinedOutput(); err != nil {
		h.nodes.Remove(s.ID)
		return "", fmt.Errorf("%w: %s", err, out)
	}
	return outside, nil
}

// forward leads connections on.
func forward(from, to string) (net.Listener, error) {
	l, err := net.Listen("tcp", from)
	if err != nil {
		return nil, err
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				d, err := net.DialTimeout("tcp", to, time.Minute)
				if err != nil {
					return
				}
				defer d.Close()
				go func() { _, _ = io.Copy(d, c); _ = d.(*net.TCPConn).CloseWrite() }()
				_, _ = io.Copy(c, d)
			}()
		}
	}()
	return l, nil
}
