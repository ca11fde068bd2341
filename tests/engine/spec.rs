//! Settings of a spec: they reach the container or are refused.

use std::fs;
use std::time::Duration;

use moat::audit::{LogState, verify};
use moat::spec::{Gpus, InvalidSpec, KeepContainer, LimitAction, Mount, Relabel};
use moat::{Docker, Error, Manager, RunId, RunSpec};
use serde_json::{Value, json};
use testkit::{engine, sequence};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;

use crate::stage::{Stage, assert_bytes, assert_complete, end, read};

testkit::trials! {
    crate::on_engine:
        moat_sets_lossless_log_options,
        the_settings_reach_the_container,
        the_label_of_a_mount_reaches_the_engine,
        the_variables_of_a_file_reach_the_container,
        a_patch_that_breaks_a_promise_is_refused,
        a_refused_create_leaves_a_sealed_audit,
        accepted_odd_values_have_their_effect,
        the_longest_argument_reaches_the_process,
        absurd_limits_leave_a_sealed_audit;
    crate::on_engine_or_skip:
        the_host_is_reached_by_name,
}

async fn the_host_is_reached_by_name(stage: &Stage) -> Result<(), String> {
    let server = TcpListener::bind("0.0.0.0:0").await.unwrap();
    let port = server.local_addr().unwrap().port();
    let greet = tokio::spawn(async move {
        let (mut connection, _) = server.accept().await.unwrap();
        connection
            .write_all(b"hello from the host\n")
            .await
            .unwrap();
    });
    let spec = stage
        .spec(&format!("dial host.docker.internal {port}"))
        .network("bridge")
        .host_gateway();
    let manager = stage.manager().await;
    let run = match manager.start(spec).await {
        Ok(run) => run,
        // An engine without a bridge has no gateway.
        Err(error) if error.chain().contains("host-gateway") => return Err(error.chain()),
        Err(error) => panic!("{}", error.chain()),
    };
    let outcome = end(&run).await;
    let refused = ["timed out", "No route to host", "Network is unreachable"];
    let last = outcome.last_lines.iter().map(|line| format!("{line:?}"));
    let last = last.collect::<String>();
    if refused.iter().any(|text| last.contains(text)) {
        return Err(format!("the host is out of reach: {last}"));
    }
    // `tests/engines` gives Podman another network than that of this program.
    if engine::is_podman() && last.contains("Connection refused") {
        return Err(format!("another host was reached: {last}"));
    }
    assert!(outcome.success(), "{outcome}\n{last}");
    assert_bytes(read(&outcome).stream("stdout"), b"hello from the host\n");
    greet.await.unwrap();
    Ok(())
}

/// The daemon's defaults can rotate output away, and are merged in.
async fn moat_sets_lossless_log_options(stage: &Stage) {
    let (outcome, audit) = stage
        .run(stage.spec("echo x").keep(KeepContainer::Always))
        .await;
    assert!(outcome.success());
    let container = stage.containers().await.remove(0);
    let found = stage.inspect(&container).await;
    let host = &found["HostConfig"];
    assert_eq!(host["AutoRemove"], false);
    if engine::is_podman() {
        // Its log has no limit, and it reports no options.
        assert_eq!(audit.all("started")[0]["log"]["fidelity"], "exact");
        return;
    }
    assert_eq!(host["LogConfig"]["Type"], "json-file");
    let options = &host["LogConfig"]["Config"];
    assert_eq!(options["mode"], "blocking");
    assert_eq!(options["max-file"], "1");
    let size = options["max-size"].as_str().unwrap();
    assert!(!size.is_empty() && size != "-1");
    assert_eq!(
        audit.all("started")[0]["log"]["options"]["mode"],
        "blocking"
    );
}

