//! The table of crates in ARCHITECTURE.md, and the dependencies that it allows.
//!
//! A row is `` | `crates/NAME` | package | may use | ``. The last column is read by its words: names of crates,
//! "all below", "except" before names, and "what it uses" or "what they use" for what the named crates may use.

use std::collections::BTreeSet;

use crate::workspace::Package;

/// The rows, in the order of the page.
pub struct Table {
    rows: Vec<Row>,
}

struct Row {
    /// The folder's name below `crates`.
    name: String,
    words: Vec<String>,
}

/// A crate for tests, which is in no program and not in the table.
const FOR_TESTS: &str = "testkit";

impl Table {
    /// Reads the first table whose rows begin with a folder below `crates`.
    pub fn parse(page: &str) -> Self {
        let rows = page
            .lines()
            .filter_map(|line| line.strip_prefix("| `crates/"))
            .filter_map(|line| {
                let (name, rest) = line.split_once('`')?;
                let uses = rest.trim_end().trim_end_matches('|').rsplit('|').next()?;
                let words = uses
                    .split(|c: char| !c.is_alphanumeric() && c != '\'')
                    .map(|word| word.trim_end_matches("'s").to_owned());
                Some(Row {
                    name: name.to_owned(),
                    words: words.filter(|word| !word.is_empty()).collect(),
                })
            })
            .collect();
        Self { rows }
    }

    /// Every dependency that the table does not allow, as a sentence.
    pub fn problems(&self, packages: &[Package]) -> Vec<String> {
        let mut problems = Vec::new();
        for package in packages {
            let Some(name) = folder(&package.manifest_path) else {
                continue;
            };
            if name == FOR_TESTS {
                continue;
            }
            let Some(place) = self.place(&name) else {
                problems.push(format!(
                    "crates/{name} is not in the table of ARCHITECTURE.md"
                ));
                continue;
            };
            let allowed = self.allowed(place);
            for dependency in &package.dependencies {
                let is_for_tests = dependency.kind.as_deref() == Some("dev");
                let Some(used) = dependency.path.as_ref().filter(|_| !is_for_tests) else {
                    continue;
                };
                let Some(used) = folder(&used.join("Cargo.toml")) else {
                    continue;
                };
                if !allowed.contains(used.as_str()) {
                    problems.push(format!(
                        "crates/{name} depends on {used}, which ARCHITECTURE.md does not allow"
                    ));
                } else if self.place(&used).is_some_and(|used| used <= place) {
                    problems.push(format!(
                        "crates/{name} depends on {used}, which is above it in ARCHITECTURE.md"
                    ));
                }
            }
        }
        problems
    }

    fn place(&self, name: &str) -> Option<usize> {
        self.rows.iter().position(|row| row.name == name)
    }

    /// The crates that the row at `place` may use.
    fn allowed(&self, place: usize) -> BTreeSet<&str> {
        let words = &self.rows[place].words;
        let (plus, minus) = match words.iter().position(|word| word == "except") {
            Some(except) => words.split_at(except),
            None => (words.as_slice(), &[][..]),
        };
        let named = |words: &[String]| -> BTreeSet<usize> {
            words.iter().filter_map(|word| self.place(word)).collect()
        };
        let has = |phrase: &[&str]| plus.windows(phrase.len()).any(|words| words == phrase);
        let mut allowed: BTreeSet<&str> = BTreeSet::new();
        if has(&["all", "below"]) {
            allowed.extend(self.rows[place + 1..].iter().map(|row| row.name.as_str()));
        }
        let with_theirs = has(&["what", "it", "uses"]) || has(&["what", "they", "use"]);
        for used in named(plus) {
            allowed.insert(&self.rows[used].name);
            if with_theirs && used > place {
                allowed.extend(self.allowed(used));
            }
        }
        for used in named(minus) {
            allowed.remove(self.rows[used].name.as_str());
        }
        allowed
    }
}

/// The folder's name of a package below `crates`.
fn folder(manifest: &std::path::Path) -> Option<String> {
    let folder = manifest.parent()?;
    let is_crate = folder.parent()?.file_name()? == "crates";
    is_crate.then_some(folder.file_name()?.to_str()?.to_owned())
}

#[test]
fn the_words_of_a_row_name_the_crates_it_may_use() {
    let table = Table::parse(
        "| folder | package | may use |\n\
         |---|---|---|\n\
         | `crates/cli` | the command `hvsock` | hvsock; on Linux broker; and what they use |\n\
         | `crates/broker` | broker | all below except hvsock |\n\
         | `crates/hvsock` | hvsock | the registry's model, sys |\n\
         | `crates/registry` | registry | address |\n\
         | `crates/sys` | sys | no other crate of the project |\n\
         | `crates/address` | address | no other crate of the project |\n",
    );
    let allowed = |name| {
        let names = table.allowed(table.place(name).expect("it has a row"));
        names.into_iter().collect::<Vec<_>>()
    };
    assert_eq!(
        allowed("cli"),
        ["address", "broker", "hvsock", "registry", "sys"]
    );
    assert_eq!(allowed("broker"), ["address", "registry", "sys"]);
    assert_eq!(allowed("hvsock"), ["registry", "sys"]);
    assert_eq!(allowed("address"), [""; 0]);
}

#[test]
fn a_dependency_out_of_the_table_or_up_is_a_problem() {
    let package = |name: &str, used: &[(&str, Option<&str>)]| Package {
        name: format!("hvsock-{name}"),
        manifest_path: format!("/w/crates/{name}/Cargo.toml").into(),
        targets: Vec::new(),
        dependencies: used
            .iter()
            .map(|(name, kind)| crate::workspace::Dependency {
                kind: kind.map(str::to_owned),
                path: Some(format!("/w/crates/{name}").into()),
            })
            .collect(),
    };
    let table = Table::parse(
        "| `crates/ring` | ring | sys |\n\
         | `crates/sys` | sys | ring |\n\
         | `crates/virtio` | virtio | no other crate |\n",
    );
    let problems = table.problems(&[
        package("ring", &[("sys", None), ("virtio", Some("dev"))]),
        package("sys", &[("ring", None)]),
        package("virtio", &[("sys", Some("build"))]),
        package("new", &[]),
        package("testkit", &[("ring", None)]),
    ]);
    assert_eq!(
        problems,
        [
            "crates/sys depends on ring, which is above it in ARCHITECTURE.md",
            "crates/virtio depends on sys, which ARCHITECTURE.md does not allow",
            "crates/new is not in the table of ARCHITECTURE.md",
        ]
    );
}
