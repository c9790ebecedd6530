//! TLS to Postgres, Redis, the payment processor, the mail server and the collector of spans. Users: postgres in this crate,
//! `libs/stream`, `libs/traces`, `payments`, `receipts`, and `libs/process`, which parses the setting.
//!
//! `sslmode=require` in `DATABASE_URL` and `rediss://` in `REDIS_URL` ask for TLS. Then the server must show a certificate
//! for the name in the URL, signed by an authority that the machine trusts or that is in `TLS_CA_FILE`.
//!
//! A process trusts the same authorities on every connection. They are set once, when the settings are parsed, and kept
//! here, because a server's address is passed as `tokio_postgres::Config` or `redis::Client`, and neither has a place for
//! them.

use std::sync::{Arc, OnceLock};

use anyhow::{Context, Result, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use clap::Args;
use redis::{Client, ConnectionAddr, TlsCertificates};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use tokio_postgres_rustls::MakeRustlsConnect;
use tokio_rustls::TlsConnector;

/// The authorities that are trusted beside the system's.
#[derive(Clone, Debug, Args)]
pub struct TlsArgs {
    /// A PEM file with certificates of authorities to trust beside the system's, for every TLS connection
    #[arg(long, env = "TLS_CA_FILE", value_name = "FILE", value_parser = read_authorities)]
    pub tls_ca_file: Option<Authorities>,
}

/// The certificates of a PEM file, at least one; no certificates if the file's name is empty.
#[derive(Clone, Debug, Default)]
pub struct Authorities(Vec<CertificateDer<'static>>);

/// The authorities of `TLS_CA_FILE`. If it is not set, only the system's authorities are trusted.
static OWN: OnceLock<Authorities> = OnceLock::new();

/// Built for the first TLS connection, because reading the system's certificates takes some milliseconds.
static TRUST: OnceLock<Trust> = OnceLock::new();

/// All trusted authorities, in the form that each client needs.
struct Trust {
    postgres: MakeRustlsConnect,
    config: ClientConfig,
    pem: Vec<u8>,
}

/// Trusts these authorities from now on. Call it before anything connects; a second call changes nothing.
pub fn trust(authorities: Authorities) {
    let _ = OWN.set(authorities);
}

/// The TLS settings for a connection to Postgres.
///
/// # Errors
/// This machine trusts no authority at all.
pub fn for_postgres() -> Result<MakeRustlsConnect> {
    Ok(trusted()?.postgres.clone())
}

/// A connector that encrypts an open socket.
///
/// # Errors
/// This machine trusts no authority at all.
pub fn connector() -> Result<TlsConnector> {
    Ok(TlsConnector::from(Arc::new(client_config()?)))
}

/// The TLS settings for any other connection.
///
/// # Errors
/// This machine trusts no authority at all.
pub fn client_config() -> Result<ClientConfig> {
    Ok(trusted()?.config.clone())
}

/// The trusted authorities as PEM, for a library with TLS settings of its own.
///
/// # Errors
/// This machine trusts no authority at all.
pub fn authorities_pem() -> Result<&'static [u8]> {
    Ok(&trusted()?.pem)
}

/// The same client. If it uses TLS, it trusts the same authorities as the rest of the process.
///
/// # Errors
/// This machine trusts no authority at all.
pub fn for_redis(client: &Client) -> Result<Client> {
    let info = client.get_connection_info();
    if !matches!(info.addr(), ConnectionAddr::TcpTls { .. }) {
        return Ok(client.clone());
    }
    let certificates = TlsCertificates { client_tls: None, root_cert: Some(trusted()?.pem.clone()) };
    Client::build_with_tls(info.clone(), certificates).context("preparing TLS to Redis")
}

/// The same error. An error about a server's certificate gets advice.
pub fn explain(error: anyhow::Error) -> anyhow::Error {
    // Both clients keep the text. Each wraps the type behind it in its own way.
    let text = format!("{error:#}");
    let Some((_, why)) = text.split_once("invalid peer certificate: ") else { return error };
    if why.contains("not valid for name") {
        error.context("the server's certificate is for another name: use its name in the URL")
    } else if why.contains("expired") || why.contains("Expired") {
        error.context("the server's certificate has expired: renew it")
    } else {
        error.context(
            "the server's certificate does not verify: set TLS_CA_FILE to the certificate (PEM) of the authority that \
             signed it",
        )
    }
}

fn trusted() -> Result<&'static Trust> {
    if TRUST.get().is_none() {
        let own = OWN.get().cloned().unwrap_or_default();
        let _ = TRUST.set(Trust::new(&own)?);
    }
    TRUST.get().context("no authority is trusted")
}

