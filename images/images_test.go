package images

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/fstest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/bedfellow/bedfellow/pkg/bed"
	"github.com/bedfellow/bedfellow/pkg/progress"
	"github.com/bedfellow/bedfellow/playbooks"
)

var request = Request{Definition: "debian-12", Roles: []string{"mpi", "base"}}

// fakeStore bakes a tree of three files.
func fakeStore(t *testing.T) *Store {
	t.Helper()
	s, err := Open(t.TempDir())
	require.NoError(t, err)
	s.bake = func(_ context.Context, b *bakery) error { return fakeTree(filepath.Join(b.dir, "tree")) }
	return s
}

func fakeTree(tree string) error {
	return errors.Join(
		os.MkdirAll(filepath.Join(tree, "etc"), 0o755),
		os.WriteFile(filepath.Join(tree, "etc/file"), []byte("content"), 0o644),
		os.WriteFile(filepath.Join(tree, "etc/other"), nil, 0o600),
		os.Symlink("file", filepath.Join(tree, "etc/link")),
	)
}

func TestBuildKeepsByKey(t *testing.T) {
	s := fakeStore(t)
	_, ok, err := s.Get(t.Context(), request)
	require.NoError(t, err)
	assert.False(t, ok)

	made, err := s.Build(t.Context(), request)
	require.NoError(t, err)
	assert.Equal(t, []string{"base", "mpi"}, made.Roles, "in the order they are baked")
	assert.FileExists(t, filepath.Join(made.Path, "etc/file"))
	assert.NotEmpty(t, made.Manifest.Inputs["roles/mpi/tasks/bake.yml"])

	s.bake = func(context.Context, *bakery) error { return errors.New("baked twice") }
	again, err := s.Build(t.Context(), Request{Definition: "debian-12", Roles: []string{"base", "mpi"}})
	require.NoError(t, err)
	assert.Equal(t, made, again)
	list, err := s.List(t.Context())
	require.NoError(t, err)
	assert.Equal(t, []Image{made}, list)

	require.NoError(t, s.Remove(t.Context(), made.Digest[:20]))
	_, ok, err = s.Get(t.Context(), request)
	require.NoError(t, err)
	assert.False(t, ok)
	assert.ErrorIs(t, s.Remove(t.Context(), made.Digest), ErrNotFound)
}

func TestUnknownRequestsSayWhatThereIs(t *testing.T) {
	s := fakeStore(t)
	_, err := s.Build(t.Context(), Request{Definition: "debian-99"})
	assert.ErrorContains(t, err, "debian-12")
	_, err = s.Build(t.Context(), Request{Definition: "debian-12", Roles: []string{"slrum"}})
	assert.ErrorContains(t, err, "slurm")
}

func TestFailedBuildLeavesNothing(t *testing.T) {
	s := fakeStore(t)
	s.bake = func(_ context.Context, b *bakery) error {
		return errors.Join(fakeTree(filepath.Join(b.dir, "tree")), syscall.ENOSPC)
	}
	_, err := s.Build(t.Context(), request)
	require.ErrorIs(t, err, ErrNoSpace)
	assert.ErrorContains(t, err, "MiB free")
	left, err := os.ReadDir(filepath.Join(s.dir, "bake"))
	require.NoError(t, err)
	assert.Empty(t, left)
}

func TestTwoBuildsShareOneBake(t *testing.T) {
	s := fakeStore(t)
	var bakes atomic.Int32
	waiting := make(chan struct{})
	s.bake = func(_ context.Context, b *bakery) error {
		bakes.Add(1)
		<-waiting
		return fakeTree(filepath.Join(b.dir, "tree"))
	}
	var once sync.Once
	ctx := progress.With(t.Context(), func(e progress.Event) {
		if strings.Contains(e.Detail, "waiting for another bake") {
			once.Do(func() { close(waiting) })
		}
	})
	var wg sync.WaitGroup
	digests := make([]string, 2)
	for i := range digests {
		wg.Go(func() {
			img, err := s.Build(ctx, request)
			assert.NoError(t, err)
			digests[i] = img.Digest
		})
	}
	wg.Wait()
	assert.EqualValues(t, 1, bakes.Load())
	assert.Equal(t, digests[0], digests[1])
}

