//! Settings of a spec: they reach the container or are refused.

use std::fs;
use std::time::Duration;

use moat::audit::{LogState, verify};
use moat::spec::{Gpus, InvalidSpec, KeepContainer, LimitAction, Mount};
use moat::{Docker, Error, Manager, RunId, RunSpec};
use serde_json::{Value, json};
use testkit::{engine, sequence};

use crate::stage::{Stage, assert_bytes, assert_complete, end, read};

testkit::trials! {
    crate::on_engine:
        moat_sets_lossless_log_options,
        the_settings_reach_the_container,
        a_patch_that_breaks_a_promise_is_refused,
        a_refused_create_leaves_a_sealed_audit,
        accepted_odd_values_have_their_effect,
        the_longest_argument_reaches_the_process,
        absurd_limits_leave_a_sealed_audit,
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
        .hostname("moored")
        .mount(Mount::Bind {
            source: host,
            target: "/data".into(),
            read_only: true,
        })
        .tmpfs("/memory", Some(1 << 20))
        .memory(64 << 20)
        .pids_limit(50)
        .cap_drop("ALL")
        .read_only(true)
        .label("team", "blue")
        .keep(KeepContainer::Always);
    let (outcome, audit) = stage.run(spec).await;
    assert!(outcome.success(), "{outcome}\n{:?}", outcome.last_lines);
    let expected = "hello = world\n/work\n1000:1001\nfrom the host\nmoored\n100644 1 bytes\n";
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
