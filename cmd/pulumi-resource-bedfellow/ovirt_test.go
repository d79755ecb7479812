package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	p "github.com/pulumi/pulumi-go-provider"
	"github.com/pulumi/pulumi/sdk/v3/go/common/resource"
	"github.com/pulumi/pulumi/sdk/v3/go/property"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/bedfellow/bedfellow/provision/ovirt/enginetest"
)

// Under plain `pulumi` the plugin knows an engine from the stack's configuration, which Pulumi starts it with, and no input has a word of that.
func TestEngineOfTheStacksConfiguration(t *testing.T) {
	e, err := enginetest.Start("", enginetest.Latency{}, &enginetest.Loopback{})
	require.NoError(t, err)
	t.Cleanup(e.Close)
	ca := filepath.Join(t.TempDir(), "ca.pem")
	require.NoError(t, os.WriteFile(ca, e.CA, 0o600))
	for _, name := range []string{"OVIRT_URL", "OVIRT_USERNAME", "OVIRT_PASSWORD", "OVIRT_TOKEN", "OVIRT_CAFILE", "BEDFELLOW_OVIRT"} {
		t.Setenv(name, "")
	}
	check := func(password string, settings map[string]string) p.CheckResponse {
		config, err := json.Marshal(map[string]string{"driver": "ovirt", "ovirt.url": e.URL, "ovirt.username": e.Username, "ovirt.password": password, "ovirt.caFile": ca})
		require.NoError(t, err)
		t.Setenv("PULUMI_CONFIG", string(config))
		text, given := func(s string) property.Value { return property.New(s) }, map[string]property.Value{}
		for key, v := range settings {
			given[key] = text(v)
		}
		none := property.New(map[string]property.Value{})
		got, err := serve(t).Check(p.CheckRequest{Urn: resource.NewURN("test", "bedfellow", "", "bedfellow:index:Pool", "it"), Inputs: property.NewMap(map[string]property.Value{
			"driver": text("ovirt"), "owner": property.New(map[string]property.Value{"bed": text("x"), "id": text("1"), "state": text("file:///x")}), "nodes": property.New([]property.Value{}),
			"network": text("isolated"), "user": text("bed"), "userPrivateKey": text(""), "userPublicKey": text(""), "hostKeys": none, "hostPublicKeys": none, "settings": property.New(given),
		})})
		require.NoError(t, err)
		return got
	}
	of := map[string]string{"cluster": "Default", "vnicProfile": "ovirtmgmt"}
	right := check(e.Password, of)
	assert.Empty(t, right.Failures)
	assert.NotContains(t, right.Inputs.GoString(), e.Password)
	wrong := check("guess", of).Failures
	require.Len(t, wrong, 1)
	assert.Contains(t, wrong[0].Reason, "the password from ovirt.password of the configuration")

	of["password"] = e.Password
	open := check(e.Password, of).Failures
	require.Len(t, open, 1)
	assert.Contains(t, open[0].Reason, "pulumi config set --secret bedfellow:ovirt.password")
	assert.NotContains(t, open[0].Reason, e.Password)
}
