use std::fs;
use std::path::Path;

use tempfile::TempDir;
use tokio::io::AsyncWriteExt;

use super::*;
use crate::runtime::docker::connection::dialer::Dialer;
use crate::runtime::docker::connection::{Address, Call, Environment, exchange};
use crate::runtime::docker::errors::Failure;

/// More than a test takes.
const LIMIT: Duration = Duration::from_secs(60);

/// A shell script in place of ssh. Its arguments are `$@`.
fn script(text: &str) -> Vec<String> {
    ["/bin/sh", "-c", text, "ssh"].map(str::to_owned).to_vec()
}

fn open(text: &str) -> SshConnection {
    let address = SshAddress::parse("me@db").unwrap();
    SshConnection::open(&script(text), &address).unwrap()
}

async fn read_all(connection: &mut SshConnection) -> (Vec<u8>, io::Result<usize>) {
    let mut all = Vec::new();
    let end = timeout(LIMIT, connection.read_to_end(&mut all)).await;
    (all, end.unwrap())
}

/// A script that writes the id of its process to a file, and the path of that file.
fn with_pid(dir: &TempDir, text: &str) -> (SshConnection, std::path::PathBuf) {
    let file = dir.path().join("pid");
    let text = format!("echo $$ >{0}.new; mv {0}.new {0}; {text}", file.display());
    (open(&text), file)
}

/// Waits until the process whose id is in `file` exists.
async fn started(file: &Path) -> String {
    loop {
        if let Ok(pid) = fs::read_to_string(file) {
            return pid.trim().to_owned();
        }
        sleep(Duration::from_millis(5)).await;
    }
}

