//! Files that are copied into and out of a container.

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use moat::runtime::Archive;
use moat::runtime::RuntimeError;
use moat::spec::KeepContainer;
use moat::{Error, Manager, Run, RunSpec};

use testkit::deadline::{eventually, within};
use testkit::engine;

use crate::stage::{Stage, end, printed};

const CONTENT: &[u8] = b"a file\n";

testkit::trials! {
    crate::on_busybox:
        a_tmpfs_is_copied_into_and_out_of,
        a_host_directory_is_mounted_after_a_copy,
        a_link_to_a_tmpfs_is_followed,
        an_archive_with_a_file_on_a_tmpfs_is_refused,
        an_archive_that_fails_ends_the_copy,
        a_missing_file_is_not_found,
        a_tmpfs_ends_with_its_container;
    crate::on_engine:
        a_container_without_tar_is_refused_on_a_tmpfs,
}

/// An archive of one file.
fn archive(name: &str) -> Archive {
    let mut archive = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(CONTENT.len() as u64);
    header.set_mode(0o644);
    archive.append_data(&mut header, name, CONTENT).unwrap();
    let bytes = Bytes::from(archive.into_inner().unwrap());
    // In parts, none of which ends with a block of the archive.
    let parts: Vec<_> = bytes.chunks(700).map(Bytes::copy_from_slice).collect();
    stream::iter(parts.into_iter().map(Ok)).boxed()
}

/// The names and contents in an archive, without directories.
async fn files(archive: Archive) -> Vec<(String, Vec<u8>)> {
    let chunks: Vec<Bytes> = archive.try_collect().await.unwrap();
    let bytes = chunks.concat();
    let mut found = Vec::new();
    for entry in tar::Archive::new(bytes.as_slice()).entries().unwrap() {
        let mut entry = entry.unwrap();
        if entry.header().entry_type().is_file() {
            let mut content = Vec::new();
            std::io::Read::read_to_end(&mut entry, &mut content).unwrap();
            let name = entry.path().unwrap().display().to_string();
            // Docker's archive of a directory's content begins each name with it.
            let name = name.strip_prefix("./").unwrap_or(&name).to_owned();
            found.push((name, content));
        }
    }
    found
}

/// A hardened container: it can write only to the tmpfs at `/work`.
pub fn hardened(stage: &Stage) -> RunSpec {
    RunSpec::new(&stage.image)
        .cmd(["sleep", "600"])
        .read_only(true)
        .tmpfs("/work", None)
        .user("1000:1000")
        .cap_drop("ALL")
        .network("none")
}

pub async fn running(stage: &Stage, spec: RunSpec) -> (Manager, Run) {
    let manager = stage.manager().await;
    let run = manager.start(spec).await.unwrap();
    (manager, run)
}

/// Returns the output of a command in the container.
pub async fn prints(run: &Run, command: &str) -> String {
    let spec = moat::spec::ExecSpec::new(["sh", "-c", command]);
    let exec = run.exec(spec).await.unwrap();
    exec.wait().await.unwrap().last_lines.join("\n")
}

async fn a_tmpfs_is_copied_into_and_out_of(stage: &Stage) {
    let (_manager, run) = running(stage, hardened(stage)).await;
    run.copy_in("/work", archive("input")).await.unwrap();
    let shown = prints(&run, "cat /work/input; stat -c '%a %u' /work/input").await;
    // Podman unpacks as root.
    let owner = if engine::is_podman() { 0 } else { 1000 };
    assert_eq!(shown, format!("a file\n644 {owner}"));
    for (path, name) in [
        ("/work/input", "input"),
        ("/work/", "work/input"),
        ("/work/.", "input"),
    ] {
        let copied = files(run.copy_out(path).await.unwrap()).await;
        assert_eq!(copied, [(name.to_owned(), CONTENT.to_owned())], "{path}");
    }
    run.copy_in("/dev/shm", archive("shared")).await.unwrap();
    assert_eq!(prints(&run, "cat /dev/shm/shared").await, "a file");
}

/// A thread of Podman that has entered a container stays there.
async fn a_host_directory_is_mounted_after_a_copy(stage: &Stage) {
    let (manager, run) = running(stage, hardened(stage)).await;
    for _ in 0..8 {
        run.copy_in("/work", archive("input")).await.unwrap();
    }
    let host = stage.dir.path().join("host");
    std::fs::create_dir(&host).unwrap();
    let spec = RunSpec::new(&stage.image)
        .cmd(["ls", "/data"])
        .bind(host, "/data")
        .network("none");
    let other = manager.start(spec).await.unwrap();
    assert!(end(&other).await.success());
}

