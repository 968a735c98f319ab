//! Access rules: who may connect to a service and listen for it.

use hvsock_address::{PartitionName, PartitionRef, ServiceId, ServiceRef};
use hvsock_registry::{AccessEdit, Action, Decision, Edit, Policy, Principal, Requester, Subject};
use hvsock_sys::accounts;

use super::{ControlError, Handle};
use crate::core::Core;
use crate::model::{
    AccessChange, AccessChanged, AccessEntry, AccessInForce, NewService, Service, ServiceRules,
};

/// An entry of a request, with what its decision depends on.
#[derive(Clone, Debug)]
struct Entry {
    list: &'static str,
    subject: Subject,
    requester: Whom,
}

/// The requester that an entry stands for.
#[derive(Clone, Debug)]
enum Whom {
    /// A user with its groups, or a process with one group.
    Process(Principal),
    /// A child partition.
    Child(PartitionRef),
    /// Everyone, a sibling group, or an entry of something that does not exist any more.
    Listed,
    /// The users of child partitions that are not root there.
    AnyPartitionUser,
}

const USERS: &str = "users";
const GROUPS: &str = "groups";
const PARTITIONS: &str = "partitions";
const ONLY_ROOT: &str = "only_root_binds";

impl Handle {
    /// Allows or denies users, groups and partitions to connect to a service, or to listen for it.
    /// Established connections stay.
    ///
    /// # Errors
    ///
    /// [`ControlError::NotFound`] for an unknown service or partition, [`ControlError::Invalid`] for an
    /// unknown user or group, for a lease, and if a rule that allows everyone would have to exclude an
    /// entry.
    pub fn change_access(
        &self,
        service: &ServiceRef,
        change: &AccessChange,
    ) -> Result<AccessChanged, ControlError> {
        let entries = self.entries(change)?;
        let mut store = self.services.lock();
        let (found, child) = self.find_to_edit(service, change.vm.as_ref())?;
        let of = |list| {
            let entries = entries.iter().filter(move |entry| entry.list == list);
            entries.map(|entry| entry.subject.clone()).collect()
        };
        let action = if change.bind {
            Action::Bind
        } else {
            Action::Connect
        };
        let edit = AccessEdit {
            action,
            child: child.clone(),
            everywhere: change.everywhere,
            users: of(USERS),
            groups: of(GROUPS),
            partitions: of(PARTITIONS),
            any_partition_user: change.any_partition_user,
        };
        let id = found.id;
        let rules = move |core: &Core, child: &Option<_>| {
            let policy = core.policy(id)?;
            let policy = child
                .as_ref()
                .map_or(policy, |child| policy.for_child(child));
            Some(ServiceRules::from(policy.effective()))
        };
        let (scope, asked) = (child.clone(), entries.clone());
        let before = self.call(move |core| {
            let exceptions = asked.iter();
            let exceptions = exceptions.map(|entry| core.exceptions(id, action, entry));
            Some((rules(core, &scope)?, exceptions.collect::<Vec<_>>()))
        })?;
        let (before, exceptions) = before.ok_or_else(|| ControlError::unknown_service(service))?;
        for entry in &entries {
            unknown_unless_listed(entry, change, &before)?;
        }
        let edit = match change.allow {
            true => Edit::Allow(edit),
            false => Edit::Deny(edit),
        };
        let service_now = self.edit(&mut store, &found, &edit)?;
        let is_for_all = child.is_none();
        let reported = self.call(move |core| {
            let general = core.policy(id)?;
            let policy = child.map_or(general, |child| general.for_child(&child));
            let reports = entries.iter().zip(exceptions).map(|(entry, exceptions)| {
                let now = |child| core.decision(&general.for_child(child), action, entry).0;
                let own = exceptions.iter().filter(|_| is_for_all);
                let changed_for = own.filter(|(child, before)| now(child) != *before);
                let before = is_listed(entry, &before, action);
                let after = is_listed(entry, &policy.effective().into(), action);
                let (allowed, rule) = core.decision(&policy, action, entry);
                let overrides = general.for_each_override().filter(|_| is_for_all);
                let others = overrides.filter(|of| core.decision(of, action, entry).0 != allowed);
                let exceptions = others.filter_map(|of| Some(of.child()?.to_string()));
                AccessEntry {
                    list: entry.list.to_owned(),
                    entry: entry.subject.entry.clone(),
                    changed: before != after,
                    changed_for: changed_for.map(|(child, _)| child.to_string()).collect(),
                    allowed,
                    rule,
                    exceptions: exceptions.collect(),
                }
            });
            Some(reports.collect())
        })?;
        Ok(AccessChanged {
            service: service_now,
            entries: reported.ok_or_else(|| ControlError::unknown_service(service))?,
        })
    }

