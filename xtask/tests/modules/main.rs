//! The modules of every crate, and the crates, depend on each other in one direction.

mod arrows;
mod circles;
mod fixtures;
mod source;
mod workspace;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use source::Source;
use workspace::Workspace;

#[test]
fn no_modules_of_a_crate_need_each_other() {
    let workspace = Workspace::load();
    let mut report = String::new();
    for package in &workspace.packages {
        for root in package.roots() {
            let source = Source::read(workspace.relative(root), &|file| {
                std::fs::read_to_string(workspace.workspace_root.join(file)).ok()
            });
            for circle in circles::find(&source) {
                writeln!(report, "{}: {circle}", package.name).expect("a string grows");
            }
        }
    }
    assert!(
        report.is_empty(),
        "modules need each other in circles. Move what both sides need into a module of its own.\n{report}"
    );
}

/// A file that the reader of modules does not find would be checked by nothing.
#[test]
fn every_source_file_is_a_module() {
    let workspace = Workspace::load();
    let mut found = 0;
    for package in &workspace.packages {
        let mut read = BTreeSet::new();
        for root in package.roots() {
            let source = Source::read(root, &|file| std::fs::read_to_string(file).ok());
            read.extend(source.modules.into_iter().map(|module| module.file));
        }
        found += read.len();
        let folder = package.manifest_path.with_file_name("src");
        for file in files(&folder) {
            // What `include!` reads is no module.
            let is_included = file.iter().any(|folder| folder == "generated");
            let (name, path) = (&package.name, file.display());
            assert!(
                is_included || read.contains(&file),
                "no module of {name} is {path}"
            );
        }
    }
    assert!(found > 300, "{found} source files");
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(files(&path));
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            found.push(path);
        }
    }
    found
}

#[test]
fn crates_use_what_the_architecture_allows() {
    let workspace = Workspace::load();
    let page = std::fs::read_to_string(workspace.workspace_root.join("ARCHITECTURE.md"))
        .expect("ARCHITECTURE.md exists");
    let table = arrows::Table::parse(&page);
    let problems = table.problems(&workspace.packages);
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}
