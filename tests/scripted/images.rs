//! Images of the engine.

use moat::runtime::RuntimeError;
use moat::runtime::scripted::{Call, Fault, Script};
use moat::spec::{Credentials, KeepContainer, Pull, PullOptions};
use moat::{Error, RunSpec};

use crate::bench::{Bench, sealed};

#[tokio::test]
async fn an_image_is_listed_removed_and_pulled_again() {
    let bench = Bench::new();
    let manager = bench.open().await;
    bench.runtime.image("worker:1", Script::new());
    let image = manager.image("worker:1");
    assert!(image.exists().await.unwrap());
    let info = image.inspect().await.unwrap();
    assert_eq!(info.tags, ["worker:1"]);
    assert_eq!(manager.images().await.unwrap(), std::slice::from_ref(&info));

    assert!(image.remove(false).await.unwrap());
    assert!(!image.remove(false).await.unwrap(), "removed twice");
    assert!(!image.exists().await.unwrap());
    assert_eq!(manager.images().await.unwrap(), []);
    let Err(Error::Runtime(error)) = image.inspect().await else {
        panic!("a removed image was described");
    };
    assert!(error.is_not_found() && error.to_string().contains("worker:1"));

    let never = image.pull(PullOptions::new().policy(Pull::Never)).await;
    assert!(matches!(
        never,
        Err(Error::Runtime(RuntimeError::NoSuchImage { .. }))
    ));
    assert_eq!(image.pull(PullOptions::new()).await.unwrap(), info);
    assert!(image.exists().await.unwrap());
}

#[tokio::test]
async fn an_image_in_use_is_a_conflict() {
    let bench = Bench::new();
    let manager = bench.open().await;
    let image = manager.image("worker:1");
    let spec = RunSpec::new(image.name()).keep(KeepContainer::Always);
    let run = bench.start(&manager, Script::new(), spec).await;
    sealed(&run).await;
    let conflict = image.remove(false).await;
    assert!(
        matches!(conflict, Err(Error::Runtime(RuntimeError::Conflict { .. }))),
        "{conflict:?}"
    );
    assert!(image.exists().await.unwrap());
    assert!(image.remove(true).await.unwrap());
}

#[tokio::test]
async fn a_failed_pull_shows_no_password() {
    const PASSWORD: &str = "s3cr3t-value";
    let bench = Bench::new();
    let manager = bench.open().await;
    let error = RuntimeError::Rejected {
        operation: "pull the image",
        reason: format!("the registry refused {PASSWORD}"),
    };
    bench.runtime.fault(Call::Prepare, Fault::Error(error));
    let options = PullOptions::new().credentials(Credentials::new("me", PASSWORD));
    assert!(!format!("{options:?}").contains(PASSWORD));
    let error = manager.image("worker:1").pull(options).await.unwrap_err();
    let text = format!("{} {error:?}", error.chain());
    assert!(text.contains("the registry refused"), "{text}");
    assert!(!text.contains(PASSWORD), "{text}");
}

#[tokio::test]
async fn an_invalid_name_is_refused_before_a_pull() {
    let bench = Bench::new();
    let manager = bench.open().await;
    for name in ["", "a b"] {
        let error = manager.image(name).pull(PullOptions::new()).await;
        assert!(matches!(error, Err(Error::InvalidSpec(_))), "{error:?}");
    }
    assert_eq!(bench.runtime.calls(Call::Prepare), 0);
}

#[cfg(feature = "process")]
#[tokio::test]
async fn local_processes_have_no_images() {
    let dir = tempfile::tempdir().unwrap();
    let manager = moat::Manager::open(dir.path(), moat::LocalProcess::new());
    let manager = manager.await.unwrap();
    let image = manager.image("worker:1");
    for error in [
        manager.images().await.unwrap_err(),
        image.exists().await.unwrap_err(),
        image.inspect().await.unwrap_err(),
        image.pull(PullOptions::new()).await.unwrap_err(),
        image.remove(true).await.unwrap_err(),
    ] {
        assert!(
            matches!(error, Error::Runtime(RuntimeError::Unsupported { .. })),
            "{error}"
        );
    }
}
