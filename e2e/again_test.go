package e2e_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/bedfellow/bedfellow/pkg/progress"
)

// again: Ansible over a bed that is configured changes nothing on any node, and no process shows a key of the bed meanwhile.
func (p place) again(t *testing.T) {
	inv := p.inventory(t)
	p.needTime(t, inv)
	p.oldPlaybooks(t)
	processes := watchProcesses(t, p.keys(t, inv))
	again, c := p.up(t)
	processes.check(t, "ansible-playbook", "pulumi-resource-bedfellow", " "+inv.Nodes[len(inv.Nodes)-1].Name+" /bin/sh -c ") // Ansible's ssh to the last node
	assert.Equal(t, inv, again)
	assert.Equal(t, 1, changes(t, c)["update"], "the configuration and nothing else: %s", c)
	done, ok := c.step(progress.Done, "configure")
	require.True(t, ok, "%s", c)
	assert.Equal(t, fmt.Sprintf("0 changed on %d hosts", len(inv.Nodes)), done.Detail)
}

// oldPlaybooks makes the state say that the nodes were configured by other playbooks than this version's.
func (p place) oldPlaybooks(t *testing.T) {
	t.Helper()
	var state map[string]any
	require.NoError(t, json.Unmarshal(p.pulumi(t, nil, "stack", "export"), &state))
	edited := 0
	for _, r := range state["deployment"].(map[string]any)["resources"].([]any) {
		if r := r.(map[string]any); r["type"] == "bedfellow:index:Configuration" {
			for _, part := range []string{"inputs", "outputs"} {
				r[part].(map[string]any)["playbooks"] = "of an older version"
				edited++
			}
		}
	}
	require.Equal(t, 2, edited)
	data, err := json.Marshal(state)
	require.NoError(t, err)
	p.pulumi(t, data, "stack", "import")
}

// pulumi runs the CLI on the stack's state, as README says a person may.
func (p place) pulumi(t *testing.T, stdin []byte, args ...string) []byte {
	t.Helper()
	cli := work(t, "bin/pulumi")
	if _, err := os.Stat(cli); err != nil {
		cli = "pulumi"
	}
	cmd := exec.CommandContext(t.Context(), cli, append(args, "-s", p.stack)...)
	cmd.Dir, cmd.Stdin = p.dir, bytes.NewReader(stdin)
	cmd.Env = []string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + work(t, "home"), "PULUMI_HOME=" + filepath.Join(p.dir, ".bed/home"), "PULUMI_SKIP_UPDATE_CHECK=true",
		"PULUMI_BACKEND_URL=file://" + filepath.Join(p.dir, ".bed/state"), "PULUMI_CONFIG_PASSPHRASE_FILE=" + filepath.Join(p.dir, ".bed/passphrase"),
	}
	var said bytes.Buffer
	cmd.Stderr = &said
	out, err := cmd.Output()
	require.NoError(t, err, "pulumi %v: %s", args, said.String())
	return out
}
