use std::os::unix::fs::MetadataExt;
use std::thread;

use bytes::Bytes;
use proptest::prelude::*;
use tar::{Builder, Header};
use tempfile::TempDir;

use super::super::pipe;
use super::*;

/// An archive whose names and links are written as they are.
struct Hostile(Builder<Vec<u8>>);

impl Hostile {
    fn new() -> Self {
        Self(Builder::new(Vec::new()))
    }

    /// An archive that begins with the directory `out`.
    fn dir() -> Self {
        Self::new().entry(EntryType::Directory, "out/", "", b"")
    }

    fn entry(mut self, kind: EntryType, name: &str, link: &str, content: &[u8]) -> Self {
        let mut header = Header::new_gnu();
        let gnu = header.as_gnu_mut().unwrap();
        gnu.name[..name.len()].copy_from_slice(name.as_bytes());
        gnu.linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_entry_type(kind);
        header.set_mode(0o6755);
        header.set_size(content.len() as u64);
        header.set_cksum();
        self.0.append(&header, content).unwrap();
        self
    }

    fn file(self, name: &str, content: &[u8]) -> Self {
        self.entry(EntryType::Regular, name, "", content)
    }

    fn link(self, name: &str, target: &str) -> Self {
        self.entry(EntryType::Symlink, name, target, b"")
    }

    fn hard_link(self, name: &str, target: &str) -> Self {
        self.entry(EntryType::Link, name, target, b"")
    }

