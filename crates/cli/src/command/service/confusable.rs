//! Warns of friendly names that look like another one (Unicode Technical Standard 39).

use std::collections::{BTreeSet, HashMap};

use hvsock_address::ElementName;
use unicode_security::MixedScript as _;
use unicode_security::confusable_detection::skeleton;

use crate::context::Context;

/// The most notes about one command. An import may have very many names.
const MAX_NOTES: usize = 20;

/// Prints a note for each of `added` that looks like another registered name, or that mixes scripts.
///
/// The registration has succeeded. A failure to list the other names is no failure.
pub fn warn<'a>(context: &Context, added: impl IntoIterator<Item = &'a ElementName>) {
    if context.quiet {
        return;
    }
    let Ok(client) = context.client() else { return };
    let services = client.services(true).unwrap_or_default().into_iter();
    let known = Known::new(services.map(|service| service.name));
    let notes = added.into_iter().flat_map(|name| known.notes(name));
    for note in notes.take(MAX_NOTES) {
        context.note(&format!("note: {note}"));
    }
}

/// The registered names by what they look like.
struct Known(HashMap<String, Vec<ElementName>>);

impl Known {
    fn new(names: impl Iterator<Item = ElementName>) -> Self {
        let mut known: HashMap<_, Vec<_>> = HashMap::new();
        for name in names {
            for skeleton in skeletons(&name) {
                known.entry(skeleton).or_default().push(name.clone());
            }
        }
        Self(known)
    }

    fn notes(&self, name: &ElementName) -> Vec<String> {
        let mut similar: Vec<&ElementName> = skeletons(name)
            .iter()
            .filter_map(|skeleton| self.0.get(skeleton))
            .flatten()
            .filter(|other| other.folded() != name.folded())
            .collect();
        similar.sort();
        similar.dedup();
        let mut notes: Vec<String> = similar
            .into_iter()
            .map(|other| {
                let code = code(name, other);
                format!("`{name}` looks like `{other}`, which is another service{code}")
            })
            .collect();
        // A word of each of two languages is no trick; two scripts in one word are.
        let mut words = name.as_str().split(|c: char| !c.is_alphanumeric());
        if words.any(|word| !word.is_single_script()) {
            notes.push(format!(
                "`{name}` has letters of several scripts in one word, some of which look alike"
            ));
        }
        notes
    }
}

/// What a name looks like, as it is written and as it is looked up. The number of spaces in a row is
/// hard to see.
fn skeletons(name: &ElementName) -> BTreeSet<String> {
    let seen = |text: &String| {
        let skeleton: String = skeleton(text).collect();
        skeleton.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    [name.to_string(), name.folded()].iter().map(seen).collect()
}

/// The first difference, as code points: the texts look alike.
fn code(name: &ElementName, other: &ElementName) -> String {
    let mut pairs = name.as_str().chars().zip(other.as_str().chars());
    match pairs.find(|(one, other)| one != other) {
        Some((one, other)) => format!(" (U+{:04X} and U+{:04X})", u32::from(one), u32::from(other)),
        None => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> ElementName {
        ElementName::new(text).unwrap()
    }

    #[test]
    fn a_name_that_looks_like_another_one_is_noted() {
        let known = ["HV Socket Demo", "Präsenz", "login"].map(name);
        let known = Known::new(known.into_iter());
        for (added, other) in [
            ("HV Sock\u{435}t Demo", "HV Socket Demo"),
            ("hv sock\u{435}t dem\u{3bf}", "HV Socket Demo"),
            ("Pra\u{308}senz", "Präsenz"),
            ("1ogin", "login"),
            ("HV  Socket Demo", "HV Socket Demo"),
            ("hv socket   demo", "HV Socket Demo"),
        ] {
            let notes = known.notes(&name(added));
            let first = format!("`{added}` looks like `{other}`, which is another service (U+");
            assert!(notes[0].starts_with(&first), "{added}: {notes:?}");
        }
        for added in [
            "HV Socket Demo",
            "hv socket demo",
            "logout",
            "Presenz",
            "данные",
        ] {
            assert_eq!(known.notes(&name(added)), [""; 0], "{added}");
        }
    }

    #[test]
    fn letters_of_several_scripts_are_noted() {
        let notes = |text| Known::new(std::iter::empty()).notes(&name(text));
        assert_eq!(notes("p\u{430}yroll").len(), 1);
        // Japanese is written in three scripts.
        assert_eq!(notes("東京タワーの"), [""; 0]);
        assert_eq!(notes("web 中文"), [""; 0]);
    }
}
