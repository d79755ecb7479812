// Package drivertest is the conformance suite that every driver passes, the simulated one included.
package drivertest

import (
	"cmp"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ssh"

	"github.com/bedfellow/bedfellow/pkg/bed"
	"github.com/bedfellow/bedfellow/pkg/remote"
	"github.com/bedfellow/bedfellow/provision"
)

// Suite runs the conformance tests against a driver.
type Suite struct {
	// Open returns a fresh handle on the driver, as another process would have; machines outlast it.
	Open func(t *testing.T) provision.Driver
	// Image and ImageDigest are what machines boot from, where the driver wants one.
	Image, ImageDigest string
	// Kill ends a machine from outside, as an operator's kill -9 or a crash would.
	Kill func(t *testing.T, name string)
	// Census lists what the driver has made on the host, to be the same before and after; nil where List shows all.
	Census func(t *testing.T) []string
	// Bed is the name of the test's beds; it must be free on the host.
	Bed string
	// Timeout bounds one test.
	Timeout time.Duration
	// Many is how many machines are made at once; 0 is four.
	Many int
	// Seen is how soon a machine's death must be seen; 0 is ten seconds.
	Seen time.Duration
}

// Run runs every test.
func (s Suite) Run(t *testing.T) {
	s.Many, s.Seen = cmp.Or(s.Many, 4), cmp.Or(s.Seen, 10*time.Second)
	d := s.Open(t)
	require.Empty(t, d.Check(t.Context()), "this host cannot serve the driver")
	for _, test := range []struct {
		name string
		run  func(*testing.T, *fixture)
	}{
		{"CreateReadDelete", testCreateReadDelete},
		{"CreateAdopts", testCreateAdopts},
		{"CreateReplacesWhatDiffers", testCreateReplacesWhatDiffers},
		{"ForeignBedIsNotTouched", testForeign},
		{"LostStateIsReplaced", testLostState},
		{"DeathIsSeenAndMended", testDeath},
		{"ManyAtOnce", testManyAtOnce},
		{"CancelledCreateLeavesNothing", testCancelled},
		{"ListShowsOwners", testList},
		{"UpdateChanges", testUpdate},
	} {
		t.Run(test.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), s.Timeout)
			defer cancel()
			f := &fixture{Suite: s, ctx: ctx, d: s.Open(t), owner: provision.Owner{Bed: s.Bed, ID: "life1", State: "file:///conformance"}}
			before := f.census(t)
			t.Cleanup(func() {
				ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
				defer cancel()
				f.ctx = ctx
				f.clear(t)
				assert.Equal(t, before, f.census(t), "something is left behind")
			})
			test.run(t, f)
		})
	}
}

type fixture struct {
	Suite
	ctx   context.Context
	d     provision.Driver
	owner provision.Owner
}

func (f *fixture) census(t *testing.T) []string {
	if f.Census == nil {
		return nil
	}
	return f.Census(t)
}

func (f *fixture) clear(t *testing.T) {
	all, err := f.d.List(f.ctx, f.owner.Bed)
	require.NoError(t, err)
	for _, st := range all {
		require.NoError(t, f.d.Delete(f.ctx, st.Name))
	}
	all, err = f.d.List(f.ctx, f.owner.Bed)
	require.NoError(t, err)
	assert.Empty(t, all)
}

// machine is the i-th machine of the bed, with keys of its own.
func (f *fixture) machine(t *testing.T, i int) provision.Machine {
	private, public := Key(t)
	_, user := Key(t)
	return provision.Machine{
		Name: bed.NodeName(f.owner.Bed, i), Owner: f.owner, Index: i, Role: bed.Compute, CPUs: 1, Memory: 512 * bed.MiB,
		Image: f.Image, ImageDigest: f.ImageDigest, Network: "isolated", User: "bed", AuthorizedKey: user, HostKey: private, HostPublicKey: public,
	}
}

