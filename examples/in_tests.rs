//! Containers for the length of a test: an example that is worth copying into `tests/`.
//!
//! ```sh
//! cargo run --features blocking --example in_tests               # in busybox
//! cargo run --features blocking --example in_tests -- IMAGE      # in another one that has its httpd
//! cargo run --features blocking --example in_tests -- IMAGE fail # and what a failure looks like
//! ```
//!
//! In a crate of yours, each `test_...` has `#[tokio::test]` or `#[test]` above it, and `main` is
//! that of `cargo test`.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::ExitCode;
use std::time::Duration;

use moat::{Docker, Manager, Port, Ready, RunSpec, Service, blocking};
use tokio::sync::OnceCell;

/// Where the audits of all tests go. In an integration test `env!("CARGO_TARGET_TMPDIR")` has a
/// place for it: one that stays, so that each opening ends what the one before has left.
const ROOT: &str = "target/in-tests";

/// One manager for all tests of this process, whichever comes first. Its tasks are on threads of
/// its own, and so it does not matter that the runtime of that test ends.
async fn moat() -> &'static Manager {
    static MOAT: OnceCell<Manager> = OnceCell::const_new();
    let open = async || -> moat::Result<Manager> {
        let manager = Manager::open(ROOT, Docker::connect().await?).await?;
        // What tests that were killed have left; not what tests that run now have started.
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

/// The service that the tests need: a web server that takes a moment to start.
fn web(image: &str) -> RunSpec {
    let script = "trap 'exit 0' TERM; echo starting >&2; mkdir -p /www; echo hello > /www/index.html; \
                  httpd -f -v -p 80 -h /www & echo listening; wait $!";
    RunSpec::new(image)
        .cmd(["sh", "-c", script])
        .port(Port::tcp(80).address("127.0.0.1"))
        // Should this process be killed, this is when the next one, or a reaper, may end it.
        .time_limit(Duration::from_secs(300))
}

async fn start_web(image: &str) -> (Service, SocketAddr) {
    let ready = [Ready::line("listening"), Ready::port(80)];
    let started = moat().await.service(web(image), ready).await;
    // Its message has the last lines of the container's output.
    let service = started.unwrap_or_else(|error| panic!("{}", error.chain()));
    let at = service.port(80).await.expect("it is published");
    (service, at)
}

// #[tokio::test]
async fn test_that_the_page_says_hello(image: &str) {
    let (_web, at) = start_web(image).await;
    assert_eq!(get(at, "/index.html"), "200 hello");
} // here the container is stopped, its audit sealed, and the container removed

// #[tokio::test]
async fn test_that_other_pages_are_not_there(image: &str) {
    let (web, at) = start_web(image).await;
    assert!(get(at, "/secret").starts_with("404"));
    // What the server has logged of it.
    web.wait_ready(Ready::line("response:404"))
        .await
        .expect("it is logged");
}

// #[test]
fn test_without_async(image: &str) {
    let there = blocking::connect(moat::Fallback::None).expect("an engine");
    let manager = blocking::Manager::open(ROOT, there.runtime).expect("a root");
    let web = manager
        .service(web(image), [Ready::port(80)])
        .unwrap_or_else(|error| panic!("{}", error.chain()));
    let at = web.port(80).expect("it is published");
    assert_eq!(get(at, "/index.html"), "200 hello");
}

// #[tokio::test]
async fn test_that_fails(image: &str) {
    let (_web, at) = start_web(image).await;
    assert_eq!(get(at, "/missing"), "200 hello");
} // its last lines, and where its audit is, are shown with the failure

/// The status and the body of a page.
fn get(at: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(at).expect("a connection");
    write!(stream, "GET {path} HTTP/1.0\r\n\r\n").expect("a request");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
    let status = head.split(' ').nth(1).expect("a status");
    format!("{status} {}", body.trim())
}

/// Runs a test as `#[tokio::test]` does: on a runtime of its own, which ends with it.
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
