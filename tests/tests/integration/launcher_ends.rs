//! However `bin/up` and `bin/test` end, nothing is left running; and whatever they left on the disk, the next one starts.

use std::path::{Path, PathBuf};

use launcher::{PostgresServer, RedisServer, find_postgres, find_redis};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tests::{Process, Terminal, binary, is_alive, scratch_folder, wait_until};
use tokio::process::Command;

use crate::launcher::UpFolder;

/// The processes whose working folder lies in `folder`: of Postgres also its sessions, which no register has.
fn servers_below(folder: &Path) -> Vec<Pid> {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let is_below = |path: PathBuf| std::fs::read_link(path.join("cwd")).is_ok_and(|cwd| cwd.starts_with(folder));
    let id = |name: std::ffi::OsString| name.to_str()?.parse().ok().map(Pid::from_raw);
    processes.filter(|process| is_below(process.path())).filter_map(|process| id(process.file_name())).collect()
}

#[tokio::test]
async fn a_terminal_that_is_closed_stops_everything_in_order() {
    let folder = UpFolder::with_rate(5).await;
    let mut command = folder.up_command(&[]);
    command.env("TERM", "xterm-256color");
    let mut terminal = Terminal::start(30, 120, &command);
    terminal.wait_until("it runs", |look| look.lines.iter().any(|line| line.starts_with("CONVERGED"))).await;
    let pids = folder.pids_of(8).await;
    drop(terminal);
    wait_until("nothing runs", async || !pids.iter().any(|pid| is_alive(*pid))).await;
    wait_until("no session of Postgres runs", async || servers_below(folder.data()).is_empty()).await;
    // Only a launcher that has stopped everything itself empties its register.
    wait_until("the launcher has stopped it", async || folder.pids().is_empty()).await;
}

