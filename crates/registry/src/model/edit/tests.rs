use hvsock_address::{ElementName, ServiceId, VmId};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use super::*;
use crate::{PartitionIdentity, Principal, Requester};

fn name(text: &str) -> PartitionName {
    PartitionName::new(text).unwrap()
}

fn service() -> Registration {
    let name = ElementName::new("session").unwrap();
    Registration::new(ServiceId::from_port(911), name)
}

/// A service that only root may use.
fn closed() -> Registration {
    let none = || AccessRule {
        users: Some(vec![]),
        groups: Some(vec![]),
        partitions: Some(vec![]),
    };
    Registration {
        bind: none(),
        connect: none(),
        ..service()
    }
}

const DEFAULTS: fn() -> Defaults = Defaults::default;

fn inherited<'a>(built_in: &'a Registration, defaults: &'a Defaults) -> Inherited<'a> {
    Inherited {
        built_in: Some(built_in),
        defaults,
    }
}

fn enabled_for(child: &str, enabled: bool, exception: bool) -> Edit {
    Edit::SetEnabledFor {
        child: name(child),
        enabled,
        exception,
    }
}

fn access(users: &[&str]) -> AccessEdit {
    AccessEdit {
        action: Action::Connect,
        child: None,
        everywhere: false,
        users: users.iter().copied().map(Subject::new).collect(),
        groups: vec![],
        partitions: vec![],
        any_partition_user: false,
    }
}

fn may_connect(one: &Registration, built_in: &Registration, user: &str) -> bool {
    let principal = Principal {
        uid: 1000,
        user: Some(user.to_owned()),
        ..Principal::default()
    };
    let defaults = DEFAULTS();
    let policy = Policy::new(one, Some(built_in), &defaults);
    let decision = policy.access(Action::Connect, &Requester::Process(&principal));
    decision.allowed
}

#[test]
fn a_child_follows_a_later_change_for_all_after_it_was_disabled_and_enabled() {
    let (mut one, defaults) = (service(), DEFAULTS());
    let nothing = Inherited {
        built_in: None,
        defaults: &defaults,
    };
    let before = one.clone();
    enabled_for("web", false, false)
        .apply(&mut one, nothing)
        .unwrap();
    assert_eq!(one.vm[&name("web")].enabled, Some(false));
    enabled_for("WEB", true, false)
        .apply(&mut one, nothing)
        .unwrap();
    assert_eq!(one, before);
}

#[test]
fn a_service_that_is_disabled_for_all_is_enabled_for_one_child_only_as_an_exception() {
    let (mut one, defaults) = (service(), DEFAULTS());
    one.enabled = false;
    let nothing = Inherited {
        built_in: None,
        defaults: &defaults,
    };
    let before = one.clone();
    let error = enabled_for("web", true, false).apply(&mut one, nothing);
    assert_eq!(error, Err(EditError::DisabledForAll { child: name("web") }));
    assert_eq!(one, before);
    enabled_for("web", true, true)
        .apply(&mut one, nothing)
        .unwrap();
    assert_eq!(one.vm[&name("web")].enabled, Some(true));
    // To enable what is enabled must not disable it.
    enabled_for("web", true, false)
        .apply(&mut one, nothing)
        .unwrap();
    assert_eq!(one.vm[&name("web")].enabled, Some(true));
    let everywhere = Edit::SetEnabled {
        enabled: false,
        everywhere: true,
    };
    everywhere.apply(&mut one, nothing).unwrap();
    assert_eq!(one, before);
}

