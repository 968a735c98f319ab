//! Shell completion: the scripts of `hvsock completions`, and what they get at each Tab.

use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::util::{Completed, DEMO, World, folder, hvsock};

/// The candidates for the last of these words, without their descriptions.
fn candidates(shell: &str, words: &[&str]) -> Vec<String> {
    let mut command = hvsock();
    candidates_of(&mut command, shell, words)
}

fn candidates_of(command: &mut Command, shell: &str, words: &[&str]) -> Vec<String> {
    command
        .env("COMPLETE", shell)
        .env("_CLAP_COMPLETE_INDEX", words.len().to_string())
        .env("_CLAP_IFS", "\n")
        .args(["--", "hvsock"])
        .args(words);
    let done = Completed::of(command);
    assert_eq!(done.stderr, "", "{words:?}");
    let lines = done.ok();
    let names = lines.lines().filter(|line| !line.is_empty());
    let end = |line: &str| match shell {
        // zsh has a colon before the description, and a backslash before any other colon.
        "zsh" => {
            let bytes = line.as_bytes();
            let is_end = |at: &usize| bytes[*at] == b':' && (*at == 0 || bytes[at - 1] != b'\\');
            (0..line.len()).find(is_end).unwrap_or(line.len())
        }
        "fish" => line.find('\t').unwrap_or(line.len()),
        _ => line.len(),
    };
    names
        .map(|line| line[..end(line)].replace("\\:", ":"))
        .collect()
}

const SHELLS: [&str; 3] = ["bash", "zsh", "fish"];

fn has(candidates: &[String], name: &str) -> bool {
    candidates.iter().any(|candidate| candidate == name)
}

#[test]
fn names_of_partitions_and_services_and_ids_of_connections_are_completed() {
    let world = World::new();
    world.register(DEMO);
    world.container("web");
    world.ok(["vm", "add", "db"]);
    let _cat = world.listen([DEMO, "--from", "loopback", "--keep", "--", "cat"]);
    let mut connect = world.command(["connect", "loopback", DEMO]);
    connect.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut connect = crate::util::Running::start(&mut connect);
    connect.write(b"x\n");
    assert_eq!(connect.line(), "x");
    let id = world.connections()[0]["id"].to_string();

    let dir = world.dir().to_str().unwrap();
    for shell in SHELLS {
        let of = |words: &[&str]| candidates(shell, &[&["--dir", dir], words].concat());
        // The last of the words is the one to complete; then candidates, and names that must not be any.
        for (words, offered, others) in [
            (&["exec", ""][..], &["web", "db"][..], &["machine"][..]),
            (&["shell", "w"], &["web"], &["db"]),
            (&["kvp", "get", ""], &["web", "db"], &[]),
            (&["vm", "show", ""], &["db"], &["web"]),
            (&["vm", "integration", ""], &["db"], &["web"]),
            (&["vm", "freeze", ""], &["db"], &["web"]),
            (&["vm", "add", ""], &[], &["db", "web"]),
            (&["container", "wait", ""], &["web"], &["db"]),
            (&["container", "add", ""], &[], &["db", "web"]),
            (&["connect", ""], &["parent", "loopback", "web"], &["any"]),
            (&["connect", "web", ""], &[DEMO], &["web"]),
            (&["why", "w"], &["web"], &["db"]),
            (&["why", "web", DEMO, "--from", ""], &["web", "db"], &[]),
            (&["listen", "HV"], &[DEMO], &["web"]),
            (
                &["listen", DEMO, "--from", ""],
                &["any", "web", "db"],
                &[DEMO],
            ),
            (&["service", "disable", ""], &[DEMO], &["web"]),
            (&["service", "enable", DEMO, "--vm", ""], &["web"], &[DEMO]),
            (
                &["service", "register", "x", "--partition", ""],
                &["web"],
                &[],
            ),
            (&["connections", "close", ""], &[&id], &["web"]),
            (&["cp", "file", "w"], &["web:"], &["db:"]),
            (&["forward", "tcp:1", ""], &["web:", "tcp:"], &["web"]),
            (&["nc", ""], &["web", "db"], &[]),
            (&["ssh", "root@w"], &["root@web"], &["root@db"]),
            (
                &["vm", "integration", "db", "enable", ""],
                &["kvp"],
                &["db"],
            ),
        ] {
            let found = of(words);
            for name in offered {
                assert!(has(&found, name), "{shell} {words:?}: {name} in {found:?}");
            }
            for name in others {
                assert!(!has(&found, name), "{shell} {words:?}: {name} in {found:?}");
            }
        }
    }
}

