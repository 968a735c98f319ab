//! Access decisions from one registration, each with the rule that made it.
//!
//! A [`Policy`] combines a registration with the override for one child and with the defaults. It
//! borrows everything and allocates nothing (but to look up a container in a virtual machine), so a
//! broker can evaluate it for every connection. A [`Rule`] is formatted as text only when it is
//! displayed.

use hvsock_address::{PartitionName, ServiceId};

use super::requester::{PartitionIdentity, Principal, Requester};
use super::rule::{Action, Rule, RuleScope, RuleSource, Setting};
use super::{AccessRule, Defaults, EffectiveAccess, EffectiveFlag, EffectiveRules};
use super::{EffectiveTransport, Override, Registration, Registry, TransportSetting};

/// One registration as it applies to one child, or to any child without an override.
#[derive(Clone, Copy, Debug)]
pub struct Policy<'a> {
    registration: &'a Registration,
    /// The built-in registration of the service, from which `registration` inherits.
    built_in: Option<&'a Registration>,
    defaults: &'a Defaults,
    /// The overrides, the most specific first: that for the child itself, and that for the virtual
    /// machine that it is in.
    over: [Option<(&'a PartitionName, &'a Override)>; 2],
}

/// The result of one access check, with the rule that decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision<'a> {
    /// Whether access is allowed.
    pub allowed: bool,
    /// The rule that decided.
    pub rule: Rule<'a>,
}

impl Registry {
    /// The policy of a registered service, without any child's override. `None` if the service is
    /// not registered.
    pub fn policy(&self, service: ServiceId) -> Option<Policy<'_>> {
        Some(Policy::new(
            self.get(service)?,
            self.built_in(service),
            self.defaults(),
        ))
    }
}

impl<'a> Policy<'a> {
    /// The policy of a registration that inherits from `built_in` and then from `defaults`.
    pub fn new(
        registration: &'a Registration,
        built_in: Option<&'a Registration>,
        defaults: &'a Defaults,
    ) -> Self {
        Self {
            registration,
            built_in,
            defaults,
            over: [None, None],
        }
    }

