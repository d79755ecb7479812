package images

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// entry is one path of a tree with all that the digest covers. Size and time are for the quick check.
type entry struct {
	Path   string `json:"p"` // relative to the tree
	Mode   uint32 `json:"m"` // type and permissions, as stat has them
	UID    uint32 `json:"u,omitempty"`
	GID    uint32 `json:"g,omitempty"`
	Size   int64  `json:"s,omitempty"` // of regular files, in bytes
	MTime  int64  `json:"t,omitempty"` // of regular files, in ns; not part of the digest
	Device uint64 `json:"d,omitempty"`
	Link   string `json:"l,omitempty"` // target of a symbolic link
	Xattrs string `json:"x,omitempty"` // name=hex, sorted; capabilities are among them
	SHA256 string `json:"h,omitempty"` // of a regular file's content
}

// sum adds the entry to a digest. Every field is in it but the time.
func (e entry) sum(w io.Writer) {
	fmt.Fprintf(w, "%q %o %d %d %d %d %q %q %s\n", e.Path, e.Mode, e.UID, e.GID, e.Size, e.Device, e.Link, e.Xattrs, e.SHA256)
}

// lstat fills an entry with all but the content's digest.
func lstat(tree, rel string) (entry, error) {
	path := filepath.Join(tree, rel)
	info, err := os.Lstat(path)
	if err != nil {
		return entry{}, err
	}
	st := info.Sys().(*syscall.Stat_t)
	e := entry{Path: rel, Mode: uint32(st.Mode), UID: st.Uid, GID: st.Gid}
	switch e.Mode & syscall.S_IFMT {
	case syscall.S_IFREG:
		e.Size, e.MTime = st.Size, info.ModTime().UnixNano()
	case syscall.S_IFLNK:
		e.Link, err = os.Readlink(path)
	case syscall.S_IFBLK, syscall.S_IFCHR:
		e.Device = uint64(st.Rdev)
	}
	return e, err
}

// scan lists a tree in a fixed order. With content, it reads every file and its extended attributes, on all CPUs.
func scan(ctx context.Context, tree string, content bool) ([]entry, error) {
	var entries []entry
	err := filepath.WalkDir(tree, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		rel, err := filepath.Rel(tree, path)
		if err != nil {
			return err
		}
		e, err := lstat(tree, rel)
		entries = append(entries, e)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("reading the tree: %w", err)
	}
	slices.SortFunc(entries, func(a, b entry) int { return strings.Compare(a.Path, b.Path) })
	if !content {
		return entries, nil
	}
	next := make(chan *entry)
	errs := make([]error, runtime.NumCPU())
	var wg sync.WaitGroup
	for i := range errs {
		wg.Go(func() {
			for e := range next {
				if errs[i] == nil {
					errs[i] = e.read(tree)
				}
			}
		})
	}
	for i := range entries {
		if ctx.Err() != nil {
			break
		}
		next <- &entries[i]
	}
	close(next)
	wg.Wait()
	if err := errors.Join(append(errs, ctx.Err())...); err != nil {
		return nil, fmt.Errorf("reading the tree: %w", err)
	}
	return entries, nil
}

// read fills in what takes reading: content and extended attributes.
func (e *entry) read(tree string) error {
	path := filepath.Join(tree, e.Path)
	kind := e.Mode & syscall.S_IFMT
	if kind == syscall.S_IFREG || kind == syscall.S_IFDIR {
		x, err := xattrs(path)
		if err != nil {
			return err
		}
		e.Xattrs = x
	}
	if kind != syscall.S_IFREG {
		return nil
	}
	sum, err := fileSum(path)
	e.SHA256 = sum
	return err
}

// fileSum is the hex SHA-256 of a file.
func fileSum(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// xattrs are a path's extended attributes as one string. A filesystem without them has none.
func xattrs(path string) (string, error) {
	buf := make([]byte, 1<<16)
	n, err := unix.Listxattr(path, buf)
	if errors.Is(err, syscall.ENOTSUP) || n == 0 && err == nil {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("attributes of %s: %w", path, err)
	}
	names := strings.Split(strings.TrimSuffix(string(buf[:n]), "\x00"), "\x00")
	slices.Sort(names)
	var out []string
	for _, name := range names {
		n, err := unix.Getxattr(path, name, buf)
		if err != nil {
			return "", fmt.Errorf("attribute %s of %s: %w", name, path, err)
		}
		out = append(out, name+"="+hex.EncodeToString(buf[:n]))
	}
	return strings.Join(out, ","), nil
}

// digestTree is the digest of a tree's entries.
func digestTree(entries []entry) string {
	h := sha256.New()
	for _, e := range entries {
		e.sum(h)
	}
	return "sha256:" + hex.EncodeToString(h.Sum(nil))
}

func writeEntries(path string, entries []entry) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	w := bufio.NewWriter(f)
	enc := json.NewEncoder(w)
	for _, e := range entries {
		if err := enc.Encode(e); err != nil {
			return err
		}
	}
	return errors.Join(w.Flush(), f.Close())
}

func readEntries(path string) ([]entry, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var entries []entry
	for dec := json.NewDecoder(bufio.NewReader(f)); ; {
		var e entry
		if err := dec.Decode(&e); err == io.EOF {
			return entries, nil
		} else if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		entries = append(entries, e)
	}
}
