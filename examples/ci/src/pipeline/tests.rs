use super::*;

fn read(text: &str) -> Result<Pipeline, InvalidPipeline> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("it.toml");
    std::fs::write(&path, text).unwrap();
    Pipeline::read(&path, None)
}

#[test]
fn dependents_of_a_matrix_need_every_cell() {
    let pipeline = read(
        r#"
        [[step]]
        name = "test"
        image = "rust:${{ matrix.rust }}"
        commands = ["test ${{matrix.os}}"]
        matrix = { rust = ["1.89", "1.90"], os = ["a", "b"] }
        [[step]]
        name = "ship"
        exec = ["true"]
        needs = ["test"]
        "#,
    )
    .unwrap();
    let names: Vec<_> = pipeline.steps.iter().map(|step| &step.name).collect();
    let cells = [
        "test (os=a, rust=1.89)",
        "test (os=a, rust=1.90)",
        "test (os=b, rust=1.89)",
        "test (os=b, rust=1.90)",
    ];
    assert_eq!(names, [&cells[..], &["ship"]].concat());
    assert_eq!(pipeline.steps[4].needs, [0, 1, 2, 3]);
    assert_eq!(pipeline.steps[1].image.as_deref(), Some("rust:1.90"));
    assert_eq!(pipeline.steps[3].command.to_string(), "test b");
}

#[test]
fn errors_name_the_step_and_the_field() {
    let step = "[[step]]\nname = \"a\"\n";
    for (text, message) in [
        (String::new(), "the pipeline has no steps"),
        (
            step.into(),
            "step \"a\": commands: the step has no commands",
        ),
        (
            format!("{step}exec = [\"x\"]\ncommands = [\"y\"]"),
            "step \"a\": exec: the step also has commands",
        ),
        (
            format!("{step}exec = [\"x\"]\nneeds = [\"b\"]"),
            "step \"a\": needs: there is no step \"b\"",
        ),
        (
            format!("{step}exec = [\"x\"]\n{step}exec = [\"x\"]"),
            "step \"a\": name: another step has the same name",
        ),
        (
            format!("{step}exec = [\"x\"]\ntimeout = -1"),
            "step \"a\": timeout: ",
        ),
        (
            format!("{step}exec = [\"${{{{ matrix.b }}}}\"]"),
            "step \"a\": exec: cannot fill in \"matrix.b\"",
        ),
        (
            format!("{step}exec = [\"x\"]\nmounts = [\"x\"]"),
            "step \"a\": mounts: \"x\": it is not SOURCE:TARGET[:OPTIONS]",
        ),
        (
            format!("{step}exec = [\"x\"]\nmatrix = {{ k = [] }}"),
            "step \"a\": matrix: k has no values",
        ),
        (
            format!("{step}exec = [\"x\"]\nmatrix = {{ \"k\\n\" = [\"v\"] }}"),
            "step \"a\": matrix: \"k\\n\" has a control character",
        ),
        (
            format!(
                "{step}exec = [\"x\"]\n\
                 matrix = {{ k = [\"1\", \"1, l=2\"], l = [\"3\", \"2, l=3\"] }}"
            ),
            "step \"a\": matrix: two cells have the name \"a (k=1, l=2, l=3)\"",
        ),
        (
            format!("{step}exec = [\"x\"]\nenv = {{ K = \"\" }}\nsecrets = [\"K\"]"),
            "step \"a\": secrets: K is also in env",
        ),
        (
            "[[step]]\nname = \"::a\"\nexec = [\"x\"]".into(),
            "step \"::a\": name: must be",
        ),
        (
            format!("{step}exec = [\"x\"]\nneeds = [\"a\"]"),
            "step \"a\": needs: the dependencies form a cycle: a needs a",
        ),
        (
            format!("{step}comands = [\"x\"]"),
            "unknown field `comands`",
        ),
    ] {
        let error = read(&text).unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    }
}

#[test]
fn a_network_of_a_step_replaces_the_pipelines() {
    let pipeline = read(
        "network = 'host'\n\
         [[step]]\nname = 'a'\nexec = ['x']\n\
         [[step]]\nname = 'b'\nexec = ['x']\nnetwork = 'none'\n",
    );
    let steps = pipeline.unwrap().steps;
    let networks = steps.iter().map(|step| {
        let spec = step.spec(true, &BTreeMap::new());
        spec.settings().network.clone().unwrap()
    });
    assert_eq!(networks.collect::<Vec<_>>(), ["host", "none"]);
}

