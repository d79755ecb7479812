package provider

import (
	"crypto/ecdh"
	"encoding/binary"
	"fmt"
	"strings"
)

// z85Digits are those of ZeroMQ's text form of keys, RFC 32 of zeromq.org.
const z85Digits = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#"

// z85 writes bytes, a multiple of four, as text: five digits for each four bytes.
func z85(data []byte) string {
	var out strings.Builder
	for ; len(data) >= 4; data = data[4:] {
		n := binary.BigEndian.Uint32(data)
		for div := uint32(85 * 85 * 85 * 85); div > 0; div /= 85 {
			out.WriteByte(z85Digits[n/div%85])
		}
	}
	return out.String()
}

// curveKey makes a ZeroMQ CURVE certificate in the form of flux-keygen(1): a pair of Curve25519 keys, RFC 26 of zeromq.org.
func curveKey() (string, error) {
	secret, err := ecdh.X25519().NewPrivateKey(random(32))
	if err != nil {
		return "", fmt.Errorf("make a CURVE certificate: %w", err)
	}
	return fmt.Sprintf("#  ZeroMQ CURVE **Secret** Certificate\n#  DO NOT DISTRIBUTE\n\nmetadata\n    name = \"bedfellow\"\ncurve\n    public-key = \"%s\"\n    secret-key = \"%s\"\n",
		z85(secret.PublicKey().Bytes()), z85(secret.Bytes())), nil
}
