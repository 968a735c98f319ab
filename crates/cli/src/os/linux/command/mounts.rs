//! How to mount a container's endpoint, for whoever starts the container.
//!
//! `podman run $(hvsock container add web) IMAGE` must never start a container without the mount: the shell
//! drops the exit status of the inner command. So the line for an engine is one word, which no shell splits
//! or expands, and a failed command prints an option that no engine has.

use std::ffi::OsString;
use std::io::IsTerminal as _;
use std::path::Path;

use anyhow::{Context as _, Result};
use clap::ValueEnum;
use hvsock_control::{CdiDevice, Partition};
use serde::Serialize;

use crate::failure::Failure;
use crate::format::shell_word;
use crate::os::linux::output;

/// The folder of the endpoint in a container.
const INSIDE: &str = "/run/hvsock";

/// The folders of CDI devices that every engine of root reads without being told to.
const READ_BY_DEFAULT: [&str; 3] = ["/etc/cdi", "/run/cdi", "/var/run/cdi"];

/// For whom the mount is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// An option of `podman run`
    #[default]
    Podman,
    /// An option of `docker run`, and of nerdctl
    Docker,
    /// The entry for `mounts` in the config.json of an OCI runtime
    Oci,
    /// A part of a service in a compose file
    Compose,
    /// Parts of a Pod's `containers` entry and of its `spec`
    Kubernetes,
}

/// How to mount the endpoint of one container.
#[derive(Debug, Serialize)]
pub struct Mounts {
    /// The option for podman and docker, if the folder's path can be in one.
    mount: Option<String>,
    /// The entry for `mounts` of an OCI runtime's `config.json`.
    oci: OciMount,
    #[serde(skip)]
    device: Option<CdiDevice>,
}

#[derive(Debug, Serialize)]
struct OciMount {
    destination: &'static str,
    #[serde(rename = "type")]
    kind: &'static str,
    source: String,
    options: [&'static str; 5],
}

impl Mounts {
    pub fn of(container: &Partition) -> Result<Self> {
        let endpoint = container.endpoint.as_ref();
        let folder = endpoint.and_then(|endpoint| endpoint.parent());
        let folder = folder.context("the broker has no endpoint for this container")?;
        let source = folder
            .to_str()
            .context("the endpoint's folder is not UTF-8")?;
        Ok(Self::with(
            source,
            container.container.as_ref().and_then(|one| one.cdi.clone()),
        ))
    }

    fn with(source: &str, device: Option<CdiDevice>) -> Self {
        let fits = misread(source).is_none();
        Self {
            mount: fits.then(|| format!("--mount=type=bind,src={source},dst={INSIDE},readonly")),
            oci: OciMount {
                destination: INSIDE,
                kind: "bind",
                source: source.to_owned(),
                // A process can connect to a socket in a read-only mount.
                options: ["bind", "ro", "nosuid", "nodev", "noexec"],
            },
            device,
        }
    }

    /// The mount as one option of an engine, or why there is none.
    pub fn option(&self) -> Result<String> {
        if let Some(device) = self.found_device() {
            return Ok(format!("--device={}", device.device));
        }
        if let Some(mount) = &self.mount {
            return Ok(mount.clone());
        }
        let source = &self.oci.source;
        let character = misread(source).unwrap_or_default();
        let message = format!(
            "no option can name the folder `{source}`: a shell or the engine would read `{character}` as \
             something else"
        );
        let help = match self.device_note() {
            Some(note) => note,
            None => "use --format oci, compose or kubernetes, or run the broker in another folder"
                .to_owned(),
        };
        Err(Failure::new(message).help(help).into())
    }

    /// What tells engines of a device that they do not find by themselves.
    pub fn device_note(&self) -> Option<String> {
        let device = self
            .device
            .as_ref()
            .filter(|_| self.found_device().is_none())?;
        let folder = device.file.parent().unwrap_or(Path::new("/"));
        let folder = shell_word(&folder.to_string_lossy());
        Some(format!(
            "podman 5.5 takes `--cdi-spec-dir {folder} --device {}`, or reads `cdi_spec_dirs` in \
             containers.conf; docker reads `cdi-spec-dirs` in daemon.json",
            device.device
        ))
    }

