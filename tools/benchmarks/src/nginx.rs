//! nginx responds with a fixed text and does nothing else: the limit of HTTP on this machine.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tokio::net::TcpStream;

use crate::bench::Bench;
use crate::process::{Running, Spec};
use crate::tools;

/// A response to a ride, of the same length as the api's.
const BODY: &str = r#"{"message":"Payment accepted. Your pilot is on their way! distance=512.3m","ride":{"id":123456,"distance_mm":512345,"created_at":"2026-01-01T12:00:00.123456Z"}}"#;

/// A response to a read of a wallet's balance, of the same length as the api's.
const BALANCE: &str = r#"{
    "timestamp": "2026-01-01T12:00:00.123456Z",
    "balance": 20000.00,
    "version": 20
}"#;

/// How long nginx may take until it listens.
const READY_WAIT: Duration = Duration::from_secs(10);

/// Starts nginx with one worker on `port`, and waits until it listens.
///
/// # Errors
/// nginx is not here, or does not listen in time.
pub(crate) async fn start(bench: &Bench, port: u16) -> Result<Running> {
    let program = tools::nginx()?;
    let folder = bench.folder.join("nginx");
    std::fs::create_dir_all(&folder).context("creating nginx's folder")?;
    let temporary: String =
        ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"].map(|what| format!("{what}_temp_path {what};\n")).concat();
    // One process is both master and worker, so that nothing is left when it ends.
    let config = format!(
        "daemon off; master_process off; worker_processes 1; pid nginx.pid; error_log stderr crit;
         events {{ worker_connections 1024; }}
         http {{
             access_log off; keepalive_requests 1000000000; {temporary}
             server {{
                 listen 127.0.0.1:{port};
                 location /rides {{
                     default_type application/json;
                     add_header location /rides/123456 always;
                     return 201 '{BODY}';
                 }}
                 location /wallet/ {{
                     default_type application/json;
                     return 200 '{BALANCE}';
                 }}
             }}
         }}"
    );
    let path = folder.join("nginx.conf");
    std::fs::write(&path, config).context("writing nginx's configuration")?;
    let (folder, path) = (folder.display().to_string(), path.display().to_string());
    let spec = Spec::of_program("nginx", program, &["-e", "stderr", "-p", &folder, "-c", &path]);
    let mut nginx = Running::start(&spec, &[], &bench.folder)?;
    let deadline = Instant::now() + READY_WAIT;
    while TcpStream::connect(("127.0.0.1", port)).await.is_err() {
        nginx.check()?;
        ensure!(Instant::now() < deadline, "nginx does not listen");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(nginx)
}
