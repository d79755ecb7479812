package ovirt_test

import (
	"testing"

	"github.com/stretchr/testify/assert"

	"github.com/bedfellow/bedfellow/provision/ovirt"
)

// The configuration goes before the environment, and who gives one secret gives all.
func TestWhereSecretsComeFrom(t *testing.T) {
	for name, value := range map[string]string{"URL": "https://engine/ovirt-engine/api", "USERNAME": "env@internal", "PASSWORD": "of the environment", "TOKEN": "of the environment"} {
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
	t.Setenv(ovirt.ConnectionEnv, `{"username":"bed@internal","password":"of bed's"}`)
	assert.Equal(t, [3]string{"bed@internal", "of bed's", ""}, read(nil))
	assert.Equal(t, [3]string{"bed@internal", "", "mine"}, read(map[string]string{"token": "mine"}))

	connection, rest := ovirt.Split(map[string]string{"password": "p", "token": "t", "username": "u", "cluster": "c"})
	assert.Equal(t, map[string]string{"password": "p", "token": "t", "username": "u"}, connection)
	assert.Equal(t, map[string]string{"cluster": "c"}, rest, "what a state has")
}
