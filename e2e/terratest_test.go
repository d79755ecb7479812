package e2e_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/gruntwork-io/terratest/modules/retry"
	teststructure "github.com/gruntwork-io/terratest/modules/test-structure"
	"github.com/stretchr/testify/require"
)

// Terratest is used in this file alone.

// stage runs a part of a suite as a subtest, unless SKIP_<name> is set: with SKIP_destroy a bed stays to be looked at, and with
// SKIP_up the next run goes on with it. It tells whether the stage went well or was skipped.
func stage(t *testing.T, name string, run func(t *testing.T)) (ok bool) {
	ok = true
	teststructure.RunTestStage(t, name, func() { ok = t.Run(name, run) })
	return ok
}

// eventually tries every half second until check returns no error, and fails the test with the last one after about the given
// time. Terratest's retry panics when its context is over, so that is looked at first.
func eventually(t *testing.T, what string, within time.Duration, check func() error) {
	t.Helper()
	pause := max(500*time.Millisecond, within/240) // each look is a line of the log
	var last error
	_, err := retry.DoWithRetryInterfaceContextE(t, t.Context(), what, int(within/pause), pause, func() (any, error) {
		if err := context.Cause(t.Context()); err != nil {
			return nil, retry.FatalError{Underlying: err}
		}
		last = check()
		return nil, last
	})
	if err != nil {
		require.NoError(t, fmt.Errorf("%s: %w (last: %w)", what, err, last))
	}
}
