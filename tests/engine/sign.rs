//! Signatures of the audit files of containers.

use moat::sign::{AllowedSigners, SigningKey, signature_path};
use moat::sink::Jsonl;
use moat::spec::ExecSpec;
use moat::{Docker, Manager, RunSpec, ShutdownMode};
use testkit::deadline::eventually;
use testkit::keygen::{Check, Keys};

use crate::stage::{Stage, end, read};

testkit::trials! {
    crate::on_busybox:
        ssh_keygen_verifies_a_container_and_an_exec,
}

async fn ssh_keygen_verifies_a_container_and_an_exec(stage: &Stage) {
    let keys = Keys::new();
    let key = SigningKey::from_file(keys.path("key")).unwrap();
    let allowed = keys.write("allowed", format!("me {}\n", key.public_key()));
    let docker = Docker::connect().await.unwrap();
    let builder = Manager::builder(stage.root(), docker);
    let manager = builder.sink(Jsonl::new().signed_by(key)).open().await;
    let manager = manager.unwrap();
    let spec = RunSpec::new(&stage.image)
        .cmd(["sleep", "600"])
        .network("none");
    let run = manager.start(spec).await.unwrap();
    let exec = run.exec(ExecSpec::new(["echo", "exec"])).await.unwrap();
    while exec.wait().await.unwrap().sealed().is_none() {}
    run.kill().await.unwrap();
    read(&end(&run).await);
    eventually(60, "the signatures", async || {
        let info = manager.root().info(run.id()).unwrap();
        info.unsigned.is_none().then_some(())
    })
    .await;
    let check = Check::new(&allowed);
    for path in [run.audit().unwrap(), exec.audit().unwrap()] {
        assert!(check.accepts(&path, &signature_path(&path)), "{path:?}");
    }
    let signers = AllowedSigners::from_file(&allowed).unwrap();
    let root = manager.root();
    root.verify_signature(run.id(), &signers).unwrap();
    root.verify_exec_signature(run.id(), 1, &signers).unwrap();
    manager.shutdown(ShutdownMode::Leave).await;
}
