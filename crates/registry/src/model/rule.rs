//! The rules of a registry, in the words of its files.

use std::fmt;

use hvsock_address::{PartitionName, ServiceId};

/// What an access rule is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// To listen.
    Bind,
    /// To connect.
    Connect,
}

/// A rule, spelled as in the service's file when displayed: `connect.users = ["alice"]`,
/// `vm.web.enabled = false`, `defaults: bind allows the owner alice`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule<'a> {
    pub(super) place: Place<'a>,
    pub(super) setting: Setting<'a>,
    /// Whether what the lists hold is left out.
    pub(super) brief: bool,
}

/// Where a rule is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place<'a> {
    Vm(&'a PartitionName),
    Registration,
    Defaults,
    BuiltIn,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Setting<'a> {
    Enabled(bool),
    Wildcard(bool),
    /// The lists that were looked at, by their names.
    Lists(Action, [Option<(&'static str, &'a [String])>; 2]),
    /// A sentence part that is not a setting.
    Owner(Option<&'a str>),
    Everyone(Action),
    EveryChild(Action),
    Root,
    BrokerUser,
}

impl<'a> Rule<'a> {
    /// The child whose override it is in.
    pub fn child(&self) -> Option<&'a PartitionName> {
        match self.place {
            Place::Vm(name) => Some(name),
            _ => None,
        }
    }

    /// What to edit for another answer, in words. Says nothing of what lists hold.
    pub fn remedy(&self, service: ServiceId) -> String {
        let file = match self.place {
            Place::Defaults => "defaults.toml".to_owned(),
            _ => format!("services/{service}.toml"),
        };
        let place = match self.place {
            Place::Vm(_) => self.place,
            _ => Place::Registration,
        };
        let rule = Rule { place, ..*self }.brief();
        match self.setting {
            Setting::Enabled(is) => format!("set {place}enabled = {} in {file}", !is),
            Setting::Wildcard(is) => {
                format!("set {place}allow_wildcard_binds = {} in {file}", !is)
            }
            Setting::Owner(_) => format!("add bind.users to {file}"),
            _ => format!("edit {rule} in {file}"),
        }
    }

    /// The rule without what its lists hold: for those who may know that they are not on a list,
    /// and not who is.
    pub fn brief(self) -> Self {
        Self {
            brief: true,
            ..self
        }
    }
}

impl fmt::Display for Rule<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.setting {
            Setting::Enabled(enabled) => write!(f, "{}enabled = {enabled}", self.place),
            Setting::Wildcard(allowed) => {
                write!(f, "{}allow_wildcard_binds = {allowed}", self.place)
            }
            Setting::Lists(action, lists) => {
                for (at, (key, list)) in lists.into_iter().flatten().enumerate() {
                    let comma = if at > 0 { ", " } else { "" };
                    write!(f, "{comma}{}{action}.{key}", self.place)?;
                    if !self.brief {
                        write!(f, " = {}", List(list))?;
                    }
                }
                Ok(())
            }
            Setting::Owner(_) if self.brief => write!(f, "{}bind", self.place),
            Setting::Owner(Some(owner)) => {
                write!(f, "{}bind allows the owner {owner}", self.place)
            }
            Setting::Owner(None) => write!(
                f,
                "{}bind allows the owner, and none is recorded",
                self.place
            ),
            Setting::Everyone(action) => write!(f, "{}{action} allows everyone", self.place),
            Setting::EveryChild(action) => write!(f, "{}{action} allows every child", self.place),
            Setting::Root => f.write_str("root is always allowed"),
            Setting::BrokerUser => f.write_str("the broker's own user is always allowed"),
        }
    }
}

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // A dot would part a bare key in two.
            Place::Vm(name) if name.as_str().contains('.') => write!(f, "vm.\"{name}\"."),
            Place::Vm(name) => write!(f, "vm.{name}."),
            Place::Registration => Ok(()),
            Place::Defaults | Place::BuiltIn => f.write_str("defaults: "),
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Action::Bind => "bind",
            Action::Connect => "connect",
        })
    }
}

/// A list as TOML spells it, its end left out where it is long.
struct List<'a>(&'a [String]);

impl fmt::Display for List<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 8;
        f.write_str("[")?;
        for (at, entry) in self.0.iter().take(SHOWN).enumerate() {
            f.write_str(if at > 0 { ", \"" } else { "\"" })?;
            for c in entry.chars() {
                match c {
                    '"' | '\\' => write!(f, "\\{c}")?,
                    c if c.is_control() => write!(f, "\\u{:04X}", u32::from(c))?,
                    c => write!(f, "{c}")?,
                }
            }
            f.write_str("\"")?;
        }
        match self.0.len().saturating_sub(SHOWN) {
            0 => f.write_str("]"),
            more => write!(f, ", … {more} more]"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_spelled_as_toml_and_its_end_left_out_where_it_is_long() {
        let entries: Vec<String> = ["a\"b\\c\n", "é"].map(str::to_owned).into();
        assert_eq!(
            List(&entries).to_string(),
            "[\"a\\\"b\\\\c\\u000A\", \"é\"]"
        );
        let many: Vec<String> = (0..10).map(|n| n.to_string()).collect();
        let text = List(&many).to_string();
        assert!(text.ends_with("\"7\", … 2 more]"), "{text}");
    }
}
