package provider

import (
	"encoding/base64"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// The example of RFC 32 of zeromq.org.
func TestZ85IsTheRFCs(t *testing.T) {
	assert.Equal(t, "HelloWorld", z85([]byte{0x86, 0x4F, 0xD2, 0x6F, 0xB5, 0x59, 0xF7, 0x5B}))
	assert.Equal(t, "%nSc0", z85([]byte{0xFF, 0xFF, 0xFF, 0xFF}))
}

// A certificate may have all that a template has; what Ansible is given has not.
func TestCurveKeyIsNoTemplate(t *testing.T) {
	const key = "curve\n    secret-key = \"{{ a }}{% b %}{# c #}\"\n"
	given := ConfigurationArgs{CurveKey: key}.vars()["bed_curve_key"].(string)
	assert.NotContains(t, given, "{")
	back, err := base64.StdEncoding.DecodeString(given)
	require.NoError(t, err)
	assert.Equal(t, key, string(back))
}

func TestCurveKeysDifferAndAreWhole(t *testing.T) {
	a, err := curveKey()
	require.NoError(t, err)
	b, err := curveKey()
	require.NoError(t, err)
	assert.NotEqual(t, a, b)
	for _, line := range []string{"public-key", "secret-key"} {
		_, rest, found := strings.Cut(a, line+" = \"")
		require.True(t, found)
		assert.Equal(t, 40, strings.IndexByte(rest, '"'), line)
	}
}
