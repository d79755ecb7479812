package main_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/bedfellow/bedfellow/images"
)

// A lock is shown before it is written, and without leave it is not.
func TestLockShowsBeforeItWrites(t *testing.T) {
	old, now := strings.Repeat("11", 32), strings.Repeat("22", 32)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/SHA256SUMS" {
			http.NotFound(w, r)
			return
		}
		fmt.Fprintf(w, "%s *moved\n%s *same\n", now, old)
	}))
	defer server.Close()
	dir := clone(t)
	lock := images.Lock{
		{Name: "moved", Source: server.URL + "/moved", Digest: "sha256:" + old},
		{Name: "same", Source: server.URL + "/same", Digest: "sha256:" + old},
	}
	require.NoError(t, lock.Write(filepath.Join(dir, images.LockFile)))
	before, err := os.ReadFile(filepath.Join(dir, images.LockFile))
	require.NoError(t, err)

	code, out, errOut := call(t, dir, nil, "lock")
	assert.Zero(t, code, errOut)
	for _, want := range []string{"~ moved", "1111", "→", "2222", "1 of 2 would change", "nothing was written", "--yes"} {
		assert.Contains(t, out, want)
	}
	assert.NotContains(t, out, "~ same")
	after, err := os.ReadFile(filepath.Join(dir, images.LockFile))
	require.NoError(t, err)
	assert.Equal(t, before, after)

	sub := filepath.Join(dir, "below")
	require.NoError(t, os.Mkdir(sub, 0o755))
	code, out, errOut = call(t, sub, nil, "lock", "--yes")
	assert.Zero(t, code, errOut)
	assert.Contains(t, out, "written: ")
	after, err = os.ReadFile(filepath.Join(dir, images.LockFile))
	require.NoError(t, err)
	assert.Equal(t, strings.Replace(string(before), old, now, 1), string(after))

	code, out, _ = call(t, dir, nil, "lock")
	assert.Zero(t, code)
	assert.Contains(t, out, "0 of 2 would change")
	assert.NotContains(t, out, "written")

	server.Close()
	code, out, errOut = call(t, dir, nil, "lock", "--yes")
	assert.Equal(t, 1, code)
	assert.Contains(t, out, "✗ moved  stays sha256:2222")
	assert.Contains(t, errOut, "connection refused")

	require.NoError(t, os.WriteFile(filepath.Join(dir, images.LockFile), []byte("- nmae: x\n"), 0o644))
	code, _, errOut = call(t, dir, nil, "lock")
	assert.NotZero(t, code)
	assert.Contains(t, errOut, "nmae")
}
