//! The seccomp profile of a container whose calls the agent answers, from the profile that it has without.
//!
//! Nothing that the profile denies is allowed. Where it allows a call that the agent must see, it notifies
//! instead, under the same conditions; only the sockets of the two families are notified in any case, since the
//! kernel never makes them. Libseccomp does not say which of two rules wins that match the same call, so the
//! regions of all rules that are written are disjoint.

mod calls;
mod region;
mod set;

use std::path::Path;

use hvsock_sys::seccomp::{Action, Rule};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value, json};
use thiserror::Error;

use region::Region;
use set::Condition;

/// A seccomp profile in JSON, with rules that notify.
#[derive(Clone, Debug, PartialEq)]
pub struct Profile(Value);

/// Who reads a profile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// podman or docker: a file, whose rules may have conditions on capabilities and architectures.
    Engine,
    /// An OCI runtime: the object `linux.seccomp` of `config.json`.
    Runtime,
}

/// Why there is no profile.
#[derive(Debug, Error)]
pub enum MergeError {
    /// It is not JSON.
    #[error("it is not JSON")]
    NotJson(#[from] serde_json::Error),
    /// It is JSON, but not a profile.
    #[error("it is not a seccomp profile: {0}")]
    NotAProfile(&'static str),
    /// It has rules that a runtime does not read.
    #[error(
        "it has rules for some capabilities, architectures or kernels only, which only podman and docker read"
    )]
    OnlyForEngines,
    /// It has an agent already, and a process can have one only.
    #[error("it has an agent already{}", match .0 {
        Some(path) => format!(", at {path}"),
        None => String::new(),
    })]
    HasAgent(Option<String>),
    /// A rule for a call that the agent must see cannot be divided.
    #[error("its rule for {0} compares other bits of an argument than the leading ones")]
    Condition(&'static str),
    /// The path of the agent's socket cannot be in JSON.
    #[error("the path of the agent's socket is not UTF-8")]
    Path,
}

/// One rule of a profile.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Entry {
    #[serde(default)]
    names: Vec<String>,
    action: String,
    #[serde(
        default,
        deserialize_with = "null_is_none",
        skip_serializing_if = "Vec::is_empty"
    )]
    args: Vec<Condition>,
    /// Comments, errors, and what engines know besides.
    #[serde(flatten)]
    rest: Map<String, Value>,
}

fn null_is_none<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Condition>, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

const ALLOW: &str = "SCMP_ACT_ALLOW";
const LOG: &str = "SCMP_ACT_LOG";
const NOTIFY: &str = "SCMP_ACT_NOTIFY";
const ERRNO: &str = "SCMP_ACT_ERRNO";

/// The flag of the kernel (Linux 5.19), by its name in profiles.
const WAIT_KILLABLE: &str = "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV";

/// The fields of an entry that make it one for some containers only.
const ENGINE_FIELDS: [&str; 2] = ["includes", "excludes"];

impl Profile {
    /// Adds to `base` the rules by which the agent that listens at `agent` answers for the partition `name`.
    ///
    /// `base` is a file of podman or docker, an object `linux.seccomp`, or a whole `config.json`. Without it, or if
    /// that `config.json` has none, the container has no other restriction.
    ///
    /// # Errors
    ///
    /// See [`MergeError`].
    pub fn new(
        base: Option<&[u8]>,
        form: Form,
        agent: &Path,
        name: &str,
    ) -> Result<Self, MergeError> {
        let base = base.map(serde_json::from_slice).transpose()?;
        let agent = agent.to_str().ok_or(MergeError::Path)?;
        let mut profile = of_base(base)?;
        let default = profile.get("defaultAction").and_then(Value::as_str);
        let default = default.ok_or(MergeError::NotAProfile("it has no `defaultAction`"))?;
        let default_allows = allows(default);
        check_agent(&profile, default)?;
        let entries = profile.remove("syscalls").filter(|value| !value.is_null());
        let mut merge = Merge::new(entries, default_allows)?;
        if form == Form::Runtime && (profile.contains_key("archMap") || merge.is_for_engines()) {
            return Err(MergeError::OnlyForEngines);
        }
        calls::for_each(|syscall, rules| merge.notify(syscall, rules))?;
        let entries = serde_json::to_value(merge.finish())?;
        profile.insert("syscalls".to_owned(), entries);
        profile.insert("listenerPath".to_owned(), agent.into());
        profile.insert("listenerMetadata".to_owned(), name.into());
        Ok(Self(profile.into()))
    }