    /// The entry for `mounts` of an OCI runtime's `config.json`.
    pub fn oci_entry(&self) -> String {
        serde_json::to_string(&self.oci).unwrap_or_default()
    }

    /// The qualified name of the device, if there is one.
    pub fn device(&self) -> Option<&CdiDevice> {
        self.device.as_ref()
    }

    /// The device, if engines find it by themselves.
    fn found_device(&self) -> Option<&CdiDevice> {
        let device = self.device.as_ref()?;
        let folder = device.file.parent()?;
        let is_found = READ_BY_DEFAULT.iter().any(|path| folder == Path::new(path));
        is_found.then_some(device)
    }

    /// Prints the mount.
    pub fn print(&self, format: Format) -> Result<()> {
        match format {
            Format::Podman | Format::Docker => output::line(self.option()?),
            Format::Oci => output::json_line(&self.oci),
            Format::Compose => output::text(&self.compose()),
            Format::Kubernetes => output::text(&self.kubernetes()),
        }
    }

    fn compose(&self) -> String {
        if let Some(device) = self.found_device() {
            return format!("devices:\n  - \"{}\"\n", device.device);
        }
        // Compose replaces variables in every value.
        let source = yaml_string(&self.oci.source).replace('$', "$$");
        // Without `create_host_path` a missing folder is an error; the engine would create it as root.
        format!(
            "volumes:\n  - type: bind\n    source: {source}\n    target: {INSIDE}\n    read_only: true\n    \
             bind:\n      create_host_path: false\n"
        )
    }

