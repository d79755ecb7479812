package images

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/bedfellow/bedfellow/pkg/hosttest"
)

// realStore bakes as users do.
func realStore(t *testing.T) *Store {
	t.Helper()
	if os.Geteuid() != 0 {
		hosttest.Lacks(t, "root")
	}
	for _, tool := range tools {
		if _, err := exec.LookPath(tool.Program); err != nil {
			hosttest.Lacks(t, tool.Program)
		}
	}
	if keyring := Definitions()[0].keyring(); !exists(keyring) {
		hosttest.Lacks(t, keyring)
	}
	s, err := Open(t.TempDir())
	require.NoError(t, err)
	return s
}

// noBakeLeft asserts that nothing half-made is in the store.
func noBakeLeft(t *testing.T, s *Store) {
	t.Helper()
	for _, pattern := range []string{"bake/*", "packages/*/*", "artifacts/*", "*/manifest.json"} {
		left, err := filepath.Glob(filepath.Join(s.dir, pattern))
		require.NoError(t, err)
		assert.Empty(t, left)
	}
}

func TestArchiveThatDoesNotAnswerSaysWhatToTry(t *testing.T) {
	s := realStore(t)
	if free, where := s.free(); free < needBytes {
		hosttest.Lacks(t, "room for a bake in "+where)
	}
	t.Setenv("no_proxy", "127.0.0.1")
	s.Mirror = "http://127.0.0.1:9/" // discard; nobody listens
	start := time.Now()
	_, err := s.Build(t.Context(), request)
	require.ErrorIs(t, err, ErrNoArchive)
	for _, want := range []string{"apt-get update", "http_proxy", "BEDFELLOW_MIRROR", "127.0.0.1:9"} {
		assert.ErrorContains(t, err, want)
	}
	assert.Less(t, time.Since(start), 30*time.Second)
	noBakeLeft(t, s)
}

// Ctrl-C in a real bake ends it and all it started, and leaves nothing half-made.
func TestInterruptedBakeLeavesNothing(t *testing.T) {
	s := realStore(t)
	if free, where := s.free(); free < needBytes {
		hosttest.Lacks(t, "room for a bake in "+where)
	}
	ctx, interrupt := context.WithCancelCause(t.Context())
	reason := errors.New("interrupt")
	base := func() bool { // mmdebstrap has begun to unpack
		found, _ := filepath.Glob(filepath.Join(s.dir, "bake", "*", "*", "usr", "bin", "dpkg"))
		return len(found) > 0
	}
	go func() {
		for ctx.Err() == nil && !base() {
			time.Sleep(50 * time.Millisecond) // a poll; the bake itself ends it
		}
		interrupt(reason)
	}()
	_, err := s.Build(ctx, request)
	require.ErrorIs(t, err, reason)
	noBakeLeft(t, s)
	mounts, err := os.ReadFile("/proc/self/mounts")
	require.NoError(t, err)
	assert.NotContains(t, string(mounts), s.dir)
	lines, err := filepath.Glob("/proc/[0-9]*/cmdline")
	require.NoError(t, err)
	for _, path := range lines {
		line, _ := os.ReadFile(path)
		assert.NotContains(t, string(line), s.dir, "still at work: %s", path)
	}
}

func TestNoSpaceSaysWhereAndHowMuch(t *testing.T) {
	s := realStore(t)
	mount(t, "tmpfs", s.dir, "size=64m")
	for most, r := range map[string]Request{"3072 MiB": request, "6144 MiB": Bundle("kubernetes")} {
		_, err := s.Build(t.Context(), r)
		require.ErrorIs(t, err, ErrNoSpace)
		for _, want := range []string{"the filesystem at " + s.dir, "64 MiB free", "takes up to " + most} {
			assert.ErrorContains(t, err, want)
		}
	}
	noBakeLeft(t, s)
}

// mount mounts something without a device until the test ends.
func mount(t *testing.T, kind, target, options string) {
	t.Helper()
	if err := syscall.Mount(kind, target, kind, 0, options); err != nil {
		hosttest.Lacks(t, kind+" mounts: "+err.Error())
	}
	t.Cleanup(func() { assert.NoError(t, syscall.Unmount(target, syscall.MNT_DETACH)) })
}

