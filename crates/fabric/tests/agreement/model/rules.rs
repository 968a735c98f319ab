//! Access decisions of a registry, setting by setting.

use hvsock_address::{PartitionName, ServiceId};
use hvsock_fabric::{PartitionKind, Refusal};
use hvsock_registry::{AccessRule, Override, Principal, Registration};

use super::super::ops::BROKER_UID;
use super::{Model, ModelPartition};

/// The requester.
#[derive(Clone, Copy)]
pub(super) enum Who<'a> {
    Process(&'a Principal),
    /// A partition, and whether the process in it is root there.
    Child(&'a ModelPartition, bool),
}

/// The text of an access rule for a reader of the registry, and for others.
pub(super) struct Denial {
    full: String,
    brief: String,
}

impl Model {
    /// The partition whose registry decides between two, and which of them are its children.
    pub(super) fn registry_between(&self, p: usize, q: usize) -> (usize, Vec<&ModelPartition>) {
        let (one, other) = (&self.partitions[p], &self.partitions[q]);
        if one.parent == Some(q) {
            (q, vec![one])
        } else if other.parent == Some(p) {
            (p, vec![other])
        } else if self.grandparent(p) == Some(q) || self.grandparent(q) == Some(p) {
            match (p, q) {
                (0, _) => (0, vec![other]),
                (_, 0) => (0, vec![one]),
                _ => (0, vec![one, other]),
            }
        } else {
            (
                one.parent.expect("siblings have a parent"),
                vec![one, other],
            )
        }
    }

    pub(super) fn registered(&self, owner: usize, service: ServiceId) -> Option<&Registration> {
        let owner = &self.partitions[owner];
        if owner.kind == PartitionKind::Container {
            return None;
        }
        owner.services.iter().find(|entry| entry.id == service)
    }

    /// Whether only the host knows the verdict of a connect between two.
    pub(super) fn host_judges(&self, p: usize, q: usize) -> bool {
        self.outer.is_some() && [(Some(p), q), (Some(q), p)].contains(&(self.outer, 0))
    }

    /// The overrides for a child: its own, then the one for the virtual machine that it is in.
    fn overrides<'a>(
        entry: &'a Registration,
        name: Option<&PartitionName>,
    ) -> Vec<(&'a PartitionName, &'a Override)> {
        let Some(name) = name else {
            return vec![];
        };
        let mut wanted = vec![name.as_str().to_lowercase()];
        if let Some((vm, _)) = name.as_str().split_once('/') {
            wanted.push(vm.to_lowercase());
        }
        let mut found = vec![];
        for wanted in wanted {
            for (child, over) in &entry.vm {
                if child.as_str().to_lowercase() == wanted {
                    found.push((child, over));
                }
            }
        }
        found
    }

    /// The names whose overrides apply; `None` if there is no specific child.
    pub(super) fn names<'a>(children: &[&'a ModelPartition]) -> Vec<Option<&'a PartitionName>> {
        if children.is_empty() {
            vec![None]
        } else {
            children.iter().map(|child| Some(&child.name)).collect()
        }
    }

    /// The built-in registration that an entry inherits from.
    fn built_in(&self, owner: usize, entry: &Registration) -> Option<&Registration> {
        let mut all = self.partitions[owner].built_in.iter().rev();
        all.find(|base| base.id == entry.id)
    }

    /// The rule that only root of a child may listen there, if it holds.
    fn only_root(
        &self,
        owner: usize,
        entry: &Registration,
        name: Option<&PartitionName>,
    ) -> Option<String> {
        let mut only = self.partitions[owner].defaults.only_root_binds;
        let mut scope = "defaults: ".to_owned();
        let base = self.built_in(owner, entry);
        let base = base.and_then(|base| base.only_root_binds);
        if let Some(base) = base {
            (only, scope) = (base, "built-in: ".to_owned());
        }
        if let Some(own) = entry.only_root_binds
            && Some(own) != base
        {
            (only, scope) = (own, String::new());
        }
        // The first one wins.
        for (child, over) in Self::overrides(entry, name).into_iter().rev() {
            if let Some(its) = over.only_root_binds {
                (only, scope) = (its, format!("vm.{}.", key(child)));
            }
        }
        only.then(|| format!("{scope}only_root_binds = true"))
    }

    pub(super) fn enabled(
        &self,
        owner: usize,
        entry: &Registration,
        names: &[Option<&PartitionName>],
    ) -> Result<(), Refusal> {
        for name in names {
            let mut enabled = entry.enabled;
            let base = self.built_in(owner, entry);
            let repeats = base.is_some_and(|base| base.enabled == enabled);
            let scope = if repeats { "built-in: " } else { "" };
            let mut by = format!("{scope}enabled = {enabled}");
            for (child, over) in Self::overrides(entry, *name).into_iter().rev() {
                if let Some(its) = over.enabled {
                    enabled = its;
                    by = format!("vm.{}.enabled = {enabled}", key(child));
                }
            }
            if !enabled {
                return Err(Refusal::Disabled { by });
            }
        }
        Ok(())
    }

    pub(super) fn wildcard(
        &self,
        owner: usize,
        entry: &Registration,
        names: &[Option<&PartitionName>],
    ) -> Result<(), Refusal> {
        for name in names {
            let mut allowed = self.partitions[owner].defaults.allow_wildcard_binds;
            if let Some(base) = self.built_in(owner, entry)
                && let Some(inherited) = base.allow_wildcard_binds
            {
                allowed = inherited;
            }
            if let Some(own) = entry.allow_wildcard_binds {
                allowed = own;
            }
            for (_, over) in Self::overrides(entry, *name).into_iter().rev() {
                allowed = over.allow_wildcard_binds.unwrap_or(allowed);
            }
            if !allowed {
                return Err(Refusal::WildcardNotAllowed);
            }
        }
        Ok(())
    }

    /// Whether every override that applies allows `who` to bind (or else to connect).
    pub(super) fn access(
        &self,
        owner: usize,
        entry: &Registration,
        bind: bool,
        who: Who<'_>,
        names: &[Option<&PartitionName>],
    ) -> Result<(), Denial> {
        for name in names {
            let defaults = &self.partitions[owner].defaults;
            let mut rules: Vec<(String, &AccessRule)> = vec![];
            for (child, over) in Self::overrides(entry, *name) {
                let rule = if bind { &over.bind } else { &over.connect };
                rules.push((format!("vm.{}.", key(child)), rule));
            }
            let of = |one: &Registration| match bind {
                true => one.bind.clone(),
                false => one.connect.clone(),
            };
            let base = self.built_in(owner, entry).map(of);
            let own = of(entry);
            // An entry that repeats what it inherits is not named.
            if base.as_ref() != Some(&own) {
                rules.push((String::new(), &own));
            }
            if let Some(base) = &base {
                rules.push(("built-in: ".to_owned(), base));
            }
            let rule = if bind {
                &defaults.bind
            } else {
                &defaults.connect
            };
            rules.push(("defaults: ".to_owned(), rule));
            match who {
                Who::Process(process) => process_may(entry, bind, process, &rules)?,
                Who::Child(child, is_root) => {
                    child_may(bind, child, self.vm_of(child), &rules)?;
                    if let (true, false, Some(rule)) =
                        (bind, is_root, self.only_root(owner, entry, *name))
                    {
                        let (full, brief) = (rule.clone(), rule);
                        return Err(Denial { full, brief });
                    }
                }
            }
        }
        Ok(())
    }
}