#[tokio::test]
async fn a_reader_that_goes_away_does_not_end_the_launcher() {
    let folder = UpFolder::with_rate(5).await;
    let mut command = folder.up_command(&[]);
    // The pipe is closed after the first line, as by `bin/up | head -1`.
    let mut child = command.stdout(std::process::Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    wait_until("rides are taken", async || folder.ride_count().await > 5).await;
    let pids = folder.pids_of(8).await;
    kill(Pid::from_raw(child.id().unwrap() as i32), Signal::SIGTERM).unwrap();
    assert!(child.wait().await.unwrap().success());
    assert!(pids.iter().all(|pid| !is_alive(*pid)), "a process still runs");
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_launcher_that_is_killed_takes_everything_with_it() {
    let folder = UpFolder::with_rate(5).await;
    let mut up = folder.up(&[]);
    up.wait_for("CONVERGED").await;
    let pids = folder.pids_of(8).await;
    // A process that is stopped acts on no signal but SIGKILL.
    kill(*pids.last().unwrap(), Signal::SIGSTOP).unwrap();
    up.kill().await;
    wait_until("nothing runs", async || !pids.iter().any(|pid| is_alive(*pid))).await;
    wait_until("no session of Postgres runs", async || servers_below(folder.data()).is_empty()).await;
    let mut up = folder.up(&[]);
    up.wait_for("CONVERGED").await;
    up.signal(Signal::SIGTERM);
    assert!(up.ended().await.success(), "{}", up.output());
}

#[tokio::test]
async fn a_server_that_is_killed_is_started_again_and_rides_go_on() {
    let folder = UpFolder::new().await;
    let mut up = folder.up(&[]);
    up.wait_for("CONVERGED").await;
    for name in ["postgres", "redis"] {
        let program = |pid: &Pid| std::fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
        let is_server =
            |pid: &Pid| program(pid).file_name().is_some_and(|file| file.to_string_lossy().starts_with(name));
        let victim = folder.pids().into_iter().find(is_server).unwrap();
        kill(victim, Signal::SIGKILL).unwrap();
        up.wait_for(&format!("{name:<9} | ended (signal: 9 (SIGKILL)); starting it again")).await;
        up.wait_for(&format!("{name:<9} | runs again")).await;
        wait_until("it is reaped", async || !Path::new(&format!("/proc/{victim}")).exists()).await;
        let before = folder.ride_count().await;
        wait_until("rides go on", async || folder.ride_count().await > before + 10).await;
    }
    up.signal(Signal::SIGINT);
    assert!(up.ended().await.success(), "{}", up.output());
    assert!(servers_below(folder.data()).is_empty());
}

/// Starts a Postgres and stops it.
async fn start_postgres(folder: &Path) {
    let server = PostgresServer::start(&find_postgres().unwrap(), folder, &["fsync=off"]).await;
    server.unwrap_or_else(|error| panic!("{error:#}")).stop().await.unwrap();
}

#[tokio::test]
async fn postgres_starts_whatever_an_earlier_start_has_left() {
    let folder = scratch_folder();
    let (pg, data, run) = (folder.join("pg"), folder.join("pg/data"), folder.join("pg/run"));
    // initdb was killed.
    std::fs::create_dir_all(pg.join("data.unfinished/base")).unwrap();
    start_postgres(&pg).await;
    // The disk was full, or the machine has started anew and the number is another program's now.
    let ours = format!("{}\n{}\n1\n5432\n", std::process::id(), data.display());
    for lock in ["", "99999999\n", ours.as_str(), "\0\0\0\0"] {
        for file in [data.join("postmaster.pid"), run.join(".s.PGSQL.5432.lock")] {
            std::fs::write(&file, lock).unwrap();
        }
        std::fs::write(run.join(".s.PGSQL.5432"), "").unwrap();
        start_postgres(&pg).await;
    }
    // A server that no register has: its launcher was killed too early.
    let lost = PostgresServer::start(&find_postgres().unwrap(), &pg, &["fsync=off"]).await.unwrap();
    let pid = Pid::from_raw(lost.pid().unwrap() as i32);
    std::mem::forget(lost);
    start_postgres(&pg).await;
    assert!(!is_alive(pid));
    std::fs::write(data.join("PG_VERSION"), "").unwrap();
    let refusal = PostgresServer::start(&find_postgres().unwrap(), &pg, &[]).await.err().unwrap().to_string();
    assert!(refusal.contains("its PG_VERSION is empty. Put a copy of the folder back"), "{refusal}");
    std::fs::remove_dir_all(folder).unwrap();
}

/// In most containers root may make no namespace. There Postgres runs as another user, who may enter no folder below /root.
#[tokio::test]
async fn root_without_namespaces_leaves_no_data_behind_either() {
    let folder = scratch_folder();
    for mode in [0o755, 0o700] {
        std::fs::set_permissions(&folder, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
        let mut command = Command::new(binary("launcher"));
        command.args(["with-servers", "--data"]).arg(folder.join("test")).env("LAUNCHER_NO_NAMESPACE", "1");
        command.args(["--", "sh", "-c", "psql \"$DATABASE_URL\" -tAc 'SHOW data_directory'"]);
        let output = Process::spawn("launcher", command).succeed().await;
        let data = Path::new(output.lines().last().unwrap());
        assert!(data.is_absolute() && !data.exists() && !data.parent().unwrap().exists(), "{output}");
    }
    std::fs::remove_dir_all(folder).unwrap();
}

/// The folders beside the data of a Redis into which damaged files were moved.
fn set_aside(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with("set-aside-")).collect()
}

async fn key_count(server: &RedisServer) -> i64 {
    let client = stream::redis::client(&server.url()).unwrap();
    redis::cmd("DBSIZE").query_async(&mut stream::redis::connect(&client).await.unwrap()).await.unwrap()
}

async fn start_redis(folder: &Path, settings: &[&str]) -> anyhow::Result<RedisServer> {
    RedisServer::start(&find_redis().unwrap(), folder, settings).await
}

/// A Redis with one key on its disk.
async fn write_a_key(folder: &Path) {
    let server = start_redis(folder, &[]).await.unwrap();
    let client = stream::redis::client(&server.url()).unwrap();
    let mut connection = stream::redis::connect(&client).await.unwrap();
    let () = redis::cmd("SET").arg(&["a", "b"]).query_async(&mut connection).await.unwrap();
    server.stop().await.unwrap();
}

fn append(path: &Path, bytes: &[u8]) {
    let mut all = std::fs::read(path).unwrap();
    all.extend(bytes);
    std::fs::write(path, all).unwrap();
}

#[tokio::test]
async fn a_redis_that_cannot_read_its_files_sets_them_aside_and_starts_empty() {
    let root = scratch_folder();
    type Damage = fn(&Path);
    let damages: [(&str, Damage); 4] = [
        ("zeros", |aof| append(&aof.join("appendonly.aof.1.incr.aof"), &[0; 4096])),
        ("garbage", |aof| append(&aof.join("appendonly.aof.1.incr.aof"), b"*3\r\nnonsense")),
        ("base", |aof| std::fs::write(aof.join("appendonly.aof.1.base.rdb"), "no rdb").unwrap()),
        ("manifest", |aof| std::fs::write(aof.join("appendonly.aof.manifest"), "\0\0\0\0").unwrap()),
    ];
    for (name, damage) in damages {
        let folder = root.join(name);
        write_a_key(&folder).await;
        damage(&folder.join("appendonlydir"));
        let server = start_redis(&folder, &[]).await.unwrap_or_else(|error| panic!("{name}: {error:#}"));
        assert_eq!(key_count(&server).await, 0, "{name}");
        let aside = set_aside(&folder);
        assert!(aside.len() == 1 && aside[0].join("appendonlydir").is_dir(), "{name}: {aside:?}");
        server.stop().await.unwrap();
    }
    // A server that reads for seconds says INFO all the while.
    let folder = root.join("slow");
    write_a_key(&folder).await;
    let sets: Vec<u8> = (0..30_000)
        .flat_map(|_| b"*3\r\n$3\r\nSET\r\n$1\r\na\r\n$1\r\nb\r\n".to_vec())
        .chain(*b"*3\r\nnonsense")
        .collect();
    append(&folder.join("appendonlydir/appendonly.aof.1.incr.aof"), &sets);
    let server = start_redis(&folder, &["--key-load-delay", "50"]).await.unwrap();
    assert_eq!((key_count(&server).await, set_aside(&folder).len()), (0, 1), "slow");
    server.stop().await.unwrap();
    // Files that are not the cause stay where they are.
    let folder = root.join("sound");
    write_a_key(&folder).await;
    let refusal = start_redis(&folder, &["--maxmemory", "banana"]).await.err().unwrap();
    assert!(format!("{refusal:#}").contains("maxmemory"), "{refusal:#}");
    assert!(set_aside(&folder).is_empty());
    // The server of a launcher that was killed before it could register it would write into the same files.
    let lost = start_redis(&folder, &[]).await.unwrap();
    let pid = Pid::from_raw(lost.pid().unwrap() as i32);
    std::mem::forget(lost);
    let server = start_redis(&folder, &[]).await.unwrap();
    assert!(!is_alive(pid));
    assert_eq!(key_count(&server).await, 1);
    server.stop().await.unwrap();
    std::fs::remove_dir_all(root).unwrap();
}

fn with_servers(folder: &Path, script: &str) -> Process {
    let mut command = Command::new(binary("launcher"));
    command.args(["with-servers", "--data"]).arg(folder.join("test")).args(["--", "sh", "-c", script]);
    command.env("TMPDIR", folder.join("tmp"));
    Process::spawn("launcher", command)
}

#[tokio::test]
async fn a_command_beside_servers_is_asked_to_end_and_leaves_no_temporary_file() {
    let folder = scratch_folder();
    std::fs::create_dir(folder.join("tmp")).unwrap();
    let is_tidy = || std::fs::read_dir(folder.join("tmp")).unwrap().next().is_none() && !folder.join("test").exists();
    let (started, asked) = (folder.join("started"), folder.join("asked"));
    let wait = "while :; do sleep 0.05; done";
    let script =
        format!("trap 'touch {}; exit 0' TERM; echo $$ $TMPDIR > {}; {wait}", asked.display(), started.display());
    let mut first = with_servers(&folder, &script);
    wait_until("the command runs", async || started.exists()).await;
    first.signal(Signal::SIGTERM);
    assert!(!first.ended().await.success(), "it was interrupted");
    assert!(asked.exists() && is_tidy());

    let output = with_servers(&folder, "touch \"$TMPDIR/crumb\"").fail(1).await;
    assert!(output.contains("left temporary files behind, which are removed now: crumb"), "{output}");
    assert!(is_tidy());

    // The launcher is killed. The next one removes what it left.
    std::fs::remove_file(&started).unwrap();
    let killed = with_servers(&folder, &format!("touch \"$TMPDIR/crumb\"; echo $$ > {}; {wait}", started.display()));
    let pid = || std::fs::read_to_string(&started).ok()?.trim().parse().ok().map(Pid::from_raw);
    wait_until("the command runs", async || pid().is_some()).await;
    let pid = pid().unwrap();
    killed.kill().await;
    #[cfg(target_os = "linux")]
    wait_until("the command has ended", async || !is_alive(pid)).await;
    with_servers(&folder, "exit 7").fail(7).await;
    assert!(!is_alive(pid) && is_tidy());
    std::fs::remove_dir_all(folder).unwrap();
}