#[test]
fn a_container_in_a_vm_follows_the_vm_before_it_follows_the_registration() {
    let (mut one, defaults) = (service(), DEFAULTS());
    let nothing = Inherited {
        built_in: None,
        defaults: &defaults,
    };
    enabled_for("web", false, false)
        .apply(&mut one, nothing)
        .unwrap();
    let before = one.clone();
    let refused = enabled_for("web/box", true, false).apply(&mut one, nothing);
    let error = refused.unwrap_err();
    let want = "it is disabled for web, so it stays disabled for web/box";
    assert_eq!(error.to_string(), want);
    assert_eq!(one, before);
    enabled_for("web/box", true, true)
        .apply(&mut one, nothing)
        .unwrap();
    assert_eq!(one.vm[&name("web/box")].enabled, Some(true));
    // Where its VM is the exception, the container follows that, and so needs no setting of its own.
    one.vm.clear();
    one.enabled = false;
    enabled_for("web", true, true)
        .apply(&mut one, nothing)
        .unwrap();
    enabled_for("web/box", true, false)
        .apply(&mut one, nothing)
        .unwrap();
    assert!(!one.vm.contains_key(&name("web/box")));
    let error = enabled_for("db/box", true, false).apply(&mut one, nothing);
    let child = name("db/box");
    assert_eq!(error, Err(EditError::DisabledForAll { child }));
}

#[test]
fn allowing_a_container_in_a_vm_keeps_what_its_vm_allows() {
    let (mut one, defaults) = (service(), DEFAULTS());
    let nothing = Inherited {
        built_in: None,
        defaults: &defaults,
    };
    let allow = |child: &str, user: &str| {
        Edit::Allow(AccessEdit {
            child: Some(name(child)),
            ..access(&[user])
        })
    };
    one.connect.users = Some(vec![]);
    allow("web", "alice").apply(&mut one, nothing).unwrap();
    allow("web/box", "bob").apply(&mut one, nothing).unwrap();
    let of = |child: &str| one.vm[&name(child)].connect.users.clone();
    assert_eq!(of("web"), Some(vec!["alice".to_owned()]));
    let both = vec!["alice".to_owned(), "bob".to_owned()];
    assert_eq!(of("web/box"), Some(both));
    // The VM already allows her.
    let before = one.clone();
    allow("web/other", "alice")
        .apply(&mut one, nothing)
        .unwrap();
    assert_eq!(one, before);
}

#[test]
fn allowing_a_user_keeps_those_whom_a_lower_level_allows() {
    let (mut one, base) = (service(), closed());
    let defaults = DEFAULTS();
    let mut of_group = base.clone();
    of_group.connect.groups = Some(vec!["ops".to_owned()]);
    let levels = inherited(&of_group, &defaults);
    Edit::Allow(access(&["alice"]))
        .apply(&mut one, levels)
        .unwrap();
    let rule = &one.connect;
    assert_eq!(rule.users.as_deref(), Some(&["alice".to_owned()][..]));
    assert_eq!(rule.groups.as_deref(), Some(&["ops".to_owned()][..]));
    // The owner may listen where nothing is said, and still may after somebody else may too.
    let mut plain = service();
    plain.owner = Some("carol".to_owned());
    let bind = AccessEdit {
        action: Action::Bind,
        ..access(&["dave"])
    };
    let nothing = Inherited {
        built_in: None,
        defaults: &defaults,
    };
    Edit::Allow(bind).apply(&mut plain, nothing).unwrap();
    let users = plain.bind.users.unwrap();
    assert_eq!(users, ["carol", "dave"]);
}

#[test]
fn one_of_everyone_cannot_be_denied_and_nothing_is_changed() {
    let (mut one, defaults) = (service(), DEFAULTS());
    let nothing = Inherited {
        built_in: None,
        defaults: &defaults,
    };
    let before = one.clone();
    let error = Edit::Deny(access(&["alice"]))
        .apply(&mut one, nothing)
        .unwrap_err();
    assert!(
        error.to_string().contains("a list cannot exclude alice"),
        "{error}"
    );
    assert_eq!(one, before);
    Edit::Deny(access(&["*"])).apply(&mut one, nothing).unwrap();
    assert_eq!(one.connect.users, Some(vec![]));
    assert!(!may_connect(&one, &service(), "alice"));
}

