//! Archives and the small subcommands.

mod support;

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use support::protocol::{Kind, frame};
use support::{Frame, bytes_of, helper, kinds, read_frames, value};

fn pack(path: &Path) -> Vec<Frame> {
    let output = helper().arg("tar").arg(path).output().unwrap();
    read_frames(&mut output.stdout.as_slice())
}

fn unpack(directory: &Path, input: &[u8]) -> Output {
    let mut untar = helper();
    untar
        .arg("untar")
        .arg(directory)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let mut untar = untar.spawn().unwrap();
    untar.stdin.take().unwrap().write_all(input).unwrap();
    untar.wait_with_output().unwrap()
}

fn tree(root: &Path) -> Vec<String> {
    let output = Command::new("find")
        .args([".", "-printf", "%P %y %m %s %U %G %T@ %l\n"])
        .current_dir(root)
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    // The size of a directory is its file system's affair.
    let mut lines: Vec<_> = text
        .lines()
        .map(
            |line| match line.split(' ').collect::<Vec<_>>().as_slice() {
                [path, "d", mode, _, rest @ ..] => format!("{path} d {mode} {}", rest.join(" ")),
                _ => line.to_owned(),
            },
        )
        .collect();
    lines.sort();
    lines
}

#[test]
fn a_tree_survives_the_round_trip() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    fs::create_dir_all(root.join("sub/empty")).unwrap();
    let long = "n".repeat(200);
    let mut bytes = vec![0; 1_500_000];
    fs::File::open("/dev/urandom")
        .unwrap()
        .read_exact(&mut bytes)
        .unwrap();
    fs::write(root.join("sub").join(&long), &bytes).unwrap();
    fs::write(root.join("script"), "#!/bin/sh\n").unwrap();
    fs::set_permissions(root.join("script"), fs::Permissions::from_mode(0o4751)).unwrap();
    fs::hard_link(root.join("script"), root.join("linked")).unwrap();
    symlink("nowhere", root.join("dangling")).unwrap();
    symlink("sub", root.join("link")).unwrap();
    fs::set_permissions(root.join("sub"), fs::Permissions::from_mode(0o550)).unwrap();
    assert!(
        Command::new("mkfifo")
            .arg(root.join("fifo"))
            .status()
            .unwrap()
            .success()
    );
    fs::remove_file(root.join("fifo")).unwrap();

    let frames = pack(&root);
    assert_eq!(frames.last().unwrap().kind, Kind::Close);
    let target = dir.path().join("target");
    fs::create_dir(&target).unwrap();
    let input: Vec<u8> = frames
        .iter()
        .flat_map(|frame| frame.bytes.clone())
        .collect();
    let output = unpack(&target, &input);
    let answer = read_frames(&mut output.stdout.as_slice());
    assert_eq!(kinds(&answer), [Kind::Done]);
    let copy = target.join("root");
    assert_eq!(
        tree(&copy)
            .iter()
            .map(|line| line.replace(".0000000000", ""))
            .collect::<Vec<_>>(),
        tree(&root)
            .iter()
            .map(|line| {
                // The archive has whole seconds.
                let mut words: Vec<_> = line.split(' ').map(str::to_owned).collect();
                let at = words.len() - 2;
                words[at] = words[at].split('.').next().unwrap().to_owned();
                words.join(" ")
            })
            .collect::<Vec<_>>()
    );
    assert!(fs::read(copy.join("sub").join(&long)).unwrap() == bytes);
    let inode = |name| fs::metadata(copy.join(name)).unwrap().ino();
    assert_eq!(inode("script"), inode("linked"));

    let listed = Command::new("tar")
        .arg("tf")
        .arg("-")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn();
    let mut listed = listed.unwrap();
    listed
        .stdin
        .take()
        .unwrap()
        .write_all(&bytes_of(&frames, Kind::Data))
        .unwrap();
    let listed = String::from_utf8(listed.wait_with_output().unwrap().stdout).unwrap();
    assert!(listed.starts_with("root/\nroot/dangling\n"), "{listed}");
    for path in [&root, &copy] {
        fs::set_permissions(path.join("sub"), fs::Permissions::from_mode(0o750)).unwrap();
    }
}

#[test]
fn a_file_and_a_link_are_packed_alone() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("file"), "content").unwrap();
    symlink("file", dir.path().join("link")).unwrap();
    let target = dir.path().join("target");
    fs::create_dir(&target).unwrap();
    for name in ["file", "link"] {
        let input: Vec<u8> = pack(&dir.path().join(name))
            .iter()
            .flat_map(|frame| frame.bytes.clone())
            .collect();
        assert!(unpack(&target, &input).status.success());
    }
    assert_eq!(fs::read(target.join("file")).unwrap(), b"content");
    assert_eq!(
        fs::read_link(target.join("link")).unwrap(),
        Path::new("file")
    );
}

#[test]
fn failures_of_archives_are_reported() {
    let dir = tempfile::tempdir().unwrap();
    let frames = pack(&dir.path().join("missing"));
    assert_eq!(kinds(&frames), [Kind::Failed]);
    assert_eq!(frames[0].failure().0, 2);

    // All input is taken although nothing can be done with it.
    let mut input = Vec::new();
    for _ in 0..20 {
        input.extend(frame(Kind::Data, 0, &vec![1; 100_000]));
    }
    input.extend(frame(Kind::Close, 0, &[]));
    for (directory, errno) in [("missing", 2), ("file", 20), ("", 0)] {
        fs::write(dir.path().join("file"), "").unwrap();
        let output = unpack(&dir.path().join(directory), &input);
        let answer = read_frames(&mut output.stdout.as_slice());
        assert_eq!(kinds(&answer), [Kind::Failed]);
        let (found, message) = answer[0].failure();
        assert_eq!(found, errno, "{message}");
        assert_eq!(output.status.code(), Some(1));
    }
    // An archive that is cut is no success.
    let output = unpack(dir.path(), &[]);
    assert_eq!(
        kinds(&read_frames(&mut output.stdout.as_slice())),
        [Kind::Failed]
    );
}

#[test]
fn statistics_are_reported() {
    let output = helper().arg("stats").output().unwrap();
    let frames = read_frames(&mut output.stdout.as_slice());
    assert_eq!(kinds(&frames), [Kind::Report]);
    for line in frames[0].text().lines() {
        let (_, number) = line.split_once(' ').unwrap();
        number.parse::<u64>().unwrap();
    }
}

#[test]
fn the_version_is_printed() {
    let output = helper().arg("version").output().unwrap();
    assert_eq!(
        output.stdout,
        format!("{}\n", env!("CARGO_PKG_VERSION")).as_bytes()
    );
    assert!(value("a 1\n", "a").is_some());
}

#[test]
fn arguments_that_are_not_understood_are_refused() {
    for arguments in [
        vec![],
        vec!["what"],
        vec!["run", "--gate", "x"],
        vec!["serve", "--gate", "x"],
        vec!["tar"],
    ] {
        let output = helper().args(&arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(64), "{arguments:?}");
        assert!(output.stdout.is_empty());
    }
}
