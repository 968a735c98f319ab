//! Which processor a thread runs on.

/// The number of the processor that runs the calling thread at this moment; `None` where the
/// system does not say. Costs a few nanoseconds, and is old as soon as it is known.
pub fn current() -> Option<u32> {
    // SAFETY: takes no arguments and only returns a number, -1 where the system does not know.
    u32::try_from(unsafe { libc::sched_getcpu() }).ok()
}

#[cfg(test)]
mod tests {
    use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

    #[test]
    fn it_is_the_one_that_the_thread_is_bound_to() {
        let allowed = sched_getaffinity(None).unwrap();
        for number in (0..CpuSet::MAX_CPU).filter(|number| allowed.is_set(*number)) {
            let mut only = CpuSet::new();
            only.set(number);
            sched_setaffinity(None, &only).unwrap();
            assert_eq!(super::current(), u32::try_from(number).ok());
        }
    }
}
