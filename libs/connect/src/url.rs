//! `DATABASE_URL`, as people and hosting services write it. Users: postgres in this crate, launcher.

use std::error::Error;

use tokio_postgres::Config;
use tokio_postgres::config::Host;

/// The end of each refusal.
const WANTED: &str = "give a URL such as postgres://localhost/rocket-rides-log";

/// The modes of libpq that the parser does not know, each with the mode of the same meaning here: `require` verifies the
/// certificate and the name in it, as `verify-full` does. `allow` would encrypt only if the server insists.
const MODES: [(&str, &str); 3] = [("verify-full", "require"), ("verify-ca", "require"), ("allow", "prefer")];

/// Parameters of libpq that have another place here.
const ELSEWHERE: [(&str, &str); 4] = [
    ("sslrootcert", "set TLS_CA_FILE to the file instead, and take it out of the URL"),
    ("sslcert", "client certificates are not supported: take it out and use a password"),
    ("sslkey", "client certificates are not supported: take it out and use a password"),
    ("passfile", "put the password into the URL, and take it out"),
];

/// The connection that a URL or a list of `keyword=value` describes.
///
/// # Errors
/// The text is neither, names no host, or has a parameter that is unknown. The error never has a part of a password.
pub fn parse_url(text: &str) -> Result<Config, String> {
    let is_url = ["postgres://", "postgresql://"].iter().any(|scheme| text.starts_with(scheme));
    if !is_url && (text.contains("://") || !text.contains('=')) {
        return Err(WANTED.to_owned());
    }
    let config: Config = with_known_mode(text, is_url).parse().map_err(|error| complaint(&error))?;
    if config.get_hosts().is_empty() && config.get_hostaddrs().is_empty() {
        return Err(format!("it names no host: {WANTED}"));
    }
    Ok(config)
}

/// The servers and the database, without user and password: `db1.example.com, db2.example.com, database rides`.
pub fn describe(config: &Config) -> String {
    let host = |host: &Host| match host {
        Host::Tcp(name) => name.clone(),
        Host::Unix(folder) => folder.display().to_string(),
    };
    let hosts = config.get_hosts().iter().map(host).collect::<Vec<_>>().join(", ");
    match config.get_dbname() {
        Some(database) => format!("{hosts}, database {database}"),
        None => hosts,
    }
}

fn with_known_mode(text: &str, is_url: bool) -> String {
    let start = if is_url { text.find('?').unwrap_or(text.len()) } else { 0 };
    let mut parts = text[start..].split("sslmode");
    let mut known = text[..start].to_owned() + parts.next().unwrap_or_default();
    for part in parts {
        known += "sslmode";
        let value = part.trim_start_matches(['=', ' ', '\'']);
        known += &part[..part.len() - value.len()];
        let len = value.find(['&', ' ', '\'']).unwrap_or(value.len());
        let mode = MODES.iter().find(|(mode, _)| *mode == &value[..len]);
        known += mode.map_or(&value[..len], |(_, same)| same);
        known += &value[len..];
    }
    known
}

fn complaint(error: &tokio_postgres::Error) -> String {
    let cause = error.source().map(ToString::to_string).unwrap_or_default();
    // A name or a value that was taken out of the middle of a password is not repeated.
    let name = cause.split('`').nth(1).filter(|name| name.chars().all(|c| c.is_ascii_lowercase() || c == '_'));
    let elsewhere = name.and_then(|name| ELSEWHERE.iter().find(|(parameter, _)| *parameter == name));
    match (name, elsewhere) {
        (Some(name), Some((_, fix))) => format!("it has the parameter {name}: {fix}"),
        (Some(name), None) if cause.starts_with("unknown option") => {
            format!("it has the parameter {name}, which is unknown here: take it out")
        }
        (Some(name), None) => format!("its {name} has a bad value: correct it, or {WANTED}"),
        (None, _) => format!("it cannot be read: encode special characters, as %40 for @; or {WANTED}"),
    }
}

#[cfg(test)]
mod tests {
    use tokio_postgres::config::SslMode;

    use super::*;

    #[test]
    fn every_mode_of_libpq_is_understood() {
        for (mode, known) in [
            ("disable", SslMode::Disable),
            ("allow", SslMode::Prefer),
            ("prefer", SslMode::Prefer),
            ("require", SslMode::Require),
            ("verify-ca", SslMode::Require),
            ("verify-full", SslMode::Require),
        ] {
            for text in [
                format!("postgres://u:p@h/d?sslmode={mode}"),
                format!("postgresql://u:p@h/d?connect_timeout=3&sslmode={mode}&channel_binding=prefer"),
                format!("host=h dbname=d sslmode={mode} user=u"),
                format!("host=h sslmode = '{mode}'"),
            ] {
                assert_eq!(parse_url(&text).unwrap().get_ssl_mode(), known, "{text}");
            }
        }
    }

    #[test]
    fn a_bad_url_is_named_with_the_fix_and_without_its_password() {
        for (text, complaint) in [
            ("", "give a URL such as postgres://"),
            ("localhost", "give a URL such as postgres://"),
            ("mysql://u:secret@h/d?a=b", "give a URL such as postgres://"),
            ("postgres://u:secret@/d", "it names no host"),
            ("postgres://u:secret@h/d?sslmode=verify", "its sslmode has a bad value"),
            ("postgres://u:secret@h/d?sslmode=verify-fully", "its sslmode has a bad value"),
            ("postgres://u:secret@h/d?channel_binding=always", "its channel_binding has a bad value"),
            ("postgres://u:secret@h/d?sslrootcert=/ca.pem", "it has the parameter sslrootcert: set TLS_CA_FILE"),
            (
                "postgres://u:secret@h/d?pgbouncer=true",
                "it has the parameter pgbouncer, which is unknown here: take it out",
            ),
            ("postgres://u:secret@h:port/d", "its port has a bad value"),
            ("postgres://u:secret@h/d?secret@x", "it cannot be read"),
            ("host=h password=secret port=x", "its port has a bad value"),
        ] {
            let told = parse_url(text).unwrap_err();
            assert!(told.starts_with(complaint) && !told.contains("secret"), "{text}: {told}");
        }
    }

    #[test]
    fn a_description_has_no_password() {
        let config = parse_url("postgres://u:secret@h1,h2/rides").unwrap();
        assert_eq!(describe(&config), "h1, h2, database rides");
    }
}
