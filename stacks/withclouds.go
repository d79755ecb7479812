//go:build clouds

package stacks

import (
	"fmt"

	"github.com/pulumi/pulumi/sdk/v3/go/pulumi"

	"github.com/bedfellow/bedfellow/provision/clouds"
)

// machines makes the bed's in its cloud, and returns them as a Pool shows its own.
func (r rented) machines(ctx *pulumi.Context, parent pulumi.ResourceOption) (pulumi.ArrayOutput, error) {
	switch r.args.Driver {
	case "aws":
		s, problems := clouds.ReadAWS(r.args.Settings)
		if err := problems.Err(); err != nil {
			return pulumi.ArrayOutput{}, err
		}
		m, err := newAWSMachines(ctx, r, s, parent)
		return m.Machines, err
	case "openstack":
		s, problems := clouds.ReadOpenStack(r.args.Settings)
		if err := problems.Err(); err != nil {
			return pulumi.ArrayOutput{}, err
		}
		m, err := newOpenStackMachines(ctx, r, s, parent)
		return m.Machines, err
	}
	return pulumi.ArrayOutput{}, fmt.Errorf("there is no cloud %q", r.args.Driver)
}
