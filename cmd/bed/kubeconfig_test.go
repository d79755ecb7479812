package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"gopkg.in/yaml.v3"
)

const admin = `apiVersion: v1
kind: Config
clusters:
- name: k
  cluster: {certificate-authority-data: Q0E=, server: "https://10.104.0.1:6443"}
users:
- name: admin
  user: {client-key-data: S0VZ}
`

// A file that is there is somebody's; those of tunnels that are no more are nobody's.
func TestKubeconfigsOfOthers(t *testing.T) {
	dir := t.TempDir()
	theirs := filepath.Join(dir, "config")
	require.NoError(t, os.WriteFile(theirs, []byte("all my clusters"), 0o600))
	require.ErrorContains(t, writePrivately(theirs, []byte(admin)), "is there already")
	data, err := os.ReadFile(theirs)
	require.NoError(t, err)
	assert.Equal(t, "all my clusters", string(data))

	var files []string
	for range 2 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		t.Cleanup(func() { _ = l.Close() })
		files = append(files, filepath.Join(dir, fmt.Sprint(kubeconfigFile, l.Addr().(*net.TCPAddr).Port)))
		require.NoError(t, writePrivately(files[len(files)-1], []byte(admin)))
		if len(files) == 1 {
			require.NoError(t, l.Close())
		}
	}
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	require.NoError(t, removeDead(cancelled, dir))
	assert.FileExists(t, files[0], "who asks no more has no answer")
	require.NoError(t, removeDead(t.Context(), dir))
	assert.NoFileExists(t, files[0])
	assert.FileExists(t, files[1])
	assert.FileExists(t, theirs)
}

func TestKubeconfigLeadsToTheTunnelAndStillChecksTheServer(t *testing.T) {
	got, err := kubeconfigFor([]byte(admin), "127.0.0.1:4711")
	require.NoError(t, err)
	var config struct {
		Clusters []struct {
			Cluster map[string]string
		}
		Users []struct {
			User map[string]string
		}
	}
	require.NoError(t, yaml.Unmarshal(got, &config))
	assert.Equal(t, map[string]string{"certificate-authority-data": "Q0E=", "server": "https://127.0.0.1:4711"}, config.Clusters[0].Cluster)
	assert.Equal(t, "S0VZ", config.Users[0].User["client-key-data"])

	for _, wrong := range []string{"", "- x", "clusters: []", "clusters: [{cluster: {server: x}}]", "clusters: [{}, {}]"} {
		_, err := kubeconfigFor([]byte(wrong), "127.0.0.1:4711")
		assert.Error(t, err, wrong)
	}
}
