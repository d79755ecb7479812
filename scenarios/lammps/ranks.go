package lammps

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/bedfellow/bedfellow/pkg/results"
)

// launcher is what every rank starts as: launcher PREFIX COMMAND… It writes its rank, node and process id, which stays the
// command's, to the file PREFIX.<rank> on its node.
const launcher = `#!/bin/sh
prefix=$1
shift
rank=${PMI_RANK:-${PMIX_RANK:-${SLURM_PROCID:-$FLUX_TASK_RANK}}}
echo "$rank $(uname -n) $$" >"$prefix.$rank"
exec "$@"
`

// parseRanks reads what launcher left on the nodes, by node, and checks that ranks 0 to count−1 are there once each, on the node
// they say, and at least one on every node.
func parseRanks(left map[string]string, count int) ([]results.Rank, error) {
	var ranks []results.Rank
	for node, text := range left {
		found := 0
		for line := range strings.Lines(text) {
			fields := strings.Fields(line)
			if len(fields) != 3 {
				return nil, fmt.Errorf("node %s: %q where a rank, its node and process were expected", node, line)
			}
			rank, errRank := strconv.Atoi(fields[0])
			pid, errPID := strconv.Atoi(fields[2])
			switch {
			case errRank != nil || errPID != nil || pid < 1:
				return nil, fmt.Errorf("node %s: %q where a rank, its node and process were expected", node, line)
			case fields[1] != node:
				return nil, fmt.Errorf("rank %d ran on node %s, which calls itself %s", rank, node, fields[1])
			}
			ranks = append(ranks, results.Rank{Rank: rank, Node: node, PID: pid})
			found++
		}
		if found == 0 {
			return nil, fmt.Errorf("no rank ran on node %s", node)
		}
	}
	slices.SortFunc(ranks, func(a, b results.Rank) int { return a.Rank - b.Rank })
	for i, r := range ranks {
		if r.Rank != i {
			return nil, fmt.Errorf("rank %d ran twice or rank %d did not run", r.Rank, i)
		}
	}
	if len(ranks) != count {
		return nil, fmt.Errorf("%d ranks ran, but %d were asked for", len(ranks), count)
	}
	return ranks, nil
}
