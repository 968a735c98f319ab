//! `cargo xtask capi`: builds the C library and puts it into a folder as cargo-c would.
//!
//! Beyond cargo-c its symbols have versions: a shared library that rustc links cannot have them, so the compiler for
//! C links the static one.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, anyhow, bail};

use crate::run;

/// The full version of the shared library; its first number is that of the soname.
const VERSION: &str = "1.0.0";

/// What the Rust standard library needs of the system, as `rustc --print native-static-libs` says, without `-lgcc_s`: the
/// compiler links the unwinder that fits, and a program that is linked with `-static` has no shared one.
const SYSTEM_LIBRARIES: &str = "-lutil -lrt -lpthread -lm -ldl -lc";

/// The options, each with what it does.
pub const OPTIONS: &[(&str, &str)] = &[
    (
        "--prefix FOLDER",
        "install below this folder [default: target/capi, with --destdir /usr/local]",
    ),
    (
        "--libdir FOLDER",
        "the folder of the libraries below the prefix, as lib64 [default: lib]",
    ),
    (
        "--destdir FOLDER",
        "write the files below this folder, which hvsock.pc does not name, for a package",
    ),
    (
        "--profile NAME",
        "the profile of cargo to build with [default: release]",
    ),
];

/// Where the files go.
struct Folders {
    prefix: PathBuf,
    /// In front of the prefix, for packages.
    destdir: PathBuf,
    libdir: String,
    profile: String,
}

/// Runs the task.
pub fn run(arguments: &[String]) -> Result<()> {
    let folders = Folders::parse(arguments)?;
    let archive = build(&folders.profile)?;
    let lib = folders.at(&folders.libdir);
    let include = folders.at("include/hvsock");
    let pkgconfig = lib.join("pkgconfig");
    for folder in [&lib, &include, &pkgconfig] {
        fs::create_dir_all(folder)
            .with_context(|| format!("cannot create {}", folder.display()))?;
    }
    install(&archive, &lib.join("libhvsock.a"))?;
    link(&archive, &lib.join(format!("libhvsock.so.{VERSION}")))?;
    for name in ["libhvsock.so.1", "libhvsock.so"] {
        let link = lib.join(name);
        let _ = fs::remove_file(&link);
        symlink(format!("libhvsock.so.{VERSION}"), link)?;
    }
    header()?.write_to_file(include.join("hvsock.h"));
    for entry in fs::read_dir(root().join("include"))? {
        let path = entry?.path();
        install(&path, &include.join(path.file_name().unwrap_or_default()))?;
    }
    fs::write(pkgconfig.join("hvsock.pc"), folders.pkg_config())?;
    println!("{}", lib.display());
    Ok(())
}

/// The folder of the crate.
fn root() -> PathBuf {
    run::root().join("crates/capi")
}

impl Folders {
    fn parse(arguments: &[String]) -> Result<Self> {
        let mut folders = Self {
            prefix: PathBuf::new(),
            destdir: PathBuf::new(),
            libdir: "lib".into(),
            profile: "release".into(),
        };
        let mut rest = arguments.iter();
        while let Some(argument) = rest.next() {
            let (name, value) = match argument.split_once('=') {
                Some((name, value)) => (name, Some(value)),
                None => (argument.as_str(), None),
            };
            let is_known = |(known, _): &(&str, _)| known.split(' ').next() == Some(name);
            if !OPTIONS.iter().any(is_known) {
                bail!("no option {name:?}\nhelp: cargo xtask capi --help");
            }
            let value = value.or_else(|| rest.next().map(String::as_str));
            let value = value.filter(|value| !value.is_empty());
            let value = value.with_context(|| format!("{name} needs a value"))?;
            match name {
                "--prefix" => folders.prefix = value.into(),
                "--destdir" => folders.destdir = value.into(),
                "--libdir" => folders.libdir = value.to_owned(),
                "--profile" => folders.profile = value.to_owned(),
                _ => bail!("no option {name:?}"),
            }
        }
        let has_destdir = !folders.destdir.as_os_str().is_empty();
        if folders.prefix.as_os_str().is_empty() {
            folders.prefix = match has_destdir {
                true => "/usr/local".into(),
                false => target().join("capi"),
            };
        }
        if !folders.prefix.is_absolute() {
            folders.prefix = std::env::current_dir()?.join(&folders.prefix);
        }
        Ok(folders)
    }

