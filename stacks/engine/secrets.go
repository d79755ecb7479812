package engine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/pulumi/pulumi/pkg/v3/secrets"
	"github.com/pulumi/pulumi/pkg/v3/secrets/passphrase"

	"github.com/bedfellow/bedfellow/pkg/bed"
	"github.com/bedfellow/bedfellow/stacks"
)

// encrypted is the ciphertext of a configuration value that Pulumi has encrypted; empty for any other.
func encrypted(value any) string {
	m, _ := value.(map[string]any)
	ciphertext, _ := m["secure"].(string)
	if len(m) != 1 {
		return ""
	}
	return ciphertext
}

// decrypt is the value of a key that is a secret. Others are not kept encrypted: what they say would be in the state in the clear.
func (w *Workspace) decrypt(document map[string]any, key, ciphertext string) (string, error) {
	if !bed.Secret(key) {
		return "", bed.Problems{{Key: key, Reason: "is encrypted in the configuration, and no secret to `bed`", Remedy: "take it out of " + w.configFile() + ", and write it with -c " + key + "=…"}}
	}
	m, err := w.secrets(document)
	if err != nil {
		return "", err
	}
	value, err := m.Decrypter().DecryptValue(context.Background(), ciphertext) // which asks nobody
	if err != nil {
		return "", bed.Problems{{Key: key, Reason: "cannot be decrypted: it is damaged, or was encrypted with another salt than the file's", Remedy: "take it out of " + w.configFile() + ", and give it again with -c " + key + "=…", Host: true}}
	}
	return value, nil
}

// seal encrypts every secret of a configuration that is in the clear.
func (w *Workspace) seal(document, config map[string]any) error {
	for key, value := range config {
		text, clear := value.(string)
		if name, ours := strings.CutPrefix(key, stacks.Namespace+":"); !ours || !clear || text == "" || !bed.Secret(name) {
			continue
		}
		if err := errors.Join(os.MkdirAll(w.dir(), 0o700), w.makePassphrase()); err != nil {
			return err
		}
		m, err := w.secrets(document)
		if err != nil {
			return err
		}
		ciphertext, err := m.Encrypter().EncryptValue(context.Background(), text)
		if err != nil {
			return fmt.Errorf("encrypt %s: %w", key, err)
		}
		config[key] = map[string]any{"secure": ciphertext}
	}
	return nil
}

// secrets encrypts and decrypts as the CLI does: under the passphrase, with the document's salt, of which it gets one if it has none.
func (w *Workspace) secrets(document map[string]any) (secrets.Manager, error) {
	phrase, err := w.passphrase()
	if err != nil {
		return nil, err
	}
	salt, _ := document["encryptionsalt"].(string)
	if config, _ := document["config"].(map[string]any); salt == "" {
		other := document["secretsprovider"] != nil
		for _, value := range config {
			other = other || encrypted(value) != ""
		}
		if other {
			return nil, bed.Problems{{Key: "secretsprovider", Reason: "the secrets in " + w.configFile() + " are not encrypted under a passphrase, and `bed` knows no other way", Remedy: "take them out, and set OVIRT_PASSWORD or OVIRT_TOKEN instead", Host: true}}
		}
		salt, m, err := passphrase.NewPassphraseSecretsManager(phrase)
		document["encryptionsalt"] = salt
		return m, err
	}
	m, err := passphrase.GetPassphraseSecretsManager(phrase, salt)
	if errors.Is(err, passphrase.ErrIncorrectPassphrase) {
		return nil, w.wrongPassphrase()
	}
	return m, err
}

// passphrase is what the CLI would take, with the environment that it is given.
func (w *Workspace) passphrase() (string, error) {
	if phrase, ok := os.LookupEnv("PULUMI_CONFIG_PASSPHRASE"); ok {
		return phrase, nil
	}
	file := os.Getenv("PULUMI_CONFIG_PASSPHRASE_FILE")
	if file == "" {
		file = w.dir("passphrase")
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return "", bed.Problems{{Key: "passphrase", Reason: "the configuration of " + w.Stack + " has a secret, and there is no passphrase to open it: " + err.Error(), Remedy: "set PULUMI_CONFIG_PASSPHRASE or PULUMI_CONFIG_PASSPHRASE_FILE", Host: true}}
	}
	return strings.TrimSpace(string(data)), nil
}

func (w *Workspace) wrongPassphrase() error {
	return bed.Problems{{
		Key: "passphrase", Reason: "the passphrase does not open the state of " + w.Stack,
		Remedy: "set PULUMI_CONFIG_PASSPHRASE (or PULUMI_CONFIG_PASSPHRASE_FILE) to the one it was made with, or unset both if it was made with .bed/passphrase", Host: true,
	}}
}
