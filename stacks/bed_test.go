package stacks_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"sync"
	"testing"

	"github.com/pulumi/pulumi/sdk/v3/go/common/resource"
	"github.com/pulumi/pulumi/sdk/v3/go/pulumi"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/bedfellow/bedfellow/images"
	"github.com/bedfellow/bedfellow/pkg/bed"
	"github.com/bedfellow/bedfellow/stacks"
)

// fakeEngine records what a program registers and answers as the provider would.
type fakeEngine struct {
	mu   sync.Mutex
	made map[string]resource.PropertyMap // inputs by type token
	by   map[string]string               // provider by type token
}

func (e *fakeEngine) Call(pulumi.MockCallArgs) (resource.PropertyMap, error) { return nil, nil }

func (e *fakeEngine) NewResource(args pulumi.MockResourceArgs) (string, resource.PropertyMap, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.made[args.TypeToken], e.by[args.TypeToken] = args.Inputs, args.Provider
	out := args.Inputs.Copy()
	switch args.TypeToken {
	case "bedfellow:index:Keys":
		public := resource.PropertyMap{}
		for _, n := range args.Inputs["nodes"].ArrayValue() {
			public[resource.PropertyKey(n.StringValue())] = resource.NewProperty("ssh-ed25519 " + n.StringValue())
		}
		out["bedId"], out["userPublicKey"], out["hostPublicKeys"] = resource.NewProperty("life1"), resource.NewProperty("public"), resource.NewProperty(public)
		out["hostKeys"] = resource.MakeSecret(resource.NewProperty(resource.PropertyMap{}))
		out["userPrivateKey"], out["mungeKey"] = resource.MakeSecret(resource.NewProperty("the user's key")), resource.MakeSecret(resource.NewProperty("the munge key"))
	case "bedfellow:index:Image":
		out["digest"], out["path"] = resource.NewProperty("sha256:1"), resource.NewProperty("/images/1/tree")
	case "bedfellow:index:Pool":
		var machines []resource.PropertyValue
		for i, node := range args.Inputs["nodes"].ArrayValue() {
			machines = append(machines, resource.NewProperty(resource.PropertyMap{
				"name": node.ObjectValue()["name"], "address": resource.NewProperty(fmt.Sprintf("10.0.0.%d", i+11)), "port": resource.NewProperty(22.0), "via": resource.NewProperty(fmt.Sprint("by", i)), "incarnation": resource.NewProperty(fmt.Sprint("made", i)),
			}))
		}
		out["machines"] = resource.NewProperty(machines)
	}
	return args.Name + "-id", out, nil
}

// runProgram runs the program of a stack with that configuration and returns what it exports.
func runProgram(t *testing.T, values map[string]string) (*fakeEngine, error) {
	config := map[string]string{}
	for key, value := range values {
		config["bedfellow:"+key] = value
	}
	text, err := json.Marshal(config)
	require.NoError(t, err)
	t.Setenv(pulumi.EnvConfig, string(text))
	engine := &fakeEngine{made: map[string]resource.PropertyMap{}, by: map[string]string{}}
	return engine, pulumi.RunErr(stacks.ProgramIn("file:///state"), pulumi.WithMocks("bedfellow", "quickstart", engine))
}

// A bed has a Kubernetes of its own, or what jobs bring up theirs with: on the same image.
func TestKinds(t *testing.T) {
	t.Setenv(images.KubernetesEnv, images.KubernetesPinned)
	for _, kind := range bed.KubernetesKinds() {
		e, err := runProgram(t, map[string]string{"driver": "lima", "image": "debian-13", "kubernetes": kind, "memory": "2GiB"})
		require.NoError(t, err)
		assert.Equal(t, images.KubernetesPinned, e.made["bedfellow:index:Image"]["kubernetes"].StringValue())
		assert.Equal(t, kind, e.made["bedfellow:index:Configuration"]["inventory"].ObjectValue()["kubernetes"].StringValue())
	}
}

func (e *fakeEngine) types() []string {
	var all []string
	for token := range e.made {
		all = append(all, token)
	}
	slices.Sort(all)
	return all
}

