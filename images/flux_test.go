package images

import (
	"archive/tar"
	"bytes"
	"context"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/bedfellow/bedfellow/pkg/progress"
)

// tarOf is a tar archive of files, in a directory of the test's.
func tarOf(t *testing.T, files map[string]string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "flux.tar")
	require.NoError(t, os.WriteFile(path, archive(t, files), 0o644))
	return path
}

func TestFluxArtifactsThatAreNone(t *testing.T) {
	t.Setenv(LockEnv, "")
	good := tarOf(t, map[string]string{"usr/bin/flux": "#!/bin/sh\n"})
	require.NoError(t, CheckFlux(good, "debian-12"))
	empty := t.TempDir()
	for source, want := range map[string][]string{
		FluxPinned:                                              {"flux/debian-12", "bed lock"},
		"https://example.org/flux.tar":                          {"has no digest", "#sha256:"},
		"https://example.org/flux.tar#sha256:beef":              {"has no digest"},
		"docker://example.org/fluxrm/flux-sched:bookworm":       {"has no digest"},
		filepath.Join(empty, "none.tar"):                        {"none.tar"},
		empty:                                                   {"has no .deb"},
		tarOf(t, map[string]string{"usr/bin/other": ""}):        {"no usr/bin/flux"},
		tarOf(t, map[string]string{"../usr/bin/flux": ""}):      {"../usr/bin/flux"},
		tarOf(t, map[string]string{"root/.ssh/config": "Host"}): {"root/.ssh/config"},
		"flux_test.go":                                          {"no tar archive"},
	} {
		err := CheckFlux(source, "debian-12")
		require.ErrorIs(t, err, ErrNoFlux, source)
		for _, w := range want {
			assert.ErrorContains(t, err, w)
		}
	}
	_, err := fakeStore(t).Build(t.Context(), Request{Definition: "debian-12", Roles: []string{"base", "flux"}})
	require.ErrorIs(t, err, ErrNoFlux)
	assert.ErrorContains(t, err, FluxEnv)
}

// Every byte of an artifact is in the key of the image, and an image without Flux has no role of it.
func TestFluxIsInTheKey(t *testing.T) {
	key := func(flux string) (string, []string) {
		r, err := Request{Definition: "debian-12", Flux: flux}.resolve()
		require.NoError(t, err)
		key, _, err := r.key(os.DirFS("../playbooks"))
		require.NoError(t, err)
		return key, r.roles
	}
	none, roles := key("")
	assert.NotContains(t, roles, fluxRole)
	seen := map[string]bool{none: true}
	debs := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(debs, "a.deb"), []byte("a"), 0o644))
	require.NoError(t, os.WriteFile(filepath.Join(debs, "b.deb"), []byte("b"), 0o644))
	for _, source := range []string{
		tarOf(t, map[string]string{"usr/bin/flux": "a"}), tarOf(t, map[string]string{"usr/bin/flux": "b"}), debs,
		"https://example.org/flux.tar#sha256:" + strings.Repeat("0", 64), "docker://example.org/flux@sha256:" + strings.Repeat("1", 64),
	} {
		k, roles := key(source)
		assert.Contains(t, roles, fluxRole)
		assert.False(t, seen[k], source)
		seen[k] = true
	}
	before, _ := key(debs)
	require.NoError(t, os.WriteFile(filepath.Join(debs, "b.deb"), []byte("c"), 0o644))
	after, _ := key(debs)
	assert.NotEqual(t, before, after)
}

