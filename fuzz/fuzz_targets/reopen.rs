#![no_main]

use std::path::Path;
use std::sync::OnceLock;

use tempfile::TempDir;

/// In memory where there is such a file system: each input is synced several times.
fn dir() -> &'static Path {
    static FOLDER: OnceLock<TempDir> = OnceLock::new();
    let make = || match Path::new("/dev/shm") {
        memory if memory.is_dir() => tempfile::tempdir_in(memory).unwrap(),
        _ => tempfile::tempdir().unwrap(),
    };
    FOLDER.get_or_init(make).path()
}

libfuzzer_sys::fuzz_target!(|input: &[u8]| moat::fuzz::reopen(dir(), input));
