//! Tests of the server, over HTTP and WebSocket.

use testkit::harness::Harness;

fn main() {
    Harness::from_args(4).run()
}
