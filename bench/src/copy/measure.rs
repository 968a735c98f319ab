//! Single measurements of large and small files.

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

use super::{CONTAINER, TestBed};

/// The way in which the bytes of the large file are copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Lane {
    /// From memory to memory over a bare stream.
    Raw,
    /// From file to file over a bare stream, without checksum and metadata.
    RawFiles,
    /// From file to file on this machine without a stream, by `read` and `write`.
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

/// The large file and its destination.
#[derive(Debug)]
pub struct Large {
    folder: tempfile::TempDir,
    size: u64,
}

impl Large {
    /// Creates a file of `mib` MiB of pseudorandom bytes in a new folder in `place`.
    pub fn new(place: &Path, mib: u64) -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("hvcp").tempdir_in(place)?;
        let mut file = File::create(folder.path().join("from"))?;
        let mut state = 1u64;
        let mut chunk = vec![0; 1 << 20];
        for _ in 0..mib {
            for word in chunk.chunks_exact_mut(8) {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                word.copy_from_slice(&(state ^ state >> 33).to_le_bytes());
            }
            file.write_all(&chunk)?;
        }
        file.sync_all()?;
        let size = mib << 20;
        Ok(Self { folder, size })
    }

    /// Size of the file in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }
}

/// Copies the file once and checks the copy. Returns bytes per second.
pub fn large(test_bed: &TestBed, file: &Large, lane: Lane) -> anyhow::Result<f64> {
    let (from, to) = (
        file.folder.path().join("from"),
        file.folder.path().join("to"),
    );
    let start = Instant::now();
    match lane {
        Lane::Raw => test_bed.raw(None, None, file.size)?,
        Lane::RawFiles => test_bed.raw(Some(&from), Some(&to), file.size)?,
        Lane::Local => local(&from, &to)?,
        Lane::Put => put(test_bed, &from, &to)?,
        Lane::Get => get(test_bed, &from, &to)?,
    }
    let seconds = start.elapsed().as_secs_f64();
    if lane != Lane::Raw {
        ensure_same(&from, &to)?;
        // The memory is freed here, so that it does not affect the next measurement.
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

fn put(test_bed: &TestBed, from: &Path, to: &Path) -> anyhow::Result<()> {
    let put = Put {
        recursive: true,
        ..Put::to(to)
    };
    let counters = connect(test_bed)?.put(&[Source::new(from)], &put, &mut Unobserved)?;
    ensure_complete(counters)
}

fn get(test_bed: &TestBed, from: &Path, to: &Path) -> anyhow::Result<()> {
    let get = Get {
        recursive: true,
        ..Get::to(vec![Source::new(from)], to)
    };
    ensure_complete(connect(test_bed)?.get(&get, &mut Unobserved)?)
}

fn ensure_complete(counters: CopyCounters) -> anyhow::Result<()> {
    anyhow::ensure!(counters.failed == 0, "the copy is incomplete: {counters:?}");
    Ok(())
}

fn connect(test_bed: &TestBed) -> anyhow::Result<Copy> {
    let partition: PartitionRef = CONTAINER.parse()?;
    let target = Target::new(test_bed.endpoint(), partition);
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

/// Many small files and their destination.
#[derive(Debug)]
pub struct Small {
    folder: tempfile::TempDir,
    count: usize,
}

impl Small {
    /// Creates `count` files of up to 8 KiB, a hundred per folder.
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

    /// Count of the files.
    pub fn count(&self) -> usize {
        self.count
    }
}

/// Copies the files to or from the container and checks the copies. Returns files per second.
pub fn small(test_bed: &TestBed, files: &Small, lane: Lane) -> anyhow::Result<f64> {
    let (from, to) = (
        files.folder.path().join("from"),
        files.folder.path().join("to"),
    );
    let start = Instant::now();
    match lane {
        Lane::Put => put(test_bed, &from, &to)?,
        Lane::Get => get(test_bed, &from, &to)?,
        _ => anyhow::bail!("small files are only measured by put and get"),
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
