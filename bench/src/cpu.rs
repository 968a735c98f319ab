//! CPU time that a process has used.

use std::path::Path;
use std::time::Duration;

/// The CPU time of all threads that the process has now, to the nanosecond for those that sleep.
///
/// `/proc/PID/stat` would count in hundredths of a second, which hides what an idle process does.
pub fn used_by(process: u32) -> std::io::Result<Duration> {
    used_in(Path::new(&format!("/proc/{process}/task")))
}

fn used_in(tasks: &Path) -> std::io::Result<Duration> {
    let mut nanoseconds = 0;
    for task in std::fs::read_dir(tasks)? {
        // A thread may end meanwhile.
        let Ok(text) = std::fs::read_to_string(task?.path().join("schedstat")) else {
            continue;
        };
        let first = text.split_whitespace().next();
        nanoseconds += first.and_then(|word| word.parse().ok()).unwrap_or(0_u64);
    }
    Ok(Duration::from_nanos(nanoseconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_words_of_all_threads_are_added() {
        let dir = tempfile::tempdir().unwrap();
        for (task, text) in [("7", "1500 20 3\n"), ("8", "500 1 1\n"), ("9", "")] {
            std::fs::create_dir(dir.path().join(task)).unwrap();
            std::fs::write(dir.path().join(task).join("schedstat"), text).unwrap();
        }
        assert_eq!(used_in(dir.path()).unwrap(), Duration::from_nanos(2000));
    }
}
