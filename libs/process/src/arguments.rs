//! Parsing of flags and environment variables. Users: every `main`.
//!
//! Each binary has one `Config`, derived with clap. A setting is a flag and an environment variable, and its doc comment is
//! the help text.

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{ArgMatches, Parser};

use connect::tls::{self, Authorities};

/// Parses flags and environment variables. If a value is missing or bad it prints one line that names the value and the fix,
/// and exits with status 2. On `--help` and `--version` it prints the text and exits with status 0.
///
/// If the settings name a file of authorities, every connection of the process trusts them from then on.
pub fn parse<C: Parser>() -> C {
    #[cfg(feature = "pages")]
    crate::pages::write_if_asked(C::command());
    let parsed = C::command().try_get_matches().and_then(|mut matches| {
        trust_authorities(&matches);
        C::from_arg_matches_mut(&mut matches).map_err(|error| error.format(&mut C::command()))
    });
    parsed.unwrap_or_else(|error| match complaint(&error) {
        Some(line) => {
            eprintln!("{line}");
            std::process::exit(2);
        }
        None => error.exit(),
    })
}

fn trust_authorities(matches: &ArgMatches) {
    // An error means that this process has no such flag.
    if let Ok(Some(authorities)) = matches.try_get_one::<Authorities>("tls_ca_file") {
        tls::trust(authorities.clone());
    }
}

/// One line for each of the two mistakes that people make when they set up a process: a missing value and a bad one. `None`
/// for other errors, which clap prints itself.
fn complaint(error: &clap::Error) -> Option<String> {
    let name = |arg: &str| match arg.strip_prefix("--") {
        Some(flag) => flag.split([' ', '=']).next().unwrap_or(flag).replace('-', "_").to_uppercase(),
        None => arg.trim_matches(['<', '>']).to_owned(),
    };
    match (error.kind(), error.get(ContextKind::InvalidArg)) {
        (ErrorKind::MissingRequiredArgument, Some(ContextValue::Strings(args))) => {
            let arg = args.first()?;
            // A group of which one argument is required: `<--folder <FOLDER>|--smtp-url <SMTP_URL>>`.
            if let Some(group) = arg.strip_prefix("<--") {
                let flags = group.split("|--").map(|flag| flag.split(' ').next().unwrap_or(flag));
                let flags: Vec<String> = flags.map(|flag| format!("--{flag}")).collect();
                return Some(format!("need one of {}: pass it (--help names its variable)", flags.join(", ")));
            }
            let fix = if arg.starts_with("--") {
                format!("set it in the environment or pass {arg}")
            } else {
                "pass it as the first argument".to_owned()
            };
            Some(format!("need {}: {fix} (--help tells more)", name(arg)))
        }
        (ErrorKind::ValueValidation | ErrorKind::InvalidValue, Some(ContextValue::String(arg))) => {
            let value = match error.get(ContextKind::InvalidValue) {
                // A URL may hold a password: print the variable's name, not its value.
                Some(ContextValue::String(value)) if !arg.to_lowercase().contains("url") => format!(" {value:?}"),
                _ => String::new(),
            };
            let why = std::error::Error::source(error).map_or_else(String::new, |source| format!(": {source}"));
            Some(format!("bad {}{value}{why} (--help tells more)", name(arg)))
        }
        _ => None,
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

    fn complaint_about(args: &[&str]) -> String {
        complaint(&Config::try_parse_from(args).unwrap_err()).unwrap()
    }

    #[test]
    fn a_missing_value_is_named_with_the_fix() {
        assert_eq!(
            complaint_about(&["consumer", "c", "--database-url", "postgres://localhost/x"]),
            "need HOME_URL: set it in the environment or pass --home-url <HOME_URL> (--help tells more)"
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
        #[arg(long, group = "sink")]
        folder: Option<String>,
        /// A mail server.
        #[arg(long, group = "sink")]
        smtp_url: Option<String>,
    }

    #[test]
    fn of_a_group_each_value_is_named() {
        let error = Sink::try_parse_from(["receipts"]).unwrap_err();
        assert_eq!(complaint(&error).unwrap(), "need one of --folder, --smtp-url: pass it (--help names its variable)");
    }

    #[test]
    fn a_bad_value_is_named_with_what_is_wanted() {
        assert_eq!(
            complaint_about(&[&COMPLETE[..], &["--fault-rate", "7"]].concat()),
            "bad FAULT_RATE \"7\": give a probability between 0 and 1, for example 0.10 (--help tells more)"
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
