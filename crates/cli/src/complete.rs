//! Shell completion.
//!
//! `hvsock completions SHELL` prints the script to install. In bash, zsh and fish the script runs
//! this program at each Tab with the variable `COMPLETE` set, and [`run_if_requested`] prints the
//! candidates.
//! Names of virtual machines, containers and services and ids of connections come from
//! [`os::complete`]. A broker that does not respond within [`TIMEOUT`] yields no candidates.

mod name;

use std::ffi::{OsStr, OsString};
use std::io::{self, Write};
use std::path::Path;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use anyhow::Result;
use clap::{Arg, Command};
use clap_complete::engine::{
    ArgValueCompleter, CompletionCandidate, PathCompleter, ValueCompleter as _,
};
use clap_complete::env::{Elvish, EnvCompleter, Fish, Powershell, Shells, Zsh};
use clap_complete::{CompleteEnv, Shell};
use hvsock_control::PartitionKind;

pub use name::Name;

use crate::os::BrokerArgs;
use crate::{help, os};

/// The variable that makes this program print candidates instead of running a command.
const VARIABLE: &str = "COMPLETE";

/// The longest wait for names.
const TIMEOUT: Duration = Duration::from_millis(250);

const SHELLS: Shells<'static> = Shells(&[&Bash, &Elvish, &Fish, &Powershell, &Zsh]);

/// Prints candidates of the command line `definition` and ends this process, if a shell has requested
/// them.
pub fn run_if_requested(definition: fn() -> Command) {
    CompleteEnv::with_factory(definition)
        .var(VARIABLE)
        .bin("hvsock")
        .shells(SHELLS)
        .complete();
}

/// The script that registers completion with a shell.
///
/// For bash, zsh and fish it runs `hvsock` at each Tab. For other shells it lists the commands and
/// options of `definition`.
pub fn script(shell: Shell, mut definition: Command) -> Result<Vec<u8>> {
    let mut script = Vec::new();
    let dynamic: &dyn EnvCompleter = match shell {
        Shell::Bash => &Bash,
        Shell::Fish => &Fish,
        Shell::Zsh => &Zsh,
        shell => {
            clap_complete::generate(shell, &mut definition, "hvsock", &mut script);
            return Ok(script);
        }
    };
    dynamic.write_registration(VARIABLE, "hvsock", "hvsock", "hvsock", &mut script)?;
    Ok(script)
}

/// clap's completion for bash, with quoted names and with words that contain `@`, `=` and `:`.
struct Bash;

