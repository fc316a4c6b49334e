package tilt

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"go.starlark.net/starlark"
	"go.starlark.net/starlarkstruct"
	"go.starlark.net/syntax"
	"sigs.k8s.io/yaml"
)

// Machine is the environment of a Tiltfile, as far as it can see.
type Machine struct {
	// Root is the folder of the checkout.
	Root string
	// Context is kubectl's current one.
	Context string
	// System is the output of `uname -s`.
	System string
	// Settings are those after `tilt up --`.
	Settings map[string]string
}

// Recorded has the calls of the Tiltfile.
type Recorded struct {
	Machine Machine

	Images          []Image
	Objects         []Object
	Locals          []Local
	Deploys         []Deploy
	Kinds           []Kind
	Options         []Options
	Watched         []string
	Made            []string
	AllowedContexts []string

	settings map[string]string
	nameOf   *starlark.Function
	thread   *starlark.Thread
}

// Image is a docker_build.
type Image struct {
	Name, Context, Dockerfile, Target string
	Only                              []string
	Arguments                         map[string]string
}

// Object is a manifest for the cluster.
type Object map[string]any

// Local is a local_resource.
type Local struct {
	Name    string
	Command []string
	Paths   []string
	Needs   []string
	Labels  []string
}

// Deploy is a k8s_custom_deploy.
type Deploy struct {
	Name          string
	Apply, Remove []string
}

// Kind is a k8s_kind. Name and APIVersion are patterns.
type Kind struct {
	Name, APIVersion string
	ImagePaths       []string
}

// Options are those of one k8s_resource.
type Options struct {
	Workload, NewName string
	Fragments         []string
	Needs             []string
	Labels            []string
	Forwards          []forward
	Selectors         []map[string]string
}

// dialect is what Tilt allows beyond the standard of Starlark.
var dialect = &syntax.FileOptions{Set: true, GlobalReassign: true, Recursion: true, TopLevelControl: true, While: true}

// Evaluate runs the source of a Tiltfile in the given surroundings.
func Evaluate(source string, machine Machine) (*Recorded, error) {
	recorded := &Recorded{Machine: machine, settings: map[string]string{}, thread: &starlark.Thread{Name: "Tiltfile"}}
	if _, err := starlark.ExecFileOptions(dialect, recorded.thread, "Tiltfile", source, recorded.predeclared()); err != nil {
		var inTiltfile *starlark.EvalError
		if errors.As(err, &inTiltfile) {
			return nil, errors.New(inTiltfile.Backtrace())
		}
		return nil, err
	}
	return recorded, nil
}

func (r *Recorded) predeclared() starlark.StringDict {
	functions := map[string]func(call) (starlark.Value, error){
		"allow_k8s_contexts":            r.allowContexts,
		"blob":                          func(c call) (starlark.Value, error) { return blob(c.text("input")), nil },
		"config.define_bool":            r.define("bool"),
		"config.define_string":          r.define("str"),
		"config.parse":                  r.parse,
		"decode_yaml":                   decodeOne,
		"decode_yaml_stream":            func(c call) (starlark.Value, error) { return decode(c.text("yaml")) },
		"docker_build":                  r.dockerBuild,
		"encode_yaml":                   func(c call) (starlark.Value, error) { return encode(c["obj"]) },
		"encode_yaml_stream":            encodeStream,
		"k8s_context":                   func(call) (starlark.Value, error) { return starlark.String(r.Machine.Context), nil },
		"k8s_custom_deploy":             r.customDeploy,
		"k8s_kind":                      r.kind,
		"k8s_resource":                  r.resource,
		"k8s_yaml":                      r.yaml,
		"local":                         r.local,
		"local_resource":                r.localResource,
		"port_forward":                  portForward,
		"read_yaml_stream":              r.readYAMLStream,
		"shlex.quote":                   quote,
		"watch_file":                    r.watch,
		"workload_to_resource_function": r.nameWorkloads,
	}
	predeclared := starlark.StringDict{
		"TRIGGER_MODE_AUTO":   starlark.MakeInt(1),
		"TRIGGER_MODE_MANUAL": starlark.MakeInt(2),
		"fail":                starlark.NewBuiltin("fail", fail),
		"struct":              starlark.NewBuiltin("struct", starlarkstruct.Make),
	}
	modules := map[string]starlark.StringDict{}
	for name := range signatures {
		function, ok := functions[name]
		if !ok { // A setting that nothing here depends on; its arguments are checked all the same.
			function = func(call) (starlark.Value, error) { return starlark.None, nil }
		}
		builtin := starlark.NewBuiltin(name, checked(function))
		module, member, isMember := strings.Cut(name, ".")
		if !isMember {
			predeclared[name] = builtin
			continue
		}
		if modules[module] == nil {
			modules[module] = starlark.StringDict{}
		}
		modules[module][member] = builtin
	}
	for name, members := range modules {
		predeclared[name] = &starlarkstruct.Module{Name: name, Members: members}
	}
	return predeclared
}

