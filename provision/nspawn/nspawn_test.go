package nspawn_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/bedfellow/bedfellow/provision"
	"github.com/bedfellow/bedfellow/provision/drivertest"
	"github.com/bedfellow/bedfellow/provision/nspawn"
)

func TestConformance(t *testing.T) {
	image, digest := "/tmp/w/tree", "x"
	root := filepath.Join(t.TempDir(), "beds")
	open := func(*testing.T) provision.Driver { return nspawn.New(root) }
	for name, kill := range map[string]func(*testing.T, string){"supervisor": killSupervisor, "init": killInit} {
		t.Run("killed "+name, func(t *testing.T) {
			drivertest.Suite{
				Open: open, Image: image, ImageDigest: digest, Bed: "conformance", Timeout: 2 * time.Minute,
				Kill: kill, Census: func(t *testing.T) []string { return census(t, root) },
			}.Run(t)
		})
	}
}

// census lists what the driver makes on a host, by asking the host.
func census(t *testing.T, root string) []string {
	var found []string
	add := func(what string, lines ...string) {
		for _, l := range lines {
			if l = strings.TrimSpace(l); l != "" {
				found = append(found, what+" "+l)
			}
		}
	}
	for what, pattern := range map[string]string{
		"namespace": "/run/netns/*", "cgroup": "/sys/fs/cgroup/*/bedfellow*/*", "cgroup v2": "/sys/fs/cgroup/bedfellow*/*",
		"device": "/sys/class/net/bf*", "nspawn": "/run/systemd/nspawn/*/*", "bed": root + "*",
	} {
		paths, err := filepath.Glob(pattern)
		require.NoError(t, err)
		add(what, paths...)
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	require.NoError(t, err)
	for _, line := range strings.Split(string(mounts), "\n") {
		if strings.Contains(line, root) {
			add("mount", line)
		}
	}
	processes, _ := exec.Command("pgrep", "-af", "systemd-nspawn.*"+root).Output()
	add("process", strings.Split(string(processes), "\n")...)
	return found
}

// supervisor is the process id of a node's systemd-nspawn.
func supervisor(t *testing.T, name string) string {
	out, err := exec.Command("pgrep", "-f", "^systemd-nspawn .*--machine="+name+" ").Output()
	require.NoError(t, err)
	return strings.TrimSpace(string(out))
}

func killSupervisor(t *testing.T, name string) { kill(t, supervisor(t, name)) }

func killInit(t *testing.T, name string) {
	out, err := exec.Command("pgrep", "-P", supervisor(t, name)).Output()
	require.NoError(t, err)
	kill(t, strings.TrimSpace(string(out)))
}

func kill(t *testing.T, pid string) {
	require.NoError(t, exec.Command("kill", "-9", pid).Run())
	deadline := time.Now().Add(5 * time.Second)
	for time.Now().Before(deadline) {
		if _, err := os.Stat("/proc/" + pid); err != nil {
			return
		}
		time.Sleep(10 * time.Millisecond) // a poll: a killed process needs a moment
	}
	require.Fail(t, "process "+pid+" does not die")
	_ = syscall.SIGKILL
}