async fn the_settings_reach_the_container(stage: &Stage) {
    let host = stage.dir.path().join("host");
    std::fs::create_dir(&host).unwrap();
    std::fs::write(host.join("file"), "from the host\n").unwrap();
    let spec = stage
        .spec(
            "env GREETING + pwd + whoami + read /data/file + read /proc/sys/kernel/hostname \
             + write /memory/file x + stat /memory/file + exit 0",
        )
        .env("GREETING", "hello = world")
        .workdir("/work")
        .user("1000:1001")
        .hostname("moored_1")
        .mount(Mount::bind(host, "/data").read_only(true))
        .tmpfs("/memory", Some(1 << 20))
        .memory(64 << 20)
        .pids_limit(50)
        .cap_drop("ALL")
        .read_only(true)
        .label("team", "blue")
        .keep(KeepContainer::Always);
    let (outcome, audit) = stage.run(spec).await;
    assert!(outcome.success(), "{outcome}\n{:?}", outcome.last_lines);
    let expected = "hello = world\n/work\n1000:1001\nfrom the host\nmoored_1\n100644 1 bytes\n";
    assert_bytes(audit.stream("stdout"), expected.as_bytes());
    let container = stage.containers().await.remove(0);
    let found = stage.inspect(&container).await;
    assert_eq!(found["HostConfig"]["Memory"], 64 << 20);
    assert_eq!(found["HostConfig"]["PidsLimit"], 50);
    assert_eq!(found["Config"]["Labels"]["team"], "blue");
    // Two roots never collide, even with equal run ids.
    let name = found["Name"].as_str().unwrap();
    assert!(
        name.starts_with("/moat-") && name.ends_with(outcome.run.as_str()),
        "{name}"
    );
    let other = stage.dir.path().join("other");
    let docker = Docker::connect().await.unwrap();
    let manager = Manager::open(other, docker).await.unwrap();
    let run = manager
        .start(stage.spec("lines 1").id(outcome.run))
        .await
        .unwrap();
    let audit = read(&end(&run).await);
    sequence::check(audit.stream("stdout"), "out", 1, 64).unwrap();
}

async fn the_label_of_a_mount_reaches_the_engine(stage: &Stage) {
    let host = stage.dir.path().join("host");
    fs::create_dir(&host).unwrap();
    fs::write(host.join("file"), "from the host\n").unwrap();
    let volume = format!("moat-trial-{}", std::process::id());
    let shared =
        |at: &str| Mount::bind(stage.dir.path().join(at), "/data").relabel(Relabel::Shared);
    let spec = stage
        .spec("read /data/file")
        .mount(shared("host").read_only(true))
        .mount(format!("{volume}:/cache:Z").parse().unwrap())
        .keep(KeepContainer::Always);
    let (outcome, audit) = stage.run(spec).await;
    assert!(outcome.success(), "{outcome}\n{:?}", outcome.last_lines);
    assert_bytes(audit.stream("stdout"), b"from the host\n");
    let recorded = &audit.all("start")[0]["mounts"];
    assert_eq!(recorded[0]["relabel"], "shared");
    let container = stage.containers().await.remove(0);
    let found = stage.inspect(&container).await;
    let binds = found["HostConfig"]["Binds"].as_array().unwrap();
    let has = |target: &str, options: &[&str]| {
        binds.iter().any(|bind| {
            let bind = bind.as_str().unwrap();
            let found = bind.split_once(target).map_or("", |(_, options)| options);
            options
                .iter()
                .all(|option| found.split([':', ',']).any(|o| o == *option))
        })
    };
    assert!(has("/cache:", &["Z"]), "{binds:?}");
    // Podman reports the label of a volume only.
    let options: &[_] = if engine::is_podman() {
        &["ro"]
    } else {
        &["ro", "z"]
    };
    assert!(has("/data:", options), "{binds:?}");
    // An engine would create the source.
    let manager = stage.manager().await;
    let error = manager.start(stage.spec("exit 0").mount(shared("missing")));
    let text = error.await.unwrap_err().chain();
    assert!(text.contains("does not exist"), "{text}");
    assert!(!stage.dir.path().join("missing").exists());
    engine::sweep(&stage.root());
    let options = None::<bollard::query_parameters::RemoveVolumeOptions>;
    let removed = stage.docker.remove_volume(&volume, options);
    removed.await.unwrap();
}

