package ovirt

import "time"

// Quick has the driver wait for milliseconds where it waits for seconds, and find the sshds of machines on a port.
func (d *Driver) Quick(port int) {
	d.port = port
	d.timing = timing{request: 5 * time.Second, retry: 10 * time.Second, pause: 5 * time.Millisecond, most: 100 * time.Millisecond, poll: 4 * time.Millisecond, settle: 10 * time.Second, boot: 10 * time.Second}
}

// Usual has it wait as it does for a real engine, in so much less time, and find the sshds of machines on a port.
func (d *Driver) Usual(port, faster int) {
	d.port, d.timing = port, usualTiming()
	for _, t := range []*time.Duration{&d.timing.pause, &d.timing.most, &d.timing.poll} {
		*t /= time.Duration(faster)
	}
}

// Shares has those who ask within a time share a look, from the next one on.
func (d *Driver) Shares(within time.Duration) {
	d.timing.poll, d.looked = within, time.Time{}
}

// Bootless has machines come up within a time, or not.
func (d *Driver) Bootless(within time.Duration) { d.timing.boot = within }