/// Waits until there is neither a process nor a zombie with the id.
async fn is_gone(pid: &str) {
    let path = format!("/proc/{pid}");
    let gone = async {
        while Path::new(&path).exists() {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(LIMIT, gone).await.expect("the process is gone");
}

#[test]
fn the_arguments_are_those_of_dockers_cli() {
    let options = "-o ConnectTimeout=30 -o BatchMode=yes -T";
    for (address, host, command) in [
        ("db", "-- db", "docker system dial-stdio"),
        ("me@db/", "-l me -- db", "docker system dial-stdio"),
        (
            "a%40b@[::1]:99",
            "-l a@b -p 99 -- ::1",
            "docker system dial-stdio",
        ),
        (
            "db/run/x.sock",
            "-- db",
            "docker --host=unix:///run/x.sock system dial-stdio",
        ),
        (
            "db/a%20'b;c",
            "-- db",
            r"docker '--host=unix:///a '\''b;c' system dial-stdio",
        ),
    ] {
        let arguments = SshAddress::parse(address).unwrap().arguments();
        let (last, first) = arguments.split_last().unwrap();
        assert_eq!(first.join(" "), format!("{options} {host}"), "{address}");
        assert_eq!(last, command, "{address}");
    }
}

#[test]
fn a_bad_address_is_refused() {
    for (address, hint) in [
        ("", "no host"),
        ("me@", "no host"),
        ("me@:22", "no valid host"),
        ("-oProxyCommand=x", "begins with"),
        ("me@-x", "begins with"),
        ("db:0", "no valid host"),
        ("d b", "no valid host"),
        ("@db", "the user"),
        ("-x@db", "the user"),
        ("$(x)@db", "the user"),
        ("me%0a@db", "the user"),
        ("me%4@db", "the user"),
        ("me:secret@db", "a password"),
        ("me:@db", "a password"),
        ("db?x=1", "a query"),
        ("db/x#y", "a query or a fragment"),
        ("db/x%00", "the path"),
        ("db/x%+1", "the path"),
    ] {
        let error = SshAddress::parse(address).unwrap_err();
        assert!(error.contains(hint), "{address}: {error}");
    }
}

#[tokio::test]
async fn bytes_pass_in_both_directions() {
    let mut connection = open("printf hello; cat; printf ' end'");
    connection.write_all(b", engine,").await.unwrap();
    // The end of the input reaches the process, whose output continues.
    connection.shutdown().await.unwrap();
    let (all, end) = read_all(&mut connection).await;
    assert_eq!(all, b"hello, engine, end");
    end.unwrap();
    let error = connection.write_all(b"more").await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
}

#[tokio::test]
async fn a_failed_process_is_no_clean_end() {
    for (text, cause) in [
        (
            "printf part; echo broken >&2; exit 255",
            "exit status: 255: broken",
        ),
        ("printf part; kill -9 $$", "signal: 9"),
    ] {
        let mut connection = open(text);
        let (all, end) = read_all(&mut connection).await;
        assert_eq!(all, b"part");
        let error = end.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        assert!(error.to_string().contains(cause), "{error}");
        // The end of the stream stays an error.
        let (_, end) = read_all(&mut connection).await;
        assert!(end.unwrap_err().to_string().contains(cause));
    }
}

#[tokio::test]
async fn output_on_stderr_never_blocks_ssh() {
    let text = "i=0; while [ $i -lt 5000 ]; do echo a line of a debug log $i >&2; i=$((i+1)); done; \
                printf part; exit 1";
    let (all, end) = read_all(&mut open(text)).await;
    assert_eq!(all, b"part");
    let error = end.unwrap_err().to_string();
    assert!(error.ends_with("a line of a debug log 4999"), "{error}");
    assert!(error.len() < MAX_STDERR_BYTES + 200, "{}", error.len());
}

#[tokio::test]
async fn a_background_connection_does_not_delay_the_error() {
    // As with `ControlPersist`: a process that continues holds stderr.
    let mut connection = open("sleep 30 >/dev/null & echo no route >&2; exit 255");
    let end = timeout(Duration::from_secs(20), read_all(&mut connection)).await;
    let (_, end) = end.expect("the pipe of stderr is not awaited");
    assert!(end.unwrap_err().to_string().contains("no route"));
}

/// Sends a request through a script, and returns the error as a caller sees it.
async fn error_of(program: Vec<String>) -> String {
    let address = Address::parse("ssh://me@db", &Environment::default()).unwrap();
    let dialer = Dialer::new(address).unwrap().with_ssh(program);
    let call = exchange(&dialer, Call::get("/_ping"), LIMIT).await;
    let moats = call.err().unwrap().error("test", "ssh://me@db").to_string();
    let bollards = dialer.client(LIMIT).unwrap().version().await;
    let bollards = Failure::from(bollards.unwrap_err());
    let bollards = bollards.error("test", "ssh://me@db").to_string();
    assert_eq!(moats, bollards);
    moats
}

#[tokio::test]
async fn the_error_of_a_connection_has_sshs_stderr() {
    let check =
        "does `ssh -o BatchMode=yes -l me -- db docker version` succeed, without a question?";
    for (text, cause) in [
        (
            "echo 'me@db: Permission denied (publickey).' >&2; exit 255",
            "me@db: Permission denied (publickey).",
        ),
        // The process ends before the request is written, or while it is read.
        ("exec <&-; sleep 0.1; echo no >&2; exit 1", "no"),
        ("cat >/dev/null & read line; echo no >&2; exit 127", "no"),
        ("exit 3", "ssh ended with exit status: 3"),
        ("exit 0", "ssh ended with exit status: 0"),
    ] {
        let error = error_of(script(text)).await;
        let expected = format!("cannot reach the engine at ssh://me@db: {cause}: {check}");
        assert_eq!(error, expected, "{text}");
    }
    let error = error_of(vec!["/nonexistent/ssh".into()]).await;
    assert!(error.contains("no program \"/nonexistent/ssh\""), "{error}");
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn dropping_a_connection_leaves_no_process() {
    let dir = tempfile::tempdir().unwrap();
    // It ignores the end of its input.
    let (connection, file) = with_pid(&dir, "exec sleep 300");
    let pid = started(&file).await;
    drop(connection);
    is_gone(&pid).await;
}

#[cfg(target_os = "linux")]
#[test]
fn the_end_of_the_runtime_ends_ssh() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (connection, pid) = runtime.block_on(async {
        let (connection, file) = with_pid(&dir, "exec sleep 300");
        (connection, started(&file).await)
    });
    drop(runtime);
    let other = tokio::runtime::Runtime::new().unwrap();
    // A later runtime of the process reaps it.
    other.block_on(is_gone(&pid));
    drop(connection);
}

#[tokio::test]
async fn input_arrives_after_the_drop_of_the_connection() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("input");
    // Slower than the grace period of a connection without input.
    let text = format!(
        "printf ready; sleep 3; cat >{0}.new; mv {0}.new {0}",
        file.display()
    );
    let mut connection = open(&text);
    let mut ready = [0; 5];
    connection.read_exact(&mut ready).await.unwrap();
    connection.write_all(b"typed").await.unwrap();
    drop(connection);
    let input = async {
        loop {
            if let Ok(input) = fs::read(&file) {
                return input;
            }
            sleep(Duration::from_millis(20)).await;
        }
    };
    assert_eq!(timeout(LIMIT, input).await.unwrap(), b"typed");
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn ssh_is_not_in_the_process_group_of_its_parent() {
    let dir = tempfile::tempdir().unwrap();
    let (_connection, file) = with_pid(&dir, "exec sleep 300");
    let pid = started(&file).await;
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let group = stat.rsplit(')').next().unwrap().split_whitespace().nth(2);
    assert_eq!(group, Some(pid.as_str()));
}
