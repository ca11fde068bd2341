//! Containers that live as long as a test: copy this file into `tests/`.
//!
//! ```sh
//! cargo run --features blocking --example in_tests               # in busybox
//! cargo run --features blocking --example in_tests -- IMAGE      # in another image with httpd
//! cargo run --features blocking --example in_tests -- IMAGE fail # and with a failing test
//! ```
//!
//! In your crate, put `#[tokio::test]` or `#[test]` above each `test_...`, and leave out `main`.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::ExitCode;
use std::time::Duration;

use moat::{Docker, Manager, Port, Ready, RunSpec, Service, blocking};
use tokio::sync::OnceCell;

/// The root of all tests.
///
/// In an integration test, use a directory in `env!("CARGO_TARGET_TMPDIR")`: it must persist, so
/// that the next process finds what a killed one left.
const ROOT: &str = "target/in-tests";

/// The manager of all tests in this process.
///
/// Its tasks run on the manager's threads, so it outlives the async runtime of the test that opened
/// it.
async fn moat() -> &'static Manager {
    static MOAT: OnceCell<Manager> = OnceCell::const_new();
    let open = async || -> moat::Result<Manager> {
        let manager = Manager::open(ROOT, Docker::connect().await?).await?;
        // Kills the containers of killed tests, but not those of tests that still run.
        for run in manager.wait_recovery().await? {
            if !run.owned_elsewhere() {
                run.kill().await?;
            }
        }
        Ok(manager)
    };
    MOAT.get_or_try_init(open)
        .await
        .unwrap_or_else(|error| panic!("{}", error.chain()))
}

/// The service under test: a web server that takes a moment to start.
fn web(image: &str) -> RunSpec {
    let script = "trap 'exit 0' TERM; echo starting >&2; mkdir -p /www; echo hello > /www/index.html; \
                  httpd -f -v -p 80 -h /www & echo listening; wait $!";
    RunSpec::new(image)
        .cmd(["sh", "-c", script])
        .port(Port::tcp(80).address("127.0.0.1"))
        // If this process is killed, the next process or a reaper may end the run after this time.
        .time_limit(Duration::from_secs(300))
}

async fn start_web(image: &str) -> (Service, SocketAddr) {
    let ready = [Ready::line("listening"), Ready::port(80)];
    let started = moat().await.service(web(image), ready).await;
    // The error contains the last lines of the container's output.
    let service = started.unwrap_or_else(|error| panic!("{}", error.chain()));
    let at = service.port(80).await.expect("port 80 is published");
    (service, at)
}

// #[tokio::test]
async fn test_that_the_page_says_hello(image: &str) {
    let (_web, at) = start_web(image).await;
    assert_eq!(get(at, "/index.html"), "200 hello");
} // the container is stopped and removed here, and its audit is sealed

// #[tokio::test]
async fn test_that_other_pages_are_not_there(image: &str) {
    let (web, at) = start_web(image).await;
    assert!(get(at, "/secret").starts_with("404"));
    // The server logs the request.
    web.wait_ready(Ready::line("response:404"))
        .await
        .expect("the request is logged");
}

// #[test]
fn test_without_async(image: &str) {
    let connected = blocking::connect(moat::Fallback::None).expect("an engine");
    let manager = blocking::Manager::open(ROOT, connected.runtime).expect("a root");
    let web = manager
        .service(web(image), [Ready::port(80)])
        .unwrap_or_else(|error| panic!("{}", error.chain()));
    let at = web.port(80).expect("port 80 is published");
    assert_eq!(get(at, "/index.html"), "200 hello");
}

// #[tokio::test]
async fn test_that_fails(image: &str) {
    let (_web, at) = start_web(image).await;
    assert_eq!(get(at, "/missing"), "200 hello");
} // the failure shows the last lines of the container, and the path of its audit

/// Requests a page, and returns its status and body.
fn get(at: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(at).expect("a connection");
    write!(stream, "GET {path} HTTP/1.0\r\n\r\n").expect("a request");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
    let status = head.split(' ').nth(1).expect("a status");
    format!("{status} {}", body.trim())
}

/// Runs a test on a new runtime, as `#[tokio::test]` does.
fn tokio_test(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(test);
}

type Test = fn(&str);

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let image = &*arguments.next().unwrap_or_else(|| "busybox".to_owned());
    let fail = arguments.next().is_some();
    let tests: [(&str, Test); 4] = [
        ("the page says hello", |image| {
            tokio_test(test_that_the_page_says_hello(image))
        }),
        ("other pages are not there", |image| {
            tokio_test(test_that_other_pages_are_not_there(image))
        }),
        ("without async", test_without_async),
        ("fails", |image| tokio_test(test_that_fails(image))),
    ];
    let mut code = ExitCode::SUCCESS;
    for (name, test) in &tests[..if fail { 4 } else { 3 }] {
        match std::panic::catch_unwind(|| test(image)) {
            Ok(()) => println!("test {name} ... ok"),
            Err(_) => {
                println!("test {name} ... FAILED");
                code = ExitCode::FAILURE;
            }
        }
    }
    code
}
