//! The kubeconfig, and the first request.

use std::fs;

use moat::runtime::Runtime;
use moat::runtime::kubernetes::{ClusterOptions, Kubernetes};

use super::answers::{page, status};
use super::{Recorded, assert_inconclusive, kubeconfig};

testkit::trials! {
    super::recorded:
        a_kubeconfig_can_be_named,
        a_context_of_a_named_kubeconfig_is_used,
        an_unusable_kubeconfig_is_named,
        a_server_that_refuses_is_named,
}

async fn a_kubeconfig_can_be_named(recorded: &Recorded) {
    let cluster = recorded.connect().await;
    let address = &recorded.server.address;
    assert_eq!(
        cluster.to_string(),
        format!("Kubernetes at {address}/, namespace ci")
    );
    let engine = cluster.engine().await.unwrap();
    assert_eq!(engine.version, "v1.20.2");
    assert!(engine.id.is_some());
}

async fn a_context_of_a_named_kubeconfig_is_used(recorded: &Recorded) {
    let options = ClusterOptions::default().kubeconfig(recorded.kubeconfig());
    let cluster = Kubernetes::connect_with(options.clone().context("other"));
    let cluster = cluster.await.unwrap().to_string();
    assert!(cluster.ends_with("namespace elsewhere"), "{cluster}");
    let named = options.clone().context("other").namespace("named");
    let cluster = Kubernetes::connect_with(named).await.unwrap().to_string();
    assert!(cluster.ends_with("namespace named"), "{cluster}");
    let error = Kubernetes::connect_with(options.context("none"));
    let error = error.await.unwrap_err().chain().to_string();
    assert!(error.contains("none"), "{error}");
}

async fn an_unusable_kubeconfig_is_named(recorded: &Recorded) {
    let path = recorded.dir.path().join("missing");
    for content in [None, Some("clusters: 7")] {
        if let Some(content) = content {
            fs::write(&path, content).unwrap();
        }
        let options = ClusterOptions::default().kubeconfig(&path);
        let error = Kubernetes::connect_with(options).await.unwrap_err();
        let error = error.chain().to_string();
        assert!(error.contains(path.to_str().unwrap()), "{error}");
    }
    // A server that does not listen.
    fs::write(&path, kubeconfig("http://127.0.0.1:1")).unwrap();
    let options = ClusterOptions::default().kubeconfig(&path);
    let error = Kubernetes::connect_with(options).await.unwrap_err();
    let error = error.chain().to_string();
    assert!(error.contains("http://127.0.0.1:1"), "{error}");
}

async fn a_server_that_refuses_is_named(recorded: &Recorded) {
    for (answer, text) in [
        (status(401, "Unauthorized", "Unauthorized"), "Unauthorized"),
        (page(502, "<html><h1>Bad Gateway</h1></html>"), "502"),
        (page(200, "<html>Please log in</html>"), "Please log in"),
    ] {
        recorded.server.answer("get version", [answer]);
        let options = ClusterOptions::default().kubeconfig(recorded.kubeconfig());
        let error = Kubernetes::connect_with(options).await.unwrap_err();
        let error = error.chain().to_string();
        assert!(error.contains(&recorded.server.address), "{error}");
        assert!(error.contains(text), "{error}");
    }
    recorded.server.answer("get version", []);
    let cluster = recorded.connect().await;
    recorded
        .server
        .answer("get version", [status(401, "Unauthorized", "Unauthorized")]);
    assert_inconclusive(cluster.engine().await);
}
