//! The rules of a registry, displayed as its TOML files spell them.

use std::fmt;

use hvsock_address::{PartitionName, ServiceId};

/// The action that an access rule controls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// To listen.
    Bind,
    /// To connect.
    Connect,
}

/// A rule that made a decision. It is displayed as the service's file spells it:
/// `connect.users = ["alice"]`, `vm.web.enabled = false`, `defaults: bind allows the owner alice`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule<'a> {
    pub(super) scope: RuleScope<'a>,
    pub(super) setting: Setting<'a>,
    /// Whether the entries of lists are omitted from the text.
    pub(super) brief: bool,
}

/// Where a rule is defined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RuleScope<'a> {
    Vm(&'a PartitionName),
    Registration,
    Defaults,
    BuiltIn,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Setting<'a> {
    Enabled(bool),
    Wildcard(bool),
    /// The lists that were checked, with their names.
    Lists(Action, [Option<(&'static str, &'a [String])>; 2]),
    /// The built-in rule that the owner may bind. This and the variants below are no settings in a
    /// file.
    Owner(Option<&'a str>),
    Everyone(Action),
    EveryChild(Action),
    Root,
    BrokerUser,
}

impl<'a> Rule<'a> {
    /// The child whose override has this rule, if one does.
    pub fn child(&self) -> Option<&'a PartitionName> {
        match self.scope {
            RuleScope::Vm(name) => Some(name),
            _ => None,
        }
    }

    /// What to edit in which file to change the decision. Does not show the entries of lists.
    pub fn remedy(&self, service: ServiceId) -> String {
        let file = match self.scope {
            RuleScope::Defaults => "defaults.toml".to_owned(),
            _ => format!("services/{service}.toml"),
        };
        let scope = match self.scope {
            RuleScope::Vm(_) => self.scope,
            _ => RuleScope::Registration,
        };
        let rule = Rule { scope, ..*self }.brief();
        match self.setting {
            Setting::Enabled(is) => format!("set {scope}enabled = {} in {file}", !is),
            Setting::Wildcard(is) => {
                format!("set {scope}allow_wildcard_binds = {} in {file}", !is)
            }
            Setting::Owner(_) => format!("add bind.users to {file}"),
            _ => format!("edit {rule} in {file}"),
        }
    }

    /// The same rule, displayed without the entries of its lists. For a reader who may learn that a
    /// list does not match, but not its entries.
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
            Setting::Enabled(enabled) => write!(f, "{}enabled = {enabled}", self.scope),
            Setting::Wildcard(allowed) => {
                write!(f, "{}allow_wildcard_binds = {allowed}", self.scope)
            }
            Setting::Lists(action, lists) => {
                for (at, (key, list)) in lists.into_iter().flatten().enumerate() {
                    let comma = if at > 0 { ", " } else { "" };
                    write!(f, "{comma}{}{action}.{key}", self.scope)?;
                    if !self.brief {
                        write!(f, " = {}", List(list))?;
                    }
                }
                Ok(())
            }
            Setting::Owner(_) if self.brief => write!(f, "{}bind", self.scope),
            Setting::Owner(Some(owner)) => {
                write!(f, "{}bind allows the owner {owner}", self.scope)
            }
            Setting::Owner(None) => write!(
                f,
                "{}bind allows the owner, but no owner is recorded",
                self.scope
            ),
            Setting::Everyone(action) => write!(f, "{}{action} allows everyone", self.scope),
            Setting::EveryChild(action) => write!(f, "{}{action} allows every child", self.scope),
            Setting::Root => f.write_str("root is always allowed"),
            Setting::BrokerUser => f.write_str("the broker's own user is always allowed"),
        }
    }
}

impl fmt::Display for RuleScope<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // A bare TOML key cannot contain a dot.
            RuleScope::Vm(name) if name.as_str().contains('.') => write!(f, "vm.\"{name}\"."),
            RuleScope::Vm(name) => write!(f, "vm.{name}."),
            RuleScope::Registration => Ok(()),
            RuleScope::Defaults | RuleScope::BuiltIn => f.write_str("defaults: "),
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

/// Displays a list as TOML, truncated to eight entries.
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
    fn a_list_is_displayed_as_toml_and_truncated() {
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
