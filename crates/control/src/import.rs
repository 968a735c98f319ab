//! Registrations that come in a file.

use hvsock_address::{InvalidName, ServiceId};
use hvsock_registry::Registration;
use hvsock_registry::reg_file::{self, Entry, ImportError};

use crate::NewService;

/// What a file asks of the registry that it is imported into.
///
/// What is to be unregistered goes first, so that its name may be used again.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Import {
    /// What is to be unregistered, if it is registered.
    pub gone: Vec<ServiceId>,
    /// What is to be registered: all of it, or none if one of them cannot be.
    pub registrations: Vec<Registration>,
    /// What the file says that was left out or made up, and why.
    pub notes: Vec<String>,
}

impl Import {
    /// What a list of services asks for, in the name of `owner`.
    pub fn of_list(list: Vec<NewService>, owner: &str) -> Result<Self, InvalidName> {
        let registrations = list
            .into_iter()
            .map(|new| new.registration(Some(owner.to_owned())));
        Ok(Self {
            registrations: registrations.collect::<Result<_, _>>()?,
            ..Self::default()
        })
    }

    /// What a `.reg` file asks for, in the name of `owner` where it names nobody.
    pub fn of_reg_file(file: &[u8], owner: &str) -> Result<Self, ImportError> {
        let file = reg_file::import(file)?;
        let mut import = Self::default();
        for entry in file.entries {
            match entry {
                Entry::Register {
                    mut registration, ..
                } => {
                    registration.owner.get_or_insert_with(|| owner.to_owned());
                    import.registrations.push(*registration);
                }
                Entry::Unregister { id, .. } => import.gone.push(id),
            }
        }
        import.notes = file.notes.iter().map(ToString::to_string).collect();
        if file.more_notes > 0 {
            let more = format!("{} more remarks are left out", file.more_notes);
            import.notes.push(more);
        }
        Ok(import)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reg_file_says_what_goes_and_what_comes_and_who_owns_it() {
        let id = "0b2f1f0e-0000-4000-8000-000000000001";
        let key = reg_file::KEY;
        let text = format!(
            "Windows Registry Editor Version 5.00\r\n\r\n[-{key}\\{id}]\r\n\r\n\
             [{key}\\00000ac9-facb-11e6-bd58-64006a7986d3]\r\n\"ElementName\"=\"backup\"\r\n"
        );
        let import = Import::of_reg_file(text.as_bytes(), "alice").unwrap();
        assert_eq!(import.gone, [id.parse().unwrap()]);
        let [backup] = &import.registrations[..] else {
            panic!("{import:?}");
        };
        assert_eq!(
            (backup.name.as_str(), backup.port()),
            ("backup", Some(2761))
        );
        assert_eq!(backup.owner.as_deref(), Some("alice"));
    }
}
