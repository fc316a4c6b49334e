//! Parses a program's settings with clap and checks every value of the environment and the command line for invisible
//! characters. A newline from an editor or a pasted second line is an error that names the variable. Such a value
//! reaches no library, because libraries may panic on it, truncate it or send it on.

use std::{env, ffi::OsStr, process};

use clap::{ArgMatches, Command, Parser, parser::ValueSource};

use crate::{plain::check_plain, secret::Secrets};

/// The variables that the AWS SDK reads without clap. Any of them may be a secret.
const READ_BY_AWS_SDK: [&str; 17] = [
    "AWS_CONFIG_FILE",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_EC2_METADATA_SERVICE_ENDPOINT",
    "AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE",
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_ENDPOINT_URL_STS",
    "AWS_EXECUTION_ENV",
    "AWS_PROFILE",
    "AWS_ROLE_ARN",
    "AWS_ROLE_SESSION_NAME",
    "AWS_SDK_UA_APP_ID",
    "AWS_SHARED_CREDENTIALS_FILE",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
];

/// The variables of traces, which the OpenTelemetry SDK and [`crate::traces`] read without clap. Headers may be secret.
const READ_BY_OPENTELEMETRY: [&str; 26] = [
    "OTEL_BSP_MAX_EXPORT_BATCH_SIZE",
    "OTEL_BSP_MAX_QUEUE_SIZE",
    "OTEL_BSP_SCHEDULE_DELAY",
    "OTEL_EXPORTER_OTLP_CERTIFICATE",
    "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE",
    "OTEL_EXPORTER_OTLP_CLIENT_KEY",
    "OTEL_EXPORTER_OTLP_COMPRESSION",
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "OTEL_EXPORTER_OTLP_HEADERS",
    "OTEL_EXPORTER_OTLP_PROTOCOL",
    "OTEL_EXPORTER_OTLP_TIMEOUT",
    "OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE",
    "OTEL_EXPORTER_OTLP_TRACES_CLIENT_CERTIFICATE",
    "OTEL_EXPORTER_OTLP_TRACES_CLIENT_KEY",
    "OTEL_EXPORTER_OTLP_TRACES_COMPRESSION",
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    "OTEL_EXPORTER_OTLP_TRACES_HEADERS",
    "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL",
    "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT",
    "OTEL_RESOURCE_ATTRIBUTES",
    "OTEL_SDK_DISABLED",
    "OTEL_SEMCONV_STABILITY_OPT_IN",
    "OTEL_SERVICE_NAME",
    "OTEL_TRACES_EXPORTER",
    "OTEL_TRACES_SAMPLER",
    "OTEL_TRACES_SAMPLER_ARG",
];

/// Returns the settings, or ends the process with exit code 2 and an error that names the wrong setting.
pub fn parse<T: Parser + Secrets>() -> T {
    let refuse = |error: String| -> ! {
        eprintln!("error: {error}");
        process::exit(2)
    };
    let command = T::command();
    let environment: Vec<_> = env::vars_os().collect();
    let environment = environment.iter().map(|(name, value)| (&**name, &**value));
    let matches = command.clone().try_get_matches().unwrap_or_else(|error| {
        // Not for the help. clap's own error would show a wrong number with its newline unescaped.
        if error.use_stderr()
            && let Err(error) = check_environment(&command, &environment)
        {
            refuse(error)
        }
        error.exit()
    });
    let checked = check_matches(&command, &matches).and_then(|()| check_libraries(environment));
    checked.unwrap_or_else(|error| refuse(error));
    let mut settings = T::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    settings.read_secrets().unwrap_or_else(|error| refuse(error));
    settings
}

/// Checks the parsed values, from the environment or the command line.
fn check_matches(command: &Command, matches: &ArgMatches) -> Result<(), String> {
    for argument in command.get_arguments() {
        let id = argument.get_id().as_str();
        let source = matches.try_get_raw(id).ok().flatten().and_then(|_| matches.value_source(id));
        let name = match (source, argument.get_env(), argument.get_long()) {
            (Some(ValueSource::EnvVariable), Some(variable), _) => variable.to_string_lossy().into_owned(),
            (Some(ValueSource::CommandLine), _, Some(flag)) => format!("--{flag}"),
            (Some(ValueSource::CommandLine), _, None) => id.to_owned(),
            _ => continue,
        };
        let mut values = matches.get_raw(id).into_iter().flatten();
        values.try_for_each(|value| check(&name, value, argument.is_hide_env_values_set()))?;
    }
    match matches.subcommand() {
        Some((name, matches)) => {
            command.find_subcommand(name).map_or(Ok(()), |command| check_matches(command, matches))
        }
        None => Ok(()),
    }
}