// Key makes an ed25519 key pair: the private half as OpenSSH PEM, the public one in authorized_keys form.
func Key(t testing.TB) (private, public string) {
	pub, priv, err := ed25519.GenerateKey(rand.Reader)
	require.NoError(t, err)
	block, err := ssh.MarshalPrivateKey(priv, "")
	require.NoError(t, err)
	sshPub, err := ssh.NewPublicKey(pub)
	require.NoError(t, err)
	return string(pem.EncodeToMemory(block)), strings.TrimSpace(string(ssh.MarshalAuthorizedKey(sshPub)))
}

// answers asserts that a running machine's sshd shows the pinned key.
func (f *fixture) answers(t *testing.T, st provision.Status) {
	assert.Equal(t, provision.Running, st.State, st.Detail)
	if !f.d.Info().SSH {
		return
	}
	assert.NoError(t, remote.Answers(f.ctx, remote.Target{Name: st.Name, Address: st.Address, Port: st.Port, HostKey: st.HostPublicKey}))
	_, other := Key(t)
	var wrong *remote.HostKeyError
	assert.ErrorAs(t, remote.Answers(f.ctx, remote.Target{Name: st.Name, Address: st.Address, Port: st.Port, HostKey: other}), &wrong)
}

func testCreateReadDelete(t *testing.T, f *fixture) {
	m := f.machine(t, 0)
	_, err := f.d.Read(f.ctx, m.Name)
	require.ErrorIs(t, err, provision.ErrNotFound)
	require.NoError(t, f.d.Delete(f.ctx, m.Name), "deleting what is not there is no error")

	st, err := f.d.Create(f.ctx, m)
	require.NoError(t, err)
	f.answers(t, st)
	assert.Equal(t, m.Owner, st.Owner)
	assert.Equal(t, m.Digest(), st.Digest)
	assert.Equal(t, m.HostPublicKey, st.HostPublicKey)
	assert.NotEmpty(t, st.Incarnation)

	again, err := f.Open(t).Read(f.ctx, m.Name)
	require.NoError(t, err)
	assert.Equal(t, st, again, "another process reads the same")

	require.NoError(t, f.d.Delete(f.ctx, m.Name))
	require.NoError(t, f.d.Delete(f.ctx, m.Name))
	_, err = f.d.Read(f.ctx, m.Name)
	require.ErrorIs(t, err, provision.ErrNotFound)
}

func testCreateAdopts(t *testing.T, f *fixture) {
	m := f.machine(t, 0)
	first, err := f.d.Create(f.ctx, m)
	require.NoError(t, err)
	second, err := f.Open(t).Create(f.ctx, m)
	require.NoError(t, err)
	assert.Equal(t, first, second)
}

func testCreateReplacesWhatDiffers(t *testing.T, f *fixture) {
	m := f.machine(t, 0)
	first, err := f.d.Create(f.ctx, m)
	require.NoError(t, err)
	for name, change := range map[string]func(*provision.Machine){
		"host key": func(m *provision.Machine) { m.HostKey, m.HostPublicKey = Key(t) },
		"memory":   func(m *provision.Machine) { m.Memory += 64 * bed.MiB },
	} {
		change(&m)
		st, err := f.d.Create(f.ctx, m)
		require.NoError(t, err, name)
		assert.NotEqual(t, first.Incarnation, st.Incarnation, name)
		assert.Equal(t, m.Digest(), st.Digest, name)
		f.answers(t, st)
		first = st
	}
}

func testForeign(t *testing.T, f *fixture) {
	m := f.machine(t, 0)
	st, err := f.d.Create(f.ctx, m)
	require.NoError(t, err)
	theirs := m
	theirs.Owner.State = "file:///another-clone"
	_, err = f.d.Create(f.ctx, theirs)
	var foreign *provision.ForeignError
	require.ErrorAs(t, err, &foreign)
	assert.Contains(t, err.Error(), "-c name=")
	if sweeper, ok := f.d.(provision.Sweeper); ok {
		require.ErrorAs(t, sweeper.Sweep(f.ctx, theirs.Owner), &foreign)
	}
	again, err := f.d.Read(f.ctx, m.Name)
	require.NoError(t, err)
	assert.Equal(t, st, again)
}

