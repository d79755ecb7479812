package images

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/bedfellow/bedfellow/pkg/bed"
	"github.com/bedfellow/bedfellow/pkg/progress"
)

// BakeEnv set to "vm" has VM images baked in a machine that is thrown away, on hosts that could do it themselves too.
const BakeEnv = "BEDFELLOW_BAKE"

// Elsewhere bakes an image on another machine with the same version of Bedfellow, and writes the image's directory in that
// machine's store to out, as a tar archive.
type Elsewhere func(ctx context.Context, req Request, out io.Writer) error

// elsewhere tells whether a VM image is to be baked on another machine: where the bake's tools or root are not to be had.
func (r recipe) elsewhere() (bool, error) {
	_, err := exec.LookPath("mmdebstrap")
	if r.format != bed.VM || os.Getenv(BakeEnv) != "vm" && runtime.GOOS == "linux" && os.Geteuid() == 0 && err == nil {
		return false, nil
	}
	if r.art.Digest != "" && r.art.pin.Source == "" {
		return false, fmt.Errorf("%w: the image is baked in a virtual machine, to which %s does not come; give its address with a digest: https://…#sha256:…", ErrNoFlux, r.art.Source)
	}
	if r.kubernetes != "" {
		return false, fmt.Errorf("%w: images with Kubernetes are baked by root where mmdebstrap is, and not in a virtual machine yet", ErrNoBundle)
	}
	return true, nil
}

// bakeElsewhere has the image baked on another machine and takes it over. What comes is checked as an image of the store is.
func (s *Store) bakeElsewhere(ctx context.Context, b *bakery) error {
	r, w := io.Pipe()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	done := make(chan error, 1)
	go func() {
		err := s.Elsewhere(ctx, Request{Definition: b.def.Name, Format: b.format, Roles: b.roles, Flux: b.art.address()}, w)
		w.CloseWithError(err)
		done <- err
	}()
	err := untar(r, b.dir)
	if err != nil {
		cancel(err)
	}
	r.CloseWithError(err)
	if failed := <-done; failed != nil && (err == nil || !errors.Is(failed, err)) {
		return failed
	}
	if err != nil {
		return fmt.Errorf("taking the image over: %w", err)
	}
	data, err := os.ReadFile(filepath.Join(b.dir, "manifest.json"))
	if err != nil {
		return fmt.Errorf("taking the image over: %w", err)
	}
	var m Manifest
	if err := json.Unmarshal(data, &m); err != nil {
		return fmt.Errorf("taking the image over: its manifest: %w", err)
	}
	if m.Key != b.m.Key {
		return fmt.Errorf("the other machine baked the image %s, not %s that was asked for: it has another version of Bedfellow; run `make tools` here first", m.Key, b.m.Key)
	}
	for _, name := range sortedKeys(m.Disk) {
		if how := m.Disk[name].differs(filepath.Join(b.dir, string(bed.VM), name), false); how != "" {
			return fmt.Errorf("taking the image over: %s %s", name, how)
		}
	}
	return b.place()
}

// untar unpacks an image's directory, and takes nothing but what such a one has.
func untar(r io.Reader, dir string) error {
	wanted := []string{"manifest.json", "files"}
	for _, name := range []string{bed.DiskFile, bed.KernelFile, bed.InitrdFile, bed.CmdlineFile} {
		wanted = append(wanted, filepath.Join(string(bed.VM), name))
	}
	in := tar.NewReader(r)
	for {
		h, err := in.Next()
		if errors.Is(err, io.EOF) { // tar fills its last block
			_, err := io.Copy(io.Discard, r)
			return err
		}
		if err != nil {
			return err
		}
		path := filepath.Clean(h.Name)
		if h.Typeflag == tar.TypeDir && (path == "." || path == string(bed.VM)) {
			continue
		}
		if h.Typeflag != tar.TypeReg || !slices.Contains(wanted, path) {
			return fmt.Errorf("the archive has %q, which no image has", h.Name)
		}
		to := filepath.Join(dir, path)
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			return err
		}
		f, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
		if err != nil {
			return err
		}
		_, err = io.Copy(f, in)
		if err := errors.Join(err, f.Close()); err != nil {
			return err
		}
	}
}

// fetchTimeout is for one file or container image, of half a gigabyte by a slow line.
const fetchTimeout = time.Hour

// Fetch returns the path of the file that a pin names, in a directory of its own under the given name: kept, or fetched now. It is
// never there with another digest.
func (s *Store) Fetch(ctx context.Context, p Pin, as string) (path string, err error) {
	kind, want, _ := strings.Cut(p.Digest, ":")
	sum := map[string]func() hash.Hash{"sha256": sha256.New, "sha512": sha512.New}[kind]
	if sum == nil {
		return "", fmt.Errorf("%s: %w: run `bed lock` where its source can be reached", p.Name, ErrNotPinned)
	}
	dir := filepath.Join(s.dir, "pinned", want[:32])
	path = filepath.Join(dir, as)
	step := progress.Start(ctx, "fetch %s", p.Name)
	defer func() { step.EndWith("", err) }()
	lock, err := s.lockWith(ctx, "pinned-"+want[:32], syscall.LOCK_EX, func() { step.Update("waiting for another who fetches it") })
	if err != nil {
		return "", err
	}
	defer lock.Close()
	if f, err := os.Open(path); err == nil { // read whole: minutes of a bake depend on it
		h := sum()
		_, err := io.Copy(h, f)
		f.Close()
		if err == nil && hex.EncodeToString(h.Sum(nil)) == want {
			return path, nil
		}
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, fetchTimeout, fmt.Errorf("it was not fetched within %s", fetchTimeout))
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, p.Source, nil)
	if err != nil {
		return "", err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", fmt.Errorf("fetching %s: %w", p.Name, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return "", fmt.Errorf("fetching %s: %s answered %s; what is there no more is named anew, in %s for what a lock names, and pinned by `bed lock`", p.Name, p.Source, resp.Status, LockFile)
	}
	part := path + ".part"
	f, err := os.OpenFile(part, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o644)
	if err != nil {
		return "", err
	}
	defer os.Remove(part)
	h := sum()
	got := &counted{step: step, of: resp.ContentLength}
	_, err = io.Copy(io.MultiWriter(f, h, got), resp.Body)
	if err = errors.Join(err, f.Close()); err != nil {
		return "", s.explainSpace(fmt.Errorf("fetching %s: %w", p.Name, err))
	}
	if is := hex.EncodeToString(h.Sum(nil)); is != want {
		return "", fmt.Errorf("%s has the digest %s:%s, not %s that was asked for; nothing was kept. If the source was meant to change, say so: `bed lock` does for what a lock names", p.Source, kind, is, p.Digest)
	}
	return path, os.Rename(part, path)
}

// counted reports how far a transfer is.
type counted struct {
	step    *progress.Step
	of      int64 // -1: not known
	n, last int64
}

func (c *counted) Write(p []byte) (int, error) {
	c.n += int64(len(p))
	if c.n-c.last >= 16<<20 {
		c.last = c.n
		if c.of > 0 {
			c.step.Update("%d of %d MiB", c.n>>20, c.of>>20)
		} else {
			c.step.Update("%d MiB", c.n>>20)
		}
	}
	return len(p), nil
}
