package main_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/bedfellow/bedfellow/provision/ovirt/enginetest"
)

// An engine with several clusters is none that something is wrong with: doctor, whom nobody has told which, lists them.
func TestDoctorListsWhatIsToBeChosen(t *testing.T) {
	e, err := enginetest.Start("", enginetest.Latency{}, &enginetest.Loopback{})
	require.NoError(t, err)
	t.Cleanup(e.Close)
	dir := clone(t)
	ca := filepath.Join(dir, "ca.pem")
	require.NoError(t, os.WriteFile(ca, e.CA, 0o600))
	look := func(password string) string {
		_, stdout, _ := call(t, dir, func(c *exec.Cmd) {
			c.Env = append(c.Env, "OVIRT_URL="+e.URL, "OVIRT_USERNAME="+e.Username, "OVIRT_PASSWORD="+password, "OVIRT_CAFILE="+ca)
		}, "doctor", "--driver", "ovirt")
		return stdout
	}
	said := look(e.Password)
	assert.Contains(t, said, "· ovirt: ovirt.cluster is not given, and there are several: Default, Spare")
	assert.NotContains(t, said, "✗ ovirt: ovirt.")
	assert.Contains(t, look("wrong"), "✗ ovirt: ovirt.url")
}

// Whose password has changed since gives the new one for the call, and cannot change a bed that way.
func TestDestroyWithAnotherPassword(t *testing.T) {
	e, err := enginetest.Start("", enginetest.Latency{}, &enginetest.Loopback{})
	require.NoError(t, err)
	t.Cleanup(e.Close)
	dir := clone(t)
	ca := filepath.Join(dir, "ca.pem")
	require.NoError(t, os.WriteFile(ca, e.CA, 0o600))
	destroy := func(args ...string) (int, string) {
		code, _, stderr := call(t, dir, func(c *exec.Cmd) {
			c.Env = append(c.Env, "OVIRT_URL="+e.URL, "OVIRT_USERNAME="+e.Username, "OVIRT_PASSWORD=wrong", "OVIRT_CAFILE="+ca)
		}, append([]string{"destroy", "-s", "ovirt"}, args...)...)
		return code, stderr
	}
	code, said := destroy()
	assert.Equal(t, 1, code)
	assert.Contains(t, said, "does not let admin@internal in")
	assert.Contains(t, said, "the password from OVIRT_PASSWORD")
	code, said = destroy("-c", "ovirt.password="+e.Password)
	assert.Zero(t, code, said)
	code, said = destroy("-c", "nodes=3")
	assert.Equal(t, 2, code)
	assert.Contains(t, said, "nodes: changes a bed, and this changes none")
}
