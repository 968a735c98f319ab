//! Copying between memory that a hostile process may write concurrently and private memory.
//!
//! The compiler must treat such memory as opaque: no references, and no ordinary loads that it might
//! duplicate or invent. So the copies are assembly on x86-64, 128 bytes at a time with AVX if the
//! processor has it, and volatile accesses elsewhere. A concurrent writer can affect the values of the
//! copied bytes, but not their number or position.

/// Copies `len` bytes from `from` to `to`. Either side may be shared memory.
///
/// # Safety
///
/// During the call, `from` is valid for reads and `to` for writes of `len` bytes. They do not overlap. No
/// reference covers the side that is shared.
#[inline]
pub(crate) unsafe fn copy(from: *const u8, to: *mut u8, len: usize) {
    // SAFETY: the same contract as this function's.
    unsafe { imp::copy(from, to, len) }
}

/// Asks the processor to get the cache lines of `len` bytes from `start` on for writing, without waiting for
/// them. Has no effect on the bytes, and none at all on some processors.
#[inline]
pub(crate) fn prefetch_for_writing(start: *const u8, len: usize) {
    imp::prefetch_for_writing(start, len);
}

#[cfg(target_arch = "x86_64")]
mod imp {
    use std::arch::asm;

    #[inline]
    pub(super) fn prefetch_for_writing(start: *const u8, len: usize) {
        for at in (0..len).step_by(64) {
            // SAFETY: an instruction that only gives advice: it faults at no address, and does nothing on
            // processors without it.
            unsafe {
                asm!(
                    "prefetchw [{at}]",
                    at = in(reg) start.wrapping_add(at),
                    options(nostack, preserves_flags, readonly)
                );
            }
        }
    }

    /// Copies one block of the given size from `$from` to `$to`.
    macro_rules! block {
        (16, $from:expr, $to:expr) => {
            asm!(
                "movups {x}, [{from}]", "movups [{to}], {x}",
                from = in(reg) $from, to = in(reg) $to, x = out(xmm_reg) _,
                options(nostack, preserves_flags)
            )
        };
        (8, $from:expr, $to:expr) => {
            asm!(
                "mov {x}, [{from}]", "mov [{to}], {x}",
                from = in(reg) $from, to = in(reg) $to, x = out(reg) _,
                options(nostack, preserves_flags)
            )
        };
        (4, $from:expr, $to:expr) => {
            asm!(
                "mov {x:e}, [{from}]", "mov [{to}], {x:e}",
                from = in(reg) $from, to = in(reg) $to, x = out(reg) _,
                options(nostack, preserves_flags)
            )
        };
        (1, $from:expr, $to:expr) => {
            asm!(
                "mov {x}, [{from}]", "mov [{to}], {x}",
                from = in(reg) $from, to = in(reg) $to, x = out(reg_byte) _,
                options(nostack, preserves_flags)
            )
        };
    }

    #[inline]
    pub(super) unsafe fn copy(from: *const u8, to: *mut u8, len: usize) {
        // SAFETY: every block lies in the `len` bytes. Overlapping blocks copy some bytes twice, each to
        // the same position.
        unsafe {
            match len {
                0 => {}
                1..4 => {
                    for at in 0..len {
                        block!(1, from.add(at), to.add(at));
                    }
                }
                4..8 => {
                    block!(4, from, to);
                    block!(4, from.add(len - 4), to.add(len - 4));
                }
                8..16 => {
                    block!(8, from, to);
                    block!(8, from.add(len - 8), to.add(len - 8));
                }
                16..128 => small(from, to, len),
                _ if std::arch::is_x86_feature_detected!("avx") => avx(from, to, len),
                _ => sse(from, to, len),
            }
        }
    }

    /// 16 to 128 bytes.
    #[inline]
    unsafe fn small(from: *const u8, to: *mut u8, len: usize) {
        let mut at = 0;
        // SAFETY: as in `copy`.
        unsafe {
            while at + 16 < len {
                block!(16, from.add(at), to.add(at));
                at += 16;
            }
            block!(16, from.add(len - 16), to.add(len - 16));
        }
    }

