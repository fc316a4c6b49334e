//! Renders the page of settings from the programs' clap commands.

use std::fmt::Write;

use clap::{Arg, ArgAction, Command};

use crate::{
    head,
    table::{Table, code, none, prose},
};

/// Returns the error for the value of a flag, given the names of the subcommands before it, or `None` if the program accepts
/// the value.
pub type Refusal = Box<dyn Fn(&[String], &str, &str) -> Option<String>>;

/// A program, and how to find out what its settings allow.
pub struct Program {
    pub command: Command,
    pub refusal: Refusal,
}

/// A variable that a program reads past clap.
pub struct Variable {
    pub name: String,
    /// Says whether `NAME_FILE` may name a file with the value.
    pub has_file: bool,
    pub programs: &'static [&'static str],
    pub meaning: String,
}

/// Returns the whole page. The AWS SDK reads the variables `aws`, and traces read `opentelemetry`.
pub fn page(programs: &[Program], variables: &[Variable], aws: &[String], opentelemetry: &[String]) -> String {
    let mut text = head(
        "Settings",
        "For anyone who configures a program or reads the environment of a pod. The operator sets these variables in the pods \
         that it creates; set them yourself only where you [run the programs by hand](../how-to/run-by-hand.md).",
    );
    text.push_str(
        "\nEach setting is an environment variable or a flag; the flag wins. A program refuses a value with white space around \
         it, a control character or another invisible character, and names the setting. Secrets have \
         [variables only](#secrets-and-variables-without-a-flag).\n",
    );
    for program in programs {
        section(&mut text, program, &program.command, &[]);
    }
    outside(&mut text, variables, aws, opentelemetry);
    text
}

/// Writes the settings of a command by help heading, then those of its subcommands.
fn section(text: &mut String, program: &Program, command: &Command, subcommands: &[String]) {
    let mut name = program.command.get_name().to_owned();
    for subcommand in subcommands {
        let _ = write!(name, " {subcommand}");
    }
    let level = if subcommands.is_empty() { "##" } else { "###" };
    let _ = write!(text, "\n{level} {name}\n\n{}", about(command));

    let arguments: Vec<&Arg> = command.get_arguments().filter(|argument| !is_builtin(argument)).collect();
    let mut headings: Vec<&str> = Vec::new();
    for heading in arguments.iter().map(|argument| heading_of(argument)) {
        if !headings.contains(&heading) {
            headings.push(heading);
        }
    }
    for heading in headings {
        if arguments.iter().any(|argument| heading_of(argument) != heading) || heading != OPTIONS {
            let _ = write!(text, "\n#{level} {name}: {heading}\n");
        }
        let rows = arguments.iter().filter(|argument| heading_of(argument) == heading).map(|argument| {
            let variable = argument.get_env().map_or_else(none, |variable| code(&variable.to_string_lossy()));
            let meaning = meaning(argument, allowed(program, argument, subcommands));
            [variable, flag_or_place(argument), default(argument), meaning]
        });
        let table = Table::new(["variable", "flag", "default", "meaning"]).rows(rows).render();
        let _ = write!(text, "\n{table}");
    }
    for subcommand in command.get_subcommands().filter(|subcommand| subcommand.get_name() != "help") {
        let subcommands = [subcommands, &[subcommand.get_name().to_owned()]].concat();
        section(text, program, subcommand, &subcommands);
    }
}

/// Stands for the heading of arguments without one.
const OPTIONS: &str = "Options";

fn heading_of(argument: &Arg) -> &str {
    argument.get_help_heading().unwrap_or(OPTIONS)
}

fn is_builtin(argument: &Arg) -> bool {
    ["help", "version"].contains(&argument.get_id().as_str())
}

/// Returns the paragraphs that say what a command does, as sentences.
fn about(command: &Command) -> String {
    let about = command.get_long_about().or(command.get_about()).map(ToString::to_string).unwrap_or_default();
    let paragraphs = about.split("\n\n").map(prose).filter(|paragraph| !paragraph.is_empty());
    paragraphs
        .map(|paragraph| if paragraph.ends_with('.') { paragraph } else { paragraph + "." } + "\n")
        .collect::<Vec<_>>()
        .join("\n")
}

fn flag_or_place(argument: &Arg) -> String {
    match argument.get_long() {
        Some(flag) => code(&format!("--{flag}")),
        None => code(&format!("<{}>", argument.get_id().as_str().to_uppercase())),
    }
}

fn default(argument: &Arg) -> String {
    let defaults: Vec<String> =
        argument.get_default_values().iter().map(|value| code(&value.to_string_lossy())).collect();
    match argument.get_action() {
        ArgAction::SetTrue => code(&"false"),
        _ if argument.is_required_set() => "required".to_owned(),
        _ if defaults.is_empty() => none(),
        _ => defaults.join(", "),
    }
}

fn meaning(argument: &Arg, allowed: Option<String>) -> String {
    let help = argument.get_long_help().or(argument.get_help()).map(ToString::to_string).unwrap_or_default();
    let help = prose(&help);
    let Some(allowed) = allowed else { return help };
    let stop = if help.ends_with(['.', '…']) { "" } else { "." };
    format!("{help}{stop} Allowed: {allowed}")
}

