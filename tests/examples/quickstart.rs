//! The example `quickstart`.

use testkit::audit::Audit;
use testkit::engine;

use crate::place::{Place, assert_code, example, output, text};

testkit::trials! {
    crate::on_engine:
        it_names_the_engine_that_it_found,
        a_missing_image_prints_how_to_get_one;
    crate::anywhere:
        without_an_engine_it_runs_a_local_process,
        a_named_engine_that_is_absent_is_an_error,
}

/// On any engine, with or without the image.
fn it_names_the_engine_that_it_found(place: &Place) {
    place.image();
    let mut command = example("quickstart");
    command.current_dir(place.dir.path());
    let found = output(command);
    assert_code(&found, 0);
    let stdout = text(&found.stdout);
    assert!(
        stdout.starts_with("runtime: Docker Engine ")
            || stdout.starts_with("runtime: Podman Engine "),
        "{stdout}"
    );
    assert!(stdout.contains("stdout: hello, stranger\n"), "{stdout}");
    assert!(stdout.contains("exited with code 3; audit complete"));
}

fn without_an_engine_it_runs_a_local_process(place: &Place) {
    let mut command = example("quickstart");
    command.current_dir(place.dir.path());
    engine::hide(&mut command, place.dir.path());
    let found = output(command);
    assert_code(&found, 0);
    let stdout = text(&found.stdout);
    let mut lines = stdout.lines();
    let first = lines.next().unwrap();
    assert!(first.starts_with("runtime: local processes"), "{stdout}");
    let why = match cfg!(feature = "docker") {
        true => "/nowhere/docker.sock",
        false => "without the feature `docker`",
    };
    assert!(first.contains(why), "{stdout}");
    assert!(stdout.contains("stdout: hello, stranger\n"), "{stdout}");
    assert!(stdout.contains("exited with code 3; audit complete"));
    let audit = stdout.lines().last().unwrap().strip_prefix("audit: ");
    Audit::read(&place.dir.path().join(audit.unwrap())).unwrap();
}

fn a_named_engine_that_is_absent_is_an_error(place: &Place) {
    for (variable, value) in [
        ("DOCKER_HOST", "unix:///nowhere/docker.sock"),
        ("DOCKER_HOST", "tcp://127.0.0.1:1"),
        ("DOCKER_HOST", "nowhere"),
        // `hide` makes the context `nowhere`.
        ("DOCKER_CONTEXT", "nowhere"),
        ("DOCKER_CONTEXT", "missing"),
    ] {
        let mut command = example("quickstart");
        command.current_dir(place.dir.path());
        engine::hide(&mut command, place.dir.path());
        command.env(variable, value);
        let found = output(command);
        assert_code(&found, 1);
        assert_eq!(text(&found.stdout), "");
        let stderr = text(&found.stderr);
        for part in [
            "cannot reach the engine at ",
            if cfg!(feature = "docker") {
                value
            } else {
                variable
            },
            &format!("from {variable}"),
            &format!(
                "unset {}",
                if cfg!(feature = "docker") {
                    "it"
                } else {
                    variable
                }
            ),
        ] {
            assert!(stderr.contains(part), "{part}: {stderr}");
        }
        assert!(!place.dir.path().join("moat-runs").exists());
    }
}

fn a_missing_image_prints_how_to_get_one(place: &Place) {
    place.image();
    let mut command = example("quickstart");
    command.current_dir(place.dir.path());
    command.arg("localhost:1/nothing:here");
    let output = output(command);
    assert_code(&output, 1);
    let stderr = text(&output.stderr);
    assert!(stderr.contains("localhost:1/nothing:here"), "{stderr}");
    assert!(stderr.contains("docker import"), "{stderr}");
}
