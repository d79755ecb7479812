package nspawn_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/bedfellow/bedfellow/images"
	"github.com/bedfellow/bedfellow/pkg/bed"
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
	open := func(*testing.T) provision.Driver {
		d := nspawn.New(root)
		d.SetBootTimeout(patience())
		return d
	}
	for name, kill := range map[string]func(*testing.T, string){"supervisor": killSupervisor, "init": killInit} {
		t.Run("killed "+name, func(t *testing.T) {
			drivertest.Suite{
				Open: open, Image: image, ImageDigest: digest, Bed: "conformance", Timeout: 2 * patience(),
				Kill: kill, Census: func(t *testing.T) []string { return census(t, root) }, Seen: patience() / 6,
			}.Run(t)
		})
	}
}

// patience is how long a node may take to boot: a minute, and more on a host that is itself an emulated machine.
func patience() time.Duration {
	if os.Getenv("BEDFELLOW_SLOW") == "1" {
		return 10 * time.Minute
	}
	return time.Minute
}

// A node that never answers is an error that shows its console, and nothing of it stays.
func TestNeverAnswers(t *testing.T) {
	if os.Geteuid() != 0 {
		hosttest.Lacks(t, "root")
	}
	image, digest := bakedImage(t)
	dir := t.TempDir()
	mute := filepath.Join(dir, "mute") // the image without an sshd
	for _, sub := range []string{"upper/usr/sbin", "work", "mute"} {
		require.NoError(t, os.MkdirAll(filepath.Join(dir, sub), 0o755))
	}
	require.NoError(t, os.WriteFile(filepath.Join(dir, "upper/usr/sbin/sshd"), []byte("#!/bin/false\n"), 0o755))
	require.NoError(t, syscall.Mount("overlay", mute, "overlay", 0, "lowerdir="+image+",upperdir="+dir+"/upper,workdir="+dir+"/work"))
	t.Cleanup(func() { require.NoError(t, syscall.Unmount(mute, 0)) })

	root := filepath.Join(dir, "beds")
	before := census(t, root)
	d := nspawn.New(root)
	d.SetBootTimeout(5 * time.Second)
	private, public := drivertest.Key(t)
	_, err := d.Create(t.Context(), provision.Machine{
		Name: "conformance-01", Owner: provision.Owner{Bed: "conformance", ID: "1", State: "file:///mute"}, Role: bed.Compute, CPUs: 1, Memory: 512 * bed.MiB,
		Image: mute, ImageDigest: digest, Network: "isolated", User: "bed", AuthorizedKey: public, HostKey: private, HostPublicKey: public,
	})
	for _, needle := range []string{"conformance-01", "did not answer within 5s", "profile=slow", "console", "ssh"} {
		require.ErrorContains(t, err, needle)
	}
	require.Equal(t, before, census(t, root))
}

// bakedImage bakes the image of the quickstart, or finds it in the host's store. BEDFELLOW_NSPAWN_IMAGE is one copied from elsewhere, to
// a host that does not bake.
func bakedImage(t *testing.T) (tree, digest string) {
	if tree := os.Getenv("BEDFELLOW_NSPAWN_IMAGE"); tree != "" {
		return tree, "copied"
	}
	store, err := images.Open("")
	require.NoError(t, err)
	img, err := store.Build(t.Context(), images.Request{Definition: "debian-12"})
	require.NoError(t, err)
	return img.Path, img.Digest
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
