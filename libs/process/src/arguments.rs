//! Parsing of flags and environment variables. Users: every `main`.
//!
//! Each binary has one `Config`, derived with clap. A setting is a flag and an environment variable, and its doc comment is
//! the help text.

use std::any::TypeId;
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, ArgMatches, Command, Parser};

use connect::tls::{self, Authorities};

/// The exit status for a setting that is missing or cannot be used. A supervisor does not retry it.
pub const BAD_SETTING: u8 = 2;

/// Parses flags and environment variables. If a value is missing or bad it prints one line that names the value and the fix,
/// and exits with [`BAD_SETTING`]. On `--help` and `--version` it prints the text and exits with status 0. A variable that is
/// empty counts as not set.
///
/// If the settings name a file of authorities, every connection of the process trusts them from then on.
pub fn parse<C: Parser>() -> C {
    #[cfg(feature = "pages")]
    crate::pages::write_if_asked(C::command());
    let args: Vec<OsString> = std::env::args_os().collect();
    let known = Known::new(C::command(), &args);
    if let Some(line) = known.args().find_map(odd_value) {
        refuse(&line);
    }
    let parsed = without_empty(C::command()).try_get_matches_from(args).and_then(|mut matches| {
        trust_authorities(&matches);
        C::from_arg_matches_mut(&mut matches).map_err(|error| error.format(&mut C::command()))
    });
    parsed.unwrap_or_else(|error| match known.complaint(&error) {
        Some(line) => refuse(&line),
        None => error.exit(),
    })
}

fn refuse(line: &str) -> ! {
    eprintln!("{line}");
    std::process::exit(BAD_SETTING.into())
}

fn trust_authorities(matches: &ArgMatches) {
    // An error means that this process has no such flag.
    if let Ok(Some(authorities)) = matches.try_get_one::<Authorities>("tls_ca_file") {
        tls::trust(authorities.clone());
    }
}

