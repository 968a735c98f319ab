//! The seccomp profile of a container whose programs need not know hvsock.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
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

/// What a container's profile is made from.
#[derive(Debug)]
pub struct Base {
    /// The file; `None` without other restrictions.
    path: Option<PathBuf>,
    content: Option<Vec<u8>>,
    form: Form,
    wait_killable: bool,
}

impl Base {
    /// Reads the container's profile without hvsock: the file that is given, or the default for whom the profile
    /// is.
    ///
    /// # Errors
    /// If it cannot be found or read, or the rules of hvsock cannot be added to it.
    pub fn read(given: Option<&Path>, format: Format, wait_killable: bool) -> Result<Self> {
        let path = match given {
            Some(path) => Some(path.to_owned()),
            None => default_path(format)?,
        };
        let base = Self {
            content: path.as_deref().map(read).transpose()?,
            path,
            form: match format {
                Format::Podman | Format::Docker | Format::Compose => Form::Engine,
                // Kubernetes passes it on to the runtime as it is.
                Format::Oci | Format::Kubernetes => Form::Runtime,
            },
            wait_killable,
        };
        base.merge(Path::new("/"), "")?;
        Ok(base)
    }

    /// The profile for a container.
    ///
    /// # Errors
    /// If the container has no endpoint.
    pub fn profile(&self, container: &Partition) -> Result<Profile> {
        let endpoint = container.endpoint.as_deref();
        // DIR/containers/NAME/endpoint
        let folder = endpoint.and_then(|endpoint| endpoint.ancestors().nth(3));
        let folder = folder.context("the broker has no endpoint for this container")?;
        self.merge(&folder.join("seccomp-agent"), container.name.as_str())
    }

    fn merge(&self, agent: &Path, name: &str) -> Result<Profile> {
        let made = Profile::new(self.content.as_deref(), self.form, agent, name);
        let mut profile = made.map_err(|error| {
            let from = match &self.path {
                Some(path) => format!(" from {}", printable_path(path)),
                None => String::new(),
            };
            let error = anyhow::Error::new(error);
            Failure::new(format!("cannot make a seccomp profile{from}: {error:#}"))
        })?;
        if self.wait_killable {
            profile.wait_killable();
        }
        Ok(profile)
    }
}

/// The file with the default profile of an engine; `None` if that has none.
fn default_path(format: Format) -> Result<Option<PathBuf>> {
    match format {
        Format::Podman => {
            let mut paths = OF_PODMAN.iter().map(PathBuf::from);
            let missing = || {
                Failure::new("podman's default seccomp profile is in none of its files")
                    .help("give a profile with --seccomp-base FILE")
            };
            let found = paths.find(|path| path.exists());
            Ok(Some(found.ok_or_else(missing)?))
        }
        Format::Docker | Format::Compose => {
            let text =
                "docker's default seccomp profile is in no file, and the container must keep it";
            let help = format!("give a copy of {OF_DOCKER} with --seccomp-base FILE");
            Err(Failure::new(text).help(help).into())
        }
        Format::Oci | Format::Kubernetes => Ok(None),
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
