package provider_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/blang/semver"
	p "github.com/pulumi/pulumi-go-provider"
	"github.com/pulumi/pulumi-go-provider/integration"
	"github.com/pulumi/pulumi/sdk/v3/go/common/resource"
	"github.com/pulumi/pulumi/sdk/v3/go/common/tokens"
	"github.com/pulumi/pulumi/sdk/v3/go/property"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/bedfellow/bedfellow/provision"
	"github.com/bedfellow/bedfellow/provision/provider"
	"github.com/bedfellow/bedfellow/provision/sim"
)

// plugin is the provider as the engine sees it, on simulated machines.
type plugin struct {
	integration.Server
	t        *testing.T
	machines *sim.Driver
}

func newPlugin(t *testing.T) plugin {
	machines, err := sim.Open("")
	require.NoError(t, err)
	made, err := provider.New(provider.Host{
		OpenDriver: func(string) (provision.Driver, error) { return machines, nil }, Images: t.TempDir(),
	})
	require.NoError(t, err)
	server, err := integration.NewServer(t.Context(), provider.Name, semver.MustParse(provider.Version), integration.WithProvider(made))
	require.NoError(t, err)
	return plugin{server, t, machines}
}

func urn(kind string) resource.URN {
	return resource.NewURN("test", "bedfellow", "", tokens.Type("bedfellow:index:"+kind), "it")
}

func text(s string) property.Value { return property.New(s) }

func names(nodes ...string) property.Value {
	var list []property.Value
	for _, n := range nodes {
		list = append(list, text(n))
	}
	return property.New(list)
}

// create is a resource's first life: checked, previewed, made.
func (s plugin) create(kind string, inputs property.Map) (p.CreateResponse, error) {
	s.t.Helper()
	checked, err := s.Check(p.CheckRequest{Urn: urn(kind), Inputs: inputs})
	require.NoError(s.t, err)
	require.Empty(s.t, checked.Failures)
	_, err = s.Create(p.CreateRequest{Urn: urn(kind), Properties: checked.Inputs, DryRun: true})
	require.NoError(s.t, err)
	return s.Create(p.CreateRequest{Urn: urn(kind), Properties: checked.Inputs})
}

// Keys are made once: a bed that grows gets keys for the new nodes and keeps all others. The private ones are secret always.
func TestKeys(t *testing.T) {
	s := newPlugin(t)
	two := property.NewMap(map[string]property.Value{"nodes": names("x-01", "x-02")})
	three := property.NewMap(map[string]property.Value{"nodes": names("x-01", "x-02", "x-03")})
	made, err := s.create("Keys", two)
	require.NoError(t, err)
	secret := func(m property.Map) {
		for key, value := range m.All {
			switch key {
			case "userPrivateKey", "hostKeys", "mungeKey", "curveKey":
				assert.True(t, value.Secret(), "%s lies in clear in the state", key)
			default:
				assert.False(t, value.HasSecrets(), "%s is public", key)
			}
		}
	}
	secret(made.Properties)

	diff, err := s.Diff(p.DiffRequest{Urn: urn("Keys"), ID: made.ID, State: made.Properties, Inputs: three, OldInputs: two})
	require.NoError(t, err)
	assert.True(t, diff.HasChanges)
	grown, err := s.Update(p.UpdateRequest{Urn: urn("Keys"), ID: made.ID, State: made.Properties, Inputs: three, OldInputs: two})
	require.NoError(t, err)
	secret(grown.Properties)
	for _, key := range []string{"bedId", "userPrivateKey", "userPublicKey", "mungeKey", "curveKey"} {
		assert.Equal(t, made.Properties.Get(key), grown.Properties.Get(key), key)
	}
	for _, key := range []string{"hostKeys", "hostPublicKeys"} {
		before, after := made.Properties.Get(key).AsMap(), grown.Properties.Get(key).AsMap()
		assert.Equal(t, 3, after.Len())
		for name, value := range before.All {
			assert.Equal(t, value, after.Get(name), "%s of %s", key, name)
		}
	}
	again, err := s.create("Keys", two)
	require.NoError(t, err)
	assert.NotEqual(t, made.Properties.Get("mungeKey"), again.Properties.Get("mungeKey"), "two beds share no secret")
	assert.NotEqual(t, made.ID, again.ID)
}

func pool(nodes int) property.Map {
	var list []property.Value
	keys := map[string]property.Value{}
	for i := range nodes {
		name := fmt.Sprintf("x-%02d", i+1)
		list = append(list, property.New(map[string]property.Value{
			"name": text(name), "index": property.New(float64(i)), "role": text("compute"), "cpus": property.New(1.0), "memoryMiB": property.New(512.0),
		}))
		keys[name] = text("key of " + name)
	}
	return property.NewMap(map[string]property.Value{
		"driver": text("sim"), "nodes": property.New(list), "network": text("isolated"), "user": text("bed"),
		"owner":          property.New(map[string]property.Value{"bed": text("x"), "id": text("life1"), "state": text("file:///x")}),
		"userPrivateKey": text("private").WithSecret(true), "userPublicKey": text("public"),
		"hostKeys": property.New(keys).WithSecret(true), "hostPublicKeys": property.New(keys),
	})
}

// states and incarnations are what a pool's state says of each machine.
func states(m property.Map) (found []string) {
	for _, machine := range m.Get("machines").AsArray().All {
		found = append(found, machine.AsMap().Get("state").AsString())
	}
	return found
}

