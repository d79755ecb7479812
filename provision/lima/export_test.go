package lima

import (
	"context"
	"time"
)

// SetAccount names the user that Lima runs as for root.
func (d *Driver) SetAccount(name string) { d.account = name }

// SetBootTimeout is how long a machine may take to be reached.
func (d *Driver) SetBootTimeout(t time.Duration) { d.bootTimeout = t }

// Probe tells whether guests run on the CPU itself, and why not.
func (d *Driver) Probe(ctx context.Context) (kvm bool, reason string, err error) {
	a, err := lookupAccount(d.account)
	if err != nil {
		return false, "", err
	}
	got := d.probe(ctx, a)
	return got.KVM, got.Reason, nil
}

// RunGuest runs the probe's guest with another accelerator.
var RunGuest = runGuest

// Processes counts those of a bed or, when node is not empty, of a node.
func Processes(home, node string) (pids []int) {
	for _, p := range processes(home) {
		if node == "" || p.of(home, node) {
			pids = append(pids, p.pid)
		}
	}
	return pids
}

// Render writes a machine's lima.yaml.
var Render = render
