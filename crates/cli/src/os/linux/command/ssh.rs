//! `hvsock ssh`: runs OpenSSH's client over a connection to a guest.

use std::ffi::OsString;
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::str::FromStr;

use anyhow::{Context as _, Result};
use clap::Args;
use hvsock::VmId;
use hvsock_address::PartitionRef;

use crate::context::Context;
use crate::format::shell_word;
use crate::os::Partition;

/// Log in to a guest with ssh, without a network
#[derive(Debug, Args)]
pub struct Ssh {
    /// The virtual machine or container, and the user in it
    #[arg(value_name = "[USER@]VM")]
    destination: Destination,
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
        let Destination { user, partition } = &self.destination;
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
        let host = match user {
            Some(user) => format!("{user}@{partition}"),
            None => partition.to_string(),
        };
        let error = Command::new("ssh")
            .args(options(program, &context.command("hvsock nc"), id))
            .arg(host)
            .args(self.arguments)
            .exec();
        Err(error).context("cannot run ssh")
    }
}

/// The options for ssh. `nc` is the command `hvsock nc` with the options that select the broker.
fn options(program: &str, nc: &str, id: VmId) -> Vec<String> {
    let rest = nc.strip_prefix("hvsock ").unwrap_or(nc);
    let proxy = format!("{} {rest} {id} ssh", shell_word(program));
    let options = [
        // ssh expands percent signs.
        format!("ProxyCommand={}", proxy.replace('%', "%%")),
        format!("HostKeyAlias=hvsock/{id}"),
        "StrictHostKeyChecking=accept-new".to_owned(),
        // The connection has no IP address.
        "CheckHostIP=no".to_owned(),
    ];
    options
        .into_iter()
        .flat_map(|option| ["-o".to_owned(), option])
        .collect()
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
        for text in ["@web", "-oProxyCommand=x@web", "root@", "-web", "root@a/b"] {
            assert!(of(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_proxy_command_is_safe_from_the_shell_and_from_ssh() {
        let id = VmId::LOOPBACK;
        let options = options("/opt/a b/100%/hvsock", "hvsock --dir '/x y' nc", id);
        let expected = format!("ProxyCommand='/opt/a b/100%%/hvsock' --dir '/x y' nc {id} ssh");
        assert_eq!(options[1], expected);
        assert!(options.contains(&format!("HostKeyAlias=hvsock/{id}")));
    }
}
