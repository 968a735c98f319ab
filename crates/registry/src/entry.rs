//! What a service's key means: its values in the registry of Windows, and in a file of that
//! registry's editor.

use std::collections::BTreeMap;

use hvsock_address::{ElementName, InvalidName, ServiceId};

use crate::{Registration, text};

/// The friendly name: the one value that Windows knows.
pub(crate) const ELEMENT_NAME: &str = "ElementName";
pub(crate) const OWNER: &str = "Owner";
pub(crate) const CREATOR: &str = "Creator";
/// podman's word for it, too.
pub(crate) const PURPOSE: &str = "Purpose";
/// podman's word for the creator.
pub(crate) const TOOL_NAME: &str = "ToolName";
/// podman's word for the machine that a service is for, in its older versions.
const MACHINE_NAME: &str = "MachineName";

/// The texts of one key, by the names of their values.
#[derive(Debug, Default)]
pub(crate) struct Texts(BTreeMap<&'static str, String>);

/// What was odd about a key's name.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Odd {
    /// There is none, as podman leaves it.
    Nameless(String),
    /// There is one, which cannot be used.
    Unusable(String),
}

/// The value that is known by this name, whatever its case.
pub(crate) fn known(name: &str) -> Option<&'static str> {
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

impl Texts {
    /// Takes a value in, in place of an earlier one; an empty text counts as none. If it is not
    /// fit, says why, and leaves the earlier one.
    pub fn set(
        &mut self,
        known: &'static str,
        text: Result<String, &'static str>,
    ) -> Result<(), String> {
        let text = text.map_err(str::to_owned).and_then(|text| {
            // A name is checked, and if need be mended, when all values are known.
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

    /// The name that the key gives, if it gives one; the error says why it cannot be used.
    pub fn name(&self) -> Option<Result<ElementName, InvalidName>> {
        let text = self.0.get(ELEMENT_NAME)?;
        Some(ElementName::new(text.as_str()))
    }

    /// What is registered, under the name that the key gives, or else one that is made of what
    /// is known of the service and that `free` takes.
    pub fn registration(
        mut self,
        id: ServiceId,
        free: impl FnMut(&ElementName) -> bool,
    ) -> (Registration, Option<Odd>) {
        let (name, odd) = match self.name() {
            Some(Ok(name)) => (name, None),
            Some(Err(why)) => {
                let text = self.0.remove(ELEMENT_NAME).unwrap_or_default();
                let printable = text.replace(char::is_control, " ");
                let name = match ElementName::new(printable.trim()) {
                    Ok(mended) => mended,
                    Err(_) => self.make_up_name(id, free),
                };
                let what = format!(
                    "the name \"{}\" cannot be used ({why}): named \"{name}\" here",
                    text::shown(&text)
                );
                (name, Some(Odd::Unusable(what)))
            }
            None => {
                let name = self.make_up_name(id, free);
                let what = format!("the key has no {ELEMENT_NAME}: named \"{name}\" here");
                (name, Some(Odd::Nameless(what)))
            }
        };
        (self.registration_named(id, name), odd)
    }

    /// What is registered, under a given name.
    pub fn registration_named(mut self, id: ServiceId, name: ElementName) -> Registration {
        let tool = self.0.remove(TOOL_NAME);
        Registration {
            owner: self.0.remove(OWNER),
            creator: self.0.remove(CREATOR).or(tool),
            purpose: self.0.remove(PURPOSE),
            ..Registration::new(id, name)
        }
    }

    /// A name from what is known of the service, and one that is free.
    fn make_up_name(
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

/// A name that no other service gets.
pub(crate) fn unnamed(id: ServiceId) -> ElementName {
    ElementName::new(format!("Unnamed {id}")).expect("a word and a GUID are a name")
}
