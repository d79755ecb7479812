package provider

import (
	"context"
	"encoding/json"
	"os"
	"time"

	p "github.com/pulumi/pulumi-go-provider"
	wrap "github.com/pulumi/pulumi-go-provider/middleware/context"
)

// CallsEnv names a file to which every call of the engine's is appended as a line of JSON, a Call; without it, none is.
const CallsEnv = "BEDFELLOW_CALLS"

// Call is the time from the engine's asking to our answer.
type Call struct {
	Start time.Time `json:"start"`
	End   time.Time `json:"end"`
}

// timed notes the provider's calls when CallsEnv asks for it. A call's context ends with its answer.
func timed(provider p.Provider) p.Provider {
	path := os.Getenv(CallsEnv)
	if path == "" {
		return provider
	}
	return wrap.Wrap(provider, func(ctx context.Context) context.Context {
		start := time.Now()
		context.AfterFunc(ctx, func() {
			line, err := json.Marshal(Call{Start: start, End: time.Now()})
			if err != nil {
				return
			}
			if f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600); err == nil { // one write, so that lines stay whole
				_, _ = f.Write(append(line, '\n'))
				_ = f.Close()
			}
		})
		return ctx
	})
}
