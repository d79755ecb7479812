package lima

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/bedfellow/bedfellow/images"
	"github.com/bedfellow/bedfellow/pkg/bed"
	"github.com/bedfellow/bedfellow/pkg/progress"
	"github.com/bedfellow/bedfellow/pkg/remote"
	"github.com/bedfellow/bedfellow/provision"
)

// bakeBase is the pin of the cloud image that bakes run in. Which one it is matters to nobody: what is baked is the same everywhere.
func bakeBase() string { return "cloud-image/debian-13/" + runtime.GOARCH }

// Baker bakes images in virtual machines that are thrown away, for hosts that cannot bake: a distribution's cloud image, by digest, in
// which this version of Bedfellow bakes as it does anywhere.
type Baker struct {
	Driver *Driver
	Store  *images.Store // where the cloud image is kept
	// Command is this version's `bed` for Linux.
	Command string
	// CPUs and Memory of the machine.
	CPUs   int
	Memory bed.Size
}

// bakeTimeout is for all that is done on the machine; a native bake takes some ten minutes, and emulated CPUs twenty times as long.
const bakeTimeout = 6 * time.Hour

// Bake is an images.Elsewhere. When it fails or is interrupted, nothing is left of the machine; that of a killed one is listed by
// `bed sweep`, and goes with the next bake of the same image.
func (b Baker) Bake(ctx context.Context, req images.Request, out io.Writer) (err error) {
	lock, err := images.OpenLock()
	if err != nil {
		return err
	}
	pin, err := lock.Pin(bakeBase())
	if err != nil {
		return fmt.Errorf("a bake in a virtual machine needs a cloud image: %w", err)
	}
	program, err := os.ReadFile(b.Command)
	if err != nil {
		return fmt.Errorf("a bake in a virtual machine needs `bed` for Linux: %w (`make tools DRIVER=lima` builds it)", err)
	}
	disk, err := b.Store.Fetch(ctx, pin, bed.DiskFile)
	if err != nil {
		return err
	}
	m, signer, err := b.machine(req, filepath.Dir(disk), pin.Digest)
	if err != nil {
		return err
	}
	defer func() {
		clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), deleteTimeout)
		defer cancel()
		err = errors.Join(err, b.Driver.Delete(clean, m.Name), b.Driver.Sweep(clean, m.Owner))
	}()
	ctx, cancel := context.WithTimeoutCause(ctx, bakeTimeout, fmt.Errorf("it was not baked within %s", bakeTimeout))
	defer cancel()
	st, err := b.Driver.Create(ctx, m)
	if err != nil {
		return err
	}
	client, err := remote.Dial(ctx, remote.Target{Name: m.Name, Address: st.Address, Port: st.Port, User: m.User, HostKey: m.HostPublicKey, Signer: signer})
	if err != nil {
		return err
	}
	defer client.Close()
	if err := prepare(ctx, client, program); err != nil {
		return err
	}
	return bakeInside(ctx, client, req, out)
}

// machine is the one that bakes the image, with keys of its own.
func (b Baker) machine(req images.Request, image, digest string) (provision.Machine, ssh.Signer, error) {
	var pairs [2]ed25519.PrivateKey
	var public [2]string
	for i := range pairs {
		_, key, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			return provision.Machine{}, nil, err
		}
		signer, err := ssh.NewSignerFromKey(key)
		if err != nil {
			return provision.Machine{}, nil, err
		}
		pairs[i], public[i] = key, strings.TrimSpace(string(ssh.MarshalAuthorizedKey(signer.PublicKey())))
	}
	block, err := ssh.MarshalPrivateKey(pairs[0], "")
	if err != nil {
		return provision.Machine{}, nil, err
	}
	signer, err := ssh.NewSignerFromKey(pairs[1])
	id := make([]byte, 4)
	_, _ = rand.Read(id)
	sum := sha256.Sum256(fmt.Appendf(nil, "%q", req)) // two requests of a definition may be baked at once
	name := "bake-" + hex.EncodeToString(sum[:4])
	return provision.Machine{
		Name: name + "-1", Owner: provision.Owner{Bed: name, ID: hex.EncodeToString(id), State: "bake of " + req.Definition},
		Role: bed.Control, CPUs: b.CPUs, Memory: b.Memory, Disk: 24 * bed.GiB, Image: image, ImageDigest: digest, Network: "outbound", User: "bed",
		AuthorizedKey: public[1], HostKey: string(pem.EncodeToMemory(block)), HostPublicKey: public[0], Slow: b.Driver.Info().Emulated,
	}, signer, err
}