async fn a_link_to_a_tmpfs_is_followed(stage: &Stage) {
    let spec = RunSpec::new(&stage.image)
        .cmd([
            "sh",
            "-c",
            "ln -s work /first; mkdir /a; ln -s ../first /a/second; echo linked; sleep 600",
        ])
        .tmpfs("/work", None)
        .network("none");
    let (_manager, run) = running(stage, spec).await;
    printed(&run, "linked\n").await;
    run.copy_in("/a/second", archive("input")).await.unwrap();
    assert_eq!(prints(&run, "cat /work/input").await, "a file");
    let copied = files(run.copy_out("/a/second/input").await.unwrap()).await;
    assert_eq!(copied, [("input".to_owned(), CONTENT.to_owned())]);
    // The engine sees the other directories, and unpacks as root.
    run.copy_in("/a", archive("input")).await.unwrap();
    assert_eq!(prints(&run, "cat /a/input").await, "a file");
}

async fn an_archive_with_a_file_on_a_tmpfs_is_refused(stage: &Stage) {
    let spec = RunSpec::new(&stage.image)
        .cmd(["sleep", "600"])
        .user("1000")
        .tmpfs("/data/memory", None)
        .network("none");
    let (_manager, run) = running(stage, spec).await;
    let copied = run.copy_in("/data", archive("memory/input")).await;
    match copied {
        Ok(()) if engine::is_podman() => {
            assert_eq!(prints(&run, "cat /data/memory/input").await, "a file");
        }
        Err(Error::Runtime(RuntimeError::Rejected { reason, .. })) => {
            let expected = "/data/memory/input is on the tmpfs";
            assert!(reason.contains(expected), "{reason}");
        }
        other => panic!("{other:?}"),
    }
    // Beside the tmpfs, the engine unpacks as root.
    run.copy_in("/data", archive("input")).await.unwrap();
    assert_eq!(prints(&run, "cat /data/input").await, "a file");
}

/// A reader of a program can fail in the middle of an archive.
async fn an_archive_that_fails_ends_the_copy(stage: &Stage) {
    let (_manager, run) = running(stage, hardened(stage)).await;
    let failure = || RuntimeError::Broken {
        operation: "read the archive",
        reason: "it is cut".into(),
    };
    let whole: Vec<Bytes> = archive("input").try_collect().await.unwrap();
    let first = stream::iter([Ok(whole[0].clone())]);
    let cut = first.chain(stream::once(async move { Err(failure()) }));
    let copied = within(60, "the copy", run.copy_in("/work", cut.boxed())).await;
    assert!(copied.unwrap_err().to_string().contains("it is cut"));
    // The `tar` of a failed copy has ended.
    eventually(60, "the end of tar", async || {
        let found = prints(&run, "pidof tar || echo none").await;
        (found == "none").then_some(())
    })
    .await;
}

pub fn is_not_found<T>(result: moat::Result<T>) -> bool {
    matches!(result, Err(Error::Runtime(RuntimeError::NotFound { .. })))
}

async fn a_missing_file_is_not_found(stage: &Stage) {
    let spec = hardened(stage).read_only(false);
    let (_manager, run) = running(stage, spec).await;
    run.copy_in("/work", archive("input")).await.unwrap();
    for path in [
        "/none",
        "/none/file",
        "/bin/busybox/file",
        "/work/none",
        "/work/none/file",
        "/work/input/file",
    ] {
        assert!(is_not_found(run.copy_out(path).await), "{path}");
        let copied = run.copy_in(path, archive("input")).await;
        assert!(is_not_found(copied), "{path}");
    }
}

async fn a_tmpfs_ends_with_its_container(stage: &Stage) {
    let spec = hardened(stage).cmd(["true"]).keep(KeepContainer::Always);
    let (_manager, run) = running(stage, spec).await;
    end(&run).await;
    let copied = run.copy_in("/work", archive("input")).await;
    let error = copied.unwrap_err();
    assert!(
        matches!(&error, Error::Runtime(RuntimeError::Conflict { .. })),
        "{error:?}"
    );
    assert!(
        error.to_string().contains("is on the file system at /work"),
        "{error}"
    );
}

async fn a_container_without_tar_is_refused_on_a_tmpfs(stage: &Stage) {
    let spec = stage.gated("echo up + await /gate/go").tmpfs("/work", None);
    let (_manager, run) = running(stage, spec).await;
    printed(&run, "up\n").await;
    let copied = run.copy_in("/work", archive("input")).await;
    match copied {
        // Podman needs no program of the container.
        Ok(()) if engine::is_podman() => {}
        Err(Error::Runtime(RuntimeError::Rejected { reason, .. })) => {
            assert!(reason.contains("the container has no tar"), "{reason}");
        }
        other => panic!("{other:?}"),
    }
    stage.open_gate("go");
    end(&run).await;
}
