package nspawn

import "time"

// SetBootTimeout makes the driver less patient, for a test.
func (d *Driver) SetBootTimeout(t time.Duration) { d.bootTimeout = t }
