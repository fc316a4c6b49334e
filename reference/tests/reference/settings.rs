//! The programs' commands and what they read past clap.

use std::collections::BTreeSet;

use clap::{Command, CommandFactory, FromArgMatches};
use orderflow_core::ShardMap;
use orderflow_reference::settings::{self, Program, Variable};
use orderflow_service::postgres;
use syn::{Expr, ExprCall, visit::Visit};

use crate::common;

pub fn page() -> String {
    let programs = [
        program(|cli: &orderflow_producer::Cli| cli.settings.check().map_err(|error| error.to_string())),
        program(|_: &orderflow_consumer::Cli| Ok(())),
        program(|_: &orderflow_provision::Settings| Ok(())),
        program(|_: &orderflow_operator::Settings| Ok(())),
    ];
    let read_by = |library: &str| common::strings("service/src/settings.rs", &format!("READ_BY_{library}"));
    settings::page(&programs, &variables(), &read_by("AWS_SDK"), &read_by("OPENTELEMETRY"))
}

fn program<T: CommandFactory + FromArgMatches + 'static>(check: fn(&T) -> Result<(), String>) -> Program {
    let refusal = move |subcommands: &[String], flag: &str, value: &str| {
        let command = without_environment(T::command());
        let words = [command.get_name()].into_iter().chain(subcommands.iter().map(String::as_str));
        let words: Vec<String> = words.chain([flag, value]).map(str::to_owned).collect();
        let settings = command.try_get_matches_from(words).and_then(|matches| T::from_arg_matches(&matches));
        match settings {
            Ok(settings) => check(&settings).err(),
            Err(error) => Some(error.to_string()),
        }
    };
    Program { command: T::command(), refusal: Box::new(refusal) }
}

/// Returns the command without what the environment of the tests sets.
fn without_environment(command: Command) -> Command {
    command.mut_args(|argument| argument.env(None::<&'static str>)).mut_subcommands(without_environment)
}

fn variables() -> Vec<Variable> {
    let map: ShardMap = "shard1=A-Z".parse().expect("a shard map");
    let shard = map.iter().next().expect("the map has a shard");
    let stores: &[&str] = &["producer", "provision"];
    let variable = |name: &str, has_file, programs, meaning: &str| Variable {
        name: name.to_owned(),
        has_file,
        programs,
        meaning: meaning.to_owned(),
    };
    vec![
        variable(
            &postgres::dsn_variable(shard),
            true,
            stores,
            "Required. Database of the first shard in `SHARDS`, as in `postgres://USER:PASSWORD@HOST:PORT/DATABASE?sslmode=verify-full`. \
             The second shard's is `PG_SHARD2_DSN`, and so on.",
        ),
        variable(
            &postgres::ca_variable(shard),
            false,
            stores,
            "PEM file of the authorities that sign the server's certificate. An `sslmode` weaker than `verify-ca` then becomes \
             `verify-full`.",
        ),
        variable(
            "KAFKA_SASL_PASSWORD",
            true,
            &["producer", "consumer", "provision"],
            "Password for `KAFKA_SASL_USERNAME`. Required with `KAFKA_SASL_MECHANISM`.",
        ),
        variable(
            "AWS_ACCESS_KEY_ID",
            true,
            stores,
            "Access key for S3. Without it, the AWS SDK's default chain applies.",
        ),
        variable("AWS_SECRET_ACCESS_KEY", true, stores, "Secret of the access key. Required with `AWS_ACCESS_KEY_ID`."),
        variable("AWS_SESSION_TOKEN", true, stores, "Session token of temporary credentials."),
        variable(
            "KUBECONFIG",
            false,
            &["operator"],
            "Kubeconfig to use outside of a cluster; absent: `~/.kube/config`.",
        ),
    ]
}

/// Collects the names that are read as secrets, and counts the places that read the environment.
#[derive(Default)]
struct Reads {
    secrets: BTreeSet<String>,
    environment: usize,
}

impl<'ast> Visit<'ast> for Reads {
    fn visit_item_mod(&mut self, module: &'ast syn::ItemMod) {
        if !common::is_test(&module.attrs) {
            syn::visit::visit_item_mod(self, module);
        }
    }

    fn visit_expr_call(&mut self, call: &'ast ExprCall) {
        if let Expr::Path(function) = &*call.func {
            let path: Vec<String> = function.path.segments.iter().map(|segment| segment.ident.to_string()).collect();
            let path: Vec<&str> = path.iter().map(String::as_str).collect();
            match path[..] {
                ["secret", "read"] => match &call.args[0] {
                    Expr::Path(constant) => {
                        self.secrets.insert(constant.path.segments[0].ident.to_string());
                    }
                    name => self.secrets.extend(common::string(name)),
                },
                [.., "env", "var" | "var_os" | "vars_os" | "vars"] => self.environment += 1,
                _ => {}
            }
        }
        syn::visit::visit_expr_call(self, call);
    }
}

#[test]
fn every_variable_that_is_read_past_clap_is_listed() {
    let mut reads = Reads::default();
    let mut readers = Vec::new();
    for module in common::PRODUCT.into_iter().flat_map(common::modules) {
        let before = reads.environment;
        reads.visit_file(&module.syntax);
        if reads.environment > before {
            readers.push(module.file);
        }
    }
    let listed: BTreeSet<String> = variables()
        .into_iter()
        .map(|variable| variable.name)
        .filter(|name| !name.starts_with("PG_") && name != "KUBECONFIG")
        .collect();
    // The constant PASSWORD of `kafka.rs`.
    let mut found = reads.secrets;
    if found.remove("PASSWORD") {
        found.insert("KAFKA_SASL_PASSWORD".to_owned());
    }
    assert_eq!(found, listed, "list the variable in {}", file!());
    // The DSNs, the secrets, the check of all variables, and those of OpenTelemetry, which have a list.
    let known = [
        "service/src/secret.rs",
        "service/src/settings.rs",
        "service/src/postgres.rs",
        "service/src/traces.rs",
        "service/src/traces/export.rs",
        "service/src/traces/messaging.rs",
    ];
    for reader in readers {
        assert!(known.contains(&reader.as_str()), "{reader} reads the environment: list its variables in {}", file!());
    }
}
