package lima

import (
	"context"
	"os/exec"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/bedfellow/bedfellow/pkg/bed"
)

// SetAccount names the user that Lima runs as for root.
func (d *Driver) SetAccount(name string) { d.account = name }

// SetBootTimeout is how long a machine may take to be reached.
func (d *Driver) SetBootTimeout(t time.Duration) { d.bootTimeout = t }

// SetGrace is how long Lima may take for the rest of a boot when the machine answers.
func (d *Driver) SetGrace(t time.Duration) { d.grace = t }

// Probe tells whether guests run on the CPU itself, and why not.
func (d *Driver) Probe(ctx context.Context) (kvm bool, reason string, err error) {
	a, err := lookupAccount(d.account)
	if err != nil {
		return false, "", err
	}
	got := d.probe(ctx, a)
	return got.KVM, got.Reason, nil
}

// Processes lists those of a bed or, when node is not empty, of a node.
func Processes(home, node string) (pids []int) {
	for _, p := range processes(home) {
		if node == "" || p.of(home, node) {
			pids = append(pids, p.pid)
		}
	}
	return pids
}

// ReadDisk is what a disk's header says.
func ReadDisk(path string) (size bed.Size, base string, err error) {
	d, err := readDisk(path)
	return d.size, d.base, err
}

// Said runs limactl in a LIMA_HOME and returns what it said and its status.
func (d *Driver) Said(t *testing.T, home string, args ...string) (said string, code int) {
	h, err := d.openHost(t.Context())
	require.NoError(t, err)
	out, err := h.command(home, h.limactl, args...).CombinedOutput()
	if err == nil {
		return string(out), 0
	}
	var exit *exec.ExitError
	require.ErrorAs(t, err, &exit)
	return string(out), exit.ExitCode()
}

// What tests look at from outside.
var (
	Message      = message
	FindLimactl  = findLimactl
	Arch         = limaArch
	Render       = render
	RenderBoot   = renderBoot
	RunGuest     = runGuest
	OthersMayRun = othersMayRun
)
