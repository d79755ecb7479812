package images

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/bedfellow/bedfellow/pkg/progress"
)

// Pruned is what Prune removed, as paths under the store.
type Pruned struct {
	Bakes     []string `json:"bakes"`     // half-made, of killed runs
	Images    []string `json:"images"`    // whose manifest does not read
	Artifacts []string `json:"artifacts"` // that no image's manifest names
	Packages  []string `json:"packages"`  // likewise, with package lists, sources and all that a lock named
	Bytes     int64    `json:"bytes"`     // that they took on disk
}

// Prune removes what no image in the store needs, neither to be there nor to be baked again: half-made bakes of killed runs,
// damaged images that no node runs on, and artifacts, packages, package lists and sources that no image's manifest names. It
// waits for bakes under way. What it removed before an error is told too.
func (s *Store) Prune(ctx context.Context) (p Pruned, err error) {
	p = Pruned{Bakes: []string{}, Images: []string{}, Artifacts: []string{}, Packages: []string{}}
	if !exists(s.dir) {
		return p, nil
	}
	lock, err := s.lockWith(ctx, keptLock, syscall.LOCK_EX, func() { progress.Note(ctx, "waiting for a bake that is under way") })
	if err != nil {
		return p, err
	}
	defer lock.Close()
	// The difference, because bakes and kept packages are links to the same files.
	before, err := s.Size(ctx)
	if err != nil {
		return p, err
	}
	defer func() {
		if after, e := s.Size(ctx); e == nil {
			p.Bytes = max(0, before-after)
		}
	}()
	removing := func(list *[]string, remove func(path string) error) func(path string) error {
		return func(path string) error {
			if err := remove(path); err != nil {
				return notRoot(err)
			}
			rel, err := filepath.Rel(s.dir, path)
			*list = append(*list, rel)
			return err
		}
	}
	if err := s.sweep(ctx, removing(&p.Bakes, removeTree)); err != nil {
		return p, err
	}
	named, err := s.named(ctx, removing(&p.Images, func(dir string) error {
		lock, err := s.lock(ctx, filepath.Base(dir))
		if err != nil {
			return err
		}
		defer lock.Close()
		if err := s.remove(filepath.Base(dir)); err != nil {
			return fmt.Errorf("removing the damaged image in %s: %w", dir, err)
		}
		return nil
	}))
	if err != nil {
		return p, err
	}
	for _, kept := range []struct {
		pattern string
		list    *[]string
	}{{"artifacts/*", &p.Artifacts}, {"packages/*/*", &p.Packages}, {"pinned/*", &p.Packages}} {
		paths, err := filepath.Glob(filepath.Join(s.dir, kept.pattern))
		if err != nil {
			return p, err
		}
		remove := removing(kept.list, os.RemoveAll)
		for _, path := range paths {
			if named[strings.TrimSuffix(path, ".json")] {
				continue
			}
			if err := remove(path); err != nil {
				return p, err
			}
		}
	}
	return p, nil
}

// named are the paths of all artifacts and of all from outside that manifests name. It calls damaged with an image whose manifest does
// not read.
func (s *Store) named(ctx context.Context, damaged func(dir string) error) (map[string]bool, error) {
	manifests, err := filepath.Glob(filepath.Join(s.dir, "*", "manifest.json"))
	if err != nil {
		return nil, err
	}
	named := map[string]bool{}
	for _, path := range manifests {
		img, err := s.load(filepath.Base(filepath.Dir(path)))
		switch {
		case errors.Is(err, fs.ErrNotExist): // removed meanwhile
			continue
		case errors.Is(err, errDamaged):
			if err := damaged(filepath.Dir(path)); err != nil {
				return nil, err
			}
			continue
		case err != nil:
			return nil, err
		}
		for _, a := range img.Manifest.Artifacts {
			named[s.artifactPath(a.Key)] = true
		}
		for _, k := range img.Manifest.kept() {
			named[filepath.Join(s.dir, "packages", img.Definition, k.SHA256)] = true
		}
	}
	return named, ctx.Err()
}

// Size is what the store takes on disk, in bytes, as far as the caller may read it.
func (s *Store) Size(ctx context.Context) (int64, error) {
	var total int64
	seen := map[uint64]bool{} // inodes: a bake's packages are links to the kept ones
	err := filepath.WalkDir(s.dir, func(path string, _ fs.DirEntry, err error) error {
		var st syscall.Stat_t
		if err == nil {
			err = syscall.Lstat(path, &st)
		}
		switch {
		case errors.Is(err, fs.ErrNotExist), errors.Is(err, fs.ErrPermission): // gone meanwhile, or another's
		case err != nil:
			return err
		case !seen[st.Ino]:
			seen[st.Ino] = true
			total += st.Blocks * 512
		}
		return ctx.Err()
	})
	return total, err
}