    fn kubernetes(&self) -> String {
        let source = yaml_string(&self.oci.source);
        format!(
            "# in the container\nvolumeMounts:\n  - name: hvsock\n    mountPath: {INSIDE}\n    readOnly: true\n\
             # in the Pod's spec, on the node of this broker\nvolumes:\n  - name: hvsock\n    hostPath:\n      \
             path: {source}\n      type: Directory\n"
        )
    }
}

/// The first character of a path that a shell splits, expands or removes, or that separates the parts of
/// `--mount`. Such a line would be right pasted or in `$(…)`, and not in both.
fn misread(path: &str) -> Option<char> {
    let is_plain = |c: char| match c.is_ascii() {
        true => c.is_ascii_alphanumeric() || "._-/:@%+=".contains(c),
        false => c.is_alphanumeric(),
    };
    path.chars().find(|c| !is_plain(*c))
}

/// A string of YAML, in quotes. What is not printable is escaped.
fn yaml_string(text: &str) -> String {
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            c if hvsock_text::first_escaped(c.encode_utf8(&mut [0; 4])).is_some() => {
                quoted.push_str(&format!("\\U{:08X}", u32::from(c)));
            }
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

/// Passes a result on. If it is an error and `verb` was to print an engine's option, prints one that no engine
/// has, so that the engine fails, too.
pub fn or_invalid_option(verb: &str, result: Result<()>) -> Result<()> {
    if let Err(error) = &result
        && !error.is::<output::OutputGone>()
    {
        print_invalid_option(verb);
    }
    result
}

fn print_invalid_option(verb: &str) {
    if !std::io::stdout().is_terminal() {
        let _ = output::line(format_args!("--hvsock-container-{verb}-failed"));
    }
}

/// As [`or_invalid_option`], for arguments that are not a valid command line.
pub fn invalid_arguments(arguments: &[OsString]) {
    let has = |word: &str| arguments.iter().any(|argument| argument == word);
    let is_other = arguments.iter().any(|argument| {
        let argument = argument.to_string_lossy();
        argument.starts_with("--json")
            || ["oci", "compose", "kubernetes"]
                .iter()
                .any(|f| argument.ends_with(f))
    });
    if !has("container") || is_other {
        return;
    }
    if has("add") {
        print_invalid_option("add");
    } else if has("show") && has("--mount") {
        print_invalid_option("show");
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    /// Folders that somebody may give with `--dir`, and whether a path of theirs can be in an option.
    const FOLDERS: [(&str, bool); 14] = [
        ("/run/hvsock", true),
        ("/srv/über/a:b@c%d+e=f", true),
        ("/a b", false),
        ("/a,b", false),
        ("/a\"b", false),
        ("/a'b", false),
        ("/a\\b", false),
        ("/a$HOME`id`", false),
        ("/a*?[b]", false),
        ("/a\tb\nc", false),
        ("/a;b&c|d", false),
        ("/#{a}: - !x", false),
        ("/~a", false),
        ("/\u{1b}[2J\u{202e}\u{e0001}", false),
    ];

    fn device(folder: &str) -> CdiDevice {
        CdiDevice {
            device: "hvsock.dev/endpoint=web".to_owned(),
            file: format!("{folder}/hvsock.dev-endpoint_web.json").into(),
        }
    }

    #[test]
    fn an_option_is_one_word_that_a_shell_does_not_change_or_is_refused() {
        for (folder, fits) in FOLDERS {
            let option = Mounts::with(folder, None).option();
            assert_eq!(option.is_ok(), fits, "{folder}");
            let Ok(option) = option else { continue };
            assert_eq!(
                option,
                format!("--mount=type=bind,src={folder},dst=/run/hvsock,readonly")
            );
            for line in [
                format!("printf %s {option}"),
                "printf %s $(printf %s \"$1\")".to_owned(),
            ] {
                let output = std::process::Command::new("sh")
                    .args(["-c", &line, "sh", &option])
                    .output()
                    .unwrap();
                assert_eq!(String::from_utf8(output.stdout).unwrap(), option);
            }
        }
    }

    #[test]
    fn a_device_that_engines_find_is_the_option_whatever_the_folder_is() {
        for cdi in ["/etc/cdi", "/run/cdi", "/var/run/cdi"] {
            for (folder, _) in FOLDERS {
                let mounts = Mounts::with(folder, Some(device(cdi)));
                assert_eq!(mounts.option().unwrap(), "--device=hvsock.dev/endpoint=web");
                assert_eq!(mounts.device_note(), None);
                assert!(mounts.compose().contains("- \"hvsock.dev/endpoint=web\""));
            }
        }
        let elsewhere = Mounts::with("/d", Some(device("/my cdi")));
        assert!(elsewhere.option().unwrap().starts_with("--mount="));
        let note = elsewhere.device_note().unwrap();
        assert!(
            note.contains("--cdi-spec-dir '/my cdi' --device hvsock.dev/endpoint=web"),
            "{note}"
        );
    }

    #[test]
    fn every_folder_is_quoted_in_json_and_yaml() {
        for (folder, _) in FOLDERS {
            let mounts = Mounts::with(folder, None);
            let oci: Value =
                serde_json::from_str(&serde_json::to_string(&mounts.oci).unwrap()).unwrap();
            assert_eq!(oci["source"], folder);
            for (yaml, key, dollars) in [
                (mounts.compose(), "source: ", 2),
                (mounts.kubernetes(), "path: ", 1),
            ] {
                let line = yaml
                    .lines()
                    .find_map(|line| line.trim().strip_prefix(key))
                    .unwrap();
                assert_eq!(unquoted(line).replace(&"$".repeat(dollars), "$"), folder);
                assert!(
                    yaml.lines()
                        .all(|line| hvsock_text::first_escaped(line).is_none()),
                    "{yaml}"
                );
            }
        }
    }

    /// A double-quoted string of YAML 1.2 (section 5.7) as its value.
    fn unquoted(text: &str) -> String {
        let mut rest = text
            .strip_prefix('"')
            .unwrap()
            .strip_suffix('"')
            .unwrap()
            .chars();
        let mut value = String::new();
        while let Some(c) = rest.next() {
            match c {
                '\\' => match rest.next().unwrap() {
                    'U' => {
                        let digits: String = rest.by_ref().take(8).collect();
                        let number = u32::from_str_radix(&digits, 16).unwrap();
                        value.push(char::from_u32(number).unwrap());
                    }
                    other => value.push(other),
                },
                '"' => panic!("an end within {text}"),
                other => value.push(other),
            }
        }
        value
    }
}