#[test]
fn names_come_from_the_broker_of_the_command_line() {
    let world = World::new();
    world.container("web");
    let dir = world.dir().to_str().unwrap();
    let given = format!("--dir={dir}");
    for words in [
        &[&given, "exec", ""][..],
        &["--dir", dir, "exec", ""],
        &["exec", "--dir", dir, ""],
    ] {
        let found = candidates("fish", words);
        assert!(has(&found, "web"), "{words:?}: {found:?}");
    }
    let mut command = hvsock();
    command.env("HVSOCK_DIR", dir);
    assert!(has(
        &candidates_of(&mut command, "zsh", &["exec", ""]),
        "web"
    ));
    assert!(!has(
        &candidates("zsh", &["--dir", "/nonexistent", "exec", ""]),
        "web"
    ));
}

#[test]
fn a_broker_that_does_not_answer_yields_no_names_and_no_error() {
    let silent = folder();
    let _never_accepts = UnixListener::bind(silent.path().join("control")).unwrap();
    let absent = folder();
    for dir in [silent.path(), absent.path()] {
        for shell in SHELLS {
            let found = candidates(shell, &["--dir", dir.to_str().unwrap(), "exec", "w"]);
            assert_eq!(found, [""; 0], "{shell} {dir:?}");
        }
    }
}

#[test]
fn the_scripts_for_bash_zsh_and_fish_call_hvsock() {
    for shell in SHELLS {
        let script = Completed::of(hvsock().args(["completions", shell])).ok();
        assert!(
            script.contains(&format!("COMPLETE=\"{shell}\"")) || script.contains("COMPLETE=fish")
        );
        assert!(
            script.contains("hvsock --") || script.contains("\"hvsock\" --"),
            "{script}"
        );
    }
}

#[test]
fn the_scripts_for_other_shells_list_the_commands() {
    for shell in ["elvish", "powershell"] {
        let script = Completed::of(hvsock().args(["completions", shell])).ok();
        assert!(script.contains("unregister"), "{shell}");
        assert!(script.contains("--connected-suspend"), "{shell}");
    }
    Completed::of(hvsock().args(["completions", "cmd"])).usage_error();
}

#[test]
fn hidden_commands_are_not_completed() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = Completed::of(hvsock().args(["completions", shell])).ok();
        assert!(!script.contains("demo-guest"), "{shell}");
        assert!(
            !has(&candidates(shell, &["demo-"]), "demo-guest"),
            "{shell}"
        );
        assert!(has(&candidates("bash", &["dem"]), "demo"), "{shell}");
    }
}

/// What bash completes in a shell that has loaded the script. `words` are those after `hvsock` as bash
/// splits them.
fn in_bash(path: &Path, words: &[&str]) -> Vec<String> {
    let program = path.join("hvsock");
    if !program.exists() {
        std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_hvsock"), &program).unwrap();
    }
    let script = r#"
        PATH=$1:$PATH
        shift
        source <(hvsock completions bash)
        complete -p hvsock >/dev/null || exit 3
        COMP_WORDS=(hvsock "$@")
        COMP_CWORD=$# COMP_TYPE=9
        # bash passes the word without a quote at its beginning.
        word=${COMP_WORDS[COMP_CWORD]}
        _hvsock hvsock "${word#[\"\']}" "${COMP_WORDS[COMP_CWORD - 1]}"
        printf '%s\n' "${COMPREPLY[@]}"
    "#;
    let mut bash = Command::new("bash");
    bash.args(["-c", script, "bash"])
        .arg(path)
        .args(words)
        .env_remove("HVSOCK_DIR");
    let done = Completed::of(&mut bash);
    assert_eq!(done.stderr, "");
    done.ok().lines().map(str::to_owned).collect()
}

#[test]
fn bash_quotes_names_with_spaces_unless_they_are_quoted() {
    let world = World::new();
    world.register(DEMO);
    world.register("x$(exit)");
    let dir = world.dir().to_str().unwrap();
    let path = folder();
    let of = |word: &str| in_bash(path.path(), &["--dir", dir, "connect", "loopback", word]);
    assert_eq!(of("HV"), [r"HV\ Socket\ Demo"]);
    assert_eq!(of(r"HV\ So"), [r"HV\ Socket\ Demo"]);
    assert_eq!(of("'HV So"), ["HV Socket Demo"]);
    assert_eq!(of("x"), [r"x\$\(exit\)"]);
}

#[test]
fn bash_completes_words_that_it_splits() {
    let world = World::new();
    world.container("web");
    let dir = world.dir().to_str().unwrap();
    let path = folder();
    let of = |words: &[&str]| in_bash(path.path(), words);
    assert_eq!(of(&["--dir", "=", dir, "exec", "w"]), ["web"]);
    assert_eq!(of(&["--dir", dir, "ssh", "root", "@", "w"]), ["web"]);
    assert_eq!(of(&["--dir", dir, "ssh", "root", "@"]), ["web"]);
    assert_eq!(of(&["--dir", dir, "cp", "x", "we"]), ["web:"]);
    // Files in a guest are not completed, and the path is not completed with local files.
    assert_eq!(of(&["--dir", dir, "cp", "x", "web", ":", "/et"]), [""]);
    assert_eq!(of(&["--dir", dir, "cp", "/etc/hostnam"]), ["/etc/hostname"]);
}
