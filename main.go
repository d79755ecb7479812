// The Pulumi program, for `pulumi up` in this folder. `bed up` runs the same.
package main

import (
	"github.com/pulumi/pulumi/sdk/v3/go/pulumi"

	"github.com/bedfellow/bedfellow/stacks"
)

func main() { pulumi.Run(stacks.Program) }
