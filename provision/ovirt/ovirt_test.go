package ovirt_test

import (
	"context"
	"encoding/binary"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/bedfellow/bedfellow/pkg/bed"
	"github.com/bedfellow/bedfellow/pkg/remote"
	"github.com/bedfellow/bedfellow/provision"
	"github.com/bedfellow/bedfellow/provision/drivertest"
	"github.com/bedfellow/bedfellow/provision/ovirt"
	"github.com/bedfellow/bedfellow/provision/ovirt/enginetest"
)

// engine is a fake engine with what a driver needs to know of it.
type engine struct {
	*enginetest.Engine
	image, cache, ca string
	port             int
}

func start(t testing.TB, latency enginetest.Latency) *engine {
	t.Helper()
	l, err := net.Listen("tcp", "127.77.255.1:0") // a port that is free on one of the addresses is free on all
	require.NoError(t, err)
	port := l.Addr().(*net.TCPAddr).Port
	require.NoError(t, l.Close())
	fake, err := enginetest.Start("", latency, &enginetest.Loopback{Port: port})
	require.NoError(t, err)
	t.Cleanup(fake.Close)
	e := &engine{Engine: fake, image: t.TempDir(), cache: t.TempDir(), port: port}
	require.NoError(t, os.WriteFile(filepath.Join(e.image, bed.DiskFile), qcow2(64<<20, 0, 5<<20, 40<<20), 0o644))
	e.ca = filepath.Join(e.cache, "ca.pem")
	require.NoError(t, os.WriteFile(e.ca, fake.CA, 0o644))
	return e
}

// values are a bed's keys for it.
func (e *engine) values() map[string]string {
	return map[string]string{"url": e.URL, "username": e.Username, "password": e.Password, "caFile": e.ca, "vnicProfile": "ovirtmgmt", "cluster": "Default"}
}

func (e *engine) driver(t testing.TB, values ...string) *ovirt.Driver {
	t.Helper()
	all := e.values()
	for i := 0; i < len(values); i += 2 {
		all[values[i]] = values[i+1]
	}
	s, problems := ovirt.ReadSettings(all)
	require.Empty(t, problems)
	d := ovirt.New(s, e.cache, slog.New(slog.NewTextHandler(io.Discard, nil)))
	d.Quick(e.port)
	return d
}

func (e *engine) machine(t testing.TB, i int) provision.Machine {
	private, public := drivertest.Key(t)
	_, user := drivertest.Key(t)
	owner := provision.Owner{Bed: "conf", ID: "1", State: "file:///faults"}
	return provision.Machine{
		Name: bed.NodeName("conf", i), Owner: owner, Index: i, Role: bed.Compute, CPUs: 1, Memory: 512 * bed.MiB, Image: e.image,
		ImageDigest: "sha256:0123456789abcdef0123", Network: "isolated", User: "bed", AuthorizedKey: user, HostKey: private, HostPublicKey: public,
	}
}

// quick is an engine that takes milliseconds for everything.
func quick() enginetest.Latency {
	return enginetest.Latency{MakeVM: 10 * time.Millisecond, MakeDisk: 5 * time.Millisecond, MakeTemplate: 20 * time.Millisecond, Launch: 5 * time.Millisecond, Stop: 10 * time.Millisecond, Remove: 5 * time.Millisecond, Transfer: 5 * time.Millisecond}
}

// qcow2 is an image with a cluster of data at each of some offsets.
func qcow2(size uint64, data ...uint64) []byte {
	const cluster = 64 << 10
	image := make([]byte, cluster*(3+len(data)))
	copy(image, "QFI\xfb\x00\x00\x00\x03")
	put := func(at int, n uint64) { binary.BigEndian.PutUint64(image[at:], n) }
	binary.BigEndian.PutUint32(image[20:], 16)
	put(24, size)
	binary.BigEndian.PutUint32(image[36:], 1)
	put(40, cluster)
	binary.BigEndian.PutUint32(image[96:], 4)
	binary.BigEndian.PutUint32(image[100:], 104)
	put(cluster, 2*cluster|1<<63)
	for i, at := range data {
		put(2*cluster+int(at/cluster)*8, uint64(3+i)*cluster|1<<63)
		for j := range cluster {
			image[(3+i)*cluster+j] = byte(i + j + 1)
		}
	}
	return image
}