#[test]
fn a_user_is_found_in_a_list_by_number_and_by_name() {
    let (mut one, base, defaults) = (service(), closed(), DEFAULTS());
    one.connect.users = Some(vec!["1000".to_owned(), "bob".to_owned()]);
    let alice = Subject {
        entry: "alice".to_owned(),
        aliases: vec!["1000".to_owned()],
        number: Some(1000),
    };
    let edit = AccessEdit {
        users: vec![alice],
        ..access(&[])
    };
    let before = one.clone();
    let levels = inherited(&base, &defaults);
    Edit::Allow(edit.clone()).apply(&mut one, levels).unwrap();
    assert_eq!(one, before);
    Edit::Deny(edit.clone()).apply(&mut one, levels).unwrap();
    assert_eq!(one.connect.users, Some(vec!["bob".to_owned()]));
    // As it was written by hand.
    one.connect.users = Some(vec!["0001000".to_owned(), "bob".to_owned()]);
    let before = one.clone();
    Edit::Allow(edit.clone()).apply(&mut one, levels).unwrap();
    assert_eq!(one, before);
    Edit::Deny(edit).apply(&mut one, levels).unwrap();
    assert_eq!(one.connect.users, Some(vec!["bob".to_owned()]));
}

#[test]
fn a_child_follows_what_holds_for_all_after_its_own_permission_was_withdrawn() {
    let (base, defaults) = (closed(), DEFAULTS());
    let base = Registration {
        only_root_binds: Some(true),
        ..base
    };
    let levels = inherited(&base, &defaults);
    for (action, any_partition_user) in [
        (Action::Connect, false),
        (Action::Bind, false),
        (Action::Bind, true),
    ] {
        for everywhere in [false, true] {
            let mut one = service();
            let before = one.clone();
            let child = Some(name("web"));
            let edit = AccessEdit {
                action,
                child: child.clone(),
                partitions: vec![Subject::new("web")],
                any_partition_user,
                ..access(&["alice"])
            };
            Edit::Allow(edit.clone()).apply(&mut one, levels).unwrap();
            assert!(!one.vm.is_empty());
            let child = child.filter(|_| !everywhere);
            let denied = AccessEdit {
                child,
                everywhere,
                ..edit
            };
            Edit::Deny(denied).apply(&mut one, levels).unwrap();
            assert_eq!(one, before, "{action} {everywhere}");
        }
    }
}

#[test]
fn a_reset_removes_access_rules_of_all_children_and_leaves_disabled_what_is() {
    let (mut one, base, defaults) = (service(), closed(), DEFAULTS());
    let levels = inherited(&base, &defaults);
    for child in [None, Some(name("web")), Some(name("db"))] {
        let edit = AccessEdit {
            child,
            ..access(&["alice"])
        };
        Edit::Allow(edit).apply(&mut one, levels).unwrap();
    }
    enabled_for("web", false, false)
        .apply(&mut one, levels)
        .unwrap();
    let child = Some(name("db"));
    Edit::Reset { child }.apply(&mut one, levels).unwrap();
    assert_eq!(one.vm.keys().collect::<Vec<_>>(), [&name("web")]);
    assert!(one.connect.users.is_some());
    Edit::Reset { child: None }.apply(&mut one, levels).unwrap();
    assert!(!may_connect(&one, &base, "alice"));
    assert_eq!(one.vm[&name("web")].enabled, Some(false));
    assert!(one.vm[&name("web")].connect.is_empty() && one.connect.is_empty());
}

#[test]
fn who_is_denied_everywhere_has_no_exception_left_for_a_child() {
    let (mut one, base, defaults) = (service(), closed(), DEFAULTS());
    let levels = inherited(&base, &defaults);
    for child in [Some(name("web")), None] {
        let edit = AccessEdit {
            child,
            ..access(&["alice", "bob"])
        };
        Edit::Allow(edit).apply(&mut one, levels).unwrap();
    }
    enabled_for("db", false, false)
        .apply(&mut one, levels)
        .unwrap();
    let here = access(&["alice"]);
    Edit::Deny(here.clone()).apply(&mut one, levels).unwrap();
    let web = one.vm[&name("web")].connect.users.clone().unwrap();
    assert_eq!(web, ["alice", "bob"]);
    let everywhere = AccessEdit {
        everywhere: true,
        ..here
    };
    Edit::Deny(everywhere).apply(&mut one, levels).unwrap();
    assert_eq!(one.connect.users, Some(vec!["bob".to_owned()]));
    assert!(!one.vm.contains_key(&name("web")), "it follows");
    assert!(one.vm[&name("db")].connect.is_empty());
}