impl Trust {
    fn new(own: &Authorities) -> Result<Self> {
        // Unreadable certificates are left out. The others work without them.
        let system = rustls_native_certs::load_native_certs();
        let (mut roots, mut pem) = (RootCertStore::empty(), Vec::new());
        for certificate in own.0.iter().chain(&system.certs) {
            if roots.add(certificate.clone()).is_ok() {
                let lines = format!(
                    "-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n",
                    STANDARD.encode(certificate)
                );
                pem.extend_from_slice(lines.as_bytes());
            }
        }
        ensure!(
            !roots.is_empty(),
            "TLS is asked for, and this machine knows no authority: set TLS_CA_FILE, or install ca-certificates"
        );
        let provider = rustls::crypto::ring::default_provider();
        // The redis crate builds its own configuration, with the provider that the process has installed.
        let _ = provider.clone().install_default();
        let config = ClientConfig::builder_with_provider(Arc::new(provider))
            .with_safe_default_protocol_versions()
            .context("preparing TLS")?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self { postgres: MakeRustlsConnect::new(config.clone()), config, pem })
    }
}

fn read_authorities(path: &str) -> Result<Authorities, String> {
    const WANTED: &str = "give a PEM file with your authority's certificate";
    if path.is_empty() {
        return Ok(Authorities::default());
    }
    let pem = std::fs::read(path).map_err(|error| format!("{error}; {WANTED}"))?;
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<_, _>>()
        .map_err(|error| format!("it is damaged ({error}); {WANTED}"))?;
    if certificates.is_empty() {
        return Err(format!("it holds no certificate; {WANTED}"));
    }
    for certificate in &certificates {
        let added = RootCertStore::empty().add(certificate.clone());
        added.map_err(|error| format!("one of its certificates is damaged ({error}); {WANTED}"))?;
    }
    Ok(Authorities(certificates))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_without_certificates_is_refused_with_what_is_wanted() {
        let folder = std::env::temp_dir().join(format!("rrl-tls-{:016x}", rand::random::<u64>()));
        std::fs::create_dir(&folder).unwrap();
        let bad = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        for (name, text, complaint) in [
            ("empty.pem", "", "it holds no certificate; give a PEM file"),
            ("words.pem", "hello", "it holds no certificate; give a PEM file"),
            ("bad.pem", bad, "one of its certificates is damaged"),
            ("cut.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n", "it is damaged"),
        ] {
            let path = folder.join(name);
            std::fs::write(&path, text).unwrap();
            let error = read_authorities(path.to_str().unwrap()).unwrap_err();
            assert!(error.starts_with(complaint) && error.ends_with("certificate"), "{name}: {error}");
        }
        let error = read_authorities(folder.join("missing.pem").to_str().unwrap()).unwrap_err();
        assert!(error.starts_with("No such file"), "{error}");
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn an_empty_name_means_no_file() {
        assert!(read_authorities("").unwrap().0.is_empty());
    }

    #[test]
    fn only_an_error_about_a_certificate_gets_advice() {
        let advice = |text: &'static str| format!("{:#}", explain(anyhow::anyhow!(text)));
        assert!(advice("invalid peer certificate: UnknownIssuer").contains("set TLS_CA_FILE"));
        let name = "invalid peer certificate: certificate not valid for name \"a\"; certificate is only valid for b";
        assert!(advice(name).starts_with("the server's certificate is for another name"));
        assert_eq!(advice("connection refused"), "connection refused");
    }
}
