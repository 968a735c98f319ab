//! Reading.

use std::collections::{HashMap, HashSet};

use hvsock_address::{ElementName, ServiceId};

use super::decode::{self, Encoding};
use super::syntax::{Data, Item, Kind, Lines};
use super::{
    CREATOR, ELEMENT_NAME, Entry, Import, ImportError, KEY, MACHINE_NAME, MAX_NOTES, Note, OWNER,
    PURPOSE, TOOL_NAME, shown,
};
use crate::{Registration, text};

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
    values: HashMap<&'static str, (usize, String)>,
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
        let Some(rest) = below_our_key(path) else {
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
                values: HashMap::new(),
            });
        }
        let service = &mut self.services[number];
        service.line = line;
        service.present = !deleted;
        if deleted {
            service.deleted = true;
            service.values.clear();
        }
        Some(number)
    }

    fn value(&mut self, line: usize, number: usize, name: &str, data: Data) {
        let known = [
            ELEMENT_NAME,
            OWNER,
            CREATOR,
            PURPOSE,
            TOOL_NAME,
            MACHINE_NAME,
        ];
        let Some(known) = known.into_iter().find(|k| k.eq_ignore_ascii_case(name)) else {
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
        let text = text.map_err(str::to_owned).and_then(|text| {
            // A name is checked, and if need be mended, when all values are known.
            match known == ELEMENT_NAME || text.is_empty() {
                true => Ok(text),
                false => text::check(&text).map(|()| text),
            }
        });
        let values = &mut self.services[number].values;
        match text {
            Ok(text) if text.is_empty() => drop(values.remove(known)),
            Ok(text) => drop(values.insert(known, (line, text))),
            Err(why) => self.note(line, format!("{known} {why}: left out")),
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

    fn registration(
        &mut self,
        mut service: Service,
        made_up: &mut HashSet<String>,
    ) -> Registration {
        let name = match service.values.remove(ELEMENT_NAME) {
            Some((line, text)) => match ElementName::new(text.as_str()) {
                Ok(name) => Ok(name),
                Err(why) => {
                    let printable = text.replace(char::is_control, " ");
                    let name = match ElementName::new(printable.trim()) {
                        Ok(mended) => mended,
                        Err(_) => make_up_name(&service, made_up),
                    };
                    let what = format!(
                        "the name \"{}\" cannot be used ({why}): named \"{name}\" here",
                        shown(&text)
                    );
                    Err((line, name, what))
                }
            },
            None => {
                let name = make_up_name(&service, made_up);
                let what = format!("the key has no {ELEMENT_NAME}: named \"{name}\" here");
                Err((service.line, name, what))
            }
        };
        let name = name.unwrap_or_else(|(line, name, what)| {
            self.note(line, what);
            name
        });
        let mut take = |key| service.values.remove(key).map(|(_, text)| text);
        let tool = take(TOOL_NAME);
        Registration {
            owner: take(OWNER),
            creator: take(CREATOR).or(tool),
            purpose: take(PURPOSE),
            ..Registration::new(service.id, name)
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

/// A name from what is known of the service, and no other than the ones made up before.
fn make_up_name(service: &Service, made_up: &mut HashSet<String>) -> ElementName {
    let value = |key| service.values.get(key).map(|(_, text)| text.as_str());
    let known: Vec<&str> = [
        value(CREATOR).or(value(TOOL_NAME)),
        value(PURPOSE),
        value(MACHINE_NAME),
    ]
    .into_iter()
    .flatten()
    .collect();
    let known = known.join(" ");
    let candidates = [
        known.clone(),
        format!("{known} {}", service.id),
        format!("Unnamed {}", service.id),
    ];
    candidates
        .into_iter()
        .filter_map(|text| ElementName::new(text.trim()).ok())
        .find(|name| made_up.insert(name.folded()))
        .expect("a word and a GUID are a name that no other service gets")
}

/// What comes after our key, whatever the case, with the root in full or by its short name.
fn below_our_key(path: &str) -> Option<&str> {
    let ours = KEY.strip_prefix("HKEY_LOCAL_MACHINE").unwrap_or(KEY);
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
