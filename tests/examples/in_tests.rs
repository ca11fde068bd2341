//! The example `in_tests`.

use testkit::audit::Audit;
use testkit::{busybox, engine};

use crate::place::{Place, assert_code, example, output, text};

testkit::trials! {
    crate::with_busybox:
        a_failure_shows_the_output_of_its_service,
}

fn a_failure_shows_the_output_of_its_service(place: &Place) {
    let docker = engine::connect().unwrap();
    let image = engine::block_on(async { busybox::provide(&docker).await.unwrap() });
    let mut command = example("in_tests");
    command
        .current_dir(place.dir.path())
        .args([&*image, "fail"]);
    let found = output(command);
    let root = place.dir.path().join("target/in-tests");
    let id = engine::root_id(&root).unwrap();
    let left =
        engine::block_on(async { engine::containers(&engine::address(), &id).await.unwrap() });
    engine::sweep(&root);
    assert_code(&found, 1);
    assert_eq!(
        text(&found.stdout),
        "test the page says hello ... ok\ntest other pages are not there ... ok\n\
         test without async ... ok\ntest fails ... FAILED\n"
    );
    let stderr = text(&found.stderr);
    let shown = stderr.split("\nmoat: ").skip(1).collect::<Vec<_>>();
    assert_eq!(shown.len(), 2, "{stderr}");
    let (_, lines) = shown[0].split_once("; its last lines:\n").unwrap();
    // Two streams have no common order.
    for line in ["  starting", "  listening"] {
        assert!(lines.lines().any(|shown| shown == line), "{stderr}");
    }
    let audit = shown[1].trim().strip_prefix("audit file: ").unwrap();
    let audit = Audit::read(&place.dir.path().join(audit)).unwrap();
    assert_eq!(audit.verdict(), "complete");
    assert!(left.is_empty(), "{left:?}");
}
