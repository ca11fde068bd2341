//! Files that are copied between this machine and a container.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use moat::run::{CopyError, CopyOptions};
use moat::runtime::RuntimeError;
use moat::spec::KeepContainer;
use moat::{Error, RunSpec};

use crate::files::{hardened, is_not_found, prints, running};
use crate::stage::{Stage, printed};

testkit::trials! {
    crate::on_busybox:
        a_directory_is_copied_there_and_back,
        files_are_copied_in_a_hardened_container,
        a_kept_container_is_read_and_given_up,
        hostile_files_are_refused,
        links_are_followed_and_missing_files_named,
        a_file_does_not_replace_a_directory,
        a_copy_has_an_owner_and_a_mode;
}

const BIG: usize = 3_000_000;

fn make_tree(dir: &Path) {
    fs::create_dir_all(dir.join("sub/empty")).unwrap();
    fs::write(dir.join("sub/big"), "0123456789".repeat(BIG / 10)).unwrap();
    fs::write(dir.join("run.sh"), "#!/bin/sh\necho ran\n").unwrap();
    fs::set_permissions(dir.join("run.sh"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(dir.join("long-".repeat(40)), "long").unwrap();
    symlink("../run.sh", dir.join("sub/link")).unwrap();
}

fn assert_tree(dir: &Path) {
    assert_eq!(fs::read(dir.join("sub/big")).unwrap().len(), BIG);
    let script = dir.join("run.sh");
    assert_eq!(
        fs::metadata(&script).unwrap().permissions().mode() & 0o777,
        0o755
    );
    assert_eq!(fs::read(dir.join("long-".repeat(40))).unwrap(), b"long");
    let target = fs::read_link(dir.join("sub/link")).unwrap();
    assert_eq!(target, Path::new("../run.sh"));
    assert!(dir.join("sub/empty").is_dir());
}

async fn a_directory_is_copied_there_and_back(stage: &Stage) {
    let spec = RunSpec::new(&stage.image)
        .cmd(["sleep", "600"])
        .network("none");
    let (_manager, run) = running(stage, spec).await;
    let dir = stage.dir.path();
    make_tree(&dir.join("tree"));
    let bytes = Arc::new(AtomicU64::new(0));
    let seen = Arc::clone(&bytes);
    let options = CopyOptions::new().progress(move |progress| {
        seen.store(progress.bytes, Ordering::Relaxed);
    });
    let copied = run
        .copy_to_with(dir.join("tree"), "/data", options)
        .await
        .unwrap();
    assert_eq!(
        (copied.entries, copied.bytes, copied.skipped),
        (7, BIG as u64 + 23, 0)
    );
    assert_eq!(bytes.load(Ordering::Relaxed), copied.bytes);
    let shown = prints(&run, "/data/sub/link; stat -c '%a %u' /data/run.sh").await;
    assert_eq!(shown, "ran\n755 0");
    let back = run.copy_from("/data/", dir.join("back")).await.unwrap();
    assert_eq!(back, copied);
    assert_tree(&dir.join("back"));
    let again = run.copy_from("/data", dir.join("back")).await;
    let refused = matches!(
        again,
        Err(Error::Copy {
            source: CopyError::TargetExists { .. },
            ..
        })
    );
    assert!(refused, "{again:?}");
    // A directory is merged with a copied one.
    fs::remove_dir_all(dir.join("tree/sub")).unwrap();
    run.copy_to(dir.join("tree"), "/data").await.unwrap();
    assert_eq!(prints(&run, "ls /data/sub").await, "big\nempty\nlink");
}

async fn files_are_copied_in_a_hardened_container(stage: &Stage) {
    let (_manager, run) = running(stage, hardened(stage)).await;
    let dir = stage.dir.path();
    run.write_file("/work/input", "some text\n").await.unwrap();
    assert_eq!(prints(&run, "cat /work/input").await, "some text");
    assert_eq!(run.read_file("/work/input").await.unwrap(), b"some text\n");
    make_tree(&dir.join("tree"));
    run.copy_to(dir.join("tree"), "/work/tree").await.unwrap();
    run.copy_from("/work/tree", dir.join("back")).await.unwrap();
    assert_tree(&dir.join("back"));
    let refused = run.write_file("/etc/passwd", "").await;
    assert!(matches!(refused, Err(Error::Runtime(_))), "{refused:?}");
}

async fn a_kept_container_is_read_and_given_up(stage: &Stage) {
    let manager = stage.manager().await;
    let spec = RunSpec::new(&stage.image)
        .cmd([
            "sh",
            "-c",
            "mkdir /out; echo passed > /out/report; echo up; sleep 600",
        ])
        .network("none")
        .keep(KeepContainer::Always);
    let run = manager.start(spec).await.unwrap();
    printed(&run, "up\n").await;
    let early = run.remove_container().await;
    assert!(matches!(early, Err(Error::NotSealed { .. })), "{early:?}");
    let outcome = run.kill().await.unwrap();
    assert_eq!(run.read_file("/out/report").await.unwrap(), b"passed\n");
    let back = stage.dir.path().join("back");
    run.copy_from("/out", &back).await.unwrap();
    assert_eq!(fs::read(back.join("report")).unwrap(), b"passed\n");
    assert_eq!(stage.containers().await.len(), 1);
    for _ in 0..2 {
        run.remove_container().await.unwrap();
        assert!(stage.containers().await.is_empty());
    }
    assert!(run.wait_removed().await.unwrap());
    assert!(is_not_found(run.read_file("/out/report").await));
    assert!(outcome.audit.as_ref().unwrap().exists());
    manager.remove(run.id()).await.unwrap();
    assert!(!outcome.audit.unwrap().exists());
}

async fn hostile_files_are_refused(stage: &Stage) {
    let spec = RunSpec::new(&stage.image)
        .cmd([
            "sh",
            "-c",
            "mkdir -p /out/sub; cd /out; echo x > file; ln file sub/hard; mkfifo fifo; \
             ln -s /etc/passwd absolute; ln -s ../../secret sub/up; ln -s file inside; \
             chmod 6755 file; echo up; sleep 600",
        ])
        .network("none");
    let (_manager, run) = running(stage, spec).await;
    printed(&run, "up\n").await;
    let back = stage.dir.path().join("back");
    let refused = run.copy_from("/out", &back).await.unwrap_err();
    let is_refused = matches!(
        refused,
        Error::Copy {
            source: CopyError::RefusedEntry { .. },
            ..
        }
    );
    assert!(is_refused, "{refused:?}");
    let left: Vec<_> = fs::read_dir(stage.dir.path()).unwrap().collect();
    let is_staging = |name: &str| name.starts_with(".moat-copy");
    assert!(
        !left
            .iter()
            .any(|entry| { is_staging(&entry.as_ref().unwrap().file_name().to_string_lossy()) })
    );
    let options = CopyOptions::new().skip_special(true);
    let copied = run.copy_from_with("/out", &back, options).await.unwrap();
    assert_eq!((copied.entries, copied.skipped), (5, 3));
    assert_eq!(fs::read(back.join("inside")).unwrap(), b"x\n");
    assert_eq!(fs::read(back.join("sub/hard")).unwrap(), b"x\n");
    let mode = fs::metadata(back.join("file"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o7000, 0);
    let fifo = run.read_file("/out/fifo").await;
    let is_refused = matches!(
        fifo,
        Err(Error::Copy {
            source: CopyError::NotAFile,
            ..
        })
    );
    assert!(is_refused, "{fifo:?}");
}

async fn links_are_followed_and_missing_files_named(stage: &Stage) {
    let spec = RunSpec::new(&stage.image)
        .cmd([
            "sh",
            "-c",
            "mkdir /a; echo content > /a/file; ln -s file /a/one; ln -s ../a/one /a/two; \
             ln -s /a /b; ln -s loop /loop; echo up; sleep 600",
        ])
        .network("none");
    let (_manager, run) = running(stage, spec).await;
    printed(&run, "up\n").await;
    for path in ["/a/file", "/a/one", "/a/two", "/b/two", "/a/../a/./file"] {
        assert_eq!(run.read_file(path).await.unwrap(), b"content\n", "{path}");
    }
    let back = stage.dir.path().join("back");
    // The link `two` leaves the directory on its way.
    let options = CopyOptions::new().skip_special(true);
    let copied = run.copy_from_with("/b", &back, options).await.unwrap();
    assert_eq!(copied.skipped, 1);
    assert_eq!(fs::read(back.join("one")).unwrap(), b"content\n");
    run.read_file("/loop").await.unwrap_err();
    for path in ["/none", "/a/none", "/a/file/none"] {
        assert!(is_not_found(run.read_file(path).await), "{path}");
        let copied = run.copy_from(path, stage.dir.path().join("none")).await;
        assert!(is_not_found(copied), "{path}");
    }
    assert!(is_not_found(run.write_file("/none/file", "x").await));
    let limited = CopyOptions::new().max_bytes(7);
    let refused = run.read_file_with("/a/file", limited).await.unwrap_err();
    assert!(refused.chain().contains("more than 7 bytes"), "{refused:?}");
    for (path, reason) in [
        ("/a", "not a regular file"),
        ("a/file", "is not absolute"),
        ("/", "has no name"),
    ] {
        let refused = run.read_file(path).await.unwrap_err();
        assert!(refused.chain().contains(reason), "{refused:?}");
    }
}

async fn a_file_does_not_replace_a_directory(stage: &Stage) {
    let spec = RunSpec::new(&stage.image)
        .cmd(["sleep", "600"])
        .network("none");
    let (_manager, run) = running(stage, spec).await;
    let written = run.write_file("/etc", "x").await;
    assert!(matches!(written, Err(Error::Runtime(_))), "{written:?}");
    assert_eq!(prints(&run, "ls -d /etc/").await, "/etc/");
    let dir = stage.dir.path().join("tree");
    make_tree(&dir);
    run.write_file("/file", "x").await.unwrap();
    let copied = run.copy_to(&dir, "/file").await;
    let is_refused = matches!(
        &copied,
        Err(Error::Runtime(error)) if !matches!(error, RuntimeError::NotFound { .. })
    );
    assert!(is_refused, "{copied:?}");
    assert_eq!(run.read_file("/file").await.unwrap(), b"x");
}

async fn a_copy_has_an_owner_and_a_mode(stage: &Stage) {
    let spec = hardened(stage).read_only(false);
    let (_manager, run) = running(stage, spec).await;
    let options = CopyOptions::new().owner(1000, 1001).mode(0o400);
    run.write_file_with("/file", "x", options.clone())
        .await
        .unwrap();
    let shown = prints(&run, "stat -c '%a %u %g' /file").await;
    assert_eq!(shown, "400 1000 1001");
    run.write_file_with("/work/file", "x", options)
        .await
        .unwrap();
    let shown = prints(&run, "stat -c '%a %u' /work/file").await;
    assert_eq!(shown, "400 1000");
}