/// The command without the variables that are empty.
fn without_empty(command: Command) -> Command {
    let is_empty = |arg: &Arg| arg.get_env().and_then(std::env::var_os).is_some_and(|value| value.is_empty());
    let names: Vec<String> = command.get_subcommands().map(|command| command.get_name().to_owned()).collect();
    let command = command.mut_args(|arg| if is_empty(&arg) { arg.env(None::<&'static str>) } else { arg });
    names.into_iter().fold(command, |command, name| command.mut_subcommand(name, without_empty))
}

/// The complaint about a value that no file and no shell should deliver: with the line end of another system, or with quotes that
/// only a shell would have removed.
fn odd_value(arg: &Arg) -> Option<String> {
    let (name, value) = (name_of(arg), std::env::var_os(arg.get_env()?)?);
    let Some(value) = value.to_str() else {
        let is_path = arg.get_value_parser().type_id() == TypeId::of::<PathBuf>();
        return (!is_path).then(|| format!("bad {name}: it is no UTF-8: give it in UTF-8"));
    };
    let is_quoted =
        value.len() > 1 && ['"', '\''].iter().any(|quote| value.starts_with(*quote) && value.ends_with(*quote));
    let fault = match value {
        value if value.ends_with(['\r', '\n']) => "it ends with a line end",
        value if value != value.trim() => "it begins or ends with a blank",
        _ if is_quoted => "it is in quotes",
        _ => return None,
    };
    Some(format!("bad {name}: {fault}, which belongs to the file or the command that sets it: take that out"))
}

/// The variable of a setting, or else its flag, or else the name of the argument.
fn name_of(arg: &Arg) -> String {
    match (arg.get_env(), arg.get_long()) {
        (Some(variable), _) => variable.to_string_lossy().into_owned(),
        (None, Some(flag)) => format!("--{flag}"),
        (None, None) => arg.get_id().as_str().to_uppercase(),
    }
}

/// How a setting is given: in the environment, as a flag, or as an argument.
fn ways_of(arg: &Arg) -> String {
    match (arg.get_env(), arg.get_long()) {
        (Some(_), Some(flag)) => format!("set it in the environment or pass --{flag}"),
        (None, Some(flag)) => format!("pass --{flag}"),
        _ => "pass it as the first argument".to_owned(),
    }
}

/// The settings of the command that was called: its own, and those of the commands above it.
struct Known(Vec<Command>);

impl Known {
    fn new(command: Command, args: &[OsString]) -> Self {
        let mut commands = vec![command];
        for arg in args.iter().skip(1) {
            let next = commands.last().and_then(|command| command.find_subcommand(arg)).cloned();
            commands.extend(next);
        }
        Self(commands)
    }

    /// The innermost command's come first.
    fn args(&self) -> impl Iterator<Item = &Arg> {
        self.0.iter().rev().flat_map(Command::get_arguments)
    }

    /// The setting that clap names: `--keep <KEEP>` or `<NAME>`.
    fn find(&self, named: &str) -> Option<&Arg> {
        let name = named.split([' ', '=']).next().unwrap_or(named);
        let is_named = |arg: &&Arg| match (name.strip_prefix("--"), arg.get_long()) {
            (Some(flag), Some(long)) => long == flag || arg.get_all_aliases().is_some_and(|all| all.contains(&flag)),
            (None, None) => arg.get_id().as_str().eq_ignore_ascii_case(name.trim_matches(['<', '>', '.'])),
            _ => false,
        };
        self.args().find(is_named)
    }

    /// One line for each of the mistakes that people make when they set up a process: a missing value, a bad one, and two that
    /// exclude each other. `None` for other errors, which clap prints itself.
    fn complaint(&self, error: &clap::Error) -> Option<String> {
        match (error.kind(), error.get(ContextKind::InvalidArg)) {
            (ErrorKind::MissingRequiredArgument, Some(ContextValue::Strings(args))) => {
                let named = args.first()?;
                // A group of which one argument is required: `<--folder <FOLDER>|--smtp-url <SMTP_URL>>`.
                if let Some(group) = named.strip_prefix('<').filter(|group| group.starts_with("--")) {
                    let group: Vec<&Arg> = group.split('|').filter_map(|named| self.find(named)).collect();
                    let names: Vec<String> = group.iter().map(|arg| name_of(arg)).collect();
                    let flags: Vec<&str> = group.iter().filter_map(|arg| arg.get_long()).collect();
                    let (names, flags) = (names.join(" or "), flags.join(" or --"));
                    return Some(format!(
                        "need {names}: set one in the environment or pass --{flags} (--help tells more)"
                    ));
                }
                let arg = self.find(named)?;
                Some(format!("need {}: {} (--help tells more)", name_of(arg), ways_of(arg)))
            }
            (ErrorKind::ValueValidation | ErrorKind::InvalidValue, Some(ContextValue::String(named))) => {
                Some(bad_value(self.find(named)?, error))
            }
            (ErrorKind::ArgumentConflict, Some(ContextValue::String(named))) => {
                let other = match error.get(ContextKind::PriorArg)? {
                    ContextValue::String(other) => other,
                    ContextValue::Strings(others) => others.first()?,
                    _ => return None,
                };
                let (name, other) = (name_of(self.find(named)?), name_of(self.find(other)?));
                Some(format!("bad {name}: {other} is given too, and both exclude each other: take one out"))
            }
            _ => None,
        }
    }
}

fn bad_value(arg: &Arg, error: &clap::Error) -> String {
    let value = match error.get(ContextKind::InvalidValue) {
        // A password is not printed: not of a setting that may hold one, and not of a URL in the wrong place.
        Some(ContextValue::String(value)) if !arg.is_hide_env_values_set() && !value.contains('@') => {
            format!(" {value:?}")
        }
        _ => String::new(),
    };
    let why = std::error::Error::source(error).map(ToString::to_string).unwrap_or_default();
    let why = match (why.as_str(), why.contains("give ")) {
        ("", _) => wanted(arg),
        (why, true) => why.to_owned(),
        (why, false) => format!("{why}; {}", wanted(arg)),
    };
    format!("bad {}{value}: {why} (--help tells more)", name_of(arg))
}

/// The fix for a value that cannot be parsed.
fn wanted(arg: &Arg) -> String {
    let possible: Vec<String> = arg.get_possible_values().iter().map(|value| value.get_name().to_owned()).collect();
    let default = arg.get_default_values().first().map(|value| value.to_string_lossy().into_owned());
    let parsed = arg.get_value_parser().type_id();
    match default {
        _ if !possible.is_empty() => format!("give one of {}", possible.join(", ")),
        Some(default) => format!("give a value such as {default}"),
        None if parsed == TypeId::of::<Duration>() => "give a time such as 30s or 2m".to_owned(),
        None => "give a whole number such as 42".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use connect::PostgresArgs;

    use super::*;

    #[derive(Debug, Parser)]
    struct Config {
        /// The name.
        #[arg(value_name = "NAME")]
        name: String,
        #[command(flatten)]
        postgres: PostgresArgs,
        /// A setting that no environment has.
        #[arg(long)]
        home_url: String,
        #[command(flatten)]
        fault: common::fault::FaultArgs,
    }

    const COMPLETE: [&str; 6] = ["consumer", "c", "--home-url", "x", "--database-url", "postgres://localhost/x"];

    fn complain<C: Parser + std::fmt::Debug>(args: &[&str]) -> String {
        let error = C::try_parse_from(args).unwrap_err();
        Known::new(C::command(), &args.iter().map(OsString::from).collect::<Vec<_>>()).complaint(&error).unwrap()
    }

    fn complaint_about(args: &[&str]) -> String {
        complain::<Config>(args)
    }

    #[test]
    fn a_missing_value_is_named_with_the_fix() {
        assert_eq!(
            complaint_about(&["consumer", "c", "--database-url", "postgres://localhost/x"]),
            "need --home-url: pass --home-url (--help tells more)"
        );
        assert_eq!(
            complaint_about(&["consumer", "--home-url", "x", "--database-url", "postgres://localhost/x"]),
            "need NAME: pass it as the first argument (--help tells more)"
        );
    }

    #[derive(Debug, Parser)]
    #[command(group(clap::ArgGroup::new("sink").required(true)))]
    struct Sink {
        /// A folder.
        #[arg(long, env = "SINK_DIR", group = "sink")]
        folder: Option<String>,
        /// A mail server.
        #[arg(long, env = "SINK_SMTP_URL", group = "sink")]
        smtp_url: Option<String>,
    }

    #[test]
    fn of_a_group_each_value_is_named_by_its_variable() {
        assert_eq!(
            complain::<Sink>(&["receipts"]),
            "need SINK_DIR or SINK_SMTP_URL: set one in the environment or pass --folder or --smtp-url (--help tells more)"
        );
        assert_eq!(
            complain::<Sink>(&["receipts", "--folder", "a", "--smtp-url", "b"]),
            "bad SINK_DIR: SINK_SMTP_URL is given too, and both exclude each other: take one out"
        );
    }

    #[derive(Debug, Parser)]
    enum Tool {
        /// Begins.
        Up {
            /// The folder.
            #[arg(long, env = "UP_PORT", default_value_t = 5005)]
            port: u16,
        },
        /// Ends.
        Down {
            /// The folder.
            #[arg(long, default_value_t = 1)]
            port: u16,
        },
    }

    #[test]
    fn a_setting_of_a_subcommand_has_the_name_that_it_has_there() {
        let line = complain::<Tool>(&["tool", "up", "--port", "x"]);
        assert_eq!(
            line,
            "bad UP_PORT \"x\": invalid digit found in string; give a value such as 5005 (--help tells more)"
        );
        assert!(complain::<Tool>(&["tool", "down", "--port", "x"]).starts_with("bad --port \"x\": "));
    }

    #[test]
    fn a_bad_value_is_named_with_what_is_wanted() {
        assert_eq!(
            complaint_about(&[&COMPLETE[..], &["--fault-rate", "7"]].concat()),
            "bad FAULT_RATE \"7\": give a probability between 0 and 1, for example 0.10 (--help tells more)"
        );
        assert_eq!(
            complaint_about(&[&COMPLETE[..], &["--fault-seed", "x"]].concat()),
            "bad FAULT_SEED \"x\": invalid digit found in string; give a whole number such as 42 (--help tells more)"
        );
    }

    #[test]
    fn a_bad_url_is_not_printed() {
        let line =
            complaint_about(&["consumer", "c", "--home-url", "x", "--database-url", "postgres://u:secret@h:port/x"]);
        assert!(line.starts_with("bad DATABASE_URL: ") && !line.contains("secret"), "{line}");
    }

    #[test]
    fn a_password_is_not_logged() {
        let args = ["consumer", "c", "--home-url", "x", "--database-url", "postgres://u:secret@h/x"];
        assert!(!format!("{:?}", Config::try_parse_from(args).unwrap()).contains("secret"));
    }
}
