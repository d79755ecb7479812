package engine_test

import (
	"encoding/json"
	"testing"

	"github.com/pulumi/pulumi/sdk/v3/go/common/apitype"
	"github.com/pulumi/pulumi/sdk/v3/go/common/resource"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/bedfellow/bedfellow/provision"
	"github.com/bedfellow/bedfellow/provision/provider"
	"github.com/bedfellow/bedfellow/stacks"
	"github.com/bedfellow/bedfellow/stacks/engine"
)

// A bed in a cloud whose configuration failed can be entered: its state has its machines and its keys.
func TestAHalfMadeBedInACloudIsRead(t *testing.T) {
	spec, problems := stacks.Parse("aws", map[string]string{"driver": "aws", "nodes": "2", "ttl": "8h", "aws.region": "us-east-1", "aws.instanceType": "c7i.2xlarge"})
	require.Empty(t, problems)
	outputs, err := engine.AsPool(spec, []byte(`{
		"bedId": "life1", "userPrivateKey": {"4dabf18193072939515e22adb298388d": "1b47061264138c4ac30d75fd1eb44270", "plaintext": "\"PEM\""},
		"hostPublicKeys": {"aws-01": "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIDRQ", "aws-02": "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIDRR"}
	}`), []byte(`{"machines": [
		{"name": "aws-01", "address": "192.0.2.1", "port": 22, "bedAddress": "10.106.0.1", "incarnation": "i-1"},
		{"name": "aws-02", "address": "10.106.0.2", "port": 22, "bedAddress": "10.106.0.2", "incarnation": "i-2", "via": "aws-01"}
	]}`))
	require.NoError(t, err)
	inv, key, err := provider.Standing(outputs)
	require.NoError(t, err)
	assert.Equal(t, "PEM", string(key))
	assert.Equal(t, []string{"aws", "life1", "aws"}, []string{inv.Bed, inv.ID, inv.Driver})
	require.Len(t, inv.Nodes, 2)
	assert.Equal(t, []any{"192.0.2.1", 8, 16 * 1024}, []any{inv.Nodes[0].Address, inv.Nodes[0].CPUs, inv.Nodes[0].MemoryMiB})
	assert.Equal(t, "aws-01", inv.Nodes[1].Via)

	outputs, err = engine.AsPool(spec, []byte(`{"bedId": "life1"}`), []byte(`{}`))
	require.NoError(t, err)
	_, _, err = provider.Standing(outputs)
	assert.Error(t, err)
	_, err = engine.AsPool(spec, nil, []byte(`{}`))
	assert.Error(t, err)
}

func TestWhatAnUpThatWasCutShortHasNoted(t *testing.T) {
	d := apitype.DeploymentV3{Resources: []apitype.ResourceV3{
		{ID: "the-keys", Type: "bedfellow:index:Keys", Outputs: map[string]any{"bedId": "life1"}},
		{ID: "i-1", Type: "aws:ec2/instance:Instance"},
	}}
	text := func() []byte {
		text, err := json.Marshal(d)
		require.NoError(t, err)
		return text
	}
	assert.False(t, engine.CutShort(text()))
	second := apitype.ResourceV3{URN: resource.URN("urn:pulumi:aws::bedfellow::aws:ec2/instance:Instance::bed-02")}
	d.PendingOperations = []apitype.OperationV2{{Resource: second, Type: apitype.OperationTypeDeleting}}
	assert.False(t, engine.CutShort(text()), "what is to be gone is noted")
	d.PendingOperations = append(d.PendingOperations, apitype.OperationV2{Resource: second, Type: apitype.OperationTypeCreating})
	assert.True(t, engine.CutShort(text()))
	owner, but, err := engine.EndUnnoted(text(), "file://host/state#aws")
	require.NoError(t, err)
	assert.Equal(t, provision.Owner{ID: "life1", State: "file://host/state#aws"}, owner)
	assert.Equal(t, []string{"the-keys", "i-1"}, but)
	d.Resources = nil
	owner, _, err = engine.EndUnnoted(text(), "file://host/state#aws")
	require.NoError(t, err)
	assert.Zero(t, owner, "without keys there are no machines")
}
