package nspawn

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"strings"
)

// run runs a host command and returns its output. The error holds the command, to paste, and what it said.
func run(ctx context.Context, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("`%s %s`: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(errOut.String()))
	}
	return out.String(), nil
}

// ipBatch runs several `ip` commands, one per line, in one process with the given options. The first that fails ends it.
func ipBatch(ctx context.Context, options, lines []string) error {
	cmd := exec.CommandContext(ctx, "ip", append(options, "-batch", "-")...)
	cmd.Stdin = strings.NewReader(strings.Join(lines, "\n") + "\n")
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("`ip %s -batch` of %q: %w: %s", strings.Join(options, " "), lines, err, bytes.TrimSpace(out))
	}
	return nil
}

// missing says that a command is not installed, and where it comes from; both empty when it is there.
func missing(command, pkg string) (reason, remedy string) {
	if _, err := exec.LookPath(command); err != nil {
		return "the command " + command + " is missing", "install it: apt-get install " + pkg + " (`make tools` does)"
	}
	return "", ""
}
