//! The hosts of a URL, one after another.
//!
//! tokio-postgres tries the hosts itself, and bounds only the TCP connection to each. A server that is stopped, or whose disk
//! hangs, accepts that and answers nothing, so the next host would never be tried.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::time::timeout;
use tokio_postgres::config::Host;
use tokio_postgres::tls::MakeTlsConnect;
use tokio_postgres::{Client, Config, Connection, Error, Socket};

/// How long a host may take until the next one is tried. A handler of the api waits 3 s for a connection in all.
const HOST_WAIT: Duration = Duration::from_millis(1500);

/// The place of the host that took the last connection of this process. It is tried first, so that a host that does not answer
/// is waited for once.
static LAST_TAKEN: AtomicUsize = AtomicUsize::new(0);

/// A connection to the first host that takes it. With `target_session_attrs=read-write` this is a server that is writable.
///
/// # Errors
/// No host takes the connection. It is the error of the last host.
pub(crate) async fn first_writable<T: MakeTlsConnect<Socket> + Clone>(
    config: &Config,
    tls: &T,
) -> Result<(Client, Connection<Socket, T::Stream>), Error> {
    let hosts = one_by_one(config);
    let first = LAST_TAKEN.load(Ordering::Relaxed) % hosts.len();
    let (mut left, mut failure) = (hosts.len(), None);
    for index in (first..hosts.len()).chain(0..first) {
        left -= 1;
        let connecting = hosts[index].connect(tls.clone());
        // The caller bounds the whole, and so the last host.
        let connected = if left == 0 { Ok(connecting.await) } else { timeout(HOST_WAIT, connecting).await };
        match connected {
            Ok(Ok(connected)) => {
                // A standby is mostly a single host, whose place says nothing about the others' hosts.
                if hosts.len() > 1 {
                    LAST_TAKEN.store(index, Ordering::Relaxed);
                }
                return Ok(connected);
            }
            Ok(Err(error)) => failure = Some(error),
            Err(_) => {}
        }
    }
    Err(failure.expect("the last host has connected or failed"))
}

/// The same configuration for each of its hosts alone.
fn one_by_one(config: &Config) -> Vec<Config> {
    let host_count = config.get_hosts().len().max(config.get_hostaddrs().len());
    if host_count < 2 {
        return vec![config.clone()];
    }
    (0..host_count).map(|index| only_host(config, index)).collect()
}

fn only_host(config: &Config, index: usize) -> Config {
    let mut only = Config::new();
    match config.get_hosts().get(index) {
        Some(Host::Unix(folder)) => only.host_path(folder),
        Some(Host::Tcp(name)) => only.host(name),
        None => &mut only,
    };
    // One port stands for all hosts.
    let port = config.get_ports().get(index).or_else(|| config.get_ports().first());
    config.get_hostaddrs().get(index).map(|address| only.hostaddr(*address));
    port.map(|port| only.port(*port));
    config.get_user().map(|user| only.user(user));
    config.get_password().map(|password| only.password(password));
    config.get_dbname().map(|name| only.dbname(name));
    config.get_options().map(|options| only.options(options));
    config.get_application_name().map(|name| only.application_name(name));
    config.get_connect_timeout().map(|wait| only.connect_timeout(*wait));
    config.get_tcp_user_timeout().map(|wait| only.tcp_user_timeout(*wait));
    config.get_keepalives_interval().map(|interval| only.keepalives_interval(interval));
    config.get_keepalives_retries().map(|count| only.keepalives_retries(count));
    only.ssl_mode(config.get_ssl_mode())
        .ssl_negotiation(config.get_ssl_negotiation())
        .keepalives(config.get_keepalives())
        .keepalives_idle(config.get_keepalives_idle())
        .target_session_attrs(config.get_target_session_attrs())
        .channel_binding(config.get_channel_binding());
    only
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_host_keeps_all_settings() {
        let url = |hosts: &str| {
            format!(
                "postgres://me:secret@{hosts}/rides?sslmode=require&sslnegotiation=direct&connect_timeout=7&\
                 tcp_user_timeout=8&keepalives=0&keepalives_idle=9&keepalives_interval=10&keepalives_retries=11&\
                 target_session_attrs=read-write&channel_binding=require&application_name=mine&options=-cjit%3Doff"
            )
        };
        let parse = |text: &str| text.parse::<Config>().unwrap();
        let both = parse(&url("one:5001,%2Frun%2Ftwo:5002"));
        assert_eq!(one_by_one(&both), [parse(&url("one:5001")), parse(&url("%2Frun%2Ftwo:5002"))]);
        assert_eq!(one_by_one(&parse("postgres://one,two/rides"))[1], parse("postgres://two/rides"));
        let alone = parse("postgres://one/rides?load_balance_hosts=random");
        assert_eq!(one_by_one(&alone), [alone]);
    }
}
