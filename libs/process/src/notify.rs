//! Notifications for systemd, if systemd has started the process: it is ready, or it is stopping. Users: every process.
//!
//! Ready means that the process is set up: flags are sound, sockets are open, signals are caught. It does not mean that
//! Postgres or Redis can be reached. The process waits for those, and `/readyz` says whether it makes progress.
//!
//! Source: sd_notify(3), which lists the forms of `NOTIFY_SOCKET`.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use socket2::{SockAddr, Socket, Type};

/// How long systemd may take to accept a notification.
const SEND_WAIT: Duration = Duration::from_secs(2);

/// Notifies systemd that the process is set up. Call it once.
pub fn ready() {
    notify_systemd("READY=1\n");
}

/// Notifies systemd that the process was told to stop and finishes the work in hand.
pub(crate) fn stopping() {
    notify_systemd("STOPPING=1\n");
}

fn notify_systemd(state: &str) {
    let Some(address) = std::env::var_os("NOTIFY_SOCKET").filter(|address| !address.is_empty()) else { return };
    if let Err(error) = parse(&address).and_then(|(address, kinds)| send(&address, kinds, state)) {
        tracing::warn!(%error, "systemd cannot be notified");
    }
}

/// Sends over the first kind of socket that this machine supports.
fn send(address: &SockAddr, kinds: &[Type], state: &str) -> io::Result<()> {
    let mut sent = Err(io::ErrorKind::Unsupported.into());
    for kind in kinds {
        sent = Socket::new(address.domain(), *kind, None).and_then(|socket| {
            socket.set_write_timeout(Some(SEND_WAIT))?;
            socket.connect(address)?;
            socket.send(state.as_bytes()).map(drop)
        });
        if sent.is_ok() {
            break;
        }
    }
    sent
}

/// The address, and the kinds of sockets to try: a path (`/run/systemd/notify`), an abstract name (`@name`), or the address
/// of a virtual machine's host (`vsock:2:1234`).
fn parse(text: &OsStr) -> io::Result<(SockAddr, &'static [Type])> {
    match text.as_bytes() {
        [b'/', ..] => Ok((SockAddr::unix(text)?, &[Type::DGRAM])),
        [b'@', name @ ..] => {
            let name = [b"\0", name].concat();
            Ok((SockAddr::unix(OsStr::from_bytes(&name))?, &[Type::DGRAM]))
        }
        _ => text.to_str().and_then(parse_vsock).ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidInput, format!("NOTIFY_SOCKET is {text:?}, which is no address"))
        }),
    }
}

#[cfg(target_os = "linux")]
fn parse_vsock(text: &str) -> Option<(SockAddr, &'static [Type])> {
    let mut parts = text.split(':');
    let kinds: &[Type] = match parts.next()? {
        // systemd prefers them in this order. Not every hypervisor supports each of them.
        "vsock" => &[Type::DGRAM, Type::SEQPACKET, Type::STREAM],
        "vsock-dgram" => &[Type::DGRAM],
        "vsock-seqpacket" => &[Type::SEQPACKET],
        "vsock-stream" => &[Type::STREAM],
        _ => return None,
    };
    let cid = match parts.next()? {
        "hypervisor" => 0,
        "local" => 1,
        "host" => 2,
        number => number.parse().ok()?,
    };
    let port = parts.next()?.parse().ok()?;
    parts.next().is_none().then(|| (SockAddr::vsock(cid, port), kinds))
}

#[cfg(not(target_os = "linux"))]
fn parse_vsock(_: &str) -> Option<(SockAddr, &'static [Type])> {
    None
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn each_form_of_sd_notify_is_an_address() {
        let parsed = |text: &str| parse(OsStr::new(text)).unwrap();
        assert_eq!(parsed("/run/systemd/notify").0.as_pathname(), Some("/run/systemd/notify".as_ref()));
        assert_eq!(parsed("@a/name").0.as_abstract_namespace(), Some(&b"a/name"[..]));
        for (text, address, kinds) in [
            ("vsock:2:1234", (2, 1234), &[Type::DGRAM, Type::SEQPACKET, Type::STREAM][..]),
            ("vsock-stream:host:1", (2, 1), &[Type::STREAM]),
            ("vsock-dgram:local:9", (1, 9), &[Type::DGRAM]),
            ("vsock-seqpacket:hypervisor:4294967295", (0, u32::MAX), &[Type::SEQPACKET]),
        ] {
            let (parsed, parsed_kinds) = parsed(text);
            assert_eq!((parsed.as_vsock_address(), parsed_kinds), (Some(address), kinds), "{text}");
        }
    }

    #[test]
    fn another_text_is_refused_by_name() {
        for text in ["notify", "vsock:2", "vsock:2:x", "vsock:2:1:1", "vsock-pigeon:2:1", "tcp:1:1"] {
            let error = parse(OsStr::new(text)).unwrap_err().to_string();
            assert!(error.contains("NOTIFY_SOCKET") && error.contains(text), "{error}");
        }
    }
}
