package provider_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/blang/semver"
	p "github.com/pulumi/pulumi-go-provider"
	"github.com/pulumi/pulumi-go-provider/integration"
	"github.com/pulumi/pulumi/sdk/v3/go/property"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/bedfellow/bedfellow/images"
	"github.com/bedfellow/bedfellow/pkg/hosttest"
	"github.com/bedfellow/bedfellow/provision/provider"
)

// A damaged image makes no bed, and says so with the file and the remedy; it is no reason not to refresh or destroy one.
func TestDamagedImage(t *testing.T) {
	if os.Geteuid() != 0 {
		hosttest.Lacks(t, "root")
	}
	kept, err := images.Open("")
	require.NoError(t, err)
	img, err := kept.Build(t.Context(), images.Request{Definition: "debian-12"})
	require.NoError(t, err)
	dir := t.TempDir() // a store that shares the kept one's files, but for the one that is replaced
	require.NoError(t, exec.Command("cp", "-al", filepath.Join(kept.Dir(), img.Key), dir).Run())

	made, err := provider.New(provider.Host{Images: dir})
	require.NoError(t, err)
	server, err := integration.NewServer(t.Context(), provider.Name, semver.MustParse(provider.Version), integration.WithProvider(made))
	require.NoError(t, err)
	s := plugin{server, t, nil}
	inputs := property.NewMap(map[string]property.Value{"definition": text("debian-12")})
	whole, err := s.create("Image", inputs)
	require.NoError(t, err)
	assert.Equal(t, img.Digest, whole.Properties.Get("digest").AsString())

	victim := filepath.Join(dir, img.Key, "tree/etc/debian_version")
	require.NoError(t, os.Remove(victim))
	require.NoError(t, os.WriteFile(victim, []byte("12.x\n"), 0o644))
	_, err = s.create("Image", inputs)
	require.ErrorContains(t, err, victim)
	require.ErrorContains(t, err, "bed image remove")

	read, err := s.Read(p.ReadRequest{Urn: urn("Image"), ID: whole.ID, Properties: whole.Properties, Inputs: inputs})
	require.NoError(t, err)
	diff, err := s.Diff(p.DiffRequest{Urn: urn("Image"), ID: whole.ID, State: read.Properties, Inputs: inputs})
	require.NoError(t, err)
	assert.True(t, diff.HasChanges, "refresh shows the damage")
}

// The Flux that an image was made from may be gone when its bed is refreshed or destroyed.
func TestImageOutlivesItsFlux(t *testing.T) {
	s := newPlugin(t)
	state := property.NewMap(map[string]property.Value{
		"definition": text("debian-12"), "flux": text(filepath.Join(t.TempDir(), "gone.tar")), "key": text("k"), "digest": text("sha256:d"), "path": text("/p"),
	})
	inputs := state.Delete("key").Delete("digest").Delete("path")
	read, err := s.Read(p.ReadRequest{Urn: urn("Image"), ID: "debian-12", Properties: state, Inputs: inputs})
	require.NoError(t, err)
	assert.Equal(t, "sha256:d", read.Properties.Get("digest").AsString())
	diff, err := s.Diff(p.DiffRequest{Urn: urn("Image"), ID: "debian-12", State: read.Properties, Inputs: inputs})
	require.NoError(t, err, "a refresh, which destroy begins with, compares what it read")
	assert.False(t, diff.HasChanges)
	_, err = s.Diff(p.DiffRequest{Urn: urn("Image"), ID: "debian-12", State: read.Properties, Inputs: inputs.Set("flux", text("/another/gone.tar"))})
	assert.ErrorContains(t, err, "no Flux to put on the image")
}
