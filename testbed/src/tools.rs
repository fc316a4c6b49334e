//! The programs of the services on this machine.
//!
//! Postgres, Prometheus and Chromium come from the system's packages; Kafka, LocalStack, versitygw, the OpenTelemetry
//! Collector and Kubernetes from the cache folder that `scripts/prepare` fills. If one is missing, the error names that
//! script.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

use anyhow::{Context, Result, bail, ensure};

/// The version of Kafka to run.
pub const KAFKA_VERSION: &str = "4.2.1";

/// The version of LocalStack to run.
pub const LOCALSTACK_VERSION: &str = "4.12.0";

/// The version of Helm to run unless another is installed; `HELM` may name one.
pub const HELM_VERSION: &str = "4.3.1";

/// The version of Kubernetes to run unless `KUBEBUILDER_ASSETS` names another.
pub const KUBERNETES_VERSION: &str = "1.35.4";

/// The version of CoreDNS that serves a node's pods.
pub const COREDNS_VERSION: &str = "1.15.0";

/// The version of axe-core that checks the dashboard's accessibility.
pub const AXE_VERSION: &str = "4.14.1";

/// The version of versitygw, which keeps objects on disk.
pub const VERSITYGW_VERSION: &str = "1.8.0";

/// The version of the OpenTelemetry Collector, which receives traces.
pub const COLLECTOR_VERSION: &str = "0.161.0";

/// The version of Schemathesis, which tests the API against its OpenAPI document.
pub const SCHEMATHESIS_VERSION: &str = "4.32.5";

/// Finds a program of the newest Postgres: in `/usr/lib/postgresql/<version>/bin`, else on `PATH`.
pub fn postgres_program(name: &str) -> Result<PathBuf> {
    newest_postgres()
        .map(|folder| folder.join(name))
        .filter(|program| program.is_file())
        .or_else(|| on_path(name))
        .with_context(|| missing(&format!("Postgres ({name})")))
}

/// Returns the class path with Kafka's jars, as `java -cp` takes it.
pub fn kafka_class_path() -> Result<OsString> {
    let jars = cache()?.join(format!("kafka-{KAFKA_VERSION}/libs"));
    if !jars.is_dir() {
        bail!(missing(&format!("Kafka {KAFKA_VERSION} ({})", jars.display())));
    }
    Ok(jars.join("*").into_os_string())
}

/// Finds the Java that runs Kafka: in `JAVA_HOME`, else on `PATH`.
pub fn java() -> Result<PathBuf> {
    std::env::var_os("JAVA_HOME")
        .map(|home| Path::new(&home).join("bin/java"))
        .filter(|program| program.is_file())
        .or_else(|| on_path("java"))
        .with_context(|| missing("Java"))
}

/// Returns the Schemathesis program.
pub fn schemathesis() -> Result<PathBuf> {
    let program = cache()?.join(format!("schemathesis-{SCHEMATHESIS_VERSION}/bin/schemathesis"));
    if !program.is_file() {
        bail!("{} contract", missing(&format!("Schemathesis {SCHEMATHESIS_VERSION} ({})", program.display())));
    }
    Ok(program)
}

/// Returns the Python of LocalStack's environment. `localstack-supervisor` is not used: the server that it starts as
/// its own child would survive the supervisor's death.
pub fn localstack_python() -> Result<PathBuf> {
    let programs = cache()?.join(format!("localstack-{LOCALSTACK_VERSION}/bin"));
    if !programs.join("localstack-supervisor").is_file() {
        bail!(missing(&format!("LocalStack {LOCALSTACK_VERSION} ({})", programs.display())));
    }
    Ok(programs.join("python"))
}

/// Finds a program of the Kubernetes control plane (`etcd`, `kube-apiserver`, …) and the argument that precedes its
/// own. It is in `KUBEBUILDER_ASSETS`, where tools for operators expect it, else part of the one binary of all of them.
pub fn kubernetes_program(name: &'static str) -> Result<(PathBuf, Option<&'static str>)> {
    if let Some(program) = variable("KUBEBUILDER_ASSETS").map(|assets| assets.join(name)).filter(|file| file.is_file())
    {
        return Ok((program, None));
    }
    let program = cache()?.join(format!("kubernetes-{KUBERNETES_VERSION}/kubernetes"));
    if !program.is_file() {
        bail!("{} kubernetes", missing(&format!("Kubernetes {KUBERNETES_VERSION} ({})", program.display())));
    }
    Ok((program, Some(name)))
}

/// Returns the Go that builds the tests' Go programs.
pub fn go() -> Result<PathBuf> {
    let program = cache()?.join("go");
    ensure!(program.is_file(), "{} go", missing("Go"));
    Ok(program)
}

/// Finds kubectl and the argument that precedes its own: on `PATH`, else as built with Kubernetes.
pub fn kubectl() -> Result<(PathBuf, Option<&'static str>)> {
    on_path("kubectl").map_or_else(|| kubernetes_program("kubectl"), |program| Ok((program, None)))
}

