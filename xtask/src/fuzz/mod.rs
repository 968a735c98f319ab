//! `cargo xtask fuzz`: LLVM's fuzzer with AddressSanitizer over the targets of `fuzz/`.
//!
//! All targets are one program, which is built once. What the fuzzer finds of new inputs stays below `target/fuzz`, so
//! that the next run goes on from there; `--minimize` puts a minimal corpus into `fuzz/corpus`.

mod build;
mod folders;
mod output;
mod process;
mod report;

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};

pub use self::build::{as_rustc, is_rustc};
use self::folders::{Folders, Target, files};
use self::process::Fuzzer;
use crate::run;

/// What the arguments say.
#[derive(Debug)]
struct Options {
    /// The time of each target.
    time: Duration,
    json: bool,
    seed: bool,
    minimize: bool,
    targets: Vec<String>,
}

impl Options {
    fn parse(arguments: &[String]) -> Result<Self> {
        let mut options = Self {
            time: Duration::from_secs(60),
            json: false,
            seed: false,
            minimize: false,
            targets: Vec::new(),
        };
        let mut arguments = arguments.iter();
        while let Some(argument) = arguments.next() {
            let mut number = || -> Result<f64> {
                let value = arguments.next().map_or("", String::as_str);
                let number = value.parse().ok().filter(|number| *number > 0.0);
                number.with_context(|| format!("{argument} needs a number, not {value:?}"))
            };
            match argument.as_str() {
                "--minutes" => options.time = Duration::from_secs_f64(number()? * 60.0),
                "--seconds" => options.time = Duration::from_secs_f64(number()?),
                "--json" => options.json = true,
                "--seed" => options.seed = true,
                "--minimize" => options.minimize = true,
                option if option.starts_with('-') => bail!("`fuzz` has no option {option}"),
                target => options.targets.push(target.to_owned()),
            }
        }
        Ok(options)
    }
}

/// Runs the task.
pub fn run(arguments: &[String]) -> Result<()> {
    let options = Options::parse(arguments)?;
    if options.seed {
        let corpus = run::root().join("fuzz/corpus");
        let mut seed = run::cargo(&["run", "--quiet", "--package", "hvsock-fuzz", "--", "seed"]);
        run::run(seed.arg(corpus))?;
        if !options.minimize {
            return Ok(());
        }
    }
    let program = build::build()?;
    let all = process::list(&program)?;
    let targets = chosen(&all, &options.targets)?;
    if options.minimize {
        return targets
            .iter()
            .try_for_each(|target| minimize(&program, target));
    }
    let seconds = options.time.as_secs_f64() * targets.len() as f64;
    let targets_word = match targets.len() {
        1 => "1 target".to_owned(),
        count => format!("{count} targets"),
    };
    eprintln!("fuzz: {targets_word}, {:.1} minutes in sum", seconds / 60.0);
    let mut rows = Vec::new();
    for target in &targets {
        let folders = Folders::of(&target.name)?;
        let fuzzer = Fuzzer {
            program: &program,
            target,
            folders: &folders,
        };
        let row = fuzzer.run(options.time)?;
        eprintln!("{}", row.progress());
        rows.push(row);
    }
    match options.json {
        true => println!("{:#}", report::json(&rows)),
        false => print!("{}", report::table(&rows)),
    }
    let crashes: usize = rows.iter().map(|row| row.crashes.len()).sum();
    if crashes > 0 {
        bail!("{crashes} crashes{}", report::help(&rows));
    }
    Ok(())
}

fn chosen(all: &[Target], names: &[String]) -> Result<Vec<Target>> {
    if names.is_empty() {
        return Ok(all.to_vec());
    }
    let find = |name: &String| {
        let found = all.iter().find(|target| target.name == *name);
        found.cloned().with_context(|| {
            let names: Vec<&str> = all.iter().map(|target| target.name.as_str()).collect();
            format!("no target {name:?}; there are {}", names.join(", "))
        })
    };
    names.iter().map(find).collect()
}

/// Replaces the committed corpus of a target by the fewest and shortest inputs that reach the same code.
fn minimize(program: &Path, target: &Target) -> Result<()> {
    let folders = Folders::of(&target.name)?;
    let minimal = run::root().join("target/fuzz/minimal").join(&target.name);
    if minimal.exists() {
        fs::remove_dir_all(&minimal)?;
    }
    fs::create_dir_all(&minimal)?;
    process::merge(program, target, &minimal, &folders.inputs())?;
    let mut names = std::collections::HashMap::new();
    for path in files(&folders.corpus)? {
        names.insert(fs::read(&path)?, path);
    }
    let (mut kept, mut bytes) = (Vec::new(), 0);
    for path in files(&minimal)? {
        let content = fs::read(&path)?;
        if content.len() > MAX_INPUT {
            continue;
        }
        bytes += content.len();
        // An input keeps its name.
        let to = match names.get(&content) {
            Some(known) => known.clone(),
            None => folders.corpus.join(short_name(&path)),
        };
        fs::create_dir_all(&folders.corpus)?;
        fs::write(&to, content)?;
        kept.push(to);
    }
    for path in names.into_values().filter(|path| !kept.contains(path)) {
        fs::remove_file(path)?;
    }
    println!("{:12} {:4} inputs, {bytes} bytes", target.name, kept.len());
    Ok(())
}

/// The longest input that is committed.
const MAX_INPUT: usize = 4 << 10;

/// The fuzzer names an input by its SHA-1. Half of it is enough.
fn short_name(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.chars().take(16).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &str) -> Result<Options> {
        let words: Vec<String> = words.split_whitespace().map(str::to_owned).collect();
        Options::parse(&words)
    }

    #[test]
    fn a_time_is_that_of_each_target_in_minutes_or_seconds() {
        assert_eq!(parse("").unwrap().time, Duration::from_secs(60));
        let options = parse("--minutes 0.5 ring --json").unwrap();
        assert_eq!(options.time, Duration::from_secs(30));
        assert_eq!(
            (options.targets.as_slice(), options.json),
            (&["ring".to_owned()][..], true)
        );
        assert_eq!(parse("--seconds 3").unwrap().time, Duration::from_secs(3));
        for wrong in [
            "--minutes",
            "--minutes x",
            "--seconds 0",
            "--seconds -1",
            "--no",
        ] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn an_unknown_target_is_refused_with_the_known_ones() {
        let target = |name: &str| Target {
            name: name.to_owned(),
            max_len: "1".to_owned(),
            timeout: "1".to_owned(),
        };
        let all = [target("reg"), target("ring")];
        assert_eq!(chosen(&all, &[]).unwrap().len(), 2);
        let error = chosen(&all, &["rings".to_owned()]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "no target \"rings\"; there are reg, ring"
        );
    }
}
