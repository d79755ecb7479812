package images

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	bolt "go.etcd.io/bbolt"

	"github.com/bedfellow/bedfellow/pkg/bed"
)

// writeBolt writes pairs of a nested bucket, each in a transaction of its own.
func writeBolt(t *testing.T, path string, made time.Time, keys ...string) {
	t.Helper()
	db, err := bolt.Open(path, 0o600, nil)
	require.NoError(t, err)
	stamp, err := made.MarshalBinary()
	require.NoError(t, err)
	for _, key := range keys {
		require.NoError(t, db.Update(func(tx *bolt.Tx) error {
			b, err := tx.CreateBucketIfNotExists([]byte("v1"))
			if err != nil {
				return err
			}
			if err := b.SetSequence(7); err != nil {
				return err
			}
			n, err := b.CreateBucket([]byte(key))
			if err != nil {
				return err
			}
			long := bytes.Repeat([]byte(key), 3000) // such a bucket has pages of its own
			for k, v := range map[string][]byte{"name": []byte(key), "createdat": stamp, "updatedat": stamp, "long": long} {
				if err := n.Put([]byte(k), v); err != nil {
					return err
				}
			}
			return nil
		}))
	}
	require.NoError(t, db.Close())
}

func TestADatabaseIsTheSameWhateverTheTimeAndOrderOfItsWriting(t *testing.T) {
	one, other := filepath.Join(t.TempDir(), "meta.db"), filepath.Join(t.TempDir(), "meta.db")
	var keys []string
	for i := range 50 {
		keys = append(keys, fmt.Sprintf("k%02d", i))
	}
	writeBolt(t, one, time.Unix(1e9, 0), keys...)
	slices.Reverse(keys)
	writeBolt(t, other, time.Unix(2e9, 5), keys...)
	for _, path := range []string{one, other} {
		require.NoError(t, canonicalBolt(path))
	}
	a, err := os.ReadFile(one)
	require.NoError(t, err)
	b, err := os.ReadFile(other)
	require.NoError(t, err)
	assert.Equal(t, a, b)

	db, err := bolt.Open(one, 0o600, &bolt.Options{ReadOnly: true})
	require.NoError(t, err)
	defer db.Close()
	require.NoError(t, db.View(func(tx *bolt.Tx) error {
		v1 := tx.Bucket([]byte("v1"))
		assert.EqualValues(t, 7, v1.Sequence(), "the next snapshot's number")
		for _, key := range keys {
			assert.Equal(t, key, string(v1.Bucket([]byte(key)).Get([]byte("name"))))
		}
		return nil
	}))
}

func TestFlannelWithoutTheBackendsOfOthers(t *testing.T) {
	with := "import (\n\t_ \"" + flannelModule + "/pkg/backend/tencentvpc\"\n\t_ \"" + flannelModule + "/pkg/backend/udp\"\n\t_ \"" + flannelModule + "/pkg/backend/vxlan\"\n)\n"
	got, err := withoutBackends([]byte(with))
	require.NoError(t, err)
	assert.Equal(t, "import (\n\t_ \""+flannelModule+"/pkg/backend/vxlan\"\n)\n", string(got))
	_, err = withoutBackends(got)
	assert.ErrorContains(t, err, "imports no backend tencentvpc")
}

func TestKubernetesIsOnlyWhereItIsAskedFor(t *testing.T) {
	module := filepath.Join("kubernetes")
	plain, err := Request{Definition: "debian-13", Format: bed.VM}.resolve()
	require.NoError(t, err)
	assert.NotContains(t, plain.roles, usernetesRole)
	assert.NotContains(t, plain.roles, kubernetesRole)

	node, err := Request{Definition: "debian-13", Format: bed.VM, Kubernetes: module}.resolve()
	require.NoError(t, err)
	assert.Contains(t, node.roles, usernetesRole)
	assert.NotContains(t, node.roles, kubernetesRole, "that is the node container's own")

	bundle, err := Bundle(module).resolve()
	require.NoError(t, err)
	assert.Equal(t, []string{kubernetesRole}, bundle.roles)

	for _, roles := range [][]string{{kubernetesRole}, {usernetesRole}} {
		_, err = Request{Definition: "debian-13", Format: bed.VM, Roles: roles}.resolve()
		assert.ErrorIs(t, err, ErrNoBundle)
		assert.ErrorContains(t, err, "in a clone of Bedfellow")
	}
}

func TestTheBundlesModuleIsAnInput(t *testing.T) {
	copied := t.TempDir()
	require.NoError(t, os.CopyFS(copied, os.DirFS("kubernetes")))
	key := func() string {
		s, err := Open(t.TempDir())
		require.NoError(t, err)
		_, _, err = s.Get(t.Context(), Bundle(copied))
		require.NoError(t, err)
		r, err := Bundle(copied).resolve()
		require.NoError(t, err)
		key, _, err := r.key(os.DirFS("../playbooks"))
		require.NoError(t, err)
		return key
	}
	before := key()
	assert.Equal(t, before, key())
	f, err := os.OpenFile(filepath.Join(copied, "go.sum"), os.O_APPEND|os.O_WRONLY, 0)
	require.NoError(t, err)
	_, err = f.WriteString("\n")
	require.NoError(t, err)
	require.NoError(t, f.Close())
	assert.NotEqual(t, before, key())

	_, _, err = (&Store{dir: t.TempDir()}).Get(t.Context(), Bundle(t.TempDir()))
	assert.ErrorIs(t, err, ErrNoBundle)
	assert.ErrorContains(t, err, "go.mod")

	require.NoError(t, CheckKubernetes("kubernetes"))
	assert.ErrorIs(t, CheckKubernetes(t.TempDir()), ErrNoBundle)
}

func TestKubernetesIsNotBakedElsewhereYet(t *testing.T) {
	t.Setenv(BakeEnv, "vm")
	r, err := Request{Definition: "debian-13", Format: bed.VM, Kubernetes: "kubernetes"}.resolve()
	require.NoError(t, err)
	_, err = r.elsewhere()
	assert.ErrorIs(t, err, ErrNoBundle, "not an image without it under the same key")
}
