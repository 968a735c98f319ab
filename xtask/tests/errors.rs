//! An error displays its cause, or returns it as its source, but not both: who prints an error with its
//! sources would print the cause twice.

use std::path::{Path, PathBuf};

use syn::visit::{self, Visit};
use syn::{Attribute, Fields, Item, Meta};

#[test]
fn an_error_does_not_display_its_source() {
    let crates = Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("crates");
    let (mut found, mut read) = (Vec::new(), 0);
    for file in files(&crates) {
        let text = std::fs::read_to_string(&file).expect("UTF-8");
        let parsed = syn::parse_file(&text).unwrap_or_else(|error| panic!("{file:?}: {error}"));
        let mut errors = Errors::default();
        errors.visit_file(&parsed);
        read += errors.count;
        let shown = file.strip_prefix(&crates).expect("a file below");
        let problems = errors.problems.into_iter();
        found.extend(problems.map(|problem| format!("crates/{}: {problem}", shown.display())));
    }
    assert!(read > 150, "{read} errors");
    assert!(
        found.is_empty(),
        "Leave out `#[source]` and `#[from]`, and call no field `source`, where the text has the cause.\n{}",
        found.join("\n")
    );
}

#[test]
fn a_displayed_source_is_found_in_every_form() {
    let problems = |text: &str| {
        let mut errors = Errors::default();
        errors.visit_file(&syn::parse_file(text).expect("Rust"));
        (errors.count, errors.problems.len())
    };
    for bad in [
        r#"#[error("cannot read: {0}")] struct Read(#[source] io::Error);"#,
        r#"#[error("cannot read: {error:?}")] struct Read { #[from] error: io::Error }"#,
        r#"enum Read { #[error("{path}: {source}")] Io { path: String, source: io::Error } }"#,
        r#"enum Read { #[error("{}", text(.0))] Io(#[from] Status) }"#,
        r#"enum Read { #[error("{}", text(error))] Io { #[source] error: Status } }"#,
    ] {
        assert_eq!(problems(bad), (1, 1), "{bad}");
    }
    for good in [
        r#"#[error("cannot read")] struct Read(#[source] io::Error);"#,
        r#"#[error(transparent)] struct Read(#[from] io::Error);"#,
        r#"enum Read { #[error("{path}: {error}")] Io { path: String, error: io::Error } }"#,
        r#"enum Read { #[error("{0} of {1}")] Io(String, u8, #[source] io::Error) }"#,
    ] {
        assert_eq!(problems(good), (1, 0), "{good}");
    }
}

/// The types and variants that have an attribute `error`, and those that display their source.
#[derive(Default)]
struct Errors {
    count: usize,
    problems: Vec<String>,
}

impl<'ast> Visit<'ast> for Errors {
    fn visit_item(&mut self, item: &'ast Item) {
        match item {
            Item::Struct(one) => self.check(&one.ident.to_string(), &one.attrs, &one.fields),
            Item::Enum(one) => {
                for variant in &one.variants {
                    let name = format!("{}::{}", one.ident, variant.ident);
                    self.check(&name, &variant.attrs, &variant.fields);
                }
            }
            _ => {}
        }
        visit::visit_item(self, item);
    }
}

impl Errors {
    fn check(&mut self, name: &str, attributes: &[Attribute], fields: &Fields) {
        let text = attributes
            .iter()
            .find_map(|attribute| match &attribute.meta {
                Meta::List(list) if list.path.is_ident("error") => Some(list.tokens.to_string()),
                _ => None,
            });
        let Some(text) = text else { return };
        self.count += 1;
        for (index, field) in fields.iter().enumerate() {
            let is_marked = field
                .attrs
                .iter()
                .any(|a| a.path().is_ident("source") || a.path().is_ident("from"));
            let ident = field.ident.as_ref().map(ToString::to_string);
            let is_source = is_marked || ident.as_deref() == Some("source");
            let label = ident.unwrap_or_else(|| index.to_string());
            if is_source && text != "transparent" && displays(&text, &label) {
                self.problems
                    .push(format!("{name} displays its source `{label}`"));
            }
        }
    }
}

/// Whether the tokens of an attribute `error` use a field.
fn displays(tokens: &str, field: &str) -> bool {
    let is_name = |c: char| c.is_alphanumeric() || c == '_';
    let in_text = ["}", ":"]
        .iter()
        .any(|end| tokens.contains(&format!("{{{field}{end}")));
    // The arguments follow the literal. A field of a tuple is `.0`, one with a name is the name.
    let arguments = tokens
        .rsplit_once('"')
        .map_or("", |(_, arguments)| arguments);
    in_text || arguments.split(|c| !is_name(c)).any(|word| word == field)
}

/// The Rust files in the folders `src` of all crates.
fn files(crates: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders: Vec<PathBuf> = std::fs::read_dir(crates)
        .expect("the crates")
        .map(|entry| entry.expect("a crate").path().join("src"))
        .collect();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    found
}
