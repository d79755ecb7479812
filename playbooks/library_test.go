package playbooks_test

import (
	"io/fs"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"testing"
	"testing/fstest"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/bedfellow/bedfellow/pkg/ansible"
	"github.com/bedfellow/bedfellow/playbooks"
)

// writeFiles runs the module on this host, by Ansible, which is started by the prefix.
func writeFiles(t *testing.T, prefix []string, files ...map[string]any) (changed int, err error) {
	t.Helper()
	if _, err := exec.LookPath("ansible-playbook"); err != nil {
		t.Skip("ansible-playbook is not installed")
	}
	module, err := fs.ReadFile(playbooks.FS, "library/write_files.py")
	require.NoError(t, err)
	me, err := user.Current()
	require.NoError(t, err)
	for _, f := range files {
		if f["owner"] == nil {
			f["owner"] = me.Username
		}
	}
	result, err := ansible.Run{
		Playbooks: fstest.MapFS{
			"library/write_files.py": {Data: module},
			"write.yml":              {Data: []byte("- hosts: all\n  gather_facts: false\n  tasks:\n    - name: Write\n      write_files: {files: '{{ files }}'}\n")},
		},
		Playbook: "write.yml", Prefix: prefix, ExtraVars: map[string]any{"files": files},
		Inventory: map[string]any{"all": map[string]any{"hosts": map[string]any{"localhost": map[string]any{"ansible_connection": "local"}}}},
	}.Do(t.Context())
	return result.Changed, err
}

func TestWriteFiles(t *testing.T) {
	dir := t.TempDir()
	key, elsewhere, data := filepath.Join(dir, "key"), filepath.Join(dir, "elsewhere"), filepath.Join(dir, "R")
	files := func() []map[string]any {
		return []map[string]any{
			{"path": key, "content": "secret\n", "mode": "0400"},
			{"path": data, "content": map[string]any{"version": 1, "cores": []int{1, 2}}}, // as Ansible hands on text that looks like JSON
		}
	}
	require.NoError(t, os.WriteFile(elsewhere, []byte("another's\n"), 0o644))
	require.NoError(t, os.Symlink(elsewhere, key))
	is := func() {
		t.Helper()
		info, err := os.Lstat(key)
		require.NoError(t, err)
		assert.Equal(t, fs.FileMode(0o400), info.Mode())
		for path, want := range map[string]string{key: "secret\n", elsewhere: "another's\n"} {
			have, err := os.ReadFile(path)
			require.NoError(t, err)
			assert.Equal(t, want, string(have))
		}
		have, err := os.ReadFile(data)
		require.NoError(t, err)
		assert.JSONEq(t, `{"version": 1, "cores": [1, 2]}`, string(have))
		left, err := filepath.Glob(filepath.Join(dir, "*.bed-new"))
		require.NoError(t, err)
		assert.Empty(t, left)
	}
	for _, step := range []struct {
		name    string
		before  func() error
		changed int
	}{
		{"a link is replaced and not followed", func() error { return nil }, 1},
		{"nothing to do", func() error { return nil }, 0},
		{"a mode that anybody may read by", func() error { return os.Chmod(key, 0o644) }, 1},
		{"a run that was cut short", func() error { return os.WriteFile(data+".bed-new", []byte("half"), 0o600) }, 0},
		{"cut short before the move", func() error { return os.Remove(data) }, 1},
	} {
		require.NoError(t, step.before(), step.name)
		changed, err := writeFiles(t, nil, files()...)
		require.NoError(t, err, step.name)
		assert.Equal(t, step.changed, changed, step.name)
		if step.name != "a run that was cut short" {
			is()
		}
	}
}

func TestWriteFilesSaysWhatIsWrong(t *testing.T) {
	dir := t.TempDir()
	for want, file := range map[string]map[string]any{
		filepath.Join(dir, "missing/file"): {"path": filepath.Join(dir, "missing/file"), "content": "the secret of this test"},
		"nobody-of-this-name":              {"path": filepath.Join(dir, "file"), "content": "the secret of this test", "owner": "nobody-of-this-name"},
		"mode rwx":                         {"path": filepath.Join(dir, "file"), "content": "the secret of this test", "mode": "rwx"},
	} {
		_, err := writeFiles(t, nil, file)
		require.ErrorContains(t, err, want)
		assert.NotContains(t, err.Error(), "the secret of this test")
	}
}

func TestWriteFilesWritesThroughAMount(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can mount")
	}
	dir := t.TempDir()
	hosts, mount := filepath.Join(dir, "hosts"), filepath.Join(dir, "mount")
	for _, path := range []string{hosts, mount} {
		require.NoError(t, os.WriteFile(path, nil, 0o644))
	}
	prefix := []string{"unshare", "--mount", "sh", "-euc", `mount --bind "$0" "$1"; shift; exec "$@"`, hosts, mount}
	_, err := writeFiles(t, prefix, map[string]any{"path": mount, "content": "nodes\n"})
	require.ErrorContains(t, err, "busy")
	changed, err := writeFiles(t, prefix, map[string]any{"path": mount, "content": "nodes\n", "mount": true})
	require.NoError(t, err)
	assert.Equal(t, 1, changed)
	have, err := os.ReadFile(hosts)
	require.NoError(t, err)
	assert.Equal(t, "nodes\n", string(have))
}
