//! `hvsock ssh`: runs OpenSSH's client over a connection to a guest.
//!
//! ssh finds its settings by the name of a host, and a partition may have the same name as a host of
//! the network. So ssh gets the name `hvsock/PARTITION/ssh`, which no host of the network has: a
//! `Host` block, a host key or a control socket of such a host does not apply to the partition, and
//! the partition's do not apply to the host. systemd names its sockets for ssh alike (`vsock/CID`).

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::str::FromStr;

use anyhow::{Context as _, Result};
use clap::Args;
use hvsock::VmId;
use hvsock_address::PartitionRef;

use crate::context::Context;
use crate::failure::Failure;
use crate::format::shell_word;
use crate::os::Partition;

/// Log in to a guest with ssh, without a network
#[derive(Debug, Args)]
pub struct Ssh {
    /// The virtual machine or container, and the user in it; options of ssh may precede it
    #[arg(value_name = "[USER@]VM", allow_hyphen_values = true)]
    destination: OsString,
    /// Options and the command for ssh
    #[arg(
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "ARGUMENT"
    )]
    arguments: Vec<OsString>,
}

#[derive(Clone, Debug)]
struct Destination {
    user: Option<String>,
    partition: Partition,
}

impl FromStr for Destination {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (user, partition) = match text.rsplit_once('@') {
            Some((user, partition)) => (Some(user.to_owned()), partition),
            None => (None, text),
        };
        // ssh would take a user that begins with a dash for an option.
        if user
            .as_ref()
            .is_some_and(|user| user.is_empty() || user.starts_with('-'))
        {
            return Err(format!("`{text}` has no valid user before the @"));
        }
        let partition = partition.parse::<Partition>();
        let partition = partition.map_err(|error| error.to_string())?;
        Ok(Self { user, partition })
    }
}

impl Ssh {
    pub fn run(self, context: &Context) -> Result<()> {
        let words = [vec![self.destination], self.arguments].concat();
        let CommandLine {
            options,
            destination,
            command,
        } = CommandLine::parse(words).map_err(Failure::usage)?;
        let Destination { user, partition } = destination;
        let id = match partition.resolve()? {
            PartitionRef::Id(id) => id,
            PartitionRef::Name(name) => {
                let id = context.endpoint().vm_id(&name);
                id.with_context(|| {
                    format!("cannot find the virtual machine or container `{name}`")
                })?
            }
        };
        let program = std::env::current_exe().context("cannot find this program")?;
        let program = program
            .to_str()
            .context("this program's path is not UTF-8")?;
        let host = host(&partition.to_string());
        let destination = match user {
            Some(user) => format!("{user}@{host}"),
            None => host.clone(),
        };
        // The first value of an option applies, and all of a command line before the configuration.
        let error = Command::new("ssh")
            .args(fixed_options(
                program,
                &context.command("hvsock nc"),
                id,
                &host,
            ))
            .args(options)
            .args(default_options())
            .arg("--")
            .arg(destination)
            .args(command)
            .exec();
        Err(error).context("cannot run ssh")
    }
}

/// The host name of a partition for ssh. It has a prefix and a suffix, because patterns such as `db*`
/// and `*-prod` are common.
fn host(partition: &str) -> String {
    format!("hvsock/{partition}/ssh")
}

/// The options that decide where ssh connects to. `nc` is the command `hvsock nc` with the options
/// that select the broker.
fn fixed_options(program: &str, nc: &str, id: VmId, host: &str) -> Vec<String> {
    let rest = nc.strip_prefix("hvsock ").unwrap_or(nc);
    let proxy = format!("{} {rest} {id} ssh", shell_word(program));
    // ssh expands percent signs.
    let escaped = |text: &str| text.replace('%', "%%");
    as_options([
        format!("ProxyCommand={}", escaped(&proxy)),
        "ProxyUseFdpass=no".to_owned(),
        format!("HostName={}", escaped(host)),
        "CanonicalizeHostname=no".to_owned(),
        format!("HostKeyAlias=hvsock/{id}"),
        "VerifyHostKeyDNS=no".to_owned(),
    ])
}

/// The keywords of [`fixed_options`], and those that conflict with them.
const FIXED: [&str; 7] = [
    "ProxyCommand",
    "ProxyJump",
    "ProxyUseFdpass",
    "HostName",
    "CanonicalizeHostname",
    "HostKeyAlias",
    "VerifyHostKeyDNS",
];

/// The options that a caller can replace, but no configuration file.
fn default_options() -> Vec<String> {
    as_options([
        // A path of the configuration may lead to a connection to another machine, or lead others
        // to this one.
        "ControlPath=none".to_owned(),
        "StrictHostKeyChecking=accept-new".to_owned(),
        // The connection has no IP address.
        "CheckHostIP=no".to_owned(),
        // They answer for the hosts of the network, also by patterns such as `*`.
        "KnownHostsCommand=none".to_owned(),
        "GlobalKnownHostsFile=/dev/null".to_owned(),
    ])
}

fn as_options<const N: usize>(options: [String; N]) -> Vec<String> {
    let options = options.into_iter();
    options.flat_map(|one| ["-o".to_owned(), one]).collect()
}

/// The options of ssh(1) that take a value.
const WITH_VALUE: &[u8] = b"bceilmopBDEFIJLOPQRSwW";

/// The words of a command line of ssh.
#[derive(Debug)]
struct CommandLine {
    options: Vec<OsString>,
    destination: Destination,
    command: Vec<OsString>,
}

