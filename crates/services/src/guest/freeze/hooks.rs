//! Hooks: programs in a folder that run before a freeze and after the thaw, for example to make a
//! database flush its memory.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::process::Command;
use tokio::time::timeout;

/// The folder of the hooks.
pub(super) const FOLDER: &str = "/etc/hvsock/freeze.d";

/// The longest time that a hook may run.
const LIMIT: Duration = Duration::from_secs(10);

/// The most hooks.
const MAX_HOOKS: usize = 64;

/// The task of a hook, passed as its argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HookTask {
    /// Prepare: filesystems are about to be frozen.
    Freeze,
    /// Resume: nothing is frozen any more.
    Thaw,
}

/// Why a hook failed.
#[derive(Debug, thiserror::Error)]
pub enum HookError {
    /// It cannot be started or waited for.
    #[error("the hook {}: {error}", hook.display())]
    Io {
        /// The hook.
        hook: PathBuf,
        /// The system's error.
        error: io::Error,
    },
    /// It exited with a failure.
    #[error("the hook {} failed: {status}", hook.display())]
    Failed {
        /// The hook.
        hook: PathBuf,
        /// Its exit status.
        status: ExitStatus,
    },
    /// It exceeded the time limit and was killed.
    #[error("the hook {} exceeded its limit of {} s", .0.display(), LIMIT.as_secs())]
    TooSlow(PathBuf),
    /// There are too many hooks.
    #[error("more than {MAX_HOOKS} hooks in {}", .0.display())]
    TooMany(PathBuf),
}

/// Lists the hooks of a folder in the order of their names: executable files, except hidden files
/// and editors' backup copies. Empty if the folder does not exist.
///
/// # Errors
///
/// [`HookError`] if the folder cannot be read, or has more than 64 hooks.
pub fn all(folder: &Path) -> Result<Vec<PathBuf>, HookError> {
    let io = |error| HookError::Io {
        hook: folder.to_owned(),
        error,
    };
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(io)?,
    };
    let mut hooks = Vec::new();
    for entry in entries {
        let path = entry.map_err(io)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let visible = !name.starts_with('.') && !name.ends_with('~');
        let program = |meta: fs::Metadata| meta.is_file() && meta.permissions().mode() & 0o111 != 0;
        if visible && fs::metadata(&path).is_ok_and(program) {
            hooks.push(path);
        }
        if hooks.len() > MAX_HOOKS {
            return Err(HookError::TooMany(folder.to_owned()));
        }
    }
    hooks.sort();
    Ok(hooks)
}

/// Runs a hook, for at most ten seconds. Dropping the future kills the hook with its process group.
///
/// # Errors
///
/// [`HookError`] if the hook cannot be started, fails, or exceeds the limit.
pub async fn run(hook: &Path, task: HookTask) -> Result<(), HookError> {
    within(LIMIT, hook, task).await
}

async fn within(limit: Duration, hook: &Path, task: HookTask) -> Result<(), HookError> {
    let io = |error| HookError::Io {
        hook: hook.to_owned(),
        error,
    };
    let argument = match task {
        HookTask::Freeze => "freeze",
        HookTask::Thaw => "thaw",
    };
    let mut command = Command::new(hook);
    command.arg(argument).process_group(0).kill_on_drop(true);
    command.stdin(Stdio::null()).stdout(Stdio::null());
    let mut child = command.spawn().map_err(io)?;
    let pid = child.id().and_then(|pid| Pid::from_raw(pid as i32));
    let group = Group(pid);
    // The freezer is protected from the OOM killer; the hooks, which inherit this, need not be.
    let _ = fs::write(
        format!("/proc/{}/oom_score_adj", child.id().unwrap_or(0)),
        "0",
    );
    let status = match timeout(limit, child.wait()).await {
        Ok(status) => status.map_err(io)?,
        Err(_) => return Err(HookError::TooSlow(hook.to_owned())),
    };
    std::mem::forget(group);
    match status.success() {
        true => Ok(()),
        false => Err(HookError::Failed {
            hook: hook.to_owned(),
            status,
        }),
    }
}

/// The process group of a running hook.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(pid) = self.0 {
            let _ = kill_process_group(pid, Signal::KILL);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hook(folder: &Path, name: &str, mode: u32, script: &str) -> PathBuf {
        let path = folder.join(name);
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    #[test]
    fn executable_files_are_hooks_in_the_order_of_their_names() {
        let folder = tempfile::tempdir().unwrap();
        for (name, mode) in [("b", 0o755), ("a", 0o700), ("c", 0o644), (".d", 0o755)] {
            hook(folder.path(), name, mode, "");
        }
        hook(folder.path(), "e~", 0o755, "");
        fs::create_dir(folder.path().join("f")).unwrap();
        let hooks = all(folder.path()).unwrap();
        assert_eq!(hooks, [folder.path().join("a"), folder.path().join("b")]);
        assert_eq!(
            all(&folder.path().join("none")).unwrap(),
            [] as [PathBuf; 0]
        );
    }

    #[tokio::test]
    async fn a_hook_gets_its_task_and_may_fail() {
        let folder = tempfile::tempdir().unwrap();
        let path = hook(folder.path(), "a", 0o755, "test $1 = thaw");
        run(&path, HookTask::Thaw).await.unwrap();
        let refused = run(&path, HookTask::Freeze).await.unwrap_err();
        assert!(refused.to_string().contains("exit status: 1"), "{refused}");
    }

    #[tokio::test]
    async fn a_hook_that_does_not_exit_is_too_slow() {
        let folder = tempfile::tempdir().unwrap();
        let path = hook(folder.path(), "a", 0o755, "sleep 600");
        let slow = within(Duration::from_millis(50), &path, HookTask::Freeze).await;
        assert!(matches!(slow, Err(HookError::TooSlow(_))), "{slow:?}");
    }

    #[tokio::test]
    async fn a_cancelled_hook_is_killed_with_its_children() {
        let folder = tempfile::tempdir().unwrap();
        let pids = folder.path().join("pids");
        let script = format!(
            "sleep 600 & echo $! >{0}.new; mv {0}.new {0}; wait",
            pids.display()
        );
        let path = hook(folder.path(), "a", 0o755, &script);
        let seen = async {
            loop {
                if let Ok(pid) = fs::read_to_string(&pids) {
                    return pid;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let pid = tokio::select! {
            ended = run(&path, HookTask::Freeze) => panic!("{ended:?}"),
            pid = seen => pid,
        };
        // Gone, or a zombie that its new parent has not reaped yet.
        let stat = format!("/proc/{}/stat", pid.trim());
        let dead = || fs::read_to_string(&stat).map_or(true, |stat| stat.contains(") Z "));
        for _ in 0..3000 {
            if dead() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("the hook's child still runs");
    }
}
