//! The documentation names tests, files, headings and commands that exist.

use std::collections::HashSet;
use std::fs;
use std::path::{Component, Path, PathBuf};

const README_WORDS: usize = 600;
const README_LINES: usize = 120;
const DESIGN_WORDS: usize = 1500;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// All files below `dir` with this extension, relative to the repository. Build output and hidden
/// directories are skipped.
fn files(dir: &str, extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut dirs = vec![root().join(dir)];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            let path = entry.path();
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if path.is_dir() {
                if !name.starts_with('.') && name != "target" {
                    dirs.push(path);
                }
            } else if path.extension().is_some_and(|found| found == extension) {
                found.push(path.strip_prefix(root()).unwrap().to_owned());
            }
        }
    }
    found.sort();
    found
}

/// The Markdown files that a reader of the repository sees.
fn pages() -> Vec<PathBuf> {
    let top = fs::read_dir(root()).unwrap().flatten();
    let top = top.map(|entry| PathBuf::from(entry.file_name()));
    let top = top.filter(|path| path.extension().is_some_and(|found| found == "md"));
    let mut pages: Vec<_> = top.chain(files("docs", "md")).collect();
    pages.sort();
    pages
}

/// A page without its code blocks.
fn prose(page: &str) -> String {
    let mut fence = None;
    let mut prose = String::new();
    for line in page.lines() {
        let start = line.trim_start();
        let marker = ["```", "~~~"]
            .into_iter()
            .find(|mark| start.starts_with(mark));
        match (fence, marker) {
            (None, Some(marker)) => fence = Some(marker),
            (Some(open), Some(marker)) if open == marker => fence = None,
            (None, None) => {
                prose.push_str(line);
                prose.push('\n');
            }
            _ => {}
        }
    }
    prose
}

/// The targets of inline links, images and reference definitions: `](target)` and `]: target`.
fn links(prose: &str) -> Vec<String> {
    let mut links = Vec::new();
    for line in prose.lines() {
        let line = without_code(line);
        for (at, _) in line.match_indices("](") {
            if let Some((target, _)) = line[at + 2..].split_once(')') {
                links.push(target.to_owned());
            }
        }
        if let Some((_, target)) = definition(&line) {
            links.push(target.to_owned());
        }
    }
    links
}

/// The label and the target of a line that is a reference definition.
fn definition(line: &str) -> Option<(&str, &str)> {
    let (label, target) = line.strip_prefix('[')?.split_once("]: ")?;
    Some((label, target.trim()))
}

/// A line with its code spans removed.
fn without_code(line: &str) -> String {
    line.split('`').step_by(2).collect::<Vec<_>>().join("``")
}

/// The code spans of a line.
fn code_spans(line: &str) -> impl Iterator<Item = &str> {
    line.split('`').skip(1).step_by(2)
}

/// The anchors that GitHub and rustdoc give to the headings of a page.
fn anchors(prose: &str) -> HashSet<String> {
    let headings = prose.lines().filter(|line| line.starts_with('#'));
    let slug = |line: &str| -> String {
        let text = line.trim_start_matches('#').trim().to_lowercase();
        let kept = text
            .chars()
            .filter(|c| c.is_alphanumeric() || " -_".contains(*c));
        kept.map(|c| if c == ' ' { '-' } else { c }).collect()
    };
    headings.map(slug).collect()
}

fn is_url(link: &str) -> bool {
    link.starts_with("https://") || link.starts_with("http://")
}

/// `path` without `.` and `..`.
fn normal(path: &Path) -> PathBuf {
    let mut normal = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => {
                normal.pop();
            }
            Component::CurDir => {}
            part => normal.push(part),
        }
    }
    normal
}

#[test]
fn relative_links_lead_to_files_and_headings() {
    let mut broken = Vec::new();
    for page in pages() {
        let text = prose(&read(&root().join(&page)));
        for link in links(&text) {
            // A page of GitHub's, relative to the repository.
            if is_url(&link) || link.starts_with("../../actions/") {
                continue;
            }
            let (file, anchor) = link.split_once('#').unwrap_or((&link, ""));
            let target = match file {
                "" => page.clone(),
                file => normal(&page.parent().unwrap().join(file)),
            };
            let path = root().join(&target);
            let has_heading = || anchors(&prose(&read(&path))).contains(anchor);
            if !path.exists() || (!anchor.is_empty() && !has_heading()) {
                broken.push(format!("{}: {link}", page.display()));
            }
        }
    }
    assert!(broken.is_empty(), "broken links:\n{}", broken.join("\n"));
}

