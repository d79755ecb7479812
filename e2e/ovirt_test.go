package e2e_test

import (
	"encoding/json"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/bedfellow/bedfellow/images"
	"github.com/bedfellow/bedfellow/pkg/results"
	"github.com/bedfellow/bedfellow/provision/drivers"
	"github.com/bedfellow/bedfellow/provision/ovirt/enginetest"
)

// smallOvirt are settings with which a bed of stack ovirt fits a fake engine, and this host. The disk is the one that the suite's virtual machines
// have booted from; of the containers that stand for the engine's, none does.
func smallOvirt() []string {
	return []string{"image=debian-13", "cpus=1", "memory=512MiB", "ovirt.vnicProfile=ovirtmgmt", "ovirt.cluster=Default"}
}

// onFakeEngine is a folder for a bed of stack ovirt, on a fake engine whose virtual machines are containers here: real nodes. `bed` is told of the
// engine and of the user, and of no password; the census is of before.
func onFakeEngine(t *testing.T, folder, bedName string) (p place, e *enginetest.Engine, before []string) {
	t.Helper()
	p = newPlace(t, folder, "quickstart", bedName)
	var image images.Image
	require.NoError(t, json.Unmarshal([]byte(p.ok(t, "image", "build", "debian-12", "-o", "json").stdout), &image))
	before = census(t)
	machines, err := drivers.Open("nspawn", drivers.Settings{})
	require.NoError(t, err)
	e, err = enginetest.Start("", enginetest.Usual(), enginetest.NewNodes(machines, image.Path))
	require.NoError(t, err)
	t.Cleanup(e.Close)
	ca := filepath.Join(t.TempDir(), "ca.pem")
	require.NoError(t, os.WriteFile(ca, e.CA, 0o600))
	p.stack, p.env = "ovirt", []string{"OVIRT_URL=" + e.URL, "OVIRT_USERNAME=" + e.Username, "OVIRT_CAFILE=" + ca}
	return p, e, before
}

// onlyTemplates fails the test if the engine has more than templates of images, which are kept.
func onlyTemplates(t *testing.T, e *enginetest.Engine) {
	t.Helper()
	for _, left := range e.Census() {
		assert.True(t, strings.HasPrefix(left, "template bedfellow-image-"), left)
	}
}

// TestOvirt brings the talk's seven nodes up by driver ovirt, on a fake engine whose virtual machines are containers here: real nodes. LAMMPS
// runs on them; what somebody does to one of them is seen and mended; and in the end the engine has what it had.
func TestOvirt(t *testing.T) {
	if driver(*stackFlag) != "lima" {
		t.Skip("needs what makes disks of virtual machines: `make e2e STACK=lima-ci` has it")
	}
	p, e, before := onFakeEngine(t, "ovirt", "e2e-ovirt")
	p.env = append(p.env, "OVIRT_PASSWORD=wrong")
	settings := smallOvirt()
	p.fails(t, 3, p.upArgs(settings...), "does not let admin@internal in", "OVIRT_PASSWORD")
	settings = append(settings, "ovirt.password="+e.Password) // which goes before the environment's
	p.fails(t, 3, p.upArgs(append(settings[:4:4], "ovirt.cluster=Defalt", settings[5])...), "did you mean Default?")
	p.fails(t, 2, p.upArgs(append(settings, "ovirt.guaranteed=much")...), "ovirt.guaranteed", "from 0 to 100")
	assert.Empty(t, e.Census())
	t.Cleanup(func() {
		p.ok(t, "destroy", "-s", p.stack)
		onlyTemplates(t, e)
		same(t, before)
	})
	start := time.Now()
	secret := map[string][]byte{"password": []byte(e.Password)}
	inv, c := p.up(t, settings...)
	t.Logf("up took %s", time.Since(start).Round(time.Second))
	require.Len(t, inv.Nodes, 7)
	_, uploaded := c.step("done", "upload")
	assert.True(t, uploaded)
	settings = settings[:5] // the password is kept
	t.Run("password", func(t *testing.T) {
		watch := watchProcesses(t, secret)
		for _, c := range []call{c, p.ok(t, p.upArgs(settings...)...), p.ok(t, "status", "-s", p.stack), p.ok(t, "preview", "-s", p.stack, "-o", "json")} {
			assert.Empty(t, holds([]byte(c.stdout+c.stderr), secret), "%v", c.args[0])
		}
		watch.stop()
		for what := range watch.held { // the CLI and the plugin have it in their environment
			if strings.HasPrefix(what, "the arguments") {
				assert.Contains(t, what, "decoy")
			}
		}
		searched := holdsNone(t, p.dir, secret, func(string, fs.DirEntry) bool { return false })
		assert.Greater(t, searched, 10)
	})
	t.Run("lammps", func(t *testing.T) {
		// Slurm binds every rank to its node's first CPU, and that is the same for all of these nodes.
		r := p.kept(t, "run", "lammps", "-s", p.stack, "-n", "1", "-o", "json", "--param", "warmups=0", "--param", "x=1", "--param", "y=1", "--param", "z=1", "--param", "steps=2")
		assert.Equal(t, results.OK, r.Run.Status)
		on := map[string]bool{}
		for _, rank := range r.Run.Ranks {
			on[rank.Node] = true
		}
		assert.Len(t, on, 6, "the first node serves")
	})
	t.Run("again", func(t *testing.T) {
		calls := e.Calls()
		p.noop(t)
		now := e.Calls()
		for call, n := range now {
			if !strings.HasPrefix(call, "GET ") {
				assert.Equal(t, calls[call], n, call)
			}
		}
	})
	t.Run("by hand", func(t *testing.T) {
		require.True(t, e.Do(inv.Nodes[3].Name, enginetest.Erase))
		require.True(t, e.Do(inv.Nodes[4].Name, enginetest.Resize(2, 1<<30)))
		require.True(t, e.Do(inv.Nodes[5].Name, enginetest.Untag))
		c := p.ok(t, "refresh", "-s", p.stack, "-o", "json")
		assert.Contains(t, c.stderr, inv.Nodes[3].Name)
		assert.Contains(t, c.stderr, inv.Nodes[5].Name+" has lost the tag")
		again, _ := p.up(t, settings...)
		assert.NotEqual(t, inv.Nodes[3].Incarnation, again.Nodes[3].Incarnation)
		assert.Equal(t, inv.Nodes[5].Incarnation, again.Nodes[5].Incarnation)
		assert.Len(t, e.Tagged("bedfellow-"+inv.Bed), 7)
		p.computes(t, again)
	})
	t.Run("kills", p.kills)
}
