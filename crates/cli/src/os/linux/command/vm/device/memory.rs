//! The amount of a virtual machine's memory, which each VMM spells in its own way.

use std::str::FromStr;

/// An amount of memory in QEMU's form: a number with a unit, or in MiB without one.
#[derive(Clone, Debug)]
pub struct Memory {
    qemu: String,
    mib: u64,
}

/// Text that is not an amount of memory.
#[derive(Debug, thiserror::Error)]
#[error("expected an amount of memory in QEMU's form, such as 512M or 2G")]
pub struct InvalidMemory;

impl Memory {
    /// In QEMU's form, always with a unit: without one, `-m` means MiB and a memory object bytes.
    pub fn qemu(&self) -> &str {
        &self.qemu
    }

    /// In MiB, rounded up.
    pub fn mib(&self) -> u64 {
        self.mib
    }
}

impl FromStr for Memory {
    type Err = InvalidMemory;

    fn from_str(text: &str) -> Result<Self, InvalidMemory> {
        let digits = text.trim_end_matches(|c: char| "kKMGTmgt".contains(c));
        if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
            return Err(InvalidMemory);
        }
        let (unit, kib) = match &text[digits.len()..] {
            "" => ("M", 1 << 10),
            unit @ ("k" | "K") => (unit, 1),
            unit @ ("m" | "M") => (unit, 1 << 10),
            unit @ ("g" | "G") => (unit, 1 << 20),
            unit @ ("t" | "T") => (unit, 1 << 30),
            _ => return Err(InvalidMemory),
        };
        let count: u64 = digits.parse().map_err(|_| InvalidMemory)?;
        let kib = count.checked_mul(kib).filter(|kib| *kib > 0);
        Ok(Self {
            qemu: format!("{digits}{unit}"),
            mib: kib.ok_or(InvalidMemory)?.div_ceil(1 << 10),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_amount_of_memory_has_one_unit_and_is_not_zero() {
        for (text, qemu, mib) in [
            ("2G", "2G", 2048),
            ("512", "512M", 512),
            ("64m", "64m", 64),
            ("1T", "1T", 1 << 20),
            ("1025k", "1025k", 2),
        ] {
            let memory: Memory = text.parse().expect(text);
            assert_eq!((memory.qemu(), memory.mib()), (qemu, mib));
        }
        for bad in [
            "",
            "G",
            "0",
            "0G",
            "2GB",
            "2G,share=off",
            "-1",
            "2 G",
            "1.5G",
            "18446744073709551616",
            "18446744073709551615G",
        ] {
            assert!(bad.parse::<Memory>().is_err(), "{bad}");
        }
    }
}
