package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/bedfellow/bedfellow/images"
	"github.com/bedfellow/bedfellow/provision/drivers"
	"github.com/bedfellow/bedfellow/stacks"
)

func (a *app) bundle() *cobra.Command {
	return &cobra.Command{
		Use: "bundle", Short: "Build the offline bundle of Kubernetes, unless it is kept already",
		Long: "Builds Kubernetes, etcd, CoreDNS and Flannel from the Go module images/kubernetes, and of them and distribution packages\n" +
			"the container that is a Kubernetes node, with all container images of a cluster in it. Nodes that are baked with it pull\n" +
			"nothing. The same module gives the same digest. It takes some ten minutes on two CPUs the first time.\n\n" +
			"With " + images.KubernetesEnv + "=" + images.KubernetesPinned + " it takes those programs out of upstream's container images, by the digests in " + images.LockFile + ".",
		RunE: func(c *cobra.Command, _ []string) error {
			store, err := drivers.Images("")
			if err != nil {
				return err
			}
			img, err := store.Build(c.Context(), images.Bundle(stacks.KubernetesSource()))
			if err != nil {
				return err
			}
			return a.print(img, func() { fmt.Printf("%s  %s\n", img.Digest, img.Path) })
		},
	}
}