func TestConformance(t *testing.T) {
	e := start(t, quick())
	drivertest.Suite{
		Open: func(t *testing.T) provision.Driver { return e.driver(t) }, Image: e.image, ImageDigest: "sha256:0123456789abcdef0123", Bed: "conf", Timeout: time.Minute,
		Kill: func(t *testing.T, name string) { require.True(t, e.Do(name, enginetest.PowerOff)) },
		Census: func(t *testing.T) (left []string) {
			for _, what := range e.Census() {
				if !strings.HasPrefix(what, "template bedfellow-image-") { // which is kept
					left = append(left, what)
				}
			}
			return left
		},
	}.Run(t)
}

// clean asserts that the engine has nothing but the image's template.
func (e *engine) clean(t *testing.T) {
	t.Helper()
	for _, what := range e.Census() {
		assert.Contains(t, what, "template bedfellow-image-")
	}
}

func TestAddressesThatAreGiven(t *testing.T) {
	e := start(t, quick())
	d := e.driver(t, "addresses", "127.78.0.1-127.78.0.2/24")
	st, err := d.Create(t.Context(), e.machine(t, 1))
	require.NoError(t, err)
	assert.Equal(t, "127.78.0.2", st.Address)
	problems := d.Fit(t.Context(), []provision.Machine{e.machine(t, 0), e.machine(t, 1), e.machine(t, 2)})
	require.Len(t, problems, 1)
	assert.Contains(t, problems[0].String(), "has 2 addresses, and the bed 3 nodes")
}

// Whatever goes wrong once is mended within the call; nothing is made twice, and nothing is left.
func TestFaultsThatPass(t *testing.T) {
	for name, fault := range map[string]enginetest.Fault{
		"an answer lost after the VM was made":       {Call: "POST /vms", Skip: 1, Times: 1, Lose: true},
		"an answer lost after it was started":        {Call: "POST /vms/*/start", Times: 1, Lose: true},
		"a NIC's answer lost":                        {Call: "POST /vms/*/nics", Times: 1, Lose: true},
		"a tag's answer lost":                        {Call: "POST /vms/*/tags", Times: 1, Lose: true},
		"a group's answer lost":                      {Call: "POST /clusters/*/affinitygroups", Times: 1, Lose: true},
		"a member's answer lost":                     {Call: "POST /clusters/*/affinitygroups/*/vms", Times: 1, Lose: true},
		"a disk's answer lost":                       {Call: "POST /disks", Times: 1, Lose: true},
		"a template's answer lost":                   {Call: "POST /templates", Times: 1, Lose: true},
		"a transfer's answer lost":                   {Call: "POST /imagetransfers", Times: 1, Lose: true},
		"a transfer's end's answer lost":             {Call: "POST /imagetransfers/*/finalize", Times: 1, Lose: true},
		"a connection reset before a VM was made":    {Call: "POST /vms", Skip: 1, Times: 1, Break: true},
		"a connection reset in a look":               {Call: "GET /vms/*", Times: 1, Break: true},
		"a storm of conflicts":                       {Call: "POST /vms/*/nics", Times: 6, Status: 409, Detail: "Cannot add Interface. Related operation is currently in progress. Please try again later."},
		"a VM that is locked":                        {Call: "POST /vms/*/start", Times: 3, Status: 409, Detail: "Cannot run VM: VM is locked. Please try again in a few minutes."},
		"an engine that is away for a moment":        {Call: "GET /vms", Times: 3, Status: 503},
		"an engine that is away when asked for a VM": {Call: "POST /vms", Skip: 1, Times: 2, Status: 503},
		"a piece of the image lost":                  {Call: "PUT /images/*", Skip: 1, Times: 1, Break: true},
		"imageio out of order for a moment":          {Call: "PUT /images/*", Times: 1, Status: 503, Detail: "busy"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := start(t, quick())
			e.Inject(fault)
			d := e.driver(t)
			m := e.machine(t, 0)
			st, err := d.Create(t.Context(), m)
			require.NoError(t, err)
			assert.Equal(t, provision.Running, st.State)
			made := e.Census()
			require.Len(t, made, 5, "%v", made)
			for i, want := range []string{"affinity group bedfellow-conf", "disk bedfellow-image-0123456789abcdef-33333333-", "tag bedfellow-conf", "template bedfellow-image-0123456789abcdef-33333333", "vm conf-01"} {
				assert.True(t, strings.HasPrefix(made[i], want), "%v", made)
			}
			again, err := e.driver(t).Create(t.Context(), m)
			require.NoError(t, err)
			assert.Equal(t, st, again)
			require.NoError(t, d.Delete(t.Context(), m.Name))
			e.clean(t)
		})
	}
}

