package provider_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/bedfellow/bedfellow/provision/provider"
)

// outputs are a Pool's in an exported state, abridged: the second node was never made.
const outputs = `{
	"driver": "nspawn", "imageDigest": "sha256:00", "user": "bed", "owner": {"bed": "b", "id": "01", "state": "file:///s"},
	"userPrivateKey": {"4dabf18193072939515e22adb298388d": "1b47061264138c4ac30d75fd1eb44270", "plaintext": "\"PEM\""},
	"hostPublicKeys": {"b-01": "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIDRQ", "b-02": "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIDRR"},
	"nodes": [
		{"name": "b-01", "index": 0, "role": "control", "cpus": 1, "memoryMiB": 1024},
		{"name": "b-02", "index": 1, "role": "compute", "cpus": 2, "memoryMiB": 2048}
	],
	"machines": [
		{"name": "b-01", "state": "running", "address": "10.0.0.2", "port": 22, "incarnation": "x"},
		{"name": "b-02", "state": "missing", "detail": "no memory", "via": "b-01"}
	]
}`

func TestStandingReadsAHalfMadeBed(t *testing.T) {
	inv, key, err := provider.Standing([]byte(outputs))
	require.NoError(t, err)
	assert.Equal(t, "PEM", string(key))
	require.Len(t, inv.Nodes, 2)
	assert.True(t, inv.Nodes[0].Made())
	assert.False(t, inv.Nodes[1].Made())
	assert.Equal(t, "b-01", inv.Nodes[1].Via)
}

func TestStandingRefuses(t *testing.T) {
	for needle, change := range map[string][2]string{
		"two machines are called b-01": {`"name": "b-02", "state"`, `"name": "b-01", "state"`},
		"two nodes are called b-01":    {`"name": "b-02", "index"`, `"name": "b-01", "index"`},
		`the role ""`:                  {`"role": "compute"`, `"role": ""`},
		"no port 0":                    {`"port": 22`, `"port": 0`},
		"0 control and 2 compute":      {`"role": "control"`, `"role": "compute"`},
		"the host key":                 {`"b-02": "ssh-ed25519`, `"b-03": "ssh-ed25519`},
		"which is no node of bed b":    {`"via": "b-01"`, `"via": "b-03"`},
		"no user":                      {`"user": "bed"`, `"user": ""`},
		"invalid character":            {`{`, ``},
	} {
		_, key, err := provider.Standing([]byte(strings.Replace(outputs, change[0], change[1], 1)))
		assert.ErrorContains(t, err, needle)
		assert.Empty(t, key)
	}
}

// FuzzStanding: no state crashes the reader, and what it accepts is the inventory of a bed.
func FuzzStanding(f *testing.F) {
	f.Add([]byte(outputs))
	f.Add([]byte(strings.Replace(outputs, `"\"PEM\""`, `"{\"plaintext\":\"1\"}"`, 1)))
	f.Add([]byte(strings.ReplaceAll(outputs, `"b-02"`, `"b-01"`)))
	f.Add([]byte(`{"nodes":[null],"machines":{}}`))
	f.Add([]byte(`null`))
	f.Fuzz(func(t *testing.T, data []byte) {
		inv, key, err := provider.Standing(data)
		if err != nil {
			if len(inv.Nodes) > 0 || key != nil {
				t.Fatalf("%v with %+v", err, inv)
			}
			return
		}
		if err := inv.Check(); err != nil {
			t.Fatalf("accepted %+v: %v", inv, err)
		}
	})
}
