//! Readiness by an HTTP response over TLS.

use std::net::SocketAddr;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use moat::run::{HttpCheck, HttpTls};
use moat::runtime::scripted::Call;
use moat::{Error, Ready, RunSpec};
use testkit::deadline::within;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::bench::{Bench, named};
use crate::ready::{SECOND, endless};

/// A CA, valid until 2120.
const CA: &str = "\
MIIBPDCB46ADAgECAgEBMAoGCCqGSM49BAMCMA0xCzAJBgNVBAMMAmNhMCAXDTIwMDEwMTAwMDAwMFoYDzIx\
MjAwMTAxMDAwMDAwWjANMQswCQYDVQQDDAJjYTBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABF8CbW2gQzdN\
GgwPUB1umQe6osQYa/rivgb0P3pcjAes1rY2gJY+ReNxoCJ8o+x8VJG4GedVIvQtFR24yjLH8k+jMjAwMA8G\
A1UdEwEB/wQFMAMBAf8wHQYDVR0OBBYEFH9SIQG2dMw5HtHQXtXuJaNDJJBWMAoGCCqGSM49BAMCA0gAMEUC\
IC6t1qEZMpyZkEiCJrLpq3JBpYexubnwT9ZBpDWSowLhAiEAylTjSxeYyYIc9WrIxBMKFXFg+2Go1D7o0uxS\
VsTrnok=";
/// Another CA.
const OTHER_CA: &str = "\
MIIBQzCB6aADAgECAgECMAoGCCqGSM49BAMCMBAxDjAMBgNVBAMMBW90aGVyMCAXDTIwMDEwMTAwMDAwMFoY\
DzIxMjAwMTAxMDAwMDAwWjAQMQ4wDAYDVQQDDAVvdGhlcjBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABBm/\
9M5zYku1u0yWoEz66Xe0Am9s1nr+m4IsxYQuWo1XSkp99bOVjT4JdI+Hj1lecXLGTLDPIOv4XAFfFVEzEP6j\
MjAwMA8GA1UdEwEB/wQFMAMBAf8wHQYDVR0OBBYEFKnYevDRCR5ZxbaNK69dHq8S+uV0MAoGCCqGSM49BAMC\
A0kAMEYCIQCCsKixfR9C1gvv5/NsXJUThFeIR4WchvmaOlEYBgrVKQIhAINNBWLKEuYFg08kqlD609c2SkBZ\
6XhmjgIt6TX22GOg";
/// A certificate of `CA` for `localhost` and `db`.
const CERTIFICATE: &str = "\
MIIBdjCCARugAwIBAgIBAzAKBggqhkjOPQQDAjANMQswCQYDVQQDDAJjYTAgFw0yMDAxMDEwMDAwMDBaGA8y\
MTIwMDEwMTAwMDAwMFowDTELMAkGA1UEAwwCZGIwWTATBgcqhkjOPQIBBggqhkjOPQMBBwNCAAR9+tK9BSq2\
OphRzrRTvQrHoi5h8O1bA8MVvhkOe6AVTgpv0dQ61Ws8XEU4uJSj9/4hVoyWZWL/xbLbWCa0hBIuo2owaDAY\
BgNVHREEETAPgglsb2NhbGhvc3SCAmRiMAwGA1UdEwEB/wQCMAAwHQYDVR0OBBYEFA2lqFhoxuSwuJSgYp5r\
0++qByw3MB8GA1UdIwQYMBaAFH9SIQG2dMw5HtHQXtXuJaNDJJBWMAoGCCqGSM49BAMCA0kAMEYCIQCjOMrO\
3BSGT9xWRsQ4oIqtEwmvIe5Xt7WzAd9iQ0e34AIhAIzA5sIwCW2xczRGYo8y0ywdUi1lh8v0ge5RvlGfHTy1";
/// The key of `CERTIFICATE`, for these tests alone.
const KEY: &str = "\
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgfXsyfspg8hQ1XvAhWBR8WA7n+ksDbvd6Vzaj\
xI5/iAqhRANCAAR9+tK9BSq2OphRzrRTvQrHoi5h8O1bA8MVvhkOe6AVTgpv0dQ61Ws8XEU4uJSj9/4hVoyW\
ZWL/xbLbWCa0hBIu";

fn pem(base64: &str) -> String {
    format!("-----BEGIN CERTIFICATE-----\n{base64}\n-----END CERTIFICATE-----\n")
}

/// Serves empty responses, with or without TLS.
async fn server(tls: bool) -> SocketAddr {
    let der = |base64| STANDARD.decode(base64).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![CertificateDer::from(der(CERTIFICATE))],
            PrivateKeyDer::try_from(der(KEY)).unwrap(),
        );
    let acceptor = TlsAcceptor::from(Arc::new(config.unwrap()));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    let response = b"HTTP/1.1 204 No Content\r\n\r\n";
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            if !tls {
                let _ = stream.read_u8().await;
                let _ = stream.write_all(response).await;
            } else if let Ok(mut stream) = acceptor.accept(stream).await {
                let _ = stream.read_u8().await;
                let _ = stream.write_all(response).await;
                let _ = stream.shutdown().await;
            }
        }
    });
    at
}

fn check(tls: HttpTls) -> Ready {
    Ready::http_with(HttpCheck::new(443, "/x").tls(tls)).within(SECOND)
}

#[tokio::test]
async fn a_server_must_have_a_trusted_certificate() {
    let bench = Bench::new();
    let manager = bench.open_on_threads().await;
    let script = endless().port(443, server(true).await);
    let script = script.port(80, server(false).await);
    let run = bench.start(&manager, script, named("web")).await;
    for tls in [
        HttpTls::ca(pem(CA)),
        HttpTls::ca(pem(CA)).server_name("db"),
        HttpTls::insecure().server_name("other"),
    ] {
        let waited = within(20, "readiness", run.wait_ready(check(tls)));
        waited.await.unwrap();
    }
    let plain = HttpCheck::new(80, "/x").tls(HttpTls::insecure());
    for (late, expected) in [
        (check(HttpTls::ca(pem(OTHER_CA))), "UnknownIssuer"),
        (
            check(HttpTls::ca(pem(CA)).server_name("other")),
            "not valid for name",
        ),
        (
            Ready::http_with(plain).within(SECOND),
            "the server does not use TLS",
        ),
    ] {
        let waited = within(20, "the error", run.wait_ready(late)).await;
        let Error::NotReady { reason, .. } = waited.unwrap_err() else {
            panic!("another error");
        };
        assert!(
            reason.contains("before GET /x over TLS on port"),
            "{reason}"
        );
        assert!(reason.contains(expected), "{reason}");
    }
    run.kill().await.unwrap();
}

#[tokio::test]
async fn invalid_tls_options_start_nothing() {
    let bench = Bench::new();
    let manager = bench.open_on_threads().await;
    for (tls, field) in [
        (HttpTls::ca(""), "ca"),
        (HttpTls::ca("-----BEGIN CERTIFICATE-----\n*"), "ca"),
        (HttpTls::ca(pem("c2VjcmV0")), "ca"),
        (HttpTls::insecure().server_name("a b"), "server_name"),
    ] {
        let started = manager.service(RunSpec::new("any"), [check(tls)]);
        let error = within(20, "the error", started).await.unwrap_err();
        let Error::InvalidSpec(invalid) = &error else {
            panic!("{}", error.chain());
        };
        assert_eq!(invalid.field, field);
    }
    assert_eq!(bench.runtime.calls(Call::Create), 0);
}
