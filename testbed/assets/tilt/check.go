package tilt

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// Check returns everything that is wrong with the calls of a Tiltfile; nil if it is consistent.
func Check(recorded *Recorded) error {
	resources, left, err := recorded.Resources()
	if err != nil {
		return err
	}
	c := &checker{Recorded: recorded, resources: resources}
	for _, object := range left {
		c.wrong("%s belongs to no resource: it would be applied before anything else, its namespace included", object)
	}
	c.order()
	c.labels()
	c.paths()
	c.images()
	c.ownership()
	c.references()
	c.forwards()
	return errors.Join(c.problems...)
}

type checker struct {
	*Recorded
	resources []*Resource
	problems  []error
}

func (c *checker) wrong(format string, arguments ...any) {
	c.problems = append(c.problems, fmt.Errorf(format, arguments...))
}

func (c *checker) resource(name string) *Resource {
	for _, resource := range c.resources {
		if resource.Name == name {
			return resource
		}
	}
	return nil
}

// needs are the resources that come before this one, at any distance.
func (c *checker) needs(resource *Resource) map[string]bool {
	before := map[string]bool{}
	var follow func(*Resource)
	follow = func(resource *Resource) {
		for _, name := range resource.Needs {
			if needed := c.resource(name); needed != nil && !before[name] {
				before[name] = true
				follow(needed)
			}
		}
	}
	follow(resource)
	return before
}

// order: every dependency exists, none is circular, and nothing is applied before its namespace or definition.
func (c *checker) order() {
	installs := func(resource *Resource) bool {
		command := []string{}
		if resource.Local != nil {
			command = resource.Local.Command
		}
		return slices.Contains(command, "helm") && slices.Contains(command, "--install")
	}
	for _, resource := range c.resources {
		for _, name := range resource.Needs {
			if c.resource(name) == nil {
				c.wrong("%s depends on %s, which does not exist", resource.Name, name)
			}
		}
		before := c.needs(resource)
		if before[resource.Name] {
			c.wrong("%s depends on itself", resource.Name)
		}
		comesAfter := func(holds func(Object) bool) bool {
			return slices.ContainsFunc(c.resources, func(other *Resource) bool {
				return (other == resource || before[other.Name]) && slices.ContainsFunc(other.Objects, holds)
			})
		}
		for _, object := range resource.Objects {
			namespace := object.namespace()
			isNamespace := func(other Object) bool { return other.kind() == "Namespace" && other.name() == namespace }
			if namespace != "" && !comesAfter(isNamespace) {
				c.wrong("%s: %s may be applied before its namespace %s", resource.Name, object, namespace)
			}
			group, _, grouped := strings.Cut(object.text("apiVersion"), "/")
			if !grouped || !strings.Contains(group, ".") || strings.HasSuffix(group, ".k8s.io") {
				continue // Kubernetes' own.
			}
			defined := comesAfter(func(other Object) bool {
				return other.kind() == "CustomResourceDefinition" && other.fields("spec")["group"] == group
			})
			installed := slices.ContainsFunc(c.resources, func(other *Resource) bool { return before[other.Name] && installs(other) })
			if !defined && !installed {
				c.wrong("%s: %s may be applied before its definition", resource.Name, object)
			}
		}
	}
}

func (c *checker) labels() {
	for _, resource := range c.resources {
		if len(resource.Labels) == 0 {
			c.wrong("%s has no label, so it is in no group", resource.Name)
		}
	}
}

// paths: every watched, run or built path exists, or one of the commands creates it.
func (c *checker) paths() {
	for _, path := range c.Watched {
		c.exists("watched", path)
	}
	makefile, _ := os.ReadFile(c.path("Makefile"))
	for _, local := range c.Locals {
		for _, path := range local.Paths {
			c.exists(local.Name, path)
		}
		program := local.Command[0]
		switch {
		case strings.Contains(program, "/"):
			if info, err := os.Stat(c.path(program)); err != nil || info.Mode()&0o111 == 0 {
				c.wrong("%s: %s is not there, or not executable", local.Name, program)
			}
		case program == "make":
			if !regexp.MustCompile(`(?m)^` + regexp.QuoteMeta(local.Command[1]) + `:`).Match(makefile) {
				c.wrong("%s: the Makefile has no target %s", local.Name, local.Command[1])
			}
		case program == "docker":
			if i := slices.Index(local.Command, "--file"); i >= 0 {
				c.exists(local.Name, local.Command[i+1])
			}
		}
	}
}

