//! Reads `.reg` files.

use std::collections::{HashMap, HashSet};

use hvsock_address::{ElementName, ServiceId};

use super::decode::{self, Encoding};
use super::syntax::{Data, Item, Kind, Lines};
use super::{DISABLED_KEY, Entry, Import, ImportError, ImportNote, KEY, MAX_NOTES};
use crate::Registration;
use crate::entry::{self, ELEMENT_NAME, NameProblem, TextValues};
use crate::text::escaped;

/// Reads a file with the semantics of the registry editor: keys and values in order, where later ones
/// replace earlier ones.
///
/// A key without a friendly name (podman writes none) gets a generated one. The entries are in the
/// order of their keys. They are not checked for clashes; [`Registry::insert`](crate::Registry::insert)
/// does that.
///
/// # Errors
/// [`ImportError`] with the line of the first syntax error, or if the file is too large.
pub fn import(bytes: &[u8]) -> Result<Import, ImportError> {
    let (text, encoding) = decode::decode(bytes)?;
    let mut lines = Lines::new(&text)?;
    let mut reader = Reader {
        version_4: lines.version_4,
        ..Reader::default()
    };
    if encoding == Encoding::Windows1252 {
        reader.note(1, "neither UTF-16 nor UTF-8: read as Windows-1252");
    }
    while let Some(item) = lines.next()? {
        reader.item(item)?;
    }
    Ok(reader.finish())
}

/// The state of the import.
#[derive(Default)]
struct Reader {
    version_4: bool,
    /// The key that the next values belong to.
    current: CurrentKey,
    services: Vec<Service>,
    index: HashMap<ServiceId, usize>,
    import: Import,
}

#[derive(Default)]
enum CurrentKey {
    /// Before the first key.
    #[default]
    Start,
    /// In a key that is not a service's. A note was added.
    Other,
    /// In a service's key; the index in [`Reader::services`].
    Service(usize),
}

/// A service in the file.
struct Service {
    id: ServiceId,
    /// The last line with its key.
    line: usize,
    /// Whether the file deletes the key. It may create the key again.
    deleted: bool,
    /// Whether the key exists at the end of the file.
    present: bool,
    /// Whether it is under [`KEY`] and not under [`DISABLED_KEY`].
    enabled: bool,
    /// The last line with its friendly name.
    name_line: usize,
    texts: TextValues,
}

impl Reader {
    fn item(&mut self, item: Item) -> Result<(), ImportError> {
        let Item { line, kind } = item;
        match kind {
            Kind::Key(path) => {
                self.current = match self.service(line, &path, false) {
                    Some(number) => CurrentKey::Service(number),
                    None => CurrentKey::Other,
                };
            }
            Kind::DeletedKey(path) => {
                self.service(line, &path, true);
                self.current = CurrentKey::Other;
            }
            Kind::Value(name, data) => match self.current {
                CurrentKey::Start => {
                    let what = "a value comes before the first `[key]`";
                    return Err(ImportError::new(line, what));
                }
                CurrentKey::Other => {}
                CurrentKey::Service(number) => self.value(line, number, &name, data),
            },
        }
        Ok(())
    }

