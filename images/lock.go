package images

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"
)

// lockFile is an flock. Processes that inherit its file hold it too, so a lock that is free says that a bake and all it started
// are gone.
type lockFile struct {
	*os.File
	mu sync.Mutex // guards what stages of the bake write side by side
}

// keptLock is shared by bakes, which link to kept packages and artifacts before a manifest names them, and Prune's alone.
const keptLock = "kept"

// lock waits for the lock of a key.
func (s *Store) lock(ctx context.Context, key string) (*lockFile, error) {
	return s.lockWith(ctx, key, syscall.LOCK_EX, func() {})
}

// lockWith takes a lock, exclusive or shared, and calls waiting once when it has to wait.
func (s *Store) lockWith(ctx context.Context, key string, how int, waiting func()) (*lockFile, error) {
	for told := false; ; {
		l, err := s.tryLock(key, how)
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			return l, err
		}
		if !told {
			waiting()
			told = true
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("waiting for another bake, which holds %s: %w", filepath.Join(s.dir, "locks", key), context.Cause(ctx))
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// tryLock returns EWOULDBLOCK when somebody holds the lock. Lock files stay: one that is removed could be locked twice.
func (s *Store) tryLock(key string, how int) (*lockFile, error) {
	path := filepath.Join(s.dir, "locks", key)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("locking the image store: %w", notRoot(err))
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, fmt.Errorf("locking the image store: %w", notRoot(err))
	}
	if err := syscall.Flock(int(f.Fd()), how|syscall.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("locking %s: %w", path, err)
	}
	return &lockFile{File: f}, nil
}
