package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strings"
	"time"

	"github.com/bedfellow/bedfellow/provision/lima"
)

// keepYAML keeps what a node of the bed that stands is for limactl alone.
func (b *bench) keepYAML(ctx context.Context, stack string) error {
	cmd := exec.CommandContext(ctx, b.bed, "inventory", "-s", stack, "--format", "lima")
	cmd.Dir = b.dir
	out, err := cmd.Output()
	if err == nil {
		file, _, _ := strings.Cut(string(out), "\n")
		b.yaml, err = os.ReadFile(file)
	}
	return err
}

// bare starts one such machine by limactl alone, that many times, and returns the median in seconds.
func (b *bench) bare(ctx context.Context, runs int) (float64, error) {
	root, err := lima.DefaultRoot()
	if err != nil {
		return 0, err
	}
	home, err := os.MkdirTemp("", "bl") // sockets' paths must be short
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(home)
	file := filepath.Join(home, "bare.yaml")
	if err := os.WriteFile(file, b.yaml, 0o600); err != nil {
		return 0, err
	}
	if os.Geteuid() == 0 {
		u, err := user.Lookup(lima.Account)
		if err != nil {
			return 0, err
		}
		if out, err := exec.CommandContext(ctx, "chown", "-R", u.Uid+":"+u.Gid, home).CombinedOutput(); err != nil {
			return 0, fmt.Errorf("chown %s: %w: %s", home, err, out)
		}
	}
	limactl := func(ctx context.Context, args ...string) error {
		cmd, err := lima.New(root).Limactl(ctx, home, append([]string{"--tty=false"}, args...)...)
		if err != nil {
			return err
		}
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("limactl %s: %w: %s", strings.Join(args, " "), err, out)
		}
		return nil
	}
	var seconds []float64
	for i := range runs {
		if ctx.Err() != nil {
			return 0, context.Cause(ctx)
		}
		fmt.Fprintf(os.Stderr, "limactl start: run %d of %d\n", i+1, runs)
		start := time.Now()
		err := limactl(ctx, "start", "--timeout="+limit.String(), file)
		seconds = append(seconds, time.Since(start).Seconds())
		if err := errors.Join(err, limactl(context.WithoutCancel(ctx), "delete", "-f", "bare")); err != nil {
			return 0, err
		}
	}
	return median(seconds), nil
}