func (c *checker) exists(whose, path string) {
	if _, err := os.Stat(c.path(path)); err != nil {
		c.wrong("%s: %s is not there", whose, path)
	}
}

// images: each that is built is used and each of ours that is used is built, from what its Dockerfile copies.
func (c *checker) images() {
	// As in the registry's names: a tag is replaced, whatever it is.
	name := func(image string) string { return regexp.MustCompile(`(:[^/]*)?(@.*)?$`).ReplaceAllString(image, "") }
	used := map[string]bool{}
	for _, resource := range c.resources {
		for _, object := range resource.Objects {
			for _, image := range c.imagesOf(object) {
				used[name(image)] = true
				i := slices.IndexFunc(c.Images, func(built Image) bool { return built.Name == name(image) })
				if i < 0 {
					if strings.Contains(image, "orderflow-") {
						c.wrong("%s: nothing builds the image %s of %s", resource.Name, image, object)
					}
					continue
				}
				if maker := c.maker(c.Images[i].Context); maker != nil && !c.needs(resource)[maker.Name] {
					c.wrong("%s: the image %s is built from %s before %s has made that",
						resource.Name, image, c.Images[i].Context, maker.Name)
				}
			}
			if kind := c.kindOf(object); kind != nil {
				for _, path := range kind.ImagePaths {
					if image, ok := object.at(path).(string); !ok || image == "" {
						c.wrong("%s: %s has no image at %s", resource.Name, object, path)
					}
				}
			}
		}
	}
	for _, kind := range c.Kinds {
		isOne := func(object Object) bool { found := c.kindOf(object); return found != nil && found.Name == kind.Name }
		if !slices.ContainsFunc(c.Objects, isOne) {
			c.wrong("k8s_kind: there is no %s (%s)", kind.Name, kind.APIVersion)
		}
	}
	for _, image := range c.Images {
		if !used[image.Name] {
			c.wrong("nothing uses the image %s", image.Name)
		}
		if c.maker(image.Context) == nil {
			c.exists(image.Name, image.Context)
		} else if len(image.Only) > 0 && !slices.Contains(c.Made, image.Context) {
			c.wrong("%s: Tilt ignores `only` as long as %s is not there", image.Name, image.Context)
		}
		c.dockerfile(image)
	}
}

// maker is the local resource whose command fills the folder.
func (c *checker) maker(folder string) *Resource {
	for _, resource := range c.resources {
		if resource.Local != nil && slices.Contains(resource.Local.Command, folder) {
			return resource
		}
	}
	return nil
}

func (c *checker) dockerfile(image Image) {
	content, err := os.ReadFile(c.path(image.Dockerfile))
	if err != nil {
		c.wrong("%s: %s is not there", image.Name, image.Dockerfile)
		return
	}
	file := readDockerfile(string(content))
	copied, ok := file.copied(image.Target)
	if !ok {
		c.wrong("%s: %s has no stage %s", image.Name, image.Dockerfile, image.Target)
		return
	}
	slices.Sort(copied)
	only := slices.Sorted(slices.Values(image.Only))
	if !slices.Equal(copied, only) {
		c.wrong("%s: stage %s of %s copies %q, but the build gets only %q",
			image.Name, image.Target, image.Dockerfile, copied, only)
	}
	for argument := range image.Arguments {
		if !slices.Contains(file.arguments, argument) {
			c.wrong("%s: %s has no argument %s", image.Name, image.Dockerfile, argument)
		}
	}
}

// ownership: Helm's annotations mean nothing to Tilt. Hooks would run as if they were parts of the release, and what is
// to be kept would go with `tilt down`.
func (c *checker) ownership() {
	for _, object := range c.Objects {
		for annotation := range object.fields("metadata", "annotations") {
			if strings.HasPrefix(annotation, "helm.sh/") {
				c.wrong("%s has the annotation %s, which Tilt does not know", object, annotation)
			}
		}
	}
}