    /// Has a thread whose call the agent has received wait until it is answered or killed. Otherwise a signal ends
    /// the call even if the agent has begun to answer it. Runtimes must know the flag: crun does since 1.6, runc since 1.5
    /// with libseccomp 2.6.
    pub fn wait_killable(&mut self) {
        if let Some(profile) = self.0.as_object_mut() {
            let flags = profile.entry("flags").or_insert_with(|| json!([]));
            match flags {
                Value::Array(flags) if flags.iter().any(|flag| flag == WAIT_KILLABLE) => {}
                Value::Array(flags) => flags.push(WAIT_KILLABLE.into()),
                other => *other = json!([WAIT_KILLABLE]),
            }
        }
    }

    /// As JSON.
    #[must_use]
    pub fn as_json(&self) -> &Value {
        &self.0
    }
}

/// The profile in a file of any of the three kinds.
fn of_base(base: Option<Value>) -> Result<Map<String, Value>, MergeError> {
    let Some(base) = base else {
        return Ok(unrestricted());
    };
    let Value::Object(mut base) = base else {
        return Err(MergeError::NotAProfile("it is no object"));
    };
    if !base.contains_key("ociVersion") && !base.contains_key("linux") {
        return Ok(base);
    }
    match base
        .get_mut("linux")
        .and_then(|linux| linux.get_mut("seccomp"))
        .map(Value::take)
    {
        None | Some(Value::Null) => Ok(unrestricted()),
        Some(Value::Object(seccomp)) => Ok(seccomp),
        Some(_) => Err(MergeError::NotAProfile("`linux.seccomp` is no object")),
    }
}

/// The profile of a container that has none. Programs of architectures that are not in a profile are killed.
fn unrestricted() -> Map<String, Value> {
    let mut profile = Map::new();
    profile.insert("defaultAction".to_owned(), ALLOW.into());
    let architectures = match std::env::consts::ARCH {
        "x86_64" => json!(["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"]),
        "aarch64" => json!(["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"]),
        // That of the runtime.
        _ => return profile,
    };
    profile.insert("architectures".to_owned(), architectures);
    profile
}

fn allows(action: &str) -> bool {
    [ALLOW, LOG].contains(&action)
}

fn check_agent(profile: &Map<String, Value>, default: &str) -> Result<(), MergeError> {
    let path = profile.get("listenerPath").and_then(Value::as_str);
    let path = path.filter(|path| !path.is_empty());
    match (path, default) {
        (None, NOTIFY) => Err(MergeError::HasAgent(None)),
        (None, _) => Ok(()),
        (Some(path), _) => Err(MergeError::HasAgent(Some(path.to_owned()))),
    }
}

/// The rules of a profile while the agent's are added.
struct Merge {
    entries: Vec<Entry>,
    added: Vec<Entry>,
    default_allows: bool,
}

impl Merge {
    fn new(entries: Option<Value>, default_allows: bool) -> Result<Self, MergeError> {
        let mut entries: Vec<Entry> = match entries {
            None => Vec::new(),
            Some(Value::Array(entries)) => {
                let entries = entries.into_iter().map(serde_json::from_value);
                let entries: Result<_, _> = entries.collect();
                entries.map_err(|_| MergeError::NotAProfile("a rule in `syscalls` is none"))?
            }
            Some(_) => return Err(MergeError::NotAProfile("`syscalls` is no array")),
        };
        for entry in &mut entries {
            // As profiles were written for docker before 1.13.
            if let Some(Value::String(name)) = entry.rest.remove("name") {
                entry.names.push(name);
            }
            if entry.action == NOTIFY {
                return Err(MergeError::HasAgent(None));
            }
        }
        Ok(Self {
            entries,
            added: Vec::new(),
            default_allows,
        })
    }

