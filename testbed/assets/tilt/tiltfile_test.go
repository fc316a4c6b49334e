package tilt

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// machine is a Linux with a cluster of kind.
func machine(t *testing.T) Machine {
	t.Helper()
	return Machine{Root: root(t), Context: "kind-orderflow", System: "Linux"}
}

// root is the checkout's folder: the next one above that has a Tiltfile.
func root(t *testing.T) string {
	t.Helper()
	folder, err := filepath.Abs(".")
	if err != nil {
		t.Fatal(err)
	}
	for {
		if _, err := os.Stat(filepath.Join(folder, "Tiltfile")); err == nil {
			return folder
		}
		if folder == filepath.Dir(folder) {
			t.Fatal("there is no Tiltfile above this folder")
		}
		folder = filepath.Dir(folder)
	}
}

func source(t *testing.T) string {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(root(t), "Tiltfile"))
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}

func evaluate(t *testing.T, machine Machine) *Recorded {
	t.Helper()
	recorded, err := Evaluate(source(t), machine)
	if err != nil {
		t.Fatal(err)
	}
	return recorded
}

func TestTheTiltfileHoldsTogether(t *testing.T) {
	for name, change := range map[string]func(*Machine){
		"on Linux":                        func(*Machine) {},
		"on a Mac":                        func(m *Machine) { m.System = "Darwin" },
		"on Linux, compiling in Docker":   func(m *Machine) { m.Settings = map[string]string{"compile-in-docker": "true"} },
		"on a context that was allowed":   func(m *Machine) { m.Context, m.Settings = "k3d-shop", map[string]string{"context": "k3d-shop"} },
		"on another cluster of kind":      func(m *Machine) { m.Context = "kind-kind" },
		"on a context with a space in it": func(m *Machine) { m.Context = "kind-a b" },
	} {
		t.Run(name, func(t *testing.T) {
			machine := machine(t)
			change(&machine)
			if err := Check(evaluate(t, machine)); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestContextsOtherThanKindAreRefusedWithTheWayOut(t *testing.T) {
	for name, test := range map[string]struct {
		context string
		allowed string
		want    string
	}{
		"none":                {"", "", "kind create cluster --config kind-config.yaml"},
		"not of kind":         {"production", "", "tilt up -- --context=production"},
		"another was allowed": {"production", "staging", "current context is production"},
	} {
		t.Run(name, func(t *testing.T) {
			machine := machine(t)
			machine.Context = test.context
			if test.allowed != "" {
				machine.Settings = map[string]string{"context": test.allowed}
			}
			recorded, err := Evaluate(source(t), machine)
			if err == nil {
				t.Fatalf("was taken: %d objects", len(recorded.Objects))
			}
			if !strings.Contains(err.Error(), test.want) {
				t.Errorf("%q is not in: %v", test.want, err)
			}
		})
	}
}

func TestProgramsOfAMacAreCompiledInAContainerForItsOwnDebian(t *testing.T) {
	for system, want := range map[string]struct{ program, base string }{
		"Linux":  {"scripts/programs", "debian13"},
		"Darwin": {"docker", "debian12"},
	} {
		machine := machine(t)
		machine.System = system
		recorded := evaluate(t, machine)
		i := slices.IndexFunc(recorded.Locals, func(local Local) bool { return local.Name == "programs" })
		if program := recorded.Locals[i].Command[0]; program != want.program {
			t.Errorf("%s: %s compiles, not %s", system, program, want.program)
		}
		for _, image := range recorded.Images {
			if base := image.Arguments["RUNTIME_IMAGE"]; !strings.Contains(base, want.base) {
				t.Errorf("%s: %s is based on %s, not on %s", system, image.Name, base, want.base)
			}
		}
	}
}

// The logs of pods matter most when the pods never become ready.
func TestThePodsAreShownEvenIfTheyNeverBecomeReady(t *testing.T) {
	for _, deploy := range evaluate(t, machine(t)).Deploys {
		if command := strings.Join(deploy.Apply, " "); !strings.Contains(command, "--for=create") {
			t.Errorf("%s waits for more than that its Deployment is there: %s", deploy.Name, command)
		}
	}
}

func TestCommandsNameTheContextThatWasChecked(t *testing.T) {
	recorded := evaluate(t, machine(t))
	var commands []string
	for _, local := range recorded.Locals {
		commands = append(commands, strings.Join(local.Command, " "))
	}
	for _, deploy := range recorded.Deploys {
		commands = append(commands, strings.Join(deploy.Apply, " "), strings.Join(deploy.Remove, " "))
	}
	seen := 0
	for _, command := range commands {
		if strings.Contains(command, "kubectl") || strings.Contains(command, "helm") {
			seen++
			if !strings.Contains(strings.ReplaceAll(command, "'", ""), "context kind-orderflow") {
				t.Errorf("runs wherever kubectl's context is by then: %s", command)
			}
		}
	}
	if seen != 3 {
		t.Errorf("%d commands go to the cluster, not Strimzi's installation and the two Deployments", seen)
	}
}

func TestTiltDownKeepsWhatADatabaseCannotBeReadWithout(t *testing.T) {
	kept := map[string]bool{}
	for _, object := range evaluate(t, machine(t)).Objects {
		kept[object.String()] = object.fields("metadata", "annotations")["tilt.dev/down-policy"] == "keep"
	}
	for _, object := range []string{
		"Secret postgres-shard1",
		"Secret postgres-shard2",
		"Kafka orderflow",
		"CustomResourceDefinition orderflows.orderflow.dev",
	} {
		if !kept[object] {
			t.Errorf("%s goes with tilt down, or is not there", object)
		}
	}
}