    fn bytes(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

/// Sends an archive in parts that end in the middle of its blocks.
fn sent(bytes: &[u8], is_whole: bool) -> mpsc::Receiver<Part> {
    let (parts, receiver) = pipe::channel();
    let bytes = Bytes::copy_from_slice(bytes);
    thread::spawn(move || {
        for part in bytes.chunks(700) {
            let part = Part::Bytes(bytes.slice_ref(part));
            if parts.blocking_send(part).is_err() {
                return;
            }
        }
        if is_whole {
            let _ = parts.blocking_send(Part::End);
        }
    });
    receiver
}

/// A directory on this machine with a file that no archive may change.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        let place = Self(TempDir::new().unwrap());
        fs::write(place.path("secret"), "secret").unwrap();
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn unpack_with(&self, archive: &[u8], options: &CopyOptions) -> Result<Unpacked<()>, Failure> {
        unpack(sent(archive, true), &self.path("into"), options)
    }

    fn unpack(&self, archive: Hostile) -> Result<Unpacked<()>, Failure> {
        self.unpack_with(&archive.bytes(), &CopyOptions::new())
    }

    /// Fails if anything but the target is changed, or the target leads elsewhere.
    fn assert_intact(&self) {
        assert_eq!(fs::read(self.path("secret")).unwrap(), b"secret");
        assert_eq!(fs::metadata(self.path("secret")).unwrap().nlink(), 1);
        for entry in fs::read_dir(self.0.path()).unwrap() {
            let name = entry.unwrap().file_name();
            assert!(
                name == "secret" || name == "into",
                "{name:?} is left behind"
            );
        }
        let mut pending = vec![self.path("into")];
        let root = self.path("into").canonicalize();
        while let Some(path) = pending.pop() {
            let Ok(found) = path.symlink_metadata() else {
                continue;
            };
            if found.is_symlink() {
                let led = path.canonicalize();
                let is_inside = |led: &PathBuf| led.starts_with(root.as_ref().unwrap());
                assert!(led.as_ref().map_or(true, is_inside), "{path:?} -> {led:?}");
            } else if found.is_dir() {
                pending.extend(
                    fs::read_dir(&path)
                        .unwrap()
                        .map(|entry| entry.unwrap().path()),
                );
            } else {
                assert!(found.is_file(), "{path:?}");
                assert_eq!(found.mode() & 0o7000, 0, "{path:?}");
            }
        }
    }

    /// Unpacks an archive that is refused for this reason, and leaves nothing.
    fn refuses(&self, archive: Hostile, reason: &str) {
        let error = self.unpack(archive).unwrap_err().at("/out");
        assert!(error.chain().contains(reason), "{}", error.chain());
        self.assert_intact();
        assert!(self.path("into").symlink_metadata().is_err());
    }
}

#[test]
fn a_directory_is_unpacked_under_its_new_name() {
    let place = Place::new();
    let archive = Hostile::dir()
        .entry(EntryType::Directory, "out/a/", "", b"")
        .file("out/a/b", b"content")
        .file("out/missing/parent", b"")
        .link("out/a/up", "../a/b")
        .hard_link("out/hard", "out/a/b");
    let Unpacked::Copied((), progress) = place.unpack(archive).unwrap() else {
        panic!("a link");
    };
    assert_eq!(
        (progress.entries, progress.bytes, progress.skipped),
        (7, 7, 0)
    );
    for name in ["into/a/b", "into/a/up", "into/hard"] {
        assert_eq!(fs::read(place.path(name)).unwrap(), b"content", "{name}");
    }
    place.assert_intact();
}

#[test]
fn names_outside_the_copy_are_refused() {
    let refused = "is not a name in the copied directory";
    for name in [
        "../secret",
        "out/../../secret",
        "/tmp/secret",
        "out/..",
        "./",
        "/",
    ] {
        Place::new().refuses(Hostile::dir().file(name, b"x"), refused);
    }
    let outside = "is outside the copied directory";
    Place::new().refuses(Hostile::dir().file("secret", b"x"), outside);
    Place::new().refuses(Hostile::new().file("out/first", b"x"), outside);
    Place::new().refuses(
        Hostile::new().file("out", b"x").file("other", b"x"),
        outside,
    );
}

#[test]
fn links_out_of_the_copy_are_refused() {
    let refused = "is a link that leads out of the copied directory";
    for target in [
        "/etc/passwd",
        "../secret",
        "a/../../secret",
        "a/..",
        "./../secret",
    ] {
        Place::new().refuses(Hostile::dir().link("out/link", target), refused);
    }
    let deep = || Hostile::dir().entry(EntryType::Directory, "out/a/", "", b"");
    Place::new().refuses(deep().link("out/a/link", "../../secret"), refused);
    Place::new().refuses(
        deep()
            .link("out/a/root", "..")
            .link("out/a/out", "root/../secret"),
        refused,
    );
    Place::new()
        .unpack(deep().link("out/a/link", "../a"))
        .unwrap();
}

#[test]
fn files_below_a_link_or_a_file_are_refused() {
    let through = Hostile::dir()
        .link("out/link", "a")
        .file("out/link/file", b"x");
    Place::new().refuses(through, "is in the archive twice");
    let below = Hostile::new().file("out", b"x").file("out/file", b"x");
    Place::new().refuses(below, "is below a file");
}

#[test]
fn hard_links_out_of_the_copy_are_refused() {
    let refused = "is a link to a file that is not in the copy";
    for target in [
        "secret",
        "../secret",
        "/etc/passwd",
        "out/missing",
        "out",
        "out/link",
    ] {
        let archive = Hostile::dir().link("out/link", "a");
        Place::new().refuses(archive.hard_link("out/hard", target), refused);
    }
    let root = Hostile::new().hard_link("out", "secret");
    Place::new().refuses(root, "it is not a regular file");
}

#[test]
fn duplicate_names_are_refused() {
    let twice = "is in the archive twice";
    let file = || Hostile::dir().file("out/a", b"first");
    Place::new().refuses(file().file("out/a", b"second"), twice);
    Place::new().refuses(file().file("out/./a", b"second"), twice);
    Place::new().refuses(file().link("out/a", "b"), twice);
    Place::new().refuses(Hostile::dir().link("out/a", "b").file("out/a", b"x"), twice);
}

#[test]
fn special_files_are_refused_or_skipped() {
    for (kind, reason) in [
        (EntryType::Char, "is a device"),
        (EntryType::Block, "is a device"),
        (EntryType::Fifo, "is a FIFO"),
        (EntryType::new(b'Z'), "is a file of an unknown kind"),
    ] {
        let archive = || Hostile::dir().entry(kind, "out/special", "", b"");
        Place::new().refuses(archive(), reason);
        Place::new().refuses(
            Hostile::new().entry(kind, "out", "", b""),
            "not a regular file",
        );
        let place = Place::new();
        let archive = archive().link("out/link", "/etc").file("out/file", b"kept");
        let options = CopyOptions::new().skip_special(true);
        let unpacked = place.unpack_with(&archive.bytes(), &options).unwrap();
        let Unpacked::Copied((), progress) = unpacked else {
            panic!("a link");
        };
        assert_eq!((progress.entries, progress.skipped), (2, 2));
        assert_eq!(fs::read(place.path("into/file")).unwrap(), b"kept");
        place.assert_intact();
    }
}

#[test]
fn the_limits_are_enforced() {
    let archive = Hostile::dir()
        .file("out/a", &[1; 600])
        .file("out/b", &[1; 600])
        .bytes();
    for (options, refused) in [
        (CopyOptions::new().max_bytes(1200).max_entries(3), None),
        (
            CopyOptions::new().max_bytes(1199),
            Some("more than 1199 bytes"),
        ),
        (
            CopyOptions::new().max_entries(2),
            Some("more than 2 entries"),
        ),
    ] {
        let place = Place::new();
        let error = place.unpack_with(&archive, &options).err();
        let text = error.map(|error| error.at("/out").chain());
        assert_eq!(text.is_some(), refused.is_some(), "{text:?}");
        assert!(
            text.unwrap_or_default()
                .contains(refused.unwrap_or_default())
        );
        place.assert_intact();
    }
}

#[test]
fn a_long_header_is_refused() {
    // It claims a name of 1 TiB.
    let mut header = Header::new_gnu();
    header.set_entry_type(EntryType::GNULongName);
    header.set_size(1 << 40);
    header.set_cksum();
    let mut archive = header.as_bytes().to_vec();
    archive.resize(4 << 20, b'a');
    let place = Place::new();
    let error = place
        .unpack_with(&archive, &CopyOptions::new())
        .unwrap_err();
    assert!(error.at("/out").chain().contains("a header is too long"));
    place.assert_intact();
}

#[test]
fn an_incomplete_archive_leaves_nothing() {
    let whole = Hostile::dir().file("out/a", &[1; 2000]).bytes();
    let end = whole.len() - 1024;
    for length in [0, 100, 512, 1024, 1500, end, end + 512] {
        let place = Place::new();
        let unpacked = place.unpack_with(&whole[..length], &CopyOptions::new());
        assert!(unpacked.is_err(), "{length}");
        assert!(!place.path("into").exists(), "{length}");
        place.assert_intact();
    }
    let place = Place::new();
    let cut = unpack(
        sent(&whole, false),
        &place.path("into"),
        &CopyOptions::new(),
    );
    assert!(
        cut.unwrap_err()
            .at("/out")
            .chain()
            .contains("it was interrupted")
    );
    place.assert_intact();
    assert!(!place.path("into").exists());
}

#[test]
fn a_file_replaces_a_file_and_no_directory() {
    let place = Place::new();
    let file = || Hostile::new().file("out", b"new");
    std::os::unix::fs::symlink("secret", place.path("into")).unwrap();
    place.unpack(file()).unwrap();
    assert_eq!(fs::read(place.path("into")).unwrap(), b"new");
    place.assert_intact();
    let exists = |archive| {
        let error = place.unpack(archive).unwrap_err().at("/out");
        assert!(error.chain().contains("into exists"), "{}", error.chain());
    };
    exists(Hostile::dir());
    fs::remove_file(place.path("into")).unwrap();
    fs::create_dir(place.path("into")).unwrap();
    exists(Hostile::dir());
    exists(file());
    place.assert_intact();
}

#[test]
fn a_mode_is_set_for_files_and_directories() {
    let place = Place::new();
    let archive = Hostile::dir().file("out/a", b"").bytes();
    place
        .unpack_with(&archive, &CopyOptions::new().mode(0o4640))
        .unwrap();
    let mode = |name: &str| fs::metadata(place.path(name)).unwrap().mode() & 0o7777;
    assert_eq!((mode("into"), mode("into/a")), (0o750, 0o640));
}

#[test]
fn one_file_is_read_into_memory() {
    let read = |archive: Hostile, options: CopyOptions| {
        let read = read_file(sent(&archive.bytes(), true), &options.for_one_file());
        read.map_err(|failure| failure.at("/out").chain())
    };
    let file = || Hostile::new().file("out", b"content");
    let found = read(file(), CopyOptions::new()).unwrap();
    assert!(matches!(found, Unpacked::Copied(content, _) if content == b"content"));
    let found = read(Hostile::new().link("out", "other"), CopyOptions::new()).unwrap();
    assert!(matches!(found, Unpacked::Link(target) if target == Path::new("other")));
    for (archive, options, reason) in [
        (Hostile::dir(), CopyOptions::new(), "not a regular file"),
        (file(), CopyOptions::new().max_bytes(6), "more than 6 bytes"),
        (
            file().file("out", b"x"),
            CopyOptions::new(),
            "more than one file",
        ),
        (Hostile::new(), CopyOptions::new(), "it has no file"),
    ] {
        let error = read(archive, options).unwrap_err();
        assert!(error.contains(reason), "{error}");
    }
}

fn any_name() -> impl Strategy<Value = String> {
    let part = prop::sample::select(vec!["..", ".", "a", "b", "secret", ""]);
    prop::collection::vec(part, 0..4).prop_map(|parts| parts.join("/"))
}

#[test]
fn zeros_in_a_file_are_not_the_end_of_an_archive() {
    let place = Place::new();
    let archive = Hostile::dir().file("out/a", &[0; 4096]).bytes();
    let cut = &archive[..archive.len() - 1024];
    let failure = place.unpack_with(cut, &CopyOptions::new()).unwrap_err();
    let text = format!("{:?}", failure.at("/out"));
    assert!(text.contains("it has no end"), "{text}");
    place.assert_intact();
}

#[test]
fn a_large_special_file_is_skipped() {
    let place = Place::new();
    let content = vec![1; 3 << 20];
    let archive = Hostile::dir()
        .entry(EntryType::new(b'Z'), "out/a", "", &content)
        .file("out/b", b"b")
        .bytes();
    let options = CopyOptions::new().skip_special(true);
    place.unpack_with(&archive, &options).unwrap();
    assert_eq!(fs::read(place.path("into/b")).unwrap(), b"b");
    let small = options.max_bytes(1 << 20);
    let other = Place::new();
    assert!(other.unpack_with(&archive, &small).is_err());
    other.assert_intact();
}

#[test]
fn an_unnamed_directory_has_the_asked_mode() {
    let place = Place::new();
    let archive = Hostile::dir().file("out/d/e", b"e").bytes();
    place
        .unpack_with(&archive, &CopyOptions::new().mode(0o600))
        .unwrap();
    let found = fs::metadata(place.path("into/d")).unwrap();
    assert_eq!(found.mode() & 0o777, 0o700);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn no_archive_changes_files_outside_the_copy(
        entries in prop::collection::vec((0u8..8, any_name(), any_name(), any::<bool>()), 0..10),
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..2),
        skip in any::<bool>(),
    ) {
        let mut archive = Hostile::dir();
        for (kind, name, link, is_below) in entries {
            let kind = EntryType::new(b'0' + kind);
            let name = if is_below { format!("out/{name}") } else { name };
            archive = archive.entry(kind, &name, &link, b"");
        }
        let mut bytes = archive.bytes();
        for (at, byte) in flips {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        let place = Place::new();
        let _ = place.unpack_with(&bytes, &CopyOptions::new().skip_special(skip));
        place.assert_intact();
    }
}
