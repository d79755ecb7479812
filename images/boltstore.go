package images

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	bolt "go.etcd.io/bbolt"
)

// canonicalStore makes a containerd store the same whenever the same images were imported in the same order: its databases hold when
// each thing was made, and pages in the order of their writing. What only imports under way need is removed.
func canonicalStore(dir string) error {
	for _, db := range []string{"io.containerd.metadata.v1.bolt/meta.db", "io.containerd.snapshotter.v1.overlayfs/metadata.db"} {
		if err := canonicalBolt(filepath.Join(dir, db)); err != nil {
			return fmt.Errorf("containerd's store: %s: %w", db, err)
		}
	}
	return os.RemoveAll(filepath.Join(dir, "io.containerd.grpc.v1.introspection")) // who the daemon was
}

// canonicalBolt writes a database anew, in the order of its keys and with no time in it.
func canonicalBolt(path string) (err error) {
	from, err := bolt.Open(path, 0o600, &bolt.Options{ReadOnly: true, Timeout: 10 * time.Second})
	if err != nil {
		return err
	}
	fresh := path + ".bed-new"
	defer func() {
		err = errors.Join(err, from.Close())
		if err == nil {
			err = os.Rename(fresh, path)
		}
	}()
	to, err := bolt.Open(fresh, 0o644, &bolt.Options{PageSize: 4096, FreelistType: bolt.FreelistArrayType, NoSync: true, Timeout: 10 * time.Second})
	if err != nil {
		return err
	}
	never, err := time.Unix(0, 0).UTC().MarshalBinary()
	if err != nil {
		return err
	}
	// A transaction for each bucket: one that changes several gives them pages in no particular order.
	var copyBucket func(path [][]byte, b *bolt.Bucket) error
	copyBucket = func(path [][]byte, b *bolt.Bucket) error {
		err := to.Update(func(tx *bolt.Tx) error {
			n, err := tx.CreateBucketIfNotExists(path[0])
			for _, name := range path[1:] {
				if err == nil {
					n, err = n.CreateBucketIfNotExists(name)
				}
			}
			if err != nil {
				return err
			}
			if err := n.SetSequence(b.Sequence()); err != nil {
				return err
			}
			return b.ForEach(func(k, v []byte) error {
				switch string(k) {
				case "createdat", "updatedat":
					v = never
				}
				if v == nil {
					return nil
				}
				return n.Put(k, v)
			})
		})
		if err != nil {
			return err
		}
		return b.ForEachBucket(func(k []byte) error { return copyBucket(append(slices.Clone(path), k), b.Bucket(k)) })
	}
	err = from.View(func(src *bolt.Tx) error {
		return src.ForEach(func(name []byte, b *bolt.Bucket) error { return copyBucket([][]byte{name}, b) })
	})
	return errors.Join(err, to.Close())
}
