package e2e_test

import (
	"bytes"
	"encoding/base64"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/bedfellow/bedfellow/images"
	"github.com/bedfellow/bedfellow/pkg/bed"
	"github.com/bedfellow/bedfellow/provision/nspawn"
)

// keys are the bed's private keys, its munge key and the passphrase, each by what it is called and as it would be written.
func (p place) keys(t *testing.T, inv bed.Inventory) map[string][]byte {
	t.Helper()
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
	return secret
}

// holds names the secrets that are in data.
func holds(data []byte, secret map[string][]byte) (names []string) {
	for name, value := range secret {
		if bytes.Contains(data, value) {
			names = append(names, name)
		}
	}
	return names
}

// fileHolds is holds for a file of any size.
func fileHolds(path string, secret map[string][]byte) (names []string, err error) {
	longest := 0
	for _, value := range secret {
		longest = max(longest, len(value))
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	buf, have := make([]byte, 1<<20), 0
	for {
		n, err := io.ReadFull(f, buf[have:])
		names = append(names, holds(buf[:have+n], secret)...)
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			return names, nil
		}
		if err != nil {
			return names, err
		}
		have = copy(buf, buf[len(buf)-longest:]) // what lies across two reads
	}
}

// holdsNone fails the test if a file below root, but for those that are skipped, holds a secret, and returns how many it has looked at.
func holdsNone(t *testing.T, root string, secret map[string][]byte, skip func(path string, d fs.DirEntry) bool) (searched int) {
	t.Helper()
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
		searched++
		names, err := fileHolds(path, secret)
		assert.Empty(t, names, path)
		return err
	}))
	return searched
}

// secrets: none of the bed's keys lies in clear in anything that Bedfellow has written or said, the two files that are theirs
// aside, in the image, or in the arguments and environment of any process.
func (p place) secrets(t *testing.T) {
	inv := p.inventory(t)
	secret := p.keys(t, inv)
	searched := 0
	search := func(root string, skip func(path string, d fs.DirEntry) bool) {
		searched += holdsNone(t, root, secret, skip)
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
	if inv.ImageDigest != "" {
		store, err := images.Open("")
		require.NoError(t, err)
		list, err := store.List(t.Context())
		require.NoError(t, err)
		i := slices.IndexFunc(list, func(img images.Image) bool { return img.Digest == inv.ImageDigest })
		require.GreaterOrEqual(t, i, 0, "the store has the bed's image")
		before := searched
		search(list[i].Path, func(string, fs.DirEntry) bool { return false })
		least := 5000
		if list[i].Format == bed.VM { // a disk, which is not compressed, and what boots it
			least = 4
		}
		require.GreaterOrEqual(t, searched-before, least, "files in %s", list[i].Path)
	}
	watchProcesses(t, secret).check(t, inv.Nodes[0].Name)
	for _, path := range []string{p.keyFile(), filepath.Join(p.dir, ".bed/passphrase")} {
		info, err := os.Stat(path)
		require.NoError(t, err)
		assert.Equal(t, fs.FileMode(0o600), info.Mode().Perm(), path)
	}
}
