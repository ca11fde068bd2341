//! Specs that are refused, and odd specs that are accepted.

use std::path::PathBuf;
use std::time::Duration;

use moat::spec::{Backstop, Credentials, Gpus, HealthCheck, LimitAction, Mount, Relabel};
use moat::{Port, RunId, RunSpec};
use serde_json::{Value, json};

pub const SECRET: &str = "s3cr3t-value";

fn any() -> RunSpec {
    RunSpec::new("any").env("TOKEN", SECRET)
}

pub fn long(text: &str, times: usize) -> String {
    text.repeat(times)
}

/// The specs that are refused, by the field that the error names.
pub fn refused() -> Vec<(&'static str, RunSpec)> {
    let huge = || long("x", 10_000_000);
    let mut cases = Vec::new();
    let mut add = |field, specs: Vec<RunSpec>| {
        cases.extend(specs.into_iter().map(|spec| (field, spec)));
    };
    let image = |name: &str| RunSpec::new(name).env("TOKEN", SECRET);
    add(
        "image",
        [
            " ",
            "\t",
            "a b",
            " any",
            "any\n",
            "any\0",
            "any\u{a0}",
            "any\u{200b}",
            "аny",
            "\u{202e}yna",
            "../any",
            "any/..",
            "./any",
            "/any",
            "any/",
            "a//b",
            "any?x=1",
            "any#x",
            "any%2f..",
            "any&x",
            "an\\y",
            "any;x",
            "$(any)",
            "any,other",
            "\"any\"",
        ]
        .map(image)
        .into(),
    );
    add("image", vec![image(&huge())]);
    add(
        "cmd",
        vec![
            any().cmd(["a\0"]),
            any().cmd(["ok", "\0"]),
            any().cmd([huge()]),
            any().cmd([huge() + "\0"]),
            any().cmd(vec![long("x", 1000); 10_000]),
        ],
    );
    add(
        "entrypoint",
        vec![any().entrypoint(["a\0"]), any().entrypoint([huge()])],
    );
    add(
        "env",
        vec![
            any().env("", SECRET),
            any().env("=", SECRET),
            any().env("=A", SECRET),
            any().env(format!("A={SECRET}"), ""),
            any().env("A\0", SECRET),
            any().env("A", format!("{SECRET}\0")),
            any().env("A", format!("\0{}", huge())),
            any().env(huge(), SECRET),
            any().env(huge(), "\0"),
        ],
    );
    add(
        "workdir",
        ["", "work", "./work", "../work", "~", "/work\0", "C:\\work"]
            .map(|path| any().workdir(path))
            .into(),
    );
    add("workdir", vec![any().workdir(huge())]);
    add(
        "user",
        [
            "",
            " ",
            "a b",
            "root\0",
            "root\n",
            "1000: 1000",
            ":",
            "a:",
            ":b",
            "a:b:c",
        ]
        .map(|user| any().user(user))
        .into(),
    );
    add("user", vec![any().user(huge())]);
    add(
        "hostname",
        ["", "a b", "h\0", "h\n127.0.0.1 bank"]
            .map(|name| any().hostname(name))
            .into(),
    );
    add(
        "hostname",
        vec![any().hostname(long("h", 65)), any().hostname(huge())],
    );
    let targets = [
        "", "x", "./x", "../x", "/", "//", "/.", "/./", "/..", "/x/..", "/x/../..", "/x/../y",
        "/x\0",
    ];
    for target in targets {
        add(
            "mounts",
            vec![
                any().bind("/tmp", target),
                any().volume("cache", target),
                any().tmpfs(target, None),
            ],
        );
    }
    let not_utf8: PathBuf = {
        use std::os::unix::ffi::OsStrExt;
        std::ffi::OsStr::from_bytes(b"/\xff").into()
    };
    add(
        "mounts",
        vec![
            any().bind("x", "/x"),
            any().bind("./x", "/x"),
            any().bind("", "/x"),
            any().bind("/x\0", "/x"),
            any().bind(not_utf8, "/x"),
            any().bind(huge(), "/x"),
            any().bind("/x", format!("/{}", huge())),
            any().bind("/x", huge()),
            any().bind("/a", "/x").bind("/b", "/x"),
            any().bind("/a", "/x").volume("cache", "//x/."),
            any().volume("", "/x"),
            any().volume("/etc", "/x"),
            any().volume("../etc", "/x"),
            any().volume("a\0", "/x"),
            any().volume("-v", "/x"),
            any().volume(huge() + "/", "/x"),
            any().tmpfs("/x", Some(0)),
        ],
    );
    let check = || HealthCheck::new(["true"]);
    add(
        "health_check",
        [
            HealthCheck::new([""; 0]),
            HealthCheck::new(["", "x"]),
            HealthCheck::new(["a\0"]),
            check().retries(0),
            check().interval(Duration::ZERO),
            check().interval(Duration::from_micros(999)),
            check().timeout(Duration::MAX),
            check().start_period(Duration::from_nanos(1)),
        ]
        .map(|check| any().health_check(check))
        .into(),
    );
    add(
        "env_file",
        vec![
            any().env_file(""),
            any().env_file("/"),
            any().env_file("/a\0b"),
            any().env_file("/nowhere/a\nb"),
            any().env_file(huge()),
        ],
    );
    add(
        "secret_files",
        vec![
            any().secret_file("", SECRET),
            any().secret_file("/", SECRET),
            any().secret_file("/token", SECRET),
            any().secret_file("/a\0/b", SECRET),
            any().secret_file("/a/../b", SECRET),
            any().secret_file(huge(), SECRET),
            any().secret_file(format!("/{}", huge()), SECRET),
            any().secret_file("/a/b", SECRET).volume("cache", "/a"),
        ],
    );
    add(
        "network",
        ["", "a b", "none\0", "none\n"]
            .map(|mode| any().network(mode))
            .into(),
    );
    let mine = || any().network("mine");
    add(
        "network_aliases",
        vec![
            any().network_alias("db"),
            any().network("host").network_alias("db"),
            mine().network_alias(""),
            mine().network_alias("a b"),
            mine().network_alias("a\0"),
        ],
    );
    add(
        "ports",
        vec![
            any().port(Port::tcp(0)),
            any().port(Port::tcp(80).address("")),
            any().port(Port::tcp(80).address("localhost")),
            any().port(Port::tcp(80).address("127.0.0.1:80")),
            any().port(Port::tcp(80).address("1\0")),
            any().port(Port::tcp(80).address(huge())),
            any().network("none").port(Port::tcp(80)),
            any().network("host").port(Port::tcp(80)),
            any().network("container:x").port(Port::tcp(80)),
            any()
                .port(Port::tcp(80).host(8080))
                .port(Port::tcp(80).host(8080)),
            any()
                .port(Port::tcp(80).host(8080))
                .port(Port::tcp(81).host(8080)),
        ],
    );
    add(
        "extra_hosts",
        vec![
            any().extra_host("", "1.1.1.1"),
            any().extra_host("a b", "1.1.1.1"),
            any().extra_host("a\n2.2.2.2 bank", "1.1.1.1"),
            any().extra_host("a:2.2.2.2", "1.1.1.1"),
            any().extra_host("a", ""),
            any().extra_host("a", "b"),
            any().extra_host("a", "1.1.1.1\n2.2.2.2 bank"),
            any().extra_host("a", huge()),
        ],
    );
    add(
        "dns",
        ["", "x", "1.1.1.1 ", "1.1.1.1\nsearch x", "256.1.1.1"]
            .map(|address| any().dns(address))
            .into(),
    );
    let numbers = [0, u64::MAX, 1 << 63];
    for number in numbers {
        add("memory", vec![any().memory(number)]);
        add("pids_limit", vec![any().pids_limit(number)]);
        add("shm_size", vec![any().shm_size(number)]);
    }
    add("memory", vec![any().memory(1), any().memory((6 << 20) - 1)]);
    add(
        "cpus",
        [
            f64::NAN,
            f64::INFINITY,
            f64::NEG_INFINITY,
            -1.0,
            -0.0,
            0.0,
            f64::MIN_POSITIVE,
            f64::MAX,
        ]
        .map(|cpus| any().cpus(cpus))
        .into(),
    );
    add(
        "ulimits",
        vec![
            any().ulimit("", 1, 1),
            any().ulimit("no file", 1, 1),
            any().ulimit("nofile\0", 1, 1),
            any().ulimit("nofile", 2, 1),
            any().ulimit("nofile", -1, 1),
            any().ulimit("nofile", -2, -2),
            any().ulimit("nofile", i64::MIN, i64::MAX),
            any().ulimit(huge(), 2, 1),
        ],
    );
    add(
        "devices",
        ["", "null", "../dev/null", "/dev/null\0"]
            .map(|path| any().device(path))
            .into(),
    );
    add(
        "gpus",
        vec![
            any().gpus(Gpus::Count(0)),
            any().gpus(Gpus::Ids(vec![])),
            any().gpus(Gpus::Ids(vec!["0".into(), String::new()])),
            any().gpus(Gpus::Ids(vec!["\0".into()])),
        ],
    );
    add(
        "sysctls",
        vec![
            any().sysctl("", "1"),
            any().sysctl("net x", "1"),
            any().sysctl("net.x", "\0"),
            any().sysctl("net.x", huge()),
        ],
    );
    for bad in ["", "\0", "SYS\0ADMIN"] {
        add("cap_add", vec![any().cap_add(bad)]);
        add("cap_drop", vec![any().cap_drop(bad)]);
        add("security_opt", vec![any().security_opt(bad)]);
    }
    add("security_opt", vec![any().security_opt(huge())]);
    add(
        "platform",
        [
            "",
            "/",
            "linux/",
            "/amd64",
            "linux/arm/v7/x",
            "linux/amd64&x=1",
            "a b",
            "linux\0",
        ]
        .map(|platform| any().platform(platform))
        .into(),
    );
    add(
        "oci_runtime",
        ["", "run c", "runc\0"]
            .map(|name| any().oci_runtime(name))
            .into(),
    );
    add(
        "labels",
        vec![
            any().label("", "x"),
            any().label("a\0", "x"),
            any().label("a", "x\0"),
            any().label("moat.run", "other"),
            any().label("moat.root", "other"),
            any().label("moat.", ""),
            any().label("moat.future", ""),
            any().label(huge(), "x"),
            any().label("a", huge()),
            any().label(format!("moat.{}", huge()), ""),
        ],
    );
    add(
        "stop_signal",
        [
            "",
            " ",
            "SIG INT",
            "SIGINT\0",
            "0",
            "-1",
            "65",
            "99999999999999999999",
            "1.5",
            "+9",
            "-SIGINT",
            "SIGINT;x",
        ]
        .map(|signal| any().stop_signal(signal))
        .into(),
    );
    add(
        "time_limit",
        vec![
            any().time_limit(Duration::ZERO),
            any().time_limit(Duration::MAX),
        ],
    );
    add("stop_grace", vec![any().stop_grace(Duration::MAX)]);
    add(
        "output_limit",
        vec![
            any().output_limit(0, LimitAction::Stop),
            any().output_limit(0, LimitAction::Drop),
        ],
    );
    add(
        "backstop",
        vec![any().backstop(Backstop::None).detached(true)],
    );
    let nested = (0..500).fold(json!(SECRET), |inner, _| Value::Array(vec![inner]));
    let deep = (0..500).fold(json!(SECRET), |inner, _| {
        Value::Object([("a".to_owned(), inner)].into_iter().collect())
    });
    add(
        "engine_patch",
        vec![
            any().engine_patch(Value::Null),
            any().engine_patch(json!(SECRET)),
            any().engine_patch(json!([{"HostConfig": SECRET}])),
            any().engine_patch(json!({"HostConfig": nested})),
            any().engine_patch(deep),
        ],
    );
    cases
}

