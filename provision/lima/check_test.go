package lima_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/bedfellow/bedfellow/pkg/bed"
	"github.com/bedfellow/bedfellow/pkg/hosttest"
	"github.com/bedfellow/bedfellow/provision"
	"github.com/bedfellow/bedfellow/provision/lima"
)

// Each thing that is missing is said with what to do about it.
func TestCheck(t *testing.T) {
	remove := func(name string) func(t *testing.T, h fakeHost) {
		return func(t *testing.T, h fakeHost) {
			t.Setenv("PATH", h.bin)
			require.NoError(t, os.Remove(filepath.Join(h.bin, name)))
		}
	}
	for name, c := range map[string]struct {
		harm           func(t *testing.T, h fakeHost)
		reason, remedy string
	}{
		"limactl":    {remove("limactl"), "limactl is missing", "make tools DRIVER=lima"},
		"qemu":       {remove("qemu-system-x86_64"), "qemu-system-x86_64 is missing", "apt-get install qemu-system-x86"},
		"qemu-img":   {remove("qemu-img"), "qemu-img is missing", "apt-get install qemu-utils"},
		"ssh-keygen": {remove("ssh-keygen"), "ssh-keygen is missing", "openssh-client"},
		"too old": {func(t *testing.T, h fakeHost) {
			require.NoError(t, os.WriteFile(filepath.Join(h.bin, "version"), []byte("1.2.2"), 0o644))
		}, "limactl 1.2.2", "Lima 2.0 or newer"},
	} {
		t.Run(name, func(t *testing.T) {
			h := newFakeHost(t)
			require.Empty(t, h.driver().Check(t.Context()))
			c.harm(t, h)
			problems := h.driver().Check(t.Context())
			require.Len(t, problems, 1)
			assert.Contains(t, problems[0].Reason, c.reason)
			assert.Contains(t, problems[0].Remedy, c.remedy)
			assert.True(t, problems[0].Host)
			if name == "limactl" || name == "too old" {
				_, err := h.driver().Create(t.Context(), h.machine(t, 0))
				assert.ErrorContains(t, err, "make tools DRIVER=lima")
				h.clean(t)
			}
		})
	}
}

func TestCheckAsRoot(t *testing.T) {
	if os.Geteuid() != 0 {
		hosttest.Lacks(t, "root")
	}
	h := newFakeHost(t)
	d := h.driver()
	d.SetAccount("bedfellow-none")
	problems := d.Check(t.Context())
	require.Len(t, problems, 1)
	assert.Contains(t, problems[0].Remedy, "useradd --system")

	require.NoError(t, os.Chmod(h.image, 0o700))
	problems = h.driver().Fit(t.Context(), []provision.Machine{h.machine(t, 0)})
	require.Len(t, problems, 1)
	assert.Equal(t, "image", problems[0].Key)

	require.NoError(t, os.Chmod(h.bin, 0o700))
	problems = h.driver().Check(t.Context())
	require.Len(t, problems, 1)
	assert.Contains(t, problems[0].Reason, "does not run as user nobody")
	require.NoError(t, os.Chmod(h.bin, 0o755))
	require.NoError(t, os.Chmod(h.root, 0o700))
	problems = h.driver().Check(t.Context())
	require.Len(t, problems, 1)
	assert.Contains(t, problems[0].Remedy, "enter the directory")
}

func TestFit(t *testing.T) {
	h := newFakeHost(t)
	fit := func(change func(*provision.Machine), n int) []bed.Problem {
		var machines []provision.Machine
		for i := range n {
			m := h.machine(t, i)
			change(&m)
			machines = append(machines, m)
		}
		return h.driver().Fit(t.Context(), machines)
	}
	require.Empty(t, fit(func(*provision.Machine) {}, 2))
	require.Empty(t, h.driver().Fit(t.Context(), nil))
	for key, c := range map[string]struct {
		change func(*provision.Machine)
		nodes  int
		reason string
	}{
		"cpus":    {func(m *provision.Machine) { m.CPUs = 5000 }, 1, "times"},
		"memory":  {func(m *provision.Machine) { m.Memory = 1 << 50 }, 1, "more than"},
		"disk":    {func(m *provision.Machine) { m.Disk = bed.GiB }, 1, "less than the 3GiB"},
		"network": {func(m *provision.Machine) { m.Network = "bridged" }, 1, "none of"},
		"nodes":   {func(m *provision.Machine) { m.Memory = bed.MiB }, 101, "100 nodes"},
		"name": {func(m *provision.Machine) {
			m.Owner.Bed = strings.Repeat("b", 60)
			m.Name = bed.NodeName(m.Owner.Bed, 0)
		}, 1, "too long"},
	} {
		t.Run(key, func(t *testing.T) {
			problems := fit(c.change, c.nodes)
			require.NotEmpty(t, problems)
			last := problems[len(problems)-1]
			assert.Equal(t, key, last.Key)
			assert.Contains(t, last.Reason, c.reason)
			assert.NotEmpty(t, last.Remedy)
		})
	}
}

