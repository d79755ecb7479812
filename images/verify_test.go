package images

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/bedfellow/bedfellow/pkg/hosttest"
)

// keepingStore bakes the usual three files and keeps a package and a list, as if fetched.
func keepingStore(t *testing.T) (*Store, Image) {
	t.Helper()
	s := fakeStore(t)
	s.bake = func(_ context.Context, b *bakery) error {
		var kept []Kept
		for _, name := range []string{"lists.tar.gz", "p_1_all.deb"} {
			path := filepath.Join(b.dir, name)
			if err := os.WriteFile(path, []byte(name), 0o644); err != nil {
				return err
			}
			k, err := b.keepFile(path)
			if err != nil {
				return err
			}
			kept = append(kept, k)
		}
		b.m.Lists = kept[0]
		b.m.Packages = []Package{{Name: "p", Version: "1", Architecture: "all", SHA256: kept[1].SHA256}}
		b.m.Tools = map[string]string{"mmdebstrap": "mmdebstrap 1"}
		return fakeTree(filepath.Join(b.dir, "tree"))
	}
	img, err := s.Build(t.Context(), request)
	require.NoError(t, err)
	return s, img
}

func TestRebakeNamesWhatDiffers(t *testing.T) {
	s, img := keepingStore(t)
	s.bake = func(_ context.Context, b *bakery) error {
		b.m.Tools = map[string]string{"mmdebstrap": "mmdebstrap 2"}
		etc := filepath.Join(b.dir, "tree/etc")
		return errors.Join(fakeTree(filepath.Dir(etc)),
			os.WriteFile(filepath.Join(etc, "file"), []byte("contenT"), 0o644), os.Chmod(filepath.Join(etc, "other"), 0o640),
			relink(filepath.Join(etc, "link")), os.WriteFile(filepath.Join(etc, "new"), nil, 0o644))
	}
	err := s.Rebake(t.Context(), img.Digest)
	for _, want := range []string{
		"etc/file differs in content;", "etc/link differs in target;", "etc/new was added;", "etc/other differs in mode;",
		`"mmdebstrap 1", and this host has "mmdebstrap 2"`, "debian-12", img.Digest,
	} {
		assert.ErrorContains(t, err, want)
	}
	s.bake = func(_ context.Context, b *bakery) error { return os.MkdirAll(filepath.Join(b.dir, "tree"), 0o755) }
	assert.ErrorContains(t, s.Rebake(t.Context(), img.Digest), "etc/file is missing")
	assertUntouched(t, s, img)
}

func TestRebakeOfTheSameIsWell(t *testing.T) {
	s, img := keepingStore(t)
	s.bake = func(_ context.Context, b *bakery) error {
		assert.NotEqual(t, s.bakeDir(img.Key), b.dir, "a bake of the image under way stays its own")
		return fakeTree(filepath.Join(b.dir, "tree"))
	}
	require.NoError(t, s.Rebake(t.Context(), img.Digest))
	assertUntouched(t, s, img)
}

func TestRebakeThatFailsOrIsInterruptedLeavesNothing(t *testing.T) {
	s, img := keepingStore(t)
	ctx, interrupt := context.WithCancelCause(t.Context())
	reason := errors.New("interrupt")
	s.bake = func(ctx context.Context, b *bakery) error {
		interrupt(reason)
		return errors.Join(fakeTree(filepath.Join(b.dir, "tree")), context.Cause(ctx))
	}
	require.ErrorIs(t, s.Rebake(ctx, img.Digest), reason)
	assertUntouched(t, s, img)
	// One that was killed has left its directory.
	require.NoError(t, os.MkdirAll(filepath.Join(s.bakeDir("verify-"+img.Key), "tree"), 0o755))
	require.NoError(t, s.Sweep(t.Context()))
	assertUntouched(t, s, img)
}

// assertUntouched asserts that the image is as it was baked and that nothing half-made lies beside it.
func assertUntouched(t *testing.T, s *Store, img Image) {
	t.Helper()
	assert.NoError(t, s.Verify(t.Context(), img.Digest, false))
	left, err := filepath.Glob(filepath.Join(s.dir, "bake/*"))
	require.NoError(t, err)
	assert.Empty(t, left)
	list, err := s.List(t.Context())
	require.NoError(t, err)
	assert.Equal(t, []Image{img}, list)
}