// prepare puts what a bake needs on the machine.
func prepare(ctx context.Context, client *remote.Client, program []byte) (err error) {
	step := progress.Start(ctx, "prepare %s to bake", client.Target.Name)
	defer func() { _ = step.End(err) }()
	packages := map[string]bool{}
	for _, t := range images.Tools(bed.VM) {
		packages[t.Package] = true
	}
	lines := func() io.Writer { return &lineWriter{line: func(line string) { step.Update("%s", line) }} } // one for each stream
	if err := client.Stream(ctx, "sudo env "+handedOver()+"DEBIAN_FRONTEND=noninteractive sh -euc 'apt-get -qq -o DPkg::Lock::Timeout=600 update; "+
		"exec apt-get -o DPkg::Lock::Timeout=600 install -y --no-install-recommends "+strings.Join(slices.Sorted(maps.Keys(packages)), " ")+"'", lines(), lines()); err != nil {
		return err
	}
	return client.Write(ctx, "bed", program, 0o755)
}

// bakeInside has the machine bake and hands the image on.
func bakeInside(ctx context.Context, client *remote.Client, req images.Request, out io.Writer) error {
	sink := progress.SinkOf(ctx)
	events := &lineWriter{line: func(line string) {
		var e progress.Event
		if json.Unmarshal([]byte(line), &e) == nil && e.Step != "" {
			e.Step += ", on " + client.Target.Name
			sink(e)
		}
	}}
	command := "sudo env " + handedOver() + "./bed image build " + remote.Quote(req.Definition) + " --format " + string(req.Format) + " --roles " + remote.Quote(strings.Join(req.Roles, ",")) + " -o json"
	if req.Flux != "" {
		command += " --flux " + remote.Quote(req.Flux)
	}
	var said strings.Builder
	if err := client.Stream(ctx, command, &said, events); err != nil {
		return err
	}
	var img images.Image
	if err := json.Unmarshal([]byte(said.String()), &img); err != nil || img.Path == "" {
		return errors.Join(fmt.Errorf("node %s baked, and said %q where the image was expected", client.Target.Name, said.String()), err)
	}
	step := progress.Start(ctx, "take the image over")
	return step.End(client.Stream(ctx, "sudo tar -C "+remote.Quote(filepath.Dir(img.Path))+" -cf - .", out, io.Discard))
}

// handedOver are the settings of this process that say how archives are reached, for env(1).
func handedOver() string {
	out := ""
	for _, v := range os.Environ() {
		name, value, _ := strings.Cut(v, "=")
		if slices.Contains([]string{"http_proxy", "https_proxy", "no_proxy", "bedfellow_mirror"}, strings.ToLower(name)) {
			out += name + "=" + remote.Quote(value) + " "
		}
	}
	return out
}

// lineWriter calls a function with each line.
type lineWriter struct {
	rest []byte
	line func(string)
}

func (l *lineWriter) Write(p []byte) (int, error) {
	l.rest = append(l.rest, p...)
	for {
		i := strings.IndexByte(string(l.rest), '\n')
		if i < 0 {
			return len(p), nil
		}
		l.line(strings.TrimSpace(string(l.rest[:i])))
		l.rest = l.rest[i+1:]
	}
}