func incarnations(m property.Map) (found []string) {
	for _, machine := range m.Get("machines").AsArray().All {
		found = append(found, machine.AsMap().Get("incarnation").AsString())
	}
	return found
}

// A pool of which one machine fails keeps the others and says which; the next update makes that one and touches no other; a
// machine that died is seen and mended alone; a pool that shrinks lets the last go.
func TestPool(t *testing.T) {
	s := newPlugin(t)
	require.NoError(t, s.machines.Inject("x-02", sim.Fault{Op: "create", Times: 1, Fail: true}))
	made, err := s.create("Pool", pool(3))
	require.Error(t, err)
	require.NotNil(t, made.PartialState, "what was made is to be in the state")
	require.Len(t, made.PartialState.Reasons, 1)
	assert.Contains(t, made.PartialState.Reasons[0], "node x-02")
	assert.Equal(t, []string{"running", "missing", "running"}, states(made.Properties))

	differs := func(state, inputs property.Map) bool {
		diff, err := s.Diff(p.DiffRequest{Urn: urn("Pool"), ID: made.ID, State: state, Inputs: inputs, OldInputs: pool(3)})
		require.NoError(t, err)
		return diff.HasChanges
	}
	update := func(state, inputs property.Map) property.Map {
		require.True(t, differs(state, inputs))
		updated, err := s.Update(p.UpdateRequest{Urn: urn("Pool"), ID: made.ID, State: state, Inputs: inputs, OldInputs: pool(3)})
		require.NoError(t, err)
		return updated.Properties
	}
	read := func(state property.Map) property.Map {
		seen, err := s.Read(p.ReadRequest{Urn: urn("Pool"), ID: made.ID, Properties: state, Inputs: pool(3)})
		require.NoError(t, err)
		return seen.Properties
	}

	whole := update(made.Properties, pool(3))
	assert.Equal(t, []string{"running", "running", "running"}, states(whole))
	before, after := incarnations(made.Properties), incarnations(whole)
	assert.Equal(t, []string{before[0], before[2]}, []string{after[0], after[2]}, "machines that were well were touched")
	assert.False(t, differs(read(whole), pool(3)), "nothing is amiss")

	require.NoError(t, s.machines.Kill("x-01"))
	require.NoError(t, s.machines.Delete(t.Context(), "x-03"))
	seen := read(whole)
	assert.Equal(t, []string{"stopped", "running", "missing"}, states(seen))
	mended := update(seen, pool(3))
	assert.Equal(t, []string{"running", "running", "running"}, states(mended))
	assert.NotEqual(t, after[0], incarnations(mended)[0])
	assert.Equal(t, after[1], incarnations(mended)[1])

	shrunk := update(mended, pool(2))
	assert.Equal(t, incarnations(mended)[:2], incarnations(shrunk))
	left, err := s.machines.List(t.Context(), "x")
	require.NoError(t, err)
	assert.Len(t, left, 2)

	// A machine of a life that the state does not know is as much in the way as any other, and goes too.
	require.NoError(t, s.Delete(p.DeleteRequest{Urn: urn("Pool"), ID: made.ID, Properties: shrunk}))
	left, err = s.machines.List(t.Context(), "")
	require.NoError(t, err)
	assert.Empty(t, left)
	require.NoError(t, s.Delete(p.DeleteRequest{Urn: urn("Pool"), ID: made.ID, Properties: shrunk}), "deleting twice")
}

// A pool's settings are in the state in the clear: a secret among them is refused before that, and not shown; two of them in the order of their names.
func TestPoolTakesNoSecret(t *testing.T) {
	s := newPlugin(t)
	settings := property.New(map[string]property.Value{"url": text("https://engine/ovirt-engine/api"), "token": text("opensesame"), "password": text("opensesame"), "insecure": text("true")})
	checked, err := s.Check(p.CheckRequest{Urn: urn("Pool"), Inputs: pool(1).Set("driver", text("ovirt")).Set("settings", settings)})
	require.NoError(t, err)
	var refused []string
	for _, f := range checked.Failures {
		assert.NotContains(t, f.Reason, "opensesame")
		if strings.Contains(f.Reason, "is a secret") {
			assert.Contains(t, f.Reason, "pulumi config set --secret bedfellow:"+f.Property)
			refused = append(refused, f.Property)
		}
	}
	assert.Equal(t, []string{"ovirt.password", "ovirt.token"}, refused)
}

// A bed of the same name and another state is never removed.
func TestPoolLeavesForeignBeds(t *testing.T) {
	s := newPlugin(t)
	_, err := s.machines.Create(t.Context(), provision.Machine{Name: "x-01", Owner: provision.Owner{Bed: "x", ID: "other", State: "file:///other"}})
	require.NoError(t, err)
	made, err := s.create("Pool", pool(1))
	require.Error(t, err)
	assert.Contains(t, made.PartialState.Reasons[0], "file:///other")
	err = s.Delete(p.DeleteRequest{Urn: urn("Pool"), ID: "x", Properties: made.Properties})
	var foreign *provision.ForeignError
	require.ErrorAs(t, err, &foreign)
	left, err := s.machines.List(t.Context(), "x")
	require.NoError(t, err)
	assert.Len(t, left, 1)
}