type function = func(*starlark.Thread, *starlark.Builtin, starlark.Tuple, []starlark.Tuple) (starlark.Value, error)

func checked(function func(call) (starlark.Value, error)) function {
	return func(_ *starlark.Thread, fn *starlark.Builtin, args starlark.Tuple, kwargs []starlark.Tuple) (starlark.Value, error) {
		given, err := bind(fn.Name(), args, kwargs)
		if err != nil {
			return nil, err
		}
		result, err := function(given)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", fn.Name(), err)
		}
		return result, nil
	}
}

// ---- What the functions do ----

func fail(_ *starlark.Thread, _ *starlark.Builtin, args starlark.Tuple, kwargs []starlark.Tuple) (starlark.Value, error) {
	var message string
	if err := starlark.UnpackPositionalArgs("fail", args, kwargs, 1, &message); err != nil {
		return nil, err
	}
	return nil, errors.New(message)
}

func (r *Recorded) allowContexts(c call) (starlark.Value, error) {
	r.AllowedContexts = append(r.AllowedContexts, c.texts("contexts")...)
	return starlark.None, nil
}

func (r *Recorded) define(kind string) func(call) (starlark.Value, error) {
	return func(c call) (starlark.Value, error) {
		r.settings[c.text("name")] = kind
		return starlark.None, nil
	}
}

func (r *Recorded) parse(call) (starlark.Value, error) {
	settings := starlark.NewDict(0)
	for name, value := range r.Machine.Settings {
		var parsed starlark.Value = starlark.String(value)
		switch r.settings[name] {
		case "bool":
			parsed = starlark.Bool(value == "true")
		case "":
			return nil, fmt.Errorf("invalid Tiltfile config args: unknown flag: --%s", name)
		}
		if err := settings.SetKey(starlark.String(name), parsed); err != nil {
			return nil, err
		}
	}
	return settings, nil
}

func (r *Recorded) dockerBuild(c call) (starlark.Value, error) {
	dockerfile := c.text("dockerfile")
	if dockerfile == "" {
		dockerfile = filepath.Join(c.text("context"), "Dockerfile")
	}
	r.Images = append(r.Images, Image{
		Name:       c.text("ref"),
		Context:    c.text("context"),
		Dockerfile: dockerfile,
		Target:     c.text("target"),
		Only:       c.texts("only"),
		Arguments:  c.dict("build_args"),
	})
	return starlark.None, nil
}

func (r *Recorded) kind(c call) (starlark.Value, error) {
	r.Kinds = append(r.Kinds, Kind{
		Name:       c.text("kind"),
		APIVersion: c.text("api_version"),
		ImagePaths: c.texts("image_json_path"),
	})
	return starlark.None, nil
}

func (r *Recorded) customDeploy(c call) (starlark.Value, error) {
	r.Deploys = append(r.Deploys, Deploy{Name: c.text("name"), Apply: c.texts("apply_cmd"), Remove: c.texts("delete_cmd")})
	return starlark.None, r.guard()
}

func (r *Recorded) resource(c call) (starlark.Value, error) {
	options := Options{
		Workload:  c.text("workload"),
		NewName:   c.text("new_name"),
		Fragments: c.texts("objects"),
		Needs:     c.texts("resource_deps"),
		Labels:    c.texts("labels"),
	}
	if options.Workload == "" && (options.NewName == "" || len(options.Fragments) == 0) {
		return nil, errors.New("needs a workload, or a new_name and objects")
	}
	switch selectors := c["extra_pod_selectors"].(type) {
	case *starlark.Dict:
		options.Selectors = append(options.Selectors, asDict(selectors))
	case starlark.Iterable:
		for selector := range starlark.Elements(selectors) {
			options.Selectors = append(options.Selectors, asDict(selector.(*starlark.Dict)))
		}
	}
	var err error
	if options.Forwards, err = forwards(c["port_forwards"]); err != nil {
		return nil, err
	}
	r.Options = append(r.Options, options)
	return starlark.None, nil
}

