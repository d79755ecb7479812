package engine_test

import (
	"bufio"
	"context"
	"encoding/json"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/bedfellow/bedfellow/pkg/bed"
	"github.com/bedfellow/bedfellow/stacks"
	"github.com/bedfellow/bedfellow/stacks/engine"
)

func clone(t *testing.T) string {
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "Pulumi.yaml"), []byte("name: bedfellow\n"), 0o644))
	return dir
}

func open(t *testing.T, dir string, settings map[string]string) *engine.Workspace {
	t.Helper()
	w, err := engine.Open(dir, "quickstart", settings)
	require.NoError(t, err)
	return w
}

func TestFind(t *testing.T) {
	dir := clone(t)
	deep := filepath.Join(dir, "a/b")
	require.NoError(t, os.MkdirAll(deep, 0o755))
	found, err := engine.Find(deep)
	require.NoError(t, err)
	assert.Equal(t, dir, found)
	// Another project's Pulumi.yaml on the way is not ours.
	require.NoError(t, os.WriteFile(filepath.Join(dir, "a/Pulumi.yaml"), []byte("name: other\n"), 0o644))
	found, err = engine.Find(deep)
	require.NoError(t, err)
	assert.Equal(t, dir, found)
}

// Opening writes nothing; a stack that was never used is its preset, and what -c says goes on top.
func TestOpen(t *testing.T) {
	dir := clone(t)
	spec, err := open(t, dir, map[string]string{"nodes": "5", "bedfellow:cpus": "2"}).Spec()
	require.NoError(t, err)
	assert.Equal(t, 5, spec.Size())
	assert.Equal(t, 2, spec.Pools[0].CPUs)
	assert.Equal(t, "nspawn", spec.Driver, "from the preset")
	_, err = os.Stat(filepath.Join(dir, ".bed"))
	assert.ErrorIs(t, err, fs.ErrNotExist)

	_, err = engine.Open(dir, "nope", nil)
	assert.ErrorContains(t, err, "there is aws-hpc7g, aws, lima-ci, lima, openstack, ovirt, quickstart, star-trek")
}

// A .bed that somebody else could have put there is refused, as it could send keys anywhere.
func TestForeignFolder(t *testing.T) {
	for name, spoil := range map[string]func(dir string) error{
		"link as .bed":  func(dir string) error { return os.Symlink(t.TempDir(), filepath.Join(dir, ".bed")) },
		"dangling link": func(dir string) error { return os.Symlink("/nowhere", filepath.Join(dir, ".bed")) },
		"link as passphrase": func(dir string) error {
			return mkdirThen(dir, func(d string) error { return os.Symlink("/etc/hostname", d+"/passphrase") })
		},
		"link as config": func(dir string) error {
			return mkdirThen(dir, func(d string) error { return os.Symlink("/etc", d+"/config") })
		},
		"writable by others":  func(dir string) error { return mkdirThen(dir, func(d string) error { return os.Chmod(d, 0o777) }) },
		"owned by other user": func(dir string) error { return mkdirThen(dir, func(d string) error { return os.Chown(d, 4242, 4242) }) },
	} {
		t.Run(name, func(t *testing.T) {
			dir := clone(t)
			if err := spoil(dir); os.IsPermission(err) {
				t.Skip("only root gives a folder away")
			}
			_, err := engine.Open(dir, "quickstart", nil)
			var problems bed.Problems
			require.ErrorAs(t, err, &problems)
			assert.Equal(t, 3, problems.ExitCode())
			assert.Contains(t, err.Error(), ".bed")
		})
	}
}

func mkdirThen(dir string, then func(string) error) error {
	if err := os.Mkdir(filepath.Join(dir, ".bed"), 0o700); err != nil {
		return err
	}
	return then(filepath.Join(dir, ".bed"))
}

// holder is this test binary as another process that holds the lock of a stack until it is killed.
func TestMain(m *testing.M) {
	if dir := os.Getenv("ENGINE_TEST_HOLD"); dir != "" {
		w, err := engine.Open(dir, "quickstart", nil)
		if err == nil {
			_, err = engine.Lock(context.Background(), w, "up")
		}
		if err != nil {
			os.Stdout.WriteString(err.Error() + "\n")
			os.Exit(1)
		}
		os.Stdout.WriteString("held\n")
		time.Sleep(time.Minute) // it is killed before
	}
	os.Exit(m.Run())
}

