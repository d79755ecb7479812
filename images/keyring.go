package images

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
)

// keyring finds the keys of a definition's archive: the host's own, or those that an earlier bake fetched.
func (s *Store) keyring(def Definition) (string, error) {
	kept := filepath.Join(s.dir, "keyrings", filepath.Base(def.keyring()))
	for _, path := range []string{def.keyring(), kept} {
		if exists(path) {
			return path, nil
		}
	}
	return "", fmt.Errorf("no %s: %w", filepath.Base(kept), os.ErrNotExist)
}

// keyringSource is a distribution whose archive has the package with this one's keys, signed with keys of its own.
func (d Definition) keyringSource() *Definition {
	if d.Distribution != "ubuntu" {
		return nil
	}
	all := Definitions()
	return &all[slices.IndexFunc(all, func(d Definition) bool { return d.Name == "debian-13" })]
}

// keyring is the store's, or fetched into it. So a host that knows and trusts Debian's archive alone comes to Ubuntu's.
func (b *bakery) keyring(ctx context.Context) (string, error) {
	if path, err := b.store.keyring(b.def); err == nil {
		return path, nil
	}
	source := b.def.keyringSource() // preflight has seen that there is one
	defer b.stage("keyring")()
	dir := filepath.Join(b.dir, "keyring")
	if _, err := b.run(ctx, b.contained(`export TMPDIR=$1; shift; exec "$@"`, b.dir,
		"mmdebstrap", "--mode=root", "--variant=extract", "--keyring="+source.keyring(), "--include="+b.def.Keyring,
		`--aptopt=Acquire::Retries "2"`, `--aptopt=Acquire::http::Timeout "20"`, source.Suite, dir)); err != nil {
		return "", err
	}
	kept := filepath.Join(b.store.dir, "keyrings", filepath.Base(b.def.keyring()))
	if err := os.MkdirAll(filepath.Dir(kept), 0o755); err != nil {
		return "", err
	}
	// Its package may have it as a link within itself.
	if _, err := b.run(ctx, []string{"sh", "-euc", `cp -L "$1" "$2.part"; chmod 644 "$2.part"; mv "$2.part" "$2"`, "sh", filepath.Join(dir, b.def.keyring()), kept}); err != nil {
		return "", fmt.Errorf("keeping the keys of %s: %w", b.def.Name, err)
	}
	return kept, nil
}
