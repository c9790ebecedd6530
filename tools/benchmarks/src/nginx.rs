//! nginx responds with 201 and does nothing else: the limit of HTTP on this machine.

use anyhow::{Context, Result};

use crate::bench::Bench;
use crate::process::{Running, Spec};
use crate::tools;

/// A response of the same length as the api's.
const BODY: &str = r#"{"message":"Payment accepted. Your pilot is on their way! distance=512.3m","ride":{"id":123456,"distance_mm":512345,"created_at":"2026-01-01T12:00:00.123456Z"}}"#;

/// Starts nginx with one worker on `port`.
///
/// # Errors
/// nginx is not here.
pub(crate) fn start(bench: &Bench, port: u16) -> Result<Running> {
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
             }}
         }}"
    );
    let path = folder.join("nginx.conf");
    std::fs::write(&path, config).context("writing nginx's configuration")?;
    let (folder, path) = (folder.display().to_string(), path.display().to_string());
    let spec = Spec::of_program("nginx", program, &["-e", "stderr", "-p", &folder, "-c", &path]);
    Running::start(&spec, &[], &bench.folder)
}