func TestWaitingForAnotherBakeEndsWithItsContext(t *testing.T) {
	s := fakeStore(t)
	key, _, err := recipe{def: Definitions()[0], format: bed.Tree, roles: []string{"base", "mpi"}}.key(playbooks.FS)
	require.NoError(t, err)
	lock, err := s.tryLock(key, syscall.LOCK_EX)
	require.NoError(t, err)
	defer lock.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err = s.Build(ctx, request)
	assert.ErrorIs(t, err, context.DeadlineExceeded)
}

func TestSweepRemovesDeadBakesOnly(t *testing.T) {
	s := fakeStore(t)
	for _, key := range []string{"dead", "alive"} {
		require.NoError(t, os.MkdirAll(filepath.Join(s.bakeDir(key), "tree/etc"), 0o755))
	}
	lock, err := s.tryLock("alive", syscall.LOCK_EX)
	require.NoError(t, err)
	defer lock.Close()
	require.NoError(t, s.Sweep(t.Context()))
	assert.NoDirExists(t, s.bakeDir("dead"))
	assert.DirExists(t, s.bakeDir("alive"))
}

func TestVerifyNamesWhatChanged(t *testing.T) {
	write := func(path, content string) error { return os.WriteFile(path, []byte(content), 0o644) }
	for name, c := range map[string]struct {
		change func(etc string) error
		path   string
		quick  bool // sees it
	}{
		"a byte, with the time kept": {func(etc string) error {
			file := filepath.Join(etc, "file")
			info, err := os.Stat(file)
			if err != nil {
				return err
			}
			return errors.Join(write(file, "contenT"), os.Chtimes(file, info.ModTime(), info.ModTime()))
		}, "etc/file", false},
		"size":    {func(etc string) error { return write(filepath.Join(etc, "file"), "longer content") }, "etc/file", true},
		"mode":    {func(etc string) error { return os.Chmod(filepath.Join(etc, "other"), 0o644) }, "etc/other", true},
		"link":    {func(etc string) error { return relink(filepath.Join(etc, "link")) }, "etc/link", true},
		"added":   {func(etc string) error { return write(filepath.Join(etc, "aaa"), "") }, "etc/aaa", true},
		"missing": {func(etc string) error { return os.Remove(filepath.Join(etc, "other")) }, "etc/other", true},
	} {
		t.Run(name, func(t *testing.T) {
			s := fakeStore(t)
			img, err := s.Build(t.Context(), request)
			require.NoError(t, err)
			require.NoError(t, s.Verify(t.Context(), img.Digest, false))
			require.NoError(t, s.Verify(t.Context(), img.Digest, true))
			require.NoError(t, c.change(filepath.Join(img.Path, "etc")))
			assert.ErrorContains(t, s.Verify(t.Context(), img.Digest, false), c.path)
			if c.quick {
				assert.ErrorContains(t, s.Verify(t.Context(), img.Digest, true), c.path)
			}
		})
	}
}

func relink(path string) error { return errors.Join(os.Remove(path), os.Symlink("other", path)) }

func TestDamagedManifestSaysWhatToDo(t *testing.T) {
	s := fakeStore(t)
	img, err := s.Build(t.Context(), request)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(s.dir, img.Key, "manifest.json"), []byte("{"), 0o644))
	_, _, err = s.Get(t.Context(), request)
	assert.ErrorContains(t, err, "bed image prune")
	_, err = s.Prune(t.Context())
	require.NoError(t, err)
	_, err = s.Build(t.Context(), request)
	assert.NoError(t, err)
}

