//! A user without rights.

use moat::{Error, Manager};

use crate::cluster;
use crate::stage::Stage;

testkit::trials! {
    crate::on_local_cluster:
        an_error_names_the_missing_rights,
}

async fn an_error_names_the_missing_rights(stage: &Stage) {
    let nobody = cluster::connect_as("nobody").await;
    let manager = Manager::open(stage.root(), nobody).await.unwrap();
    let error = manager.start(stage.spec("echo never")).await.unwrap_err();
    assert!(matches!(error, Error::NotStarted { .. }), "{error:?}");
    let text = error.chain().to_string();
    for right in ["create pods", "create pods/exec", "create configmaps"] {
        assert!(text.contains(right), "{right:?} is missing: {text}");
    }
    assert!(text.contains("namespace default"), "{text}");
    assert!(cluster::pods(&stage.root_id()).is_empty());
}