async fn the_variables_of_a_file_reach_the_container(stage: &Stage) {
    let file = stage.dir.path().join("vars");
    fs::write(
        &file,
        "# one\r\nFIRST= 'kept' \r\nSECOND=file\n\nUNSET_BY_THE_TRIAL\n",
    )
    .unwrap();
    let spec = stage
        .spec("env FIRST + env SECOND + env UNSET_BY_THE_TRIAL")
        .env("SECOND", "call")
        .env_file(&file);
    let (outcome, audit) = stage.run(spec).await;
    assert!(outcome.success(), "{outcome}");
    assert_bytes(audit.stream("stdout"), b" 'kept' \ncall\n(unset)\n");
    assert_eq!(audit.all("start")[0]["env"], json!(["FIRST", "SECOND"]));
}

const SECRET: &str = "s3cr3t-of-a-spec";

async fn a_patch_that_breaks_a_promise_is_refused(stage: &Stage) {
    let manager = stage.manager().await;
    let in_host = |name: &str, value: Value| json!({"HostConfig": {name: value}});
    let patches = [
        ("AutoRemove", in_host("AutoRemove", json!(true))),
        ("AutoRemove", in_host("AutoRemove", Value::Null)),
        ("autoremove", in_host("autoremove", json!(true))),
        ("LogConfig", in_host("LogConfig", json!({"Type": "none"}))),
        (
            "LogConfig",
            in_host("LogConfig", json!({"Config": {"max-size": "1k"}})),
        ),
        ("LogConfig", in_host("LogConfig", json!({"Config": null}))),
        ("logConfig", in_host("logConfig", json!({"Type": "none"}))),
        (
            "RestartPolicy",
            in_host("RestartPolicy", json!({"Name": "always"})),
        ),
        ("RestartPolicy", in_host("RestartPolicy", Value::Null)),
        (
            "RESTARTPOLICY",
            in_host("RESTARTPOLICY", json!({"Name": "always"})),
        ),
        ("HostConfig", json!({"HostConfig": null})),
        ("HostConfig", json!({"HostConfig": []})),
        ("HostConfig", json!({"HostConfig": SECRET})),
        ("hostconfig", json!({"hostconfig": {"AutoRemove": true}})),
        (
            "HOSTCONFIG",
            json!({"HOSTCONFIG": {"LogConfig": {"Type": "none"}}}),
        ),
        ("Tty", json!({"Tty": true})),
        ("tty", json!({"tty": true})),
        ("OpenStdin", json!({"OpenStdin": true})),
        ("AttachStdout", json!({"AttachStdout": false})),
        ("Image", json!({"Image": SECRET})),
        ("image", json!({"image": SECRET})),
        ("Name", json!({"Name": SECRET})),
        ("name", json!({"name": SECRET})),
        ("Labels", json!({"Labels": null})),
        ("Labels", json!({"Labels": {"moat.run": "other"}})),
        ("Labels", json!({"Labels": {"moat.root": null}})),
        ("Labels", json!({"Labels": {"moat.later": SECRET}})),
        ("labels", json!({"labels": {"moat.run": "other"}})),
        ("Labels", json!({"Labels": {"a": [SECRET]}})),
        ("Env", json!({"Env": {"A": SECRET}})),
        ("whole", json!({"": SECRET})),
    ];
    for (place, patch) in patches {
        let spec = stage.spec("exit 0").engine_patch(patch.clone());
        let error = manager.start(spec).await.unwrap_err();
        let text = format!("{} {error:?}", error.chain());
        let Error::InvalidSpec(InvalidSpec { field, reason, .. }) = error else {
            panic!("{patch}: {text}");
        };
        assert_eq!(field, "engine_patch", "{text}");
        assert!(
            place == "whole" || reason.contains(place),
            "{patch}: {reason}"
        );
        assert!(!text.contains(SECRET), "{text}");
    }
    nothing_is_there(stage, &manager).await;
}

async fn nothing_is_there(stage: &Stage, manager: &moat::Manager) {
    assert!(manager.list().await.unwrap().is_empty());
    assert!(stage.containers().await.is_empty());
    let names = fs::read_dir(stage.root()).unwrap();
    let names: Vec<_> = names.map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["root.json"]);
}

