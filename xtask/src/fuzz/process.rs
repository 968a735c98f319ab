//! Runs of the program.

use std::fs;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::folders::{Folders, Target, files};
use super::output::Output;
use super::report::{Crash, Row};
use crate::run;

/// The most memory of a run, in MiB.
const MEMORY: u64 = 2048;
/// The most crashes of a target, after which the next target is run.
const CRASHES: usize = 5;
/// The time between two lines about the progress.
const PROGRESS: Duration = Duration::from_secs(30);

/// The targets of the program.
pub fn list(program: &Path) -> Result<Vec<Target>> {
    let output = command(program, "list").output();
    let output = output.with_context(|| format!("cannot start {}", program.display()))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let target = |line: &str| {
        let mut fields = line.split('\t').map(str::to_owned);
        Some(Target {
            name: fields.next()?,
            max_len: fields.next()?,
            timeout: fields.next()?,
        })
    };
    let targets: Vec<Target> = text.lines().filter_map(target).collect();
    if targets.is_empty() {
        bail!("{} lists no targets", program.display());
    }
    Ok(targets)
}

fn command(program: &Path, target: &str) -> Command {
    let mut command = Command::new(program);
    command
        .env("HVSOCK_FUZZ_TARGET", target)
        .env("HVSOCK_UPLINK", "off")
        // What all inputs share lives until the end.
        .env("ASAN_OPTIONS", "detect_leaks=0")
        .current_dir(run::root())
        .stdin(Stdio::null());
    command
}

/// Copies the fewest inputs that reach what all reach to `to`.
pub fn merge(program: &Path, target: &Target, to: &Path, from: &[&Path]) -> Result<()> {
    let mut command = command(program, &target.name);
    command
        .args(["-merge=1", "-verbosity=0"])
        .arg(format!("-max_len={}", target.max_len))
        .arg(to)
        .args(from);
    let output = command.output();
    let output = output.with_context(|| format!("cannot start {}", program.display()))?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        let last = text.lines().last().unwrap_or_default().to_owned();
        bail!("cannot merge the inputs of {}: {last}", target.name);
    }
    Ok(())
}

/// A target that is run.
pub struct Fuzzer<'a> {
    pub program: &'a Path,
    pub target: &'a Target,
    pub folders: &'a Folders,
}

impl Fuzzer<'_> {
    /// Runs the target for `time`. A crash ends a run, and the next one has the rest of the time.
    pub fn run(&self, time: Duration) -> Result<Row> {
        let start = Instant::now();
        let mut row = Row::new(&self.target.name);
        loop {
            let left = time.saturating_sub(start.elapsed());
            // 0 would be no limit.
            if left < Duration::from_secs(1) && row.seconds > 0.0 || row.crashes.len() >= CRASHES {
                break;
            }
            self.once(left.max(Duration::from_secs(1)), &mut row)?;
            row.seconds = start.elapsed().as_secs_f64();
        }
        Ok(row)
    }

    fn once(&self, time: Duration, row: &mut Row) -> Result<()> {
        let known = files(&self.folders.crashes)?;
        let mut prefix = self.folders.crashes.clone().into_os_string();
        prefix.push("/");
        let mut artifacts = std::ffi::OsString::from("-artifact_prefix=");
        artifacts.push(prefix);
        let mut command = command(self.program, &self.target.name);
        command
            .arg(format!("-max_total_time={}", time.as_secs()))
            .arg(format!("-max_len={}", self.target.max_len))
            .arg(format!("-timeout={}", self.target.timeout))
            .arg(format!("-rss_limit_mb={MEMORY}"))
            .arg("-print_final_stats=1")
            .arg(artifacts)
            .args(self.folders.inputs())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let log = run::root().join("target/fuzz/logs");
        fs::create_dir_all(&log)?;
        let log = log.join(&self.target.name);
        let output = follow(&mut command, &log, &self.target.name)?;
        row.add(&output.0);
        if output.1 {
            return Ok(());
        }
        let new = files(&self.folders.crashes)?.into_iter();
        let new: Vec<PathBuf> = new.filter(|path| !known.contains(path)).collect();
        row.crashes.push(Crash {
            fault: output
                .0
                .fault
                .unwrap_or_else(|| "it ended early".to_owned()),
            input: new.into_iter().next(),
            log,
        });
        Ok(())
    }
}

/// Runs the fuzzer to its end and keeps what it prints. Returns that, and whether it succeeded.
fn follow(command: &mut Command, log: &Path, name: &str) -> Result<(Output, bool)> {
    let mut child = command.spawn().context("cannot start the fuzzer")?;
    let mut log = File::create(log)?;
    let (mut output, start) = (Output::default(), Instant::now());
    let mut shown = start;
    if let Some(lines) = child.stderr.take() {
        // The bytes of an input are not always UTF-8.
        for line in BufReader::new(lines).split(b'\n') {
            let line = line?;
            log.write_all(&line)?;
            log.write_all(b"\n")?;
            output.line(&String::from_utf8_lossy(&line));
            if shown.elapsed() >= PROGRESS {
                shown = Instant::now();
                let seconds = start.elapsed().as_secs();
                let Output { runs, coverage, .. } = output;
                eprintln!("{name}: {seconds} s, {runs} runs, coverage {coverage}");
            }
        }
    }
    Ok((output, child.wait()?.success()))
}
