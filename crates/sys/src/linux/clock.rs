//! The monotonic clock that processes share, and the system clock's discipline (`adjtimex`). Changing
//! that requires `CAP_SYS_TIME`.

use std::io;
use std::time::Duration;

use rustix::time::ClockId;

const BILLION: i64 = 1_000_000_000;

/// The time of `CLOCK_MONOTONIC`, which all processes of a time namespace share.
pub fn monotonic() -> Duration {
    let now = rustix::time::clock_gettime(ClockId::Monotonic);
    // Never negative.
    Duration::try_from(now).unwrap_or_default()
}

/// The state of the clock's discipline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClockStatus {
    /// A program (such as an NTP client) has declared the clock synchronized. No function here does.
    pub synchronized: bool,
    /// The frequency correction in force, in parts per billion.
    pub rate_ppb: i64,
}

/// Reads the state of the clock's discipline. Needs no privilege.
///
/// # Errors
///
/// Those of `adjtimex`.
pub fn status() -> io::Result<ClockStatus> {
    let timex = adjust(0, |_| {})?;
    Ok(ClockStatus {
        synchronized: timex.status & libc::STA_UNSYNC == 0,
        rate_ppb: of_scaled(timex.freq),
    })
}

/// Steps the clock by `ns` nanoseconds.
///
/// # Errors
///
/// `EPERM` without `CAP_SYS_TIME`.
pub fn step(ns: i64) -> io::Result<()> {
    let (seconds, rest) = (ns.div_euclid(BILLION), ns.rem_euclid(BILLION));
    adjust(libc::ADJ_SETOFFSET | libc::ADJ_NANO, |timex| {
        timex.time.tv_sec = seconds;
        // With ADJ_NANO these are nanoseconds, and never negative.
        timex.time.tv_usec = rest;
    })
    .map(drop)
}

/// Slews the clock by `ns` nanoseconds: the kernel runs it 500 ppm faster or slower until that is done.
/// Replaces an earlier slew. Resolution: 1 µs.
///
/// # Errors
///
/// `EPERM` without `CAP_SYS_TIME`.
pub fn slew(ns: i64) -> io::Result<()> {
    adjust(libc::ADJ_OFFSET_SINGLESHOT, |timex| {
        timex.offset = ns / 1000;
    })
    .map(drop)
}

/// Sets the clock's frequency correction in parts per billion, limited to ±500,000.
///
/// # Errors
///
/// `EPERM` without `CAP_SYS_TIME`.
pub fn set_rate(ppb: i64) -> io::Result<()> {
    adjust(libc::ADJ_FREQUENCY, |timex| timex.freq = scaled(ppb)).map(drop)
}

/// The kernel's unit: parts per million with a 16-bit fraction.
fn scaled(ppb: i64) -> i64 {
    ppb.clamp(-500_000, 500_000) * 65_536 / 1000
}

fn of_scaled(scaled: i64) -> i64 {
    scaled.saturating_mul(1000) / 65_536
}

fn adjust(modes: libc::c_uint, fill: impl FnOnce(&mut libc::timex)) -> io::Result<libc::timex> {
    // SAFETY: a structure of integers, for which all zero is valid.
    let mut timex: libc::timex = unsafe { std::mem::zeroed() };
    timex.modes = modes;
    fill(&mut timex);
    // SAFETY: the kernel reads and writes this one structure and keeps no pointer to it.
    match unsafe { libc::adjtimex(&raw mut timex) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(timex),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_monotonic_clock_advances() {
        let first = monotonic();
        assert!(first > Duration::ZERO);
        assert!(monotonic() >= first);
    }

    #[test]
    fn reading_the_state_needs_no_privilege() {
        let status = status().unwrap();
        assert!(status.rate_ppb.abs() <= 500_000, "{status:?}");
    }

    #[test]
    fn rates_are_in_the_kernels_unit() {
        assert_eq!(scaled(1000), 65_536);
        assert_eq!(scaled(-500_001), -500 * 65_536);
        assert_eq!(of_scaled(scaled(-123_000)), -123_000);
    }
}
