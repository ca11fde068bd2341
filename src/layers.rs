//! The allowed imports between top-level modules, as ARCHITECTURE.md lists them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Each module, and the modules that it may import, from the bottom to the top.
///
/// A module imports only modules that precede it in this list, so no cycle can exist.
const MODULES: &[(&str, &[&str])] = &[
    ("causes", &[]),
    ("timestamp", &["causes"]),
    ("spec", &["timestamp"]),
    ("outcome", &["spec", "timestamp"]),
    ("state", &["outcome", "spec", "timestamp"]),
    ("error", &["causes", "outcome", "spec", "timestamp"]),
    ("disk", &["error"]),
    ("runtime", &["error", "outcome", "spec", "timestamp"]),
    ("sign", &["disk", "error", "timestamp"]),
    (
        "audit",
        &["disk", "error", "outcome", "runtime", "spec", "timestamp"],
    ),
    ("events", &["audit", "outcome", "spec", "timestamp"]),
    (
        "sink",
        &[
            "audit",
            "disk",
            "error",
            "outcome",
            "sign",
            "spec",
            "timestamp",
        ],
    ),
    (
        "capture",
        &[
            "audit",
            "error",
            "outcome",
            "runtime",
            "sink",
            "spec",
            "timestamp",
        ],
    ),
    (
        "root",
        &[
            "audit",
            "disk",
            "error",
            "outcome",
            "sign",
            "sink",
            "spec",
            "state",
            "timestamp",
        ],
    ),
    (
        "bundle",
        &["audit", "disk", "error", "outcome", "root", "sign", "spec"],
    ),
    (
        "conformance",
        &[
            "audit",
            "error",
            "outcome",
            "runtime",
            "sink",
            "spec",
            "timestamp",
        ],
    ),
    (
        "monitor",
        &[
            "audit",
            "capture",
            "disk",
            "error",
            "events",
            "outcome",
            "root",
            "runtime",
            "sign",
            "sink",
            "spec",
            "state",
            "timestamp",
        ],
    ),
    (
        "run",
        &[
            "audit",
            "capture",
            "disk",
            "error",
            "events",
            "monitor",
            "outcome",
            "root",
            "runtime",
            "sink",
            "spec",
            "state",
            "timestamp",
        ],
    ),
    ("terminal", &["error", "outcome", "run", "spec"]),
    (
        "manager",
        &[
            "audit",
            "disk",
            "error",
            "events",
            "monitor",
            "outcome",
            "root",
            "run",
            "runtime",
            "sink",
            "spec",
            "state",
            "timestamp",
        ],
    ),
    (
        "blocking",
        &[
            "audit", "error", "events", "manager", "outcome", "root", "run", "runtime", "spec",
            "state", "terminal",
        ],
    ),
];

/// Files that may import any module. They are hidden or empty in a release build.
const TOOLS: &[&str] = &["lib", "bench", "fuzz", "guide", "layers"];

/// The most lines of a file, its unit tests aside.
const MAX_LINES: usize = 600;

/// The most files of a directory, its subdirectories and unit tests aside.
const MAX_FILES: usize = 12;

/// Directories with more files, because all their files serve one task.
const LARGE: &[(&str, usize)] = &[("monitor", 20)];

/// One file of the library, without its unit tests and its comments.
struct Source {
    path: PathBuf,
    /// The directory, relative to `src`.
    dir: PathBuf,
    module: String,
    lines: Vec<(usize, String)>,
}

