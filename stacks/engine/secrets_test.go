package engine_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/bedfellow/bedfellow/pkg/bed"
	"github.com/bedfellow/bedfellow/stacks/engine"
)

// everything is all that is in the files below a folder.
func everything(t *testing.T, dir string) (text string) {
	t.Helper()
	require.NoError(t, filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		text += string(data)
		return err
	}))
	return text
}

// A secret of the configuration is kept encrypted, whoever wrote it, and is there again for the next call.
func TestSecretsAreKeptEncrypted(t *testing.T) {
	const password, token = "hunter-2-hunter", "a-token-of-the-engine"
	dir := clone(t)
	settings := map[string]string{"driver": "ovirt", "ovirt.url": "https://engine/ovirt-engine/api", "ovirt.username": "hpc@internal", "ovirt.password": password}
	path := filepath.Join(dir, ".bed/config/Pulumi.quickstart.yaml")
	require.NoError(t, engine.WriteConfig(open(t, dir, settings), path))
	assert.NotContains(t, everything(t, dir), password)
	kept, err := os.ReadFile(path)
	require.NoError(t, err)
	assert.Contains(t, string(kept), "bedfellow:ovirt.password:\n        secure: ")

	// It is for whoever has the passphrase.
	t.Setenv("PULUMI_CONFIG_PASSPHRASE", "another")
	_, err = engine.Open(dir, "quickstart", nil)
	var problems bed.Problems
	require.ErrorAs(t, err, &problems)
	assert.Equal(t, 3, problems.ExitCode())
	assert.Contains(t, err.Error(), "the passphrase does not open")
	require.NoError(t, os.Unsetenv("PULUMI_CONFIG_PASSPHRASE"))

	spec, err := open(t, dir, nil).Spec()
	require.NoError(t, err)
	assert.Equal(t, password, spec.Settings["password"])
	env, err := engine.Environment(open(t, dir, nil))
	require.NoError(t, err)
	assert.Contains(t, env["BEDFELLOW_OVIRT"], password, "the plugin is told")
	t.Chdir(dir)
	env, err = engine.Environment(open(t, dir, map[string]string{"ovirt.password": "", "ovirt.caFile": "ca.pem"}))
	require.NoError(t, err)
	assert.JSONEq(t, `{"url":"https://engine/ovirt-engine/api","username":"hpc@internal","caFile":"`+filepath.Join(dir, "ca.pem")+`"}`, env["BEDFELLOW_OVIRT"], "the password is taken out, and the environment's counts; the plugin works in another folder")

	// What did not change stays as it is, and so does what it is encrypted by.
	require.NoError(t, engine.WriteConfig(open(t, dir, map[string]string{"nodes": "2"}), path))
	again, err := os.ReadFile(path)
	require.NoError(t, err)
	assert.Equal(t, secureLines(string(kept)), secureLines(string(again)))

	// In a stack of the user's own it may be in the clear; what is kept of that is not.
	require.NoError(t, os.WriteFile(filepath.Join(dir, "Pulumi.mine.yaml"), []byte("config:\n  bedfellow:driver: ovirt\n  bedfellow:ovirt.token: "+token+"\n"), 0o600))
	mine, err := engine.Open(dir, "mine", nil)
	require.NoError(t, err)
	require.NoError(t, engine.WriteConfig(mine, filepath.Join(dir, ".bed/config/Pulumi.mine.yaml")))
	assert.NotContains(t, everything(t, filepath.Join(dir, ".bed")), token)
	mine, err = engine.Open(dir, "mine", nil)
	require.NoError(t, err)
	_, err = mine.Spec() // which lacks an engine's address
	assert.NotContains(t, err.Error(), token)
	assert.NotContains(t, err.Error(), "ovirt.username", "it has a token")
}

// secureLines are those that an encrypted value is made of.
func secureLines(text string) (lines []string) {
	for line := range strings.Lines(text) {
		if strings.Contains(line, "secure: ") || strings.Contains(line, "encryptionsalt: ") {
			lines = append(lines, line)
		}
	}
	return lines
}

// What only looks like a secret is not taken for one: it would be in the state in the clear.
func TestOnlySecretsAreKeptEncrypted(t *testing.T) {
	dir := clone(t)
	path := filepath.Join(dir, ".bed/config/Pulumi.quickstart.yaml")
	require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o700))
	for text, says := range map[string]string{
		"config:\n  bedfellow:flux:\n    secure: v1:abc\n":                                              "flux: is encrypted in the configuration",
		"config:\n  bedfellow:ovirt.password:\n    secure: v1:abc\n":                                    "passphrase",
		"secretsprovider: awskms://alias/x\nconfig:\n  bedfellow:ovirt.password:\n    secure: v1:abc\n": "set OVIRT_PASSWORD or OVIRT_TOKEN instead",
	} {
		require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
		if strings.HasPrefix(text, "secretsprovider") {
			t.Setenv("PULUMI_CONFIG_PASSPHRASE", "any")
		}
		_, err := engine.Open(dir, "quickstart", nil)
		require.ErrorContains(t, err, says)
		require.NoError(t, os.Unsetenv("PULUMI_CONFIG_PASSPHRASE"))
	}
}
