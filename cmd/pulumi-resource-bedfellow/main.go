// Command pulumi-resource-bedfellow is the Pulumi provider plugin. The engine starts it; people do not.
package main

import (
	"context"
	"fmt"
	"os"

	"github.com/bedfellow/bedfellow/pkg/proc"
	"github.com/bedfellow/bedfellow/provision/provider"
	"github.com/bedfellow/bedfellow/stacks"
)

func main() {
	proc.CloseOnExec() // nodes outlive this process
	p, err := provider.New(provider.Host{}, stacks.Components()...)
	if err == nil {
		err = p.Run(context.Background(), provider.Name, provider.Version)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "pulumi-resource-bedfellow:", err)
		os.Exit(1)
	}
}
