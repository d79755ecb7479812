package lammps

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/bedfellow/bedfellow/pkg/results"
)

func TestParseRanks(t *testing.T) {
	ranks, err := parseRanks(map[string]string{"q-03": "2 q-03 11\n3 q-03 12", "q-02": "1 q-02 12\n0 q-02 11\n"}, 4)
	require.NoError(t, err)
	require.Equal(t, []results.Rank{{Rank: 0, Node: "q-02", PID: 11}, {Rank: 1, Node: "q-02", PID: 12}, {Rank: 2, Node: "q-03", PID: 11}, {Rank: 3, Node: "q-03", PID: 12}}, ranks)
	for says, left := range map[string]map[string]string{
		"no rank ran on node q-03":                    {"q-02": "0 q-02 1\n1 q-02 2\n", "q-03": ""},
		"rank 0 ran twice or rank 1 did not run":      {"q-02": "0 q-02 1\n", "q-03": "0 q-03 1\n"},
		"rank 2 ran twice or rank 1 did not run":      {"q-02": "0 q-02 1\n", "q-03": "2 q-03 1\n"},
		"3 ranks ran, but 2 were asked for":           {"q-02": "0 q-02 1\n1 q-02 5\n", "q-03": "2 q-03 1\n"},
		"which calls itself localhost":                {"q-02": "0 localhost 1\n"},
		`"0 q-02\n" where a rank`:                     {"q-02": "0 q-02\n"},
		`" q-02 7" where a rank`:                      {"q-02": " q-02 7"},
		`"0 q-02 -1" where a rank`:                    {"q-02": "0 q-02 -1"},
		`"0 q-02 1x" where a rank, its node and proc`: {"q-02": "0 q-02 1x"},
	} {
		_, err := parseRanks(left, 2)
		require.ErrorContains(t, err, says)
	}
}

func TestWithSteps(t *testing.T) {
	for _, was := range []string{"run $t", "run 100", "  run\t${t}  "} {
		text, err := withSteps("variable t index 100\n# to run it\nthermo 10\n"+was+"\n", 20)
		require.NoError(t, err)
		require.Equal(t, "variable t index 100\n# to run it\nthermo 10\nrun 20\n", text)
	}
	_, err := withSteps("run 1\nrun 2\n", 20)
	require.ErrorContains(t, err, "2 run commands")
	_, err = withSteps("minimize 1\n", 20)
	require.ErrorContains(t, err, "0 run commands")
}
