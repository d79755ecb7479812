package playbooks_test

import (
	"io/fs"
	"os/exec"
	"path"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"gopkg.in/yaml.v3"

	"github.com/bedfellow/bedfellow/playbooks"
)

// maxConfigureTasks keeps `bed up` quick: a task costs about half a second whatever it does.
const maxConfigureTasks = 15

func read(t *testing.T, name string, into any) {
	t.Helper()
	data, err := fs.ReadFile(playbooks.FS, name)
	require.NoError(t, err)
	require.NoError(t, yaml.Unmarshal(data, into), name)
}

func taskFiles(t *testing.T, entry string) []string {
	t.Helper()
	files, err := fs.Glob(playbooks.FS, "roles/*/tasks/"+entry+".yml")
	require.NoError(t, err)
	return files
}

// siteFiles are the entry points that a bed is configured by.
func siteFiles(t *testing.T) []string {
	return slices.Concat(taskFiles(t, "configure"), taskFiles(t, "cluster"), taskFiles(t, "jobs"))
}

func TestFewConfigureTasks(t *testing.T) {
	counts := map[string]int{}
	for _, file := range siteFiles(t) {
		var tasks []map[string]any
		read(t, file, &tasks)
		for _, task := range tasks {
			assert.NotContains(t, task, "block", "%s: count a block's tasks here before using one", file)
		}
		counts[strings.TrimPrefix(file, "roles/")] = len(tasks)
	}
	// A bed has one workload manager, one kind of Kubernetes, and the rest in any case.
	count := 0
	for _, one := range [][]string{{"slurm/tasks/configure.yml", "flux/tasks/configure.yml"}, {"usernetes/tasks/cluster.yml", "usernetes/tasks/jobs.yml"}} {
		most := 0
		for _, file := range one {
			require.Contains(t, counts, file)
			most = max(most, counts[file])
			delete(counts, file)
		}
		count += most
	}
	for _, n := range counts {
		count += n
	}
	assert.LessOrEqual(t, count, maxConfigureTasks)
}

// Every entry point says what it takes, and every default it names is the one it has.
func TestEveryRoleDeclaresItsArguments(t *testing.T) {
	for _, file := range taskFiles(t, "*") {
		role, entry := strings.Split(file, "/")[1], strings.TrimSuffix(path.Base(file), ".yml")
		assert.Contains(t, playbooks.Roles(), role)
		var specs struct {
			Specs map[string]struct {
				Options map[string]struct {
					Type     string
					Default  any
					Required bool
					NoLog    bool `yaml:"no_log"`
				}
			} `yaml:"argument_specs"`
		}
		read(t, "roles/"+role+"/meta/argument_specs.yml", &specs)
		require.Contains(t, specs.Specs, entry, role)
		defaults := map[string]any{}
		read(t, "roles/"+role+"/defaults/main.yml", &defaults)
		for name, option := range specs.Specs[entry].Options {
			assert.NotEmpty(t, option.Type, "%s: %s", role, name)
			assert.True(t, option.Required || option.Default != nil, "%s: %s is neither required nor has it a default", role, name)
			if d, ok := defaults[name]; ok {
				assert.Equal(t, d, option.Default, "%s: %s", role, name)
			}
			if strings.Contains(name, "key") {
				assert.True(t, option.NoLog, "%s: %s may be printed", role, name)
			}
		}
	}
}

func TestSiteImportsOnlyRolesThatConfigure(t *testing.T) {
	var plays []struct {
		Tasks []map[string]any
	}
	read(t, "site.yml", &plays)
	require.Len(t, plays, 1)
	imported := 0
	for _, task := range plays[0].Tasks {
		if _, ok := task["ansible.builtin.import_role"]; ok {
			imported++
		}
	}
	assert.Equal(t, len(siteFiles(t)), imported)
}

func TestLint(t *testing.T) {
	if _, err := exec.LookPath("ansible-lint"); err != nil {
		t.Skip("ansible-lint is not installed")
	}
	out, err := exec.Command("ansible-lint", "--offline", "-q", "-p", "bake.yml", "build.yml", "site.yml", "roles").CombinedOutput()
	assert.NoError(t, err, "%s", out)
}
