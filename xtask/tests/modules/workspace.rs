//! What cargo says about the packages of the workspace.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Deserialize;

/// The answer of `cargo metadata`, as far as it is used here.
#[derive(Deserialize)]
pub struct Workspace {
    pub packages: Vec<Package>,
    pub workspace_root: PathBuf,
}

/// One package of the workspace.
#[derive(Deserialize)]
pub struct Package {
    pub name: String,
    pub manifest_path: PathBuf,
    pub targets: Vec<Target>,
    pub dependencies: Vec<Dependency>,
}

/// A library or program of a package.
#[derive(Deserialize)]
pub struct Target {
    pub kind: Vec<String>,
    pub src_path: PathBuf,
}

/// A dependency of a package.
#[derive(Deserialize)]
pub struct Dependency {
    /// `None` for an ordinary one, else `dev` or `build`.
    pub kind: Option<String>,
    /// Given for packages of the workspace.
    pub path: Option<PathBuf>,
}

impl Workspace {
    /// Asks cargo, without the network.
    pub fn load() -> Self {
        let cargo = std::env::var_os("CARGO").unwrap_or("cargo".into());
        // The checkout that is tested, if the test was built in another one.
        let package =
            std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or(env!("CARGO_MANIFEST_DIR").into());
        let output = Command::new(cargo)
            .args(["metadata", "--no-deps", "--format-version=1", "--offline"])
            .current_dir(package)
            .output()
            .expect("cargo runs");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "cargo metadata: {errors}");
        serde_json::from_slice(&output.stdout).expect("cargo metadata prints JSON")
    }

    /// The file's name below the workspace's folder.
    pub fn relative<'a>(&self, file: &'a Path) -> &'a Path {
        file.strip_prefix(&self.workspace_root).unwrap_or(file)
    }
}

impl Package {
    /// The root files of the package's library and programs. Tests, benches and examples may use all modules.
    pub fn roots(&self) -> impl Iterator<Item = &Path> {
        let is_code = |target: &&Target| {
            let kinds = ["lib", "bin", "cdylib", "staticlib", "rlib", "proc-macro"];
            target
                .kind
                .iter()
                .any(|kind| kinds.contains(&kind.as_str()))
        };
        self.targets
            .iter()
            .filter(is_code)
            .map(|target| target.src_path.as_path())
    }
}
