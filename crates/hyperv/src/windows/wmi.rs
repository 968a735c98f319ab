//! Queries to WMI.
//!
//! The crate wmi initializes COM if the process has not: with the default security, unless the
//! process has chosen another. Each query runs on its own thread, so that the program's threads stay
//! in their apartments.

use std::collections::HashMap;

use serde::de::DeserializeOwned;
use wmi::{Variant, WMIConnection, WMIError, WMIResult};

use crate::Missing;

/// The namespace of Hyper-V's management, since Windows 8 and Windows Server 2012.
pub(super) const HYPER_V: &str = "root\\virtualization\\v2";
/// The namespace of the operating system, with the processes.
pub(super) const SYSTEM: &str = "root\\cimv2";

/// A connection to a namespace, for one thread.
pub(super) struct Namespace {
    connection: WMIConnection,
}

/// An error of WMI.
#[derive(Debug)]
pub(super) enum Fault {
    /// The namespace or the class does not exist.
    Absent,
    /// Access is denied.
    Denied,
    /// Another error.
    Other(String),
}

impl Namespace {
    pub(super) fn open(path: &str) -> Result<Self, Fault> {
        let connection = WMIConnection::with_namespace_path(path)?;
        Ok(Self { connection })
    }

    /// The rows of a query, which must select each field of `T`. The values are converted to the types
    /// of the fields.
    pub(super) fn rows<T: DeserializeOwned>(&self, query: &str) -> Result<Vec<T>, Fault> {
        Ok(self.connection.raw_query(query)?)
    }

    /// The object with this path.
    pub(super) fn object<T: DeserializeOwned>(&self, path: &str) -> Result<T, Fault> {
        Ok(self.connection.get_by_path(path)?)
    }

    /// Calls a method of an object, and returns its output parameters.
    pub(super) fn call(
        &self,
        class: &str,
        object: &str,
        method: &str,
        parameters: impl IntoIterator<Item = (&'static str, Variant)>,
    ) -> Result<Output, Fault> {
        let absent = || Fault::Other(format!("{class} has no method {method}"));
        let input = self.connection.get_object(class)?;
        let input = input.get_method(method)?.ok_or_else(absent)?;
        let input = input.spawn_instance()?;
        for (name, value) in parameters {
            input.put_property(name, value)?;
        }
        let output = self.connection.exec_method(object, method, Some(&input))?;
        let Some(output) = output else {
            return Ok(Output::default());
        };
        let names = output.list_properties()?.into_iter();
        let values = names.map(|name| Ok((name.clone(), output.get_property(&name)?)));
        let values: WMIResult<_> = values.collect();
        Ok(Output { values: values? })
    }
}

/// The output parameters of a method.
#[derive(Debug, Default)]
pub(super) struct Output {
    values: HashMap<String, Variant>,
}

impl Output {
    /// A parameter that is a number.
    pub(super) fn number(&self, name: &str) -> Option<u32> {
        match self.values.get(name)? {
            Variant::UI4(value) => Some(*value),
            Variant::I4(value) => u32::try_from(*value).ok(),
            Variant::UI2(value) => Some(u32::from(*value)),
            _ => None,
        }
    }

