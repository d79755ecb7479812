package images

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestPruneKeepsWhatManifestsName(t *testing.T) {
	s := fakeStore(t)
	s.bake = func(_ context.Context, b *bakery) error {
		b.m.Artifacts = []Artifact{{Role: "mpi", Key: "used"}}
		b.m.Packages = []Package{{Name: "p", SHA256: "used"}}
		return fakeTree(filepath.Join(b.dir, "tree"))
	}
	img, err := s.Build(t.Context(), request)
	require.NoError(t, err)
	content := make([]byte, 1<<20)
	for _, name := range []string{
		"artifacts/used.tar", "artifacts/used.tar.json", "artifacts/old.tar", "artifacts/old.tar.json",
		"packages/debian-12/used/p.deb", "packages/debian-12/old/p.deb", "packages/debian-99/used/p.deb", "bake/dead/tree/f",
	} {
		path := filepath.Join(s.dir, name)
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		require.NoError(t, os.WriteFile(path, content, 0o644))
	}
	// A bake's cache has links to the kept packages; only what stays nowhere is freed.
	require.NoError(t, os.Link(filepath.Join(s.dir, "packages/debian-12/used/p.deb"), filepath.Join(s.dir, "bake/dead/p.deb")))

	p, err := s.Prune(t.Context())
	require.NoError(t, err)
	assert.Equal(t, []string{"bake/dead"}, p.Bakes)
	assert.Equal(t, []string{"artifacts/old.tar", "artifacts/old.tar.json"}, p.Artifacts)
	assert.Equal(t, []string{"packages/debian-12/old", "packages/debian-99/used"}, p.Packages)
	assert.InDelta(t, 5<<20, p.Bytes, 1<<18)
	assert.FileExists(t, filepath.Join(s.dir, "artifacts/used.tar"))
	assert.FileExists(t, filepath.Join(s.dir, "packages/debian-12/used/p.deb"))
	require.NoError(t, s.Verify(t.Context(), img.Digest, false))

	p, err = s.Prune(t.Context())
	require.NoError(t, err)
	assert.Equal(t, Pruned{Bakes: []string{}, Images: []string{}, Artifacts: []string{}, Packages: []string{}}, p)
}

func TestPruneOfNoStoreMakesNone(t *testing.T) {
	s := fakeStore(t)
	s.dir = filepath.Join(s.dir, "none")
	_, err := s.Prune(t.Context())
	require.NoError(t, err)
	assert.NoDirExists(t, s.dir)
}

// What a bake has kept so far is named by no manifest yet.
func TestPruneWaitsForBakes(t *testing.T) {
	s := fakeStore(t)
	baking, finish := make(chan struct{}), make(chan struct{})
	s.bake = func(_ context.Context, b *bakery) error {
		close(baking)
		<-finish
		return fakeTree(filepath.Join(b.dir, "tree"))
	}
	built := make(chan error)
	go func() {
		_, err := s.Build(t.Context(), request)
		built <- err
	}()
	<-baking
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err := s.Prune(ctx)
	assert.ErrorIs(t, err, context.DeadlineExceeded)
	close(finish)
	require.NoError(t, <-built)
	_, err = s.Prune(t.Context())
	assert.NoError(t, err)
}

func TestDamagedImageIsRemovedAndBakedAnew(t *testing.T) {
	s := fakeStore(t)
	img, err := s.Build(t.Context(), request)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(img.Path, "etc/file"), []byte("other"), 0o644))
	assert.ErrorContains(t, s.Verify(t.Context(), img.Digest, false), "`bed image remove "+img.Digest+"`")
	require.NoError(t, s.Remove(t.Context(), img.Digest))
	again, err := s.Build(t.Context(), request)
	require.NoError(t, err)
	assert.Equal(t, img.Digest, again.Digest)
	assert.NoError(t, s.Verify(t.Context(), again.Digest, false))
}

func TestSizeCountsLinksOnce(t *testing.T) {
	s := fakeStore(t)
	require.NoError(t, os.WriteFile(filepath.Join(s.dir, "a"), make([]byte, 1<<20), 0o644))
	require.NoError(t, os.Link(filepath.Join(s.dir, "a"), filepath.Join(s.dir, "b")))
	size, err := s.Size(t.Context())
	require.NoError(t, err)
	assert.InDelta(t, 1<<20, size, 1<<16)
}
