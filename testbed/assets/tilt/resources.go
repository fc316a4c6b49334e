package tilt

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"go.starlark.net/starlark"
	"go.starlark.net/starlarkstruct"
)

// Resource is what Tilt shows, builds and waits for as one thing.
type Resource struct {
	Name      string
	Objects   []Object
	Local     *Local
	Deploy    *Deploy
	Needs     []string
	Labels    []string
	Forwards  []forward
	Selectors []map[string]string
}

// Resources groups everything by Tilt's rules (assembleK8s): each workload is a resource and takes the Services that
// select its pods; k8s_resource adds named objects, or makes a resource of them alone. It fails where Tilt would.
// The objects that are left over come second: Tilt applies them first of all, in a resource without a name of its own.
func (r *Recorded) Resources() (resources []*Resource, left []Object, err error) {
	byName := map[string]*Resource{}
	add := func(resource *Resource) error {
		if byName[resource.Name] != nil {
			return fmt.Errorf("two resources are called %q", resource.Name)
		}
		byName[resource.Name] = resource
		return nil
	}
	for _, deploy := range r.Deploys {
		if err := add(&Resource{Name: deploy.Name, Deploy: &deploy}); err != nil {
			return nil, nil, err
		}
	}
	for _, local := range r.Locals {
		if err := add(&Resource{Name: local.Name, Local: &local, Needs: local.Needs, Labels: local.Labels}); err != nil {
			return nil, nil, err
		}
	}

	var workloads []Object
	for _, object := range r.Objects {
		if r.isWorkload(object) {
			workloads = append(workloads, object)
		} else {
			left = append(left, object)
		}
	}
	for _, workload := range workloads {
		name, err := r.workloadName(workload)
		if err != nil {
			return nil, nil, err
		}
		resource := &Resource{Name: name, Objects: []Object{workload}}
		if err := add(resource); err != nil {
			return nil, nil, err
		}
		left = slices.DeleteFunc(left, func(object Object) bool {
			selected := selects(object, workload)
			if selected {
				resource.Objects = append(resource.Objects, object)
			}
			return selected
		})
	}

	for _, options := range r.Options {
		name := options.Workload
		if name == "" {
			name = options.NewName
			if err := add(&Resource{Name: name}); err != nil {
				return nil, nil, err
			}
		}
		resource := byName[name]
		if resource == nil || resource.Local != nil {
			return nil, nil, fmt.Errorf("k8s_resource specified unknown resource %q", name)
		}
		resource.Needs = append(resource.Needs, options.Needs...)
		resource.Labels = append(resource.Labels, options.Labels...)
		resource.Forwards = append(resource.Forwards, options.Forwards...)
		resource.Selectors = append(resource.Selectors, options.Selectors...)
		if options.NewName != "" && options.NewName != name {
			delete(byName, name)
			resource.Name = options.NewName
			if err := add(resource); err != nil {
				return nil, nil, err
			}
		}
		for _, fragment := range options.Fragments {
			if matching := count(r.Objects, fragment); matching != 1 {
				return nil, nil, fmt.Errorf("%d objects are identified by the fragment %q, not one", matching, fragment)
			}
			i := slices.IndexFunc(left, func(object Object) bool { return object.isNamed(fragment) })
			if i < 0 {
				return nil, nil, fmt.Errorf("the object identified by the fragment %q belongs to another resource", fragment)
			}
			resource.Objects = append(resource.Objects, left[i])
			left = slices.Delete(left, i, i+1)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(byName)) {
		resources = append(resources, byName[name])
	}
	return resources, left, nil
}

func (r *Recorded) isWorkload(object Object) bool {
	return r.kindOf(object) != nil || len(object.containers()) > 0
}

// kindOf finds the k8s_kind of a custom resource.
func (r *Recorded) kindOf(object Object) *Kind {
	for _, kind := range r.Kinds {
		if isPartOf(kind.Name, object.kind()) && isPartOf(kind.APIVersion, object.text("apiVersion")) {
			return &kind
		}
	}
	return nil
}

// isPartOf is how Tilt compares kinds and versions: any part of them may match, in upper or lower case.
func isPartOf(pattern, text string) bool {
	return regexp.MustCompile("(?i)" + pattern).MatchString(text)
}

func (r *Recorded) workloadName(workload Object) (string, error) {
	if r.nameOf == nil {
		return workload.name(), nil
	}
	group, _, _ := strings.Cut(workload.text("apiVersion"), "/")
	id := starlarkstruct.FromStringDict(starlark.String("K8sObjectID"), starlark.StringDict{
		"name":      starlark.String(workload.name()),
		"kind":      starlark.String(workload.kind()),
		"namespace": starlark.String(workload.namespace()),
		"group":     starlark.String(group),
	})
	name, err := starlark.Call(r.thread, r.nameOf, starlark.Tuple{id}, nil)
	if err != nil {
		return "", err
	}
	text, ok := starlark.AsString(name)
	if !ok {
		return "", fmt.Errorf("workload_to_resource_function: wanted a string, got a %s", name.Type())
	}
	return text, nil
}

// imagesOf are the images that the object names where Tilt looks for them.
func (r *Recorded) imagesOf(object Object) []string {
	var images []string
	for _, container := range object.containers() {
		image, _ := container["image"].(string)
		images = append(images, image)
	}
	if kind := r.kindOf(object); kind != nil {
		for _, path := range kind.ImagePaths {
			if image, ok := object.at(path).(string); ok {
				images = append(images, image)
			}
		}
	}
	return images
}

// ---- Objects ----

func (o Object) text(field string) string { text, _ := o[field].(string); return text }
func (o Object) kind() string             { return o.text("kind") }
func (o Object) name() string             { return Object(o.fields("metadata")).text("name") }
func (o Object) namespace() string        { return Object(o.fields("metadata")).text("namespace") }
func (o Object) String() string           { return o.kind() + " " + o.name() }

// fields follows the names from field to field; nil where there is nothing.
func (o Object) fields(names ...string) map[string]any {
	fields := map[string]any(o)
	for _, name := range names {
		fields, _ = fields[name].(map[string]any)
	}
	return fields
}

// at finds what a JSON path of the form {.a.b} points at.
func (o Object) at(path string) any {
	names := strings.Split(strings.TrimSuffix(strings.TrimPrefix(path, "{."), "}"), ".")
	last := len(names) - 1
	return o.fields(names[:last]...)[names[last]]
}

// isNamed returns whether a fragment (name, name:kind or name:kind:namespace) means this object.
func (o Object) isNamed(fragment string) bool {
	parts := []string{o.name(), o.kind(), o.namespace()}
	wanted := strings.Split(fragment, ":")
	if len(wanted) > len(parts) {
		return false
	}
	for i, part := range wanted {
		if !strings.EqualFold(part, parts[i]) {
			return false
		}
	}
	return true
}

func count(objects []Object, fragment string) int {
	matching := 0
	for _, object := range objects {
		if object.isNamed(fragment) {
			matching++
		}
	}
	return matching
}

// pod is the template of a workload's pods, or the pod itself; nil for all other kinds.
func (o Object) pod() map[string]any {
	switch o.kind() {
	case "Pod":
		return o
	case "Deployment", "StatefulSet", "DaemonSet", "ReplicaSet", "Job":
		return o.fields("spec", "template")
	case "CronJob":
		return o.fields("spec", "jobTemplate", "spec", "template")
	}
	return nil
}

func (o Object) containers() []map[string]any {
	var containers []map[string]any
	spec := Object(o.pod()).fields("spec")
	for _, field := range []string{"initContainers", "containers"} {
		list, _ := spec[field].([]any)
		for _, item := range list {
			if container, ok := item.(map[string]any); ok {
				containers = append(containers, container)
			}
		}
	}
	return containers
}

// selects returns whether an object is a Service of the workload's pods.
func selects(object, workload Object) bool {
	if object.kind() != "Service" || object.namespace() != workload.namespace() {
		return false
	}
	selector, labels := object.fields("spec", "selector"), Object(workload.pod()).fields("metadata", "labels")
	for name, value := range selector {
		if labels[name] != value {
			return false
		}
	}
	return len(selector) > 0
}
