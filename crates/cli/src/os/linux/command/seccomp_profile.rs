//! The seccomp profile of a container whose programs need not know hvsock.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use clap::Args;
use hvsock_control::Partition;
use hvsock_interpose::agent::{Form, Profile};
use hvsock_text::printable_path;

use super::mounts::{Format, Mounts};
use crate::context::Context;
use crate::failure::Failure;
use crate::os::linux::output;

/// Where podman has its default profile, in the order of their use (containers.conf(5)).
const OF_PODMAN: [&str; 2] = [
    "/etc/containers/seccomp.json",
    "/usr/share/containers/seccomp.json",
];

/// Where docker's default profile can be had, which is in no file.
const OF_DOCKER: &str = "https://github.com/moby/profiles/blob/main/seccomp/default.json";

/// The most bytes of a profile or a `config.json`.
const MAX_BASE: u64 = 16 * 1024 * 1024;

/// The options of a profile.
#[derive(Debug, Args)]
pub struct SeccompBase {
    /// The container's seccomp profile without hvsock, or a config.json [default: podman's default profile]
    #[arg(long, value_name = "FILE")]
    seccomp_base: Option<PathBuf>,
}

impl SeccompBase {
    /// The profile for a container.
    ///
    /// # Errors
    /// If the profile without hvsock cannot be found or read, or rules cannot be added to it.
    pub fn profile(&self, container: &Partition, format: Format) -> Result<Profile> {
        let form = match format {
            Format::Podman | Format::Docker | Format::Compose => Form::Engine,
            // Kubernetes passes it on to the runtime as it is.
            Format::Oci | Format::Kubernetes => Form::Runtime,
        };
        let path = self.path(format)?;
        let base = path.as_deref().map(read).transpose()?;
        let endpoint = container.endpoint.as_deref();
        // DIR/containers/NAME/endpoint
        let folder = endpoint.and_then(|endpoint| endpoint.ancestors().nth(3));
        let folder = folder.context("the broker has no endpoint for this container")?;
        let agent = folder.join("seccomp-agent");
        let profile = Profile::new(base.as_deref(), form, &agent, container.name.as_str());
        profile.map_err(|error| {
            let base = path.as_deref().map_or_else(String::new, |path| {
                format!(" from {}", printable_path(path))
            });
            let error = anyhow::Error::new(error);
            Failure::new(format!("cannot make a seccomp profile{base}: {error:#}")).into()
        })
    }

    fn path(&self, format: Format) -> Result<Option<PathBuf>> {
        if let Some(path) = &self.seccomp_base {
            return Ok(Some(path.clone()));
        }
        match format {
            Format::Podman => {
                let found = OF_PODMAN
                    .iter()
                    .map(PathBuf::from)
                    .find(|path| path.exists());
                let missing = || {
                    Failure::new("podman's default seccomp profile is in none of its files")
                        .help("give a profile with --seccomp-base FILE")
                };
                Ok(Some(found.ok_or_else(missing)?))
            }
            Format::Docker | Format::Compose => {
                let text = "docker's default seccomp profile is in no file, and the container must keep it";
                let help = format!("give a copy of {OF_DOCKER} with --seccomp-base FILE");
                Err(Failure::new(text).help(help).into())
            }
            Format::Oci | Format::Kubernetes => Ok(None),
        }
    }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    let text = || format!("cannot read the seccomp profile {}", printable_path(path));
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(MAX_BASE + 1).read_to_end(&mut bytes));
    match read {
        Ok(count) if u64::try_from(count).is_ok_and(|count| count <= MAX_BASE) => Ok(bytes),
        Ok(_) => Err(io::Error::from(io::ErrorKind::FileTooLarge)).with_context(text),
        Err(error) => Err(error).with_context(text),
    }
}

/// Prints a profile.
///
/// # Errors
/// Those of stdout.
pub fn print(profile: &Profile) -> Result<()> {
    output::json(profile.as_json())
}

/// Says on stderr how a container is started with a profile.
pub fn note(context: &Context, mounts: &Mounts, format: Format) {
    // The ioctl of the device is answered by the agent, so it need not be one of vsock.
    let device = "--device=/dev/null:/dev/vsock";
    match format {
        Format::Podman | Format::Docker => {
            let option = mounts.option().unwrap_or_else(|error| error.to_string());
            context.note(
                "The profile is for FILE. Start the container with these options of podman or docker:",
            );
            context.note(&format!("{option} {device} --security-opt=seccomp=FILE"));
        }
        Format::Oci => {
            context.note("The object is `linux.seccomp` of config.json. Its `mounts` need these entries:");
            context.note(&mounts.oci_entry());
            context.note(
                r#"{"destination":"/dev/vsock","type":"bind","source":"/dev/null","options":["bind","nosuid","noexec"]}"#,
            );
        }
        Format::Compose => context.note(
            "The profile is for FILE. Add `security_opt: [\"seccomp:FILE\"]` and `devices: [\"/dev/null:/dev/vsock\"]`.",
        ),
        Format::Kubernetes => context.note(
            "The profile is for FILE below /var/lib/kubelet/seccomp: `seccompProfile`, `type: Localhost`, \
             `localhostProfile: FILE`.",
        ),
    }
}
