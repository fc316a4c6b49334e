package tilt

import (
	"strings"
	"testing"
)

// A check that cannot fail shows nothing: each of these changes breaks the Tiltfile, and must be refused for that reason.
func TestABrokenTiltfileIsRefused(t *testing.T) {
	for name, test := range map[string]struct{ old, new, want string }{
		"a function that Tilt does not have": {
			"watch_file(folder)", "watch_folder(folder)", "undefined: watch_folder"},
		"an argument that Tilt does not have": {
			"allow_parallel=True", "parallel=True", `unexpected keyword argument "parallel"`},
		"a missing argument": {
			"delete_cmd=['true'],", "", "missing argument for delete_cmd"},
		"a number for a text": {
			"target=program", "target=1", "parameter target: got int, want str"},
		"a text for a list": {
			"resource_deps=['strimzi']", "resource_deps='strimzi'", "parameter resource_deps: got string, want list"},
		"a way to wait that Tilt does not know": {
			"pod_readiness='ignore'", "pod_readiness='never'", "want readiness"},
		"a setting that was not defined": {
			"config.define_bool('compile-in-docker'", "config.define_bool('compile'", "unknown flag: --compile-in-docker"},
		"a source that is not there": {
			"'rust-toolchain.toml'", "'rust-toolchain'", "programs: rust-toolchain is not there"},
		"a script that is not there": {
			"'scripts/programs'", "'scripts/program'", "scripts/program is not there"},
		"a target that the Makefile does not have": {
			"['make', 'lint']", "['make', 'lints']", "the Makefile has no target lints"},
		"a chart that is not there": {
			"render('orderflow-operator'", "render('operator'", "helm template"},
		"a value that the chart does not have": {
			"'postgres.password'", "'postgres.passwort'", "passwort"},
		"an example that is not there": {
			"examples/orderflow.yaml", "examples/shop.yaml", "examples/shop.yaml"},
		"a dependency that is misspelt": {
			"resource_deps=['strimzi']", "resource_deps=['strimsi']", "kafka depends on strimsi, which does not exist"},
		"a circle of dependencies": {
			"resource_deps=['strimzi']", "resource_deps=['strimzi', 'orderflow']", "depends on itself"},
		"a workload that is misspelt": {
			"    'kafka',\n", "    'kafak',\n", `unknown resource "kafak"`},
		"two resources with one name": {
			"tool('lint'", "tool('kafka'", `two resources are called "kafka"`},
		"workloads with one name": {
			"'kafka' if workload.kind == 'Kafka' else workload.name", "workload.name", `two resources are called "orderflow"`},
		"an object that no resource has": {
			"kind == 'KafkaNodePool'", "kind == 'Nothing'", "KafkaNodePool broker belongs to no resource"},
		"an object in two resources": {
			"kind == 'KafkaNodePool'", "kind in ['KafkaNodePool', 'Secret']", "belongs to another resource"},
		"an object before its namespace": {
			"resource_deps=['namespace', 'programs']", "resource_deps=['programs']", "may be applied before its namespace"},
		"a Kafka before its definition": {
			"resource_deps=['strimzi']", "resource_deps=['namespace']", "Kafka orderflow may be applied before its definition"},
		"an OrderFlow before its definition": {
			"resource_deps=['operator', 'kafka', ", "resource_deps=['programs', 'postgres-shard1', ", "OrderFlow orderflow may be applied before its definition"},
		"an OrderFlow before its Kafka": {
			"resource_deps=['operator', 'kafka', ", "resource_deps=['operator', ", "OrderFlow orderflow may be applied before Kafka orderflow"},
		"an OrderFlow in another namespace than its Secrets": {
			"pipeline['metadata']['namespace'] = NAMESPACE", "pipeline['metadata']['namespace'] = 'shop'", "OrderFlow orderflow is in namespace shop"},
		"a Secret that nothing makes": {
			"pipeline['metadata']['namespace'] = NAMESPACE",
			"pipeline['metadata']['namespace'] = NAMESPACE\npipeline['spec']['shards'][0]['dsnSecretRef']['name'] = 'postgres'",
			"names the Secret postgres, which nothing makes"},
		"a key that a Secret does not have": {
			"pipeline['metadata']['namespace'] = NAMESPACE",
			"pipeline['metadata']['namespace'] = NAMESPACE\npipeline['spec']['shards'][0]['dsnSecretRef']['key'] = 'url'",
			"names key url of Secret postgres-shard1, which has none"},
		"a Kafka of another name": {
			"pipeline['metadata']['namespace'] = NAMESPACE",
			"pipeline['metadata']['namespace'] = NAMESPACE\npipeline['spec']['topic']['bootstrapServers'] = 'kafka:9092'",
			"names Kafka at kafka:9092, which nothing makes"},
		"a resource in no group": {
			"    resource_deps=['strimzi'],\n    labels=['backing'],", "    resource_deps=['strimzi'],", "kafka has no label"},
		"an image that nobody uses": {
			"for program in ['producer', 'consumer', 'operator']", "for program in ['producer', 'consumer', 'operator', 'provision']", "nothing uses the image orderflow-provision"},
		"an image that nobody builds": {
			"for program in ['producer', 'consumer', 'operator']", "for program in ['producer', 'consumer']", "nothing builds the image orderflow-operator"},
		"an image before its program": {
			"resource_deps=['namespace', 'programs']", "resource_deps=['namespace']", "is built from target/tilt before programs has made that"},
		"an image path that points at nothing": {
			"{.spec.producer.image}", "{.spec.producers.image}", "OrderFlow orderflow has no image at {.spec.producers.image}"},
		"a kind that means others, too": {
			"'^Kafka$'", "'Kafka'", "belongs to another resource"},
		"a kind that is not there": {
			"k8s_kind('^Kafka$'", "k8s_kind('KafkaUser')\nk8s_kind('^Kafka$'", "there is no KafkaUser"},
		"a stage that the Dockerfile does not have": {
			"target=program", "target='runtime-' + program", "Dockerfile has no stage runtime-producer"},
		"a file that the Dockerfile does not get": {
			", 'libz.so.1']", "]", "but the build gets only"},
		"an argument that the Dockerfile does not have": {
			"'RUNTIME_IMAGE'", "'BASE_IMAGE'", "Dockerfile has no argument BASE_IMAGE"},
		"a folder that nothing makes": {
			"        PROGRAMS,\n", "        'target/images',\n", "target/images is not there"},
		"a folder that is made too late": {
			"local(['mkdir', '-p', PROGRAMS], quiet=True, echo_off=True)", "", "Tilt ignores `only`"},
		"hooks among the manifests": {
			", '--no-hooks'", "", "belongs to another resource"},
		"Helm's word for what to keep": {
			".replace('helm.sh/resource-policy:', 'tilt.dev/down-policy:')", "", "has the annotation helm.sh/resource-policy"},
		"another port": {
			"port_forward(8080, 8081", "port_forward(8082, 8081", "nothing forwards port 8080"},
		"one port for two": {
			" if program == 'producer' else []", "", "both forward port 8080"},
		"a label that no pod has": {
			"'app.kubernetes.io/component'", "'app.kubernetes.io/role'", "a label that the operator does not set"},
	} {
		t.Run(name, func(t *testing.T) {
			whole := source(t)
			if !strings.Contains(whole, test.old) {
				t.Fatalf("the Tiltfile has no %q any more, so there is nothing to break", test.old)
			}
			machine := machine(t)
			machine.Settings = map[string]string{"compile-in-docker": "false"}
			recorded, err := Evaluate(strings.ReplaceAll(whole, test.old, test.new), machine)
			if err == nil {
				err = Check(recorded)
			}
			if err == nil {
				t.Fatal("was taken")
			}
			if !strings.Contains(err.Error(), test.want) {
				t.Errorf("was refused, but not for this (%s):\n%v", test.want, err)
			}
		})
	}
}