func (r *Recorded) yaml(c call) (starlark.Value, error) {
	text := c.text("yaml")
	if path, isPath := c["yaml"].(starlark.String); isPath {
		content, err := os.ReadFile(r.path(string(path)))
		if err != nil {
			return nil, err
		}
		text = string(content)
	}
	objects, err := documents(text)
	if err != nil {
		return nil, err
	}
	if len(objects) == 0 {
		return nil, errors.New("Empty YAML passed to k8s_yaml")
	}
	r.Objects = append(r.Objects, objects...)
	return starlark.None, r.guard()
}

// local runs nothing but Helm: what the other commands print is known.
func (r *Recorded) local(c call) (starlark.Value, error) {
	if err := r.guard(); err != nil {
		return nil, err
	}
	command := c.texts("command")
	switch {
	case slices.Equal(command, []string{"uname", "-s"}):
		return blob(r.Machine.System + "\n"), nil
	case len(command) == 3 && command[0] == "mkdir":
		r.Made = append(r.Made, command[2])
		return blob(""), nil
	case len(command) > 1 && command[0] == "helm" && command[1] == "template":
		manifests, err := render(r.Machine.Root, command[1:])
		return blob(manifests), err
	}
	return nil, fmt.Errorf("evaluate.go does not know what %q prints", command)
}

// guard stands for Tilt's own refusal of contexts that it does not know for local ones.
func (r *Recorded) guard() error {
	if !strings.HasPrefix(r.Machine.Context, "kind-") && !slices.Contains(r.AllowedContexts, r.Machine.Context) {
		return fmt.Errorf("%s might be a production kube context", r.Machine.Context)
	}
	return nil
}

func (r *Recorded) localResource(c call) (starlark.Value, error) {
	if c["cmd"] == nil && c["serve_cmd"] == nil {
		return nil, errors.New("must have a cmd and/or a serve_cmd, but both were empty")
	}
	r.Locals = append(r.Locals, Local{
		Name:    c.text("name"),
		Command: append(c.texts("cmd"), c.texts("serve_cmd")...),
		Paths:   c.texts("deps"),
		Needs:   c.texts("resource_deps"),
		Labels:  c.texts("labels"),
	})
	return starlark.None, nil
}

func (r *Recorded) readYAMLStream(c call) (starlark.Value, error) {
	r.Watched = append(r.Watched, c.text("paths"))
	content, err := os.ReadFile(r.path(c.text("paths")))
	if err != nil {
		return nil, err
	}
	return decode(string(content))
}

func (r *Recorded) watch(c call) (starlark.Value, error) {
	r.Watched = append(r.Watched, c.text("paths"))
	return starlark.None, nil
}

func (r *Recorded) nameWorkloads(c call) (starlark.Value, error) {
	r.nameOf = c["func"].(*starlark.Function)
	return starlark.None, nil
}

func (r *Recorded) path(path string) string { return filepath.Join(r.Machine.Root, path) }

func quote(c call) (starlark.Value, error) {
	return starlark.String("'" + strings.ReplaceAll(c.text("name"), "'", `'"'"'`) + "'"), nil
}

// ---- Helm ----

var rendered sync.Map

// render runs `helm template`. The same command gives the same manifests, because no cluster is queried.
func render(root string, arguments []string) (string, error) {
	key := strings.Join(append([]string{root}, arguments...), "\x00")
	if manifests, ok := rendered.Load(key); ok {
		return manifests.(string), nil
	}
	helm := os.Getenv("HELM")
	if helm == "" {
		helm = "helm"
	}
	command := exec.Command(helm, arguments...)
	command.Dir = root
	manifests, err := command.Output()
	if errors.Is(err, exec.ErrNotFound) {
		return "", errors.New("no Helm: set HELM to its path, or put it on PATH")
	}
	if failed := (*exec.ExitError)(nil); errors.As(err, &failed) {
		return "", fmt.Errorf("helm %s: %s", strings.Join(arguments, " "), failed.Stderr)
	}
	if err != nil {
		return "", err
	}
	rendered.Store(key, string(manifests))
	return string(manifests), nil
}

// ---- Values ----

// blob is Tilt's type of texts that are no paths.
type blob string

func (b blob) String() string       { return string(b) }
func (blob) Type() string           { return "blob" }
func (blob) Freeze()                {}
func (b blob) Truth() starlark.Bool { return b != "" }
func (blob) Hash() (uint32, error)  { return 0, errors.New("unhashable type: blob") }

// forward is Tilt's type of forwarded ports. Without a port of the container it is the same as the local one.
type forward struct{ local, container int }

