#![no_main]

use std::path::Path;
use std::sync::OnceLock;

use tempfile::TempDir;

/// A temporary directory, in memory if possible, because each input is synced several times.
fn dir() -> &'static Path {
    static DIR: OnceLock<TempDir> = OnceLock::new();
    let create = || match Path::new("/dev/shm") {
        memory if memory.is_dir() => tempfile::tempdir_in(memory).unwrap(),
        _ => tempfile::tempdir().unwrap(),
    };
    DIR.get_or_init(create).path()
}

libfuzzer_sys::fuzz_target!(|input: &[u8]| moat::fuzz::reopen(dir(), input));
