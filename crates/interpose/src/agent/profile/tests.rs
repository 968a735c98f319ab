use hvsock_sys::seccomp::ArgEq;
use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::calls::{NAMES, RULES};

fn merged(base: Option<&Value>, form: Form) -> Result<Value, MergeError> {
    let base = base.map(Value::to_string);
    let base = base.as_deref().map(str::as_bytes);
    let profile = Profile::new(base, form, Path::new("/run/hvsock/seccomp"), "web")?;
    Ok(profile.as_json().clone())
}

/// What a profile does with a call: the action of all rules that match, or its default. Runtimes read several
/// conditions of one argument as alternatives.
fn actions(profile: &Value, name: &str, args: [u64; 6]) -> Vec<String> {
    let mut actions = Vec::new();
    for entry in profile["syscalls"].as_array().into_iter().flatten() {
        let entry: Entry = serde_json::from_value(entry.clone()).unwrap();
        let regions = Region::of(&entry.args).unwrap();
        let matches = regions.iter().any(|region| region.contains(args));
        if matches && entry.names.iter().any(|other| other == name) {
            let errno = entry.rest.get("errnoRet").cloned().unwrap_or_default();
            actions.push(format!("{} {errno}", entry.action));
        }
    }
    if actions.is_empty() {
        actions.push(profile["defaultAction"].as_str().unwrap().to_owned());
    }
    actions.sort();
    actions.dedup();
    actions
}

/// What the agent's rules say.
fn wanted(name: &str, args: [u64; 6]) -> Action {
    let (syscall, _) = NAMES.into_iter().find(|(_, other)| *other == name).unwrap();
    let holds = |arg: &ArgEq| args[usize::from(arg.index)] == u64::from(arg.value);
    let mut rules = RULES.iter().filter(|rule| rule.syscall == syscall);
    let rule = rules.find(|rule| rule.args.iter().all(holds));
    rule.map_or(Action::Allow, |rule| rule.action)
}

