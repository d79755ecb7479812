package main

import (
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