impl Denial {
    pub(super) fn refusal(self, reads_registry: bool) -> Refusal {
        let rule = if reads_registry {
            self.full
        } else {
            self.brief
        };
        Refusal::Denied { rule }
    }
}

/// A partition's name as a part of a TOML key.
fn key(name: &PartitionName) -> String {
    let text = name.as_str();
    if text.contains('.') || text.contains('/') {
        format!("{text:?}")
    } else {
        text.to_owned()
    }
}

fn process_may(
    entry: &Registration,
    bind: bool,
    process: &Principal,
    rules: &[(String, &AccessRule)],
) -> Result<(), Denial> {
    if process.uid == 0 || process.uid == BROKER_UID {
        return Ok(());
    }
    let is_user = |text: &String| {
        let is_number = text.chars().all(|c| c.is_ascii_digit());
        if is_number {
            *text == process.uid.to_string()
        } else {
            Some(text) == process.user.as_ref()
        }
    };
    let action = if bind { "bind" } else { "connect" };
    for (scope, rule) in rules {
        if rule.users.is_none() && rule.groups.is_none() {
            continue;
        }
        let mut full = vec![];
        let mut brief = vec![];
        if let Some(users) = &rule.users {
            if users.iter().any(|text| text == "*" || is_user(text)) {
                return Ok(());
            }
            full.push(format!("{scope}{action}.users = {users:?}"));
            brief.push(format!("{scope}{action}.users"));
        }
        if let Some(groups) = &rule.groups {
            for text in groups {
                if text == "*" {
                    return Ok(());
                }
                for (id, name) in &process.groups {
                    if *text == id.to_string() || Some(text) == name.as_ref() {
                        return Ok(());
                    }
                }
            }
            full.push(format!("{scope}{action}.groups = {groups:?}"));
            brief.push(format!("{scope}{action}.groups"));
        }
        let (full, brief) = (full.join(", "), brief.join(", "));
        return Err(Denial { full, brief });
    }
    if !bind || entry.owner.as_ref().is_some_and(is_user) {
        return Ok(());
    }
    Err(Denial {
        full: match &entry.owner {
            Some(owner) => format!("defaults: bind allows the owner {owner}"),
            None => "defaults: bind allows the owner, but no owner is recorded".to_owned(),
        },
        brief: "defaults: bind".to_owned(),
    })
}

fn child_may(
    bind: bool,
    child: &ModelPartition,
    vm: Option<&ModelPartition>,
    rules: &[(String, &AccessRule)],
) -> Result<(), Denial> {
    let action = if bind { "bind" } else { "connect" };
    for (scope, rule) in rules {
        let Some(partitions) = &rule.partitions else {
            continue;
        };
        for text in partitions {
            for named in [Some(child), vm].into_iter().flatten() {
                let by_group = named
                    .groups
                    .iter()
                    .any(|group| *text == format!("@{group}"));
                let by_name = text.to_lowercase() == named.name.as_str().to_lowercase();
                let by_id = text.to_lowercase() == named.id.to_string();
                if text == "*" || by_group || by_name || by_id {
                    return Ok(());
                }
            }
        }
        return Err(Denial {
            full: format!("{scope}{action}.partitions = {partitions:?}"),
            brief: format!("{scope}{action}.partitions"),
        });
    }
    Ok(())
}
