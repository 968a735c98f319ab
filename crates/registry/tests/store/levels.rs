//! What a file leaves out is inherited from the level below it: no partial file opens a service.

use std::fs;

use hvsock_address::VmId;
use hvsock_registry::store::Options;
use hvsock_registry::{
    AccessRule, Action, PartitionIdentity, Principal, Registration, Registry, Requester,
};
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;

use super::*;

/// The lists of one rule that a level states.
#[derive(Clone, Debug, Default)]
struct Lists {
    users: Option<&'static [&'static str]>,
    groups: Option<&'static [&'static str]>,
    partitions: Option<&'static [&'static str]>,
}

/// What one level states.
#[derive(Clone, Debug, Default)]
struct Level {
    /// Not of `defaults.toml`.
    enabled: Option<bool>,
    wildcard: Option<bool>,
    only_root: Option<bool>,
    bind: Lists,
    connect: Lists,
}

/// A service that controls guests: only root may use it, and only root of a child may offer it.
fn closed() -> Registration {
    let rule = |partitions: &[&str]| AccessRule {
        users: Some(vec![]),
        groups: Some(vec![]),
        partitions: Some(partitions.iter().map(|one| (*one).to_owned()).collect()),
    };
    Registration {
        bind: rule(&["*"]),
        connect: rule(&[]),
        only_root_binds: Some(true),
        allow_wildcard_binds: Some(false),
        ..owned(911, "session", "hvsock", "hvsock")
    }
}

fn closed_level() -> Level {
    let lists = |partitions| Lists {
        users: Some(&[]),
        groups: Some(&[]),
        partitions: Some(partitions),
    };
    Level {
        enabled: Some(true),
        wildcard: Some(false),
        only_root: Some(true),
        bind: lists(&["*"]),
        connect: lists(&[]),
    }
}

fn lists() -> impl Strategy<Value = Lists> {
    let of = |few: &'static [&'static [&'static str]]| option::of(select(few));
    let users = of(&[&[], &["bob"], &["1001"], &["*"], &["carol"]]);
    let groups = of(&[&[], &["staff"], &["50"], &["*"], &["wheel"]]);
    let partitions = of(&[&[], &["web"], &["@ci"], &["*"], &["db"]]);
    (users, groups, partitions).prop_map(|(users, groups, partitions)| Lists {
        users,
        groups,
        partitions,
    })
}

fn level() -> impl Strategy<Value = Level> {
    let flag = || option::of(any::<bool>());
    (flag(), flag(), flag(), lists(), lists()).prop_map(
        |(enabled, wildcard, only_root, bind, connect)| Level {
            enabled,
            wildcard,
            only_root,
            bind,
            connect,
        },
    )
}

impl Level {
    fn lists(&self, action: Action) -> &Lists {
        match action {
            Action::Bind => &self.bind,
            Action::Connect => &self.connect,
        }
    }

    /// The keys of this level, each after `prefix`.
    fn toml(&self, prefix: &str) -> String {
        let mut text = String::new();
        for (key, flag) in [
            ("enabled", self.enabled.filter(|_| prefix != "defaults")),
            ("allow_wildcard_binds", self.wildcard),
            ("only_root_binds", self.only_root),
        ] {
            let prefix = if prefix == "defaults" { "" } else { prefix };
            text += &flag.map_or_else(String::new, |flag| format!("{prefix}{key} = {flag}\n"));
        }
        for (action, lists) in [("bind", &self.bind), ("connect", &self.connect)] {
            for (key, list) in [
                ("users", lists.users),
                ("groups", lists.groups),
                ("partitions", lists.partitions),
            ] {
                let prefix = if prefix == "defaults" { "" } else { prefix };
                let line = |list| format!("{prefix}{action}.{key} = {list:?}\n");
                text += &list.map_or_else(String::new, line);
            }
        }
        text
    }
}

/// The answer of the most specific level that states something, the first of `levels`.
fn stated<T>(levels: &[&Level], of: impl Fn(&Level) -> Option<T>) -> Option<T> {
    levels.iter().find_map(|level| of(level))
}

fn bob_may(levels: &[&Level], action: Action) -> bool {
    stated(levels, |level| {
        let Lists { users, groups, .. } = level.lists(action);
        (users.is_some() || groups.is_some()).then(|| {
            let any = |list: &Option<&[&str]>, these: &[&str]| {
                list.is_some_and(|list| list.iter().any(|entry| these.contains(entry)))
            };
            any(users, &["*", "bob", "1001"]) || any(groups, &["*", "staff", "50"])
        })
    })
    .unwrap()
}

fn web_may(levels: &[&Level], action: Action) -> bool {
    stated(levels, |level| {
        let list = level.lists(action).partitions?;
        Some(list.iter().any(|entry| ["*", "web", "@ci"].contains(entry)))
    })
    .unwrap()
}

fn registry(config: &Config) -> Registry {
    let options = Options {
        built_in: vec![closed()],
        ..Options::default()
    };
    let (store, report) = FolderStore::open_with(config.path(), options).unwrap();
    assert_eq!(report.problems, []);
    let mut registry = Registry::new();
    registry.set_built_in([closed()]);
    registry.set_defaults(store.defaults().clone());
    for registration in store.registrations() {
        registry.insert(registration.clone()).unwrap();
    }
    registry
}

fn bob() -> Principal {
    Principal {
        uid: 1001,
        user: Some("bob".to_owned()),
        groups: vec![(50, Some("staff".to_owned()))],
        partition_uid: Some(1001),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(hvsock_testkit::cases(200)))]

    #[test]
    fn no_partial_file_allows_more_than_the_most_specific_level_that_states_it(
        defaults in option::of(level()),
        file in option::of(level()),
        web in option::of(level()),
        named: bool,
    ) {
        let config = Config::new();
        if let Some(defaults) = &defaults {
            fs::write(config.path().join("defaults.toml"), defaults.toml("defaults")).unwrap();
        }
        if file.is_some() || web.is_some() {
            let mut text = String::new();
            if named {
                text += "name = \"session\"\n";
            }
            text += &file.as_ref().map_or_else(String::new, |file| file.toml(""));
            text += &web.as_ref().map_or_else(String::new, |web| web.toml("vm.web."));
            config.write(id(911), &text);
        }
        let registry = registry(&config);
        let policy = registry.policy(id(911)).unwrap();
        let base = closed_level();
        let mut levels: Vec<&Level> = file.iter().chain([&base]).chain(&defaults).collect();
        let (bob, groups) = (bob(), ["ci".to_owned()]);
        let web_name = partition("web");
        for for_web in [false, true] {
            let policy = if for_web { policy.for_child(&web_name) } else { policy };
            if for_web {
                levels.splice(0..0, &web);
            }
            let enabled = stated(&levels, |level| level.enabled).unwrap();
            prop_assert_eq!(policy.enabled().allowed, enabled);
            let wildcard = stated(&levels, |level| level.wildcard).unwrap();
            prop_assert_eq!(policy.wildcard().allowed, wildcard);
            let only_root = stated(&levels, |level| level.only_root).unwrap();
            for action in [Action::Bind, Action::Connect] {
                let may = policy.access(action, &Requester::Process(&bob)).allowed;
                prop_assert_eq!(may, bob_may(&levels, action), "{:?} of bob", action);
                for is_root in [false, true] {
                    let own = PartitionIdentity {
                        name: &web_name,
                        id: VmId::LOOPBACK,
                        groups: &groups,
                        is_parent: false,
                    };
                    let vm = None;
                    let web = Requester::Partition { own, vm, is_root };
                    let may = policy.access(action, &web).allowed;
                    let as_root = is_root || action == Action::Connect || !only_root;
                    let want = web_may(&levels, action) && as_root;
                    prop_assert_eq!(may, want, "{:?} of web", action);
                }
            }
        }
    }
}

