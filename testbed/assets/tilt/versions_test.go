package tilt

import (
	"os"
	"path/filepath"
	"regexp"
	"testing"
)

// The versions checked here, those of the workflow and those that the docs tell users to install are the same.
func TestVersionsAgree(t *testing.T) {
	const workflow = ".github/workflows/kind.yaml"
	type place struct{ file, pattern string }
	for name, places := range map[string][]place{
		"Strimzi": {
			{"Tiltfile", `STRIMZI = '(.+)'`},
			{workflow, `STRIMZI_VERSION: (.+)`},
			{"charts/orderflow-backing/templates/kafka.yaml", `strimzi-kafka-operator --version (\S+)`},
			{"docs/how-to/install.md", `strimzi-kafka-operator --version (\S+)`},
		},
		"the base image": {
			{"Dockerfile", `RUNTIME_IMAGE=(gcr\.io/distroless/cc-debian12\S+)`},
			{"Tiltfile", `'(gcr\.io/distroless/cc-debian12\S+)'`},
		},
		"kind": {
			{"testbed/assets/tilt/go.mod", `sigs\.k8s\.io/kind (\S+)`},
			{workflow, `KIND_VERSION: (.+)`},
		},
		"Tilt": {
			{"testbed/assets/tilt/signatures.go", `those of Tilt (\d+\.\d+\.\d+)`},
			{workflow, `TILT_VERSION: (.+)`},
		},
	} {
		t.Run(name, func(t *testing.T) {
			first := ""
			for _, place := range places {
				content, err := os.ReadFile(filepath.Join(root(t), place.file))
				if err != nil {
					t.Fatal(err)
				}
				found := regexp.MustCompile(place.pattern).FindSubmatch(content)
				if found == nil {
					t.Errorf("%s names none", place.file)
					continue
				}
				version := string(found[1])
				if first == "" {
					first = version
				}
				if version != first {
					t.Errorf("%s has %s, %s has %s", places[0].file, first, place.file, version)
				}
			}
		})
	}
}
