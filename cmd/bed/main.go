// Command bed makes test beds on which HPC and Kubernetes share the same nodes, and runs experiments on them.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/bedfellow/bedfellow/images"
	"github.com/bedfellow/bedfellow/pkg/bed"
)

// Exit codes, part of the command's contract.
const (
	exitFailed = 1 // something went wrong
	exitWrong  = 2 // the call is wrong whatever the host
	exitHost   = 3 // the call is valid, but this host, engine or bed cannot give it
)

func main() { os.Exit(run()) }

func run() int {
	ctx, stop := context.WithCancelCause(context.Background())
	defer stop(nil)
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	go func() {
		s := <-signals
		fmt.Fprintf(os.Stderr, "\n%v: stopping in good order; once more stops at once\n", s)
		stop(fmt.Errorf("%v", s))
		<-signals
		os.Exit(exitFailed)
	}()
	app := &app{}
	root := app.command()
	err := root.ExecuteContext(ctx)
	app.close()
	if err == nil {
		return 0
	}
	fmt.Fprintln(os.Stderr, "bed: "+err.Error())
	return exitCode(err)
}

func exitCode(err error) int {
	var problems bed.Problems
	var usage *usageError
	switch {
	case errors.As(err, &problems):
		return problems.ExitCode()
	case errors.As(err, &usage):
		return exitWrong
	case errors.Is(err, images.ErrNoSpace), errors.Is(err, images.ErrMissing), errors.Is(err, images.ErrNotRoot), errors.Is(err, images.ErrInUse),
		errors.Is(err, images.ErrCannotRebake), errors.Is(err, images.ErrNoFlux), errors.Is(err, images.ErrNoBundle), errors.Is(err, images.ErrNotPinned):
		return exitHost
	default:
		return exitFailed
	}
}

// usageError is a call that cobra refused.
type usageError struct{ error }
