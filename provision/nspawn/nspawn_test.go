package nspawn_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/bedfellow/bedfellow/images"
	"github.com/bedfellow/bedfellow/pkg/hosttest"
	"github.com/bedfellow/bedfellow/provision"
	"github.com/bedfellow/bedfellow/provision/drivertest"
	"github.com/bedfellow/bedfellow/provision/nspawn"
)

func TestConformance(t *testing.T) {
	if os.Geteuid() != 0 {
		hosttest.Lacks(t, "root")
	}
	image, digest := bakedImage(t)
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

// bakedImage bakes the image of the quickstart, or finds it in the host's store.
func bakedImage(t *testing.T) (tree, digest string) {
	store, err := images.Open("")
	require.NoError(t, err)
	img, err := store.Build(t.Context(), images.Request{Definition: "debian-12"})
	require.NoError(t, err)
	return img.Tree, img.Digest
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
	patterns := map[string]string{
		"namespace": "/run/netns/*conformance*", "cgroup": "/sys/fs/cgroup/*/bedfellow*/*conformance*", "cgroup v2": "/sys/fs/cgroup/bedfellow*/*conformance*",
		"device": "/sys/class/net/" + nspawn.Link("conformance"), "nspawn": "/run/systemd/nspawn/*/*conformance*", "bed": root + "*",
	}
	if beds, _ := os.ReadDir(nspawn.DefaultRoot); len(beds) == 0 { // the locks do not say whose they are
		patterns["lock"] = "/run/systemd/nspawn/locks/*"
	}
	for what, pattern := range patterns {
		paths, err := filepath.Glob(pattern)
		require.NoError(t, err)
		add(what, paths...)
	}
	sort.Strings(found)
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
}
