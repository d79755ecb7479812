package images

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// cache makes a package cache for one stage of the bake, filled by hard links to every kept package of the definition that
// still has its digest; apt itself would look at sizes alone. Stages run side by side, and apt locks its cache.
func (b *bakery) cache(stage string) (string, error) {
	dir := filepath.Join(b.dir, "debs-"+strings.ReplaceAll(stage, " ", "-"))
	if err := os.MkdirAll(filepath.Join(dir, "partial"), 0o755); err != nil {
		return "", err
	}
	kept, err := filepath.Glob(filepath.Join(b.keptDir(), "*", "*.deb"))
	if err != nil {
		return "", err
	}
	for _, path := range kept {
		sum, err := fileSum(path)
		if err != nil || sum != filepath.Base(filepath.Dir(path)) {
			os.RemoveAll(filepath.Dir(path))
			continue
		}
		if err := os.Link(path, filepath.Join(dir, filepath.Base(path))); err != nil && !errors.Is(err, fs.ErrExist) {
			return "", err
		}
	}
	return dir, nil
}

// keptDir holds the definition's packages as <sha256>/<file>.deb.
func (b *bakery) keptDir() string { return filepath.Join(b.store.dir, "packages", b.def.Name) }

// keep moves what a stage fetched to the kept packages.
func (b *bakery) keep(debs string) error {
	fetched, err := filepath.Glob(filepath.Join(debs, "*.deb"))
	if err != nil {
		return err
	}
	for _, path := range fetched {
		sum, err := fileSum(path)
		if err != nil {
			return err
		}
		dir := filepath.Join(b.keptDir(), sum)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		if err := os.Link(path, filepath.Join(dir, filepath.Base(path))); err != nil && !errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("keeping a package: %w", err)
		}
	}
	return nil
}

// packages lists what is installed in the tree with the digest of the file each came from, and finds the bake's epoch: the
// time the newest of them was made.
func (b *bakery) packages(ctx context.Context, tree string) error {
	out, err := b.run(ctx, []string{"chroot", tree, "dpkg-query", "-W", "-f", `${Package}\t${Version}\t${Architecture}\n`})
	if err != nil {
		return err
	}
	kept := map[string]string{} // file name → digest
	for _, stage := range []string{"base", "roles"} {
		debs, err := filepath.Glob(filepath.Join(b.dir, "debs-"+stage, "*.deb"))
		if err != nil {
			return err
		}
		for _, path := range debs {
			if kept[filepath.Base(path)], err = fileSum(path); err != nil {
				return err
			}
		}
	}
	arch, err := b.run(ctx, []string{"chroot", tree, "dpkg", "--print-architecture"})
	if err != nil {
		return err
	}
	b.m.Architecture = strings.TrimSpace(arch)
	b.m.Packages = nil
	for line := range strings.Lines(out) {
		f := strings.Split(strings.TrimSpace(line), "\t")
		if len(f) != 3 {
			return fmt.Errorf("dpkg-query said %q, which is no package", line)
		}
		file := fmt.Sprintf("%s_%s_%s.deb", f[0], strings.ReplaceAll(f[1], ":", "%3a"), f[2])
		sum, ok := kept[file]
		if !ok {
			return fmt.Errorf("package %s %s is installed but its file %s was not kept", f[0], f[1], file)
		}
		b.m.Packages = append(b.m.Packages, Package{Name: f[0], Version: f[1], Architecture: f[2], SHA256: sum})
		made, err := debTime(filepath.Join(b.keptDir(), sum, file))
		if err != nil {
			return err
		}
		if made.After(b.m.Epoch) {
			b.m.Epoch = made
		}
	}
	slices.SortFunc(b.m.Packages, func(a, b Package) int { return strings.Compare(a.Name+a.Architecture, b.Name+b.Architecture) })
	return nil
}

// debTime is when a package was made, from the header of its first member: a package is an ar archive.
func debTime(path string) (time.Time, error) {
	f, err := os.Open(path)
	if err != nil {
		return time.Time{}, err
	}
	defer f.Close()
	header := make([]byte, 8+60)
	if _, err := io.ReadFull(f, header); err != nil || string(header[:8]) != "!<arch>\n" {
		return time.Time{}, fmt.Errorf("%s is no package", path)
	}
	sec, err := strconv.ParseInt(strings.TrimSpace(string(header[8+16:8+28])), 10, 64)
	if err != nil {
		return time.Time{}, fmt.Errorf("%s is no package: %w", path, err)
	}
	return time.Unix(sec, 0).UTC(), nil
}
