// Package hosttest is for tests that need something of the host.
package hosttest

import (
	"os"
	"testing"
)

// Lacks skips the test, saying what the host lacks. Where BEDFELLOW_E2E_REQUIRE is 1, as in CI, it fails it: there a skip would
// hide that nothing was tested.
func Lacks(t *testing.T, what string) {
	t.Helper()
	if os.Getenv("BEDFELLOW_E2E_REQUIRE") == "1" {
		t.Fatalf("this host lacks %s, and BEDFELLOW_E2E_REQUIRE=1", what)
	}
	t.Skipf("this host lacks %s", what)
}
