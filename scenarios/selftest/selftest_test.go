package selftest

import (
	"bytes"
	"os/exec"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/bedfellow/bedfellow/pkg/results"
)

func TestParse(t *testing.T) {
	found, err := parse("host name\tok\te2e-01\nmodule vxlan\tno\tnot loaded\n")
	require.NoError(t, err)
	assert.Equal(t, []finding{{"host name", true, "e2e-01"}, {"module vxlan", false, "not loaded"}}, found)
	for _, wrong := range []string{"", "host name", "host name\tyes\te2e-01\n", "\tok\tx\n", "a\tok\tb\tc\n", "bash: line 1: x\n"} {
		_, err := parse(wrong)
		assert.Error(t, err, "%q", wrong)
	}
}

func TestClock(t *testing.T) {
	now := time.Unix(1_700_000_000, 900_000_000)
	for seen, want := range map[string]finding{
		"1700000000": {"clock", true, "0s from this host's"}, // a second is shown from its begin
		"1700000009": {"clock", true, "0s from this host's"}, // meanwhile ten passed here
		"1699999900": {"clock", false, "1m40s from this host's"},
		"1700000100": {"clock", false, "1m29s from this host's"},
	} {
		got, err := clock(seen, now, now.Add(10*time.Second))
		require.NoError(t, err)
		assert.Equal(t, want, got, seen)
	}
	_, err := clock("noon", now, now)
	assert.Error(t, err)
}

// The scripts are of the shells that nodes have.
func TestScriptsAreValid(t *testing.T) {
	for shell, script := range map[string]string{"bash": "selftest.sh", "sh": "kubernetes.sh"} {
		out, err := exec.Command(shell, "-n", script).CombinedOutput()
		require.NoError(t, err, "%s", out)
	}
}

func TestTable(t *testing.T) {
	var out bytes.Buffer
	require.NoError(t, table(&out, []results.Sample{
		{Series: "cgroup v2", Parameters: map[string]string{"node": "b-01"}, Status: results.OK, Value: 1, Reason: "cpu memory"},
		{Series: "module vxlan", Parameters: map[string]string{"node": "b-01"}, Status: results.OK, Value: 0, Reason: "not loaded"},
		{Series: "clock", Parameters: map[string]string{"node": "b-02"}, Status: results.Failed, Reason: "9s from this host's"},
	}))
	assert.Equal(t, `NODE  PROPERTY      HOLDS            SEEN
b-01  cgroup v2     yes              cpu memory
b-01  module vxlan  no, as the host  not loaded
b-02  clock         NO               9s from this host's
`, out.String())
}
