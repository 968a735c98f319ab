//! The system's clock, as those set it who keep it right (`adjtimex`). Changing it takes
//! `CAP_SYS_TIME`.

use std::io;

const BILLION: i64 = 1_000_000_000;

/// How the clock is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kept {
    /// A program says that it keeps the clock right. None of the functions here says so.
    pub synchronized: bool,
    /// The rate that it was given, in billionths.
    pub rate_ppb: i64,
}

/// How the clock is kept now.
pub fn kept() -> io::Result<Kept> {
    let timex = adjust(0, |_| {})?;
    Ok(Kept {
        synchronized: timex.status & libc::STA_UNSYNC == 0,
        rate_ppb: of_scaled(timex.freq),
    })
}

/// Sets the clock by so many nanoseconds.
pub fn step(ns: i64) -> io::Result<()> {
    let (seconds, rest) = (ns.div_euclid(BILLION), ns.rem_euclid(BILLION));
    adjust(libc::ADJ_SETOFFSET | libc::ADJ_NANO, |timex| {
        timex.time.tv_sec = seconds;
        // With ADJ_NANO these are nanoseconds, and never negative.
        timex.time.tv_usec = rest;
    })
    .map(drop)
}

/// Has the kernel correct the clock by so many nanoseconds, half a thousandth faster or slower until
/// that is done. It takes the place of what was asked for before. Resolution: a microsecond.
pub fn slew(ns: i64) -> io::Result<()> {
    adjust(libc::ADJ_OFFSET_SINGLESHOT, |timex| {
        timex.offset = ns / 1000;
    })
    .map(drop)
}

/// Has the clock run at this rate, in billionths, at most half a thousandth either way.
pub fn set_rate(ppb: i64) -> io::Result<()> {
    adjust(libc::ADJ_FREQUENCY, |timex| timex.freq = scaled(ppb)).map(drop)
}

/// The kernel counts rates in millionths, with 16 bits behind the point.
fn scaled(ppb: i64) -> i64 {
    ppb.clamp(-500_000, 500_000) * 65_536 / 1000
}

fn of_scaled(scaled: i64) -> i64 {
    scaled.saturating_mul(1000) / 65_536
}

fn adjust(modes: libc::c_uint, fill: impl FnOnce(&mut libc::timex)) -> io::Result<libc::timex> {
    // SAFETY: a structure of numbers, for all of which zero is a value.
    let mut timex: libc::timex = unsafe { std::mem::zeroed() };
    timex.modes = modes;
    fill(&mut timex);
    // SAFETY: the kernel reads and writes this one structure and keeps nothing of it.
    match unsafe { libc::adjtimex(&raw mut timex) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(timex),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_the_clock_is_kept_can_be_asked_by_anyone() {
        let kept = kept().unwrap();
        assert!(kept.rate_ppb.abs() <= 500_000, "{kept:?}");
    }

    #[test]
    fn rates_are_in_the_kernels_unit() {
        assert_eq!(scaled(1000), 65_536);
        assert_eq!(scaled(-500_001), -500 * 65_536);
        assert_eq!(of_scaled(scaled(-123_000)), -123_000);
    }
}
