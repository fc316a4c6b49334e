package tilt

import (
	"os"
	"path/filepath"
	"regexp"
	"testing"
)

// A tag can be moved to another image, a digest cannot.
func TestImagesOfOthersArePinnedByDigest(t *testing.T) {
	pinned := regexp.MustCompile(`@sha256:[0-9a-f]{64}$`)
	for file, pattern := range map[string]string{
		"Dockerfile":                           `(?:syntax=|RUNTIME_IMAGE=)(\S+)`,
		"Dockerfile.build":                     `(?:syntax=|BUILD_IMAGE=)(\S+)`,
		"Tiltfile":                             `'(gcr\.io/\S+)'`,
		"charts/orderflow-backing/values.yaml": `(?m)^    tag: (.+)$`,
		".github/workflows/kind.yaml":          `(docker\.io/\S+)`,
	} {
		content, err := os.ReadFile(filepath.Join(root(t), file))
		if err != nil {
			t.Fatal(err)
		}
		found := regexp.MustCompile(pattern).FindAllStringSubmatch(string(content), -1)
		if found == nil {
			t.Errorf("%s names no image", file)
		}
		for _, image := range found {
			if !pinned.MatchString(image[1]) {
				t.Errorf("%s: %s has no digest", file, image[1])
			}
		}
	}
}
