package engine

import "context"

// Lock and WriteConfig are here for the tests.
func Lock(ctx context.Context, w *Workspace, command string) (func(), error) {
	return w.lock(ctx, command)
}

func WriteConfig(w *Workspace, path string) error { return w.writeConfig(path, true) }
