package ovirt_test

import (
	"context"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/bedfellow/bedfellow/pkg/bed"
	"github.com/bedfellow/bedfellow/provision/ovirt/enginetest"
	"github.com/bedfellow/bedfellow/provision/provider"
)

// An upload that was cut short is gone on with: what was sent is not sent again.
func TestUploadIsResumed(t *testing.T) {
	data := make([]uint64, 256)
	for i := range data {
		data[i] = uint64(i) * 128 << 10
	}
	const put = "PUT /images/*"
	for name, busy := range map[string]bool{"cut short": false, "cut short after a refusal": true} {
		t.Run(name, func(t *testing.T) {
			e := start(t, quick())
			require.NoError(t, os.WriteFile(filepath.Join(e.image, bed.DiskFile), qcow2(64<<20, data...), 0o644))
			ctx, cancel := context.WithCancelCause(t.Context())
			go func() {
				for e.Sent() < 64*64<<10 && t.Context().Err() == nil {
					time.Sleep(time.Millisecond)
				}
				e.Restart()
				if busy {
					before := e.Calls()[put]
					e.Inject(enginetest.Fault{Call: put, Times: 5, Status: http.StatusServiceUnavailable, Detail: "Busy"})
					for e.Calls()[put] == before && t.Context().Err() == nil {
						time.Sleep(100 * time.Microsecond)
					}
				}
				cancel(errors.New("the test pulls the plug"))
			}()
			_, err := e.driver(t).Create(ctx, e.machine(t, 0))
			require.ErrorContains(t, err, "pulls the plug")
			sent := e.Sent()
			require.Less(t, sent, int64(256*64<<10))
			_, err = e.driver(t).Create(t.Context(), e.machine(t, 0))
			require.NoError(t, err)
			assert.LessOrEqual(t, e.Sent(), int64(256+2)*64<<10, "%d were sent before", sent)
		})
	}

	// One that nobody goes on with is removed with the bed.
	e := start(t, quick())
	require.NoError(t, os.WriteFile(filepath.Join(e.image, bed.DiskFile), qcow2(64<<20, data...), 0o644))
	ctx, cancel := context.WithCancelCause(t.Context())
	go func() {
		for e.Sent() < 64<<10 && t.Context().Err() == nil {
			time.Sleep(time.Millisecond)
		}
		cancel(errors.New("the test pulls the plug"))
	}()
	_, err := e.driver(t).Create(ctx, e.machine(t, 0))
	require.ErrorContains(t, err, "pulls the plug")
	require.NotEmpty(t, e.Census())
	require.NoError(t, provider.ClearState(t.Context(), e.driver(t), e.machine(t, 0).Owner.State), "no machine bears the mark yet")
	assert.Empty(t, e.Census())
}

// What came out other than what was sent is sent once more.
func TestUploadIsChecked(t *testing.T) {
	e := start(t, quick())
	go func() {
		for !e.Spoil() && t.Context().Err() == nil {
			time.Sleep(100 * time.Microsecond)
		}
	}()
	_, err := e.driver(t).Create(t.Context(), e.machine(t, 0))
	require.NoError(t, err)
	calls := e.Calls()
	assert.Equal(t, []int{2, 1, 1}, []int{calls["POST /imagetransfers"], calls["POST /imagetransfers/*/cancel"], calls["POST /imagetransfers/*/finalize"]})
}

func TestImagesThatAreKept(t *testing.T) {
	e := start(t, quick())
	d := e.driver(t)
	m := e.machine(t, 0)
	_, err := d.Create(t.Context(), m)
	require.NoError(t, err)
	kept, err := d.KeptImages(t.Context())
	require.NoError(t, err)
	require.Len(t, kept, 1)
	assert.Equal(t, []any{m.ImageDigest, 1}, []any{kept[0].Digest, kept[0].Used})
	require.ErrorContains(t, d.RemoveImage(t.Context(), kept[0].ID), "being used by")
	require.NoError(t, d.Delete(t.Context(), m.Name))
	kept, err = d.KeptImages(t.Context())
	require.NoError(t, err)
	require.Len(t, kept, 1)
	assert.Zero(t, kept[0].Used)
	require.NoError(t, d.RemoveImage(t.Context(), kept[0].ID))
	assert.Empty(t, e.Census())
}

// A transfer that the engine's restart has paused goes on.
func TestEngineRestartsMidTransfer(t *testing.T) {
	e := start(t, quick())
	data := make([]uint64, 64)
	for i := range data {
		data[i] = uint64(i) * 512 << 10
	}
	require.NoError(t, os.WriteFile(filepath.Join(e.image, bed.DiskFile), qcow2(64<<20, data...), 0o644))
	go func() {
		for e.Sent() < 10*64<<10 && t.Context().Err() == nil {
			time.Sleep(time.Millisecond)
		}
		e.Restart()
	}()
	_, err := e.driver(t).Create(t.Context(), e.machine(t, 0))
	require.NoError(t, err)
	assert.Positive(t, e.Calls()["POST /imagetransfers/*/resume"])
}