    /// Removes the access rules of a service, so that the built-in rules or the defaults apply again:
    /// of one child partition, or of the service and all its child partitions. Whether it is enabled
    /// does not change.
    ///
    /// # Errors
    ///
    /// [`ControlError::NotFound`] for an unknown service or partition, [`ControlError::Invalid`] for a
    /// lease.
    pub fn reset_access(
        &self,
        service: &ServiceRef,
        partition: Option<&PartitionRef>,
    ) -> Result<Service, ControlError> {
        let mut store = self.services.lock();
        let (found, child) = self.find_to_edit(service, partition)?;
        self.edit(&mut store, &found, &Edit::Reset { child })
    }

    /// The entries of a request, in its order. Reads the account files.
    fn entries(&self, change: &AccessChange) -> Result<Vec<Entry>, ControlError> {
        let invalid = |what: &str| Err(ControlError::Invalid(what.to_owned()));
        if change.everywhere && change.vm.is_some() {
            return invalid("`everywhere` is for all child partitions, and `vm` for one");
        }
        if change.any_partition_user && !change.bind {
            return invalid("`any_partition_user` is for listening: it needs `bind`");
        }
        let mut entries: Vec<Entry> = change.users.iter().map(|name| user(name)).collect();
        entries.extend(change.groups.iter().map(|name| group(name)));
        for text in &change.partitions {
            entries.push(self.child_entry(text)?);
        }
        if change.any_partition_user {
            entries.push(Entry {
                list: ONLY_ROOT,
                subject: Subject::new("any user of a partition"),
                requester: Whom::AnyPartitionUser,
            });
        }
        match entries.is_empty() {
            true => invalid("there is no user, group or partition to allow or deny"),
            false => Ok(entries),
        }
    }

    fn child_entry(&self, text: &str) -> Result<Entry, ControlError> {
        let entry = |subject, requester| Entry {
            list: PARTITIONS,
            subject,
            requester,
        };
        if text == "*" || text.starts_with('@') && text.len() > 1 {
            return Ok(entry(Subject::new(text), Whom::Listed));
        }
        let wanted: PartitionRef = text
            .parse()
            .map_err(|error| ControlError::Invalid(format!("`{text}`: {error}")))?;
        let found = wanted.clone();
        let known = self.call(move |core| {
            let key = core.find(&found).filter(|key| *key != core.fabric.root());
            let partition = key.and_then(|key| core.fabric.partition(key));
            match (partition, &found) {
                (Some(partition), _) => {
                    let (name, id) = (partition.name(), partition.vm_id());
                    Some(vec![name.to_string(), id.to_string()])
                }
                // It may be there later, under the same name.
                (None, PartitionRef::Name(name)) if core.may_announce(name) => {
                    Some(vec![name.to_string()])
                }
                (None, _) => None,
            }
        })?;
        let subject = |aliases| Subject {
            aliases,
            ..Subject::new(text)
        };
        let aliases = known.unwrap_or_default();
        Ok(entry(subject(aliases), Whom::Child(wanted)))
    }
}

/// An entry for a user by name or number.
fn user(name: &str) -> Entry {
    let entry = |aliases, requester| Entry {
        list: USERS,
        subject: numbered(name, aliases),
        requester,
    };
    let Some(uid) = accounts::uid(name).filter(|_| name != "*") else {
        return entry(vec![], Whom::Listed);
    };
    let mut accounts = accounts::Accounts::default();
    let user = accounts.user(uid).map(|user| user.to_string());
    let groups = accounts::all_groups_of(uid).into_iter().map(|gid| {
        let name = accounts.group(gid);
        (gid, name.map(|name| name.to_string()))
    });
    let principal = Principal {
        uid,
        groups: groups.collect(),
        user: user.clone(),
        partition_uid: None,
    };
    let number = [uid.to_string()].into_iter();
    entry(number.chain(user).collect(), Whom::Process(principal))
}

/// A user or group, whose number is the first of its `aliases`. A number is stored without leading
/// zeros or a sign.
fn numbered(name: &str, aliases: Vec<String>) -> Subject {
    let number = name.parse::<u32>();
    Subject {
        entry: number.map_or_else(|_| name.to_owned(), |number| number.to_string()),
        number: aliases.first().and_then(|first| first.parse().ok()),
        aliases,
    }
}

/// An entry for a group by name or number.
fn group(name: &str) -> Entry {
    let entry = |aliases, requester| Entry {
        list: GROUPS,
        subject: numbered(name, aliases),
        requester,
    };
    let Some(gid) = accounts::gid(name).filter(|_| name != "*") else {
        return entry(vec![], Whom::Listed);
    };
    let group = accounts::Accounts::default().group(gid);
    let group = group.map(|group| group.to_string());
    let principal = Principal {
        uid: u32::MAX,
        groups: vec![(gid, group.clone())],
        user: None,
        partition_uid: None,
    };
    let number = [gid.to_string()].into_iter();
    entry(number.chain(group).collect(), Whom::Process(principal))
}