// A kept file that was changed or lost is told before anything is baked.
func TestRebakeNeedsAllThatWasKept(t *testing.T) {
	for _, k := range []string{"lists.tar.gz", "p_1_all.deb"} {
		s, img := keepingStore(t)
		s.bake = func(context.Context, *bakery) error { return errors.New("it baked") }
		path, err := filepath.Glob(filepath.Join(s.dir, "packages/debian-12/*", k))
		require.NoError(t, err)
		require.Len(t, path, 1)
		require.NoError(t, os.WriteFile(path[0], []byte(strings.ToUpper(k)), 0o644))
		err = s.Rebake(t.Context(), img.Digest)
		require.ErrorIs(t, err, ErrCannotRebake)
		assert.ErrorContains(t, err, path[0])
		require.NoError(t, os.Remove(path[0]))
		err = s.Rebake(t.Context(), img.Digest)
		require.ErrorIs(t, err, ErrCannotRebake)
		assert.ErrorContains(t, err, path[0])
	}
}

func TestRebakeNamesInputsOfAnotherVersion(t *testing.T) {
	s, img := keepingStore(t)
	path := filepath.Join(s.dir, img.Key, "manifest.json")
	data, err := os.ReadFile(path)
	require.NoError(t, err)
	other := strings.Repeat("0", len(img.Key))
	text := strings.ReplaceAll(string(data), img.Key, other)
	text = regexp.MustCompile(`"roles/mpi/tasks/bake.yml": "\w+"`).ReplaceAllString(text, `"roles/mpi/tasks/gone.yml": "00"`)
	require.NoError(t, os.WriteFile(path, []byte(text), 0o644))
	require.NoError(t, os.Rename(filepath.Dir(path), filepath.Join(s.dir, other)))
	err = s.Rebake(t.Context(), img.Digest)
	require.ErrorIs(t, err, ErrCannotRebake)
	assert.ErrorContains(t, err, "(roles/mpi/tasks/bake.yml, roles/mpi/tasks/gone.yml)")
}

// A real bake, and the same again in a network namespace that has a loopback and nothing else.
func TestRebakeWithoutANetworkGivesTheSame(t *testing.T) {
	s := realStore(t)
	if free, where := s.free(); free < needBytes {
		hosttest.Lacks(t, "room for a bake in "+where)
	}
	img, err := s.Build(t.Context(), Request{Definition: "debian-12", Roles: []string{"base"}})
	require.NoError(t, err)
	baked := false
	s.bake = func(ctx context.Context, b *bakery) error {
		devices, err := b.run(ctx, b.contained("cat /proc/net/dev"))
		require.NoError(t, err)
		assert.Equal(t, []string{"lo:"}, regexp.MustCompile(`\S+:`).FindAllString(devices, -1))
		baked = true
		return bake(ctx, b)
	}
	require.NoError(t, s.Rebake(t.Context(), img.Digest))
	assert.True(t, baked)
	assertUntouched(t, s, img)
	p, err := s.Prune(t.Context())
	require.NoError(t, err)
	assert.Empty(t, p.Packages, "what the image was made from stays with it")

	// One byte of one package: told as it is, and where the manifest was changed to agree, nothing the same comes of it.
	i := slices.IndexFunc(img.Manifest.Packages, func(p Package) bool { return p.Name == "base-files" })
	require.GreaterOrEqual(t, i, 0)
	deb := filepath.Join(s.dir, "packages/debian-12", img.Manifest.Packages[i].SHA256, img.Manifest.Packages[i].file())
	data, err := os.ReadFile(deb)
	require.NoError(t, err)
	data[len(data)/2] ^= 1
	require.NoError(t, os.Remove(deb)) // other names of the file keep what they have
	require.NoError(t, os.WriteFile(deb, data, 0o644))
	require.ErrorIs(t, s.Rebake(t.Context(), img.Digest), ErrCannotRebake)
	sum, err := fileSum(deb)
	require.NoError(t, err)
	require.NoError(t, os.Rename(filepath.Dir(deb), filepath.Join(s.dir, "packages/debian-12", sum)))
	manifest := filepath.Join(s.dir, img.Key, "manifest.json")
	text, err := os.ReadFile(manifest)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(manifest, []byte(strings.ReplaceAll(string(text), img.Manifest.Packages[i].SHA256, sum)), 0o644))
	err = s.Rebake(t.Context(), img.Digest)
	require.Error(t, err)
	require.NotErrorIs(t, err, ErrCannotRebake)
	assert.ErrorContains(t, err, "base-files")
}
