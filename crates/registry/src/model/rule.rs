//! The rules of a registry, displayed as its TOML files spell them.

use std::fmt;

use hvsock_address::PartitionName;

use super::TransportSetting;

/// The action that an access rule controls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// To listen.
    Bind,
    /// To connect.
    Connect,
}

/// A rule that made a decision. It is displayed as the service's file spells it:
/// `connect.users = ["alice"]`, `vm.web.enabled = false`, `built-in: connect.users = []`,
/// `defaults: bind allows the owner alice`.
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
    /// The override for the virtual machine that a container is in.
    VmOfContainer(&'a PartitionName),
    Registration,
    /// The built-in registration of the service.
    BuiltInService,
    Defaults,
    BuiltIn,
}

/// The level that defines a rule, the most specific first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RuleSource<'a> {
    /// The override for a child.
    Override(&'a PartitionName),
    /// The override for the virtual machine that the child is in.
    OverrideOfVm(&'a PartitionName),
    /// The service's registration.
    Registration,
    /// The built-in registration of the service.
    BuiltIn,
    /// The defaults for all services.
    Defaults,
    /// No level: it is what holds where nothing is said.
    None,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Setting<'a> {
    Enabled(bool),
    Wildcard(bool),
    OnlyRoot(bool),
    Transport(TransportSetting),
    /// The lists that were checked, with their names.
    Lists(Action, [Option<(&'static str, &'a [String])>; 2]),
    /// The built-in rule that the owner may bind. This and the variants below are no settings in a
    /// file.
    Owner(Option<&'a str>),
    Everyone(Action),
    EveryChild(Action),
    /// No rule restricts this requester.
    Always(&'static str),
}

impl<'a> Rule<'a> {
    /// The child whose override has this rule, if one does.
    pub fn child(&self) -> Option<&'a PartitionName> {
        match self.scope {
            RuleScope::Vm(name) | RuleScope::VmOfContainer(name) => Some(name),
            _ => None,
        }
    }

    /// Whether the rule is that only root of a child may listen there.
    pub fn is_only_root(&self) -> bool {
        matches!(self.setting, Setting::OnlyRoot(_))
    }

    /// The level that defines the rule.
    pub fn source(&self) -> RuleSource<'a> {
        self.scope.source()
    }

    /// Whether the rule is one of the defaults for all services.
    pub fn is_default(&self) -> bool {
        self.scope == RuleScope::Defaults
    }

    /// The action that the rule controls, if it is an access rule.
    pub fn action(&self) -> Option<Action> {
        match self.setting {
            Setting::Lists(action, _) | Setting::Everyone(action) | Setting::EveryChild(action) => {
                Some(action)
            }
            Setting::Owner(_) | Setting::OnlyRoot(_) => Some(Action::Bind),
            Setting::Enabled(_)
            | Setting::Wildcard(_)
            | Setting::Transport(_)
            | Setting::Always(_) => None,
        }
    }

    /// The names of the lists that were checked: `users`, `groups`, `partitions`. None for a rule
    /// without a list.
    pub fn lists(&self) -> impl Iterator<Item = &'static str> {
        let lists = match self.setting {
            Setting::Lists(_, lists) => lists,
            _ => [None, None],
        };
        lists.into_iter().flatten().map(|(name, _)| name)
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
            Setting::OnlyRoot(only) => write!(f, "{}only_root_binds = {only}", self.scope),
            Setting::Transport(transport) => {
                write!(f, "{}transport = \"{transport}\"", self.scope)
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
            Setting::Always(who) => write!(f, "{who} is always allowed"),
        }
    }
}

impl<'a> RuleScope<'a> {
    pub(super) fn source(self) -> RuleSource<'a> {
        match self {
            RuleScope::Vm(name) => RuleSource::Override(name),
            RuleScope::VmOfContainer(name) => RuleSource::OverrideOfVm(name),
            RuleScope::Registration => RuleSource::Registration,
            RuleScope::BuiltInService => RuleSource::BuiltIn,
            RuleScope::Defaults => RuleSource::Defaults,
            RuleScope::BuiltIn => RuleSource::None,
        }
    }
}

impl fmt::Display for RuleScope<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // A bare TOML key cannot contain a dot or a slash.
            RuleScope::Vm(name) | RuleScope::VmOfContainer(name)
                if name.as_str().contains(['.', '/']) =>
            {
                write!(f, "vm.\"{name}\".")
            }
            RuleScope::Vm(name) | RuleScope::VmOfContainer(name) => write!(f, "vm.{name}."),
            RuleScope::Registration => Ok(()),
            RuleScope::BuiltInService => f.write_str("built-in: "),
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
                    c if !hvsock_text::is_printable(c) => match u32::from(c) {
                        code @ ..=0xffff => write!(f, "\\u{code:04X}")?,
                        code => write!(f, "\\U{code:08X}")?,
                    },
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
