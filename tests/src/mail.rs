//! A mail server for one test.

use std::path::{Path, PathBuf};

use tokio::net::TcpStream;
use tokio::process::Command;

use crate::{Process, python_program, scratch_folder, wait_until};

/// An independent mail server, with the manners of `mail_server.py`.
pub struct MailServer {
    folder: PathBuf,
    _process: Process,
}

impl MailServer {
    /// Starts it on this port. With a folder from [`write_certificate`](crate::write_certificate) it offers STARTTLS.
    pub async fn start(port: u16, certificate: Option<&Path>) -> Self {
        let folder = scratch_folder();
        let mut command = Command::new(python_program("aiosmtpd"));
        command.args(["-n", "-l", &format!("127.0.0.1:{port}")]);
        if let Some(certificate) = certificate {
            // Without `--no-requiretls` it would refuse clients that do not ask for STARTTLS. They are to be seen.
            command.arg("--no-requiretls").arg("--tlscert").arg(certificate.join("server.crt"));
            command.arg("--tlskey").arg(certificate.join("server.key"));
        }
        command.args(["-c", "mail_server.Picky"]).arg(folder.join("mailbox"));
        command.env("PYTHONPATH", concat!(env!("CARGO_MANIFEST_DIR"), "/src")).env("PYTHONDONTWRITEBYTECODE", "1");
        let process = Process::spawn("aiosmtpd", command);
        wait_until("the mail server listens", async || TcpStream::connect(("127.0.0.1", port)).await.is_ok()).await;
        Self { folder, _process: process }
    }

    /// The mails that it has taken.
    pub fn mails(&self) -> Vec<String> {
        let Ok(files) = std::fs::read_dir(self.folder.join("mailbox/new")) else { return Vec::new() };
        files.map(|file| std::fs::read_to_string(file.unwrap().path()).unwrap()).collect()
    }
}

impl Drop for MailServer {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}