const USERS: [&str; 4] = ["alice", "bob", "carol", "*"];

proptest! {
    /// Compares with a set of users.
    #[test]
    fn whoever_was_allowed_last_may_connect_and_nobody_else(
        steps in vec((0..8usize, vec(select(&USERS[..]), 0..3)), 0..24),
    ) {
        let (mut one, base, defaults) = (service(), closed(), DEFAULTS());
        let levels = inherited(&base, &defaults);
        let mut allowed: Vec<&str> = vec![];
        for (step, users) in steps {
            let (edit, mut want) = (access(&users), allowed.clone());
            let edit = match step {
                0 => {
                    want.clear();
                    Edit::Reset { child: None }
                }
                1..=4 => {
                    for user in users {
                        if !want.contains(&"*") && !want.contains(&user) {
                            want.push(user);
                        }
                    }
                    Edit::Allow(edit)
                }
                _ => {
                    for user in users {
                        match user {
                            "*" => want.clear(),
                            user => want.retain(|one| *one != user),
                        }
                    }
                    Edit::Deny(edit)
                }
            };
            let before = one.clone();
            match edit.apply(&mut one, levels) {
                Ok(()) => allowed = want,
                Err(_) => prop_assert_eq!(&one, &before),
            }
            for user in USERS.into_iter().filter(|user| *user != "*") {
                let may = allowed.contains(&"*") || allowed.contains(&user);
                prop_assert_eq!(may_connect(&one, &base, user), may, "{} {:?}", user, edit);
            }
            prop_assert!(!may_connect(&one, &base, "dave") || allowed.contains(&"*"));
        }
    }

    #[test]
    fn no_edit_of_one_child_changes_what_holds_for_another(
        steps in vec((0..5usize, any::<bool>(), select(&USERS[..])), 0..12),
    ) {
        let (mut one, base, defaults) = (closed(), closed(), DEFAULTS());
        let levels = inherited(&base, &defaults);
        let before = Policy::new(&one, Some(&base), &defaults).effective().connect.users;
        for (step, flag, user) in steps {
            let child = Some(name("web"));
            let edit = AccessEdit { child: child.clone(), ..access(&[user]) };
            let edit = match step {
                0 => Edit::Reset { child },
                1 => enabled_for("web", flag, false),
                2 => enabled_for("web", flag, true),
                3 => Edit::Allow(edit),
                _ => Edit::Deny(edit),
            };
            let _ = edit.apply(&mut one, levels);
            let policy = Policy::new(&one, Some(&base), &defaults);
            for other in [policy, policy.for_child(&name("db"))] {
                prop_assert_eq!(&other.effective().connect.users, &before);
                prop_assert!(other.enabled().allowed);
            }
        }
    }
}

#[test]
fn a_child_that_any_user_may_listen_in_is_one_where_not_only_root_may() {
    let (mut one, mut base, defaults) = (service(), closed(), DEFAULTS());
    base.only_root_binds = Some(true);
    base.bind.partitions = Some(vec!["*".to_owned()]);
    let edit = AccessEdit {
        action: Action::Bind,
        child: Some(name("web")),
        any_partition_user: true,
        ..access(&[])
    };
    let may_listen = |one: &Registration, child: &str| {
        let child = name(child);
        let own = PartitionIdentity {
            name: &child,
            id: VmId::LOOPBACK,
            groups: &[],
            is_parent: false,
        };
        let (vm, is_root) = (None, false);
        let requester = Requester::Partition { own, vm, is_root };
        let policy = Policy::new(one, Some(&base), &defaults).for_child(&child);
        policy.access(Action::Bind, &requester).allowed
    };
    assert!(!may_listen(&one, "web"));
    let levels = inherited(&base, &defaults);
    Edit::Allow(edit.clone()).apply(&mut one, levels).unwrap();
    assert!(may_listen(&one, "web") && !may_listen(&one, "db"));
    Edit::Deny(edit).apply(&mut one, levels).unwrap();
    assert!(!may_listen(&one, "web"));
}