// references: what the OrderFlow names is among the manifests, in a resource that comes before it.
func (c *checker) references() {
	for _, resource := range c.resources {
		before := c.needs(resource)
		for _, object := range resource.Objects {
			if object.kind() != "OrderFlow" {
				continue
			}
			if len(object.secrets()) == 0 {
				c.wrong("%s names no Secret", object)
			}
			for _, reference := range object.secrets() {
				secret, holder := c.find("Secret", reference.name)
				switch {
				case secret == nil:
					c.wrong("%s names the Secret %s, which nothing makes", object, reference.name)
				case reference.key != "" && secret.fields("data")[reference.key] == nil:
					c.wrong("%s names key %s of Secret %s, which has none", object, reference.key, reference.name)
				case secret.namespace() != object.namespace():
					c.wrong("%s is in namespace %s, its Secret %s in %s", object, object.namespace(), reference.name, secret.namespace())
				case !before[holder.Name]:
					c.wrong("%s may be applied before %s", object, secret)
				}
			}
			// Strimzi names the Service of a Kafka after it.
			servers, _ := object.fields("spec", "topic")["bootstrapServers"].(string)
			kafka, holder := c.find("Kafka", strings.TrimSuffix(servers, "-kafka-bootstrap:9092"))
			if kafka == nil {
				c.wrong("%s names Kafka at %s, which nothing makes", object, servers)
			} else if !before[holder.Name] {
				c.wrong("%s may be applied before %s", object, kafka)
			}
		}
	}
}

func (c *checker) find(kind, name string) (Object, *Resource) {
	for _, resource := range c.resources {
		for _, object := range resource.Objects {
			if object.kind() == kind && object.name() == name {
				return object, resource
			}
		}
	}
	return nil, nil
}

// forwards: the API is at its usual port, and no two resources want the same one.
func (c *checker) forwards() {
	taken := map[int]string{}
	for _, resource := range c.resources {
		for _, ports := range resource.Forwards {
			if other := taken[ports.local]; other != "" {
				c.wrong("%s and %s both forward port %d", other, resource.Name, ports.local)
			}
			taken[ports.local] = resource.Name
			if resource.Deploy != nil && len(resource.Selectors) != 1 {
				c.wrong("%s forwards a port, but does not say to which pods", resource.Name)
			}
		}
	}
	if taken[8080] == "" {
		c.wrong("nothing forwards port 8080")
	}
	// The labels are the operator's.
	source, _ := os.ReadFile(c.path(filepath.Join("operator", "src", "build.rs")))
	for _, resource := range c.resources {
		for _, selector := range resource.Selectors {
			for label := range selector {
				if !strings.Contains(string(source), `"`+label+`"`) {
					c.wrong("%s selects pods by %s, a label that the operator does not set", resource.Name, label)
				}
			}
		}
	}
}

// ---- What an OrderFlow names ----

type secretKey struct{ name, key string }

// secrets finds all references to Secrets, whichever field they are in.
func (o Object) secrets() []secretKey {
	var found []secretKey
	var search func(any)
	search = func(value any) {
		switch value := value.(type) {
		case map[string]any:
			for field, inner := range value {
				if reference, ok := inner.(map[string]any); ok && strings.HasSuffix(field, "SecretRef") {
					found = append(found, secretKey{Object(reference).text("name"), Object(reference).text("key")})
				}
				search(inner)
			}
		case []any:
			for _, item := range value {
				search(item)
			}
		}
	}
	search(map[string]any(o))
	return found
}

// ---- Dockerfiles ----

type dockerfile struct {
	arguments []string
	stages    map[string]stage
}

type stage struct {
	base   string
	copied []string
}

// readDockerfile reads as much as is needed here: stages, arguments, and what is copied from the build context.
func readDockerfile(content string) dockerfile {
	file := dockerfile{stages: map[string]stage{}}
	current := ""
	for _, line := range strings.Split(strings.ReplaceAll(content, "\\\n", " "), "\n") {
		words := strings.Fields(line)
		if len(words) < 2 {
			continue
		}
		switch strings.ToUpper(words[0]) {
		case "ARG":
			name, _, _ := strings.Cut(words[1], "=")
			file.arguments = append(file.arguments, name)
		case "FROM":
			current = words[len(words)-1]
			file.stages[current] = stage{base: words[1]}
		case "COPY":
			if strings.HasPrefix(words[1], "--from=") {
				continue
			}
			at := file.stages[current]
			at.copied = append(at.copied, words[1:len(words)-1]...)
			file.stages[current] = at
		}
	}
	return file
}

// copied is all that a stage and those that it is based on take from the build context.
func (f dockerfile) copied(target string) ([]string, bool) {
	at, ok := f.stages[target]
	if !ok {
		return nil, false
	}
	inherited, _ := f.copied(at.base)
	return append(inherited, at.copied...), true
}
