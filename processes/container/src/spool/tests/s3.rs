//! The spool in a bucket, against a server of S3 that others wrote: `moto`, from PyPI.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};

use object_store::PutPayload;

use super::*;

/// The variable that tells a child of a test.
const CHILD: &str = "CONTAINER_TEST_S3";

/// A server of S3 that one test uses.
struct S3 {
    server: Child,
    address: String,
}

impl S3 {
    fn start() -> Self {
        let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.data/venv/bin/moto_server");
        assert!(program.is_file(), "{} is missing: run the tests with bin/test, which installs it", program.display());
        let mut command = Command::new(program);
        command.args(["-H", "127.0.0.1", "-p", "0"]).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut server = command.spawn().unwrap();
        let mut log = BufReader::new(server.stderr.take().unwrap()).lines();
        let address = log.find_map(|line| Some(line.unwrap().split_once("http://")?.1.trim().to_owned())).unwrap();
        std::thread::spawn(move || log.for_each(drop));
        let mut socket = TcpStream::connect(&address).unwrap();
        write!(socket, "PUT /bucket HTTP/1.1\r\nHost: {address}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            .unwrap();
        let mut response = String::new();
        socket.read_to_string(&mut response).unwrap();
        assert!(response.starts_with("HTTP/1.1 200"), "{response}");
        Self { server, address }
    }
}

impl Drop for S3 {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

fn place(prefix: &str) -> SpoolPlace {
    format!("s3://bucket/{prefix}").parse().unwrap()
}

async fn check_a_bucket() {
    let at = place("a/spool");
    let spools = futures_util::future::join_all((0..8).map(|_| Spool::open(&at))).await;
    let spools: Vec<Spool> = spools.into_iter().map(Result::unwrap).collect();
    let spool = &spools[0];
    assert!(spools.iter().all(|other| other.id() == spool.id()), "processes that start at the same time have one id");
    assert_eq!(spools.iter().filter(|spool| spool.is_new()).count(), 1);
    assert_eq!((spool.place(), Spool::open(&at).await.unwrap().id()), ("s3://bucket/a/spool".to_owned(), spool.id()));

    let mut names = vec![assert_round_trip(spool, &[document()]).await.name];
    for len in [5 * 1024 * 1024, 12_000_000] {
        let photo = photo(len);
        let first = assert_round_trip(spool, &[document(), photo.clone()]).await;
        let second = assert_round_trip(spool, &[photo, document()]).await;
        assert_eq!(first.hash, second.hash);
        names.extend([first.name, second.name]);
    }
    names.sort();

    for give_up in [true, false] {
        let mut upload = spool.begin(head()).unwrap();
        upload.begin_part(photo(0).0).await.unwrap();
        upload.write(photo(6_000_000).1).await.unwrap();
        if give_up {
            upload.abort().await;
        }
    }
    assert_eq!(listed(spool).await, names, "an unfinished upload is never listed");
    assert_eq!(spool.clear_unfinished(Duration::ZERO).await.unwrap(), 0);

    for name in &names[1..] {
        spool.delete(name).await.unwrap();
        spool.delete(name).await.unwrap();
        assert!(matches!(spool.open_file(name).await, Err(SpoolError::Unknown)));
    }
    assert_eq!(listed(spool).await, names[..1]);

    let damaged = spool.location(&names[0]).unwrap();
    let whole = spool.0.store.get(&damaged).await.unwrap().bytes().await.unwrap();
    for bytes in [Bytes::new(), whole.slice(1..), whole.slice(..whole.len() - 1)] {
        spool.0.store.put(&damaged, PutPayload::from(bytes)).await.unwrap();
        assert!(matches!(spool.open_file(&names[0]).await, Err(SpoolError::Damaged { .. })));
    }
    let refused = Spool::open(&place("a")).await.unwrap_err();
    assert!(format!("{refused:#}").contains("but it contains a/spool/"), "{refused:#}");
}

/// Runs a test once more, with this server of S3. Its settings are variables of a process.
fn run_child(test: &str, address: &str) {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "--nocapture", &format!("spool::tests::s3::{test}")]);
    command.env(CHILD, "1").env("AWS_ENDPOINT_URL", format!("http://{address}")).env("AWS_ALLOW_HTTP", "true");
    command.env("AWS_REGION", "us-east-1").env("AWS_ACCESS_KEY_ID", "key").env("AWS_SECRET_ACCESS_KEY", "secret");
    assert!(command.status().unwrap().success());
}

#[tokio::test]
async fn a_bucket_is_a_spool_as_a_folder_is() {
    if std::env::var_os(CHILD).is_some() {
        return check_a_bucket().await;
    }
    run_child("a_bucket_is_a_spool_as_a_folder_is", &S3::start().address);
}

#[tokio::test]
async fn a_bucket_that_is_away_is_an_error() {
    if std::env::var_os(CHILD).is_some() {
        let refused = Spool::open(&place("spool")).await.unwrap_err();
        assert!(format!("{refused:#}").contains("read the id of the spool"), "{refused:#}");
        return;
    }
    // Port 1 belongs to a service that no machine has.
    run_child("a_bucket_that_is_away_is_an_error", "127.0.0.1:1");
}