    /// The registration.
    pub fn registration(&self) -> &'a Registration {
        self.registration
    }

    /// The child whose override it includes, the most specific one.
    pub fn child(&self) -> Option<&'a PartitionName> {
        self.over
            .into_iter()
            .flatten()
            .map(|(child, _)| child)
            .next()
    }

    /// The same policy with the override for this child, if there is one. To a container in a virtual
    /// machine (a [nested](PartitionName::is_nested) name) the override for that virtual machine applies
    /// as well, where its own leaves something out.
    pub fn for_child(self, child: &PartitionName) -> Policy<'a> {
        let overrides = &self.registration.vm;
        // Not `vm()` for every request: it allocates.
        let vm = (!overrides.is_empty() && child.is_nested()).then(|| child.vm());
        let of_vm = vm.flatten().and_then(|vm| overrides.get_key_value(&vm));
        Policy {
            over: [overrides.get_key_value(child), of_vm],
            ..self
        }
    }

    /// The overrides that apply, the most specific first.
    fn overrides(&self) -> impl Iterator<Item = (RuleScope<'a>, &'a Override)> {
        let [own, of_vm] = self.over;
        let own = own.map(|(name, over)| (RuleScope::Vm(name), over));
        let of_vm = of_vm.map(|(name, over)| (RuleScope::VmOfContainer(name), over));
        own.into_iter().chain(of_vm)
    }

    /// The same policy once for each child that has an override.
    pub fn for_each_override(self) -> impl Iterator<Item = Policy<'a>> {
        let children = self.registration.vm.keys();
        children.map(move |child| self.for_child(child))
    }

    /// Whether the service is enabled.
    pub fn enabled(&self) -> Decision<'a> {
        let mut overrides = self.overrides();
        let over = overrides.find_map(|(scope, over)| Some((scope, over.enabled?)));
        let enabled = self.registration.enabled;
        let inherited = self.built_in.is_some_and(|base| base.enabled == enabled);
        let scope = match inherited {
            true => RuleScope::BuiltInService,
            false => RuleScope::Registration,
        };
        let (scope, enabled) = over.unwrap_or((scope, enabled));
        Decision::new(enabled, scope, Setting::Enabled(enabled))
    }

    /// Whether a listener may be bound to the wildcard.
    pub fn wildcard(&self) -> Decision<'a> {
        let (scope, allowed) = self.flag(
            |over| over.allow_wildcard_binds,
            |one| one.allow_wildcard_binds,
            self.defaults.allow_wildcard_binds,
        );
        Decision::new(allowed, scope, Setting::Wildcard(allowed))
    }

    /// Whether in a child any user may listen, and not root only.
    pub fn any_user_binds(&self) -> Decision<'a> {
        let (scope, only) = self.flag(
            |over| over.only_root_binds,
            |one| one.only_root_binds,
            self.defaults.only_root_binds,
        );
        Decision::new(!only, scope, Setting::OnlyRoot(only))
    }

    /// How the bytes of connections travel, and the rule that says so.
    pub fn transport(&self) -> (TransportSetting, Rule<'a>) {
        let (scope, transport) = self.flag(
            |over| over.transport,
            |one| one.transport,
            self.defaults.transport,
        );
        let rule = Decision::new(true, scope, Setting::Transport(transport)).rule;
        (transport, rule)
    }

    /// The most specific value of a setting, and its level.
    fn flag<T: Copy + PartialEq>(
        &self,
        of_override: impl Fn(&Override) -> Option<T>,
        of_registration: impl Fn(&Registration) -> Option<T>,
        default: T,
    ) -> (RuleScope<'a>, T) {
        let mut overrides = self.overrides();
        let over = overrides.find_map(|(scope, over)| Some((scope, of_override(over)?)));
        let built_in = self.built_in.and_then(&of_registration);
        let own = of_registration(self.registration).filter(|own| Some(*own) != built_in);
        over.or(own.map(|value| (RuleScope::Registration, value)))
            .or(built_in.map(|value| (RuleScope::BuiltInService, value)))
            .unwrap_or((RuleScope::Defaults, default))
    }

    /// Whether `requester` may perform `action`.
    pub fn access(&self, action: Action, requester: &Requester<'_>) -> Decision<'a> {
        match requester {
            Requester::Process(principal) => self.access_of_process(action, principal),
            Requester::Partition { own, vm, is_root } => {
                let as_a_whole = self.access_of_partition(action, own, vm.as_ref());
                if action == Action::Bind && as_a_whole.allowed && !is_root {
                    let any_user = self.any_user_binds();
                    if !any_user.allowed {
                        return any_user;
                    }
                }
                as_a_whole
            }
        }
    }

    fn access_of_partition(
        &self,
        action: Action,
        own: &PartitionIdentity<'_>,
        vm: Option<&PartitionIdentity<'_>>,
    ) -> Decision<'a> {
        let is_named = |entry: &String| own.is(entry) || vm.is_some_and(|vm| vm.is(entry));
        for (scope, rule) in self.rules(action) {
            if let Some(list) = &rule.partitions {
                let allowed = list.iter().any(is_named);
                let lists = [Some(("partitions", list.as_slice())), None];
                return Decision::new(allowed, scope, Setting::Lists(action, lists));
            }
        }
        Decision::new(true, RuleScope::BuiltIn, Setting::EveryChild(action))
    }

    /// All rules in force, each with the level that defines it.
    pub fn effective(&self) -> EffectiveRules<'a> {
        let (enabled, wildcard, any_user) =
            (self.enabled(), self.wildcard(), self.any_user_binds());
        let (transport, rule) = self.transport();
        let unset = Defaults::default();
        // A default that is as it is without a file comes from no file.
        let flag = |value, rule: Rule<'a>, unset| EffectiveFlag {
            value,
            from: match rule.source() {
                RuleSource::Defaults if value == unset => RuleSource::None,
                source => source,
            },
        };
        EffectiveRules {
            enabled: flag(enabled.allowed, enabled.rule, true),
            connect: self.effective_access(Action::Connect),
            bind: self.effective_access(Action::Bind),
            allow_wildcard_binds: flag(wildcard.allowed, wildcard.rule, unset.allow_wildcard_binds),
            only_root_binds: flag(!any_user.allowed, any_user.rule, unset.only_root_binds),
            transport: EffectiveTransport {
                value: transport,
                from: match rule.source() {
                    RuleSource::Defaults if transport == unset.transport => RuleSource::None,
                    source => source,
                },
            },
        }
    }

    fn effective_access(&self, action: Action) -> EffectiveAccess<'a> {
        let everyone = || vec!["*".to_owned()];
        let mut processes = self.rules(action).filter(|(_, rule)| rule.has_processes());
        let mut children = self.rules(action).filter_map(|(scope, rule)| {
            let list = rule.partitions.as_ref()?;
            Some((scope, list.clone()))
        });
        let (scope, users, groups) = match (processes.next(), action) {
            (Some((scope, rule)), _) => {
                let list = |list: &Option<Vec<String>>| list.clone().unwrap_or_default();
                (scope, list(&rule.users), list(&rule.groups))
            }
            (None, Action::Connect) => (RuleScope::BuiltIn, everyone(), Vec::new()),
            (None, Action::Bind) => {
                let owner = self.registration.owner.clone();
                let owner = owner.filter(|owner| owner != "*");
                (RuleScope::BuiltIn, owner.into_iter().collect(), Vec::new())
            }
        };
        let (partitions_scope, partitions) =
            children.next().unwrap_or((RuleScope::BuiltIn, everyone()));
        EffectiveAccess {
            users,
            groups,
            processes_from: scope.source(),
            partitions,
            partitions_from: partitions_scope.source(),
        }
    }

    fn access_of_process(&self, action: Action, principal: &Principal) -> Decision<'a> {
        for (scope, rule) in self.rules(action) {
            let users = rule.users.as_ref().map(|list| ("users", list.as_slice()));
            let groups = rule.groups.as_ref().map(|list| ("groups", list.as_slice()));
            if users.is_none() && groups.is_none() {
                continue;
            }
            let by_user = users.filter(|(_, list)| list.iter().any(|e| principal.is_user(e)));
            let by_group = groups.filter(|(_, list)| list.iter().any(|e| principal.is_in_group(e)));
            return match by_user.or(by_group) {
                Some(list) => {
                    Decision::new(true, scope, Setting::Lists(action, [Some(list), None]))
                }
                None => Decision::new(false, scope, Setting::Lists(action, [users, groups])),
            };
        }
        match action {
            Action::Connect => Decision::new(true, RuleScope::BuiltIn, Setting::Everyone(action)),
            Action::Bind => {
                let owner = self.registration.owner.as_deref();
                let allowed = owner.is_some_and(|owner| owner != "*" && principal.is_user(owner));
                Decision::new(allowed, RuleScope::BuiltIn, Setting::Owner(owner))
            }
        }
    }

    /// The access rules for an action, the most specific first.
    fn rules(&self, action: Action) -> impl Iterator<Item = (RuleScope<'a>, &'a AccessRule)> {
        let pick = move |bind: &'a AccessRule, connect: &'a AccessRule| match action {
            Action::Bind => bind,
            Action::Connect => connect,
        };
        let (registration, defaults) = (self.registration, self.defaults);
        let overrides = self.overrides();
        let own = pick(&registration.bind, &registration.connect);
        let base = self
            .built_in
            .map(|built_in| pick(&built_in.bind, &built_in.connect));
        // What a registration repeats of its built-in one counts as that one's.
        let repeats = base.is_some_and(|base| own == base);
        overrides
            .map(move |(scope, over)| (scope, pick(&over.bind, &over.connect)))
            .chain((!repeats).then_some((RuleScope::Registration, own)))
            .chain(base.map(|base| (RuleScope::BuiltInService, base)))
            .chain([(RuleScope::Defaults, pick(&defaults.bind, &defaults.connect))])
    }
}

