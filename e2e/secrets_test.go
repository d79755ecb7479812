package e2e_test

import (
	"bytes"
	"encoding/base64"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/bedfellow/bedfellow/provision/nspawn"
)

// secrets: neither the bed's private keys nor its munge key nor the passphrase lies in clear in anything that Bedfellow has
// written or said; the two files that are theirs aside.
func (p place) secrets(t *testing.T) {
	inv := p.inventory(t)
	secret := map[string][]byte{}
	pem := func(name, text string) {
		lines := strings.Split(strings.TrimSpace(text), "\n")
		require.Greater(t, len(lines), 4, name)
		for _, line := range lines[2 : len(lines)-1] { // the first of the body is the same in every key
			if len(line) >= 16 {
				secret[name+" "+line[:4]] = []byte(line)
			}
		}
	}
	user, err := os.ReadFile(p.keyFile())
	require.NoError(t, err)
	pem("user key", string(user))
	for i, n := range inv.Nodes {
		pem("host key of "+n.Name, p.must(t, inv, i, "sudo cat /etc/ssh/ssh_host_ed25519_key"))
	}
	munge := p.must(t, inv, 0, "sudo cat /etc/munge/munge.key | base64 -w0")
	raw, err := base64.StdEncoding.DecodeString(munge)
	require.NoError(t, err)
	require.GreaterOrEqual(t, len(raw), 64)
	secret["munge key"], secret["munge key, base64"] = raw, []byte(munge)
	secret["munge key, base64 twice"] = []byte(base64.StdEncoding.EncodeToString([]byte(munge))[:60])
	passphrase, err := os.ReadFile(filepath.Join(p.dir, ".bed/passphrase"))
	require.NoError(t, err)
	secret["passphrase"] = bytes.TrimSpace(passphrase)

	searched := 0
	search := func(root string, skip func(path string, d fs.DirEntry) bool) {
		require.NoError(t, filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			if skip(path, d) {
				if d.IsDir() {
					return fs.SkipDir
				}
				return nil
			}
			if !d.Type().IsRegular() {
				return nil
			}
			data, err := os.ReadFile(path)
			searched++
			for name, value := range secret {
				assert.False(t, bytes.Contains(data, value), "%s holds the %s", path, name)
			}
			return err
		}))
	}
	search(p.dir, func(path string, d fs.DirEntry) bool {
		return path == p.keyFile() || path == filepath.Join(p.dir, ".bed/passphrase")
	})
	search(work(t, "said"), func(string, fs.DirEntry) bool { return false })
	search(tmp(), func(string, fs.DirEntry) bool { return false })
	if inv.Driver == "nspawn" { // beside the nodes' own disks
		search(filepath.Join(nspawn.DefaultRoot, inv.Bed), func(_ string, d fs.DirEntry) bool {
			return d.IsDir() && (d.Name() == "upper" || d.Name() == "work" || d.Name() == "root")
		})
	}
	require.Greater(t, searched, 10)
	for _, path := range []string{p.keyFile(), filepath.Join(p.dir, ".bed/passphrase")} {
		info, err := os.Stat(path)
		require.NoError(t, err)
		assert.Equal(t, fs.FileMode(0o600), info.Mode().Perm(), path)
	}
}
