package images

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/bedfellow/bedfellow/pkg/bed"
)

var vmRequest = Request{Definition: "debian-13", Format: bed.VM, Roles: []string{"base"}}

// archive is what another machine sends of an image: files by path.
func archive(t *testing.T, files map[string]string) []byte {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	require.NoError(t, w.WriteHeader(&tar.Header{Name: "./", Typeflag: tar.TypeDir, Mode: 0o755}))
	for _, name := range sortedKeys(files) {
		require.NoError(t, w.WriteHeader(&tar.Header{Name: "./" + name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(files[name]))}))
		_, err := w.Write([]byte(files[name]))
		require.NoError(t, err)
	}
	require.NoError(t, w.Close())
	out.Write(make([]byte, 10240-out.Len()%10240)) // as tar fills its last block
	return out.Bytes()
}

// sent is a whole image as another machine would send it.
func sent(t *testing.T, change func(*Manifest, map[string]string)) []byte {
	t.Helper()
	r, err := vmRequest.resolve()
	require.NoError(t, err)
	key, _, err := r.key(os.DirFS("../playbooks"))
	require.NoError(t, err)
	files := map[string]string{"files": "", "vm/disk.qcow2": "a disk", "vm/vmlinuz": "a kernel", "vm/initrd.img": "an initrd", "vm/cmdline": "quiet"}
	m := Manifest{Format: 1, Key: key, Digest: "sha256:" + hex.EncodeToString(make([]byte, 32)), Definition: r.def, ImageFormat: bed.VM, Roles: r.roles, Disk: map[string]File{}}
	for _, name := range []string{"disk.qcow2", "vmlinuz", "initrd.img", "cmdline"} {
		sum := sha256.Sum256([]byte(files["vm/"+name]))
		m.Disk[name] = File{SHA256: hex.EncodeToString(sum[:]), Bytes: int64(len(files["vm/"+name]))}
	}
	if change != nil {
		change(&m, files)
	}
	data, err := json.Marshal(m)
	require.NoError(t, err)
	files["manifest.json"] = string(data)
	return archive(t, files)
}

// sender is another machine at the boundary between the two: it sends what it is given.
func sender(data []byte, err error) Elsewhere {
	return func(_ context.Context, _ Request, out io.Writer) error {
		_, failed := out.Write(data)
		return errors.Join(err, failed)
	}
}

func TestImageBakedElsewhereIsTakenOver(t *testing.T) {
	s := fakeStore(t)
	s.bake = func(context.Context, *bakery) error { return errors.New("baked here") }
	t.Setenv(BakeEnv, "vm")
	var asked Request
	data := sent(t, nil)
	s.Elsewhere = func(_ context.Context, req Request, out io.Writer) error {
		asked = req
		_, err := out.Write(data)
		return err
	}
	img, err := s.Build(t.Context(), vmRequest)
	require.NoError(t, err)
	assert.Equal(t, Request{Definition: "debian-13", Format: bed.VM, Roles: []string{"base", kernelRole}}, asked)
	text, err := os.ReadFile(filepath.Join(img.Path, bed.DiskFile))
	require.NoError(t, err)
	assert.Equal(t, "a disk", string(text))

	_, err = s.Build(t.Context(), Request{Definition: "debian-12"})
	assert.ErrorContains(t, err, "baked here", "a tree is of no use elsewhere")
	t.Setenv(BakeEnv, "")
	if os.Geteuid() == 0 {
		_, err = s.Build(t.Context(), Request{Definition: "debian-12", Format: bed.VM})
		assert.ErrorContains(t, err, "baked here", "a host that can bake does")
	}
}

// What another machine sends is believed no further than its digests.
func TestImageFromElsewhereThatIsNotOne(t *testing.T) {
	for name, c := range map[string]struct {
		elsewhere Elsewhere
		want      string
	}{
		"another version's":      {sender(sent(t, func(m *Manifest, _ map[string]string) { m.Key = "other" }), nil), "another version of Bedfellow"},
		"a changed disk":         {sender(sent(t, func(_ *Manifest, f map[string]string) { f["vm/disk.qcow2"] = "a disc" }), nil), "disk.qcow2 differs in content"},
		"a missing kernel":       {sender(sent(t, func(_ *Manifest, f map[string]string) { delete(f, "vm/vmlinuz") }), nil), "vmlinuz does not read"},
		"a path that leads away": {sender(archive(t, map[string]string{"../../etc/passwd": "x"}), nil), `"./../../etc/passwd", which no image has`},
		"a program":              {sender(archive(t, map[string]string{"vm/run": "x"}), nil), "which no image has"},
		"half of one":            {sender(sent(t, nil)[:2000], nil), "unexpected EOF"},
		"nothing":                {sender(nil, nil), "manifest.json"},
		"a machine that fails":   {sender(sent(t, nil)[:2000], errors.New("the machine is gone")), "the machine is gone"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv(BakeEnv, "vm")
			s := fakeStore(t)
			s.Elsewhere = c.elsewhere
			_, err := s.Build(t.Context(), vmRequest)
			require.ErrorContains(t, err, c.want)
			noBakeLeft(t, s)
		})
	}
}

func TestFetchKeepsNothingWithAnotherDigest(t *testing.T) {
	address := sources(t, map[string]string{"/disk": "content", "/moved": "other content"})
	sum := sha256.Sum256([]byte("content"))
	digest := "sha256:" + hex.EncodeToString(sum[:])
	s := fakeStore(t)
	pin := Pin{Name: "a", Source: "http://" + address + "/moved", Digest: digest}
	_, err := s.Fetch(t.Context(), pin, "disk.qcow2")
	require.ErrorContains(t, err, "bed lock")
	assert.ErrorContains(t, err, digest)
	left, err := filepath.Glob(filepath.Join(s.dir, "pinned", "*", "*"))
	require.NoError(t, err)
	assert.Empty(t, left)

	pin.Source = "http://" + address + "/disk"
	path, err := s.Fetch(t.Context(), pin, "disk.qcow2")
	require.NoError(t, err)
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	assert.Equal(t, "content", string(text))

	pin.Source = "http://" + address + "/gone" // not asked again
	again, err := s.Fetch(t.Context(), pin, "disk.qcow2")
	require.NoError(t, err)
	assert.Equal(t, path, again)
	require.NoError(t, os.WriteFile(path, []byte("damaged"), 0o644))
	_, err = s.Fetch(t.Context(), pin, "disk.qcow2")
	assert.ErrorContains(t, err, "404")

	_, err = s.Fetch(t.Context(), Pin{Name: "a", Source: pin.Source}, "disk.qcow2")
	assert.ErrorIs(t, err, ErrNotPinned)
	p, err := s.Prune(t.Context())
	require.NoError(t, err)
	assert.Len(t, p.Packages, 1)
	assert.NoFileExists(t, path)
}
