//! The processor that runs a thread.

/// The number of the processor that runs the calling thread; `None` if unknown. Costs a few nanoseconds.
/// The thread may move to another one at any time.
pub fn current() -> Option<u32> {
    // SAFETY: takes no arguments and returns a number, or -1 on failure.
    u32::try_from(unsafe { libc::sched_getcpu() }).ok()
}

#[cfg(test)]
mod tests {
    use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

    #[test]
    fn it_is_the_processor_that_the_thread_is_pinned_to() {
        let allowed = sched_getaffinity(None).unwrap();
        for number in (0..CpuSet::MAX_CPU).filter(|number| allowed.is_set(*number)) {
            let mut only = CpuSet::new();
            only.set(number);
            sched_setaffinity(None, &only).unwrap();
            assert_eq!(super::current(), u32::try_from(number).ok());
        }
    }
}
