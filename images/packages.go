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
// still has its digest; apt itself would look at sizes alone. A replay has those of the first bake only. Stages run side by
// side, and apt locks its cache.
func (b *bakery) cache(stage string) (string, error) {
	dir := b.cacheDir(stage)
	if err := os.MkdirAll(filepath.Join(dir, "partial"), 0o755); err != nil {
		return "", err
	}
	kept, err := filepath.Glob(filepath.Join(b.keptDir(), "*", "*.deb"))
	if err != nil {
		return "", err
	}
	if b.replay != nil {
		kept = nil
		for _, k := range b.replay.kept() {
			if filepath.Ext(k.File) == ".deb" {
				kept = append(kept, b.keptPath(k))
			}
		}
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

func (b *bakery) cacheDir(stage string) string {
	return filepath.Join(b.dir, "debs-"+strings.ReplaceAll(stage, " ", "-"))
}

// keptDir holds what the definition's bakes took from outside, as <sha256>/<file>.
func (b *bakery) keptDir() string { return filepath.Join(b.store.dir, "packages", b.def.Name) }

func (b *bakery) keptPath(k Kept) string { return filepath.Join(b.keptDir(), k.SHA256, k.File) }

// kept lists all that the bake took from outside. Some may be listed twice.
func (m Manifest) kept() []Kept {
	all := []Kept{m.Lists}
	if m.Flux != nil {
		all = append(all, m.Flux.Kept)
	}
	pkgs := slices.Clone(m.Packages)
	for _, a := range m.Artifacts {
		all, pkgs = append(all, a.Sources...), append(pkgs, a.Packages...)
	}
	for _, p := range pkgs {
		all = append(all, Kept{File: p.file(), SHA256: p.SHA256})
	}
	return all
}

// file is what apt calls the package's file.
func (p Package) file() string {
	return fmt.Sprintf("%s_%s_%s.deb", p.Name, strings.ReplaceAll(p.Version, ":", "%3a"), p.Architecture)
}

// keep adds what a stage fetched to the kept packages.
func (b *bakery) keep(debs string) error {
	fetched, err := filepath.Glob(filepath.Join(debs, "*.deb"))
	if err != nil {
		return err
	}
	for _, path := range fetched {
		if _, err := b.keepFile(path); err != nil {
			return err
		}
	}
	return nil
}

// keepFile keeps a file from outside by a hard link.
func (b *bakery) keepFile(path string) (Kept, error) {
	sum, err := fileSum(path)
	if err != nil {
		return Kept{}, err
	}
	k := Kept{File: filepath.Base(path), SHA256: sum}
	if err := os.MkdirAll(filepath.Dir(b.keptPath(k)), 0o755); err != nil {
		return Kept{}, err
	}
	if err := os.Link(path, b.keptPath(k)); err != nil && !errors.Is(err, fs.ErrExist) {
		return Kept{}, fmt.Errorf("keeping %s: %w", k.File, err)
	}
	return k, nil
}

// keepLists keeps the package lists that apt chose by. With them and the packages a tree can be made again: apt asks nobody
// when it has both, and does not mind the age of lists that it has.
func (b *bakery) keepLists(ctx context.Context, tree string) error {
	if b.replay != nil {
		b.m.Lists = b.replay.Lists
		return nil
	}
	path := filepath.Join(b.dir, "lists.tar.gz")
	_, err := b.run(ctx, contained(`cd "$1"; exec tar -I 'gzip -1n' --sort=name --format=gnu --numeric-owner -cf "$2" *_*`,
		filepath.Join(tree, "var/lib/apt/lists"), path))
	if err == nil {
		b.m.Lists, err = b.keepFile(path)
	}
	return err
}

// packages lists what is installed in a tree with the digest of the file each came from, which one of the stages had in its
// cache, and when the newest of them was made.
func (b *bakery) packages(ctx context.Context, tree string, stages ...string) ([]Package, time.Time, error) {
	none := time.Time{}
	out, err := b.run(ctx, []string{"chroot", tree, "dpkg-query", "-W", "-f", `${Package}\t${Version}\t${Architecture}\n`})
	if err != nil {
		return nil, none, err
	}
	had := map[string]string{} // file name → digest
	for _, stage := range stages {
		debs, err := filepath.Glob(filepath.Join(b.cacheDir(stage), "*.deb"))
		if err != nil {
			return nil, none, err
		}
		for _, path := range debs {
			if had[filepath.Base(path)], err = fileSum(path); err != nil {
				return nil, none, err
			}
		}
	}
	var list []Package
	newest := none
	for line := range strings.Lines(out) {
		f := strings.Split(strings.TrimSpace(line), "\t")
		if len(f) != 3 {
			return nil, none, fmt.Errorf("dpkg-query said %q, which is no package", line)
		}
		p := Package{Name: f[0], Version: f[1], Architecture: f[2]}
		sum, ok := had[p.file()]
		if !ok {
			return nil, none, fmt.Errorf("package %s %s is installed but its file %s was not kept", p.Name, p.Version, p.file())
		}
		p.SHA256 = sum
		list = append(list, p)
		made, err := debTime(b.keptPath(Kept{p.file(), sum}))
		if err != nil {
			return nil, none, err
		}
		if made.After(newest) {
			newest = made
		}
	}
	slices.SortFunc(list, func(a, b Package) int { return strings.Compare(a.Name+a.Architecture, b.Name+b.Architecture) })
	return list, newest, nil
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
