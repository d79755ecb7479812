package main

import (
	"encoding/json"
	"os"
	"testing"

	"github.com/blang/semver"
	p "github.com/pulumi/pulumi-go-provider"
	"github.com/pulumi/pulumi-go-provider/infer"
	"github.com/pulumi/pulumi-go-provider/integration"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/bedfellow/bedfellow/provision/provider"
	"github.com/bedfellow/bedfellow/stacks"
)

// The schema in the repository is the provider's, and the provider declares no configuration: a change of it would replace
// everything under it.
func TestSchemaIsCurrent(t *testing.T) {
	made, err := provider.New(provider.Host{}, infer.ComponentF(stacks.NewBed))
	require.NoError(t, err)
	server, err := integration.NewServer(t.Context(), provider.Name, semver.MustParse(provider.Version), integration.WithProvider(made))
	require.NoError(t, err)
	got, err := server.GetSchema(p.GetSchemaRequest{})
	require.NoError(t, err)
	kept, err := os.ReadFile("schema.json")
	require.NoError(t, err)
	assert.JSONEq(t, string(kept), got.Schema, "schema.json is stale: run `make schema`")

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
