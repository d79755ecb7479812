package e2e_test

import (
	"context"
	"io"
	"log"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/bedfellow/bedfellow/images"
)

// TestPublished: a bundle whose programs are taken out of container images is the same as the one that those were built for. The node's image is
// that bundle's own tree, with a store that containerd made; kind's cannot be reached everywhere, and has it at the same place.
func TestPublished(t *testing.T) {
	if !*fullFlag || driver(*stackFlag) != "lima" {
		t.Skip("the bundle takes ten minutes to build, and three more to build from images: `make e2e-full STACK=lima-ci` does so")
	}
	store, err := images.Open("")
	require.NoError(t, err)
	module, err := filepath.Abs("../images/kubernetes")
	require.NoError(t, err)
	temporary := t.TempDir()
	t.Setenv("TMPDIR", temporary)
	built, err := store.Build(t.Context(), images.Bundle(module))
	require.NoError(t, err)
	versions := built.Manifest.Kubernetes.Versions

	server := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0)), registry.WithBlobHandler(registry.NewDiskBlobHandler(t.TempDir()))))
	t.Cleanup(server.Close)
	push := func(pin, reference string, tar []string) images.Pin {
		layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) {
			cmd := exec.CommandContext(t.Context(), "tar", tar...)
			out, err := cmd.StdoutPipe()
			if err != nil {
				return nil, err
			}
			return waiting{out, cmd}, cmd.Start()
		}, tarball.WithCompressionLevel(1))
		require.NoError(t, err)
		img, err := mutate.AppendLayers(empty.Image, layer)
		require.NoError(t, err)
		img, err = mutate.ConfigFile(img, &v1.ConfigFile{Architecture: runtime.GOARCH, OS: "linux", RootFS: v1.RootFS{Type: "layers", DiffIDs: []v1.Hash{must(t)(layer.DiffID())}}})
		require.NoError(t, err)
		reference = strings.TrimPrefix(server.URL, "http://") + reference
		tag, err := name.NewTag(reference)
		require.NoError(t, err)
		require.NoError(t, remote.Write(tag, img))
		return images.Pin{Name: pin, Source: "docker://" + reference, Digest: must(t)(img.Digest()).String()}
	}
	i := slices.IndexFunc(built.Manifest.Artifacts, func(a images.Artifact) bool { return a.Role == "kubernetes" })
	require.GreaterOrEqual(t, i, 0)
	artifact := filepath.Join(store.Dir(), "artifacts", built.Manifest.Artifacts[i].Key+".tar")
	programs := t.TempDir()
	require.NoError(t, exec.Command("tar", "-C", programs, "-xf", artifact, "./flanneld").Run())
	lock := images.Lock{
		push("kubernetes/node", "/kindest/node:"+versions["kubeadm"], []string{"-C", built.Path, "-c", "usr/bin", "var/lib/containerd"}),
		push("kubernetes/flannel", "/flannel-io/flannel:"+versions["flanneld"], []string{"-C", programs, "-c", "flanneld"}),
	}
	file := filepath.Join(t.TempDir(), images.LockFile)
	require.NoError(t, lock.Write(file))
	t.Setenv(images.LockEnv, file)
	request := images.Bundle(images.KubernetesPinned)
	if _, kept, err := store.Get(t.Context(), request); !kept {
		require.NoError(t, err)
		t.Cleanup(func() { // it is nobody's
			if img, kept, _ := store.Get(context.Background(), request); kept {
				assert.NoError(t, os.RemoveAll(filepath.Dir(img.Path)))
			}
		})
	}
	taken, err := store.Build(t.Context(), request)
	require.NoError(t, err)
	if !slices.Equal(built.Manifest.Packages, taken.Manifest.Packages) {
		t.Logf("the store's bundle is of %s, and the distribution's archive has changed since: it is built anew", built.Manifest.Baked)
		require.NoError(t, store.Remove(t.Context(), built.Digest))
		built, err = store.Build(t.Context(), images.Bundle(module))
		require.NoError(t, err)
	}
	left, err := os.ReadDir(temporary)
	require.NoError(t, err)
	assert.Empty(t, left, "that bakes left behind")
	assert.Equal(t, versions, taken.Manifest.Kubernetes.Versions)
	assert.Equal(t, built.Manifest.Kubernetes.Images, taken.Manifest.Kubernetes.Images)
	assert.Equal(t, built.Digest, taken.Digest, "whichever way its programs came")
}

// waiting is a command's output, whose end is the command's.
type waiting struct {
	io.ReadCloser
	cmd *exec.Cmd
}

func (w waiting) Close() error {
	_, _ = io.Copy(io.Discard, w.ReadCloser)
	return w.cmd.Wait()
}

func must(t *testing.T) func(v1.Hash, error) v1.Hash {
	return func(h v1.Hash, err error) v1.Hash {
		t.Helper()
		require.NoError(t, err)
		return h
	}
}