    /// At least 128 bytes, with AVX. Not inlined: `vzeroupper` clears the upper half of every register,
    /// which callers do not expect to survive a call, but may expect to survive `asm!`.
    #[inline(never)]
    #[target_feature(enable = "avx")]
    unsafe fn avx(from: *const u8, to: *mut u8, len: usize) {
        let blocks = len / 128;
        // SAFETY: `blocks` blocks of 128 bytes and the last 128 bytes lie in `len`. `copy` has
        // detected AVX.
        unsafe {
            asm!(
                "2:",
                "vmovdqu {a}, [{from}]",
                "vmovdqu {b}, [{from} + 32]",
                "vmovdqu {c}, [{from} + 64]",
                "vmovdqu {d}, [{from} + 96]",
                "vmovdqu [{to}], {a}",
                "vmovdqu [{to} + 32], {b}",
                "vmovdqu [{to} + 64], {c}",
                "vmovdqu [{to} + 96], {d}",
                "add {from}, 128",
                "add {to}, 128",
                "dec {blocks}",
                "jnz 2b",
                "vmovdqu {a}, [{from_last}]",
                "vmovdqu {b}, [{from_last} + 32]",
                "vmovdqu {c}, [{from_last} + 64]",
                "vmovdqu {d}, [{from_last} + 96]",
                "vmovdqu [{to_last}], {a}",
                "vmovdqu [{to_last} + 32], {b}",
                "vmovdqu [{to_last} + 64], {c}",
                "vmovdqu [{to_last} + 96], {d}",
                "vzeroupper",
                from = inout(reg) from => _,
                to = inout(reg) to => _,
                blocks = inout(reg) blocks => _,
                from_last = in(reg) from.add(len - 128),
                to_last = in(reg) to.add(len - 128),
                a = out(ymm_reg) _, b = out(ymm_reg) _, c = out(ymm_reg) _, d = out(ymm_reg) _,
                options(nostack)
            );
        }
    }

    /// At least 128 bytes.
    unsafe fn sse(from: *const u8, to: *mut u8, len: usize) {
        let blocks = len / 64;
        // SAFETY: `blocks` blocks of 64 bytes and the last 64 bytes lie in `len`.
        unsafe {
            asm!(
                "2:",
                "movups {a}, [{from}]",
                "movups {b}, [{from} + 16]",
                "movups {c}, [{from} + 32]",
                "movups {d}, [{from} + 48]",
                "movups [{to}], {a}",
                "movups [{to} + 16], {b}",
                "movups [{to} + 32], {c}",
                "movups [{to} + 48], {d}",
                "add {from}, 64",
                "add {to}, 64",
                "dec {blocks}",
                "jnz 2b",
                "movups {a}, [{from_last}]",
                "movups {b}, [{from_last} + 16]",
                "movups {c}, [{from_last} + 32]",
                "movups {d}, [{from_last} + 48]",
                "movups [{to_last}], {a}",
                "movups [{to_last} + 16], {b}",
                "movups [{to_last} + 32], {c}",
                "movups [{to_last} + 48], {d}",
                from = inout(reg) from => _,
                to = inout(reg) to => _,
                blocks = inout(reg) blocks => _,
                from_last = in(reg) from.add(len - 64),
                to_last = in(reg) to.add(len - 64),
                a = out(xmm_reg) _, b = out(xmm_reg) _, c = out(xmm_reg) _, d = out(xmm_reg) _,
                options(nostack)
            );
        }
    }

    #[cfg(test)]
    pub(super) const COPIES: [unsafe fn(*const u8, *mut u8, usize); 2] = [copy, sse];
}

#[cfg(not(target_arch = "x86_64"))]
mod imp {
    #[inline]
    pub(super) fn prefetch_for_writing(_: *const u8, _: usize) {}

    #[inline]
    pub(super) unsafe fn copy(from: *const u8, to: *mut u8, len: usize) {
        const WORD: usize = size_of::<usize>();
        let mut at = 0;
        // SAFETY: every access stays below `len`. Words are used only if both addresses are aligned.
        unsafe {
            if from as usize % WORD == to as usize % WORD {
                while at < len && (from as usize + at) % WORD != 0 {
                    to.add(at).write_volatile(from.add(at).read_volatile());
                    at += 1;
                }
                while at + WORD <= len {
                    let word = from.add(at).cast::<usize>().read_volatile();
                    to.add(at).cast::<usize>().write_volatile(word);
                    at += WORD;
                }
            }
            while at < len {
                to.add(at).write_volatile(from.add(at).read_volatile());
                at += 1;
            }
        }
    }

    #[cfg(test)]
    pub(super) const COPIES: [unsafe fn(*const u8, *mut u8, usize); 1] = [copy];
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_length_and_alignment_is_copied_and_nothing_beyond() {
        let from: Vec<u8> = (0..2000u32).map(|i| (i * 7 + i / 256) as u8).collect();
        for (which, copy) in super::imp::COPIES.into_iter().enumerate() {
            let lengths = (0..700)
                .chain([1024, 1500])
                .filter(|len| which == 0 || *len >= 128);
            for len in lengths {
                for (a, b) in [(0, 0), (1, 0), (0, 3), (5, 5), (17, 40)] {
                    let mut to = vec![0xEE; 2000];
                    // SAFETY: both vectors are long enough.
                    unsafe { copy(from.as_ptr().add(a), to.as_mut_ptr().add(b), len) };
                    assert_eq!(to[b..b + len], from[a..a + len], "{which} {len} {a} {b}");
                    let beside = to[..b].iter().chain(&to[b + len..]);
                    assert!(
                        beside.copied().all(|byte| byte == 0xEE),
                        "{which} {len} {a} {b}"
                    );
                }
            }
        }
    }
}
