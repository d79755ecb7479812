package images

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	bolt "go.etcd.io/bbolt"

	"github.com/bedfellow/bedfellow/pkg/progress"
)

// fakeProgram is the head of a program for this processor that needs no library, and then a text.
func fakeProgram(text string) string {
	head := make([]byte, 64)
	copy(head, "\x7fELF\x02\x01\x01")
	for at, v := range map[int]uint16{16: 2, 18: uint16(elfMachine()), 52: 64, 54: 56, 58: 64} {
		binary.LittleEndian.PutUint16(head[at:], v)
	}
	binary.LittleEndian.PutUint32(head[20:], 1)
	return string(head) + text
}

func layerOf(t *testing.T, files map[string]string) v1.Layer {
	t.Helper()
	data := archive(t, files)
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil })
	require.NoError(t, err)
	return l
}

// pushed puts an image of one layer into a registry and returns its pin.
func pushed(t *testing.T, pin, repository string, files map[string]string) Pin {
	t.Helper()
	img, err := mutate.AppendLayers(empty.Image, layerOf(t, files))
	require.NoError(t, err)
	img, err = configured(img, v1.Config{})
	require.NoError(t, err)
	tag, err := name.ParseReference(repository)
	require.NoError(t, err)
	require.NoError(t, remote.Write(tag, img))
	digest, err := img.Digest()
	require.NoError(t, err)
	return Pin{Name: pin, Source: "docker://" + repository, Digest: digest.String()}
}

// fakeNode is what kind's image of a node has that matters here: three programs, and the store of containerd with the others' images. The
// test with a store that containerd itself has made is in e2e.
func fakeNode(t *testing.T, images map[string]string) map[string]string {
	t.Helper()
	files := map[string]string{
		"usr/bin/kubeadm": fakeProgram("kubeadm"), "usr/bin/kubelet": fakeProgram("kubelet"), "usr/bin/kubectl": fakeProgram("kubectl"), "usr/bin/bash": "bash",
		"usr/local/bin/kubelet": "another",
	}
	const blobs = "var/lib/containerd/io.containerd.content.v1.content/blobs/sha256/"
	keep := func(data []byte) string {
		h, _, err := v1.SHA256(bytes.NewReader(data))
		require.NoError(t, err)
		files[blobs+h.Hex] = string(data)
		return h.String()
	}
	path := filepath.Join(t.TempDir(), "meta.db")
	db, err := bolt.Open(path, 0o600, nil)
	require.NoError(t, err)
	require.NoError(t, db.Update(func(tx *bolt.Tx) error {
		bucket := func(b *bolt.Bucket, name string) *bolt.Bucket {
			n, err := b.CreateBucketIfNotExists([]byte(name))
			require.NoError(t, err)
			return n
		}
		v, err := tx.CreateBucketIfNotExists([]byte("v1"))
		require.NoError(t, err)
		all := bucket(bucket(v, "k8s.io"), "images")
		for tag, program := range images {
			old, layer := archive(t, map[string]string{program: "an older one"}), archive(t, map[string]string{program: fakeProgram(tag), "etc/passwd": ""})
			manifest := fmt.Sprintf(`{"schemaVersion":2,"config":{"digest":"sha256:%064d","size":2},"layers":[{"digest":%q,"size":1},{"digest":%q,"size":1}]}`, 0, keep(old), keep(layer))
			target := keep([]byte(manifest))
			if strings.Contains(tag, "coredns") {
				target = keep(fmt.Appendf(nil, `{"schemaVersion":2,"manifests":[{"digest":"sha256:%064d","size":2,"platform":{"architecture":"none","os":"linux"}},{"digest":%q,"size":2,"platform":{"architecture":%q,"os":"linux"}}]}`,
					0, target, runtime.GOARCH))
			}
			require.NoError(t, bucket(bucket(all, tag), "target").Put([]byte("digest"), []byte(target)))
			require.NoError(t, bucket(bucket(all, "registry.k8s.io/import@"+target), "target").Put([]byte("digest"), []byte(target)))
		}
		return nil
	}))
	require.NoError(t, db.Close())
	data, err := os.ReadFile(path)
	require.NoError(t, err)
	files["var/lib/containerd/io.containerd.metadata.v1.bolt/meta.db"] = string(data)
	return files
}

// lockOf is what goes before the built-in lock for this test.
func lockOf(t *testing.T, l Lock) {
	t.Helper()
	path := filepath.Join(t.TempDir(), LockFile)
	require.NoError(t, l.Write(path))
	t.Setenv(LockEnv, path)
}

