package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
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
	driver := lima.New(root)
	if err := driver.Own(home, file); err != nil {
		return 0, err
	}
	var seconds []float64
	for i := range runs {
		fmt.Fprintf(os.Stderr, "limactl start: run %d of %d\n", i+1, runs)
		start := time.Now()
		_, err := driver.Limactl(ctx, home, "start", "--timeout="+limit.String(), file)
		seconds = append(seconds, time.Since(start).Seconds())
		clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		_, errDelete := driver.Limactl(clean, home, "delete", "-f", "bare")
		cancel()
		if err := errors.Join(err, errDelete); err != nil {
			return 0, err
		}
	}
	return median(seconds), nil
}
