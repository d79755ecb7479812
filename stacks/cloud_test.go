package stacks_test

import (
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/bedfellow/bedfellow/provision"
	"github.com/bedfellow/bedfellow/provision/clouds"
	"github.com/bedfellow/bedfellow/stacks"
)

// Who may log in is who the configuration says, or else the one address that we are seen to come from.
func TestWhoMayLogIn(t *testing.T) {
	answer, status := "192.0.2.7\n", http.StatusOK
	service := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(status)
		_, _ = w.Write([]byte(answer))
	}))
	defer service.Close()
	said := netip.MustParsePrefix("198.51.100.0/24")
	from, err := stacks.SSHSource(t.Context(), said, service.URL)
	require.NoError(t, err)
	assert.Equal(t, said, from)
	from, err = stacks.SSHSource(t.Context(), netip.Prefix{}, service.URL)
	require.NoError(t, err)
	assert.Equal(t, "192.0.2.7/32", from.String())
	for _, wrong := range []string{"2001:db8::1", "<html>", ""} {
		answer = wrong
		_, err = stacks.SSHSource(t.Context(), netip.Prefix{}, service.URL)
		assert.ErrorContains(t, err, "sshFrom=CIDR")
	}
	answer, status = "192.0.2.7", http.StatusServiceUnavailable
	_, err = stacks.SSHSource(t.Context(), netip.Prefix{}, service.URL)
	assert.ErrorContains(t, err, "503")
	service.Close()
	_, err = stacks.SSHSource(t.Context(), netip.Prefix{}, service.URL)
	assert.ErrorContains(t, err, "sshFrom=CIDR")
}

// Two hosts with a clone in the same folder are two owners in one account, or at one engine.
func TestTheStateOfACloudsBedSaysWhoseFileItIs(t *testing.T) {
	host, err := os.Hostname()
	require.NoError(t, err)
	for _, driver := range []string{"aws", "openstack", "ovirt"} {
		marked := stacks.MarkedState(driver, "file:///root/.bed/state#aws")
		assert.Regexp(t, "^file://"+regexp.QuoteMeta(host)+"(-[0-9a-f]{8})?/root/.bed/state#aws$", marked)
		assert.NotContains(t, marked, machineID(), "it is no secret, and not to be handed around")
		assert.Equal(t, "s3://states#aws", stacks.MarkedState(driver, "s3://states#aws"))
	}
	assert.Equal(t, "file:///root/.bed/state#aws", stacks.MarkedState("nspawn", "file:///root/.bed/state#aws"))
}

func machineID() string {
	id, err := os.ReadFile("/etc/machine-id")
	if err != nil || len(id) == 0 {
		return "there is none"
	}
	return strings.TrimSpace(string(id))
}

// What one URL means in each home and folder is told apart.
func TestAbsoluteState(t *testing.T) {
	t.Setenv("HOME", "/home/somebody")
	for url, want := range map[string]string{
		"file://~": "file:///home/somebody", "file://~/states": "file:///home/somebody/states", "file://./state": "file:///clone/state", "file://state": "file:///clone/state",
		"file:///state": "file:///state", "s3://states": "s3://states", "https://api.pulumi.com": "https://api.pulumi.com",
	} {
		assert.Equal(t, want, stacks.AbsoluteState(url, "/clone"))
	}
}

func TestAMarkThatNoCloudTakesIsRefused(t *testing.T) {
	owner := provision.Owner{Bed: "b", ID: "0123456789abcdef", State: "file://host/" + strings.Repeat("a", 200) + "#aws"}
	tags, err := stacks.Mark("aws", owner, time.Time{})
	require.NoError(t, err)
	found, _, _ := clouds.OwnerOf(tags)
	assert.Equal(t, owner, found)
	owner.State = "file://host/" + strings.Repeat("/a", 100) + "#aws" // each / is three letters there
	_, err = stacks.Mark("aws", owner, time.Time{})
	assert.ErrorContains(t, err, "too long for a tag")
	assert.ErrorContains(t, err, "PULUMI_BACKEND_URL")
	owner.State = "file://host/" + strings.Repeat("a", 190) + "#openstack" // a description has all of the mark in it
	_, err = stacks.Mark("openstack", owner, time.Time{})
	require.NoError(t, err)
	_, err = stacks.Mark("openstack", provision.Owner{Bed: strings.Repeat("b", 32), ID: owner.ID, State: owner.State}, time.Now())
	assert.ErrorContains(t, err, "too long for a tag")
}

func TestExpiry(t *testing.T) {
	now := time.Date(2026, 11, 27, 12, 0, 0, 0, time.UTC)
	made := now.Add(-2 * time.Hour).Format(time.RFC3339)
	expires, err := stacks.Expiry("8h", made, now)
	require.NoError(t, err)
	assert.True(t, expires.Equal(now.Add(6*time.Hour)), "from when it was made, not from the last up")
	_, err = stacks.Expiry("1h", made, now)
	assert.ErrorContains(t, err, "-c ttl=3h0m0s")
	for _, none := range [][2]string{{"", made}, {"8h", ""}} {
		expires, err = stacks.Expiry(none[0], none[1], now)
		require.NoError(t, err)
		assert.True(t, expires.IsZero())
	}
}
