//! The real process: it crashes, is killed and is stopped, and the next process reads everything from its journal.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use payments::ChargeError;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use crate::world::{Folder, Http, fare};

/// The longest start or end of a process on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

struct Process {
    child: Child,
    http: Http,
    /// Its log until it was ready.
    log: String,
}

impl Process {
    async fn start(folder: &Folder) -> Self {
        Self::try_start(folder).await.unwrap_or_else(|log| panic!("it did not start:\n{log}"))
    }

    /// Starts the process and waits until it serves. Fails with its log if it does not.
    async fn try_start(folder: &Folder) -> Result<Self, String> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_payments"));
        command.args(["--payments-port", "0", "--faults", "--fault-rate", "0", "--data"]).arg(folder.path());
        command.env("RUST_LOG", "info").stdin(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut log = String::new();
        while let Some(line) = timeout(PATIENCE, lines.next_line()).await.expect("it says nothing").unwrap() {
            log.push_str(&line);
            log.push('\n');
            if let Some((_, rest)) = line.split_once("payments started address=") {
                let address = rest.split(' ').next().unwrap();
                let http = Http::new(format!("http://{address}"));
                // Read the pipe to its end, because a full pipe would stop the process.
                tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
                return Ok(Self { child, http, log });
            }
        }
        Err(log)
    }

    async fn stop_by(mut self, signal: Signal) -> std::process::ExitStatus {
        kill(Pid::from_raw(self.child.id().unwrap() as i32), signal).unwrap();
        self.ended().await
    }

    async fn ended(&mut self) -> std::process::ExitStatus {
        timeout(PATIENCE, self.child.wait()).await.expect("it does not end").unwrap()
    }
}

#[tokio::test]
async fn a_process_that_dies_after_the_charge_knows_it_when_it_is_back() {
    let folder = Folder::new();
    let mut first = Process::start(&folder).await;
    first.http.plan("kind=die-after-charge").await;
    let told = first.http.stripe().charge(&fare(), "ride-1").await.unwrap_err();
    assert!(matches!(told, ChargeError::Unavailable { .. }), "{told:?}");
    assert_eq!(first.ended().await.signal(), Some(9));

    let second = Process::start(&folder).await;
    let charges = second.http.charges().await;
    let id = second.http.stripe().charge(&fare(), "ride-1").await.unwrap().id;
    assert_eq!((charges.len(), charges[0]["id"].as_str()), (1, Some(id.as_str())));
    assert_eq!(second.http.charges().await.len(), 1);
    assert!(second.stop_by(Signal::SIGTERM).await.success());
}

#[tokio::test]
async fn every_answer_given_before_sigkill_is_given_again_after_it() {
    let folder = Folder::new();
    let form = |customer: &str| format!("amount=2000&currency=usd&customer={customer}");
    let first = Process::start(&folder).await;
    let new = "email=a%40example.com&source=tok_visa";
    let customer = first.http.post("/v1/customers", Some("customer"), new).await;
    let own = form(customer.json()["id"].as_str().unwrap());
    let mut traffic = Vec::new();
    for worker in 0..8 {
        let (http, own) = (first.http.clone(), own.clone());
        traffic.push(tokio::spawn(async move {
            let mut answered = Vec::new();
            for number in 0.. {
                let key = format!("ride-{worker}-{number}");
                let form = if number % 3 == 0 { form("cus_bad") } else { own.clone() };
                let Some(said) = http.try_post("/v1/charges", Some(&key), &form).await else { break };
                answered.push((key, form, said));
            }
            answered
        }));
    }
    timeout(PATIENCE, async {
        while first.http.charges().await.len() < 50 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
    .expect("nothing is charged");
    assert_eq!(first.stop_by(Signal::SIGKILL).await.signal(), Some(9));

    let second = Process::start(&folder).await;
    let mut answered_count = 0;
    for worker in traffic {
        for (key, form, said) in worker.await.unwrap() {
            let again = second.http.post("/v1/charges", Some(&key), &form).await;
            assert_eq!((again.status, again.replayed, again.body), (said.status, true, said.body), "{key}");
            answered_count += 1;
        }
    }
    assert!(answered_count >= 40, "only {answered_count} were answered");
    let again = second.http.post("/v1/customers", Some("customer"), new).await;
    assert_eq!((again.replayed, again.body), (true, customer.body));
}

#[tokio::test]
async fn a_torn_last_line_is_cut_off_and_told() {
    let folder = Folder::new();
    let first = Process::start(&folder).await;
    let id = first.http.stripe().charge(&fare(), "ride-1").await.unwrap().id;
    assert!(first.stop_by(Signal::SIGTERM).await.success());
    let whole = std::fs::read(folder.journal()).unwrap();
    let mut torn = OpenOptions::new().append(true).open(folder.journal()).unwrap();
    torn.write_all(&whole[..whole.len() - 1]).unwrap();

    let second = Process::start(&folder).await;
    assert!(second.log.contains("cut off a torn last line"), "{}", second.log);
    assert_eq!(std::fs::read(folder.journal()).unwrap(), whole);
    assert_eq!(second.http.stripe().charge(&fare(), "ride-1").await.unwrap().id, id);
    assert!(second.http.stripe().charge(&fare(), "ride-2").await.is_ok());
    assert!(second.stop_by(Signal::SIGINT).await.success());
    let third = Process::start(&folder).await;
    assert_eq!(third.http.charges().await.len(), 2);
}

#[tokio::test]
async fn a_damaged_line_is_named_and_nothing_is_served() {
    let folder = Folder::new();
    std::fs::create_dir_all(folder.path()).unwrap();
    std::fs::write(folder.journal(), "{\"key\":\n").unwrap();
    let log = Process::try_start(&folder).await.err().expect("it started");
    assert!(log.contains("line 1 of ") && log.contains("is damaged"), "{log}");
}

#[tokio::test]
async fn a_folder_has_one_process() {
    let folder = Folder::new();
    let first = Process::start(&folder).await;
    let log = Process::try_start(&folder).await.err().expect("a second one started");
    assert!(log.contains("set PAYMENTS_DATA to another folder"), "{log}");
    assert!(first.http.stripe().charge(&fare(), "ride-1").await.is_ok());
}
