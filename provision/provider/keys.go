package provider

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"slices"
	"strings"
	"time"

	p "github.com/pulumi/pulumi-go-provider"
	"github.com/pulumi/pulumi-go-provider/infer"
	"golang.org/x/crypto/ssh"
)

// Keys are the secrets of a bed, made once: nodes come and go, and each keeps the keys that its name was given.
type Keys struct{}

// KeysArgs names the nodes that get a host key.
type KeysArgs struct {
	Nodes []string `pulumi:"nodes"`
}

// KeysState holds the keys. Everything private is a Pulumi secret.
type KeysState struct {
	KeysArgs
	BedID          string            `pulumi:"bedId"`
	Made           string            `pulumi:"made"`
	UserPrivateKey string            `pulumi:"userPrivateKey" provider:"secret"`
	UserPublicKey  string            `pulumi:"userPublicKey"`
	HostKeys       map[string]string `pulumi:"hostKeys" provider:"secret"`
	HostPublicKeys map[string]string `pulumi:"hostPublicKeys"`
	MungeKey       string            `pulumi:"mungeKey" provider:"secret"`
	CurveKey       string            `pulumi:"curveKey" provider:"secret"`
}

// Annotate describes the resource in the schema.
func (k *Keys) Annotate(a infer.Annotator) {
	a.Describe(k, "The secrets of a bed, made once per bed: the user's SSH key, a host key per node name, the munge key, Flux's CURVE certificate.")
}

// Annotate describes the inputs in the schema.
func (k *KeysArgs) Annotate(a infer.Annotator) {
	a.Describe(&k.Nodes, "Names of the nodes that get a host key.")
}

// Annotate describes the outputs in the schema.
func (k *KeysState) Annotate(a infer.Annotator) {
	a.Describe(&k.BedID, "Random id of this life of the bed, part of the owner mark.")
	a.Describe(&k.Made, "When this life of the bed began, RFC 3339: its time to live counts from then.")
	a.Describe(&k.UserPrivateKey, "Logs in to every node as the bed's user; OpenSSH PEM, ed25519.")
	a.Describe(&k.UserPublicKey, "In authorized_keys form.")
	a.Describe(&k.HostKeys, "Private host key by node name; OpenSSH PEM, ed25519.")
	a.Describe(&k.HostPublicKeys, "Public host key by node name; authorized_keys form.")
	a.Describe(&k.MungeKey, "The bed's munge key, base64 of 128 random bytes.")
	a.Describe(&k.CurveKey, "The ZeroMQ CURVE certificate of the bed's Flux brokers, as flux keygen writes one.")
}

// Create makes all keys.
func (*Keys) Create(_ context.Context, req infer.CreateRequest[KeysArgs]) (infer.CreateResponse[KeysState], error) {
	state := KeysState{KeysArgs: req.Inputs}
	if req.DryRun {
		return infer.CreateResponse[KeysState]{ID: req.Name, Output: state}, nil
	}
	state.Made = time.Now().UTC().Format(time.RFC3339)
	state.BedID = hex.EncodeToString(random(8))
	state.MungeKey = base64.StdEncoding.EncodeToString(random(128))
	var err error
	if state.UserPrivateKey, state.UserPublicKey, err = keyPair("bedfellow"); err != nil {
		return infer.CreateResponse[KeysState]{}, err
	}
	if state.CurveKey, err = curveKey(); err != nil {
		return infer.CreateResponse[KeysState]{}, err
	}
	err = state.hostKeys(nil, nil)
	return infer.CreateResponse[KeysState]{ID: state.BedID, Output: state}, err
}

// Update makes keys for new names, keeps those of old ones and forgets those of names that are gone.
func (*Keys) Update(_ context.Context, req infer.UpdateRequest[KeysArgs, KeysState]) (infer.UpdateResponse[KeysState], error) {
	state := req.State
	state.KeysArgs = req.Inputs
	if req.DryRun {
		return infer.UpdateResponse[KeysState]{Output: state}, nil
	}
	if state.CurveKey == "" { // made by a version that had no Flux
		var err error
		if state.CurveKey, err = curveKey(); err != nil {
			return infer.UpdateResponse[KeysState]{}, err
		}
	}
	if state.Made == "" { // likewise
		state.Made = time.Now().UTC().Format(time.RFC3339)
	}
	err := state.hostKeys(req.State.HostKeys, req.State.HostPublicKeys)
	return infer.UpdateResponse[KeysState]{Output: state}, err
}

// WireDependencies says that what is made once stays known when the names change, and what is secret.
func (*Keys) WireDependencies(f infer.FieldSelector, args *KeysArgs, state *KeysState) {
	for _, once := range []any{&state.BedID, &state.Made, &state.UserPrivateKey, &state.UserPublicKey, &state.MungeKey, &state.CurveKey} {
		f.OutputField(once).DependsOn()
	}
	f.OutputField(&state.HostKeys).DependsOn(f.InputField(&args.Nodes))
	f.OutputField(&state.HostPublicKeys).DependsOn(f.InputField(&args.Nodes))
	f.OutputField(&state.Nodes).DependsOn(f.InputField(&args.Nodes))
	// The field tags alone say it in the schema only, and leave the keys in clear in the state.
	for _, private := range []any{&state.UserPrivateKey, &state.HostKeys, &state.MungeKey, &state.CurveKey} {
		f.OutputField(private).AlwaysSecret()
	}
}

// Diff compares the names.
func (*Keys) Diff(_ context.Context, req infer.DiffRequest[KeysArgs, KeysState]) (infer.DiffResponse, error) {
	diff := infer.DiffResponse{DetailedDiff: map[string]p.PropertyDiff{}}
	if !slices.Equal(req.State.Nodes, req.Inputs.Nodes) || req.State.CurveKey == "" || req.State.Made == "" {
		diff.HasChanges, diff.DetailedDiff["nodes"] = true, p.PropertyDiff{Kind: p.Update, InputDiff: true}
	}
	return diff, nil
}

func (s *KeysState) hostKeys(private, public map[string]string) error {
	s.HostKeys, s.HostPublicKeys = map[string]string{}, map[string]string{}
	for _, name := range s.Nodes {
		s.HostKeys[name], s.HostPublicKeys[name] = private[name], public[name]
		if private[name] != "" {
			continue
		}
		var err error
		if s.HostKeys[name], s.HostPublicKeys[name], err = keyPair(name); err != nil {
			return err
		}
	}
	return nil
}

func keyPair(comment string) (private, public string, err error) {
	pub, priv, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return "", "", fmt.Errorf("make a key: %w", err)
	}
	block, err := ssh.MarshalPrivateKey(priv, comment)
	if err != nil {
		return "", "", fmt.Errorf("make a key: %w", err)
	}
	sshPub, err := ssh.NewPublicKey(pub)
	if err != nil {
		return "", "", fmt.Errorf("make a key: %w", err)
	}
	return string(pem.EncodeToMemory(block)), strings.TrimSpace(string(ssh.MarshalAuthorizedKey(sshPub))), nil
}

func random(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails, says crypto/rand
	return b
}