    /// Whether a rule is for some containers only.
    fn is_for_engines(&self) -> bool {
        let has = |value: Option<&Value>| match value {
            None | Some(Value::Null) => false,
            Some(Value::Object(conditions)) => !conditions.is_empty(),
            Some(_) => true,
        };
        let is = |entry: &Entry| {
            ENGINE_FIELDS
                .iter()
                .any(|field| has(entry.rest.get(*field)))
        };
        self.entries.iter().any(is)
    }

    /// Makes the calls of one name that match the agent's rules wait for it.
    fn notify(&mut self, name: &'static str, rules: &[Rule<'_>]) -> Result<(), MergeError> {
        let parts = region::divide(rules);
        let is_new = |action: Action| name == calls::SOCKET && action == Action::Notify;
        let mut decided = Vec::new();
        let mut result = Vec::new();
        for entry in &mut self.entries {
            let before = entry.names.len();
            entry.names.retain(|other| other != name);
            if entry.names.len() == before {
                continue;
            }
            let regions = Region::of(&entry.args).ok_or(MergeError::Condition(name))?;
            for region in &regions {
                for (part, action) in &parts {
                    let both = region.intersection(part);
                    // Sockets that the agent makes replace what the profile says of them.
                    if both.is_empty() || is_new(*action) {
                        continue;
                    }
                    let action = if allows(&entry.action) {
                        *action
                    } else {
                        Action::Allow
                    };
                    result.push((both, action, Some(entry.clone())));
                }
            }
            decided.extend(regions);
        }
        for (part, action) in parts {
            if action == Action::Allow {
                continue;
            }
            let mut rest = vec![part];
            if !is_new(action) {
                if !self.default_allows {
                    continue;
                }
                for region in &decided {
                    rest = rest.iter().flat_map(|part| part.without(region)).collect();
                }
            }
            result.extend(rest.into_iter().map(|part| (part, action, None)));
        }
        for (region, action, of) in result {
            self.add(name, &region, action, of.as_ref());
        }
        Ok(())
    }

    /// Adds rules for a region. [`Action::Allow`] is what the entry does that they come from.
    fn add(&mut self, name: &str, region: &Region, action: Action, of: Option<&Entry>) {
        for args in region.rules() {
            let mut entry = Entry {
                names: Vec::new(),
                action: of.map_or(ALLOW, |of| &of.action).to_owned(),
                args,
                rest: of.map(|of| of.rest.clone()).unwrap_or_default(),
            };
            if action != Action::Allow {
                // Those of the action that it replaces.
                entry.rest.remove("errno");
                entry.rest.remove("errnoRet");
            }
            match action {
                Action::Allow => {}
                Action::Notify => entry.action = NOTIFY.to_owned(),
                Action::Errno(number) => {
                    entry.action = ERRNO.to_owned();
                    entry.rest.insert("errnoRet".to_owned(), number.into());
                }
            }
            let is_like = |other: &&mut Entry| {
                (&other.action, &other.args, &other.rest)
                    == (&entry.action, &entry.args, &entry.rest)
            };
            match self.added.iter_mut().find(is_like) {
                Some(other) if other.names.iter().any(|other| other == name) => {}
                Some(other) => other.names.push(name.to_owned()),
                None => {
                    entry.names.push(name.to_owned());
                    self.added.push(entry);
                }
            }
        }
    }

    fn finish(mut self) -> Vec<Entry> {
        self.entries.retain(|entry| !entry.names.is_empty());
        self.entries.append(&mut self.added);
        self.entries
    }
}

#[cfg(test)]
mod tests;
