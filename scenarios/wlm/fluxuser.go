package wlm

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"math/big"
	"strings"
	"sync"
	"time"

	"github.com/bedfellow/bedfellow/pkg/bed"
	"github.com/bedfellow/bedfellow/pkg/remote"
)

// Starter is a Manager that is not there before Start and gone after Close. Close works after the context of Start has ended.
type Starter interface {
	Start(ctx context.Context) error
	Close() error
}

// Held is a command that runs until it is let go, or until whoever holds it is no more, however that ended.
type Held interface {
	// Done is closed when the command has ended.
	Done() <-chan struct{}
	// Release closes its standard input and waits for its end. The error is a *remote.ExitError when it failed.
	Release() error
}

// fluxUser is a Flux instance of the bed's user on the compute nodes, for sites where the system's instance is not ours, or there is none.
// It needs a Flux on the nodes, and neither root nor anything in its place: the brokers are held over SSH, and end with the connections.
type fluxUser struct {
	*flux
	compute []bed.InventoryNode
	dir     string
	held    []Held
}

const (
	userStart = 2 * time.Minute // for all brokers to be there; emulated ones need most of it
	userEnd   = 15              // seconds for a broker to end before it is killed
)

func newFluxUser(inv bed.Inventory, nodes Nodes) *fluxUser {
	u := &fluxUser{flux: newFlux(inv, nodes), compute: inv.Compute(), dir: "/tmp/bedfellow-flux-" + rand.Text()[:10]}
	// Its first rank is a compute node: the control node need not have a Flux.
	u.control, u.admin, u.own = u.compute[0].Name, nil, true
	u.environment += " FLUX_URI=local://" + u.dir + "/local"
	return u
}

// hold is the script that runs a broker. Its standard input is the certificate, of the length $2, and then nothing for as long as the
// broker is to live. Nothing is left of the directory $1 afterwards.
const hold = `umask 077; exec 3<&0
mkdir "$1" || exit
head -c "$2" <&3 >"$1/curve.cert"; printf %s "$3" >"$1/flux.toml"
flux broker --config-path="$1/flux.toml" -Srundir="$1" -Slocal-uri="local://$1/local" -Sbroker.rc2_none=1 -Slog-stderr-level=5 </dev/null >"$1/log" 2>&1 &
broker=$!
{ cat; kill $broker; n=0; while kill -0 $broker && [ $n -lt "$4" ]; do sleep 1; n=$((n + 1)); done; kill -9 $broker; } <&3 >/dev/null 2>&1 &
watch=$!
wait $broker; code=$?
kill $watch 2>/dev/null
tail -n 15 "$1/log" >&2
rm -rf "$1"
exit $code`

// Start starts a broker on every compute node and waits until all of them are one instance. What a failed Start began, it ends.
func (u *fluxUser) Start(ctx context.Context) (err error) {
	r, err := u.nodes.Run(ctx, u.control, `d=$(mktemp -d) && trap 'rm -rf "$d"' EXIT && flux keygen "$d/c" >&2 && cat "$d/c"`)
	if err != nil {
		return fmt.Errorf("flux in user mode: %w; nodes need a Flux: bring the bed up with -c flux=…", err)
	}
	port, err := rand.Int(rand.Reader, big.NewInt(20000))
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, u.Close())
		}
	}()
	for _, n := range u.compute {
		config := u.config(n, 30000+int(port.Int64()))
		h, err := u.nodes.Hold(ctx, n.Name, "sh -c "+remote.Quote(hold)+" sh "+quoteAll([]string{u.dir, fmt.Sprint(len(r.Stdout)), config, fmt.Sprint(userEnd)}), r.Stdout)
		if err != nil {
			return fmt.Errorf("start Flux on node %s: %w", n.Name, err)
		}
		u.held = append(u.held, h)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, userStart, fmt.Errorf("not all of them were there within %s", userStart))
	defer cancel()
	for {
		have, err := u.Resources(ctx)
		if err == nil && have.usable(nil) == len(u.compute) {
			return nil
		}
		for i, h := range u.held {
			select {
			case <-h.Done():
				return errors.Join(fmt.Errorf("the broker of node %s has ended", u.compute[i].Name), h.Release())
			default:
			}
		}
		select {
		case <-ctx.Done():
			return errors.Join(fmt.Errorf("start Flux on %d nodes: %w; there is %s", len(u.compute), context.Cause(ctx), have), err)
		case <-time.After(300 * time.Millisecond):
		}
	}
}

// config is a broker's: every broker is child of the first.
func (u *fluxUser) config(self bed.InventoryNode, port int) string {
	var b strings.Builder
	fmt.Fprintf(&b, "[bootstrap]\ncurve_cert = %q\ndefault_port = %d\ndefault_bind = \"tcp://%s:%%p\"\nhosts = [\n", u.dir+"/curve.cert", port, self.BedAddress)
	for _, n := range u.compute {
		fmt.Fprintf(&b, "  { host = %q, connect = \"tcp://%s:%%p\" },\n", n.Name, n.BedAddress)
	}
	b.WriteString("]\n")
	return b.String()
}

// Close ends the instance.
func (u *fluxUser) Close() error {
	errs := make([]error, len(u.held))
	var wg sync.WaitGroup
	for i, h := range u.held {
		wg.Go(func() {
			var exit *remote.ExitError
			if err := h.Release(); err != nil && !errors.As(err, &exit) { // a broker that is told to end says so by its status
				errs[i] = fmt.Errorf("end Flux on node %s: %w", u.compute[i].Name, err)
			}
		})
	}
	wg.Wait()
	u.held = nil
	return errors.Join(errs...)
}
