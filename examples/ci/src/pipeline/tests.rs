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