func testLostState(t *testing.T, f *fixture) {
	m := f.machine(t, 0)
	first, err := f.d.Create(f.ctx, m)
	require.NoError(t, err)
	m.Owner.ID = "life2"
	second, err := f.d.Create(f.ctx, m)
	require.NoError(t, err)
	assert.NotEqual(t, first.Incarnation, second.Incarnation)
	f.owner = m.Owner
}

func testDeath(t *testing.T, f *fixture) {
	m := f.machine(t, 0)
	first, err := f.d.Create(f.ctx, m)
	require.NoError(t, err)
	f.Kill(t, m.Name)
	var dead provision.Status
	require.Eventually(t, func() bool {
		dead, err = f.d.Read(f.ctx, m.Name)
		return err == nil && dead.State != provision.Running
	}, f.Seen, 50*time.Millisecond, "a death is seen")
	assert.NotEmpty(t, dead.Detail)
	st, err := f.d.Create(f.ctx, m)
	require.NoError(t, err)
	f.answers(t, st)
	if st.Incarnation == first.Incarnation {
		t.Log("the machine came back with the disk it had")
	}
}

func testManyAtOnce(t *testing.T, f *fixture) {
	n := f.Many
	machines := make([]provision.Machine, n)
	for i := range machines {
		machines[i] = f.machine(t, i)
	}
	made := make([]provision.Status, n)
	require.NoError(t, remote.Each(f.ctx, machines, n, func(ctx context.Context, i int, m provision.Machine) (err error) {
		made[i], err = f.d.Create(ctx, m)
		return err
	}))
	addresses, siblings := map[string]bool{}, map[string]bool{}
	for _, st := range made {
		f.answers(t, st)
		addresses[fmt.Sprintf("%s:%d", st.Address, st.Port)] = true
		siblings[st.BedAddress] = true
	}
	assert.Len(t, addresses, n, "each machine is reached at a place of its own")
	assert.Len(t, siblings, n, "each has an address of its own in the bed")
	var wg sync.WaitGroup
	for _, m := range machines {
		wg.Go(func() { assert.NoError(t, f.d.Delete(f.ctx, m.Name)) })
	}
	wg.Wait()
}

func testCancelled(t *testing.T, f *fixture) {
	m := f.machine(t, 0)
	ctx, cancel := context.WithCancelCause(f.ctx)
	time.AfterFunc(50*time.Millisecond, func() { cancel(errors.New("the test changed its mind")) })
	start := time.Now()
	if _, err := f.d.Create(ctx, m); err == nil {
		t.Log("create was quicker than the cancellation")
		return
	}
	assert.Less(t, time.Since(start), 30*time.Second, "a cancelled create ends soon")
	_, err := f.d.Read(f.ctx, m.Name)
	assert.ErrorIs(t, err, provision.ErrNotFound, "what a failed create made, it removes")
}

func testList(t *testing.T, f *fixture) {
	m := f.machine(t, 0)
	st, err := f.d.Create(f.ctx, m)
	require.NoError(t, err)
	mine, err := f.d.List(f.ctx, f.owner.Bed)
	require.NoError(t, err)
	assert.Equal(t, []provision.Status{st}, mine)
	others, err := f.d.List(f.ctx, f.owner.Bed+"x")
	require.NoError(t, err)
	assert.Empty(t, others)
	all, err := f.d.List(f.ctx, "")
	require.NoError(t, err)
	assert.Contains(t, all, st)
}

func testUpdate(t *testing.T, f *fixture) {
	m := f.machine(t, 0)
	_, err := f.d.Create(f.ctx, m)
	require.NoError(t, err)
	m.Memory += 64 * bed.MiB
	st, err := f.d.Update(f.ctx, m)
	require.NoError(t, err)
	assert.Equal(t, m.Digest(), st.Digest)
	f.answers(t, st)
}