func TestKeyFollowsWhatGoesIn(t *testing.T) {
	files := fstest.MapFS{}
	for _, name := range []string{
		"bake.yml", "build.yml", "roles/a/tasks/bake.yml", "roles/a/tasks/build.yml", "roles/a/tasks/configure.yml", "roles/a/defaults/main.yml",
		"roles/a/files/f", "roles/a/files/build/f", "roles/a/templates/t", "roles/a/vars/build.yml", "roles/a/meta/argument_specs.yml", "roles/b/tasks/bake.yml",
	} {
		files[name] = &fstest.MapFile{Data: []byte(name)}
	}
	bakes, err := roleFiles(files, []string{"a"}, "bake")
	require.NoError(t, err)
	assert.Equal(t, []string{"bake.yml", "roles/a/defaults/main.yml", "roles/a/files/f", "roles/a/tasks/bake.yml"}, sortedKeys(bakes))
	builds, err := roleFiles(files, []string{"a"}, "build")
	require.NoError(t, err)
	assert.Equal(t, []string{"build.yml", "roles/a/defaults/main.yml", "roles/a/files/build/f", "roles/a/tasks/build.yml", "roles/a/vars/build.yml"}, sortedKeys(builds))
	files["roles/a/files/f"] = &fstest.MapFile{Data: []byte("changed")}
	changed, err := roleFiles(files, []string{"a"}, "bake")
	require.NoError(t, err)
	assert.NotEqual(t, digestOf(bakes), digestOf(changed))
}

func TestCleanLeavesNoIdentity(t *testing.T) {
	tree := t.TempDir()
	files := map[string]string{
		"etc/machine-id": "0123", "etc/ssh/ssh_host_ed25519_key": "key", "etc/munge/munge.key": "key", "var/lib/systemd/random-seed": "seed",
		"var/log/dpkg.log": "today", "var/lib/apt/extended_states": "Package: a\nAuto-Installed: 1\n", "etc/apt/sources.list": "deb a b\ndeb-src a b\n", "etc/shadow": "root:*:20000:0:99999:7:::\n", "usr/bin/true": "",
	}
	for name, content := range files {
		require.NoError(t, os.MkdirAll(filepath.Dir(filepath.Join(tree, name)), 0o755))
		require.NoError(t, os.WriteFile(filepath.Join(tree, name), []byte(content), 0o640))
	}
	epoch := time.Unix(86400*100+7, 0)
	require.NoError(t, clean(tree, epoch))
	for _, gone := range []string{"etc/ssh/ssh_host_ed25519_key", "etc/munge/munge.key", "var/lib/systemd/random-seed", "var/log/dpkg.log", "var/lib/apt/extended_states"} {
		assert.NoFileExists(t, filepath.Join(tree, gone))
	}
	for name, want := range map[string]string{"etc/machine-id": "", "etc/apt/sources.list": "deb a b\n", "etc/shadow": "root:*:100:0:99999:7:::\n"} {
		got, err := os.ReadFile(filepath.Join(tree, name))
		require.NoError(t, err)
		assert.Equal(t, want, string(got), name)
	}
	info, err := os.Stat(filepath.Join(tree, "etc/shadow"))
	require.NoError(t, err)
	assert.Equal(t, fs.FileMode(0o640), info.Mode())
	require.NoError(t, filepath.WalkDir(tree, func(path string, d fs.DirEntry, err error) error {
		info, e := d.Info()
		assert.False(t, info.ModTime().After(epoch), path)
		return errors.Join(err, e)
	}))
}

// Looks into the images that are there; an image takes minutes to bake.
func TestImagesHoldNoSecretAndNoIdentity(t *testing.T) {
	s, err := Open(os.Getenv("BEDFELLOW_TEST_IMAGES"))
	require.NoError(t, err)
	list, err := s.List(t.Context())
	require.NoError(t, err)
	if len(list) == 0 || os.Geteuid() != 0 {
		t.Skipf("needs root and an image in %s (BEDFELLOW_TEST_IMAGES names another store)", s.Dir())
	}
	for _, img := range list {
		entries, err := readEntries(filepath.Join(s.dir, img.Key, "files"))
		require.NoError(t, err)
		for _, e := range entries {
			base := filepath.Base(e.Path)
			switch {
			case strings.HasPrefix(base, "ssh_host_"), base == "munge.key", base == "random-seed", base == "authorized_keys", base == "id_ed25519":
				t.Errorf("%s holds %s", img.Definition, e.Path)
			case e.Path == "etc/machine-id":
				assert.Zero(t, e.Size, e.Path)
			case img.Format == bed.Tree && e.Mode&syscall.S_IFMT == syscall.S_IFREG && e.Size < 1<<16 && strings.HasPrefix(e.Path, "etc/"):
				data, err := os.ReadFile(filepath.Join(img.Path, e.Path))
				require.NoError(t, err)
				assert.NotContains(t, string(data), "PRIVATE KEY", e.Path)
			}
		}
	}
}