impl<'a> Decision<'a> {
    /// The decision that no rule of a registry restricts `who`: `root is always allowed`. Who that is,
    /// the owner of the registry decides.
    pub fn always(who: &'static str) -> Self {
        Self::new(true, RuleScope::BuiltIn, Setting::Always(who))
    }

    fn new(allowed: bool, scope: RuleScope<'a>, setting: Setting<'a>) -> Self {
        let rule = Rule {
            scope,
            setting,
            brief: false,
        };
        Self { allowed, rule }
    }
}

#[cfg(test)]
mod tests {
    use hvsock_address::{ElementName, VmId};

    use super::*;

    fn principal(uid: u32, user: &str, groups: &[(u32, &str)]) -> Principal {
        Principal {
            uid,
            user: Some(user.to_owned()),
            groups: groups
                .iter()
                .map(|(id, name)| (*id, Some((*name).to_owned())))
                .collect(),
            partition_uid: Some(uid),
        }
    }

    fn list(entries: &[&str]) -> Option<Vec<String>> {
        Some(entries.iter().map(|entry| (*entry).to_owned()).collect())
    }

    fn name(text: &str) -> PartitionName {
        PartitionName::new(text).unwrap()
    }

    fn a_child<'a>(
        name: &'a PartitionName,
        id: VmId,
        groups: &'a [String],
        is_root: bool,
    ) -> Requester<'a> {
        let own = PartitionIdentity {
            name,
            id,
            groups,
            is_parent: false,
        };
        let vm = None;
        Requester::Partition { own, vm, is_root }
    }

    /// A registry with one service, changed by `change`.
    fn registry(change: impl FnOnce(&mut Registration, &mut Defaults)) -> Registry {
        let element = ElementName::new("Demo").unwrap();
        let mut registration = Registration::new(ServiceId::from_port(1), element);
        registration.owner = Some("alice".to_owned());
        let mut defaults = Defaults::default();
        change(&mut registration, &mut defaults);
        let mut registry = Registry::new();
        registry.set_defaults(defaults);
        registry.insert(registration).unwrap();
        registry
    }

    fn policy(registry: &Registry) -> Policy<'_> {
        registry.policy(ServiceId::from_port(1)).unwrap()
    }

    #[track_caller]
    fn check(decision: Decision<'_>, allowed: bool, rule: &str) {
        assert_eq!(
            (decision.allowed, decision.rule.to_string().as_str()),
            (allowed, rule)
        );
    }

    #[test]
    fn without_rules_the_owner_may_bind_and_everyone_may_connect() {
        let registry = registry(|_, _| {});
        let policy = policy(&registry);
        let (alice, bob) = (principal(1000, "alice", &[]), principal(1001, "bob", &[]));
        let web_name = name("web");
        let web = a_child(&web_name, VmId::random(), &[], false);
        for (action, requester, allowed, rule) in [
            (
                Action::Bind,
                Requester::Process(&alice),
                true,
                "defaults: bind allows the owner alice",
            ),
            (
                Action::Bind,
                Requester::Process(&bob),
                false,
                "defaults: bind allows the owner alice",
            ),
            (Action::Bind, web, true, "defaults: bind allows every child"),
            (
                Action::Connect,
                Requester::Process(&bob),
                true,
                "defaults: connect allows everyone",
            ),
            (
                Action::Connect,
                web,
                true,
                "defaults: connect allows every child",
            ),
        ] {
            check(policy.access(action, &requester), allowed, rule);
        }
        check(policy.enabled(), true, "enabled = true");
        check(
            policy.wildcard(),
            true,
            "defaults: allow_wildcard_binds = true",
        );
    }

    #[test]
    fn either_list_allows_a_process_and_an_empty_list_denies() {
        let registry = registry(|entry, defaults| {
            entry.connect.users = list(&["bob", "1002"]);
            entry.connect.groups = list(&["staff"]);
            entry.bind.groups = list(&[]);
            defaults.bind.users = list(&["*"]);
        });
        let policy = policy(&registry);
        let ask = |action, who: Principal| {
            let decision = policy.access(action, &Requester::Process(&who));
            (decision.allowed, decision.rule.to_string())
        };
        let users = "connect.users = [\"bob\", \"1002\"]";
        let groups = "connect.groups = [\"staff\"]";
        let both = format!("{users}, {groups}");
        for (who, allowed, rule) in [
            (principal(1001, "bob", &[]), true, users),
            (principal(1002, "carol", &[]), true, users),
            (principal(1003, "dave", &[(50, "staff")]), true, groups),
            (
                principal(1004, "erin", &[(51, "guests")]),
                false,
                both.as_str(),
            ),
            // Digits are an id: a numeric user name does not match.
            (principal(1005, "1002", &[]), false, both.as_str()),
        ] {
            assert_eq!(ask(Action::Connect, who), (allowed, rule.to_owned()));
        }
        let (allowed, rule) = ask(Action::Bind, principal(1001, "bob", &[(50, "staff")]));
        assert_eq!((allowed, rule.as_str()), (false, "bind.groups = []"));
    }

    #[test]
    fn an_entry_matches_a_child_by_name_id_group_or_star() {
        let id = VmId::random();
        let groups = ["blue".to_owned()];
        for (entry, allowed) in [
            ("web", true),
            ("WEB", true),
            ("db", false),
            ("@blue", true),
            ("@red", false),
            ("blue", false),
            ("*", true),
            (id.to_string().as_str(), true),
            (VmId::random().to_string().as_str(), false),
        ] {
            let registry = registry(|service, _| service.connect.partitions = list(&[entry]));
            let web = name("web");
            let requester = a_child(&web, id, &groups, false);
            let decision = policy(&registry).access(Action::Connect, &requester);
            check(
                decision,
                allowed,
                &format!("connect.partitions = [\"{entry}\"]"),
            );
        }
    }

    #[test]
    fn where_only_root_binds_another_user_of_a_child_may_connect_and_not_listen() {
        let registry = registry(|entry, _| {
            entry.only_root_binds = Some(true);
            let over = Override {
                only_root_binds: Some(false),
                ..Override::default()
            };
            entry.vm.insert(name("db"), over);
        });
        let general = policy(&registry);
        for (child, is_root, action, allowed, rule) in [
            (
                "web",
                true,
                Action::Bind,
                true,
                "defaults: bind allows every child",
            ),
            ("web", false, Action::Bind, false, "only_root_binds = true"),
            (
                "web",
                false,
                Action::Connect,
                true,
                "defaults: connect allows every child",
            ),
            (
                "db",
                false,
                Action::Bind,
                true,
                "defaults: bind allows every child",
            ),
        ] {
            let child = name(child);
            let requester = a_child(&child, VmId::random(), &[], is_root);
            let decision = general.for_child(&child).access(action, &requester);
            check(decision, allowed, rule);
        }
    }

    #[test]
    fn what_a_registration_leaves_out_is_inherited_from_the_built_in_one() {
        let mut registry = registry(|entry, defaults| {
            defaults.connect.users = list(&["*"]);
            entry.bind.users = list(&["bob"]);
        });
        let element = ElementName::new("Demo").unwrap();
        let mut built_in = Registration::new(ServiceId::from_port(1), element);
        built_in.connect.users = list(&[]);
        built_in.bind.partitions = list(&[]);
        built_in.only_root_binds = Some(true);
        registry.set_built_in([built_in]);
        let policy = policy(&registry);
        let bob = principal(1001, "bob", &[]);
        let process = Requester::Process(&bob);
        let connect = policy.access(Action::Connect, &process);
        check(connect, false, "built-in: connect.users = []");
        let bind = policy.access(Action::Bind, &process);
        check(bind, true, "bind.users = [\"bob\"]");
        let rules = policy.effective();
        assert_eq!(rules.connect.processes_from, RuleSource::BuiltIn);
        assert_eq!(rules.connect.partitions_from, RuleSource::None);
        assert_eq!(rules.bind.processes_from, RuleSource::Registration);
        assert_eq!(rules.bind.partitions_from, RuleSource::BuiltIn);
        assert_eq!(
            (rules.only_root_binds.value, rules.only_root_binds.from),
            (true, RuleSource::BuiltIn)
        );
        let inherited = registry.resolved(policy.registration());
        assert_eq!(inherited.connect.users, list(&[]));
    }

    #[test]
    fn the_most_specific_rule_wins_for_each_setting_separately() {
        let registry = registry(|entry, defaults| {
            defaults.allow_wildcard_binds = false;
            defaults.connect.users = list(&["carol"]);
            entry.connect.partitions = list(&["*"]);
            entry.enabled = false;
            let over = Override {
                enabled: Some(true),
                connect: AccessRule {
                    partitions: list(&[]),
                    ..AccessRule::default()
                },
                ..Override::default()
            };
            entry.vm.insert(name("web.1"), over);
        });
        let general = policy(&registry);
        let (web, db) = (
            general.for_child(&name("Web.1")),
            general.for_child(&name("db")),
        );
        check(general.enabled(), false, "enabled = false");
        check(db.enabled(), false, "enabled = false");
        check(web.enabled(), true, "vm.\"web.1\".enabled = true");
        check(
            web.wildcard(),
            false,
            "defaults: allow_wildcard_binds = false",
        );
        let web_name = name("web.1");
        let child = a_child(&web_name, VmId::random(), &[], false);
        let decision = web.access(Action::Connect, &child);
        check(decision, false, "vm.\"web.1\".connect.partitions = []");
        check(
            db.access(Action::Connect, &child),
            true,
            "connect.partitions = [\"*\"]",
        );
        // Neither the override nor the registration has a list of users.
        let bob = principal(1001, "bob", &[]);
        let decision = web.access(Action::Connect, &Requester::Process(&bob));
        check(decision, false, "defaults: connect.users = [\"carol\"]");
        assert_eq!(general.for_each_override().count(), 1);
    }

    #[test]
    fn the_host_of_a_vm_is_named_by_its_name_its_id_and_as_parent_and_a_child_is_not() {
        let (host, id) = (name("machine"), VmId::random());
        for (entry, is_parent, allowed) in [
            ("parent", true, true),
            ("PARENT", true, true),
            ("machine", true, true),
            (id.to_string().as_str(), true, true),
            ("*", true, true),
            ("parents", true, false),
            ("@parent", true, false),
            ("parent", false, false),
            ("*", false, true),
        ] {
            let requester = Requester::Partition {
                own: PartitionIdentity {
                    name: &host,
                    id,
                    groups: &[],
                    is_parent,
                },
                vm: None,
                is_root: false,
            };
            let registry = registry(|service, _| service.connect.partitions = list(&[entry]));
            let decision = policy(&registry).access(Action::Connect, &requester);
            assert_eq!(decision.allowed, allowed, "{entry}");
        }
    }

    #[test]
    fn what_names_a_vm_covers_the_containers_in_it() {
        let (vm, id) = (VmId::random(), VmId::random());
        let groups = ["blue".to_owned()];
        let (web, nested) = (name("web"), name("web/box"));
        let identity = |name, id, groups| PartitionIdentity {
            name,
            id,
            groups,
            is_parent: false,
        };
        let requester = Requester::Partition {
            own: identity(&nested, id, &[]),
            vm: Some(identity(&web, vm, &groups)),
            is_root: false,
        };
        for (entry, covers) in [
            ("web", true),
            ("WEB", true),
            (vm.to_string().as_str(), true),
            ("@blue", true),
            ("*", true),
            ("web/box", true),
            ("Web/Box", true),
            (id.to_string().as_str(), true),
            ("box", false),
            ("web/other", false),
            ("web/", false),
            ("we", false),
            ("@red", false),
            ("db/box", false),
        ] {
            let registry = registry(|service, _| service.connect.partitions = list(&[entry]));
            let decision = policy(&registry).access(Action::Connect, &requester);
            assert_eq!(decision.allowed, covers, "{entry}");
        }
        // An entry for the container does not cover its virtual machine, nor another container.
        let registry = registry(|service, _| service.connect.partitions = list(&["web/box"]));
        let other = name("web/other");
        for (name, vm) in [(&web, None), (&other, Some(identity(&web, vm, &groups)))] {
            let own = identity(name, VmId::random(), &[]);
            let is_root = true;
            let requester = Requester::Partition { own, vm, is_root };
            let decision = policy(&registry).access(Action::Connect, &requester);
            assert!(!decision.allowed, "{name}");
        }
    }

    #[test]
    fn the_override_for_a_container_wins_over_that_for_its_vm_setting_by_setting() {
        let registry = registry(|entry, _| {
            let of_vm = Override {
                enabled: Some(false),
                allow_wildcard_binds: Some(false),
                connect: AccessRule {
                    partitions: list(&[]),
                    ..AccessRule::default()
                },
                ..Override::default()
            };
            let of_container = Override {
                enabled: Some(true),
                ..Override::default()
            };
            entry.vm.insert(name("Web"), of_vm);
            entry.vm.insert(name("web/Box"), of_container);
        });
        let general = policy(&registry);
        let of = |text: &str| general.for_child(&name(text));
        check(of("web").enabled(), false, "vm.Web.enabled = false");
        check(of("web/other").enabled(), false, "vm.Web.enabled = false");
        check(
            of("WEB/BOX").enabled(),
            true,
            "vm.\"web/Box\".enabled = true",
        );
        check(of("db/box").enabled(), true, "enabled = true");
        check(of("box").enabled(), true, "enabled = true");
        let rule = "vm.Web.allow_wildcard_binds = false";
        check(of("web/box").wildcard(), false, rule);
        let (container, id) = (name("web/box"), VmId::random());
        let requester = a_child(&container, id, &[], false);
        let decision = of("web/box").access(Action::Connect, &requester);
        check(decision, false, "vm.Web.connect.partitions = []");
        let children = general.for_each_override().map(|policy| policy.child());
        assert_eq!(children.flatten().count(), 2);
        let sources = |text: &str| {
            let policy = of(text);
            let rules = policy.effective();
            (rules.enabled.from, rules.allow_wildcard_binds.from)
        };
        let (vm, container) = (name("web"), name("web/box"));
        let of_vm = RuleSource::OverrideOfVm(&vm);
        assert_eq!(
            sources("web/box"),
            (RuleSource::Override(&container), of_vm)
        );
        assert_eq!(sources("web/other"), (of_vm, of_vm));
        let own = RuleSource::Override(&vm);
        assert_eq!(sources("web"), (own, own));
        assert_eq!(of("web/box").child(), Some(&name("web/box")));
        assert_eq!(of("web/other").child(), Some(&name("web")));
    }

    #[test]
    fn a_brief_rule_does_not_show_the_entries_of_its_lists() {
        let registry = registry(|entry, _| {
            entry.connect.users = list(&["bob"]);
            entry.connect.groups = list(&["staff"]);
        });
        let policy = policy(&registry);
        let eve = principal(1009, "eve", &[]);
        let requester = Requester::Process(&eve);
        for (action, brief, lists) in [
            (
                Action::Connect,
                "connect.users, connect.groups",
                &["users", "groups"][..],
            ),
            (Action::Bind, "defaults: bind", &[]),
        ] {
            let rule = policy.access(action, &requester).rule;
            assert_eq!(rule.brief().to_string(), brief);
            assert_eq!(rule.lists().collect::<Vec<_>>(), lists);
            assert_eq!(rule.action(), Some(action));
        }
    }
}
