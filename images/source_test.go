package images

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestParseURIs(t *testing.T) {
	sum := strings.Repeat("0f", 64)
	files, err := parseURIs("'http://archive.example/pool/main/l/l/l_1.dsc' l_1.dsc 3000 SHA512:" + sum + "\n")
	require.NoError(t, err)
	assert.Equal(t, []sourceFile{{"l_1.dsc", "SHA512:" + sum}}, files)
	for _, wrong := range []string{
		"", "E: Unable to find a source package\n", "'u' l_1.dsc 3000 SHA1:" + sum, "'u' ../l_1.dsc 3000 SHA512:" + sum, "'u' l_1.dsc 3000 SHA512:0f",
	} {
		_, err := parseURIs(wrong)
		assert.Error(t, err, wrong)
	}
}

func TestSourceFileIsWhatItsDigestSays(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	require.NoError(t, os.WriteFile(path, []byte("abc"), 0o600))
	for digest, want := range map[string]bool{
		"SHA256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad":                                                                 true,
		"SHA256:0a7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad":                                                                 false,
		"SHA512:ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f": true,
		"MD5:900150983cd24fb0d6963f7d28e17f72":                                                                                                    false,
	} {
		assert.Equal(t, want, sourceFile{digest: digest}.is(path), digest)
	}
}

func TestDescriptionIsTheIndexStanzaOfTheVersion(t *testing.T) {
	index := `Package: l
Format: 3.0 (quilt)
Version: 1-1
Files:
 aa 10 l_1-1.dsc
 bb 11 l_1.orig.tar.xz

Package: l
Format: 3.0 (quilt)
Version: 2-1
Files:
 cc 10 l_2-1.dsc
 dd 11 l_2.orig.tar.xz
 ee 12 l_2-1.debian.tar.xz
`
	text, err := description(index, "2-1")
	require.NoError(t, err)
	assert.Equal(t, `Source: l
Format: 3.0 (quilt)
Version: 2-1
Files:
 dd 11 l_2.orig.tar.xz
 ee 12 l_2-1.debian.tar.xz

`, text)
	_, err = description(index, "3-1")
	assert.Error(t, err)
}