// What does not pass is told of, with the engine's own words, and leaves nothing.
func TestFaultsThatStay(t *testing.T) {
	for name, c := range map[string]struct {
		fault  enginetest.Fault
		before func(*engine)
		says   []string
	}{
		"quota of VMs":                {before: func(e *engine) { e.AddVM("other"); e.Limit(0, 1) }, says: []string{"conf-01", "Quota does not have sufficient cluster resources"}},
		"storage full":                {before: func(e *engine) { e.Limit(100<<10, 0) }, says: []string{"send it", "No space left on device"}},
		"storage full from the start": {fault: enginetest.Fault{Call: "POST /disks", Status: 409, Detail: "Cannot add Virtual Disk. Low disk space on Storage Domain data."}, says: []string{"Low disk space on Storage Domain data"}},
		"quota after the disk":        {fault: enginetest.Fault{Call: "POST /vms", Status: 409, Detail: "Cannot add VM. Quota does not have sufficient storage resources."}, says: []string{"Quota does not have"}},
		"a name that is somebody's":   {before: func(e *engine) { e.AddVM("conf-01") }, says: []string{"a VM called conf-01 that is none of Bedfellow's", "-c name="}},
		"a launch that never ends":    {before: func(e *engine) { e.Hang("conf-01") }, says: []string{"conf-01", "it was not up within", "wait_for_launch", "its events"}},
		"conflicts without end":       {fault: enginetest.Fault{Call: "POST /vms/*/nics", Status: 409, Detail: "Cannot add Interface. Related operation is currently in progress. Please try again later."}, says: []string{"currently in progress", "not within"}},
		"no right to start":           {fault: enginetest.Fault{Call: "POST /vms/*/start", Status: 403, Detail: "User is not authorized to perform this action."}, says: []string{"start it", "not authorized"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := start(t, quick())
			if c.before != nil {
				c.before(e)
			}
			had := e.Census()
			if c.fault.Call != "" {
				e.Inject(c.fault)
			}
			d := e.driver(t)
			d.Bootless(300 * time.Millisecond)
			_, err := d.Create(t.Context(), e.machine(t, 0))
			require.Error(t, err)
			for _, want := range c.says {
				assert.Contains(t, err.Error(), want)
			}
			require.NoError(t, d.Sweep(t.Context(), e.machine(t, 0).Owner))
			var left []string
			for _, what := range e.Census() {
				if !strings.HasPrefix(what, "template bedfellow-image-") {
					left = append(left, what)
				}
			}
			assert.Equal(t, had, left)
		})
	}
}

func TestTokens(t *testing.T) {
	e := start(t, quick())
	d := e.driver(t)
	m := e.machine(t, 0)
	_, err := d.Create(t.Context(), m)
	require.NoError(t, err)
	e.ExpireTokens()
	_, err = d.Read(t.Context(), m.Name)
	require.NoError(t, err, "a token that has expired is renewed")
	e.Inject(enginetest.Fault{Call: "GET /vms", Status: 401})
	_, err = d.Read(t.Context(), m.Name)
	require.ErrorContains(t, err, "401", "and once only")

	s, _ := ovirt.ReadSettings(map[string]string{"url": e.URL, "token": "of yesterday", "caFile": e.ca})
	stale := ovirt.New(s, e.cache, slog.New(slog.NewTextHandler(io.Discard, nil)))
	problems := stale.Check(t.Context())
	require.Len(t, problems, 1)
	assert.Contains(t, problems[0].String(), "does not take the token, which is from ovirt.token of the configuration")
}

