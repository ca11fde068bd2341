//! The snapshot of the public API, `tests/public-api.txt`, which `just public-api-update` writes.

use std::collections::BTreeSet;
use std::fs;

/// Returns the lines of the snapshot, which have one item each.
pub fn lines() -> impl Iterator<Item = &'static str> {
    include_str!("../public-api.txt").lines()
}

/// Returns the paths of the items that are declared with one of these keywords.
pub fn items<const N: usize>(keywords: [&'static str; N]) -> impl Iterator<Item = String> {
    declarations(keywords).map(|(path, _)| path)
}

/// Returns the paths and the lines of the items that are declared with one of these keywords.
pub fn declarations<const N: usize>(
    keywords: [&'static str; N],
) -> impl Iterator<Item = (String, &'static str)> {
    lines().filter_map(move |line| {
        let item = line.trim_start_matches("#[non_exhaustive] ");
        let item = item.strip_prefix("pub ")?;
        let path = keywords
            .iter()
            .find_map(|keyword| item.strip_prefix(keyword))?;
        let end = path
            .find(|c: char| !c.is_alphanumeric() && c != '_' && c != ':')
            .unwrap_or(path.len());
        Some((path[..end].trim_end_matches(':').to_owned(), line))
    })
}

/// Returns the paths of the functions that return a future and are not `async`.
pub fn returning_futures() -> impl Iterator<Item = String> {
    let returns_future = |line: &str| {
        let result = line.split_once(" -> ").map_or("", |(_, result)| result);
        result.contains("impl core::future::future::Future<")
    };
    let functions = declarations(["fn "]).filter(move |(_, line)| returns_future(line));
    functions.map(|(path, _)| path)
}

/// The crates in public signatures, and the re-export that has their items.
const REEXPORTS: &[(&str, &str)] = &[
    ("bytes", "bytes"),
    ("futures_core", "futures"),
    ("serde_core", "serde"),
    ("serde_json", "serde_json"),
    ("tokio", "tokio"),
    ("tokio_util", "tokio_util"),
];

/// Uses each re-export in place of the crate in a signature.
const _: fn(&moat::run::Run, moat::runtime::Chunk, moat::timestamp::Timestamp) =
    |run, chunk, timestamp| {
        use moat::{bytes, futures, serde, serde_json, tokio, tokio_util};
        fn serialize(_: impl serde::Serialize) {}
        fn stream(_: impl futures::Stream) {}
        fn write(_: impl tokio::io::AsyncWrite) {}
        let _: fn(_, _) -> _ =
            |spec: moat::RunSpec, patch: serde_json::Value| spec.engine_patch(patch);
        let _: fn(moat::run::Input) = write;
        let _: bytes::Bytes = chunk.bytes;
        run.stop_when(tokio_util::sync::CancellationToken::new());
        stream(run.events());
        serialize(timestamp);
    };

/// Returns the first segments of the paths in a line: the crates, variables and `Self`.
fn first_segments(line: &str) -> impl Iterator<Item = &str> {
    let is_name = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices("::").filter_map(move |(end, _)| {
        let before = &line[..end];
        let name = &before[before.trim_end_matches(is_name).len()..];
        let prefix = &before[..before.len() - name.len()];
        let is_first = !name.is_empty() && !prefix.ends_with("::");
        is_first.then_some(name)
    })
}

#[test]
fn every_crate_in_a_signature_is_reexported() {
    let is_crate = |name: &&str| name.starts_with(|c: char| c.is_lowercase());
    let crates: BTreeSet<_> = lines().flat_map(first_segments).filter(is_crate).collect();
    let std = ["alloc", "core", "moat", "std"];
    let foreign: Vec<_> = crates.iter().filter(|name| !std.contains(*name)).collect();
    assert!(crates.is_superset(&BTreeSet::from(std)), "{crates:?}");
    let known: Vec<_> = REEXPORTS.iter().map(|(name, _)| name).collect();
    assert_eq!(foreign, known, "the crates in signatures, and REEXPORTS");
    let lib = include_str!("../../src/lib.rs");
    for (_, reexport) in REEXPORTS {
        let row = format!("//! | [`{reexport}`] |");
        assert!(
            lib.contains(&row),
            "{reexport} is not in the table of lib.rs"
        );
    }
}

/// Public async functions without a blocking one of the same name.
///
/// The documentation of `moat::blocking` names each.
const ASYNC_ONLY: &[&str] = &[
    "Case::run",
    "Docker::connect",
    "Docker::connect_to",
    "Docker::connect_with",
    "Events::next",
    "Faulty::wait_fault",
    "Kubernetes::connect",
    "Kubernetes::connect_with",
    "Manager::builder",
    "ManagerBuilder::open",
    "ReapOptions::run",
    "SigningKey::sign",
    "Terminal::attach",
];

/// Types whose methods all have a blocking method of the same name.
const BLOCKING_TYPES: [&str; 9] = [
    "AttachHandle",
    "Attachment",
    "Exec",
    "Group",
    "Manager",
    "Network",
    "Run",
    "Service",
    "Volume",
];

/// Methods of traits, which the snapshot lists without the name of the trait.
const TRAIT_METHODS: [&str; 4] = ["deref", "drop", "fmt", "poll_next"];

/// Returns the type and the name of a method, or the name of a function: `Run::wait`, `connect`.
fn short_name(path: &str) -> String {
    let mut segments = path.rsplit("::");
    let name = segments.next().unwrap();
    match segments.next() {
        Some(of) if of.starts_with(char::is_uppercase) => format!("{of}::{name}"),
        _ => name.to_owned(),
    }
}

/// Returns the names of the public functions and methods in `src/blocking`.
///
/// The source is read, and not the snapshot: a new method must not need two updates.
fn blocking_functions() -> BTreeSet<String> {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/src/blocking");
    let mut functions = BTreeSet::new();
    for entry in fs::read_dir(dir).unwrap() {
        let source = fs::read_to_string(entry.unwrap().path()).unwrap();
        let mut of = None;
        for line in source.lines() {
            if let Some(name) = line.strip_prefix("impl ") {
                of = name.strip_suffix(" {");
            }
            if let Some(function) = line.trim_start().strip_prefix("pub fn ") {
                let (name, _) = function.split_once('(').unwrap();
                functions.insert(match (line.starts_with(' '), of) {
                    (true, Some(of)) => format!("{of}::{name}"),
                    _ => name.to_owned(),
                });
            }
        }
    }
    functions
}

#[test]
fn every_async_function_has_a_blocking_one() {
    let asynchronous = items(["async fn "]).chain(returning_futures());
    let methods = items(["fn ", "async fn "]).filter(|path| {
        let name = short_name(path);
        let method = name.split_once("::");
        let is_async = !path.starts_with("moat::blocking");
        is_async
            && method.is_some_and(|(of, name)| {
                BLOCKING_TYPES.contains(&of) && !TRAIT_METHODS.contains(&name)
            })
    });
    let wanted: BTreeSet<_> = asynchronous
        .chain(methods)
        .map(|path| short_name(&path))
        .collect();
    let blocking = blocking_functions();
    assert!(wanted.len() > 50, "{wanted:?}");
    assert!(blocking.len() > 50, "{blocking:?}");
    let missing: Vec<_> = wanted.difference(&blocking).collect();
    assert_eq!(
        missing, ASYNC_ONLY,
        "without a blocking function, and ASYNC_ONLY"
    );
    let docs = include_str!("../../src/blocking/mod.rs");
    for name in ASYNC_ONLY {
        assert!(
            docs.contains(&format!("`{name}`")),
            "{name} is not in the docs"
        );
    }
}
