package images

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
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
	return nil
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
	to, err := bolt.Open(fresh, 0o644, &bolt.Options{PageSize: 4096, FreelistType: bolt.FreelistArrayType, Timeout: 10 * time.Second})
	if err != nil {
		return err
	}
	never, err := time.Unix(0, 0).UTC().MarshalBinary()
	if err != nil {
		return err
	}
	var copyBucket func(from, to *bolt.Bucket) error
	copyBucket = func(from, to *bolt.Bucket) error {
		if err := to.SetSequence(from.Sequence()); err != nil {
			return err
		}
		return from.ForEach(func(k, v []byte) error {
			if v == nil {
				b, err := to.CreateBucket(k)
				if err != nil {
					return err
				}
				return copyBucket(from.Bucket(k), b)
			}
			switch string(k) {
			case "createdat", "updatedat":
				v = never
			}
			return to.Put(k, v)
		})
	}
	err = from.View(func(src *bolt.Tx) error {
		return to.Update(func(dst *bolt.Tx) error {
			return src.ForEach(func(name []byte, b *bolt.Bucket) error {
				n, err := dst.CreateBucket(name)
				if err != nil {
					return err
				}
				return copyBucket(b, n)
			})
		})
	})
	return errors.Join(err, to.Close())
}