#[test]
fn a_file_with_nothing_but_enabled_or_a_purpose_or_an_override_stays_closed() {
    for text in [
        "",
        "# nothing\n",
        "enabled = true\n",
        "name = \"session\"\nenabled = true\n",
        "name = \"session\"\npurpose = \"mine\"\nowner = \"bob\"\n",
        "[vm.web]\n",
        "[vm.web]\nenabled = true\n",
        "[bind]\n[connect]\n",
        "bind.partitions = [\"*\"]\n",
        "allow_wildcard_binds = true\n",
    ] {
        let config = Config::new();
        config.write(id(911), text);
        let open = "connect.users = [\"*\"]\nconnect.partitions = [\"*\"]\nbind.users = [\"*\"]\n";
        fs::write(config.path().join("defaults.toml"), open).unwrap();
        let registry = registry(&config);
        let policy = registry.policy(id(911)).unwrap();
        let bob = bob();
        for policy in [policy, policy.for_child(&partition("web"))] {
            for action in [Action::Bind, Action::Connect] {
                let decision = policy.access(action, &Requester::Process(&bob));
                assert!(!decision.allowed, "{text:?}: {}", decision.rule);
                assert!(
                    decision.rule.to_string().starts_with("built-in: "),
                    "{text:?}"
                );
            }
        }
        let registration = registry.get(id(911)).unwrap();
        assert_eq!(registration.name.as_str(), "session", "{text:?}");
    }
}

#[test]
fn a_lease_or_another_registration_of_a_built_in_service_inherits_its_rules() {
    for lease in [false, true] {
        let mut registry = Registry::new();
        registry.set_built_in([closed()]);
        let open = Registration {
            lease,
            ..registration(911, "other")
        };
        registry.insert(open).unwrap();
        let policy = registry.policy(id(911)).unwrap();
        let bob = bob();
        let decision = policy.access(Action::Connect, &Requester::Process(&bob));
        assert!(!decision.allowed, "{}", decision.rule);
    }
}

#[test]
fn disabling_and_enabling_a_built_in_service_leaves_no_file() {
    let config = Config::new();
    let options = Options {
        built_in: vec![closed()],
        ..Options::default()
    };
    let (mut store, _) = FolderStore::open_with(config.path(), options).unwrap();
    for vm in [None, Some(partition("web"))] {
        store.set_enabled(id(911), false, vm.as_ref()).unwrap();
        let text = config.read(id(911));
        let want = match vm {
            None => "name = \"session\"\nenabled = false\n",
            Some(_) => "name = \"session\"\nenabled = true\n\n[vm.web]\nenabled = false\n",
        };
        assert_eq!(text, want);
        store.set_enabled(id(911), true, vm.as_ref()).unwrap();
        assert_eq!(config.names(), [""; 0]);
        assert!(store.is_built_in(id(911)));
        assert_eq!(store.get(id(911)), Some(&closed()));
    }
    // A comment is somebody's.
    config.write(id(911), "# ask carol\nenabled = false\n");
    store.set_enabled(id(911), true, None).unwrap();
    assert!(config.read(id(911)).starts_with("# ask carol\n"));
}
