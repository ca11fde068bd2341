//! A test suite with a service in a container, as with testcontainers.

use std::path::Path;

use moat::{Docker, Manager, Port, Ready, Result, RunSpec, Service};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const SERVER: &str = "mkdir /tmp/www; echo hello > /tmp/www/page; echo serving; \
                      exec httpd -f -p 80 -h /tmp/www";

/// The service of each test. It ends with the test, and its log stays in `root`.
async fn server(root: &Path, image: &str) -> Result<Service> {
    let manager = Manager::open(root, Docker::connect().await?).await?;
    let spec = RunSpec::new(image)
        .cmd(["sh", "-c", SERVER])
        .init(true)
        .port(Port::tcp(80));
    manager
        .service(spec, [Ready::line("serving"), Ready::http(80, "/page")])
        .await
}

async fn get(server: &Service, path: &str) -> String {
    let mut stream = TcpStream::connect(server.port(80).await.unwrap())
        .await
        .unwrap();
    let request = format!("GET {path} HTTP/1.0\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut response = String::new();
    stream.read_to_string(&mut response).await.unwrap();
    response
}

pub async fn a_page_is_served(root: &Path, image: &str) {
    let server = server(root, image).await.unwrap();
    assert!(get(&server, "/page").await.ends_with("hello\n"));
}

pub async fn a_new_page_is_served(root: &Path, image: &str) {
    let server = server(root, image).await.unwrap();
    server.write_file("/tmp/www/new", "new\n").await.unwrap();
    assert!(get(&server, "/new").await.ends_with("new\n"));
}

pub async fn a_missing_page_is_an_error(root: &Path, image: &str) {
    let server = server(root, image).await.unwrap();
    assert!(get(&server, "/none").await.contains("404"));
}
