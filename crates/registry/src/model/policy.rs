//! What a registration says about one question, and which of its rules says it.
//!
//! A [`Policy`] is a registration with everything that stands around it: the override of the child
//! in question, and the defaults. Nothing here is copied or built, so that a broker can ask it for
//! every connection; the [`Rule`] that decided is put into words only when somebody wants to read
//! it.

use std::fmt;

use hvsock_address::{PartitionName, ServiceId};

use super::asker::{Asker, Principal, is_child};
use super::{AccessRule, Defaults, Override, Registration, Registry};

/// What an access rule is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// To listen.
    Bind,
    /// To connect.
    Connect,
}

/// One registration as it applies to one child, or to children in general.
#[derive(Clone, Copy, Debug)]
pub struct Policy<'a> {
    registration: &'a Registration,
    defaults: &'a Defaults,
    /// The user whose processes may do everything, beside root: he can edit the registry anyway.
    broker_uid: u32,
    over: Option<(&'a PartitionName, &'a Override)>,
}

/// An answer, and the rule that gave it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision<'a> {
    /// The answer.
    pub allowed: bool,
    /// The rule that gave it.
    pub rule: Rule<'a>,
}

/// A rule, spelled as in the service's file when displayed: `connect.users = ["alice"]`,
/// `vm.web.enabled = false`, `defaults: bind allows the owner alice`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule<'a> {
    place: Place<'a>,
    setting: Setting<'a>,
    /// Whether what the lists hold is left out.
    brief: bool,
}

/// Where a rule is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place<'a> {
    Vm(&'a PartitionName),
    Registration,
    Defaults,
    BuiltIn,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Setting<'a> {
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

impl Registry {
    /// What is registered for a service, as it applies to children in general. `broker_uid` is the
    /// user whose processes may do everything, beside root.
    pub fn policy(&self, service: ServiceId, broker_uid: u32) -> Option<Policy<'_>> {
        Some(Policy {
            registration: self.get(service)?,
            defaults: self.defaults(),
            broker_uid,
            over: None,
        })
    }
}

impl<'a> Policy<'a> {
    /// The registration.
    pub fn registration(&self) -> &'a Registration {
        self.registration
    }

    /// The same as it applies to this child.
    pub fn for_child(self, child: &PartitionName) -> Policy<'a> {
        Policy {
            over: self.registration.vm.get_key_value(child),
            ..self
        }
    }

    /// The same for each child that has an override.
    pub fn for_each_override(self) -> impl Iterator<Item = Policy<'a>> {
        let overrides = self.registration.vm.iter();
        overrides.map(move |over| Policy {
            over: Some(over),
            ..self
        })
    }

    /// Whether the service is enabled.
    pub fn enabled(&self) -> Decision<'a> {
        let over = self.over.and_then(|(name, over)| {
            let enabled = over.enabled?;
            Some((Place::Vm(name), enabled))
        });
        let (place, enabled) = over.unwrap_or((Place::Registration, self.registration.enabled));
        Decision::new(enabled, place, Setting::Enabled(enabled))
    }

    /// Whether a listener may be bound to the wildcard.
    pub fn wildcard(&self) -> Decision<'a> {
        let over = self.over.and_then(|(name, over)| {
            let allowed = over.allow_wildcard_binds?;
            Some((Place::Vm(name), allowed))
        });
        let own = self.registration.allow_wildcard_binds;
        let (place, allowed) = over
            .or(own.map(|allowed| (Place::Registration, allowed)))
            .unwrap_or((Place::Defaults, self.defaults.allow_wildcard_binds));
        Decision::new(allowed, place, Setting::Wildcard(allowed))
    }

    /// Whether `asker` may do `action`.
    pub fn access(&self, action: Action, asker: &Asker<'_>) -> Decision<'a> {
        match asker {
            Asker::Process(principal) => self.access_of_process(action, principal),
            Asker::Child { name, id, groups } => {
                for (place, rule) in self.rules(action) {
                    if let Some(list) = &rule.partitions {
                        let allowed = list.iter().any(|entry| is_child(entry, name, *id, groups));
                        let lists = [Some(("partitions", list.as_slice())), None];
                        return Decision::new(allowed, place, Setting::Lists(action, lists));
                    }
                }
                Decision::new(true, Place::BuiltIn, Setting::EveryChild(action))
            }
        }
    }

    fn access_of_process(&self, action: Action, principal: &Principal) -> Decision<'a> {
        if principal.uid == 0 {
            return Decision::new(true, Place::BuiltIn, Setting::Root);
        }
        if principal.uid == self.broker_uid {
            return Decision::new(true, Place::BuiltIn, Setting::BrokerUser);
        }
        for (place, rule) in self.rules(action) {
            let users = rule.users.as_ref().map(|list| ("users", list.as_slice()));
            let groups = rule.groups.as_ref().map(|list| ("groups", list.as_slice()));
            if users.is_none() && groups.is_none() {
                continue;
            }
            let by_user = users.filter(|(_, list)| list.iter().any(|e| principal.is_user(e)));
            let by_group = groups.filter(|(_, list)| list.iter().any(|e| principal.is_in_group(e)));
            return match by_user.or(by_group) {
                Some(list) => {
                    Decision::new(true, place, Setting::Lists(action, [Some(list), None]))
                }
                None => Decision::new(false, place, Setting::Lists(action, [users, groups])),
            };
        }
        match action {
            Action::Connect => Decision::new(true, Place::BuiltIn, Setting::Everyone(action)),
            Action::Bind => {
                let owner = self.registration.owner.as_deref();
                let allowed = owner.is_some_and(|owner| owner != "*" && principal.is_user(owner));
                Decision::new(allowed, Place::BuiltIn, Setting::Owner(owner))
            }
        }
    }

    /// The rules for an action, the most specific first.
    fn rules(&self, action: Action) -> impl Iterator<Item = (Place<'a>, &'a AccessRule)> {
        let pick = |bind: &'a AccessRule, connect: &'a AccessRule| match action {
            Action::Bind => bind,
            Action::Connect => connect,
        };
        let (registration, defaults) = (self.registration, self.defaults);
        let over = self.over;
        over.map(|(name, over)| (Place::Vm(name), pick(&over.bind, &over.connect)))
            .into_iter()
            .chain([
                (
                    Place::Registration,
                    pick(&registration.bind, &registration.connect),
                ),
                (Place::Defaults, pick(&defaults.bind, &defaults.connect)),
            ])
    }
}

impl<'a> Decision<'a> {
    fn new(allowed: bool, place: Place<'a>, setting: Setting<'a>) -> Self {
        let rule = Rule {
            place,
            setting,
            brief: false,
        };
        Self { allowed, rule }
    }
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