/// A page that is in rustdoc as well has links by reference. Their definitions in `src/guide.rs`
/// take precedence over those of the page, which are paths in the repository.
#[test]
fn guide_links_work_in_rustdoc_too() {
    let guide = read(&root().join("src/guide.rs"));
    let mut wrong = Vec::new();
    let mut included = 0;
    // Each part ends with the page that it includes.
    let parts: Vec<_> = guide.split("include_str!(\"../docs/").collect();
    for (part, next) in parts.iter().zip(&parts[1..]) {
        let (name, _) = next.split_once('"').unwrap();
        included += 1;
        let own = part.rfind("pub mod").map_or(*part, |at| &part[at..]);
        let own = own.lines().map(|line| line.trim_start_matches("/// "));
        let defined: HashSet<_> = own.filter_map(definition).map(|(label, _)| label).collect();
        let text = prose(&read(&root().join("docs").join(name)));
        for line in text.lines() {
            let relative = |link: &str| !is_url(link) && !link.starts_with('#');
            match definition(line) {
                Some((label, target)) if relative(target) && !defined.contains(label) => {
                    wrong.push(format!("{name}: [{label}] is not defined in src/guide.rs"));
                }
                Some(_) => {}
                None => {
                    let inline = links(line).into_iter().filter(|link| relative(link));
                    wrong.extend(inline.map(|link| format!("{name}: the inline link {link}")));
                }
            }
        }
    }
    assert!(included >= 6, "only {included} pages are included");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// A file of Rust source, with the parts of its path that can be parts of a test's name.
struct Source {
    parts: Vec<String>,
    text: String,
}

impl Source {
    fn read(path: &Path) -> Self {
        let stem = path.with_extension("");
        let parts = stem.components();
        let parts = parts.map(|part| part.as_os_str().to_string_lossy().into_owned());
        Self {
            parts: parts.map(|part| part.replace('-', "_")).collect(),
            text: read(&root().join(path)),
        }
    }

    /// True if `module` is a part of the path, a module in the file, or the package of the file.
    fn is_in(&self, module: &str) -> bool {
        self.parts.iter().any(|part| part == module)
            || self.text.contains(&format!("mod {module} "))
            || (module == "lib" && self.parts[0] == "src")
            || (module == "moat_ci" && self.parts.starts_with(&["examples".into(), "ci".into()]))
    }

    /// True if the file has the test `name`, as a function or by a string. `name*` is a prefix.
    fn has(&self, name: &str) -> bool {
        let (name, is_prefix) = match name.strip_suffix('*') {
            Some(prefix) => (prefix, true),
            None => (name, false),
        };
        ["fn ", "\""].into_iter().any(|before| {
            let start = format!("{before}{name}");
            self.text.match_indices(&start).any(|(at, _)| {
                let next = self.text[at + start.len()..].chars().next();
                is_prefix || next.is_none_or(|c| !c.is_alphanumeric() && c != '_')
            })
        })
    }
}

#[test]
fn guarantees_name_existing_tests() {
    let dirs = ["src", "tests", "examples", "crates"];
    let sources: Vec<_> = dirs.iter().flat_map(|dir| files(dir, "rs")).collect();
    let sources: Vec<_> = sources.iter().map(|path| Source::read(path)).collect();
    let page = read(&root().join("docs/guarantees.md"));
    let (mut missing, mut named) = (Vec::new(), 0);
    for row in page.lines().filter(|line| line.starts_with('|')) {
        let cells: Vec<_> = row.trim_matches('|').split('|').collect();
        let Some(tests) = cells.last() else { continue };
        for test in code_spans(tests).filter(|test| test.contains("::")) {
            named += 1;
            let (path, name) = test.rsplit_once("::").unwrap();
            let is_there = sources.iter().any(|source| {
                path.split("::").all(|module| source.is_in(module)) && source.has(name)
            });
            if !is_there {
                missing.push(test);
            }
        }
    }
    assert!(named > 100, "only {named} tests are named");
    assert!(missing.is_empty(), "no such tests:\n{}", missing.join("\n"));
}

/// The recipes that `just` lists, by their names in the `justfile`.
fn recipes() -> HashSet<String> {
    let justfile = read(&root().join("justfile"));
    let heads = justfile
        .lines()
        .filter(|line| !line.starts_with([' ', '#']));
    let heads = heads.filter(|line| !line.contains(":="));
    let names = heads.filter_map(|line| line.split_once(':'));
    names
        .filter_map(|(head, _)| Some(head.split_whitespace().next()?.to_owned()))
        .collect()
}

/// The names that follow `before` at the start of a command or of a code span.
fn arguments<'a>(page: &'a str, before: &str) -> Vec<&'a str> {
    let starts_a_command = |at: usize| {
        let preceding = page[..at].chars().next_back();
        preceding.is_none_or(|c| "\n`".contains(c))
    };
    page.match_indices(before)
        .filter(|(at, _)| starts_a_command(*at))
        .filter_map(|(at, _)| {
            let rest = &page[at + before.len()..];
            let end = rest.find(|c: char| !c.is_alphanumeric() && !"-_".contains(c));
            let name = &rest[..end.unwrap_or(rest.len())];
            (!name.is_empty()).then_some(name)
        })
        .collect()
}

#[test]
fn commands_name_existing_recipes_and_benches() {
    let recipes = recipes();
    assert!(recipes.contains("check") && recipes.contains("target"));
    let manifest = read(&root().join("Cargo.toml"));
    let (mut missing, mut named) = (Vec::new(), 0);
    for page in pages() {
        let text = read(&root().join(&page));
        for recipe in arguments(&text, "just ") {
            named += 1;
            if !recipes.contains(recipe) {
                missing.push(format!("{}: just {recipe}", page.display()));
            }
        }
        // Without a package, cargo looks for the bench in the package of the root.
        for bench in arguments(&text, "cargo bench --all-features --bench ") {
            named += 1;
            if !manifest.contains(&format!("[[bench]]\nname = \"{bench}\"")) {
                missing.push(format!("{}: --bench {bench}", page.display()));
            }
        }
    }
    assert!(named > 10, "only {named} commands were found");
    assert!(missing.is_empty(), "missing:\n{}", missing.join("\n"));
}

#[test]
fn pages_are_short() {
    let words = |text: &str| text.split_whitespace().count();
    let readme = read(&root().join("README.md"));
    assert!(words(&readme) <= README_WORDS, "{} words", words(&readme));
    assert!(readme.lines().count() <= README_LINES);
    for page in files("docs/design", "md") {
        let words = words(&read(&root().join(&page)));
        assert!(words <= DESIGN_WORDS, "{}: {words} words", page.display());
    }
}
