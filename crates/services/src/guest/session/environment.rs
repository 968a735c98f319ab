//! The environment of a command.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};

use super::plan::Plan;
use super::user::Account;

/// The variable that identifies all processes that a command starts.
pub(super) const COOKIE: &str = "HVSOCK_SESSION";

const ROOTS_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const PATH: &str = "/usr/local/bin:/usr/bin:/bin";

/// Variables that a service manager sets for its service only, and variables of a shell.
const AGENTS_OWN: [&str; 18] = [
    "CACHE_DIRECTORY",
    "CREDENTIALS_DIRECTORY",
    "FDSTORE",
    "INVOCATION_ID",
    "JOURNAL_STREAM",
    "LISTEN_FDS",
    "LISTEN_FDNAMES",
    "LISTEN_PID",
    "MAINPID",
    "MANAGERPID",
    "NOTIFY_SOCKET",
    "OLDPWD",
    "PWD",
    "SHLVL",
    "SYSTEMD_EXEC_PID",
    "WATCHDOG_PID",
    "WATCHDOG_USEC",
    "_",
];

/// The agent's variables that a command of another user inherits, besides `LC_…`: the locale, the
/// time zone and the endpoint of the services.
const FOR_ALL: [&str; 3] = ["HVSOCK_ENDPOINT", "LANG", "TZ"];

/// All variables of a command. `inherited` are the agent's.
pub(super) fn of(
    plan: &Plan,
    account: &Account,
    inherited: impl Iterator<Item = (OsString, OsString)>,
    cookie: &str,
) -> BTreeMap<OsString, OsString> {
    let switched = plan.user.is_some();
    let mut env: BTreeMap<OsString, OsString> = inherited
        .filter(|(name, _)| match switched {
            true => is_for_all(name),
            false => !AGENTS_OWN.iter().any(|own| name == own),
        })
        .collect();
    let path = if account.uid == 0 { ROOTS_PATH } else { PATH };
    let mut login: Vec<(&str, &OsStr)> = vec![
        ("HOME", account.home.as_os_str()),
        ("SHELL", account.shell.as_os_str()),
        ("PATH", path.as_ref()),
    ];
    if let Some(name) = &account.name {
        login.extend([("USER", name.as_ref()), ("LOGNAME", name.as_ref())]);
    }
    for (name, value) in login {
        env.entry(name.into()).or_insert_with(|| value.to_owned());
    }
    match &plan.terminal {
        Some(terminal) if !terminal.term.is_empty() => {
            env.insert("TERM".into(), terminal.term.clone());
        }
        Some(_) => {}
        // The agent has it if it was started by hand.
        None => drop(env.remove(OsStr::new("TERM"))),
    }
    env.extend(plan.env.iter().cloned());
    env.insert(COOKIE.into(), cookie.into());
    env
}

fn is_for_all(name: &OsStr) -> bool {
    FOR_ALL.iter().any(|known| name == *known) || name.as_encoded_bytes().starts_with(b"LC_")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::session as wire;

    fn plan(user: &str, env: &[(&'static str, &'static str)], term: Option<&str>) -> Plan {
        let variable = |(name, value): &(&'static str, &'static str)| wire::Variable {
            name: (*name).into(),
            value: (*value).into(),
        };
        Plan::new(wire::Start {
            user: user.to_owned(),
            env: env.iter().map(variable).collect(),
            terminal: term.map(|term| wire::Terminal {
                term: term.to_owned(),
                size: None,
            }),
            ..wire::Start::default()
        })
        .unwrap()
    }

    fn env(plan: &Plan) -> Vec<String> {
        let account = Account {
            name: Some("alice".to_owned()),
            uid: 1000,
            gid: 1000,
            groups: vec![1000],
            home: "/home/alice".into(),
            shell: "/bin/zsh".into(),
        };
        let agents = [
            ("PATH", "/opt/bin"),
            ("HOME", "/root"),
            ("LC_ALL", "de_DE"),
            ("TERM", "linux"),
            ("NOTIFY_SOCKET", "/run/n"),
            ("PWD", "/"),
            ("SECRET", "1"),
            ("HVSOCK_SESSION", "old"),
        ];
        let agents = agents.map(|(name, value)| (name.into(), value.into()));
        of(plan, &account, agents.into_iter(), "c00k1e")
            .into_iter()
            .map(|(name, value)| format!("{}={}", name.display(), value.display()))
            .collect()
    }

    #[test]
    fn another_user_gets_an_environment_as_after_a_login() {
        let expected = [
            "HOME=/home/alice",
            "HVSOCK_SESSION=c00k1e",
            "LC_ALL=de_DE",
            "LOGNAME=alice",
            "PATH=/usr/local/bin:/usr/bin:/bin",
            "SHELL=/bin/zsh",
            "TERM=vt220",
            "USER=alice",
        ];
        assert_eq!(env(&plan("alice", &[], Some("vt220"))), expected);
    }

    #[test]
    fn the_agents_user_inherits_the_environment_without_the_agents_own_variables() {
        let expected = [
            "A=b=c",
            "HOME=/tmp",
            "HVSOCK_SESSION=c00k1e",
            "LC_ALL=de_DE",
            "LOGNAME=alice",
            "PATH=/opt/bin",
            "SECRET=1",
            "SHELL=/bin/zsh",
            "USER=alice",
        ];
        let asked = [("HOME", "/tmp"), ("A", "b=c"), ("HVSOCK_SESSION", "mine")];
        assert_eq!(env(&plan("", &asked, None)), expected);
    }
}