// The name that the remedy allows does fit, and one letter more does not.
func TestLongestName(t *testing.T) {
	h := newFakeHost(t)
	problem := func(length int) []bed.Problem {
		m := h.machine(t, 0)
		m.Owner.Bed = strings.Repeat("b", length)
		m.Name = bed.NodeName(m.Owner.Bed, 0)
		return h.driver().Fit(t.Context(), []provision.Machine{m})
	}
	problems := problem(60)
	require.Len(t, problems, 1)
	var fits int
	_, after, _ := strings.Cut(problems[0].Remedy, "at most ")
	_, err := fmt.Sscan(after, &fits)
	require.NoError(t, err)
	require.Empty(t, problem(fits))
	require.NotEmpty(t, problem(fits+1))
}

// The probe's guest runs where guests can run: emulated ones can everywhere.
func TestProbeGuest(t *testing.T) {
	qemu, err := exec.LookPath("qemu-system-x86_64")
	if err != nil || lima.Arch() != "x86_64" {
		hosttest.Lacks(t, "qemu-system-x86_64")
	}
	require.NoError(t, lima.RunGuest(t.Context(), qemu, "tcg", "max", nil))
	err = lima.RunGuest(t.Context(), qemu, "none", "max", nil)
	require.Error(t, err)
	assert.NotContains(t, err.Error(), "\n")
}

// What a probe found is kept, asked again for another QEMU, and found again when what was kept is lost.
func TestProbeIsKept(t *testing.T) {
	h := newFakeHost(t)
	kvm, reason, err := h.driver().Probe(t.Context())
	require.NoError(t, err)
	assert.False(t, kvm)
	assert.Contains(t, reason, "failed to initialize kvm")
	advice := func() string { return strings.Join(h.driver().Advise(t.Context()), "\n") }
	assert.Contains(t, advice(), "emulated CPUs")
	assert.Regexp(t, `free in .*, where a machine writes 1GiB and more, and \d+MiB of memory`, advice())
	assert.Regexp(t, `names of beds may have \d+ characters`, advice())

	file := filepath.Join(h.root, "accel.json")
	data, err := os.ReadFile(file)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(file, []byte(strings.Replace(string(data), `"kvm": false`, `"kvm": true`, 1)), 0o600))
	kvm, _, err = h.driver().Probe(t.Context())
	require.NoError(t, err)
	assert.True(t, kvm, "it was probed again")
	assert.NotContains(t, advice(), "emulated CPUs")

	now := time.Now()
	require.NoError(t, os.Chtimes(filepath.Join(h.bin, "qemu-system-x86_64"), now, now))
	kvm, _, err = h.driver().Probe(t.Context())
	require.NoError(t, err)
	assert.False(t, kvm, "another QEMU was not probed")

	for _, lost := range []string{"", "{"} {
		require.NoError(t, os.WriteFile(file, []byte(lost), 0o600))
		kvm, _, err = h.driver().Probe(t.Context())
		require.NoError(t, err)
		assert.False(t, kvm)
	}
}

func TestOthersMayRun(t *testing.T) {
	dir := t.TempDir()
	for at := dir; at != filepath.Dir(at) && at != os.TempDir(); at = filepath.Dir(at) {
		require.NoError(t, os.Chmod(at, 0o755))
	}
	inner := filepath.Join(dir, "inner")
	require.NoError(t, os.Mkdir(inner, 0o755))
	program := filepath.Join(inner, "program")
	require.NoError(t, os.WriteFile(program, nil, 0o755))
	assert.True(t, lima.OthersMayRun(program))
	require.NoError(t, os.Chmod(inner, 0o700))
	assert.False(t, lima.OthersMayRun(program), "a directory that others may not enter")
	require.NoError(t, os.Chmod(inner, 0o755))
	require.NoError(t, os.Chmod(program, 0o750))
	assert.False(t, lima.OthersMayRun(program))
	assert.False(t, lima.OthersMayRun(filepath.Join(dir, "nothing")))
}

func TestTheLimactlBuiltForUsGoesBeforeTheHosts(t *testing.T) {
	dir := t.TempDir()
	ours, hosts := filepath.Join(dir, "bin/limactl"), filepath.Join(dir, "usr/limactl")
	for _, path := range []string{ours, hosts} {
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		require.NoError(t, os.WriteFile(path, []byte("#!/bin/sh\n"), 0o755))
	}
	t.Setenv("PATH", filepath.Dir(hosts))
	found, err := lima.FindLimactl(filepath.Join(dir, "lima"))
	require.NoError(t, err)
	assert.Equal(t, ours, found)
	require.NoError(t, os.Remove(ours))
	found, err = lima.FindLimactl(filepath.Join(dir, "lima"))
	require.NoError(t, err)
	assert.Equal(t, hosts, found)
}
