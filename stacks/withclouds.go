//go:build clouds

package stacks

import (
	"fmt"

	"github.com/pulumi/pulumi-go-provider/infer"
	"github.com/pulumi/pulumi/sdk/v3/go/pulumi"
)

// Components are what this build has for other languages: the bed, and the machines of each cloud.
func Components() []infer.InferredComponent {
	return []infer.InferredComponent{infer.ComponentF(NewBed), infer.ComponentF(NewAWSMachines), infer.ComponentF(NewOpenStackMachines)}
}

// rent makes a bed's machines in the cloud.
func rent(ctx *pulumi.Context, cloud, name string, args MachinesArgs, parent pulumi.ResourceOption) (pulumi.ArrayOutput, error) {
	switch cloud {
	case "aws":
		m, err := NewAWSMachines(ctx, name, args, parent)
		if err != nil {
			return pulumi.ArrayOutput{}, err
		}
		return m.Machines, nil
	case "openstack":
		m, err := NewOpenStackMachines(ctx, name, args, parent)
		if err != nil {
			return pulumi.ArrayOutput{}, err
		}
		return m.Machines, nil
	}
	return pulumi.ArrayOutput{}, fmt.Errorf("there is no cloud %q", cloud)
}
