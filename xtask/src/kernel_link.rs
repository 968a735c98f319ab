//! `cargo xtask kernel-link`: the kernel's vhost-vsock in a machine that plays the host, with any of Debian's
//! kernels. The scenarios are the test `kernel_link` of hvsock-cli; `cargo xtask test` runs it with one kernel.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, anyhow, bail};
use hvsock_guests::Kernel;
use serde_json::Value;

use crate::{run, statically, tools};

/// A kernel of Debian for this task.
struct Release {
    /// The first two numbers of its version.
    version: &'static str,
    /// The metapackage that depends on it.
    meta: &'static str,
    /// The release of Debian that has it, unless the installed one does.
    suite: Option<&'static str>,
}

const RELEASES: &[Release] = &[
    Release {
        version: "6.1",
        meta: "linux-image-cloud-amd64",
        suite: None,
    },
    Release {
        version: "6.12",
        meta: "linux-image-6.12-cloud-amd64",
        suite: None,
    },
    Release {
        version: "7.3",
        meta: "linux-image-cloud-amd64",
        suite: Some("trixie-backports"),
    },
];

#[derive(Default)]
struct Arguments {
    kernels: Vec<String>,
    only: Option<String>,
    json: bool,
    measure: bool,
}

/// Runs the scenarios with each kernel, and prints a table or JSON. Without `--kernel` and `--all`, with the
/// kernel of the other tests.
pub fn run(arguments: &[String]) -> Result<()> {
    let arguments = parsed(arguments)?;
    tools::install_missing()?;
    let mut kernels = Vec::new();
    for name in &arguments.kernels {
        kernels.push(kernel(name)?);
    }
    if kernels.is_empty() {
        tools::have_guest_kernel()?;
        kernels.push(Kernel::find()?);
    }
    let agent = statically::AGENT.build()?;
    let build = [
        "build",
        "--package",
        "hvsock-testkit",
        "--features",
        "world",
    ];
    run::run(run::cargo(&build).args(["--example", "kernel_link"]))?;
    fs::create_dir_all(work())?;
    let mut results = Vec::new();
    let mut failed = false;
    for kernel in kernels {
        let json = work().join("result.json");
        let _ = fs::remove_file(&json);
        let test = ["test", "--quiet", "--package", "hvsock-cli"];
        let mut command = run::cargo(&test);
        command
            .args(["--test", "kernel_link", "--", "--nocapture"])
            .env("HVSOCK_GUEST_KERNEL", &kernel.image)
            .env("HVSOCK_GUEST_MODULES", &kernel.modules)
            .env(statically::AGENT.variable, &agent)
            .env("HVSOCK_KERNEL_LINK_JSON", &json);
        if arguments.measure {
            command.env("HVSOCK_KERNEL_LINK_MEASURE", "1");
        }
        if let Some(only) = &arguments.only {
            command.env("HVSOCK_KERNEL_LINK_ONLY", only);
        }
        // Its standard output is the test runner's; ours is the result.
        command.stdout(std::io::stderr());
        let ended = run::run(&mut command);
        failed |= ended.is_err();
        let Ok(text) = fs::read_to_string(&json) else {
            return Err(ended
                .err()
                .unwrap_or_else(|| anyhow!("the test was skipped")));
        };
        results.push(serde_json::from_str(&text)?);
    }
    if arguments.json {
        println!("{}", Value::Array(results));
    } else {
        print!("{}", table(&results));
    }
    if failed {
        bail!("a scenario does not hold");
    }
    Ok(())
}

fn parsed(arguments: &[String]) -> Result<Arguments> {
    let mut parsed = Arguments::default();
    let mut given = arguments.iter();
    while let Some(word) = given.next() {
        match word.as_str() {
            "--all" => parsed
                .kernels
                .extend(RELEASES.iter().map(|release| release.version.to_owned())),
            "--kernel" => {
                let name = given
                    .next()
                    .context("--kernel takes a version or an image")?;
                parsed.kernels.push(name.clone());
            }
            "--only" => {
                let text = given.next().context("--only takes a part of a name")?;
                parsed.only = Some(text.clone());
            }
            "--json" => parsed.json = true,
            "--measure" => parsed.measure = true,
            _ => bail!("unknown argument {word:?}"),
        }
    }
    Ok(parsed)
}

