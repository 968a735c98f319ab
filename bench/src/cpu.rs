//! CPU time of processes, and CPU affinity.

use std::path::Path;
use std::time::Duration;

use hvsock_sys::processor;

/// Two processors that this process may use. `None` if there is only one.
pub fn two() -> std::io::Result<Option<[usize; 2]>> {
    Ok(processor::affinity()?.first_chunk().copied())
}

/// Pins the calling thread, and threads that it starts later, to one processor.
pub fn pin_to(cpu: usize) -> std::io::Result<()> {
    processor::set_affinity(&[cpu])
}

/// CPU time of all current threads of a process, from `schedstat`, in nanoseconds.
///
/// `/proc/PID/stat` counts in hundredths of a second, which is too coarse for an idle process.
pub fn used_by(process: u32) -> std::io::Result<Duration> {
    used_in(Path::new(&format!("/proc/{process}/task")))
}

fn used_in(tasks: &Path) -> std::io::Result<Duration> {
    let mut nanoseconds = 0;
    for task in std::fs::read_dir(tasks)? {
        // A thread may have exited meanwhile.
        let Ok(text) = std::fs::read_to_string(task?.path().join("schedstat")) else {
            continue;
        };
        let first = text.split_whitespace().next();
        nanoseconds += first.and_then(|word| word.parse().ok()).unwrap_or(0_u64);
    }
    Ok(Duration::from_nanos(nanoseconds))
}

/// Busy and stolen time of all processors since boot.
pub fn used_by_all() -> std::io::Result<Duration> {
    Ok(busy_in(&std::fs::read_to_string("/proc/stat")?))
}

fn busy_in(stat: &str) -> Duration {
    // user nice system idle iowait irq softirq steal, in hundredths of a second
    let fields = stat.lines().next().unwrap_or_default().split_whitespace();
    let numbers = fields.skip(1).take(8).map(|word| word.parse().unwrap_or(0));
    let busy = numbers.enumerate().filter(|(at, _)| !matches!(at, 3 | 4));
    Duration::from_millis(busy.map(|(_, hundredths)| hundredths * 10_u64).sum())
}

/// Busy time of this process and of its descendants that have ended.
pub fn used_by_tree() -> std::io::Result<Duration> {
    Ok(tree_in(&std::fs::read_to_string("/proc/self/stat")?))
}

fn tree_in(stat: &str) -> Duration {
    // After the name, which may have spaces: utime, stime, cutime and cstime, in hundredths of a second.
    let fields = stat.rsplit(')').next().unwrap_or_default();
    let numbers = fields.split_whitespace().skip(11).take(4);
    let sum = numbers
        .map(|word| word.parse().unwrap_or(0_u64))
        .sum::<u64>();
    Duration::from_millis(sum * 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_processors_are_not_busy() {
        let stat = "cpu  1 2 3 1000 2000 4 5 6 7 8\ncpu0 9 9 9\n";
        assert_eq!(busy_in(stat), Duration::from_millis(210));
    }

    #[test]
    fn the_times_of_descendants_are_added_to_those_of_the_process() {
        let stat = "7 (a (b) c) S 1 7 7 0 -1 4194304 91 92 0 0 1 2 30 400 20 0 1 0 99\n";
        assert_eq!(tree_in(stat), Duration::from_millis(4330));
    }

    #[test]
    fn the_cpu_times_of_all_threads_are_added() {
        let dir = tempfile::tempdir().unwrap();
        for (task, text) in [("7", "1500 20 3\n"), ("8", "500 1 1\n"), ("9", "")] {
            std::fs::create_dir(dir.path().join(task)).unwrap();
            std::fs::write(dir.path().join(task).join("schedstat"), text).unwrap();
        }
        assert_eq!(used_in(dir.path()).unwrap(), Duration::from_nanos(2000));
    }
}
