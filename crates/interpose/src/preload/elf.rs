//! What the first bytes of a program or library say about how it is loaded. Every length is checked; the file may be any.

/// What matters of an ELF file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Elf {
    /// The width of its addresses in bits, and the number of its processor (`e_machine`).
    pub processor: (u8, u16),
    /// How it is loaded.
    pub loader: Loader,
}

/// How a program is loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Loader {
    /// By this program, which loads the shared libraries (`PT_INTERP`).
    Dynamic(String),
    /// By the kernel alone: it is linked statically. Also that of libraries.
    None,
}

const MAGIC: &[u8] = b"\x7fELF";
const INTERPRETER: u32 = 3;
/// More program headers than any linker writes.
const MAX_HEADERS: usize = 128;

impl Elf {
    /// Parses the beginning of a file; `None` if it is no ELF file, or is cut off where it matters.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        if !bytes.starts_with(MAGIC) {
            return None;
        }
        let reader = Reader {
            bytes,
            wide: match bytes.get(4)? {
                1 => false,
                2 => true,
                _ => return None,
            },
            big_endian: match bytes.get(5)? {
                1 => false,
                2 => true,
                _ => return None,
            },
        };
        let machine = reader.u16(18)?;
        let (table, sizes) = match reader.wide {
            true => (reader.word(32)?, 54),
            false => (reader.word(28)?, 42),
        };
        let size = usize::from(reader.u16(sizes)?);
        let count = usize::from(reader.u16(sizes + 2)?).min(MAX_HEADERS);
        let mut loader = Loader::None;
        for index in 0..count {
            let header = table.checked_add(index.checked_mul(size)?)?;
            if reader.u32(header)? != INTERPRETER {
                continue;
            }
            let (offset, len) = match reader.wide {
                true => (reader.word(header + 8)?, reader.word(header + 32)?),
                false => (reader.word(header + 4)?, reader.word(header + 16)?),
            };
            let path = bytes.get(offset..offset.checked_add(len)?)?;
            let path = path.split(|byte| *byte == 0).next().unwrap_or_default();
            loader = Loader::Dynamic(String::from_utf8_lossy(path).into_owned());
        }
        let bits = if reader.wide { 64 } else { 32 };
        Some(Self {
            processor: (bits, machine),
            loader,
        })
    }
}

/// Reads numbers in the file's byte order.
struct Reader<'a> {
    bytes: &'a [u8],
    wide: bool,
    big_endian: bool,
}

impl Reader<'_> {
    fn array<const N: usize>(&self, at: usize) -> Option<[u8; N]> {
        self.bytes
            .get(at..at.checked_add(N)?)?
            .first_chunk()
            .copied()
    }

    fn u16(&self, at: usize) -> Option<u16> {
        let bytes = self.array(at)?;
        Some(match self.big_endian {
            true => u16::from_be_bytes(bytes),
            false => u16::from_le_bytes(bytes),
        })
    }

    fn u32(&self, at: usize) -> Option<u32> {
        let bytes = self.array(at)?;
        Some(match self.big_endian {
            true => u32::from_be_bytes(bytes),
            false => u32::from_le_bytes(bytes),
        })
    }

    /// An address or offset.
    fn word(&self, at: usize) -> Option<usize> {
        if !self.wide {
            return usize::try_from(self.u32(at)?).ok();
        }
        let bytes = self.array(at)?;
        let word = match self.big_endian {
            true => u64::from_be_bytes(bytes),
            false => u64::from_le_bytes(bytes),
        };
        usize::try_from(word).ok()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A 64-bit little-endian file with one program header of this kind, for the text at offset 120.
    fn file(kind: u32, text: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; 120];
        bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
        bytes[18..20].copy_from_slice(&62_u16.to_le_bytes());
        bytes[32..40].copy_from_slice(&64_u64.to_le_bytes());
        bytes[54..56].copy_from_slice(&56_u16.to_le_bytes());
        bytes[56..58].copy_from_slice(&1_u16.to_le_bytes());
        bytes[64..68].copy_from_slice(&kind.to_le_bytes());
        bytes[72..80].copy_from_slice(&120_u64.to_le_bytes());
        bytes[96..104].copy_from_slice(&(text.len() as u64).to_le_bytes());
        bytes.extend_from_slice(text);
        bytes
    }

    #[test]
    fn a_program_names_its_loader_and_a_static_one_does_not() {
        let dynamic = Elf::parse(&file(3, b"/lib64/ld.so\0")).unwrap();
        let loader = Loader::Dynamic("/lib64/ld.so".into());
        assert_eq!((dynamic.processor, dynamic.loader), ((64, 62), loader));
        assert_eq!(Elf::parse(&file(1, b"x")).unwrap().loader, Loader::None);
        assert_eq!(Elf::parse(b"#!/bin/sh\n"), None);
        let own = std::fs::read("/proc/self/exe").unwrap();
        assert!(matches!(
            Elf::parse(&own).unwrap().loader,
            Loader::Dynamic(_)
        ));
    }

    proptest! {
        #[test]
        fn any_bytes_are_an_elf_file_or_none(
            mut bytes in prop::collection::vec(any::<u8>(), 6..200),
            wide in 1_u8..3, order in 1_u8..3, cut in 0_usize..140,
        ) {
            bytes[..4].copy_from_slice(MAGIC);
            (bytes[4], bytes[5]) = (wide, order);
            let _ = Elf::parse(&bytes);
            let mut cut_off = file(3, b"/lib/ld.so\0");
            cut_off.truncate(cut);
            let _ = Elf::parse(&cut_off);
        }
    }
}