#[test]
fn imports_point_down_and_name_a_module() {
    let allowed: BTreeMap<_, _> = MODULES.iter().copied().collect();
    let mut wrong = Vec::new();
    for source in sources() {
        let Some(allowed) = allowed.get(source.module.as_str()) else {
            if !TOOLS.contains(&source.module.as_str()) {
                wrong.push(format!("{}: not in MODULES", source.path.display()));
            }
            continue;
        };
        for (number, line) in &source.lines {
            for target in imports(line) {
                if target != source.module && !allowed.contains(&target) {
                    wrong.push(format!(
                        "{}:{number}: {} must not import {target}",
                        source.path.display(),
                        source.module
                    ));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_allowed_imports_have_no_cycle() {
    let mut below = BTreeSet::new();
    for (module, allowed) in MODULES {
        for target in *allowed {
            assert!(
                below.contains(target),
                "{module} imports {target}, which is above it"
            );
        }
        below.insert(module);
    }
}

#[test]
fn no_import_renames_an_item_of_the_crate() {
    let mut wrong = Vec::new();
    for source in sources() {
        let mut statement = String::new();
        for (number, line) in &source.lines {
            let line = line.trim();
            let begins = line.starts_with("use ") || line.starts_with("pub use ");
            if statement.is_empty() && !begins {
                continue;
            }
            statement.push_str(line);
            if !line.ends_with(';') {
                continue;
            }
            let ours = statement.contains("use crate::") || statement.contains("use super::");
            if ours && statement.contains(" as ") && !statement.contains(" as _") {
                wrong.push(format!("{}:{number}: {statement}", source.path.display()));
            }
            statement.clear();
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn no_file_is_longer_than_the_limit() {
    let long: Vec<_> = sources()
        .into_iter()
        .map(|source| (source.lines.last().map_or(0, |line| line.0), source.path))
        .filter(|(lines, _)| *lines > MAX_LINES)
        .collect();
    assert!(long.is_empty(), "{long:?}");
}

#[test]
fn no_directory_has_more_files_than_the_limit() {
    let mut files = BTreeMap::<_, usize>::new();
    for source in sources() {
        *files.entry(source.dir).or_default() += 1;
    }
    let large: Vec<_> = files
        .into_iter()
        .filter(|(dir, files)| {
            let exception = LARGE.iter().find(|(name, _)| Path::new(name) == dir);
            *files > exception.map_or(MAX_FILES, |(_, limit)| *limit)
        })
        .collect();
    assert!(large.is_empty(), "{large:?}");
}

/// `Debug` is the text that a failed `main` or `unwrap` prints: see `causes`.
#[test]
fn no_public_error_derives_debug() {
    let mut wrong = Vec::new();
    let mut errors = 0;
    for source in sources() {
        let mut derives = None;
        for (number, line) in &source.lines {
            if line.starts_with("#[derive(") && line.contains("thiserror::Error") {
                derives = Some(line.contains("Debug"));
            }
            if line.starts_with("pub ") || line.starts_with("pub(") {
                let derived = derives.take();
                errors += usize::from(derived.is_some());
                if derived == Some(true) && line.starts_with("pub ") {
                    wrong.push(format!("{}:{number}", source.path.display()));
                }
            }
        }
    }
    assert!(errors > 5, "{errors}");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The modules that a line of code names after `crate::`.
fn imports(line: &str) -> impl Iterator<Item = &str> {
    line.split("crate::").skip(1).map(|rest| {
        let end = rest
            .find(|c: char| !c.is_alphanumeric() && c != '_')
            .unwrap_or(rest.len());
        &rest[..end]
    })
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut sources = Vec::new();
    let mut pending = vec![root.clone()];
    while let Some(dir) = pending.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            if path.is_dir() {
                pending.push(path);
            } else if name.ends_with(".rs") && !["tests.rs", "crash.rs"].contains(&name) {
                sources.push(read(&root, path));
            }
        }
    }
    assert!(sources.len() > 100, "{} files", sources.len());
    sources
}

fn read(root: &Path, path: PathBuf) -> Source {
    let text = fs::read_to_string(&path).unwrap();
    let code = text.split("\nmod tests {").next().unwrap();
    let relative = path.strip_prefix(root).unwrap();
    let first = relative.iter().next().unwrap().to_str().unwrap();
    Source {
        dir: relative.parent().unwrap().to_owned(),
        module: first.trim_end_matches(".rs").to_owned(),
        lines: (1..)
            .zip(code.lines())
            .filter(|(_, line)| !line.trim_start().starts_with("//"))
            .map(|(number, line)| (number, line.to_owned()))
            .collect(),
        path,
    }
}