#[test]
fn a_mount_has_the_options_of_docker() {
    let pipeline = read(
        "[[step]]\nname = 'a'\nexec = ['x']\nmounts = ['cache:/data:rw', '.:/src:ro,cached,z']",
    );
    let mounts = &pipeline.unwrap().steps[0].mounts;
    let fields = mounts.iter().map(|mount| match mount {
        Mount::Volume {
            target, read_only, ..
        }
        | Mount::Bind {
            target, read_only, ..
        } => (target.as_str(), *read_only),
        other => panic!("{other:?}"),
    });
    assert_eq!(
        fields.collect::<Vec<_>>(),
        [("/data", false), ("/src", true)]
    );
}

#[test]
fn name_length_is_counted_in_characters() {
    let named = |name: String| read(&format!("[[step]]\nname = \"{name}\"\nexec = [\"x\"]"));
    for letter in ["a", "\u{e9}", "\u{6f22}"] {
        assert!(named(letter.repeat(100)).is_ok(), "{letter}");
        assert!(named(letter.repeat(101)).is_err(), "{letter}");
    }
}

#[test]
fn a_dependency_cycle_is_named() {
    let step =
        |name, need| format!("[[step]]\nname = \"{name}\"\nexec = [\"x\"]\nneeds = [\"{need}\"]\n");
    let text = [step("a", "b"), step("b", "c"), step("c", "b")].concat();
    let error = read(&text).unwrap_err().to_string();
    assert!(error.ends_with("b needs c needs b"), "{error}");
}

#[test]
fn errors_name_the_service_and_the_field() {
    let step = "[[step]]\nname = \"a\"\nexec = [\"x\"]\n";
    let service = "[[service]]\nname = \"db\"\n";
    for (text, message) in [
        (
            "[[service]]\nname = \"My-db\"\n".to_owned(),
            "service \"My-db\": name: must be 1 to 63 lowercase letters",
        ),
        (
            service.repeat(2),
            "service \"db\": name: another service has the same name",
        ),
        (
            format!("{service}exec = []"),
            "service \"db\": exec: the list is empty",
        ),
        (
            format!("{service}exec = [\"x\"]\ncommands = [\"x\"]"),
            "service \"db\": exec: the service also has commands",
        ),
        (
            format!("{service}ready_timeout = -1"),
            "service \"db\": ready_timeout: ",
        ),
        (
            format!("{service}ready = {{ porta = 1 }}"),
            "unknown field `porta`",
        ),
        (
            format!("{service}ready = {{ http = {{ port = 80, path = \"health\" }} }}"),
            "service \"db\": ready: the path of http must start with `/`",
        ),
        (
            format!("{service}ready = {{ exec = [] }}"),
            "service \"db\": ready: exec is empty",
        ),
        (
            format!("{service}mounts = [\"x\"]"),
            "service \"db\": mounts: \"x\": it is not SOURCE:TARGET",
        ),
        (
            format!("{service}env = {{ K = \"\" }}\nsecrets = [\"K\"]"),
            "service \"db\": secrets: K is also in env",
        ),
        (
            format!("network = \"host\"\n{service}"),
            "network: steps join the network of the services",
        ),
        (
            format!("{service}[[step]]\nname = \"service db\"\nexec = [\"x\"]"),
            "step \"service db\": name: a service has this name in the reports",
        ),
    ] {
        let error = read(&format!("{text}\n{step}")).unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    }
    let pipeline = read(&format!("{service}secrets = [\"K\"]\n{step}")).unwrap();
    let error = pipeline.secrets(|_| None).unwrap_err().to_string();
    assert_eq!(
        error,
        "service \"db\": secrets: K is not set in the environment"
    );
}