/// Fails for a user, group or partition that does not exist, unless its entry is to be removed.
fn unknown_unless_listed(
    entry: &Entry,
    change: &AccessChange,
    before: &ServiceRules,
) -> Result<(), ControlError> {
    let text = &entry.subject.entry;
    let is_group = |text: &str| text == "*" || text.starts_with('@');
    let exists = match (&entry.requester, entry.list) {
        (Whom::Child(PartitionRef::Name(_)), _) => !entry.subject.aliases.is_empty(),
        (Whom::Listed, list @ (USERS | GROUPS)) => is_known_account(list, text),
        (Whom::Listed, _) => is_group(text),
        _ => true,
    };
    let action = if change.bind {
        Action::Bind
    } else {
        Action::Connect
    };
    let removable = !change.allow && has_entry(list_of(entry.list, access(before, action)), entry);
    if exists || removable {
        return Ok(());
    }
    Err(match entry.list {
        list @ (USERS | GROUPS) => unknown_account(list, text),
        _ => match &entry.requester {
            Whom::Child(partition) => ControlError::unknown_partition(partition),
            _ => ControlError::Invalid(format!("\"{text}\" is no partition")),
        },
    })
}

/// Fails for a user or group in the rules of a new service that does not exist: no process would ever
/// match it.
pub(super) fn check_accounts(new: &NewService) -> Result<(), ControlError> {
    let rules = |bind, connect| [bind, connect];
    let own = rules(&new.bind, &new.connect).into_iter();
    let of_children = new.vm.values();
    let of_children = of_children.flat_map(|over| rules(&over.bind, &over.connect));
    for rule in own.chain(of_children) {
        for (list, entries) in [(USERS, &rule.users), (GROUPS, &rule.groups)] {
            let mut entries = entries.iter().flatten();
            if let Some(unknown) = entries.find(|entry| !is_known_account(list, entry)) {
                return Err(unknown_account(list, unknown));
            }
        }
    }
    Ok(())
}

/// Whether an entry of a list of users or groups is `*`, a number or a name of this machine.
fn is_known_account(list: &str, entry: &str) -> bool {
    let number = || match list {
        USERS => accounts::uid(entry),
        _ => accounts::gid(entry),
    };
    entry == "*" || number().is_some()
}

fn unknown_account(list: &str, entry: &str) -> ControlError {
    let (file, kind, option) = match list {
        USERS => ("passwd", "user", "-u"),
        _ => ("group", "group", "-g"),
    };
    ControlError::Invalid(format!(
        "/etc/{file} has no {kind} \"{entry}\"; a {kind} from elsewhere is named by number (`id {option}`)"
    ))
}

fn access(rules: &ServiceRules, action: Action) -> &AccessInForce {
    match action {
        Action::Bind => &rules.bind,
        Action::Connect => &rules.connect,
    }
}

fn list_of<'a>(list: &str, access: &'a AccessInForce) -> &'a [String] {
    match list {
        USERS => &access.users,
        GROUPS => &access.groups,
        _ => &access.partitions,
    }
}

/// Whether a list has this entry, however it is spelled.
fn has_entry(list: &[String], entry: &Entry) -> bool {
    let subject = &entry.subject;
    list.iter().any(|other| {
        let same = |text: &String| text.eq_ignore_ascii_case(other) && entry.list == PARTITIONS;
        subject.is(other) || same(&subject.entry) || subject.aliases.iter().any(same)
    })
}

/// Whether the lists in force name this entry or everyone.
fn is_listed(entry: &Entry, rules: &ServiceRules, action: Action) -> bool {
    if entry.list == ONLY_ROOT {
        return !rules.only_root_binds.value;
    }
    let list = list_of(entry.list, access(rules, action));
    list.iter().any(|other| other == "*") || has_entry(list, entry)
}

impl Core {
    /// The children whose own rules decide about an entry otherwise than the registration, and how.
    fn exceptions(
        &self,
        id: ServiceId,
        action: Action,
        entry: &Entry,
    ) -> Vec<(PartitionName, bool)> {
        let Some(policy) = self.policy(id) else {
            return Vec::new();
        };
        let (of_all, _) = self.decision(&policy, action, entry);
        let own = policy.for_each_override().filter_map(|own| {
            let (allowed, _) = self.decision(&own, action, entry);
            Some((own.child()?.clone(), allowed)).filter(|_| allowed != of_all)
        });
        own.collect()
    }

    /// Whether a policy allows what an entry stands for, and the rule that decides.
    fn decision(&self, policy: &Policy<'_>, action: Action, entry: &Entry) -> (bool, String) {
        let decision = match &entry.requester {
            Whom::Process(principal) => match self.fabric.operators().check(principal) {
                Ok(role) => Some(Decision::always(role.name())),
                Err(_) => Some(policy.access(action, &Requester::Process(principal))),
            },
            Whom::Child(partition) => {
                let key = self.find(partition);
                let partition = key.and_then(|key| self.fabric.partition(key));
                partition.map(|partition| {
                    policy.access(action, &self.fabric.as_requester(partition, true))
                })
            }
            Whom::AnyPartitionUser => Some(policy.any_user_binds()),
            Whom::Listed => None,
        };
        match decision {
            Some(decision) => (decision.allowed, decision.rule.to_string()),
            None => {
                let listed = is_listed(entry, &policy.effective().into(), action);
                (listed, format!("{action}.{}", entry.list))
            }
        }
    }
}