// An image of Flux in a real registry, on loopback: only what is Flux's is taken, whiteouts of later layers count, and the archive is
// the same every time.
func TestFluxIsTakenFromAContainer(t *testing.T) {
	img, err := mutate.AppendLayers(empty.Image,
		layerOf(t, map[string]string{"usr/bin/flux": "old", "usr/bin/bash": "bash", "usr/lib/libflux-gone.so": "x", "etc/passwd": "root"}),
		layerOf(t, map[string]string{
			"usr/bin/flux": "#!/bin/sh\n", "usr/lib/x86_64-linux-gnu/libflux-core.so.2": "core", "usr/lib/.wh.libflux-gone.so": "",
			"usr/lib/python3/dist-packages/flux/__init__.py": "", "usr/lib/python3/dist-packages/_flux/_core.so": "", "usr/libexec/flux/flux-imp": "imp",
			"usr/lib/x86_64-linux-gnu/libreapi_cli.so": "", "etc/flux/security/conf.d/sign.toml": "[sign]", "usr/share/influxdb/x": "",
		}))
	require.NoError(t, err)
	img, err = mutate.ConfigFile(img, &v1.ConfigFile{Architecture: "amd64", OS: "linux", RootFS: must(img.ConfigFile()).RootFS})
	require.NoError(t, err)
	address := sources(t, nil)
	tag, err := name.ParseReference(address + "/fluxrm/flux-sched:bookworm")
	require.NoError(t, err)
	require.NoError(t, remote.Write(tag, img))
	digest, err := img.Digest()
	require.NoError(t, err)

	fetch := func(digest string) (string, error) {
		a, err := resolveFlux("docker://"+address+"/fluxrm/flux-sched:bookworm#"+digest, "debian-12")
		require.NoError(t, err)
		b := &bakery{dir: t.TempDir(), recipe: recipe{art: a}, step: progress.Start(t.Context(), "bake")}
		to := filepath.Join(b.dir, "flux.tar")
		return to, b.fluxTar(t.Context(), to)
	}
	first, err := fetch(digest.String())
	require.NoError(t, err)
	require.NoError(t, checkTar(first))
	var names []string
	require.NoError(t, eachMember(first, func(h *tar.Header, r io.Reader) error {
		if h.Typeflag == tar.TypeReg {
			names = append(names, strings.TrimPrefix(h.Name, "./"))
		}
		if strings.HasSuffix(h.Name, "bin/flux") {
			data, err := io.ReadAll(r)
			assert.Equal(t, "#!/bin/sh\n", string(data))
			return err
		}
		return nil
	}))
	assert.Equal(t, []string{
		"etc/flux/security/conf.d/sign.toml", "usr/bin/flux", "usr/lib/python3/dist-packages/_flux/_core.so",
		"usr/lib/python3/dist-packages/flux/__init__.py", "usr/lib/x86_64-linux-gnu/libflux-core.so.2", "usr/lib/x86_64-linux-gnu/libreapi_cli.so",
		"usr/libexec/flux/flux-imp",
	}, names)
	second, err := fetch(digest.String())
	require.NoError(t, err)
	a, err := fileSum(first)
	require.NoError(t, err)
	b, err := fileSum(second)
	require.NoError(t, err)
	assert.Equal(t, a, b)
	_, err = fetch("sha256:" + strings.Repeat("0", 64))
	assert.ErrorContains(t, err, "MANIFEST_UNKNOWN")
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// What a tree lacks of an artifact's libraries is named.
func TestFluxForAnotherDistributionSaysWhatItNeeds(t *testing.T) {
	self, err := os.ReadFile("/bin/ls")
	require.NoError(t, err)
	tree := t.TempDir()
	require.NoError(t, os.MkdirAll(filepath.Join(tree, "usr/lib"), 0o755))
	b := &bakery{recipe: recipe{def: Definitions()[0]}}
	artifact := tarOf(t, map[string]string{"usr/bin/flux": string(self)})
	err = b.fluxRuns(tree, artifact)
	require.ErrorContains(t, err, "libc.so.6")
	assert.ErrorContains(t, err, "another distribution")
	require.NoError(t, os.MkdirAll(filepath.Join(tree, "lib"), 0o755))
	for i, lib := range []string{"libc.so.6", "libselinux.so.1", "ld-linux-x86-64.so.2", "libcap.so.2"} {
		require.NoError(t, os.WriteFile(filepath.Join(tree, []string{"usr/lib", "lib"}[i%2], lib), nil, 0o644))
	}
	assert.NoError(t, b.fluxRuns(tree, artifact))

	foreign := bytes.Clone(self)
	foreign[18], foreign[19] = 0xF3, 0 // e_machine of RISC-V
	assert.ErrorContains(t, b.fluxRuns(tree, tarOf(t, map[string]string{"usr/bin/flux": string(foreign)})), "another processor")
}

func TestFluxPackagesOfAnotherArchitectureAreRefused(t *testing.T) {
	dir := t.TempDir()
	root := filepath.Join(dir, "root")
	require.NoError(t, os.MkdirAll(filepath.Join(root, "DEBIAN"), 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(root, "DEBIAN/control"),
		[]byte("Package: flux-core\nVersion: 1\nArchitecture: riscv64\nMaintainer: a <a@example.org>\nDescription: none\n"), 0o644))
	s := realStore(t)
	lock, err := s.lock(t.Context(), "x")
	require.NoError(t, err)
	defer lock.Close()
	b := &bakery{store: s, dir: dir, lock: lock, recipe: recipe{art: fluxArtifact{Source: filepath.Join(dir, "flux.deb")}}}
	_, err = b.run(context.Background(), []string{"dpkg-deb", "--build", root, b.art.Source})
	require.NoError(t, err)
	assert.ErrorContains(t, b.fluxTar(t.Context(), filepath.Join(dir, "flux.tar")), "is a package for riscv64")
}

// An image gets the same from packages as from a tree.
func TestRealFluxFromPackages(t *testing.T) {
	artifact := os.Getenv(FluxEnv)
	if artifact == "" {
		t.Skip(FluxEnv + " names no artifact of Flux for debian-12, to make packages of: no distribution has one")
	}
	s := realStore(t)
	root, debs := t.TempDir(), t.TempDir()
	for _, argv := range [][]string{
		{"tar", "-C", root, "-xpf", artifact},
		{"mkdir", "-p", root + "/DEBIAN", root + "-more/DEBIAN", root + "-more/usr"},
		{"mv", root + "/usr/share", root + "-more/usr/"},
		{"sh", "-c", `for p in "" -more; do printf 'Package: flux%s\nVersion: 1\nArchitecture: amd64\nMaintainer: a <a@example.org>\nDescription: none\n' "$p" >"$0$p/DEBIAN/control"; done`, root},
		{"dpkg-deb", "--build", root, debs + "/flux.deb"},
		{"dpkg-deb", "--build", root + "-more", debs + "/flux-more.deb"},
	} {
		out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput()
		require.NoError(t, err, "%v: %s", argv, out)
	}
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(root+"-more")) })
	var digests [2]string
	for i, source := range []string{artifact, debs} {
		img, err := s.Build(t.Context(), Request{Definition: "debian-12", Roles: []string{"base", "flux"}, Flux: source})
		require.NoError(t, err)
		digests[i] = img.Digest
	}
	require.Equal(t, digests[0], digests[1])
}
