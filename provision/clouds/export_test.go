//go:build clouds

package clouds

import (
	"testing"
	"time"
)

// SetAWSTimeout has a sweep wait no longer than that for what holds a thing.
func SetAWSTimeout(t *testing.T, most time.Duration) {
	before := sweepTimeout
	t.Cleanup(func() { sweepTimeout = before })
	sweepTimeout = most
}