// A token that expires in the midst of everything is renewed wherever that is: here, in every call.
func TestTokenExpiresMidCreate(t *testing.T) {
	e := start(t, quick())
	e.TokensLast(1)
	d := e.driver(t)
	m := e.machine(t, 0)
	_, err := d.Create(t.Context(), m)
	require.NoError(t, err)
	require.NoError(t, d.Delete(t.Context(), m.Name))
	e.clean(t)
}

func TestWhoTheEngineIs(t *testing.T) {
	e := start(t, quick())
	assert.Empty(t, e.driver(t, "caFile", "", "fingerprint", e.Fingerprint).Check(t.Context()))
	assert.Empty(t, e.driver(t, "caFile", "", "insecure", "true").Check(t.Context()))
	for name, c := range map[string]struct {
		values []string
		says   []string
	}{
		"no CA":            {[]string{"caFile", ""}, []string{"x509", "ovirt.caFile", "pki-resource"}},
		"another's CA":     {[]string{"caFile", start(t, quick()).ca}, []string{"x509"}},
		"another's print":  {[]string{"caFile", "", "fingerprint", strings.Repeat("ab", 32)}, []string{"ovirt.fingerprint is abab", "somebody is in between"}},
		"a wrong password": {[]string{"password", "guess"}, []string{"does not let admin@internal in", "the password from ovirt.password of the configuration"}},
		"no such cluster":  {[]string{"cluster", "Defalt"}, []string{"ovirt.cluster", "there is Default, Spare", "did you mean Default?"}},
		"several profiles": {[]string{"vnicProfile", "elsewhere"}, []string{"ovirt.vnicProfile", "there is ovirtmgmt"}},
		"an ISO domain":    {[]string{"storageDomain", "images"}, []string{"ovirt.storageDomain", "there is data"}},
		"nobody there":     {[]string{"url", "https://127.0.0.1:1/ovirt-engine/api"}, []string{"connection refused", "see whether the engine runs"}},
	} {
		t.Run(name, func(t *testing.T) {
			d := e.driver(t, c.values...)
			problems := d.Check(t.Context())
			require.NotEmpty(t, problems)
			for _, want := range c.says {
				assert.Contains(t, problems[0].String(), want)
			}
			assert.NotContains(t, problems[0].String(), e.Password)
		})
	}
	e.clean(t)
}

// What there is to choose from is no problem of the engine's, and keeps a bed from being made.
func TestWhatIsToBeChosen(t *testing.T) {
	e := start(t, quick())
	d := e.driver(t, "cluster", "")
	require.Empty(t, d.Check(t.Context()))
	advice := d.Advise(t.Context())
	require.Len(t, advice, 1)
	assert.Contains(t, advice[0], "ovirt.cluster is not given, and there are several: Default, Spare")
	problems := d.Fit(t.Context(), []provision.Machine{e.machine(t, 0)})
	require.Len(t, problems, 1)
	assert.Equal(t, []any{"ovirt.cluster", true}, []any{problems[0].Key, problems[0].Host})
	_, err := d.Create(t.Context(), e.machine(t, 0))
	require.ErrorContains(t, err, "there are several: Default, Spare")
	e.clean(t)

	chosen := e.driver(t)
	require.Empty(t, chosen.Check(t.Context()))
	assert.Empty(t, chosen.Advise(t.Context()))
	assert.Empty(t, chosen.Fit(t.Context(), []provision.Machine{e.machine(t, 0)}))
}

// An engine takes its time, which is not the driver's: here hours of it go by in a moment.
func TestAnEngineThatTakesHours(t *testing.T) {
	slow := quick()
	slow.MakeVM, slow.MakeTemplate, slow.Launch = time.Hour, time.Hour, time.Hour
	e := start(t, slow)
	made := make(chan error, 1)
	go func() {
		_, err := e.driver(t).Create(t.Context(), e.machine(t, 0))
		made <- err
	}()
	require.Eventually(t, func() bool { return e.Calls()["POST /templates"] == 1 }, 5*time.Second, time.Millisecond)
	select {
	case err := <-made:
		require.Fail(t, "it was made before the engine was ready", "%v", err)
	case <-time.After(100 * time.Millisecond):
	}
	for range 2 {
		e.Advance(time.Hour)
		require.Eventually(t, func() bool { return e.Calls()["POST /vms"] == 2 }, 5*time.Second, time.Millisecond)
	}
	require.Eventually(t, func() bool { e.Advance(time.Hour); return len(made) == 1 }, 5*time.Second, 10*time.Millisecond)
	require.NoError(t, <-made)
}