#[test]
fn a_service_has_the_command_of_its_image() {
    let pipeline = "image = 'busybox'\n\
        [[service]]\nname = 'own'\nimage = 'postgres'\nready = { healthy = true }\n\
        [[service]]\nname = 'other'\nexec = ['x']\nready = { port = 80 }\n\
        [[step]]\nname = 'a'\nexec = ['x']\n";
    let services = read(pipeline).unwrap().services;
    let spec = |index: usize, host| services[index].spec(&BTreeMap::new(), host);
    let settings = spec(0, "127.0.0.1").settings().clone();
    assert_eq!(settings.image, "postgres");
    assert_eq!((settings.entrypoint, settings.cmd.len()), (None, 0));
    assert!(settings.ports.is_empty());
    let settings = spec(1, "127.0.0.1").settings().clone();
    assert_eq!(settings.image, "busybox");
    assert_eq!(settings.entrypoint, Some(Vec::new()));
    assert_eq!(settings.ports[0].address.as_deref(), Some("127.0.0.1"));
    assert_eq!(spec(1, "build.example").settings().ports[0].address, None);
}

#[test]
fn a_step_is_in_the_environment_unless_it_names_a_network() {
    let steps = "[[step]]\nname = 'a'\nexec = ['x']\n\
        [[step]]\nname = 'b'\nexec = ['x']\nnetwork = 'none'\nworkdir = '/tmp'\n";
    let shares = |head: &str| {
        let pipeline = read(&format!("{head}\n{steps}")).unwrap();
        let steps = pipeline.steps.iter();
        let shares = steps.map(|step| pipeline.shares(step)).collect::<Vec<_>>();
        (shares, pipeline.steps[0].workdir.clone())
    };
    assert_eq!(shares(""), (vec![false, false], None));
    let service = shares("[[service]]\nname = 'db'\n");
    assert_eq!(service, (vec![true, false], None));
    let workspace = shares("workspace = '/work'");
    assert_eq!(workspace, (vec![true, true], Some("/work".into())));
}

#[test]
fn an_artifact_has_a_place_in_the_directory_of_its_step() {
    let pipeline = "workspace = '/work/'\n[[step]]\nname = 'test/unit'\nexec = ['x']\n\
        matrix = { os = ['../\u{e9}'] }\nartifacts = ['dist/', '/tmp/${{ matrix.os }}x', 'a b']\n\
        [[step]]\nname = 'LONG'\nexec = ['x']\nartifacts = ['/x']\n";
    let long = "\u{6f22}".repeat(100);
    let pipeline = pipeline.replace("LONG", &long);
    let error = read(&pipeline).unwrap_err().to_string();
    assert!(error.contains("\"/tmp/../\u{e9}x\": each part"), "{error}");
    let steps = read(&pipeline.replace("'../", "'")).unwrap().steps;
    assert_eq!(steps[0].artifact_dir(), "test-unit-os-\u{e9}");
    let found = steps[0].artifacts.iter();
    let found: Vec<_> = found
        .map(|artifact| (artifact.source.as_str(), artifact.target.to_str().unwrap()))
        .collect();
    let expected = [
        ("/work/dist", "dist"),
        ("/tmp/\u{e9}x", "tmp/\u{e9}x"),
        ("/work/a b", "a b"),
    ];
    assert_eq!(found, expected);
    assert!(steps[1].artifact_dir().len() <= 200);
}

#[test]
fn errors_of_artifacts_and_workspaces_are_named() {
    let step = "[[step]]\nname = \"a\"\n";
    for (text, message) in [
        (
            format!("{step}exec = [\"x\"]\nartifacts = [\"out\"]"),
            "step \"a\": artifacts: \"out\": a relative path needs `workdir`, or",
        ),
        (
            format!("{step}exec = [\"x\"]\nartifacts = [\"/a/../b\"]"),
            "step \"a\": artifacts: \"/a/../b\": each part must be a name",
        ),
        (
            format!("{step}exec = [\"x\"]\nartifacts = [\"/\"]"),
            "step \"a\": artifacts: \"/\": each part must be a name",
        ),
        (
            format!("{step}exec = [\"x\"]\nartifacts = [\"/a/b\", \"/a/b/c\"]"),
            "step \"a\": artifacts: \"/a/b\" and \"/a/b/c\" overlap",
        ),
        (
            format!(
                "{step}exec = [\"x\"]\nartifacts = [\"/b\"]\n\
                 [[step]]\nname = \"a/\"\nexec = [\"x\"]\nartifacts = [\"/b\"]"
            ),
            "step \"a/\": artifacts: those of step \"a\" have the same directory",
        ),
        (
            format!("workspace = \"work\"\n{step}exec = [\"x\"]"),
            "workspace: \"work\" is not the absolute path",
        ),
    ] {
        let error = read(&text).unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    }
}
