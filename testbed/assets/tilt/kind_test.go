package tilt

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
	"sigs.k8s.io/kind/pkg/apis/config/v1alpha4"
)

// decodeKind reads a configuration as `kind create cluster` does: an unknown field is an error. What kind checks afterwards
// is in a package of its own; what matters of it is repeated here.
func decodeKind(content []byte) (*v1alpha4.Cluster, error) {
	decoder := yaml.NewDecoder(bytes.NewReader(content))
	decoder.KnownFields(true)
	cluster := &v1alpha4.Cluster{}
	if err := decoder.Decode(cluster); err != nil {
		return nil, err
	}
	if cluster.Kind != "Cluster" || cluster.APIVersion != "kind.x-k8s.io/v1alpha4" {
		return nil, errors.New("unknown kind or apiVersion: " + cluster.Kind + " " + cluster.APIVersion)
	}
	v1alpha4.SetDefaultsCluster(cluster)
	if !regexp.MustCompile(`^[a-z0-9.-]+$`).MatchString(cluster.Name) {
		return nil, errors.New("not a valid cluster name: " + cluster.Name)
	}
	for _, node := range cluster.Nodes {
		if node.Role != v1alpha4.ControlPlaneRole && node.Role != v1alpha4.WorkerRole {
			return nil, errors.New("not a valid node role: " + string(node.Role))
		}
	}
	return cluster, nil
}

func kindConfig(t *testing.T) []byte {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(root(t), "kind-config.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	return content
}

func TestKindTakesItsConfiguration(t *testing.T) {
	cluster, err := decodeKind(kindConfig(t))
	if err != nil {
		t.Fatal(err)
	}
	if len(cluster.Nodes) != 1 || cluster.Nodes[0].Role != v1alpha4.ControlPlaneRole {
		t.Errorf("want one node, a control plane: %+v", cluster.Nodes)
	}
	// Policies are enforced by kind's own network and by nothing else that is installed.
	if cluster.Networking.DisableDefaultCNI {
		t.Error("without kind's own network nothing enforces NetworkPolicies")
	}
	if !strings.Contains(source(t), "kind-"+cluster.Name) {
		t.Errorf("the Tiltfile names another context than kind-%s", cluster.Name)
	}
}

func TestABrokenKindConfigurationIsRefused(t *testing.T) {
	for name, test := range map[string]struct{ old, new string }{
		"an unknown field":      {"nodes:", "node:"},
		"a field of a node":     {"role:", "roles:"},
		"another version":       {"v1alpha4", "v1alpha3"},
		"a role":                {"control-plane", "controlplane"},
		"a name":                {"name: orderflow", "name: Order_Flow"},
		"a list that is a text": {"nodes:", "nodes: one\nfeatureGates:"},
	} {
		t.Run(name, func(t *testing.T) {
			broken := strings.ReplaceAll(string(kindConfig(t)), test.old, test.new)
			if _, err := decodeKind([]byte(broken)); err == nil {
				t.Errorf("was taken:\n%s", broken)
			}
		})
	}
}
