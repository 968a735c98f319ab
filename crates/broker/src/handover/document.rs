//! The document: all of a broker's state that is no descriptor, as one JSON value with buffers behind it.
//!
//! It travels as one sealed memfd. First a header of [`HEADER`] bytes: a magic number of 8 bytes, the version of
//! this layout and the number of blobs (4 bytes each), and the length of the JSON (8 bytes). Then the length
//! of each blob (8 bytes each), the JSON, and the blobs. All numbers are little-endian.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;

use hvsock_sys::sealed::{self, Sealed};
use serde::{Deserialize, Deserializer, Serialize, de};

use super::bundle::{FdIndex, Imports, MAX_BLOBS, MAX_BYTES};
use super::error::HandoverError;
use super::link::LinkDocument;
use crate::core::CoreDocument;

/// The version of [`Document`] that this release writes, and the newest that it reads.
pub(crate) const DOCUMENT_VERSION: u32 = 1;

/// The oldest version of [`Document`] that this release reads.
pub(crate) const OLDEST_DOCUMENT_VERSION: u32 = 1;

const MAGIC: [u8; 8] = *b"hvsockHO";
const LAYOUT: u32 = 1;
const HEADER: u64 = 24;
/// Of the length of one blob.
const LENGTH: u64 = 8;

/// All state of a broker.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Document {
    #[serde(deserialize_with = "read_version")]
    pub(crate) version: u32,
    /// The release that wrote it.
    pub(crate) release: String,
    /// The process that wrote it.
    pub(crate) pid: u32,
    pub(crate) core: CoreDocument,
    /// The links of VMs, by the numbers of their partitions.
    #[serde(default)]
    pub(crate) links: BTreeMap<u64, LinkDocument>,
    /// What streams of events are resumed with.
    #[serde(default)]
    pub(crate) events: Option<String>,
    /// The listener of the control API.
    #[serde(default)]
    pub(crate) control: Option<FdIndex>,
    /// The lock of the folders.
    #[serde(default)]
    pub(crate) lock: Option<FdIndex>,
    /// Of a state that is stored until a successor is started.
    #[serde(default)]
    pub(crate) stored: Option<StoredLabel>,
}

/// The part of a document that says which descriptors belong to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StoredLabel {
    /// A number of this state alone, which each carrier has, too.
    pub(crate) state: String,
    /// The boot of the system in which it was written.
    pub(crate) boot: String,
    /// When it was written, in nanoseconds since the boot.
    pub(crate) at: u64,
    pub(crate) descriptors: u32,
}

fn read_version<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    let found = u32::deserialize(deserializer)?;
    let supported = DOCUMENT_VERSION;
    match (OLDEST_DOCUMENT_VERSION..=supported).contains(&found) {
        true => Ok(found),
        false => Err(de::Error::custom(HandoverError::UnsupportedVersion {
            found,
            supported,
        })),
    }
}

impl Document {
    /// The document and its blobs as a sealed memfd.
    ///
    /// # Errors
    ///
    /// [`HandoverError::TooLarge`] if it is longer than 256 MiB; if the system has no memory for it.
    pub(crate) fn write(&self, blobs: &[Vec<u8>]) -> Result<OwnedFd, HandoverError> {
        let json = serde_json::to_vec(self);
        let json = json.map_err(|error| HandoverError::damaged(error.to_string()))?;
        write(&json, blobs)
    }

    /// The document in a sealed memfd of another process, and what it refers to.
    ///
    /// # Errors
    ///
    /// If the memory is not sealed or too long, or the document damaged or of another version.
    pub(crate) fn read(
        memory: OwnedFd,
        descriptors: Vec<OwnedFd>,
    ) -> Result<(Self, Imports), HandoverError> {
        let (json, blobs) = read(memory)?;
        let document = serde_json::from_slice(&json);
        let document = document.map_err(|error| HandoverError::damaged(error.to_string()))?;
        Ok((document, Imports::new(descriptors, blobs)))
    }
}

pub(super) fn write(json: &[u8], blobs: &[Vec<u8>]) -> Result<OwnedFd, HandoverError> {
    let lengths: Vec<u64> = blobs.iter().map(|blob| blob.len() as u64).collect();
    let table = LENGTH * lengths.len() as u64;
    let found = HEADER + table + json.len() as u64 + lengths.iter().sum::<u64>();
    if found > MAX_BYTES {
        return Err(HandoverError::TooLarge {
            which: "bytes",
            found,
            limit: MAX_BYTES,
        });
    }
    let mut header = Vec::with_capacity((HEADER + table) as usize);
    header.extend_from_slice(&MAGIC);
    header.extend_from_slice(&LAYOUT.to_le_bytes());
    header.extend_from_slice(&(lengths.len() as u32).to_le_bytes());
    header.extend_from_slice(&(json.len() as u64).to_le_bytes());
    for length in lengths {
        header.extend_from_slice(&length.to_le_bytes());
    }
    let mut parts = vec![&header[..], json];
    parts.extend(blobs.iter().map(Vec::as_slice));
    sealed::create(&parts).map_err(HandoverError::io("write the state to memory"))
}

/// The JSON and the blobs.
pub(super) fn read(memory: OwnedFd) -> Result<(Vec<u8>, Vec<Vec<u8>>), HandoverError> {
    let value = Sealed::open(memory, MAX_BYTES).map_err(HandoverError::io("read the state"))?;
    let read = |offset, len| {
        let bytes = value.read(offset, len);
        bytes.map_err(HandoverError::io("read the state"))
    };
    let header = read(0, HEADER)?;
    let (magic, numbers) = header.split_at(MAGIC.len());
    if magic != MAGIC {
        return Err(HandoverError::damaged("it does not begin as a state does"));
    }
    let number = |at: usize, len: usize| {
        let bytes = numbers.iter().skip(at).take(len);
        bytes
            .rev()
            .fold(0_u64, |sum, byte| sum << 8 | u64::from(*byte))
    };
    let (layout, blobs, json) = (number(0, 4), number(4, 4), number(8, 8));
    if layout != u64::from(LAYOUT) {
        return Err(HandoverError::UnsupportedVersion {
            found: u32::try_from(layout).unwrap_or(u32::MAX),
            supported: LAYOUT,
        });
    }
    if blobs > MAX_BLOBS.into() {
        return Err(HandoverError::TooLarge {
            which: "buffers",
            found: blobs,
            limit: MAX_BLOBS.into(),
        });
    }
    let lengths = read(HEADER, blobs * LENGTH)?;
    let mut offset = HEADER + blobs * LENGTH;
    let mut next = |len: u64| {
        let bytes = read(offset, len)?;
        offset += len;
        Ok::<_, HandoverError>(bytes)
    };
    let json = next(json)?;
    let lengths = lengths.as_chunks::<8>().0;
    let blobs = lengths
        .iter()
        .map(|length| next(u64::from_le_bytes(*length)));
    let blobs = blobs.collect::<Result<_, _>>()?;
    if offset != value.len() {
        return Err(HandoverError::damaged("it is longer than it says"));
    }
    Ok((json, blobs))
}
