//! One turn of each measurement.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::Path;
use std::time::Instant;

use anyhow::Context;
use hvsock::PartitionRef;
use hvsock_services::copy::{CopyCounters, Source, Unobserved};
use hvsock_services::host::copy::{Copy, Get, Put};
use hvsock_services::link::Target;
use serde::Serialize;

use super::{BOX, Scene};

/// A way for the bytes of one large file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Lane {
    /// From memory to memory, over the bare stream.
    Raw,
    /// From file to file, over the bare stream: no checksum, no name.
    RawFiles,
    /// From file to file on this machine, without a stream: `read` and `write`.
    Local,
    /// `hvsock cp` to the container.
    Put,
    /// `hvsock cp` from the container.
    Get,
}

impl Lane {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Raw, Self::RawFiles, Self::Local, Self::Put, Self::Get];
}

/// A file that is copied, and where to.
#[derive(Debug)]
pub struct Large {
    folder: tempfile::TempDir,
    size: u64,
}

impl Large {
    /// Makes the file in a folder of `place`.
    pub fn new(place: &Path, mib: u64) -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("hvcp").tempdir_in(place)?;
        let mut file = File::create(folder.path().join("from"))?;
        let mut state = 1u64;
        let mut piece = vec![0; 1 << 20];
        for _ in 0..mib {
            for word in piece.chunks_exact_mut(8) {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                word.copy_from_slice(&(state ^ state >> 33).to_le_bytes());
            }
            file.write_all(&piece)?;
        }
        file.sync_all()?;
        let size = mib << 20;
        Ok(Self { folder, size })
    }

    /// How long it is.
    pub fn size(&self) -> u64 {
        self.size
    }
}

/// Moves the file once; bytes per second.
pub fn large(scene: &Scene, file: &Large, lane: Lane) -> anyhow::Result<f64> {
    let (from, to) = (
        file.folder.path().join("from"),
        file.folder.path().join("to"),
    );
    let start = Instant::now();
    match lane {
        Lane::Raw => scene.raw(None, None, file.size)?,
        Lane::RawFiles => scene.raw(Some(&from), Some(&to), file.size)?,
        Lane::Local => local(&from, &to)?,
        Lane::Put => put(scene, &from, &to)?,
        Lane::Get => get(scene, &from, &to)?,
    }
    let seconds = start.elapsed().as_secs_f64();
    if lane != Lane::Raw {
        ensure_same(&from, &to)?;
        // Freeing its memory is no part of any copy, and must not go on during the next.
        fs::remove_file(&to)?;
    }
    Ok(file.size as f64 / seconds)
}

fn local(from: &Path, to: &Path) -> anyhow::Result<()> {
    let (mut from, mut to) = (File::open(from)?, File::create(to)?);
    let mut buffer = vec![0; 256 * 1024];
    loop {
        match from.read(&mut buffer)? {
            0 => return Ok(()),
            count => to.write_all(&buffer[..count])?,
        }
    }
}

fn put(scene: &Scene, from: &Path, to: &Path) -> anyhow::Result<()> {
    let put = Put {
        recursive: true,
        ..Put::to(to)
    };
    let counters = connect(scene)?.put(&[Source::new(from)], &put, &mut Unobserved)?;
    all(counters)
}

fn get(scene: &Scene, from: &Path, to: &Path) -> anyhow::Result<()> {
    let get = Get {
        recursive: true,
        ..Get::to(vec![Source::new(from)], to)
    };
    all(connect(scene)?.get(&get, &mut Unobserved)?)
}

fn all(counters: CopyCounters) -> anyhow::Result<()> {
    anyhow::ensure!(counters.failed == 0, "not all was copied: {counters:?}");
    Ok(())
}

fn connect(scene: &Scene) -> anyhow::Result<Copy> {
    let partition: PartitionRef = BOX.parse()?;
    let target = Target::new(scene.endpoint(), partition);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    Ok(runtime.block_on(Copy::connect(&target))?)
}

fn ensure_same(one: &Path, other: &Path) -> anyhow::Result<()> {
    let (mut one, mut other) = (File::open(one)?, File::open(other)?);
    let (mut these, mut those) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    loop {
        let count = one.read(&mut these)?;
        other.read_exact(&mut those[..count])?;
        anyhow::ensure!(these[..count] == those[..count], "the copy differs");
        if count == 0 {
            anyhow::ensure!(other.read(&mut those)? == 0, "the copy is longer");
            return Ok(());
        }
    }
}

/// Many small files, and where to.
#[derive(Debug)]
pub struct Small {
    folder: tempfile::TempDir,
    count: usize,
}

impl Small {
    /// Makes so many files, a hundred in each folder, most of a few KiB.
    pub fn new(place: &Path, count: usize) -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("hvcp").tempdir_in(place)?;
        for number in 0..count {
            let below = folder.path().join(format!("from/{}", number / 100));
            if number % 100 == 0 {
                fs::create_dir_all(&below)?;
            }
            let content = vec![number as u8; 200 + number * 7 % 8000];
            fs::write(below.join(number.to_string()), content)?;
        }
        Ok(Self { folder, count })
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.count
    }
}

/// Copies them to the container, or from it; files per second.
pub fn small(scene: &Scene, files: &Small, lane: Lane) -> anyhow::Result<f64> {
    let (from, to) = (
        files.folder.path().join("from"),
        files.folder.path().join("to"),
    );
    let start = Instant::now();
    match lane {
        Lane::Put => put(scene, &from, &to)?,
        Lane::Get => get(scene, &from, &to)?,
        _ => anyhow::bail!("small files are copied"),
    }
    let seconds = start.elapsed().as_secs_f64();
    for number in 0..files.count {
        let name = format!("{}/{number}", number / 100);
        let same = fs::read(from.join(&name))? == fs::read(to.join(&name))?;
        anyhow::ensure!(same, "{name} differs");
    }
    fs::remove_dir_all(&to).context("cannot remove the copies")?;
    Ok(files.count as f64 / seconds)
}
