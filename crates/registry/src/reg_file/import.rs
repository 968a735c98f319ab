//! Reading.

use std::collections::{HashMap, HashSet};

use hvsock_address::{ElementName, ServiceId};

use super::decode::{self, Encoding};
use super::syntax::{Data, Item, Kind, Lines};
use super::{DISABLED_KEY, Entry, Import, ImportError, KEY, MAX_NOTES, Note};
use crate::Registration;
use crate::entry::{self, ELEMENT_NAME, Odd, Texts};
use crate::text::shown;

/// Reads a file as the registry editor would: keys and values in their order, later ones over
/// earlier ones.
///
/// A key without a friendly name (podman never gives one) gets one from what is known of it. The
/// entries are in the order of their keys; whether their names clash is for the registry to say.
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
        reader.take(item)?;
    }
    Ok(reader.finish())
}

/// The keys read so far.
#[derive(Default)]
struct Reader {
    version_4: bool,
    /// Where the values that follow belong.
    current: Place,
    services: Vec<Service>,
    index: HashMap<ServiceId, usize>,
    import: Import,
}

#[derive(Default)]
enum Place {
    /// Before the first key.
    #[default]
    Start,
    /// In a key that is not a service, and has been noted.
    Elsewhere,
    /// In the service with this number.
    Service(usize),
}

/// What a service's key holds.
struct Service {
    id: ServiceId,
    /// The last line that named its key.
    line: usize,
    /// Whether the key was deleted, before it was perhaps made again.
    deleted: bool,
    /// Whether there is a key at the end.
    present: bool,
    /// Whether that is the key that Windows looks at.
    enabled: bool,
    /// The last line that gave it a name.
    named: usize,
    texts: Texts,
}

impl Reader {
    fn take(&mut self, item: Item) -> Result<(), ImportError> {
        let Item { line, kind } = item;
        match kind {
            Kind::Key(path) => {
                self.current = match self.service(line, &path, false) {
                    Some(number) => Place::Service(number),
                    None => Place::Elsewhere,
                };
            }
            Kind::DeletedKey(path) => {
                self.service(line, &path, true);
                self.current = Place::Elsewhere;
            }
            Kind::Value(name, data) => match self.current {
                Place::Start => {
                    let what = "a value comes before the first `[key]`";
                    return Err(ImportError::new(line, what));
                }
                Place::Elsewhere => {}
                Place::Service(number) => self.value(line, number, &name, data),
            },
        }
        Ok(())
    }

    /// The service whose key this is, or none and a note.
    fn service(&mut self, line: usize, path: &str, deleted: bool) -> Option<usize> {
        let enabled = below(KEY, path).map(|rest| (true, rest));
        let disabled = || below(DISABLED_KEY, path).map(|rest| (false, rest));
        let Some((enabled, rest)) = enabled.or_else(disabled) else {
            self.note(line, format!("[{}] is another key: left out", shown(path)));
            return None;
        };
        let rest = rest.trim_matches('\\');
        if rest.is_empty() {
            if deleted {
                let what = "all services at once are not deleted: left out; name them one by one";
                self.note(line, what);
            }
            return None;
        }
        let Some(id) = rest.parse().ok().filter(|id| *id != ServiceId::ZERO) else {
            let what = format!("`{}` is not a service's GUID: left out", shown(rest));
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
                named: line,
                texts: Texts::default(),
            });
        }
        let service = &mut self.services[number];
        if !enabled && (deleted || service.present && service.enabled) {
            // Windows looks at the other key, so that one counts.
            let what = match deleted {
                true => "what is switched off is not deleted by this key: left out",
                false => "is switched on by its other key: this one is left out",
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
        let Some(known) = entry::known(name) else {
            let what = format!("the value \"{}\" is not known here: left out", shown(name));
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
            Ok(()) if known == ELEMENT_NAME => service.named = line,
            Ok(()) => {}
            Err(why) => self.note(line, format!("{why}: left out")),
        }
    }

    fn finish(mut self) -> Import {
        let mut made_up = HashSet::new();
        for service in std::mem::take(&mut self.services) {
            let Service { id, line, .. } = service;
            if service.deleted {
                self.import.entries.push(Entry::Unregister { line, id });
            }
            if service.present {
                let registration = Box::new(self.registration(service, &mut made_up));
                let entry = Entry::Register { line, registration };
                self.import.entries.push(entry);
            }
        }
        self.import
    }

    fn registration(&mut self, service: Service, made_up: &mut HashSet<String>) -> Registration {
        let Service {
            id,
            line,
            named,
            enabled,
            ..
        } = service;
        let free = |name: &ElementName| made_up.insert(name.folded());
        let (registration, odd) = service.texts.registration(id, free);
        match odd {
            None => {}
            Some(Odd::Nameless(what)) => self.note(line, what),
            Some(Odd::Unusable(what)) => self.note(named, what),
        }
        Registration {
            enabled,
            ..registration
        }
    }

    fn note(&mut self, line: usize, what: impl Into<String>) {
        if self.import.notes.len() < MAX_NOTES {
            let what = what.into();
            self.import.notes.push(Note { line, what });
        } else {
            self.import.more_notes += 1;
        }
    }
}

/// What comes after one of our keys, whatever the case, with the root in full or by its short name.
fn below<'a>(key: &str, path: &'a str) -> Option<&'a str> {
    let ours = key.strip_prefix("HKEY_LOCAL_MACHINE").unwrap_or(key);
    let rest = ["HKEY_LOCAL_MACHINE", "HKLM"]
        .into_iter()
        .find_map(|root| strip(path, root))?;
    let rest = strip(rest, ours)?;
    (rest.is_empty() || rest.starts_with('\\')).then_some(rest)
}

fn strip<'a>(text: &'a str, head: &str) -> Option<&'a str> {
    let (start, rest) = text.split_at_checked(head.len())?;
    start.eq_ignore_ascii_case(head).then_some(rest)
}
