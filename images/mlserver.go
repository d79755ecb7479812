package images

import (
	"context"
	"path/filepath"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// mlServerRole is baked into a tree of its own, that of a service in Kubernetes. The bundle has its container image among the others.
const mlServerRole = "ml_server"

const mlServerImage = imagePrefix + "ml-server:1"

// MLServer asks for the tree of the service of the talk's workflow.
func MLServer() Request {
	return Request{Definition: bundleDefinition, Roles: []string{mlServerRole}}
}

// containedRoles are the roles of the trees that an image has in it as containers, and those have in them.
func containedRoles(roles []string) []string {
	for _, role := range roles {
		switch role {
		case usernetesRole:
			return []string{kubernetesRole, mlServerRole}
		case kubernetesRole:
			return []string{mlServerRole}
		}
	}
	return nil
}

// mlServer writes the archive of the service's container image.
func (b *bakery) mlServer(ctx context.Context, to string) (err error) {
	var img Image
	if b.replay != nil {
		img, err = b.kept(ctx, b.replay.Kubernetes.MLServer)
	} else {
		img, err = b.store.Build(ctx, MLServer())
	}
	if err != nil {
		return err
	}
	b.m.Kubernetes.MLServer = img.Digest
	b.m.Kubernetes.Images[mlServerImage], err = b.containerArchive(ctx, img, filepath.Join(to, "ml-server.tar"), mlServerImage, v1.Config{
		Entrypoint: []string{"/usr/local/bin/ml-server"}, Env: []string{containerPath},
	})
	return err
}