    /// The index of the service whose key this is. If it is no service's key, adds a note and returns
    /// `None`.
    fn service(&mut self, line: usize, path: &str, deleted: bool) -> Option<usize> {
        let enabled = subkey_of(KEY, path).map(|rest| (true, rest));
        let disabled = || subkey_of(DISABLED_KEY, path).map(|rest| (false, rest));
        let Some((enabled, rest)) = enabled.or_else(disabled) else {
            self.note(
                line,
                format!("[{}] is another key: left out", escaped(path)),
            );
            return None;
        };
        let rest = rest.trim_matches('\\');
        if rest.is_empty() {
            if deleted {
                let what = "cannot delete all services at once: left out; list them one by one";
                self.note(line, what);
            }
            return None;
        }
        let Some(id) = rest.parse().ok().filter(|id| *id != ServiceId::ZERO) else {
            let what = format!("`{}` is not a service's GUID: left out", escaped(rest));
            self.note(line, what);
            return None;
        };
        if let Some(shipped) = Registration::in_box().iter().find(|r| r.id == id) {
            let what = format!("\"{}\" is a service of Windows: left out", shipped.name);
            self.note(line, what);
            return None;
        }
        let next = self.services.len();
        let number = *self.index.entry(id).or_insert(next);
        if number == next {
            self.services.push(Service {
                id,
                line,
                deleted: false,
                present: false,
                enabled,
                name_line: line,
                texts: TextValues::default(),
            });
        }
        let service = &mut self.services[number];
        if !enabled && (deleted || service.present && service.enabled) {
            // The key that Windows reads wins.
            let what = match deleted {
                true => "deleting the key of a disabled service has no effect here: left out",
                false => "is enabled by its other key: this one is left out",
            };
            self.note(line, format!("{id}: {what}"));
            return None;
        }
        service.line = line;
        if deleted || service.enabled != enabled {
            service.texts.clear();
        }
        service.present = !deleted;
        service.enabled = enabled;
        service.deleted |= deleted;
        Some(number)
    }

    fn value(&mut self, line: usize, number: usize, name: &str, data: Data) {
        let Some(known) = entry::known_value(name) else {
            let what = format!("unknown value \"{}\": left out", escaped(name));
            self.note(line, what);
            return;
        };
        let text = match data {
            Data::Text(text) => Ok(text),
            // REG_SZ and REG_EXPAND_SZ.
            Data::Bytes(1 | 2, bytes) => decode::string_value(&bytes, self.version_4),
            Data::Deleted => Ok(String::new()),
            Data::Number(_) | Data::Bytes(..) => Err("is not a string"),
        };
        let service = &mut self.services[number];
        match service.texts.set(known, text) {
            Ok(()) if known == ELEMENT_NAME => service.name_line = line,
            Ok(()) => {}
            Err(why) => self.note(line, format!("{why}: left out")),
        }
    }

    fn finish(mut self) -> Import {
        let mut generated = HashSet::new();
        for service in std::mem::take(&mut self.services) {
            let Service { id, line, .. } = service;
            if service.deleted {
                self.import.entries.push(Entry::Unregister { line, id });
            }
            if service.present {
                let registration = Box::new(self.registration(service, &mut generated));
                let entry = Entry::Register { line, registration };
                self.import.entries.push(entry);
            }
        }
        self.import
    }

    fn registration(&mut self, service: Service, generated: &mut HashSet<String>) -> Registration {
        let Service {
            id,
            line,
            name_line,
            enabled,
            ..
        } = service;
        let free = |name: &ElementName| generated.insert(name.folded());
        let (registration, problem) = service.texts.registration(id, free);
        match problem {
            None => {}
            Some(NameProblem::Missing(what)) => self.note(line, what),
            Some(NameProblem::Invalid(what)) => self.note(name_line, what),
        }
        Registration {
            enabled,
            ..registration
        }
    }

    fn note(&mut self, line: usize, what: impl Into<String>) {
        if self.import.notes.len() < MAX_NOTES {
            let what = what.into();
            self.import.notes.push(ImportNote { line, what });
        } else {
            self.import.more_notes += 1;
        }
    }
}

/// The rest of a path under `key`, ignoring case. The root may be spelled in full or as `HKLM`.
fn subkey_of<'a>(key: &str, path: &'a str) -> Option<&'a str> {
    let without_root = key.strip_prefix("HKEY_LOCAL_MACHINE").unwrap_or(key);
    let rest = ["HKEY_LOCAL_MACHINE", "HKLM"]
        .into_iter()
        .find_map(|root| strip_prefix_ignoring_case(path, root))?;
    let rest = strip_prefix_ignoring_case(rest, without_root)?;
    (rest.is_empty() || rest.starts_with('\\')).then_some(rest)
}

fn strip_prefix_ignoring_case<'a>(text: &'a str, head: &str) -> Option<&'a str> {
    let (start, rest) = text.split_at_checked(head.len())?;
    start.eq_ignore_ascii_case(head).then_some(rest)
}
