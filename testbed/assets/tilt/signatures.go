// Package tilt checks this repository's Tiltfile without Tilt: it evaluates the file as Tilt would, with functions that
// only write down how they were called, groups the objects into resources by Tilt's rules, and reports what is wrong with them.
//
// It needs Helm, which renders the charts: the program that HELM names, else the one on PATH.
package tilt

import (
	"fmt"
	"strings"

	"go.starlark.net/starlark"
)

// signatures are those of Tilt 0.37.6 (internal/tiltfile), of the functions that the Tiltfile calls and a few that it may
// come to call; any other one is an undefined name here. "?" marks an optional parameter; the kinds are explained at
// fits.
var signatures = map[string]string{
	"allow_k8s_contexts":   "contexts strings",
	"blob":                 "input str",
	"ci_settings":          "k8s_grace_period? str, timeout? str, readiness_timeout? str",
	"config.define_bool":   "name str, args? bool, usage? str",
	"config.define_string": "name str, args? bool, usage? str",
	"config.parse":         "",
	"decode_yaml":          "yaml text",
	"decode_yaml_stream":   "yaml text",
	"docker_build": "ref str, context str, build_args? dict, dockerfile? str, dockerfile_contents? text, cache? any, " +
		"live_update? any, match_in_env_vars? bool, ignore? strings, only? strings, entrypoint? command, " +
		"container_args? strings, target? str, ssh? strings, secret? strings, network? str, extra_tag? strings, " +
		"cache_from? strings, pull? bool, platform? str, extra_hosts? strings",
	"encode_yaml":        "obj any",
	"encode_yaml_stream": "objs list",
	"k8s_context":        "",
	"k8s_custom_deploy": "name str, apply_cmd command, delete_cmd command, deps strings, image_selector? str, " +
		"live_update? any, apply_dir? str, apply_env? dict, apply_cmd_bat? command, delete_dir? str, delete_env? dict, " +
		"delete_cmd_bat? command, container_selector? str, image_deps? strings",
	"k8s_kind": "kind str, image_json_path? strings, api_version? str, image_object? any, pod_readiness? readiness",
	"k8s_resource": "workload? str, new_name? str, port_forwards? ports, extra_pod_selectors? selectors, " +
		"trigger_mode? int, resource_deps? list, objects? list, auto_init? bool, pod_readiness? readiness, links? any, " +
		"labels? strings, discovery_strategy? strategy",
	"k8s_yaml": "yaml text, allow_duplicates? bool",
	"local":    "command command, quiet? bool, command_bat? command, echo_off? bool, env? dict, dir? str, stdin? text",
	"local_resource": "name str, cmd? command, deps? strings, trigger_mode? int, resource_deps? list, ignore? strings, " +
		"auto_init? bool, serve_cmd? command, cmd_bat? command, serve_cmd_bat? command, allow_parallel? bool, links? any, " +
		"labels? strings, env? dict, serve_env? dict, readiness_probe? any, dir? str, serve_dir? str",
	"port_forward":     "local_port int, container_port? int, name? str, link_path? str, host? str",
	"read_yaml_stream": "paths str, default? any",
	"shlex.quote":      "name str",
	"update_settings": "max_parallel_updates? int, k8s_upsert_timeout_secs? int, suppress_unused_image_warnings? strings, " +
		"k8s_server_side_apply? str",
	"version_settings":              "check_updates? bool, constraint? str",
	"watch_file":                    "paths str",
	"workload_to_resource_function": "func function",
}

// A call holds the arguments that were given, by parameter.
type call map[string]starlark.Value

// bind does what each function of Tilt does first: it refuses arguments that it has no parameter for, that are missing,
// or that are of the wrong kind.
func bind(function string, args starlark.Tuple, kwargs []starlark.Tuple) (call, error) {
	var names, kinds []string
	var pairs []any
	if signatures[function] != "" {
		for _, parameter := range strings.Split(signatures[function], ", ") {
			name, kind, _ := strings.Cut(parameter, " ")
			names, kinds = append(names, strings.TrimSuffix(name, "?")), append(kinds, kind)
			pairs = append(pairs, name, new(starlark.Value))
		}
	}
	if err := starlark.UnpackArgs(function, args, kwargs, pairs...); err != nil {
		return nil, err
	}
	given := call{}
	for i, name := range names {
		value := *pairs[2*i+1].(*starlark.Value)
		if value == nil || value == starlark.None {
			continue
		}
		if !fits(value, kinds[i]) {
			return nil, fmt.Errorf("%s: for parameter %s: got %s, want %s", function, name, value.Type(), kinds[i])
		}
		given[name] = value
	}
	return given, nil
}

func fits(value starlark.Value, kind string) bool {
	all := func(sequence starlark.Value, fits func(starlark.Value) bool) bool {
		switch sequence.(type) {
		case *starlark.List, starlark.Tuple:
		default:
			return false
		}
		for item := range starlark.Elements(sequence.(starlark.Iterable)) {
			if !fits(item) {
				return false
			}
		}
		return true
	}
	isString := func(value starlark.Value) bool { _, ok := value.(starlark.String); return ok }
	switch kind {
	case "any":
		return true
	case "str":
		return isString(value)
	case "bool":
		_, ok := value.(starlark.Bool)
		return ok
	case "int":
		_, ok := value.(starlark.Int)
		return ok
	case "list": // Of strings; a single one is refused.
		return all(value, isString)
	case "strings", "command": // One or a list. A command that is one string goes to a shell.
		return isString(value) || all(value, isString)
	case "text": // A path of a file where Tilt reads one; its content where it does not.
		_, isBlob := value.(blob)
		return isString(value) || isBlob
	case "dict": // From strings to strings.
		dict, ok := value.(*starlark.Dict)
		if !ok {
			return false
		}
		for _, item := range dict.Items() {
			if !isString(item[0]) || !isString(item[1]) {
				return false
			}
		}
		return true
	case "selectors": // One or a list of dicts.
		return fits(value, "dict") || all(value, func(item starlark.Value) bool { return fits(item, "dict") })
	case "ports": // A number, a port_forward, or a list of these.
		isPort := func(value starlark.Value) bool { _, ok := value.(forward); return ok || fits(value, "int") }
		return isPort(value) || all(value, isPort)
	case "readiness":
		return value == starlark.String("wait") || value == starlark.String("ignore") || value == starlark.String("succeeded")
	case "strategy":
		return value == starlark.String("default") || value == starlark.String("selectors-only")
	case "function":
		_, ok := value.(*starlark.Function)
		return ok
	}
	panic("no kind of parameter: " + kind)
}

func (c call) text(name string) string {
	switch value := c[name].(type) {
	case starlark.String:
		return string(value)
	case blob:
		return string(value)
	}
	return ""
}

func (c call) texts(name string) []string {
	switch value := c[name].(type) {
	case starlark.String:
		return []string{string(value)}
	case starlark.Iterable:
		var texts []string
		for item := range starlark.Elements(value) {
			texts = append(texts, string(item.(starlark.String)))
		}
		return texts
	}
	return nil
}

func (c call) dict(name string) map[string]string {
	dict, _ := c[name].(*starlark.Dict)
	return asDict(dict)
}

func asDict(dict *starlark.Dict) map[string]string {
	texts := map[string]string{}
	if dict != nil {
		for _, item := range dict.Items() {
			texts[string(item[0].(starlark.String))] = string(item[1].(starlark.String))
		}
	}
	return texts
}
