//! A small file system that a trial can fill.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use testkit::engine;

/// What a file takes on it, at least.
pub const PAGE: u64 = 4096;

/// A file system in memory, of a few megabytes, with a root of runs on it. Dropped, it is gone,
/// and so are the containers of the root.
pub struct Disk {
    path: PathBuf,
}

impl Drop for Disk {
    fn drop(&mut self) {
        engine::sweep(&self.path);
        // What a thread has still open goes with it.
        run(Command::new("umount").arg("--lazy").arg(&self.path));
    }
}

impl Disk {
    /// Whether this machine lets us mount.
    pub fn is_possible() -> bool {
        let all = "unshare --mount mount -t tmpfs -o size=64k moat-test /tmp";
        run(Command::new("sh").args(["-c", all]))
    }

    /// Mounts one at `path`, which is made.
    pub fn mount(path: &Path) -> Self {
        fs::create_dir(path).unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=8m,mode=700", "moat-test"]);
        assert!(run(mount.arg(path)), "cannot mount {}", path.display());
        Self {
            path: path.to_owned(),
        }
    }

    fn ballast(&self) -> PathBuf {
        self.path.join("ballast")
    }

    /// Takes all the room that there is, but for so many pages.
    pub fn fill(&self, but: u64) {
        let mut file = File::create(self.ballast()).unwrap();
        let mut pages = 0;
        loop {
            match file.write_all(&[0; PAGE as usize]) {
                Ok(()) => pages += 1,
                Err(error) if error.kind() == ErrorKind::StorageFull => break,
                Err(error) => panic!("{error}"),
            }
        }
        file.set_len((pages - but) * PAGE).unwrap();
    }

    /// Gives the room back.
    pub fn free(&self) {
        fs::remove_file(self.ballast()).unwrap();
    }
}

fn run(command: &mut Command) -> bool {
    let done = command.stdout(Stdio::null()).stderr(Stdio::null()).status();
    done.is_ok_and(|status| status.success())
}