    /// A parameter that is text, such as a reference to an object.
    pub(super) fn text(&self, name: &str) -> Option<&str> {
        match self.values.get(name)? {
            Variant::String(text) => Some(text),
            _ => None,
        }
    }
}

impl From<WMIError> for Fault {
    fn from(error: WMIError) -> Self {
        // Source: learn.microsoft.com/windows/win32/wmisdk/wmi-error-constants
        const WBEM_E_ACCESS_DENIED: u32 = 0x8004_1003;
        const WBEM_E_INVALID_NAMESPACE: u32 = 0x8004_100e;
        const WBEM_E_INVALID_CLASS: u32 = 0x8004_1010;
        const WBEM_E_LOCAL_CREDENTIALS: u32 = 0x8004_1064;
        // Source: learn.microsoft.com/windows/win32/seccrypto/common-hresult-values
        const E_ACCESSDENIED: u32 = 0x8007_0005;
        match error {
            WMIError::HResultError { hres } => match hres.cast_unsigned() {
                WBEM_E_INVALID_NAMESPACE | WBEM_E_INVALID_CLASS => Self::Absent,
                WBEM_E_ACCESS_DENIED | WBEM_E_LOCAL_CREDENTIALS | E_ACCESSDENIED => Self::Denied,
                other => Self::Other(format!("WMI returned {other:#010x}")),
            },
            other => Self::Other(format!("WMI's answer is invalid: {other}")),
        }
    }
}

impl Fault {
    /// The meaning of this error for Hyper-V's namespace.
    pub(super) fn of_hyper_v(self) -> Missing {
        match self {
            Self::Absent => Missing::HyperV,
            Self::Denied => Missing::Rights,
            Self::Other(why) => Missing::Failed {
                what: "the query to Hyper-V's management service",
                why,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use hvsock_address::ServiceId;
    use serde::Deserialize;
    use windows_registry::LOCAL_MACHINE;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Process {
        name: Option<String>,
        process_id: Option<u32>,
        thread_count: Option<u16>,
        command_line: Option<String>,
    }

    #[test]
    fn the_error_without_hyper_v_says_that_it_is_not_enabled() {
        let fault = match Namespace::open(HYPER_V) {
            Ok(_) => return,
            Err(fault) => fault,
        };
        assert_eq!(fault.of_hyper_v(), Missing::HyperV);
    }

    #[test]
    fn rows_have_the_types_of_their_fields() {
        let namespace = Namespace::open(SYSTEM).unwrap();
        let query = "SELECT Name, ProcessId, ThreadCount, CommandLine FROM Win32_Process";
        // Wine's list is empty at times, if processes end while it is made.
        let own = (0..50).find_map(|_| {
            let mut processes: Vec<Process> = namespace.rows(query).unwrap();
            processes.retain(|process| process.process_id == Some(std::process::id()));
            if processes.is_empty() {
                std::thread::sleep(std::time::Duration::from_millis(100));
            }
            processes.pop()
        });
        let own = own.unwrap();
        let program = std::env::current_exe().unwrap();
        let name = program.file_name().unwrap().to_str().unwrap();
        assert_eq!(own.name.as_deref(), Some(name));
        assert!(own.thread_count.is_some_and(|count| count > 0), "{own:?}");
        let line = own.command_line.as_deref().unwrap_or_default();
        assert!(line.contains(name), "{own:?}");
    }

    /// The crate wmi fails for a field that is not selected. The row types rely on it.
    #[test]
    fn a_row_without_a_field_of_its_type_is_an_error() {
        let namespace = Namespace::open(SYSTEM).unwrap();
        let rows = namespace.rows::<Process>("SELECT Name, ProcessId FROM Win32_Process");
        assert!(matches!(rows, Err(Fault::Other(_))), "{rows:?}");
    }

    #[test]
    fn an_error_code_maps_to_what_is_missing() {
        for (number, missing) in [
            (0x8004_100e_u32, Some(Missing::HyperV)),
            (0x8004_1010, Some(Missing::HyperV)),
            (0x8004_1003, Some(Missing::Rights)),
            (0x8007_0005, Some(Missing::Rights)),
            (0x8007_06ba, None),
        ] {
            let hres = number.cast_signed();
            let found = Fault::from(WMIError::HResultError { hres }).of_hyper_v();
            match missing {
                Some(missing) => assert_eq!(found, missing),
                None => {
                    let text = found.to_string();
                    assert!(text.contains("WMI returned 0x800706ba"), "{text}");
                }
            }
        }
    }

    #[test]
    fn a_method_has_input_and_output_parameters() {
        let path = format!(r"Software\hvsock-test-{}", ServiceId::random());
        let key = LOCAL_MACHINE.create(&path).unwrap();
        key.set_string("Text", "Grüße").unwrap();
        let namespace = Namespace::open("root\\default").unwrap();
        let class = "StdRegProv";
        let get = |value: &str| {
            let parameters = [
                ("hDefKey", Variant::from(0x8000_0002_u32)),
                ("sSubKeyName", Variant::from(path.clone())),
                ("sValueName", Variant::from(value.to_owned())),
            ];
            namespace.call(class, class, "GetStringValue", parameters)
        };
        let (found, none) = (get("Text"), get("None"));
        let strange = namespace.call(class, class, "NoSuchMethod", []);
        drop(key);
        LOCAL_MACHINE.remove_tree(&path).unwrap();
        let found = found.unwrap();
        assert_eq!(found.number("ReturnValue"), Some(0), "{found:?}");
        assert_eq!(found.text("sValue"), Some("Grüße"));
        assert_ne!(none.unwrap().number("ReturnValue"), Some(0));
        assert!(strange.is_err());
    }
}