func (f forward) String() string      { return fmt.Sprintf("port_forward(%d, %d)", f.local, f.container) }
func (forward) Type() string          { return "port_forward" }
func (forward) Freeze()               {}
func (forward) Truth() starlark.Bool  { return true }
func (forward) Hash() (uint32, error) { return 0, errors.New("unhashable type: port_forward") }

func portForward(c call) (starlark.Value, error) {
	ports := forward{}
	if err := starlark.AsInt(c["local_port"], &ports.local); err != nil {
		return nil, err
	}
	if c["container_port"] != nil {
		if err := starlark.AsInt(c["container_port"], &ports.container); err != nil {
			return nil, err
		}
	}
	return ports, nil
}

func forwards(value starlark.Value) ([]forward, error) {
	switch value := value.(type) {
	case nil:
		return nil, nil
	case forward:
		return []forward{value}, nil
	case starlark.Int:
		ports := forward{}
		err := starlark.AsInt(value, &ports.local)
		return []forward{ports}, err
	}
	var all []forward
	for item := range starlark.Elements(value.(starlark.Iterable)) {
		one, err := forwards(item)
		if err != nil {
			return nil, err
		}
		all = append(all, one...)
	}
	return all, nil
}

// ---- YAML ----

// documents splits at lines, as YAML does and Helm writes; a `---` within a text would be indented.
func documents(text string) ([]Object, error) {
	var objects []Object
	for _, document := range strings.Split("\n"+text, "\n---") {
		var object Object
		if err := yaml.Unmarshal([]byte(document), &object); err != nil {
			return nil, err
		}
		if len(object) > 0 {
			objects = append(objects, object)
		}
	}
	return objects, nil
}

func decode(text string) (starlark.Value, error) {
	objects, err := documents(text)
	if err != nil {
		return nil, err
	}
	var values []starlark.Value
	for _, object := range objects {
		values = append(values, toStarlark(map[string]any(object)))
	}
	return starlark.NewList(values), nil
}

func decodeOne(c call) (starlark.Value, error) {
	var value any
	err := yaml.Unmarshal([]byte(c.text("yaml")), &value)
	return toStarlark(value), err
}

func encode(value starlark.Value) (starlark.Value, error) {
	structured, err := fromStarlark(value)
	if err != nil {
		return nil, err
	}
	text, err := yaml.Marshal(structured)
	return blob(text), err
}

func encodeStream(c call) (starlark.Value, error) {
	var all []string
	for item := range starlark.Elements(c["objs"].(starlark.Iterable)) {
		text, err := encode(item)
		if err != nil {
			return nil, err
		}
		all = append(all, string(text.(blob)))
	}
	return blob(strings.Join(all, "---\n")), nil
}

func toStarlark(value any) starlark.Value {
	switch value := value.(type) {
	case bool:
		return starlark.Bool(value)
	case string:
		return starlark.String(value)
	case int64:
		return starlark.MakeInt64(value)
	case float64:
		if whole := int64(value); float64(whole) == value {
			return starlark.MakeInt64(whole)
		}
		return starlark.Float(value)
	case []any:
		var items []starlark.Value
		for _, item := range value {
			items = append(items, toStarlark(item))
		}
		return starlark.NewList(items)
	case map[string]any:
		dict := starlark.NewDict(len(value))
		for key, item := range value {
			// Only a frozen dict or an unhashable key could refuse.
			_ = dict.SetKey(starlark.String(key), toStarlark(item))
		}
		return dict
	}
	return starlark.None
}

func fromStarlark(value starlark.Value) (any, error) {
	switch value := value.(type) {
	case starlark.NoneType:
		return nil, nil
	case starlark.Bool:
		return bool(value), nil
	case starlark.String:
		return string(value), nil
	case starlark.Int:
		number, _ := value.Int64()
		return number, nil
	case starlark.Float:
		return float64(value), nil
	case *starlark.List:
		items := []any{}
		for item := range starlark.Elements(value) {
			structured, err := fromStarlark(item)
			if err != nil {
				return nil, err
			}
			items = append(items, structured)
		}
		return items, nil
	case *starlark.Dict:
		fields := map[string]any{}
		for _, item := range value.Items() {
			key, ok := item[0].(starlark.String)
			if !ok {
				return nil, fmt.Errorf("only string keys are supported in maps, not %s", item[0])
			}
			structured, err := fromStarlark(item[1])
			if err != nil {
				return nil, err
			}
			fields[string(key)] = structured
		}
		return fields, nil
	}
	return nil, fmt.Errorf("a %s cannot be written as YAML", value.Type())
}