// A machine that cannot be started now is left with what is on its disk.
func TestWhatDoesNotComeUpIsKept(t *testing.T) {
	e := start(t, quick())
	d := e.driver(t)
	m := e.machine(t, 0)
	first, err := d.Create(t.Context(), m)
	require.NoError(t, err)
	require.True(t, e.Do(m.Name, enginetest.PowerOff))
	e.Inject(enginetest.Fault{Call: "POST /vms/*/start", Times: 1, Status: 403, Detail: "User is not authorized to perform this action."})
	_, err = d.Create(t.Context(), m)
	require.ErrorContains(t, err, "not authorized")
	again, err := d.Create(t.Context(), m)
	require.NoError(t, err)
	assert.Equal(t, first, again)
}

func TestMarksThatSomebodyHasBeenAt(t *testing.T) {
	e := start(t, quick())
	d := e.driver(t)
	m := e.machine(t, 0)
	first, err := d.Create(t.Context(), m)
	require.NoError(t, err)
	require.True(t, e.Do(m.Name, enginetest.Clone("copy")))
	st, err := d.Read(t.Context(), m.Name)
	require.NoError(t, err)
	assert.Equal(t, first, st, "a clone is not ours")

	require.True(t, e.Do(m.Name, enginetest.Comment("mine")))
	all, err := d.List(t.Context(), "conf")
	require.NoError(t, err)
	require.Len(t, all, 1)
	assert.Equal(t, []any{m.Name, provision.Broken, "conf", ""}, []any{all[0].Name, all[0].State, all[0].Owner.Bed, all[0].Owner.State})
	st, err = d.Create(t.Context(), m)
	require.NoError(t, err)
	assert.NotEqual(t, first.Incarnation, st.Incarnation)
	require.NoError(t, d.Delete(t.Context(), m.Name))
	assert.Contains(t, e.Census(), "vm copy")
	assert.NotContains(t, e.Census(), "vm "+m.Name)
}

func TestDisk(t *testing.T) {
	e := start(t, quick())
	d := e.driver(t)
	m := e.machine(t, 0)
	m.Disk = bed.GiB
	first, err := d.Create(t.Context(), m)
	require.NoError(t, err)
	m.Disk, m.CPUs = 2*bed.GiB, 2
	st, err := d.Update(t.Context(), m)
	require.NoError(t, err)
	assert.Equal(t, first.Incarnation, st.Incarnation, "it grows in place")
	assert.Equal(t, m.Digest(), st.Digest)
	m.Disk = bed.GiB
	st, err = d.Update(t.Context(), m)
	require.NoError(t, err)
	assert.NotEqual(t, first.Incarnation, st.Incarnation, "and does not shrink")
}

// Two beds that come up at once share one template, and nothing else.
func TestTwoBedsAtOnce(t *testing.T) {
	e := start(t, quick())
	var machines []provision.Machine
	for _, name := range []string{"conf", "other"} {
		for i := range 3 {
			m := e.machine(t, i)
			m.Owner.Bed, m.Name = name, bed.NodeName(name, i)
			machines = append(machines, m)
		}
	}
	drivers := map[string]*ovirt.Driver{"conf": e.driver(t), "other": e.driver(t)}
	require.NoError(t, remote.Each(t.Context(), machines, len(machines), func(ctx context.Context, _ int, m provision.Machine) error {
		_, err := drivers[m.Owner.Bed].Create(ctx, m)
		return err
	}))
	assert.Equal(t, 1, e.Calls()["POST /templates"])
	for _, m := range machines[:3] {
		require.NoError(t, drivers["conf"].Delete(t.Context(), m.Name))
	}
	left, err := drivers["conf"].List(t.Context(), "")
	require.NoError(t, err)
	assert.Len(t, left, 3)
	owners, err := drivers["conf"].Owners(t.Context())
	require.NoError(t, err)
	assert.Equal(t, []provision.Owner{machines[3].Owner}, owners)
}
