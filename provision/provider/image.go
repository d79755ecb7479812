package provider

import (
	"context"
	"errors"
	"reflect"

	p "github.com/pulumi/pulumi-go-provider"
	"github.com/pulumi/pulumi-go-provider/infer"

	"github.com/bedfellow/bedfellow/images"
	"github.com/bedfellow/bedfellow/pkg/bed"
	"github.com/bedfellow/bedfellow/pkg/progress"
)

// Image is one baked image, kept in the host's store by what it was made from. Destroying the resource leaves it there:
// `bed image` manages the store.
type Image struct{ host Host }

// ImageArgs say what is baked.
type ImageArgs struct {
	Definition string   `pulumi:"definition"`
	Format     string   `pulumi:"format,optional"`
	Roles      []string `pulumi:"roles,optional"`
	Flux       string   `pulumi:"flux,optional"`
	Kubernetes string   `pulumi:"kubernetes,optional"`
}

func (i ImageArgs) request() images.Request {
	return images.Request{Definition: i.Definition, Format: bed.ImageFormat(i.Format), Roles: i.Roles, Flux: i.Flux, Kubernetes: i.Kubernetes}
}

// ImageState is where it is.
type ImageState struct {
	ImageArgs
	Key    string `pulumi:"key"`
	Digest string `pulumi:"digest"`
	Path   string `pulumi:"path"`
}

// Annotate describes the resource in the schema.
func (i *Image) Annotate(a infer.Annotator) {
	a.Describe(i, "One baked node image. The same inputs give the same key; it is baked once and kept.")
}

// Annotate describes the inputs in the schema.
func (i *ImageArgs) Annotate(a infer.Annotator) {
	a.Describe(&i.Definition, "Which distribution, such as debian-12.")
	a.Describe(&i.Format, "tree, a root file system and the default, vm, a disk that boots with its kernel beside it, or raw, the same disk as clouds import it.")
	a.Describe(&i.Roles, "Ansible roles on it; none is all of them.")
	a.Describe(&i.Flux, "The artifact of role flux: a path, an address with a digest, or pinned for the lock's; none is an image without Flux.")
	a.Describe(&i.Kubernetes, "What Kubernetes comes from: the Go module that it is built from, a directory, or pinned for the lock's container images; none is an image without Kubernetes.")
}

// Annotate describes the outputs in the schema.
func (i *ImageState) Annotate(a infer.Annotator) {
	a.Describe(&i.Key, "Digest of everything that goes in.")
	a.Describe(&i.Digest, "Digest of the content: sha256:…")
	a.Describe(&i.Path, "Absolute path in the host's image store: of the root tree, or of the directory with the disk.")
}

// Create finds the image in the store and checks it byte for byte, or bakes it.
func (i *Image) Create(ctx context.Context, req infer.CreateRequest[ImageArgs]) (infer.CreateResponse[ImageState], error) {
	state, err := i.make(ctx, req.Inputs, req.DryRun)
	return infer.CreateResponse[ImageState]{ID: req.Inputs.Definition, Output: state}, err
}

// Update makes the image of the new inputs; the old one stays in the store.
func (i *Image) Update(ctx context.Context, req infer.UpdateRequest[ImageArgs, ImageState]) (infer.UpdateResponse[ImageState], error) {
	state, err := i.make(ctx, req.Inputs, req.DryRun)
	return infer.UpdateResponse[ImageState]{Output: state}, err
}

func (i *Image) make(ctx context.Context, args ImageArgs, dryRun bool) (ImageState, error) {
	ctx, done := withProgress(ctx)
	defer done()
	store, err := i.host.images()
	if err != nil {
		return ImageState{}, err
	}
	request := args.request()
	img, kept, err := store.Get(ctx, request)
	switch {
	case err != nil || dryRun:
	case kept:
		err = store.Verify(ctx, img.Digest, false)
	default:
		img, err = store.Build(ctx, request)
	}
	return ImageState{ImageArgs: args, Key: img.Key, Digest: img.Digest, Path: img.Path}, err
}

// Read looks whether the image is still in the store, and whole at a glance.
func (i *Image) Read(ctx context.Context, req infer.ReadRequest[ImageArgs, ImageState]) (infer.ReadResponse[ImageArgs, ImageState], error) {
	ctx, done := withProgress(ctx)
	defer done()
	gone := infer.ReadResponse[ImageArgs, ImageState]{}
	store, err := i.host.images()
	if err != nil {
		return gone, err
	}
	img, kept, err := store.Get(ctx, req.State.request())
	if errors.Is(err, images.ErrNoFlux) || errors.Is(err, images.ErrNoBundle) { // what it was made from is gone since; a bed is destroyed without that too
		progress.Note(ctx, "%v", err)
		return infer.ReadResponse[ImageArgs, ImageState]{ID: req.ID, Inputs: req.Inputs, State: req.State}, nil
	}
	if err != nil {
		return gone, err
	}
	if !kept {
		return gone, nil
	}
	state := ImageState{ImageArgs: req.State.ImageArgs, Key: img.Key, Digest: img.Digest, Path: img.Path}
	if err := store.Verify(ctx, img.Digest, true); err != nil { // drift, and no error: a bed is destroyed without its image too
		progress.Note(ctx, "%v", err)
		state.Digest = "damaged"
	}
	return infer.ReadResponse[ImageArgs, ImageState]{ID: req.ID, Inputs: req.Inputs, State: state}, nil
}

// Diff sees changed inputs, and roles whose files have changed since the image was baked.
func (i *Image) Diff(ctx context.Context, req infer.DiffRequest[ImageArgs, ImageState]) (infer.DiffResponse, error) {
	diff := infer.DiffResponse{DetailedDiff: map[string]p.PropertyDiff{}}
	store, err := i.host.images()
	if err != nil {
		return diff, err
	}
	img, kept, err := store.Get(ctx, req.Inputs.request())
	if (errors.Is(err, images.ErrNoFlux) || errors.Is(err, images.ErrNoBundle)) && reflect.DeepEqual(req.Inputs, req.State.ImageArgs) { // as in Read, which the engine follows by this
		return diff, nil
	}
	if err != nil {
		return diff, err
	}
	if !kept || img.Key != req.State.Key || img.Digest != req.State.Digest {
		diff.HasChanges, diff.DetailedDiff["definition"] = true, p.PropertyDiff{Kind: p.Update, InputDiff: true}
	}
	return diff, nil
}