/// Checks the variables of all arguments, after clap failed to parse them.
fn check_environment<'a>(
    command: &Command,
    environment: &(impl Iterator<Item = (&'a OsStr, &'a OsStr)> + Clone),
) -> Result<(), String> {
    for argument in command.get_arguments() {
        let Some(variable) = argument.get_env() else { continue };
        if let Some((name, value)) = environment.clone().find(|(name, _)| *name == variable) {
            check(&name.to_string_lossy(), value, argument.is_hide_env_values_set())?;
        }
    }
    command.get_subcommands().try_for_each(|command| check_environment(command, environment))
}

fn check_libraries<'a>(mut environment: impl Iterator<Item = (&'a OsStr, &'a OsStr)>) -> Result<(), String> {
    let aws = if cfg!(feature = "s3") { &READ_BY_AWS_SDK[..] } else { &[] };
    let traces = if cfg!(feature = "traces") { &READ_BY_OPENTELEMETRY[..] } else { &[] };
    environment.try_for_each(|(name, value)| match aws.iter().chain(traces).find(|read| name == **read) {
        Some(name) => check(name, value, true),
        None => Ok(()),
    })
}

fn check(name: &str, value: &OsStr, is_secret: bool) -> Result<(), String> {
    let value = value.to_str().ok_or_else(|| format!("{name}: must be UTF-8"))?;
    check_plain(name, value, is_secret)
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Subcommand};

    use super::*;

    #[derive(Parser)]
    struct Program {
        #[arg(long, env = "TOPIC", default_value = "orders")]
        _topic: String,
        #[arg(long, env = "PASSWORD", hide_env_values = true)]
        _password: Option<String>,
        #[command(subcommand)]
        _command: Option<Sub>,
    }

    #[derive(Subcommand)]
    enum Sub {
        Verify {
            #[arg(long, env = "SLICE")]
            _slice: Option<u32>,
        },
    }

    fn of_environment(name: &str, value: &str) -> Result<(), String> {
        check_environment(&Program::command(), &[(OsStr::new(name), OsStr::new(value))].into_iter())
    }

    #[test]
    fn a_variable_with_an_invisible_character_is_named_and_shown_escaped() {
        assert_eq!(of_environment("TOPIC", "orders"), Ok(()));
        assert_eq!(of_environment("ANOTHER", "orders\r"), Ok(()));
        let error = of_environment("TOPIC", "orders\r").unwrap_err();
        assert!(error.starts_with("TOPIC: must have no ") && error.ends_with(r#": "orders\r""#), "{error}");
        assert!(of_environment("SLICE", "5 ").unwrap_err().starts_with("SLICE: "));
        let error = of_environment("TOPIC", "orders\nhunter2").unwrap_err();
        assert!(error.ends_with(r#": "orders\n"…"#), "{error}");
    }

    #[test]
    fn a_secret_is_named_and_not_shown() {
        let error = of_environment("PASSWORD", "hunter2\n").unwrap_err();
        assert!(error.starts_with("PASSWORD: ") && error.contains(r"'\n' as character 8"), "{error}");
        assert!(!error.contains("hunter2"), "{error}");
        #[cfg(feature = "s3")]
        {
            let read = [(OsStr::new("AWS_ROLE_ARN"), OsStr::new("arn:hunter2\n"))];
            let error = check_libraries(read.into_iter()).unwrap_err();
            assert!(error.starts_with("AWS_ROLE_ARN: ") && !error.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn the_command_line_is_checked_as_well() {
        let check = |arguments: &[&str]| {
            let command = Program::command().mut_arg("_topic", |topic| topic.env(None::<&str>));
            let matches = command.clone().get_matches_from([&["program"], arguments].concat());
            check_matches(&command, &matches)
        };
        assert_eq!(check(&["--topic", "orders", "verify", "--slice", "3"]), Ok(()));
        assert!(check(&["--topic", " orders"]).unwrap_err().starts_with("--topic: "));
    }
}
