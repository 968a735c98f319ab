//! Imports of registrations from a file.

use hvsock_address::{InvalidName, ServiceId};
use hvsock_registry::Registration;
use hvsock_registry::reg_file::{self, Entry, ImportError};

use crate::NewService;

/// The changes that a file makes to the registry.
///
/// Apply [`removed`](Self::removed) first, so that a registration may reuse the name of a removed one.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Import {
    /// The services to unregister, if they are registered.
    pub removed: Vec<ServiceId>,
    /// The services to register: all of them, or none if one of them is invalid.
    pub registrations: Vec<Registration>,
    /// Remarks on entries of the file that were left out or completed, and why.
    pub notes: Vec<String>,
}

impl Import {
    /// The import of a list of services, owned by `owner`.
    ///
    /// # Errors
    ///
    /// [`InvalidName`] if an override is for an invalid partition name.
    pub fn of_list(list: Vec<NewService>, owner: &str) -> Result<Self, InvalidName> {
        let registrations = list
            .into_iter()
            .map(|new| new.registration(Some(owner.to_owned())));
        Ok(Self {
            registrations: registrations.collect::<Result<_, _>>()?,
            ..Self::default()
        })
    }

    /// The import of a `.reg` file. `owner` owns the services for which it has no owner.
    ///
    /// # Errors
    ///
    /// [`ImportError`] if the file is not a valid `.reg` file.
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
                Entry::Unregister { id, .. } => import.removed.push(id),
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
    fn a_reg_file_unregisters_and_registers_services_of_the_owner() {
        let id = "0b2f1f0e-0000-4000-8000-000000000001";
        let key = reg_file::KEY;
        let text = format!(
            "Windows Registry Editor Version 5.00\r\n\r\n[-{key}\\{id}]\r\n\r\n\
             [{key}\\00000ac9-facb-11e6-bd58-64006a7986d3]\r\n\"ElementName\"=\"backup\"\r\n"
        );
        let import = Import::of_reg_file(text.as_bytes(), "alice").unwrap();
        assert_eq!(import.removed, [id.parse().unwrap()]);
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
