//! Reads secrets from the environment, or from files that it names. They have no flags, because every user of the
//! machine can read a command line.

use std::{env, fs, path::Path};

use secrecy::SecretString;

use crate::plain::check_plain;

/// Settings that hold secrets, which [`parse`](crate::settings::parse) reads after the command line.
pub trait Secrets {
    /// Reads the secrets. The error names the variable and never shows its value.
    fn read_secrets(&mut self) -> Result<(), String> {
        Ok(())
    }
}

/// Reads the variable `name`, or the file that `NAME_FILE` names, without the newline at its end. Returns `None` if
/// both are unset or blank.
pub fn read(name: &str) -> Result<Option<SecretString>, String> {
    read_from(name, |variable| env::var_os(variable).map(|value| value.into_string().map_err(drop)))
}

/// Reads a secret as [`read`] does, from another environment.
pub fn read_from(
    name: &str,
    environment: impl Fn(&str) -> Option<Result<String, ()>>,
) -> Result<Option<SecretString>, String> {
    let variable = |variable: &str| {
        let value = environment(variable).transpose().map_err(|()| format!("{variable}: must be UTF-8"))?;
        Ok::<_, String>(value.filter(|value| !value.trim().is_empty()))
    };
    let of_file = format!("{name}_FILE");
    match (variable(name)?, variable(&of_file)?) {
        (None, None) => Ok(None),
        (Some(_), Some(_)) => Err(format!("{name} and {of_file}: set one of them, not both")),
        (Some(value), None) => {
            check_plain(name, &value, true)?;
            Ok(Some(value.into()))
        }
        (None, Some(path)) => {
            check_plain(&of_file, &path, false)?;
            read_file(&of_file, Path::new(&path)).map(Some)
        }
    }
}

fn read_file(variable: &str, path: &Path) -> Result<SecretString, String> {
    let text = fs::read_to_string(path).map_err(|error| format!("{variable}: read {}: {error}", path.display()))?;
    let value = text.strip_suffix('\n').unwrap_or(&text);
    let value = value.strip_suffix('\r').unwrap_or(value);
    check_plain(variable, value, true)?;
    if value.is_empty() {
        return Err(format!("{variable}: {} is empty", path.display()));
    }
    Ok(value.into())
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret;

    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<Option<String>, String> {
        let environment =
            |wanted: &str| variables.iter().find(|(name, _)| *name == wanted).map(|(_, value)| Ok((*value).to_owned()));
        read_from("PASSWORD", environment).map(|secret| secret.map(|secret| secret.expose_secret().to_owned()))
    }

    fn file(text: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), text).unwrap();
        file
    }

    #[test]
    fn a_secret_is_read_from_the_variable_or_the_named_file() {
        assert_eq!(read(&[]), Ok(None));
        assert_eq!(read(&[("PASSWORD", " ")]), Ok(None));
        assert_eq!(read(&[("PASSWORD", "hunter2")]), Ok(Some("hunter2".to_owned())));
        for text in ["hunter2", "hunter2\n", "hunter2\r\n"] {
            let file = file(text);
            let path = file.path().to_str().unwrap();
            assert_eq!(read(&[("PASSWORD_FILE", path)]), Ok(Some("hunter2".to_owned())), "{text:?}");
        }
    }

    #[test]
    fn a_wrong_secret_is_named_and_not_shown() {
        let file = |text: &str| file(text);
        let (two_lines, empty) = (file("hunter2\nhunter3\n"), file("\n"));
        let path = |file: &tempfile::NamedTempFile| file.path().to_str().unwrap().to_owned();
        for (variables, expected) in [
            (vec![("PASSWORD", "hunter2\n".to_owned())], "PASSWORD: must have no "),
            (vec![("PASSWORD_FILE", path(&two_lines))], "PASSWORD_FILE: must have no "),
            (vec![("PASSWORD_FILE", path(&empty))], "PASSWORD_FILE: /"),
            (vec![("PASSWORD_FILE", "/nowhere/password".to_owned())], "PASSWORD_FILE: read /nowhere/password: "),
            (vec![("PASSWORD", "a".to_owned()), ("PASSWORD_FILE", "b".to_owned())], "PASSWORD and PASSWORD_FILE: "),
        ] {
            let variables: Vec<_> = variables.iter().map(|(name, value)| (*name, value.as_str())).collect();
            let error = read(&variables).unwrap_err();
            assert!(error.starts_with(expected) && !error.contains("hunter"), "{error}");
        }
    }
}