async fn a_refused_create_leaves_a_sealed_audit(stage: &Stage) {
    let manager = stage.manager().await;
    let plain = || stage.spec("exit 0").env("TOKEN", SECRET);
    let image = |name: &str| {
        RunSpec::new(name)
            .env("TOKEN", SECRET)
            .pull(moat::spec::Pull::Never)
    };
    let cases = vec![
        ("an image with capitals", image("Moat")),
        ("an image with two tags", image("moat:a:b")),
        ("an image with a bad digest", image("moat@sha256:0")),
        (
            "an image that is not there",
            image(&format!("moat@sha256:{}", "0".repeat(64))),
        ),
        (
            "a command that is a directory",
            plain().cmd(["/"]).entrypoint([""; 0]),
        ),
        ("an unknown user", plain().user("nobody-of-that-name")),
        ("a user that is negative", plain().user("-1")),
        (
            "a working directory too long",
            plain().workdir(format!("/{}", "x".repeat(10_000))),
        ),
        ("an unknown signal", plain().stop_signal("SIGNONE")),
        (
            "an unknown capability",
            plain().cap_add("NONE_OF_THAT_NAME"),
        ),
        (
            "an unknown OCI runtime",
            plain().oci_runtime("none-of-that-name"),
        ),
        (
            "an unknown security option",
            plain().security_opt("none-of-that-name"),
        ),
        (
            "an unknown limit",
            plain().ulimit("none-of-that-name", 1, 1),
        ),
        (
            "an unknown kernel parameter",
            plain().sysctl("net.none_of_that_name", "1"),
        ),
        (
            "a kernel parameter of the host",
            plain().sysctl("kernel.hostname/../panic", "1"),
        ),
        ("more processors than there are", plain().cpus(1_000_000.0)),
        (
            "a source that is not there",
            plain().bind("/none/of/that/name", "/x"),
        ),
        (
            "a device that is not there",
            plain().device("/dev/none-of-that-name"),
        ),
        (
            "a network that is not there",
            plain().network("none-of-that-name"),
        ),
        (
            "a container that is not there",
            plain().network("container:none-of-that-name"),
        ),
        (
            "GPUs that are not there",
            plain().gpus(Gpus::Ids(vec!["none".into()])),
        ),
        (
            "a variable of a patch",
            plain().engine_patch(json!({"Env": [format!("={SECRET}")]})),
        ),
    ];
    for (name, spec) in cases {
        if engine::is_podman() && name == "more processors than there are" {
            // Podman accepts it: it limits nothing.
            end(&manager.start(spec).await.unwrap()).await;
            continue;
        }
        if engine::is_podman() && name == "an unknown OCI runtime" {
            // Podman ignores it, so moat refuses it before a run exists.
            let error = manager.start(spec).await.unwrap_err();
            let field =
                matches!(&error, Error::InvalidSpec(refused) if refused.field == "oci_runtime");
            assert!(field, "{}", error.chain());
            continue;
        }
        let error = match manager.start(spec).await {
            Err(error) => error,
            Ok(run) => panic!("{name}: {}", end(&run).await),
        };
        let text = error.chain();
        assert!(text.len() < 10_000, "{name}: {} bytes", text.len());
        let debug = format!("{text} {error:?}");
        assert!(!debug.contains(SECRET), "{name}: {text}");
        let Error::NotStarted { outcome, .. } = error else {
            panic!("{name}: {text}");
        };
        assert!(outcome.sealed().is_some(), "{name}: {outcome}");
        let audit = outcome.audit.as_ref().unwrap();
        let state = verify(audit).unwrap().state;
        assert!(matches!(state, LogState::Sealed(_)), "{name}: {state:?}");
        let text = fs::read_to_string(audit).unwrap();
        assert!(!text.contains(SECRET), "{name}: {text}");
    }
    stage.is_clean().await;
}

