package main

import (
	"encoding/json"
	"os"
	"testing"

	"github.com/blang/semver"
	p "github.com/pulumi/pulumi-go-provider"
	"github.com/pulumi/pulumi-go-provider/integration"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/bedfellow/bedfellow/provision/clouds"
	"github.com/bedfellow/bedfellow/provision/provider"
	"github.com/bedfellow/bedfellow/stacks"
)

// serve serves this build's provider.
func serve(t *testing.T, options ...integration.ServerOption) integration.Server {
	made, err := provider.New(provider.Host{}, stacks.Components()...)
	require.NoError(t, err)
	server, err := integration.NewServer(t.Context(), provider.Name, semver.MustParse(provider.Version), append(options, integration.WithProvider(made))...)
	require.NoError(t, err)
	return server
}

// The schema in the repository is the provider's without the clouds, whose components a build has besides; and the provider declares no
// configuration: a change of it would replace everything under it.
func TestSchemaIsCurrent(t *testing.T) {
	got, err := serve(t).GetSchema(p.GetSchemaRequest{})
	require.NoError(t, err)
	var made map[string]any
	require.NoError(t, json.Unmarshal([]byte(got.Schema), &made))
	for _, ofClouds := range []string{"bedfellow:index:AwsMachines", "bedfellow:index:OpenStackMachines"} {
		resources := made["resources"].(map[string]any)
		if !clouds.Built {
			assert.NotContains(t, resources, ofClouds)
			continue
		}
		component, _ := resources[ofClouds].(map[string]any)
		require.NotNil(t, component, "%s is not in the schema", ofClouds)
		assert.Equal(t, true, component["isComponent"])
		assert.NotEmpty(t, component["description"])
		for _, of := range []string{"properties", "inputProperties"} {
			require.NotEmpty(t, component[of])
			for name, property := range component[of].(map[string]any) {
				assert.NotEmpty(t, property.(map[string]any)["description"], "%s of %s is not described", name, ofClouds)
			}
		}
		delete(resources, ofClouds)
	}
	rest, err := json.Marshal(made)
	require.NoError(t, err)
	kept, err := os.ReadFile("schema.json")
	require.NoError(t, err)
	assert.JSONEq(t, string(kept), string(rest), "schema.json is stale: run `make schema`")

	var schema struct {
		Config struct {
			Variables map[string]any `json:"variables"`
		} `json:"config"`
		Provider struct {
			InputProperties map[string]any `json:"inputProperties"`
		} `json:"provider"`
	}
	require.NoError(t, json.Unmarshal(kept, &schema))
	assert.Empty(t, schema.Config.Variables)
	assert.Empty(t, schema.Provider.InputProperties)
}
