package images

import (
	"bytes"
	"context"
	_ "embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"gopkg.in/yaml.v3"
)

// LockFile is the name of a lock in a folder of stacks, where it goes before the one that Bedfellow came with.
const LockFile = "images.lock"

// LockEnv names the lock to go by, for programs that work in another folder.
const LockEnv = "BEDFELLOW_LOCK"

//go:embed images.lock
var defaultLock []byte

// Pin is an input of bakes that comes signed from no distribution's archive.
type Pin struct {
	Name   string `yaml:"name" json:"name"`     // what it is: cloud-image/debian-13/amd64
	Source string `yaml:"source" json:"source"` // https://… of a file, or docker://registry/repository:tag
	Digest string `yaml:"digest" json:"digest"` // sha256:… or sha512:… in hex; empty before the first Resolve
}

// Lock is a list of pins, each name once.
type Lock []Pin

// ErrNotPinned says that a lock has no digest of an input, which is not fetched without one.
var ErrNotPinned = errors.New("not pinned")

var (
	pinDigest = regexp.MustCompile(`^(sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128})?$`)
	pinName   = regexp.MustCompile(`^[a-z0-9][a-z0-9./-]*$`)
)

// OpenLock reads the lock that LockEnv names, else the one in the working directory, else the one that Bedfellow came with.
func OpenLock() (Lock, error) {
	from := os.Getenv(LockEnv)
	if from == "" {
		from = LockFile
		if !exists(from) {
			return ParseLock("the built-in "+LockFile, defaultLock)
		}
	}
	data, err := os.ReadFile(from)
	if err != nil {
		return nil, fmt.Errorf("the lock of images: %w", err)
	}
	return ParseLock(from, data)
}

// ParseLock reads a lock; errors name it as from. Nothing that it does not understand is passed over.
func ParseLock(from string, data []byte) (Lock, error) {
	var l Lock
	d := yaml.NewDecoder(bytes.NewReader(data))
	d.KnownFields(true)
	if err := d.Decode(&l); err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%s is no lock of images: %w", from, err)
	}
	seen := map[string]bool{}
	for i, p := range l {
		wrong := func(format string, args ...any) error {
			return fmt.Errorf("%s: pin %d, %q: %s", from, i+1, p.Name, fmt.Sprintf(format, args...))
		}
		u, err := url.Parse(p.Source)
		switch {
		case !pinName.MatchString(p.Name):
			return nil, wrong("a name is of lower-case letters, digits, '.', '-' and '/'")
		case seen[p.Name]:
			return nil, wrong("there are two of that name")
		case err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "docker" && (u.Scheme != "http" || u.Hostname() != "127.0.0.1"):
			return nil, wrong("the source %q is neither https://… nor docker://registry/repository:tag", p.Source)
		case !pinDigest.MatchString(p.Digest):
			return nil, wrong("the digest %q is neither sha256: with 64 hex digits nor sha512: with 128", p.Digest)
		}
		seen[p.Name] = true
	}
	return l, nil
}

// Format writes the lock as ParseLock reads it.
func (l Lock) Format() ([]byte, error) {
	data, err := yaml.Marshal(l)
	comment, _, _ := bytes.Cut(defaultLock, []byte("- name"))
	return append(bytes.Clone(comment), data...), err
}

// Pin returns the pin of a name; ErrNotPinned where there is none or it has no digest.
func (l Lock) Pin(name string) (Pin, error) {
	i := slices.IndexFunc(l, func(p Pin) bool { return p.Name == name })
	if i < 0 {
		return Pin{}, fmt.Errorf("%s: %w: no lock names it; write it into %s beside Pulumi.yaml, with its source, and run `bed lock`", name, ErrNotPinned, LockFile)
	}
	if l[i].Digest == "" {
		return l[i], fmt.Errorf("%s, %s: %w: run `bed lock` where its source can be reached", name, l[i].Source, ErrNotPinned)
	}
	return l[i], nil
}

// PinChange is what Resolve found of a pin.
type PinChange struct {
	Pin          // as it would be
	Was   string `json:"was"` // the digest that it has
	Error string `json:"error,omitempty"`
}

// Changed tells whether the digest is another one.
func (c PinChange) Changed() bool { return c.Error == "" && c.Digest != c.Was }

// resolveTimeout is for one pin, of which seldom more than a list of digests is read.
const resolveTimeout = 5 * time.Minute

// Resolve asks every source what it has now. A source that does not answer is told of in its change, whose digest stays, and in the
// error.
func (l Lock) Resolve(ctx context.Context) ([]PinChange, error) {
	changes := make([]PinChange, len(l))
	var errs []error
	for i, p := range l {
		changes[i] = PinChange{Pin: p, Was: p.Digest}
		digest, err := p.resolve(ctx)
		if err != nil {
			err = fmt.Errorf("%s: asking %s: %w", p.Name, p.Source, err)
			changes[i].Error = err.Error()
			errs = append(errs, err)
			continue
		}
		changes[i].Digest = digest
	}
	return changes, errors.Join(errs...)
}

func (p Pin) resolve(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, resolveTimeout, fmt.Errorf("no answer within %s", resolveTimeout))
	defer cancel()
	if image, ok := strings.CutPrefix(p.Source, "docker://"); ok {
		ref, err := name.ParseReference(image)
		if err != nil {
			return "", err
		}
		found, err := remote.Head(ref, remote.WithContext(ctx))
		if err != nil {
			return "", err
		}
		return found.Digest.String(), nil
	}
	dir, file := path.Split(p.Source)
	for _, kind := range []struct{ list, prefix string }{{"SHA512SUMS", "sha512:"}, {"SHA256SUMS", "sha256:"}} {
		data, err := fetch(ctx, dir+kind.list)
		if errors.Is(err, errNotThere) {
			continue
		}
		if err != nil {
			return "", err
		}
		for line := range strings.Lines(string(data)) {
			if f := strings.Fields(line); len(f) == 2 && strings.TrimPrefix(f[1], "*") == file {
				if _, err := hex.DecodeString(f[0]); err != nil || !pinDigest.MatchString(kind.prefix+f[0]) {
					return "", fmt.Errorf("its %s says %q", kind.list, strings.TrimSpace(line))
				}
				return kind.prefix + f[0], nil
			}
		}
	}
	return "", fmt.Errorf("neither SHA512SUMS nor SHA256SUMS beside it names %s; distributions keep an image for some months: name a newer one in %s", file, LockFile)
}

var errNotThere = errors.New("not there")

// fetch reads a small file.
func fetch(ctx context.Context, from string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, from, nil)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	switch {
	case resp.StatusCode == http.StatusNotFound:
		return nil, fmt.Errorf("%s: %w", from, errNotThere)
	case resp.StatusCode != http.StatusOK:
		return nil, fmt.Errorf("%s: %s", from, resp.Status)
	}
	return io.ReadAll(io.LimitReader(resp.Body, 1<<20))
}

// Write puts a lock into a file, whole or not at all.
func (l Lock) Write(to string) error {
	data, err := l.Format()
	if err != nil {
		return err
	}
	if err := os.WriteFile(to+".part", data, 0o644); err != nil {
		return err
	}
	return os.Rename(to+".part", to)
}