    /// A path below the prefix, where it is written now.
    fn at(&self, path: &str) -> PathBuf {
        if self.destdir.as_os_str().is_empty() {
            return self.prefix.join(path);
        }
        let prefix = self.prefix.strip_prefix("/").unwrap_or(&self.prefix);
        self.destdir.join(prefix).join(path)
    }

    fn pkg_config(&self) -> String {
        let Self { prefix, libdir, .. } = self;
        format!(
            "prefix={}\nexec_prefix=${{prefix}}\nlibdir=${{prefix}}/{libdir}\nincludedir=${{prefix}}/include\n\n\
             Name: hvsock\n\
             Description: Hyper-V sockets: services in virtual machines and containers by GUID or name\n\
             Version: {}\n\
             Libs: -L${{libdir}} -lhvsock\n\
             Libs.private: {SYSTEM_LIBRARIES}\n\
             Cflags: -I${{includedir}}/hvsock\n",
            prefix.display(),
            env!("CARGO_PKG_VERSION"),
        )
    }
}

/// The target folder of the workspace.
fn target() -> PathBuf {
    let set = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    set.unwrap_or_else(|| run::root().join("target"))
}

/// Builds the static library and returns its path.
fn build(profile: &str) -> Result<PathBuf> {
    let arguments = [
        "build",
        "--package",
        "hvsock-capi",
        "--lib",
        "--profile",
        profile,
    ];
    run::run(&mut run::cargo(&arguments))?;
    let folder = if profile == "dev" { "debug" } else { profile };
    Ok(target().join(folder).join("libhvsock_capi.a"))
}

/// Links the shared library, with versions of its symbols.
fn link(archive: &Path, to: &Path) -> Result<()> {
    let mut command = Command::new(std::env::var_os("CC").unwrap_or_else(|| "cc".into()));
    command
        .current_dir(root())
        .args(["@link.args", "-Wl,--whole-archive"])
        .arg(archive)
        .arg("-Wl,--no-whole-archive")
        .args(SYSTEM_LIBRARIES.split(' '))
        .arg("-o")
        .arg(std::path::absolute(to)?);
    run::run(&mut command)
}

/// The header of the functions of the library.
fn header() -> Result<cbindgen::Bindings> {
    let root = root();
    let invalid = |error: String| anyhow!("{}: {error}", root.join("cbindgen.toml").display());
    let config = cbindgen::Config::from_file(root.join("cbindgen.toml")).map_err(invalid)?;
    let builder = cbindgen::Builder::new().with_crate(&root);
    Ok(builder.with_config(config).generate()?)
}

fn install(from: &Path, to: &Path) -> Result<()> {
    let copied = fs::copy(from, to);
    copied.with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folders(arguments: &[&str]) -> Result<Folders> {
        let arguments: Vec<String> = arguments.iter().map(|&it| it.to_owned()).collect();
        Folders::parse(&arguments)
    }

    #[test]
    fn files_go_below_the_prefix_and_a_package_has_a_folder_in_front_of_it() {
        let plain = folders(&["--prefix", "/opt/hvsock"]).unwrap();
        assert_eq!(plain.at("lib"), Path::new("/opt/hvsock/lib"));
        let packaged = folders(&["--destdir=/tmp/pkg", "--libdir=lib64"]).unwrap();
        assert_eq!(packaged.at("lib64"), Path::new("/tmp/pkg/usr/local/lib64"));
        let text = packaged.pkg_config();
        assert!(text.starts_with("prefix=/usr/local\n"), "{text}");
        assert!(text.contains("libdir=${prefix}/lib64\n"), "{text}");
        assert!(!text.contains("gcc_s"), "{text}");
        assert!(folders(&["--prefix"]).is_err());
        assert!(folders(&["--prefix="]).is_err());
        assert!(folders(&["--libdir"]).is_err());
        let error = folders(&["--folder"]).err().expect("no such option");
        assert!(error.to_string().starts_with("no option \"--folder\"\n"));
    }
}
