//! The example `quickstart`.

use testkit::audit::Audit;

use crate::place::{Place, assert_code, example, output, text};

testkit::trials! {
    crate::on_engine:
        quickstart_says_which_engine_it_has_found,
        quickstart_says_how_to_get_an_image;
    crate::anywhere:
        quickstart_runs_a_local_process_where_there_is_no_engine_and_says_so,
}

/// Whether or not that has busybox.
fn quickstart_says_which_engine_it_has_found(place: &Place) {
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

fn quickstart_runs_a_local_process_where_there_is_no_engine_and_says_so(place: &Place) {
    let mut command = example("quickstart");
    command.current_dir(place.dir.path());
    command.env("DOCKER_HOST", "unix:///nowhere/docker.sock");
    let found = output(command);
    assert_code(&found, 0);
    let stdout = text(&found.stdout);
    let mut lines = stdout.lines();
    let first = lines.next().unwrap();
    assert!(first.starts_with("runtime: local processes"), "{stdout}");
    let why = match cfg!(feature = "docker") {
        true => "/nowhere/docker.sock",
        false => "without its feature `docker`",
    };
    assert!(first.contains(why), "{stdout}");
    assert!(stdout.contains("stdout: hello, stranger\n"), "{stdout}");
    assert!(stdout.contains("exited with code 3; audit complete"));
    let audit = stdout.lines().last().unwrap().strip_prefix("audit: ");
    Audit::read(&place.dir.path().join(audit.unwrap())).unwrap();
}

fn quickstart_says_how_to_get_an_image(place: &Place) {
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
