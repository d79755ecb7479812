package images

import (
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// sources serves files as a distribution does, and a registry: the real one of go-containerregistry, on loopback.
func sources(t *testing.T, files map[string]string) (address string) {
	t.Helper()
	reg := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/v2/") {
			reg.ServeHTTP(w, r)
			return
		}
		text, ok := files[r.URL.Path]
		if !ok {
			http.NotFound(w, r)
			return
		}
		fmt.Fprint(w, text)
	}))
	t.Cleanup(server.Close)
	return strings.TrimPrefix(server.URL, "http://")
}

func TestBuiltInLockReads(t *testing.T) {
	l, err := ParseLock("images.lock", defaultLock)
	require.NoError(t, err)
	require.NotEmpty(t, l)
	for _, p := range l {
		if _, err := l.Pin(p.Name); strings.HasPrefix(p.Name, "flux/") { // nobody has asked yet where the registry can be reached
			assert.ErrorIs(t, err, ErrNotPinned)
		} else {
			assert.NoError(t, err)
		}
	}
	text, err := l.Format()
	require.NoError(t, err)
	assert.Equal(t, string(defaultLock), string(text), "written as it is read")
}

func TestResolveAsksEverySource(t *testing.T) {
	sum512, sum256 := strings.Repeat("ab", 64), strings.Repeat("cd", 32)
	address := sources(t, map[string]string{
		"/debian/SHA512SUMS": strings.Repeat("00", 64) + "  other.qcow2\n" + sum512 + "  disk.qcow2\n",
		"/ubuntu/SHA256SUMS": sum256 + " *disk.img\n",
		"/torn/SHA256SUMS":   "beef disk.img\n",
	})
	tag, err := name.ParseReference(address + "/fluxrm/flux-sched:bookworm")
	require.NoError(t, err)
	img, err := random.Image(64, 1)
	require.NoError(t, err)
	require.NoError(t, remote.Write(tag, img))
	pushed, err := img.Digest()
	require.NoError(t, err)

	l := Lock{
		{Name: "debian", Source: "http://" + address + "/debian/disk.qcow2", Digest: "sha512:" + sum512},
		{Name: "ubuntu", Source: "http://" + address + "/ubuntu/disk.img", Digest: "sha256:" + strings.Repeat("11", 32)},
		{Name: "flux", Source: "docker://" + address + "/fluxrm/flux-sched:bookworm"},
		{Name: "torn", Source: "http://" + address + "/torn/disk.img"},
		{Name: "gone", Source: "http://" + address + "/nowhere/disk.img", Digest: "sha256:" + sum256},
		{Name: "tagless", Source: "docker://" + address + "/fluxrm/flux-sched:jammy"},
	}
	changes, err := l.Resolve(t.Context())
	require.Error(t, err)
	for _, want := range []string{"torn", "beef", "gone", "SHA256SUMS", "tagless", "404"} {
		assert.ErrorContains(t, err, want)
	}
	require.Len(t, changes, len(l))
	var changed []string
	for i, c := range changes {
		assert.Equal(t, l[i].Digest, c.Was)
		if c.Changed() {
			changed = append(changed, c.Name+" "+c.Digest)
		} else {
			assert.Equal(t, c.Was, c.Digest)
		}
	}
	assert.Equal(t, []string{"ubuntu sha256:" + sum256, "flux " + pushed.String()}, changed)

	// A tag that moves is a change.
	l[2].Digest = pushed.String()
	other, err := random.Image(64, 1)
	require.NoError(t, err)
	require.NoError(t, remote.Write(tag, other))
	changes, err = l[2:3].Resolve(t.Context())
	require.NoError(t, err)
	assert.True(t, changes[0].Changed())
}

func TestLockThatIsNone(t *testing.T) {
	const good = "- name: a\n  source: https://example.org/a\n  digest: \"\"\n"
	for text, want := range map[string]string{
		"- name: a\n  source: https://example.org/a\n  digst: x\n": "digst",
		"- name: A\n  source: https://example.org/a\n":             "lower-case",
		good + good: "two of that name",
		"- name: a\n  source: http://example.org/a\n":                                   "neither https",
		"- name: a\n  source: a:latest\n":                                               "neither https",
		"- name: a\n  source: https://example.org/a\n  digest: md5:0123\n":              "neither sha256",
		"- name: a\n  source: https://example.org/a\n  digest: sha256:" + "ABCD" + "\n": "neither sha256",
		"name: a\n": "no lock",
	} {
		_, err := ParseLock("here/images.lock", []byte(text))
		assert.ErrorContains(t, err, want, "%q", text)
		assert.ErrorContains(t, err, "here/images.lock")
	}
	l, err := ParseLock("here", []byte(good))
	require.NoError(t, err)
	_, err = l.Pin("a")
	require.ErrorIs(t, err, ErrNotPinned)
	assert.ErrorContains(t, err, "bed lock")
	_, err = l.Pin("b")
	require.ErrorIs(t, err, ErrNotPinned)
	empty, err := ParseLock("here", nil)
	require.NoError(t, err)
	assert.Empty(t, empty)
}

func TestNearestLockCounts(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	builtIn, err := OpenLock()
	require.NoError(t, err)
	assert.NotEmpty(t, builtIn)
	here := Lock{{Name: "here", Source: "https://example.org/here"}}
	require.NoError(t, here.Write(filepath.Join(dir, LockFile)))
	found, err := OpenLock()
	require.NoError(t, err)
	assert.Equal(t, here, found)
	there := Lock{{Name: "there", Source: "https://example.org/there"}}
	require.NoError(t, os.Mkdir("other", 0o755))
	require.NoError(t, there.Write(filepath.Join("other", LockFile)))
	t.Setenv(LockEnv, filepath.Join(dir, "other", LockFile))
	found, err = OpenLock()
	require.NoError(t, err)
	assert.Equal(t, there, found)
	t.Setenv(LockEnv, filepath.Join(dir, "none"))
	_, err = OpenLock()
	assert.ErrorIs(t, err, os.ErrNotExist)
}

func FuzzLock(f *testing.F) {
	f.Add(defaultLock)
	f.Add([]byte("- name: a\n  source: docker://a/b:c\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		l, err := ParseLock("x", data)
		if err != nil {
			return
		}
		text, err := l.Format()
		require.NoError(t, err)
		again, err := ParseLock("x", text)
		require.NoError(t, err)
		require.ElementsMatch(t, l, again)
	})
}