func TestRemoveRefusesWhatNodesRunOn(t *testing.T) {
	if os.Geteuid() != 0 {
		hosttest.Lacks(t, "root")
	}
	s := fakeStore(t)
	s.dir = filepath.Join(s.dir, "a b:c") // both are escaped in the mount table
	img, err := s.Build(t.Context(), request)
	require.NoError(t, err)
	node, other := filepath.Join(t.TempDir(), "a node"), t.TempDir()
	require.NoError(t, os.Mkdir(node, 0o755))

	t.Run("mounted", func(t *testing.T) {
		mount(t, "overlay", node, "lowerdir="+other+":"+strings.ReplaceAll(img.Path, ":", `\:`))
		err := s.Remove(t.Context(), img.Digest)
		require.ErrorIs(t, err, ErrInUse)
		assert.ErrorContains(t, err, node)
		assert.ErrorContains(t, err, "bed destroy")
		assert.NoError(t, s.Verify(t.Context(), img.Digest, false))

		require.NoError(t, os.WriteFile(filepath.Join(s.dir, img.Key, "manifest.json"), []byte("{"), 0o644))
		_, err = s.Prune(t.Context())
		require.ErrorIs(t, err, ErrInUse)
		assert.DirExists(t, img.Path)
	})
	p, err := s.Prune(t.Context())
	require.NoError(t, err)
	assert.Equal(t, []string{img.Key}, p.Images)
	assert.NoDirExists(t, img.Path)
}

// What a stopped machine holds lies over an image's disk, which no process has open then.
func TestRemoveRefusesWhatIsUnderAStoppedMachine(t *testing.T) {
	s := fakeStore(t)
	img, err := s.Build(t.Context(), request)
	require.NoError(t, err)
	s.Over = func(path string) []string {
		assert.Equal(t, filepath.Join(s.dir, img.Key, "vm/disk.qcow2"), path)
		return []string{"x-01", "x-02"}
	}
	err = s.Remove(t.Context(), img.Digest)
	require.ErrorIs(t, err, ErrInUse)
	assert.ErrorContains(t, err, "x-01, x-02")
	assert.DirExists(t, img.Path)
	s.Over = func(string) []string { return nil }
	require.NoError(t, s.Remove(t.Context(), img.Digest))
	assert.NoDirExists(t, img.Path)
}

func TestLowerLayers(t *testing.T) {
	for _, c := range []struct {
		line, point string
		layers      []string
	}{
		{`overlay /n overlay rw,relatime,lowerdir=/a,upperdir=/u,workdir=/w 0 0`, "/n", []string{"/a"}},
		{`overlay /n overlay ro,lowerdir=/a:/b\134:c::/d\040e 0 0`, "/n", []string{"/a", "/b:c", "/d e"}},
		{`x /a\040node overlay rw,lowerdir+=/a\054b:c,lowerdir+=/d,datadir+=/e 0 0`, "/a node", []string{"/a,b:c", "/d", "/e"}},
		{`overlay /n overlay rw,upperdir=/lowerdir=/a 0 0`, "/n", nil},
		{`/dev/sda1 /n ext4 rw,lowerdir=/a 0 0`, "", nil},
		{``, "", nil},
	} {
		point, layers := lowerLayers(c.line)
		assert.Equal(t, c.point, point, c.line)
		assert.Equal(t, c.layers, layers, c.line)
	}
}

func TestMissingKeyringNamesItsPackage(t *testing.T) {
	s := fakeStore(t)
	err := s.preflight(recipe{def: Definition{Name: "nosuch-1", Distribution: "nosuch", Keyring: "nosuch-keyring"}})
	require.ErrorIs(t, err, ErrMissing)
	assert.ErrorContains(t, err, "/usr/share/keyrings/nosuch-archive-keyring.gpg")
	assert.Regexp(t, `apt-get install .*\bnosuch-keyring\b`, err.Error())
}

func TestProgramsOfABakeBearTheMark(t *testing.T) {
	s := fakeStore(t)
	lock, err := s.tryLock("x", syscall.LOCK_EX)
	require.NoError(t, err)
	defer lock.Close()
	b := &bakery{store: s, lock: lock}
	for _, mark := range []string{"0123abcd", ""} {
		t.Setenv("BEDFELLOW_MARK", mark)
		environ, err := b.run(t.Context(), []string{"/bin/sh", "-c", "cat /proc/$$/environ"})
		require.NoError(t, err)
		assert.Equal(t, mark != "", strings.Contains(environ, "\x00BEDFELLOW_MARK="+mark+"\x00"))
		assert.Equal(t, mark != "", strings.Contains(environ, "BEDFELLOW_MARK"))
	}
}

// Nothing of a bake is in the home of who bakes.
func TestToolVersionsLeaveHomeAlone(t *testing.T) {
	if _, err := exec.LookPath("ansible-playbook"); err != nil {
		hosttest.Lacks(t, "ansible-playbook")
	}
	home := t.TempDir()
	t.Setenv("HOME", home)
	versions := toolVersions(t.Context(), t.TempDir())
	assert.Contains(t, versions["ansible-playbook"], "ansible-playbook")
	left, err := os.ReadDir(home)
	require.NoError(t, err)
	assert.Empty(t, left)
}