/// A profile with rules for the calls that the agent must see, whose conditions do not contradict each other.
fn base() -> impl Strategy<Value = Value> {
    let names: Vec<_> = NAMES.into_iter().map(|(_, name)| name).collect();
    let number = || prop::sample::select(vec![0_u64, 1, 16, 34, 37, 38, 40, 41, 0x7b9, 1 << 32]);
    let op = || prop::sample::select(vec!["EQ", "NE", "LT", "LE", "GT", "GE"]);
    let condition = (0..3_u32, number(), op()).prop_map(|(index, value, op)| {
        json!({"index": index, "value": value, "op": format!("SCMP_CMP_{op}")})
    });
    let args = prop::collection::vec(condition, 0..3);
    let entry = (
        prop::collection::vec(prop::sample::select(names), 1..4),
        args,
    );
    let entries = prop::collection::vec(entry, 0..6);
    (entries, any::<bool>()).prop_map(|(entries, allowing)| {
        // All rules do the opposite of the default: so their order says nothing.
        let (default, other) = match allowing {
            true => (ALLOW, ERRNO),
            false => (ERRNO, ALLOW),
        };
        let entry = |(names, args)| {
            let mut entry = json!({"names": names, "action": other, "args": args});
            if allowing {
                entry["errnoRet"] = json!(13);
            }
            entry
        };
        let entries: Vec<_> = entries.into_iter().map(entry).collect();
        json!({"defaultAction": default, "syscalls": entries})
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn what_a_profile_allows_is_notified_and_what_it_denies_stays_denied(
        base in base(),
        args in prop::collection::vec(
            prop::array::uniform3(prop::sample::select(
                vec![0_u64, 1, 3, 4, 15, 16, 17, 34, 35, 38, 39, 40, 41, 0x7b9, 1 << 32, u64::MAX],
            )),
            6,
        ),
    ) {
        let merged = merged(Some(&base), Form::Runtime).unwrap();
        for (_, name) in NAMES {
            for args in &args {
                let args = [args[0], args[1], args[2], 0, 0, 0];
                let before = actions(&base, name, args);
                let after = actions(&merged, name, args);
                let allowed = before[0].starts_with(ALLOW);
                let expected = match wanted(name, args) {
                    Action::Notify if allowed || name == calls::SOCKET => "SCMP_ACT_NOTIFY null".to_owned(),
                    Action::Errno(number) if allowed => format!("SCMP_ACT_ERRNO {number}"),
                    _ => before[0].clone(),
                };
                // Nothing contradicts.
                prop_assert_eq!(after, [expected], "{} {:?} in {}", name, args, merged);
            }
        }
    }
}

#[test]
fn no_rule_has_two_conditions_of_one_argument() {
    let base = json!({"defaultAction": ERRNO, "syscalls": [
        {"names": ["socket"], "action": ALLOW, "args": [
            {"index": 0, "value": 38, "op": "SCMP_CMP_GT"}, {"index": 2, "value": 9, "op": "SCMP_CMP_NE"}]},
        {"names": ["socket"], "action": ALLOW, "args": [{"index": 0, "value": 38, "op": "SCMP_CMP_LT"}]},
    ]});
    let merged = merged(Some(&base), Form::Runtime).unwrap();
    for entry in merged["syscalls"].as_array().unwrap() {
        let entry: Entry = serde_json::from_value(entry.clone()).unwrap();
        let mut indexes: Vec<_> = entry.args.iter().map(|condition| condition.index).collect();
        indexes.dedup();
        assert_eq!(indexes.len(), entry.args.len(), "{entry:?}");
    }
}

#[test]
fn other_rules_and_fields_of_a_profile_stay_as_they_are() {
    let base = json!({
        "defaultAction": ERRNO, "defaultErrnoRet": 38, "defaultErrno": "ENOSYS",
        "archMap": [{"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]}],
        "syscalls": [
            {"names": ["read", "connect", "write"], "action": ALLOW, "args": null, "comment": "",
             "includes": {"caps": ["CAP_BPF"]}, "excludes": {}},
            {"names": ["clone"], "action": ALLOW, "args": [
                {"index": 0, "value": 2_114_060_288, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}]},
            {"name": "accept", "action": ALLOW},
            {"names": ["bind"], "action": ERRNO, "errnoRet": 22, "errno": "EINVAL"},
        ],
    });
    let merged = merged(Some(&base), Form::Engine).unwrap();
    for field in [
        "defaultAction",
        "defaultErrnoRet",
        "defaultErrno",
        "archMap",
    ] {
        assert_eq!(merged[field], base[field]);
    }
    assert_eq!(merged["listenerPath"], json!("/run/hvsock/seccomp"));
    assert_eq!(merged["listenerMetadata"], json!("web"));
    let find = |name: &str, action: &str| {
        let entries = merged["syscalls"].as_array().unwrap();
        let is = |entry: &&Value| {
            entry["action"] == action && entry["names"].as_array().unwrap().contains(&json!(name))
        };
        entries.iter().find(is).cloned()
    };
    let caps = json!({"caps": ["CAP_BPF"]});
    assert_eq!(find("read", ALLOW).unwrap()["includes"], caps);
    assert_eq!(find("connect", NOTIFY).unwrap()["includes"], caps);
    assert_eq!(
        find("clone", ALLOW).unwrap()["args"][0]["value"],
        json!(2_114_060_288_u32)
    );
    assert!(find("accept", NOTIFY).is_some() && find("accept", ALLOW).is_none());
    assert_eq!(find("bind", ERRNO).unwrap()["errnoRet"], json!(22));
    // Neither is allowed by the profile.
    assert!(find("bind", NOTIFY).is_none() && find("listen", NOTIFY).is_none());
    assert!(find("socket", NOTIFY).is_some());
}

#[test]
fn a_container_without_a_profile_keeps_all_calls() {
    for base in [
        None,
        Some(json!({"ociVersion": "1.0.2"})),
        Some(json!({"linux": {"seccomp": null}})),
    ] {
        let merged = merged(base.as_ref(), Form::Runtime).unwrap();
        assert_eq!(merged["defaultAction"], json!(ALLOW));
        assert_eq!(
            actions(&merged, "connect", [0; 6]),
            ["SCMP_ACT_NOTIFY null"]
        );
        assert_eq!(actions(&merged, "socket", [2, 0, 0, 0, 0, 0]), [ALLOW]);
        assert_eq!(actions(&merged, "read", [0; 6]), [ALLOW]);
    }
    let whole = json!({"ociVersion": "1.0.2", "linux": {"seccomp": {"defaultAction": ERRNO}}});
    let merged = merged(Some(&whole), Form::Runtime).unwrap();
    assert_eq!(merged["defaultAction"], json!(ERRNO));
    assert!(merged.get("ociVersion").is_none());
}

#[test]
fn what_cannot_be_merged_is_an_error_that_says_why() {
    let rule = |rule: Value| json!({"defaultAction": ERRNO, "syscalls": [rule]});
    let masked = json!([{"index": 0, "value": 5, "valueTwo": 5, "op": "SCMP_CMP_MASKED_EQ"}]);
    let caps = json!({"caps": ["CAP_BPF"]});
    let cases = [
        (json!(7), "it is not a seccomp profile: it is no object"),
        (
            json!({}),
            "it is not a seccomp profile: it has no `defaultAction`",
        ),
        (
            json!({"defaultAction": ERRNO, "syscalls": 7}),
            "it is not a seccomp profile: `syscalls` is no array",
        ),
        (
            rule(json!({"names": 7, "action": ALLOW})),
            "it is not a seccomp profile: a rule in `syscalls` is none",
        ),
        (
            json!({"linux": {"seccomp": []}}),
            "it is not a seccomp profile: `linux.seccomp` is no object",
        ),
        (
            json!({"defaultAction": ERRNO, "listenerPath": "/run/other"}),
            "it has an agent already, at /run/other",
        ),
        (
            rule(json!({"names": ["mknod"], "action": NOTIFY})),
            "it has an agent already",
        ),
        (json!({"defaultAction": NOTIFY}), "it has an agent already"),
        (
            rule(json!({"names": ["socket"], "action": ALLOW, "args": masked})),
            "its rule for socket compares other bits of an argument than the leading ones",
        ),
        (
            rule(json!({"names": ["read"], "action": ALLOW, "includes": caps})),
            "it has rules for some capabilities, architectures or kernels only, which only podman and docker read",
        ),
    ];
    for (base, error) in cases {
        assert_eq!(
            merged(Some(&base), Form::Runtime).unwrap_err().to_string(),
            error
        );
    }
    let text = Profile::new(Some(b"{"), Form::Engine, Path::new("/a"), "web").unwrap_err();
    assert!(text.to_string().starts_with("it is not JSON"), "{text}");
    // Those of other calls do not matter.
    let masked = rule(json!({"names": ["clone"], "action": ALLOW, "args": masked}));
    assert!(merged(Some(&masked), Form::Runtime).is_ok());
}

#[test]
fn the_flag_for_waits_that_only_a_kill_ends_is_added_to_others_once() {
    for (flags, expected) in [
        (json!(null), vec![WAIT_KILLABLE]),
        (
            json!(["SECCOMP_FILTER_FLAG_LOG"]),
            vec!["SECCOMP_FILTER_FLAG_LOG", WAIT_KILLABLE],
        ),
        (json!([WAIT_KILLABLE]), vec![WAIT_KILLABLE]),
    ] {
        let base = json!({"defaultAction": ALLOW, "flags": flags}).to_string();
        let base = Some(base.as_bytes());
        let mut profile = Profile::new(base, Form::Runtime, Path::new("/a"), "web").unwrap();
        profile.wait_killable();
        assert_eq!(profile.as_json()["flags"], json!(expected));
    }
}