fn work() -> PathBuf {
    run::root().join("target/kernel-link")
}

/// A kernel by its version or the path of its image.
fn kernel(name: &str) -> Result<Kernel> {
    if name.contains('/') {
        return Ok(Kernel::at(Path::new(name))?);
    }
    let release = RELEASES.iter().find(|release| release.version == name);
    let release = release.with_context(|| {
        let known: Vec<&str> = RELEASES.iter().map(|release| release.version).collect();
        format!("no kernel {name:?}: name one of {known:?}, or the path of an image")
    })?;
    let options = match release.suite {
        Some(suite) => of_suite(suite)?,
        None => Vec::new(),
    };
    // Not where the kernels of the other tests are: those take the newest.
    let folder = work().join("kernels");
    let fetched = Kernel::fetch_package(release.meta, &folder, &options);
    fetched.or_else(|_| {
        let mut update = Command::new("apt-get");
        run::run(update.args(["--quiet=2", "update"]).args(&options))?;
        Ok(Kernel::fetch_package(release.meta, &folder, &options)?)
    })
}

/// The options of apt for a release of Debian other than the installed one. Its package lists are in a folder
/// of ours, and the system's are as before.
fn of_suite(suite: &str) -> Result<Vec<String>> {
    let folder = work().join("apt").join(suite);
    for part in ["state/lists/partial", "cache/archives/partial"] {
        fs::create_dir_all(folder.join(part))?;
    }
    let key = "/usr/share/keyrings/debian-archive-keyring.gpg";
    let source = format!("deb [signed-by={key}] http://deb.debian.org/debian {suite} main\n");
    let list = folder.join("sources.list");
    fs::write(&list, source)?;
    let set = |name: &str, value: &Path| ["-o".to_owned(), format!("{name}={}", value.display())];
    Ok([
        set("Dir::Etc::sourcelist", &list),
        set("Dir::Etc::sourceparts", Path::new("/dev/null")),
        set("Dir::State", &folder.join("state")),
        set("Dir::State::status", Path::new("/var/lib/dpkg/status")),
        set("Dir::Cache", &folder.join("cache")),
        // The folder may be one that apt's own user cannot write.
        set("APT::Sandbox::User", Path::new("root")),
    ]
    .concat())
}

/// A line for each scenario, a column for each kernel.
fn table(results: &[Value]) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let scenarios = |result: &Value| result["scenarios"].as_array().cloned().unwrap_or_default();
    let mut names: Vec<String> = Vec::new();
    for scenario in results.iter().flat_map(scenarios) {
        let name = text(&scenario["scenario"]);
        if !names.contains(&name) {
            names.push(name);
        }
    }
    let width = names.iter().map(|name| name.chars().count()).max();
    let width = width.unwrap_or_default();
    let mut lines = vec![format!("{:width$}", "scenario")];
    lines.extend(names.iter().map(|name| format!("{name:width$}")));
    for result in results {
        let kernel = text(&result["kernel"]);
        let kernel = kernel.split(['-', '+']).next().unwrap_or_default();
        let all = scenarios(result);
        let cells = names.iter().map(|name| {
            let mut all = all.iter();
            match all.find(|scenario| text(&scenario["scenario"]) == *name) {
                Some(scenario) if scenario["ok"] == true => "ok",
                Some(_) => "FAILED",
                None => "",
            }
        });
        let column = std::iter::once(kernel).chain(cells);
        for (line, cell) in lines.iter_mut().zip(column) {
            line.push_str(&format!("  {cell:9}"));
        }
    }
    lines
        .iter()
        .map(|line| line.trim_end().to_owned() + "\n")
        .collect()
}
