package images

import (
	"bytes"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"reflect"
	"slices"
	"testing"
	"testing/fstest"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/bedfellow/bedfellow/pkg/bed"
	"github.com/bedfellow/bedfellow/playbooks"
)

// copyFS is a copy of the playbooks that can be changed.
func copyFS(t *testing.T) fstest.MapFS {
	t.Helper()
	files := fstest.MapFS{}
	require.NoError(t, fs.WalkDir(playbooks.FS, ".", func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := fs.ReadFile(playbooks.FS, p)
		files[p] = &fstest.MapFile{Data: data}
		return err
	}))
	return files
}

// A changed byte in a file of the playbooks changes the image's key, unless only the configuration of nodes reads the file.
func TestEveryByteOfAnInputIsInTheKey(t *testing.T) {
	files, def, roles := copyFS(t), Definitions()[0], playbooks.Roles()
	was, inputs, err := recipe{def: def, format: bed.Tree, roles: roles}.key(files)
	require.NoError(t, err)
	outside := []string{"configure.yml", "cluster.yml", "jobs.yml"} // by which a bed is configured
	for p, file := range files {
		data := file.Data
		require.NotEmpty(t, data, p)
		for _, at := range []int{0, len(data) / 2, len(data) - 1} {
			file.Data = bytes.Clone(data)
			file.Data[at] ^= 1
			key, _, err := recipe{def: def, format: bed.Tree, roles: roles}.key(files)
			require.NoError(t, err)
			if p == "site.yml" || slices.Contains(outside, path.Base(p)) || path.Base(path.Dir(p)) == "templates" || path.Base(path.Dir(p)) == "meta" || path.Dir(p) == "library" {
				assert.Equal(t, was, key, p)
			} else {
				assert.NotEqual(t, was, key, p)
				assert.Contains(t, inputs, p)
			}
		}
		file.Data = data
	}
}

// What is in an image as a container of its own is in its key too.
func TestAContainersFilesAreInTheKeyOfItsNode(t *testing.T) {
	files := copyFS(t)
	key := func(role string) string {
		k, _, err := recipe{def: Definitions()[1], format: bed.VM, roles: []string{role}}.key(files)
		require.NoError(t, err)
		return k
	}
	for p, roles := range map[string][]string{
		"roles/kubernetes/files/entrypoint": {usernetesRole}, "roles/kubernetes/tasks/bake.yml": {usernetesRole}, "roles/ml_server/files/server.py": {usernetesRole, kubernetesRole},
	} {
		for _, role := range roles {
			was, data := key(role), files[p].Data
			files[p].Data = append(bytes.Clone(data), '#')
			assert.NotEqual(t, was, key(role), "%s in %s", p, role)
			files[p].Data = data
		}
	}
}

// Every field of a definition, and the roles, are in the key.
func TestEveryFieldOfTheDefinitionIsInTheKey(t *testing.T) {
	key := func(def Definition, roles []string) string {
		k, _, err := recipe{def: def, format: bed.Tree, roles: roles}.key(playbooks.FS)
		require.NoError(t, err)
		return k
	}
	def, roles := Definitions()[0], []string{"base", "slurm"}
	was := key(def, roles)
	for i := range reflect.TypeFor[Definition]().NumField() {
		other := def
		other.Components = append([]string{}, def.Components...)
		change(t, reflect.ValueOf(&other).Elem().Field(i))
		assert.NotEqual(t, was, key(other, roles), reflect.TypeFor[Definition]().Field(i).Name)
	}
	assert.NotEqual(t, was, key(def, []string{"base"}))
}

// Every fact of a path but a file's time is in the digest, so that a package with a byte changed gives another image.
func TestEveryFactOfAPathIsInTheDigest(t *testing.T) {
	was := entry{Path: "usr/bin/p", Mode: 0o100755, Size: 1, SHA256: "00"}
	for i := range reflect.TypeFor[entry]().NumField() {
		other, name := was, reflect.TypeFor[entry]().Field(i).Name
		change(t, reflect.ValueOf(&other).Elem().Field(i))
		if name == "MTime" {
			assert.Equal(t, digestTree([]entry{was}), digestTree([]entry{other}))
		} else {
			assert.NotEqual(t, digestTree([]entry{was}), digestTree([]entry{other}), name)
		}
	}
	tree := t.TempDir()
	require.NoError(t, fakeTree(tree))
	whole, err := scan(t.Context(), tree, true)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(tree, "etc/file"), []byte("contenT"), 0o644))
	changed, err := scan(t.Context(), tree, true)
	require.NoError(t, err)
	assert.NotEqual(t, digestTree(whole), digestTree(changed))
}

// change gives a field another value.
func change(t *testing.T, v reflect.Value) {
	t.Helper()
	switch v.Kind() {
	case reflect.String:
		v.SetString(v.String() + "x")
	case reflect.Uint32, reflect.Uint64:
		v.SetUint(v.Uint() + 1)
	case reflect.Int64:
		v.SetInt(v.Int() + 1)
	case reflect.Bool:
		v.SetBool(!v.Bool())
	case reflect.Slice:
		v.Set(reflect.Append(v, reflect.ValueOf("x")))
	default:
		require.Failf(t, "a field of a kind this test does not know", "%s", v.Kind())
	}
}
