//! Every promise of SECURITY.md names the tests that hold it, and every named test exists.
//!
//! A promise is a paragraph that begins with a sentence in bold type, in one of [`PARTS`]. Its tests are the
//! texts in backquotes that look like one ([`is_name_of_test`]).

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// The parts of the page whose paragraphs are promises.
const PARTS: [&str; 2] = ["What the broker guarantees", "Integration services"];

fn root() -> &'static Path {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().expect("the project")
}

/// The paragraphs under a heading, without line breaks.
fn paragraphs(page: &str, heading: &str) -> Vec<String> {
    let begin = page.find(&format!("\n## {heading}\n")).expect(heading);
    let rest = &page[begin + 4..];
    let part = rest.split("\n## ").next().unwrap_or(rest);
    let paragraphs = part.split("\n\n").skip(1);
    paragraphs
        .map(|text| text.split_whitespace().collect::<Vec<_>>().join(" "))
        .collect()
}

/// The promise and the tests of a paragraph that makes one.
fn promise(paragraph: &str) -> Option<(&str, Vec<&str>)> {
    let (promise, rest) = paragraph.strip_prefix("**")?.split_once("**")?;
    let quoted = rest.split('`').skip(1).step_by(2);
    Some((
        promise,
        quoted.filter(|text| is_name_of_test(text)).collect(),
    ))
}

/// Whether a text is a sentence in snake case. Metrics and settings have fewer words.
fn is_name_of_test(text: &str) -> bool {
    let is_part = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    text.chars().all(is_part) && text.matches('_').count() >= 3
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|kind| kind == "rs") {
            found.push(path);
        }
    }
}

/// The names of all tests of the project: functions with an attribute `test` directly above, and the cases
/// of the conformance suite, which are in a table by name.
fn tests() -> BTreeSet<String> {
    let mut files = Vec::new();
    for folder in ["crates", "xtask", "examples"] {
        sources(&root().join(folder), &mut files);
    }
    let mut tests = BTreeSet::new();
    for file in files {
        let text = fs::read_to_string(&file).expect("a source file");
        let mut is_test = false;
        for line in text.lines().map(str::trim) {
            if line.starts_with("#[test]") || line.starts_with("#[tokio::test") {
                is_test = true;
            } else if is_test && let Some(name) = name_of_function(line) {
                tests.insert(name.to_owned());
                is_test = false;
            } else if is_test && !line.starts_with("#[") && !line.starts_with("//") {
                is_test = false;
            }
        }
        if file.ends_with("testkit/src/conformance/mod.rs") {
            let names = text.split('"').skip(1).step_by(2);
            tests.extend(names.map(str::to_owned));
        }
    }
    tests
}

fn name_of_function(line: &str) -> Option<&str> {
    let line = line.strip_prefix("async ").unwrap_or(line);
    line.strip_prefix("fn ")?.split('(').next()
}

#[test]
fn every_promise_names_tests_that_exist() {
    let page = fs::read_to_string(root().join("SECURITY.md")).expect("the page");
    let page = page.replace("\r\n", "\n");
    let tests = tests();
    let (mut promises, mut wrong) = (0, Vec::new());
    for heading in PARTS {
        for paragraph in paragraphs(&page, heading) {
            let Some((promise, named)) = promise(&paragraph) else {
                continue;
            };
            promises += 1;
            if named.is_empty() {
                wrong.push(format!("no test holds: {promise}"));
            }
            let missing = named.iter().filter(|name| !tests.contains(**name));
            wrong.extend(missing.map(|name| format!("there is no test {name}, of: {promise}")));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(promises > 12, "{promises} promises");
}

#[test]
fn a_promise_is_a_paragraph_in_bold_type_with_the_names_of_its_tests() {
    let page = "\n## One\n\n**Nothing is lost.** Bytes\narrive (`a_b_c_d`,\n`all_of_it_arrives`), see \
                `hvsock_problems`.\n\nText.\n\n**Bare.** X\n\n## Two\n";
    let paragraphs = paragraphs(page, "One");
    let promises: Vec<_> = paragraphs.iter().filter_map(|text| promise(text)).collect();
    let expected = [
        ("Nothing is lost.", vec!["a_b_c_d", "all_of_it_arrives"]),
        ("Bare.", Vec::new()),
    ];
    assert_eq!(promises, expected);
}

#[test]
fn only_the_crates_at_a_boundary_allow_unsafe_code_and_all_but_sys_in_one_module() {
    let crates = root().join("crates");
    let mut allowing = Vec::new();
    for folder in fs::read_dir(&crates).expect("the folder of crates") {
        let folder = folder.expect("a crate").path();
        let source = |file| fs::read_to_string(folder.join("src").join(file));
        let Ok(text) = source("lib.rs").or_else(|_| source("main.rs")) else {
            continue;
        };
        if !text.contains("#![forbid(unsafe_code)]") {
            let name = folder.file_name().unwrap_or_default();
            allowing.push(name.to_string_lossy().into_owned());
        }
    }
    allowing.sort();
    assert_eq!(allowing, ["capi", "preload", "ring", "sys"]);
    let has_unsafe = |file: &&PathBuf| {
        let text = fs::read_to_string(file).expect("a source file");
        text.lines().any(|line| {
            let line = line.trim_start();
            !line.starts_with("//") && line.contains("unsafe {")
        })
    };
    for (package, module) in [
        ("crates/capi", "abi"),
        ("crates/preload", "abi"),
        ("crates/ring", "copy.rs"),
        ("python/accelerator", "buffer.rs"),
    ] {
        let folder = root().join(package).join("src");
        let mut files = Vec::new();
        sources(&folder, &mut files);
        let with: Vec<_> = files.iter().filter(has_unsafe).collect();
        let elsewhere: Vec<_> = with
            .iter()
            .filter(|file| !file.starts_with(folder.join(module)))
            .collect();
        assert!(!with.is_empty() && elsewhere.is_empty(), "{elsewhere:?}");
    }
}