async fn accepted_odd_values_have_their_effect(stage: &Stage) {
    // Podman misreads commas and line breaks in a mount, so moat refuses them.
    let (source, target) = match engine::is_podman() {
        false => ("host:ro,\n x", "/a:rw,\n\u{e9}"),
        true => ("host x", "/a \u{e9}"),
    };
    let odd = stage.dir.path().join(source);
    fs::create_dir(&odd).unwrap();
    fs::write(odd.join("file"), "odd\n").unwrap();
    let spec = RunSpec::new(&stage.image)
        .id(RunId::new("z".repeat(64)).unwrap())
        .network("none")
        .cmd([
            "env",
            "LINES",
            "+",
            "env",
            "EQUALS",
            "+",
            "env",
            "A NAME",
            "+",
            "read",
            &format!("{target}/file"),
            "+",
            "echo",
            "\u{1b}[2J\n",
            "+",
            "pwd",
        ])
        .env("A NAME", "named")
        .env("LINES", "one\nEQUALS=no\r")
        .env("EQUALS", "==")
        .bind(odd, target)
        .workdir("/w/../w x")
        .label("a\nb", "\u{1b}[2J\n")
        .label("Moat.run", "not ours")
        .keep(KeepContainer::Always);
    let (outcome, audit) = stage.run(spec).await;
    assert!(outcome.success(), "{outcome}\n{:?}", outcome.last_lines);
    assert_complete(&audit);
    let expected = "one\nEQUALS=no\r\n==\nnamed\nodd\n\u{1b}[2J\n\n/w x\n";
    assert_bytes(audit.stream("stdout"), expected.as_bytes());
}

async fn the_longest_argument_reaches_the_process(stage: &Stage) {
    let manager = stage.manager().await;
    const LONGEST: usize = (128 << 10) - 1;
    let value = |length: usize| "x".repeat(length - "BIG=".len());
    for (field, spec) in [
        (
            "cmd",
            stage
                .spec("exit 0")
                .cmd(["echo".into(), "x".repeat(LONGEST + 1)]),
        ),
        ("env", stage.spec("exit 0").env("BIG", value(LONGEST + 1))),
        (
            "env",
            stage.spec("exit 0").env("BIG", SECRET.repeat(1_000_000)),
        ),
    ] {
        let error = manager.start(spec).await.unwrap_err();
        let text = format!("{} {error:?}", error.chain());
        assert!(
            text.len() < 1000 && !text.contains(SECRET),
            "{}",
            text.len()
        );
        let named = matches!(&error, Error::InvalidSpec(refused) if refused.field == field);
        assert!(named, "{text}");
    }
    nothing_is_there(stage, &manager).await;
    drop(manager);
    let argument = "y".repeat(LONGEST);
    let spec = stage
        .spec("exit 0")
        .cmd(["env", "BIG", "+", "echo", &argument])
        .env("BIG", value(LONGEST));
    let (outcome, audit) = stage.run(spec).await;
    assert!(outcome.success(), "{outcome}");
    let expected = format!("{}\n{argument}\n", value(LONGEST));
    assert_bytes(audit.stream("stdout"), expected.as_bytes());
}

/// Absurd numbers: what the engine does with them is up to the engine, and is recorded.
async fn absurd_limits_leave_a_sealed_audit(stage: &Stage) {
    let manager = stage.manager().await;
    let most = i64::MAX as u64;
    let plain = || stage.spec("exit 0");
    for (name, spec) in [
        ("memory", plain().memory(most)),
        ("processes", plain().pids_limit(most)),
        ("shared memory", plain().shm_size(most)),
        ("a file system in memory", plain().tmpfs("/x", Some(most))),
        ("open files", plain().ulimit("nofile", i64::MAX, i64::MAX)),
        ("the last signal", plain().stop_signal("64")),
        ("output", plain().output_limit(u64::MAX, LimitAction::Stop)),
        (
            "a century",
            plain().time_limit(Duration::from_secs(3600 * 24 * 365 * 100)),
        ),
    ] {
        let outcome = match manager.start(spec).await {
            Ok(run) => end(&run).await,
            Err(Error::NotStarted { outcome, .. }) => *outcome,
            Err(error) => panic!("{name}: {}", error.chain()),
        };
        assert!(
            outcome.success() || outcome.ending.never_started(),
            "{name}: {outcome}"
        );
        read(&outcome);
    }
    stage.is_clean().await;
}
