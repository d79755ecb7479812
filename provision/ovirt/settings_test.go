package ovirt_test

import (
	"io"
	"log/slog"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/bedfellow/bedfellow/provision/ovirt"
)

// The configuration goes before the environment, whoever hands it on, and who gives one secret gives all.
func TestWhereSecretsComeFrom(t *testing.T) {
	for name, value := range map[string]string{"URL": "https://engine/ovirt-engine/api", "USERNAME": "env@internal", "PASSWORD": "of the environment", "TOKEN": "of the environment", "CAFILE": "env.pem"} {
		t.Setenv("OVIRT_"+name, value)
	}
	read := func(values map[string]string) [3]string {
		s, problems := ovirt.ReadSettings(values)
		assert.Empty(t, problems)
		return [3]string{s.Username, s.Password, s.Token}
	}
	assert.Equal(t, [3]string{"env@internal", "of the environment", "of the environment"}, read(nil))
	assert.Equal(t, [3]string{"env@internal", "mine", ""}, read(map[string]string{"password": "mine"}))
	assert.Equal(t, [3]string{"env@internal", "", "mine"}, read(map[string]string{"token": "mine"}))
	assert.Equal(t, [3]string{"env@internal", "of the environment", "of the environment"}, read(map[string]string{"password": ""}), "it was taken out")
	t.Setenv("PULUMI_CONFIG", `{"name":"u2204","ovirt.username":"stack@internal","ovirt.password":"of the stack","ovirt.cluster":"HPC"}`)
	assert.Equal(t, [3]string{"stack@internal", "of the stack", ""}, read(nil))
	s, _ := ovirt.ReadSettings(nil)
	assert.Empty(t, s.Cluster, "which is an input of what Pulumi makes")
	t.Setenv(ovirt.ConnectionEnv, `{"username":"bed@internal","password":"of bed's"}`)
	assert.Equal(t, [3]string{"bed@internal", "of bed's", ""}, read(nil))
	assert.Equal(t, [3]string{"bed@internal", "", "mine"}, read(map[string]string{"token": "mine"}))
	t.Setenv(ovirt.ConnectionEnv, `{}`)
	assert.Equal(t, [3]string{"env@internal", "of the environment", "of the environment"}, read(nil), "bed's is what holds for the call")

	s, problems := ovirt.ReadSettings(map[string]string{"fingerprint": "AB"})
	assert.Empty(t, s.CAFile, "the environment's would be taken, and the fingerprint not looked at")
	assert.Len(t, problems, 1)

	connection, rest := ovirt.Split(map[string]string{"password": "p", "token": "t", "username": "u", "cluster": "c"})
	assert.Equal(t, map[string]string{"password": "p", "token": "t", "username": "u"}, connection)
	assert.Equal(t, map[string]string{"cluster": "c"}, rest, "what a state has")
}

// A password that is wrong is said to be the one that was taken, of those that there are.
func TestWhoseSecretIsWrong(t *testing.T) {
	e := start(t, quick())
	said := func(values map[string]string) string {
		s, _ := ovirt.ReadSettings(values)
		problems := ovirt.New(s, e.cache, slog.New(slog.NewTextHandler(io.Discard, nil))).Check(t.Context())
		if len(problems) == 0 {
			return ""
		}
		require.Len(t, problems, 1)
		return problems[0].String()
	}
	for name, value := range map[string]string{"URL": e.URL, "USERNAME": e.Username, "PASSWORD": "wrong", "CAFILE": e.ca} {
		t.Setenv("OVIRT_"+name, value)
	}
	assert.Contains(t, said(nil), "is from OVIRT_USERNAME, and the password from OVIRT_PASSWORD\n    → give the right ones there")
	assert.Empty(t, said(map[string]string{"password": e.Password}), "the configuration's is taken, and right")
	t.Setenv("OVIRT_PASSWORD", e.Password)
	assert.Empty(t, said(nil))
	wrong := said(map[string]string{"username": e.Username, "password": "wrong"})
	assert.Contains(t, wrong, "is from ovirt.username of the configuration, which goes before OVIRT_USERNAME (-c ovirt.username= takes it out), and the password from ovirt.password of the configuration, which goes before OVIRT_PASSWORD (-c ovirt.password= takes it out)")
	assert.NotContains(t, wrong, "password wrong")
	t.Setenv("OVIRT_TOKEN", "of yesterday")
	assert.Contains(t, said(map[string]string{"token": "stale"}), "the token, which is from ovirt.token of the configuration, which goes before OVIRT_TOKEN (-c ovirt.token= takes it out): it has expired, or is another engine's\n    → give a new one there")
}
