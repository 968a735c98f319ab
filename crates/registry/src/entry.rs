//! The values of a service's key, in the Windows registry and in a `.reg` file.

use std::collections::BTreeMap;

use hvsock_address::{ElementName, InvalidName, ServiceId};

use crate::{Registration, text};

/// The friendly name. Windows itself reads no other value.
pub(crate) const ELEMENT_NAME: &str = "ElementName";
pub(crate) const OWNER: &str = "Owner";
pub(crate) const CREATOR: &str = "Creator";
/// podman writes this value too.
pub(crate) const PURPOSE: &str = "Purpose";
/// podman's name for the creator.
pub(crate) const TOOL_NAME: &str = "ToolName";
/// The machine that a service is for; older versions of podman write it.
const MACHINE_NAME: &str = "MachineName";

/// The string values of one key, by value name.
#[derive(Debug, Default)]
pub(crate) struct TextValues(BTreeMap<&'static str, String>);

/// What is wrong with the friendly name of a key, as a message.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum NameProblem {
    /// The key has no name. podman writes none.
    Missing(String),
    /// The name is not a valid [`ElementName`].
    Invalid(String),
}

/// The canonical spelling of a known value name, ignoring case.
pub(crate) fn known_value(name: &str) -> Option<&'static str> {
    let known = [
        ELEMENT_NAME,
        OWNER,
        CREATOR,
        PURPOSE,
        TOOL_NAME,
        MACHINE_NAME,
    ];
    known.into_iter().find(|k| k.eq_ignore_ascii_case(name))
}

impl TextValues {
    /// Sets a value. An empty text removes it. An invalid text is an error, a sentence about the
    /// value, and leaves the earlier text in place.
    pub fn set(
        &mut self,
        known: &'static str,
        text: Result<String, &'static str>,
    ) -> Result<(), String> {
        let text = text.map_err(str::to_owned).and_then(|text| {
            // The name is validated and repaired later, when all values are known.
            match known == ELEMENT_NAME || text.is_empty() {
                true => Ok(text),
                false => text::check(&text).map(|()| text),
            }
        });
        match text {
            Ok(text) if text.is_empty() => drop(self.0.remove(known)),
            Ok(text) => drop(self.0.insert(known, text)),
            Err(why) => return Err(format!("{known} {why}")),
        }
        Ok(())
    }

    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// The friendly name of the key, if present; the error says why it is invalid.
    pub fn name(&self) -> Option<Result<ElementName, InvalidName>> {
        let text = self.0.get(ELEMENT_NAME)?;
        Some(ElementName::new(text.as_str()))
    }

    /// The registration with the key's friendly name. If that is missing or invalid, the name is
    /// generated from the other values such that `free` accepts it.
    pub fn registration(
        mut self,
        id: ServiceId,
        free: impl FnMut(&ElementName) -> bool,
    ) -> (Registration, Option<NameProblem>) {
        let (name, problem) = match self.name() {
            Some(Ok(name)) => (name, None),
            Some(Err(why)) => {
                let text = self.0.remove(ELEMENT_NAME).unwrap_or_default();
                let repaired = text.replace(|c| !hvsock_text::is_printable(c), " ");
                let name = match ElementName::new(repaired.trim()) {
                    Ok(repaired) => repaired,
                    Err(_) => self.generate_name(id, free),
                };
                let what = format!(
                    "the name \"{}\" is invalid ({why}): named \"{name}\" here",
                    text::escaped(&text)
                );
                (name, Some(NameProblem::Invalid(what)))
            }
            None => {
                let name = self.generate_name(id, free);
                let what = format!("the key has no {ELEMENT_NAME}: named \"{name}\" here");
                (name, Some(NameProblem::Missing(what)))
            }
        };
        (self.registration_named(id, name), problem)
    }

    /// The registration, with a given friendly name.
    pub fn registration_named(mut self, id: ServiceId, name: ElementName) -> Registration {
        let tool = self.0.remove(TOOL_NAME);
        Registration {
            owner: self.0.remove(OWNER),
            creator: self.0.remove(CREATOR).or(tool),
            purpose: self.0.remove(PURPOSE),
            ..Registration::new(id, name)
        }
    }

    /// Generates a name that `free` accepts from the other values of the key.
    fn generate_name(
        &self,
        id: ServiceId,
        mut free: impl FnMut(&ElementName) -> bool,
    ) -> ElementName {
        let value = |key| self.0.get(key).map(String::as_str);
        let known: Vec<&str> = [
            value(CREATOR).or(value(TOOL_NAME)),
            value(PURPOSE),
            value(MACHINE_NAME),
        ]
        .into_iter()
        .flatten()
        .collect();
        let known = known.join(" ");
        [known.clone(), format!("{known} {id}")]
            .into_iter()
            .filter_map(|text| ElementName::new(text.trim()).ok())
            .find(|name| free(name))
            .unwrap_or_else(|| unnamed(id))
    }
}

/// A generated name that contains the GUID, so that it is unique.
pub(crate) fn unnamed(id: ServiceId) -> ElementName {
    ElementName::new(format!("Unnamed {id}")).expect("a word and a GUID are a name")
}
