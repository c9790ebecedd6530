//! The units for systemd: valid, with few rights, and in step with the processes, which notify systemd when they are ready.

use std::collections::BTreeSet;
use std::path::PathBuf;

use tests::{Help, Payments, Process, World, binary, root, scratch_folder, workspace_binaries};
use tokio::net::UnixDatagram;
use tokio::process::Command;

/// The folder of the binaries in the units.
const BINARIES: &str = "/usr/lib/rocket-rides-log";

/// The highest exposure that a unit may have. systemd-analyze calls up to 49 OK; a unit with 0 could do nothing.
const EXPOSURE_MAX: &str = "--threshold=15";

/// Processes of the Procfile that are for development and need no unit.
const FOR_DEVELOPMENT: [&str; 2] = ["payments", "simulator"];

/// A unit's file name, and the words of its `ExecStart`.
fn units() -> Vec<(String, Vec<String>)> {
    let files = std::fs::read_dir(root().join("ops/systemd")).unwrap().map(|entry| entry.unwrap().path());
    let name = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().to_owned();
    let units = files.filter(|path| path.extension().is_some_and(|extension| extension == "service"));
    units
        .map(|path| {
            let text = std::fs::read_to_string(&path).unwrap();
            let start = text.lines().find_map(|line| line.strip_prefix("ExecStart=")).unwrap();
            (name(&path), start.split_whitespace().map(str::to_owned).collect())
        })
        .collect()
}

#[test]
fn every_process_has_a_unit_that_starts_it_with_flags_that_it_has() {
    let (binaries, units) = (workspace_binaries(), units());
    for (unit, words) in &units {
        let program = words[0].strip_prefix(&format!("{BINARIES}/")).unwrap();
        assert!(binaries.contains_key(program), "{unit}: there is no binary {program}");
        assert!(unit.starts_with(&format!("rocket-rides-{program}")), "{unit} starts {program}");
        let help = Help::of(program);
        for flag in words.iter().filter(|word| word.starts_with("--")) {
            assert!(help.flags.contains(flag), "{unit}: {program} has no flag {flag}");
        }
    }
    let started: BTreeSet<&str> = units.iter().map(|(_, words)| words[0].rsplit('/').next().unwrap()).collect();
    let procfile = std::fs::read_to_string(root().join("Procfile")).unwrap();
    for entry in launcher::parse_procfile(&procfile).unwrap() {
        let program = entry.command.split_whitespace().next().unwrap().rsplit('/').next().unwrap();
        let is_covered = started.contains(program) || FOR_DEVELOPMENT.contains(&program);
        assert!(is_covered, "{program} has no unit in ops/systemd: add rocket-rides-{program}.service");
    }
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn systemd_finds_the_units_sound_and_narrow() {
    let folder = scratch_folder();
    let mut copy = Command::new("cp");
    copy.arg("-r").arg(root().join("ops/systemd/.")).arg(&folder);
    Process::spawn("cp", copy).succeed().await;
    let binaries = binary("api").parent().unwrap().display().to_string();
    let mut paths = vec![folder.join("rocket-rides.target")];
    for (unit, _) in units() {
        let path = folder.join(&unit);
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, text.replace(BINARIES, &binaries)).unwrap();
        paths.push(path);
    }
    let mut verify = Command::new("systemd-analyze");
    verify.args(["verify", "--man=no"]).args(&paths);
    let output = Process::spawn("systemd-analyze", verify).succeed().await;
    // Older versions of systemd do not know these settings, ignore them, and complain.
    let is_too_new = |line: &str| ["'RestartSteps'", "'RestartMaxDelaySec'"].iter().any(|key| line.contains(key));
    let complaints: Vec<&str> = output.lines().filter(|line| !is_too_new(line)).collect();
    assert!(complaints.is_empty(), "{complaints:#?}");
    for path in paths.iter().filter(|path| path.extension().is_some_and(|extension| extension == "service")) {
        let mut security = Command::new("systemd-analyze");
        security.args(["security", "--offline=true", "--no-pager", EXPOSURE_MAX]).arg(path);
        let output = Process::spawn("systemd-analyze", security).succeed().await;
        assert!(output.contains("Overall exposure level"), "{output}");
    }
    std::fs::remove_dir_all(folder).unwrap();
}

/// The units have `Type=notify`: without these messages systemd would consider the start failed.
#[tokio::test]
async fn every_process_tells_systemd_when_it_is_ready_and_when_it_stops() {
    let (world, payments, folder) = (World::new().await, Payments::start().await, scratch_folder());
    let receipts = folder.join("receipts").display().to_string();
    for (unit, words) in units() {
        let name = words[0].rsplit('/').next().unwrap();
        let path = folder.join(format!("{unit}.socket"));
        let socket = UnixDatagram::bind(&path).unwrap();
        let mut command = Command::new(binary(name));
        // The arguments of the unit, for an instance with the name i.
        command.args(words[1..].iter().map(|word| word.replace("${CONSUMER_NAME}", "i")));
        command
            .env("NOTIFY_SOCKET", &path)
            .env("API_PORT", "0")
            .env("DASHBOARD_PORT", "0")
            .env("RECEIPTS_DIR", &receipts)
            .env("CONTAINER_CONFIG", root().join("ops/container.toml"))
            .env("CONTAINER_PORT", "0")
            .env("CONTAINER_SPOOL", folder.join("spool"))
            .env("CONTAINER_DATA", &folder)
            .env("NOTICES_PORT", "5009")
            .env("NOTICES_SECRET", "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD");
        command.env("DATABASE_URL", world.database_url_of(name)).env("REDIS_URL", world.redis_url());
        command.env("STREAM_NAME", world.stream_name());
        if name == "completer" {
            command.args(payments.flags());
        }
        let process = Process::spawn(name, command);
        assert_eq!(told(&socket, &process).await, "READY=1", "{unit}");
        process.signal(nix::sys::signal::Signal::SIGTERM);
        assert_eq!(told(&socket, &process).await, "STOPPING=1", "{unit}");
        process.succeed().await;
    }
    std::fs::remove_dir_all(folder).unwrap();
}

/// In `NOTIFY_SOCKET` an abstract name begins with @.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_notification_reaches_an_abstract_socket_too() {
    use std::os::linux::net::SocketAddrExt;
    let name = format!("rrl-{:016x}", rand::random::<u64>());
    let address = std::os::unix::net::SocketAddr::from_abstract_name(&name).unwrap();
    let socket = std::os::unix::net::UnixDatagram::bind_addr(&address).unwrap();
    socket.set_nonblocking(true).unwrap();
    let socket = UnixDatagram::from_std(socket).unwrap();
    let (world, mut command) = (World::new().await, Command::new(binary("streamer")));
    command.args(world.flags("streamer")).env("NOTIFY_SOCKET", format!("@{name}"));
    let process = Process::spawn("streamer", command);
    assert_eq!(told(&socket, &process).await, "READY=1");
    process.signal(nix::sys::signal::Signal::SIGTERM);
    assert_eq!(told(&socket, &process).await, "STOPPING=1");
    process.succeed().await;
}

async fn told(socket: &UnixDatagram, process: &Process) -> String {
    let mut buffer = [0; 100];
    let received = tokio::time::timeout(tests::PATIENCE, socket.recv(&mut buffer)).await;
    let len = received.unwrap_or_else(|_| panic!("nothing is said:\n{}", process.output())).unwrap();
    String::from_utf8_lossy(&buffer[..len]).trim().to_owned()
}