/// The odd specs that are accepted.
pub fn accepted() -> Vec<(&'static str, RunSpec)> {
    let id = |id: &str| any().id(RunId::new(id).unwrap());
    let centuries = Duration::from_secs(366 * 24 * 3600 * 100);
    let digest = format!("localhost:5000/team/any@sha256:{}", long("0", 64));
    vec![
        ("an id of one character", id("0")),
        ("an id that looks like an option", id("a--rm")),
        ("an id of dots", id("a..")),
        ("the name of a file of a run's", id("run.json")),
        ("almost the name of the root's own file", id("root.jso")),
        ("the longest id", id(&long("z", 64))),
        ("a digest", RunSpec::new(digest)),
        (
            "a registry by its address",
            RunSpec::new("[::1]:5000/any:1"),
        ),
        ("arguments of nothing", any().cmd(["", "", "\n"])),
        (
            "an argument with an escape",
            any().cmd(["\u{1b}[2J\u{202e}\u{7f}"]),
        ),
        (
            "a million bytes of arguments",
            any().cmd([long("x", 1_000_000)]),
        ),
        (
            "arguments that JSON escapes",
            any().cmd([long("\u{1}", 500_000)]),
        ),
        (
            "a value of ten megabytes",
            any().env("A", long("x", 10_000_000)),
        ),
        ("a value of lines", any().env("A", "one\nB=two\r\n")),
        ("a value with =", any().env("A", "==")),
        ("a secret file", any().secret_file("/run/a b/c", SECRET)),
        ("a name with a space", any().env("A B", "x")),
        ("a name twice", any().env("A", "1").env("A", "2")),
        ("mounts with colons", any().bind("/a:ro", "/b:ro")),
        ("mounts with spaces and lines", any().bind("/a\n", "/b \n")),
        (
            "mounts inside mounts",
            any().bind("/a", "/x").bind("/b", "/x/y"),
        ),
        ("a source with ..", any().bind("/tmp/../tmp", "/x")),
        ("the least memory", any().memory(6 << 20)),
        (
            "the most of all",
            any().memory(i64::MAX as u64).shm_size(i64::MAX as u64),
        ),
        (
            "labels like moat's",
            any().label("moat", "").label("Moat.run", "x"),
        ),
        ("label values of lines", any().label("a", "x\n\u{1b}[2J")),
        ("the last signal", any().stop_signal("64")),
        ("a real-time signal", any().stop_signal("SIGRTMIN+3")),
        ("no grace", any().stop_grace(Duration::ZERO)),
        ("a grace of a century", any().stop_grace(centuries)),
        ("a limit of a century", any().time_limit(centuries)),
        (
            "the most output",
            any().output_limit(u64::MAX, LimitAction::Stop),
        ),
        ("a port that the engine chooses, twice", {
            let port = || Port::tcp(80).host(0);
            any().port(port()).port(port())
        }),
        ("a port of two transports", {
            any()
                .port(Port::tcp(80).host(80))
                .port(Port::udp(80).host(80))
        }),
        ("credentials of anything", {
            any().credentials(Credentials::new("a\0\r\nX: y", long(SECRET, 100_000)))
        }),
        ("a patch as deep as engines go", {
            any().engine_patch(json!({"a": {"b": {"c": [[SECRET]]}}}))
        }),
        (
            "a health check of a century",
            any().health_check(HealthCheck::new(["a\n", ""]).interval(centuries)),
        ),
        (
            "no health check",
            any().health_check(HealthCheck::none().interval(Duration::ZERO)),
        ),
        ("relabeled mounts", {
            any()
                .mount(Mount::bind("/a", "/x").relabel(Relabel::Private))
                .mount(Mount::volume("cache", "/y").relabel(Relabel::Shared))
        }),
        ("read-only mounts", {
            any().mount(Mount::tmpfs("/x", Some(u64::MAX)).read_only(true))
        }),
    ]
}
