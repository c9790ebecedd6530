//! A PgBouncer in front of a Postgres, for one test.

use std::path::PathBuf;

use tokio::process::Command;

use crate::process::Process;
use crate::servers::scratch_folder;
use crate::world::roles;

/// The port, which is only a part of the socket's name.
const PORT: u16 = 6432;

/// A running PgBouncer on a unix socket.
pub struct PgBouncer {
    folder: PathBuf,
    _process: Process,
}

impl PgBouncer {
    /// Starts a PgBouncer in front of the server of `postgres_url`. `settings` are lines of its configuration.
    ///
    /// # Panics
    /// The program is not installed.
    pub async fn start(postgres_url: &str, settings: &[&str]) -> Self {
        let folder = scratch_folder();
        let postgres: tokio_postgres::Config = postgres_url.parse().unwrap();
        let tokio_postgres::config::Host::Unix(socket) = &postgres.get_hosts()[0] else { panic!("not a unix socket") };
        let port = postgres.get_ports().first().copied().unwrap_or(5432);
        let users: String = roles().iter().map(|role| format!("\"rocket_{role}\" \"\"\n")).collect();
        std::fs::write(folder.join("users"), format!("\"app\" \"\"\n{users}")).unwrap();
        let settings = settings.join("\n");
        let configuration = format!(
            "[databases]\n* = host={} port={port}\n[pgbouncer]\nlisten_port = {PORT}\nunix_socket_dir = {folder}\n\
             auth_type = trust\nauth_file = {folder}/users\n{settings}\n",
            socket.display(),
            folder = folder.display(),
        );
        let path = folder.join("pgbouncer.ini");
        std::fs::write(&path, configuration).unwrap();
        // It refuses to run as root.
        let mut command = Command::new(if nix::unistd::geteuid().is_root() { "unshare" } else { "env" });
        if nix::unistd::geteuid().is_root() {
            command.arg("-U");
        }
        command.arg("pgbouncer").arg(&path).env("PATH", "/usr/sbin:/usr/bin:/bin:/opt/homebrew/bin:/usr/local/bin");
        let mut process = Process::spawn("pgbouncer", command);
        process.wait_for("process up").await;
        Self { folder, _process: process }
    }

    /// The URL of this database for this user.
    pub fn url(&self, user: &str, database: &str) -> String {
        let folder = self.folder.display().to_string().replace('/', "%2F");
        format!("postgres://{user}@{folder}:{PORT}/{database}")
    }
}

impl Drop for PgBouncer {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}