/// Wraps clap's function. bash splits words at `@`, `=` and `:`, so this joins them first, and removes
/// the backslashes of the word to complete. It then removes from each candidate what stands before
/// the last of these characters, and quotes it, unless the word begins with a quote, which bash closes
/// itself.
const BASH_WRAPPER: &str = r#"
_hvsock() {
    local word words=() glue= quoted=
    [[ ${COMP_WORDS[COMP_CWORD]} == [\"\']* ]] && quoted=1
    for word in "${COMP_WORDS[@]:0:COMP_CWORD}" "$2"; do
        if [[ ${#words[@]} -gt 1 && ( -n $glue || $word == [@=:]* ) ]]; then
            words[${#words[@]} - 1]+=$word
        else
            words+=("$word")
        fi
        glue=
        [[ $word == *[@=:] ]] && glue=1
    done
    local last=${words[${#words[@]} - 1]//\\/}
    words[${#words[@]} - 1]=$last
    local before=
    [[ -z $quoted && $last == *[@=:]* ]] && before=${last%"${last##*[@=:]}"}
    local COMP_WORDS=("${words[@]}") COMP_CWORD=$((${#words[@]} - 1))
    _clap_complete_hvsock "$1" "$last" "$3"
    for word in "${!COMPREPLY[@]}"; do
        local candidate=${COMPREPLY[word]#"$before"} home=
        if [[ -z $quoted ]]; then
            [[ $candidate == '~/'* ]] && home='~/'
            printf -v candidate '%s%q' "$home" "${candidate#"$home"}"
        fi
        COMPREPLY[word]=$candidate
    done
}
if [[ ${BASH_VERSINFO[0]} -eq 4 && ${BASH_VERSINFO[1]} -ge 4 || ${BASH_VERSINFO[0]} -gt 4 ]]; then
    complete -o nospace -o bashdefault -o nosort -F _hvsock hvsock
else
    complete -o nospace -o bashdefault -F _hvsock hvsock
fi
"#;

impl EnvCompleter for Bash {
    fn name(&self) -> &'static str {
        "bash"
    }

    fn is(&self, name: &str) -> bool {
        name == "bash"
    }

    fn write_registration(
        &self,
        variable: &str,
        name: &str,
        bin: &str,
        completer: &str,
        script: &mut dyn Write,
    ) -> io::Result<()> {
        let clap = clap_complete::env::Bash;
        clap.write_registration(variable, name, bin, completer, script)?;
        script.write_all(BASH_WRAPPER.trim_start().as_bytes())
    }

    fn write_complete(
        &self,
        command: &mut Command,
        words: Vec<OsString>,
        current_dir: Option<&Path>,
        candidates: &mut dyn Write,
    ) -> io::Result<()> {
        clap_complete::env::Bash.write_complete(command, words, current_dir, candidates)
    }
}

/// Adds completers to the arguments of a command and all its subcommands.
pub fn attach(command: Command) -> Command {
    attach_below(command, "")
}

fn attach_below(command: Command, path: &str) -> Command {
    let command = command.mut_args(|arg| match completer(path, &arg) {
        Some(completer) => arg.add(completer),
        None => arg,
    });
    command.mut_subcommands(|sub| {
        let path = help::join(path, sub.get_name());
        attach_below(sub, &path)
    })
}

/// The completer of an argument of the command `path`.
fn completer(path: &str, arg: &Arg) -> Option<ArgValueCompleter> {
    let kind = match path.split(' ').next() {
        Some("vm") => Some(PartitionKind::Vm),
        Some("container") => Some(PartitionKind::Container),
        _ => None,
    };
    let guests = move |current: &OsStr| matching(current, &[], guests(kind));
    Some(match (path, arg.get_id().as_str()) {
        ("connections close", "id") => {
            ArgValueCompleter::new(|current: &OsStr| matching(current, &[], connections()))
        }
        ("connect" | "why", "target") => ArgValueCompleter::new(|current: &OsStr| {
            matching(current, &["parent", "loopback"], self::guests(None))
        }),
        ("listen", "from") => ArgValueCompleter::new(|current: &OsStr| {
            let words = ["any", "children", "parent", "loopback"];
            matching(current, &words, self::guests(None))
        }),
        ("cp", "paths") => ArgValueCompleter::new(copy_paths),
        ("forward", "sides") => ArgValueCompleter::new(|current: &OsStr| {
            matching(current, &["tcp:", "unix:"], with_colon(self::guests(None)))
        }),
        ("ssh", "destination") => ArgValueCompleter::new(destinations),
        (_, "services") => ArgValueCompleter::new(|current: &OsStr| {
            matching(current, &os::complete::integration_keys(), vec![])
        }),
        (_, "service") => {
            ArgValueCompleter::new(|current: &OsStr| matching(current, &[], services()))
        }
        (_, "partition" | "partitions" | "vm" | "from") => ArgValueCompleter::new(guests),
        _ => return None,
    })
}

/// The words and names that begin with what is typed.
fn matching(current: &OsStr, words: &[&str], names: Vec<Name>) -> Vec<CompletionCandidate> {
    let Some(current) = current.to_str() else {
        return Vec::new();
    };
    let words = words
        .iter()
        .filter(|word| word.starts_with(current))
        .map(CompletionCandidate::new);
    let names = names
        .into_iter()
        // What is not printable cannot be typed, and may drive the terminal.
        .filter(|one| one.name.starts_with(current))
        .filter(|one| hvsock_text::first_escaped(&one.name).is_none())
        .map(|one| {
            let about = crate::failure::printable(&one.about);
            CompletionCandidate::new(one.name).help(Some(about.into()))
        });
    words.chain(names).collect()
}

/// Files here, and `NAME:` of each guest. Files in a guest are not completed.
fn copy_paths(current: &OsStr) -> Vec<CompletionCandidate> {
    let mut candidates = PathCompleter::any().complete(current);
    candidates.extend(matching(current, &[], with_colon(guests(None))));
    candidates
}

/// Guests after the user's name, if there is one.
fn destinations(current: &OsStr) -> Vec<CompletionCandidate> {
    let text = current.to_string_lossy();
    let (user, partition) = match text.rsplit_once('@') {
        Some((user, partition)) => (format!("{user}@"), partition),
        None => (String::new(), &*text),
    };
    let candidates = matching(OsStr::new(partition), &[], guests(None)).into_iter();
    candidates.map(|one| one.add_prefix(&user)).collect()
}

fn with_colon(names: Vec<Name>) -> Vec<Name> {
    let with = names.into_iter().map(|one| Name {
        name: one.name + ":",
        ..one
    });
    with.collect()
}

fn guests(kind: Option<PartitionKind>) -> Vec<Name> {
    guests_of(os::complete::typed_broker(), kind)
}

fn services() -> Vec<Name> {
    services_of(os::complete::typed_broker())
}

fn connections() -> Vec<Name> {
    within_timeout(|| os::complete::connections(&os::complete::typed_broker()))
}

/// The child partitions of a broker, if it answers within [`TIMEOUT`].
pub fn guests_of(broker: BrokerArgs, kind: Option<PartitionKind>) -> Vec<Name> {
    within_timeout(move || os::complete::guests(&broker, kind))
}

/// The services of a broker, if it answers within [`TIMEOUT`].
pub fn services_of(broker: BrokerArgs) -> Vec<Name> {
    within_timeout(move || os::complete::services(&broker))
}

/// Names that arrive in time. An error yields none: names are a convenience.
///
/// The thread also keeps the client's runtime out of the runtime that the caller may be in.
fn within_timeout(names: impl FnOnce() -> Result<Vec<Name>> + Send + 'static) -> Vec<Name> {
    let (send, receive) = mpsc::channel();
    // The thread ends with the process at the latest.
    let thread = thread::Builder::new().name("names".into());
    let started = thread.spawn(move || send.send(names()));
    match started.map(|_| receive.recv_timeout(TIMEOUT)) {
        Ok(Ok(Ok(names))) => names,
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(candidates: &[CompletionCandidate]) -> Vec<String> {
        let values = candidates.iter().map(CompletionCandidate::get_value);
        values
            .map(|value| value.to_string_lossy().into_owned())
            .collect()
    }

    fn name(name: &str) -> Name {
        Name {
            name: name.to_owned(),
            about: String::new(),
        }
    }

    #[test]
    fn candidates_begin_with_what_is_typed_and_have_no_control_characters() {
        let names = || vec![name("web"), name("we\x1bb"), name("db")];
        let of = |typed: &str| values(&matching(OsStr::new(typed), &["parent"], names()));
        assert_eq!(of(""), ["parent", "web", "db"]);
        assert_eq!(of("w"), ["web"]);
        assert_eq!(of("x"), [""; 0]);
    }

    #[test]
    fn names_that_come_late_or_fail_are_left_out() {
        assert_eq!(within_timeout(|| Ok(vec![name("web")])).len(), 1);
        assert!(within_timeout(|| anyhow::bail!("no broker")).is_empty());
        let (_keep, never) = mpsc::channel::<()>();
        let late = move || {
            let _ = never.recv();
            Ok(vec![name("web")])
        };
        assert!(within_timeout(late).is_empty());
    }
}