/// Returns the values of an argument that has a list of them, or the range of a number, which the program names when it
/// refuses another one.
fn allowed(program: &Program, argument: &Arg, subcommands: &[String]) -> Option<String> {
    if matches!(argument.get_action(), ArgAction::SetTrue) {
        return None;
    }
    let values = argument.get_possible_values();
    if !values.is_empty() {
        return Some(values.iter().map(|value| code(&value.get_name())).collect::<Vec<_>>().join(", "));
    }
    let flag = argument.get_long()?;
    let range = |value: u64| {
        let refusal = (program.refusal)(subcommands, &format!("--{flag}"), &value.to_string());
        refusal.as_deref().and_then(range_in)
    };
    // No setting may be as large as this; those that are no numbers accept it as a text or refuse it with another error. Where
    // clap knows the range of the type alone, the program may refuse the ends of that range.
    let mut found = range(i64::MAX as u64)?;
    let is_within = |inner: &(u64, u64), outer: (u64, u64)| *inner != outer && inner.0 >= outer.0 && inner.1 <= outer.1;
    if let Some(narrower) = [found.1, found.0].into_iter().filter_map(range).find(|inner| is_within(inner, found)) {
        found = narrower;
    }
    Some(match found {
        (least, most) if most >= u32::MAX.into() => format!("at least {least}"),
        (least, most) => format!("{least} to {most}"),
    })
}

/// Finds the range in an error: `is not in 1..=64` by clap, `must be from 1 to 16` by a program.
fn range_in(error: &str) -> Option<(u64, u64)> {
    let number = |text: &str| {
        let digits: String = text.chars().take_while(char::is_ascii_digit).collect();
        digits.parse::<u64>().ok()
    };
    let (_, rest) = error.split_once(" is not in ").or_else(|| error.split_once(" must be from "))?;
    let (_, most) = rest.split_once("..=").or_else(|| rest.split_once(" to "))?;
    Some((number(rest)?, number(most)?))
}

fn outside(text: &mut String, variables: &[Variable], aws: &[String], opentelemetry: &[String]) {
    text.push_str(
        "\n## Secrets and variables without a flag\n\nEverybody on a machine can read a command line, so secrets have no flag. \
         Where the table says so, `NAME_FILE` may name a file with the value instead; set one of the two, not both. A newline at \
         the end of the file is removed.\n\n",
    );
    let rows = variables.iter().map(|Variable { name, has_file, programs, meaning }| {
        let file = if *has_file { code(&format!("{name}_FILE")) } else { none() };
        [code(name), file, programs.join(", "), prose(meaning)]
    });
    text.push_str(&Table::new(["variable", "or a file", "programs", "meaning"]).rows(rows).render());
    let aws: Vec<String> = aws.iter().map(code).collect();
    let _ = write!(
        text,
        "\nProducer, provision and operator use the AWS SDK. Without access keys it looks for credentials in its default chain \
         and reads these variables: {}.\n",
        aws.join(", ")
    );
    let opentelemetry: Vec<String> = opentelemetry.iter().map(code).collect();
    let _ = write!(
        text,
        "\nProducer and consumer send [traces](../how-to/observe.md#traces) if `OTEL_EXPORTER_OTLP_ENDPOINT` is set. These variables \
         mean what the OpenTelemetry SDK's specification says, but a value that cannot be read ends the program: {}.\n",
        opentelemetry.join(", ")
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_read_from_an_error() {
        assert_eq!(range_in("error: 9 is not in 1..=64\n"), Some((1, 64)));
        assert_eq!(range_in("SHARD_WRITERS: must be from 1 to 16"), Some((1, 16)));
        assert_eq!(range_in("error: 9 is no address"), None);
    }

    #[test]
    fn a_setting_is_shown_under_its_heading_with_its_default_and_range() {
        let command = Command::new("program").about("Does it").args([
            Arg::new("port")
                .long("port")
                .env("PORT_OF_A_TEST")
                .default_value("80")
                .help_heading("Addresses")
                .help("A | B"),
            Arg::new("check").long("check").action(ArgAction::SetTrue),
        ]);
        // By clap, and then by the program.
        let refusal = |_: &[String], _: &str, value: &str| match value {
            "0" => Some("PORT: must be from 1 to 65535".to_owned()),
            "1" | "65535" => None,
            value => Some(format!("{value} is not in 0..=65535")),
        };
        let program = Program { command, refusal: Box::new(refusal) };
        let page = page(&[program], &[], &[], &[]);
        for part in [
            "\n## program\n\nDoes it.\n",
            "\n### program: Addresses\n",
            "\n| `PORT_OF_A_TEST` | `--port` | `80` | A \\| B. Allowed: 1 to 65535 |\n",
            "\n### program: Options\n",
            "\n| – | `--check` | `false` |  |\n",
        ] {
            assert!(page.contains(part), "{part:?} is not in\n{page}");
        }
    }
}