func TestKubernetesIsTakenFromContainers(t *testing.T) {
	images := map[string]string{
		"registry.k8s.io/kube-apiserver-" + runtime.GOARCH + ":v1.34.0": "usr/local/bin/kube-apiserver", "registry.k8s.io/kube-controller-manager:v1.34.0": "usr/local/bin/kube-controller-manager",
		"registry.k8s.io/kube-scheduler:v1.34.0": "usr/local/bin/kube-scheduler", "registry.k8s.io/kube-proxy:v1.34.0": "usr/local/bin/kube-proxy",
		"registry.k8s.io/etcd:3.6.4-0": "usr/local/bin/etcd", "registry.k8s.io/coredns/coredns:v1.12.1": "coredns", "registry.k8s.io/pause:" + pauseVersion: "pause",
		"docker.io/kindest/kindnetd:v20250512": "bin/kindnetd", "localhost/bedfellow/tools:1": "bin/tools", "sha256:" + strings.Repeat("0", 64): "coredns",
	}
	address := sources(t, nil)
	flannel := pushed(t, flannelPin, address+"/flannel-io/flannel:v0.27.4", map[string]string{"opt/bin/flanneld": fakeProgram("flanneld"), "opt/bin/mk-docker-opts.sh": ""})
	take := func(images map[string]string, flannel Pin) (*bakery, map[string]string, error) {
		lockOf(t, Lock{pushed(t, nodePin, address+"/kindest/node:v1.34.0", fakeNode(t, images)), flannel})
		require.NoError(t, CheckKubernetes(KubernetesPinned))
		s := realStore(t)
		lock, err := s.lock(t.Context(), "x")
		require.NoError(t, err)
		t.Cleanup(func() { _ = lock.Close() })
		b := &bakery{store: s, dir: t.TempDir(), lock: lock, recipe: recipe{kubernetes: KubernetesPinned}, step: progress.Start(t.Context(), "bake"), m: Manifest{Timings: map[string]float64{}}}
		a, versions, err := b.programs(t.Context())
		if err == nil {
			again, kept, err := (&bakery{store: s, dir: t.TempDir(), lock: lock, recipe: b.recipe, step: b.step, m: b.m}).programs(t.Context())
			require.NoError(t, err)
			assert.Equal(t, a, again)
			assert.Equal(t, versions, kept, "known without fetching")
		}
		return b, versions, err
	}
	b, versions, err := take(images, flannel)
	require.NoError(t, err)
	assert.Equal(t, map[string]string{
		"kubeadm": "v1.34.0", "kubectl": "v1.34.0", "kubelet": "v1.34.0", "kube-apiserver": "v1.34.0", "kube-controller-manager": "v1.34.0", "kube-scheduler": "v1.34.0",
		"kube-proxy": "v1.34.0", "etcd": "3.6.4-0", "coredns": "v1.12.1", "pause": pauseVersion, "flanneld": "v0.27.4",
	}, versions)
	for program, want := range map[string]string{"kubelet": "kubelet", "etcd": "registry.k8s.io/etcd:3.6.4-0", "coredns": "registry.k8s.io/coredns/coredns:v1.12.1", "flanneld": "flanneld"} {
		data, err := os.ReadFile(filepath.Join(b.dir, "published", program))
		require.NoError(t, err)
		assert.Equal(t, fakeProgram(want), string(data))
	}

	for want, change := range map[string]func(map[string]string, *Pin){
		"no image of etcd":        func(m map[string]string, _ *Pin) { delete(m, "registry.k8s.io/etcd:3.6.4-0") },
		"no program of that name": func(m map[string]string, _ *Pin) { m["registry.k8s.io/etcd:3.6.4-0"] = "usr/bin/other" },
		"nodes are made for pause": func(m map[string]string, _ *Pin) {
			delete(m, "registry.k8s.io/pause:"+pauseVersion)
			m["registry.k8s.io/pause:3.9"] = "pause"
		},
		"its flanneld": func(_ map[string]string, p *Pin) {
			*p = pushed(t, flannelPin, address+"/flannel-io/flannel:v0", map[string]string{"opt/bin/other": ""})
		},
	} {
		m, p := maps.Clone(images), flannel
		change(m, &p)
		_, _, err := take(m, p)
		assert.ErrorContains(t, err, want)
	}
}

func TestKubernetesFromContainersWantsThemPinned(t *testing.T) {
	for want, l := range map[string]Lock{
		"kubernetes/flannel": {{Name: nodePin, Source: "docker://docker.io/kindest/node:v1.34.0", Digest: "sha256:" + strings.Repeat("0", 64)}},
		"is to be a container image": {{Name: nodePin, Source: "https://example.org/node.tar", Digest: "sha256:" + strings.Repeat("0", 64)},
			{Name: flannelPin, Source: "docker://ghcr.io/flannel-io/flannel:v0.27.4", Digest: "sha256:" + strings.Repeat("0", 64)}},
	} {
		lockOf(t, l)
		err := CheckKubernetes(KubernetesPinned)
		require.ErrorIs(t, err, ErrNoBundle)
		assert.ErrorContains(t, err, want)
		_, err = Bundle(KubernetesPinned).resolve()
		assert.ErrorIs(t, err, ErrNoBundle)
	}
}

// The registry's address is none of the key's, a digest is.
func TestPinnedKubernetesIsInTheKey(t *testing.T) {
	key := func(registry, digest string) string {
		pin := func(name, repository string) Pin {
			return Pin{Name: name, Source: "docker://" + registry + "/" + repository, Digest: "sha256:" + strings.Repeat(digest, 64)}
		}
		lockOf(t, Lock{pin(nodePin, "node:v1"), pin(flannelPin, "flannel:v1")})
		r, err := Bundle(KubernetesPinned).resolve()
		require.NoError(t, err)
		key, _, err := r.key(os.DirFS("../playbooks"))
		require.NoError(t, err)
		return key
	}
	assert.Equal(t, key("one.example.org", "0"), key("other.example.org", "0"))
	assert.NotEqual(t, key("one.example.org", "0"), key("one.example.org", "1"))
}