// A stack is one command's at a time; the second is told whose. A dead owner's lock is nobody's.
func TestLock(t *testing.T) {
	dir := clone(t)
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "ENGINE_TEST_HOLD="+dir)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	line, err := bufio.NewReader(out).ReadString('\n')
	require.NoError(t, err)
	require.Equal(t, "held\n", line)

	w := open(t, dir, nil)
	_, err = engine.Lock(t.Context(), w, "destroy")
	var problems bed.Problems
	require.ErrorAs(t, err, &problems)
	assert.Equal(t, 3, problems.ExitCode())
	assert.Contains(t, err.Error(), "`bed up` is at work")
	assert.Contains(t, err.Error(), "kill "+jsonOf(cmd.Process.Pid))

	// The state's own lock, left by an engine that is dead, goes too; one of another host is not ours to break.
	locks := filepath.Join(dir, ".bed/state/.pulumi/locks/organization/bedfellow/quickstart")
	require.NoError(t, os.MkdirAll(locks, 0o700))
	host, err := os.Hostname()
	require.NoError(t, err)
	for name, lock := range map[string]string{
		"dead.json": `{"pid":` + jsonOf(cmd.Process.Pid) + `,"hostname":` + jsonOf(host) + `}`, "torn.json": `{"pid":`, "elsewhere.json": `{"pid":1,"hostname":"another-host"}`,
	} {
		require.NoError(t, os.WriteFile(filepath.Join(locks, name), []byte(lock), 0o600))
	}
	require.NoError(t, cmd.Process.Kill())
	_ = cmd.Wait()
	unlock, err := engine.Lock(t.Context(), w, "destroy")
	require.NoError(t, err)
	unlock()
	left, err := filepath.Glob(locks + "/*")
	require.NoError(t, err)
	assert.Equal(t, []string{filepath.Join(locks, "elsewhere.json")}, left)
}

func jsonOf(v any) string {
	data, _ := json.Marshal(v)
	return string(data)
}

// What -c says is written over the preset and nothing else is, so that the next call finds it.
func TestConfigIsKept(t *testing.T) {
	dir := clone(t)
	path := filepath.Join(dir, ".bed/config/Pulumi.quickstart.yaml")
	require.NoError(t, engine.WriteConfig(open(t, dir, map[string]string{"nodes": "5"}), path))
	again := open(t, dir, nil)
	spec, err := again.Spec()
	require.NoError(t, err)
	assert.Equal(t, 5, spec.Size())
	info, err := os.Stat(path)
	require.NoError(t, err)
	assert.Equal(t, fs.FileMode(0o600), info.Mode().Perm())

	// What the engine adds to the file, its salt, stays.
	data, err := os.ReadFile(path)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(path, append(data, "encryptionsalt: v1:abc\n"...), 0o600))
	require.NoError(t, engine.WriteConfig(open(t, dir, map[string]string{"cpus": "2"}), path))
	data, err = os.ReadFile(path)
	require.NoError(t, err)
	assert.Contains(t, string(data), "encryptionsalt: v1:abc")
	assert.Contains(t, string(data), `bedfellow:nodes: "5"`)
	assert.Contains(t, string(data), `bedfellow:cpus: "2"`)
	preset, _ := stacks.Preset("quickstart")
	assert.True(t, strings.Contains(string(preset), `bedfellow:nodes: "3"`), "the preset is as it was")
}

// A stack of the user's own lies beside Pulumi.yaml, is read as a preset is, and is never written.
func TestOwnStackIsReadBesideTheProject(t *testing.T) {
	root := clone(t)
	_, err := engine.Open(root, "mine", nil)
	require.ErrorContains(t, err, filepath.Join(root, "Pulumi.mine.yaml"))
	text := []byte("config:\n  bedfellow:driver: sim\n  bedfellow:nodes: \"2\"\n")
	require.NoError(t, os.WriteFile(filepath.Join(root, "Pulumi.mine.yaml"), text, 0o644))
	w, err := engine.Open(root, "mine", map[string]string{"nodes": "4"})
	require.NoError(t, err)
	spec, err := w.Spec()
	require.NoError(t, err)
	require.Equal(t, 4, spec.Size())
	after, err := os.ReadFile(filepath.Join(root, "Pulumi.mine.yaml"))
	require.NoError(t, err)
	require.Equal(t, text, after)
}
