//! The processor that runs a thread, and the processors that it may use.

use std::io;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// The number of the processor that runs the calling thread; `None` if unknown. Costs a few nanoseconds.
/// The thread may move to another one at any time.
#[inline]
pub fn current() -> Option<u32> {
    // SAFETY: takes no arguments and returns a number, or -1 on failure.
    u32::try_from(unsafe { libc::sched_getcpu() }).ok()
}

/// The numbers of the processors that the calling thread may use, in ascending order.
///
/// # Errors
///
/// Those of `sched_getaffinity`.
#[doc(alias = "sched_getaffinity")]
pub fn affinity() -> io::Result<Vec<usize>> {
    let allowed = sched_getaffinity(None)?;
    let numbers = 0..CpuSet::MAX_CPU;
    Ok(numbers.filter(|number| allowed.is_set(*number)).collect())
}

/// Restricts the calling thread, and threads that it starts later, to the processors with these numbers.
///
/// Only for measurements: where a program's threads run is the scheduler's and the administrator's decision.
///
/// # Errors
///
/// `InvalidInput` if a number is too large; those of `sched_setaffinity`, such as `InvalidInput` if none of the
/// processors exists.
#[doc(alias = "sched_setaffinity")]
pub fn set_affinity(numbers: &[usize]) -> io::Result<()> {
    if numbers.iter().any(|number| *number >= CpuSet::MAX_CPU) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut only = CpuSet::new();
    numbers.iter().for_each(|number| only.set(*number));
    Ok(sched_setaffinity(None, &only)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_runs_on_the_processor_that_it_is_restricted_to() {
        for number in affinity().unwrap() {
            set_affinity(&[number]).unwrap();
            assert_eq!(current(), u32::try_from(number).ok());
            assert_eq!(affinity().unwrap(), [number]);
        }
    }

    #[test]
    fn no_processor_and_one_that_does_not_exist_are_errors() {
        let before = affinity().unwrap();
        for numbers in [vec![], vec![CpuSet::MAX_CPU - 1], vec![CpuSet::MAX_CPU]] {
            let error = set_affinity(&numbers).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{numbers:?}");
        }
        assert_eq!(affinity().unwrap(), before);
    }
}