/// Finds a program of the system that a node needs, such as `containerd`. Some are on root's `PATH` only.
pub fn node_program(name: &str) -> Result<PathBuf> {
    on_path(name)
        .or_else(|| Some(Path::new("/usr/sbin").join(name)).filter(|program| program.is_file()))
        .with_context(|| format!("{} node", missing(name)))
}

/// Returns the cluster's DNS server.
pub fn coredns() -> Result<PathBuf> {
    let program = cache()?.join(format!("coredns-{COREDNS_VERSION}/coredns"));
    if !program.is_file() {
        bail!("{} node", missing(&format!("CoreDNS {COREDNS_VERSION} ({})", program.display())));
    }
    Ok(program)
}

/// Finds the browser that shows the dashboard in tests.
pub fn chromium() -> Result<PathBuf> {
    on_path("chromium").or_else(|| on_path("google-chrome")).with_context(|| format!("{} browser", missing("Chromium")))
}

/// Finds the program that controls the browser.
pub fn chromedriver() -> Result<PathBuf> {
    on_path("chromedriver").with_context(|| format!("{} browser", missing("chromedriver")))
}

/// Returns the script of axe-core, which runs in the page it checks.
pub fn axe() -> Result<PathBuf> {
    let script = cache()?.join(format!("axe-core-{AXE_VERSION}/axe.min.js"));
    ensure!(script.is_file(), "{} browser", missing(&format!("axe-core {AXE_VERSION} ({})", script.display())));
    Ok(script)
}

/// Returns the S3 server that keeps objects on disk.
pub fn versitygw() -> Result<PathBuf> {
    let program = cache()?.join(format!("versitygw-{VERSITYGW_VERSION}/versitygw"));
    if !program.is_file() {
        bail!("{} s3", missing(&format!("versitygw {VERSITYGW_VERSION} ({})", program.display())));
    }
    Ok(program)
}

/// Returns the OpenTelemetry Collector.
pub fn collector() -> Result<PathBuf> {
    let program = cache()?.join(format!("collector-{COLLECTOR_VERSION}/collector"));
    if !program.is_file() {
        let what = format!("OpenTelemetry Collector {COLLECTOR_VERSION} ({})", program.display());
        bail!("{} collector", missing(&what));
    }
    Ok(program)
}

/// Finds the Prometheus server.
pub fn prometheus_program() -> Result<PathBuf> {
    on_path("prometheus").with_context(|| format!("{} prometheus", missing("Prometheus")))
}

/// Finds the program that checks and tests Prometheus rules.
pub fn promtool() -> Result<PathBuf> {
    on_path("promtool").with_context(|| format!("{} prometheus", missing("promtool")))
}

/// Finds Helm: the program that `HELM` names, else a Helm 4 on `PATH`, else the one that was built from source.
pub fn helm() -> Result<PathBuf> {
    static FOUND: OnceLock<PathBuf> = OnceLock::new();
    if let Some(program) = FOUND.get() {
        return Ok(program.clone());
    }
    let program = match variable("HELM") {
        Some(program) => {
            ensure!(program.is_file(), "HELM names {}, which is not a file", program.display());
            program
        }
        None => match on_path("helm").filter(|program| is_helm_4(program)) {
            Some(program) => program,
            None => {
                let built = cache()?.join(format!("helm-{HELM_VERSION}/helm"));
                ensure!(built.is_file(), "{} helm", missing(&format!("Helm {HELM_VERSION} ({})", built.display())));
                built
            }
        },
    };
    Ok(FOUND.get_or_init(|| program).clone())
}

/// Finds one of the product's own binaries, beside the running one. Tests run from `deps/`, one folder below.
pub fn product_binary(name: &str) -> Result<PathBuf> {
    let own = std::env::current_exe().context("find the running program")?;
    own.ancestors()
        .skip(1)
        .take(2)
        .map(|folder| folder.join(name))
        .find(|program| program.is_file())
        .with_context(|| format!("find {name} beside {}: run cargo build --workspace --bins", own.display()))
}

fn cache() -> Result<PathBuf> {
    variable("ORDERFLOW_CACHE")
        .or_else(|| Some(variable("XDG_CACHE_HOME")?.join("orderflow")))
        .or_else(|| Some(variable("HOME")?.join(".cache/orderflow")))
        .context("find the cache folder: neither ORDERFLOW_CACHE nor XDG_CACHE_HOME nor HOME is set")
}

fn variable(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}

fn newest_postgres() -> Option<PathBuf> {
    std::fs::read_dir("/usr/lib/postgresql")
        .ok()?
        .flatten()
        .filter_map(|entry| Some((entry.file_name().to_str()?.parse::<u32>().ok()?, entry.path().join("bin"))))
        .max()
        .map(|(_, folder)| folder)
}

fn is_helm_4(program: &Path) -> bool {
    let version = Command::new(program).args(["version", "--template", "{{.Version}}"]).output();
    version.is_ok_and(|output| output.stdout.starts_with(b"v4."))
}

fn on_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(name)).find(|program| program.is_file())
}

fn missing(what: &str) -> String {
    format!("{what} is not installed: run scripts/prepare")
}
