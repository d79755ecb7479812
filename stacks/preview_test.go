//go:build clouds

package stacks_test

import (
	"slices"
	"testing"

	"github.com/pulumi/pulumi-go-provider/integration/fake"
	"github.com/pulumi/pulumi/sdk/v3/go/common/resource"
	"github.com/pulumi/pulumi/sdk/v3/go/pulumi"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// previewed answers as the engine does before there is anything: of a resource, its inputs alone are known, and not those that come of another.
type previewed struct{ fakeClouds }

func (p *previewed) NewResource(args pulumi.MockResourceArgs) (string, resource.PropertyMap, error) {
	p.keep(args)
	out := resource.PropertyMap{}
	for key, value := range args.Inputs {
		if !value.ContainsUnknowns() {
			out[key] = value
		}
	}
	return "", out, nil
}

// A preview before there is anything shows the resources that an up makes, and of their inputs nothing that comes out otherwise. Pulumi's mocks
// take no unknown secrets, so the program talks to a server, as it does with the engine.
func TestPreview(t *testing.T) {
	for name, more := range here {
		t.Run(name, func(t *testing.T) {
			p := &previewed{}
			monitor, _, err := fake.StartMonitorServer(t.Context(), fake.NewResourceMonitorServer(p))
			require.NoError(t, err)
			engine, _, err := fake.StartEngineServer(t.Context(), fake.NewEngineServer())
			require.NoError(t, err)
			values := preset(t, name, more)
			require.NoError(t, run(values, func(info *pulumi.RunInfo) {
				info.Project, info.Stack, info.MonitorAddr, info.EngineAddr, info.DryRun = "bedfellow", "cloud", monitor, engine, true
			}))
			f, err := cloudProgram(values, stable)
			require.NoError(t, err)
			require.Len(t, p.graph, len(f.graph))
			unknown := 0
			for _, m := range p.graph {
				i := slices.IndexFunc(f.graph, func(other made) bool { return other.kind == m.kind && other.name == m.name })
				require.GreaterOrEqual(t, i, 0, "%s %s is made by no up", m.kind, m.name)
				assert.True(t, foretells(resource.NewProperty(m.inputs), resource.NewProperty(f.graph[i].inputs)), "%s %s: %v, and then %s", m.kind, m.name, m.inputs, shownInputs(f.graph[i]))
				if resource.NewProperty(m.inputs).ContainsUnknowns() {
					unknown++
				}
			}
			assert.Greater(t, unknown, 10, "marks, ids and keys are not known yet")
			inventory := p.all("bedfellow:index:Configuration")[0].inputs["inventory"]
			assert.False(t, known(inventory), "of machines that are not there, nobody knows addresses: %v", inventory)
		})
	}
}

func known(v resource.PropertyValue) bool {
	return !v.IsComputed() && (!v.IsOutput() || v.OutputValue().Known)
}

// foretells tells whether what a preview knows of a value is so in the end, and as secret.
func foretells(before, after resource.PropertyValue) bool {
	if before.IsOutput() {
		o := before.OutputValue()
		if before = o.Element; !o.Known {
			before = resource.MakeComputed(resource.NewProperty(""))
		}
		if o.Secret {
			before = resource.MakeSecret(before)
		}
	}
	switch {
	case before.IsSecret() != after.IsSecret():
		return !before.IsSecret() && !known(before) // what is not known is not told
	case before.IsSecret():
		return foretells(before.SecretValue().Element, after.SecretValue().Element)
	case !known(before):
		return true
	case before.IsObject() && after.IsObject():
		for key, value := range before.ObjectValue() {
			if other, ok := after.ObjectValue()[key]; known(value) && !ok || !foretells(value, other) {
				return false
			}
		}
		return true
	case before.IsArray() && after.IsArray():
		return slices.EqualFunc(before.ArrayValue(), after.ArrayValue(), foretells)
	}
	return before.DeepEquals(after)
}
