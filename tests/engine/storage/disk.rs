//! A small file system that a trial can fill.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use testkit::deadline::wait_for;
use testkit::engine;

/// The least space that a file takes.
pub const PAGE: u64 = 4096;

/// A file system in memory, of a few megabytes, for a root. Dropped, it is unmounted, and the
/// containers of the root are removed.
pub struct Disk {
    path: PathBuf,
}

impl Drop for Disk {
    fn drop(&mut self) {
        engine::sweep(&self.path);
        // Files that a thread still has open go with the mount.
        run(Command::new("umount").arg("--lazy").arg(&self.path));
    }
}

impl Disk {
    /// True if this user may mount a file system.
    pub fn is_possible() -> bool {
        let all = "unshare --mount mount -t tmpfs -o size=64k moat-test /tmp";
        run(Command::new("sh").args(["-c", all]))
    }

    /// Makes the directory `path` and mounts a file system there.
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

    /// Fills the disk except for this many pages.
    pub fn fill(&self, but: u64) {
        let mut file = File::create(self.ballast()).unwrap();
        let mut pages = 0;
        // A file that was just removed still takes its space for a moment.
        wait_for("room on the disk", || {
            loop {
                match file.write_all(&[0; PAGE as usize]) {
                    Ok(()) => pages += 1,
                    Err(error) if error.kind() == ErrorKind::StorageFull => return pages >= but,
                    Err(error) => panic!("{error}"),
                }
            }
        });
        file.set_len((pages - but) * PAGE).unwrap();
    }

    /// Empties the disk.
    pub fn free(&self) {
        fs::remove_file(self.ballast()).unwrap();
    }
}

fn run(command: &mut Command) -> bool {
    let done = command.stdout(Stdio::null()).stderr(Stdio::null()).status();
    done.is_ok_and(|status| status.success())
}
