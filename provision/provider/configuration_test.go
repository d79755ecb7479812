package provider

import (
	"slices"
	"testing"

	"github.com/pulumi/pulumi-go-provider/infer"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/bedfellow/bedfellow/pkg/bed"
	"github.com/bedfellow/bedfellow/scenarios/fakebed"
)

// A Kubernetes of the bed's that was left stopped on a node is a reason to configure the bed again; a node that does not answer is none.
func TestAStoppedKubernetesIsStarted(t *testing.T) {
	b := fakebed.Start(t, 1)
	b.Write(t, "bin/docker", "#!/bin/sh\n# A fake of docker.\necho \"$*\" >>\"$FAKE/asked\"\ncat \"$FAKE/runs-$FAKE_NODE\"\n")
	control, compute := b.Inventory.Nodes[0].Name, b.Inventory.Nodes[1].Name
	changed := func(kubernetes string) bool {
		args := ConfigurationArgs{Inventory: b.Inventory, PrivateKey: string(b.Key), Playbooks: "as they are"}
		args.Inventory.Kubernetes = kubernetes
		args.Inventory.Nodes = slices.Clone(args.Inventory.Nodes)
		state := ConfigurationState{ConfigurationArgs: args}
		read, err := (&Configuration{}).Read(t.Context(), infer.ReadRequest[ConfigurationArgs, ConfigurationState]{ID: "id", Inputs: args, State: state})
		require.NoError(t, err)
		assert.Equal(t, "id", read.ID)
		assert.Equal(t, args, read.Inputs)
		diff, err := (&Configuration{}).Diff(t.Context(), infer.DiffRequest[ConfigurationArgs, ConfigurationState]{ID: "id", State: read.State, Inputs: args})
		require.NoError(t, err)
		return diff.HasChanges
	}
	b.Write(t, "runs-"+control, "0123\n")
	b.Write(t, "runs-"+compute, "")
	assert.False(t, changed(bed.JobsKubernetes))
	assert.Empty(t, b.Read("asked"))
	assert.True(t, changed(bed.OwnKubernetes))
	assert.Contains(t, b.Read("asked"), "name=^usernetes-node$")
	b.Write(t, "runs-"+compute, "4567\n")
	assert.False(t, changed(bed.OwnKubernetes))
	b.Write(t, "runs-"+compute, "")
	b.Inventory.Nodes[1].Port = 1
	assert.False(t, changed(bed.OwnKubernetes), "its machine is the Pool's affair")
}