// A bed is a component with image, keys, machines and configuration, under a provider of its own that is given no configuration:
// the default one takes the stack's for itself, and its key "name" for a plugin's.
func TestProgram(t *testing.T) {
	e, err := runProgram(t, map[string]string{"driver": "nspawn", "nodes": "2", "name": "other"})
	require.NoError(t, err)
	assert.Equal(t, []string{
		"bedfellow:index:Bed", "bedfellow:index:Configuration", "bedfellow:index:Image", "bedfellow:index:Keys", "bedfellow:index:Pool", "pulumi:providers:bedfellow",
	}, e.types())
	assert.Empty(t, e.made["pulumi:providers:bedfellow"])
	for _, kind := range []string{"Configuration", "Image", "Keys", "Pool"} {
		assert.Contains(t, e.by["bedfellow:index:"+kind], "pulumi:providers:bedfellow::bedfellow", kind)
	}

	pool := e.made["bedfellow:index:Pool"]
	assert.Equal(t, "/images/1/tree", pool["image"].StringValue())
	owner := pool["owner"].ObjectValue()
	assert.Equal(t, []string{"other", "life1", "file:///state#quickstart"}, []string{owner["bed"].StringValue(), owner["id"].StringValue(), owner["state"].StringValue()})
	assert.Equal(t, "other-02", pool["nodes"].ArrayValue()[1].ObjectValue()["name"].StringValue())
	assert.True(t, pool["userPrivateKey"].IsSecret())

	configuration := e.made["bedfellow:index:Configuration"]
	node := configuration["inventory"].ObjectValue()["nodes"].ArrayValue()[1].ObjectValue()
	assert.Equal(t, "10.0.0.12", node["address"].StringValue())
	assert.Equal(t, "by1", node["via"].StringValue())
	assert.Equal(t, "made1", node["incarnation"].StringValue(), "a node made anew is configured anew")
	assert.Equal(t, "ssh-ed25519 other-02", node["hostKey"].StringValue())
	assert.True(t, configuration["privateKey"].IsSecret())
	assert.True(t, configuration["mungeKey"].IsSecret())
}

func TestOutputs(t *testing.T) {
	e := &fakeEngine{made: map[string]resource.PropertyMap{}, by: map[string]string{}}
	known := bed.Known{Drivers: []string{"nspawn"}, Images: []string{"debian-12"}, WorkloadManagers: []string{"slurm"}, Kubernetes: []string{"none"}}
	spec, problems := bed.Parse("quickstart", nil, known)
	require.NoError(t, problems.Err())
	var said string
	require.NoError(t, pulumi.RunErr(func(ctx *pulumi.Context) error {
		b, err := stacks.NewBed(ctx, "quickstart", stacks.Args(spec, "file:///state"))
		if err != nil {
			return err
		}
		var wait sync.WaitGroup
		wait.Add(1)
		_ = pulumi.All(b.Inventory, pulumi.IsSecret(b.Inventory), pulumi.IsSecret(b.PrivateKey)).ApplyT(func(v []any) error {
			defer wait.Done()
			said = v[0].(string)
			assert.Equal(t, []any{false, true}, v[1:], "the inventory is public and the key is secret")
			return nil
		})
		go wait.Wait()
		return nil
	}, pulumi.WithMocks("bedfellow", "quickstart", e)))
	var inv bed.Inventory
	require.NoError(t, json.Unmarshal([]byte(said), &inv))
	assert.Equal(t, "quickstart", inv.Bed)
	assert.Equal(t, stacks.User, inv.User)
	assert.True(t, inv.SharedKernel)
	require.Len(t, inv.Nodes, 3)
	assert.Equal(t, bed.Control, inv.Nodes[0].Role)
	assert.NotContains(t, said, "the user's key")
}

// A program started by the CLI itself checks its configuration as `bed` does, before it registers anything.
func TestProgramRefuses(t *testing.T) {
	e, err := runProgram(t, map[string]string{"nodse": "2", "memory": "8GB"})
	require.Error(t, err)
	for _, needle := range []string{"nodse", "did you mean nodes?", "8GiB"} {
		assert.ErrorContains(t, err, needle)
	}
	assert.Empty(t, e.types())

	e, err = runProgram(t, nil)
	assert.ErrorContains(t, err, "cp stacks/Pulumi.quickstart.yaml .bed/config/", "Pulumi reads no preset")
	assert.Empty(t, e.types())
}

// Every preset is a valid configuration, and carries no salt.
func TestPresets(t *testing.T) {
	require.Contains(t, stacks.Presets(), "quickstart")
	for _, name := range stacks.Presets() {
		data, ok := stacks.Preset(name)
		require.True(t, ok)
		assert.NotContains(t, string(data), "encryptionsalt", name)
	}
	_, ok := stacks.Preset("nope")
	assert.False(t, ok)
}