impl CommandLine {
    /// Parses a command line as ssh(1) does: options are before and after the destination, and the
    /// first other word begins the command. So programs that call ssh, such as rsync, can call this
    /// command instead.
    fn parse(words: impl IntoIterator<Item = OsString>) -> Result<Self, String> {
        let mut words = words.into_iter();
        let mut options = Vec::new();
        let found = take_options(&mut words, &mut options)?;
        let found = found.ok_or("the name of a virtual machine or container is missing")?;
        let text = found.to_str().ok_or("the destination is not UTF-8")?;
        let destination = text.parse()?;
        let first = take_options(&mut words, &mut options)?;
        Ok(Self {
            options,
            destination,
            command: first.into_iter().chain(words).collect(),
        })
    }
}

/// Moves options to `options`. Returns the first word that is none.
fn take_options(
    words: &mut impl Iterator<Item = OsString>,
    options: &mut Vec<OsString>,
) -> Result<Option<OsString>, String> {
    while let Some(word) = words.next() {
        let Some(letters) = word
            .as_bytes()
            .strip_prefix(b"-")
            .filter(|it| !it.is_empty())
        else {
            return Ok(Some(word));
        };
        if letters == b"-" {
            return Ok(words.next());
        }
        let with_value = letters.iter().position(|one| WITH_VALUE.contains(one));
        let Some(at) = with_value else {
            options.push(word);
            continue;
        };
        let (letter, value) = (letters[at], letters[at + 1..].to_vec());
        let value = match value.is_empty() {
            false => OsString::from_vec(value),
            true => {
                let missing = || format!("ssh's option -{} needs a value", char::from(letter));
                words.next().ok_or_else(missing)?
            }
        };
        check(letter, &value)?;
        options.push(OsString::from_vec([b"-", &letters[..=at]].concat()));
        options.push(value);
    }
    Ok(None)
}

/// Refuses an option that would be ignored, because this command sets it.
fn check(letter: u8, value: &OsStr) -> Result<(), String> {
    let keyword = match letter {
        b'J' => "ProxyJump".to_owned(),
        b'o' => {
            let text = value.to_string_lossy();
            let ends = |char: char| char.is_whitespace() || char == '=';
            let keyword = text.trim_start().split(ends).next();
            keyword.unwrap_or_default().trim_matches('"').to_owned()
        }
        _ => return Ok(()),
    };
    match FIXED.iter().find(|one| one.eq_ignore_ascii_case(&keyword)) {
        Some(keyword) => Err(format!(
            "{keyword} is not an option of `hvsock ssh`, which connects to a partition"
        )),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_destination_may_have_a_user() {
        let of = |text: &str| {
            let found = text.parse::<Destination>();
            found.map(|found| (found.user, found.partition.to_string()))
        };
        assert_eq!(of("web"), Ok((None, "web".to_owned())));
        let user = Some("a@b".to_owned());
        assert_eq!(of("a@b@web"), Ok((user, "web".to_owned())));
        let user = Some("root".to_owned());
        assert_eq!(of("root@web/box"), Ok((user, "web/box".to_owned())));
        for text in [
            "@web",
            "-oProxyCommand=x@web",
            "root@",
            "-web",
            "root@a/b/c",
            "root@/b",
            "root@web/-x",
        ] {
            assert!(of(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_proxy_command_is_safe_from_the_shell_and_from_ssh() {
        let id = VmId::LOOPBACK;
        let nc = "hvsock --dir '/x y' nc";
        let options = fixed_options("/opt/a b/100%/hvsock", nc, id, &host("web"));
        let expected = format!("ProxyCommand='/opt/a b/100%%/hvsock' --dir '/x y' nc {id} ssh");
        assert_eq!(options[1], expected);
        assert!(options.contains(&format!("HostKeyAlias=hvsock/{id}")));
        assert!(options.contains(&"HostName=hvsock/web/ssh".to_owned()));
        assert_eq!(host("web/box"), "hvsock/web/box/ssh");
    }

    fn parsed(line: &str) -> Result<(String, String, String), String> {
        let words = line.split(' ').map(OsString::from);
        let found = CommandLine::parse(words)?;
        let text = |words: Vec<OsString>| words.join(OsStr::new(" ")).into_string().unwrap();
        let partition = found.destination.partition.to_string();
        Ok((text(found.options), partition, text(found.command)))
    }

    #[test]
    fn a_command_line_is_parsed_as_ssh_parses_it() {
        let ok = |line: &str, options: &str, command: &str| {
            let expected = (options.to_owned(), "web".to_owned(), command.to_owned());
            assert_eq!(parsed(line), Ok(expected), "{line}");
        };
        ok("web", "", "");
        ok("root@web uname -a", "", "uname -a");
        ok("web -L 8080:x:80 -N", "-L 8080:x:80 -N", "");
        ok("web -L8080:x:80 -vN ls -l", "-L 8080:x:80 -vN", "ls -l");
        ok(
            "-l root web rsync --server .",
            "-l root",
            "rsync --server .",
        );
        ok("-vp 22 -- web -- -x", "-vp 22", "-x");
        ok("-o ControlPath=/x web -G", "-o ControlPath=/x -G", "");
        ok("web - x", "", "- x");
    }

    #[test]
    fn options_that_lead_elsewhere_are_refused() {
        for line in [
            "web -J bastion",
            "-Jbastion web",
            "web -o ProxyCommand=x",
            "web -oproxyjump=x",
            "-o HOSTNAME=x web",
            "web -vo HostKeyAlias=x",
            "web -o",
            "-v",
        ] {
            assert!(parsed(line).is_err(), "{line}");
        }
        assert!(parsed("web ls -o ProxyCommand=x").is_ok());
    }
}
