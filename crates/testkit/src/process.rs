//! Child processes of tests. They end with the test, and every wait has a timeout.

use std::io::{self, Read, Write};
use std::process::{
    Child, ChildStderr, ChildStdin, ChildStdout, Command, ExitStatus, Output, Stdio,
};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use hvsock_sys::sync::lock;

/// Polling interval of waits.
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// Starts a process. Under Wine, rarely, the new process ends before its first instruction, for reasons
/// of Wine's own, and `CreateProcess` fails with this error. It is tried up to three times.
fn spawn(command: &mut Command) -> io::Result<Child> {
    const ERROR_INTERNAL_ERROR: i32 = 1359;
    let failed_in_wine =
        |error: &io::Error| cfg!(windows) && error.raw_os_error() == Some(ERROR_INTERNAL_ERROR);
    for _ in 0..2 {
        match command.spawn() {
            Err(error) if failed_in_wine(&error) => {}
            started => return started,
        }
    }
    command.spawn()
}

/// A child process. Dropping it kills and reaps the process.
#[derive(Debug)]
pub struct Running(Child);

impl Running {
    /// Starts a process.
    ///
    /// # Errors
    /// If the program cannot be started. The error names it.
    pub fn start(command: &mut Command) -> io::Result<Self> {
        let program = command.get_program().to_string_lossy().into_owned();
        let child = spawn(command)
            .map_err(|error| io::Error::new(error.kind(), format!("{program}: {error}")))?;
        Ok(Self(child))
    }

    /// The process id.
    pub fn id(&self) -> u32 {
        self.0.id()
    }

    /// Takes stdin. `None` if it is no pipe, or was taken before.
    pub fn take_stdin(&mut self) -> Option<ChildStdin> {
        self.0.stdin.take()
    }

    /// Takes stdout. `None` if it is no pipe, or was taken before.
    pub fn take_stdout(&mut self) -> Option<ChildStdout> {
        self.0.stdout.take()
    }

    /// Takes stderr. `None` if it is no pipe, or was taken before.
    pub fn take_stderr(&mut self) -> Option<ChildStderr> {
        self.0.stderr.take()
    }

    /// Kills the process by `SIGKILL` and reaps it.
    ///
    /// # Errors
    /// If the process cannot be killed or reaped.
    pub fn kill(&mut self) -> io::Result<ExitStatus> {
        self.0.kill()?;
        self.0.wait()
    }

    /// The exit status; `None` while the process runs.
    ///
    /// # Errors
    /// If the system cannot report the status.
    pub fn ended(&mut self) -> io::Result<Option<ExitStatus>> {
        self.0.try_wait()
    }

    /// Waits until the process exits.
    ///
    /// # Errors
    /// `TimedOut` after `timeout`. The process keeps running.
    pub fn wait(&mut self, timeout: Duration) -> io::Result<ExitStatus> {
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(status) = self.0.try_wait()? {
                return Ok(status);
            }
            if Instant::now() >= deadline {
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    format!("process {} still runs after {timeout:?}", self.id()),
                ));
            }
            thread::sleep(POLL_INTERVAL);
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if matches!(self.0.try_wait(), Ok(None)) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }
}

/// Runs a command with `input` on its stdin, and returns its exit status and output.
///
/// A child of the command that keeps a pipe open prolongs the wait by at most a second.
///
/// # Errors
/// If the command cannot be started. After `timeout` it is killed, and the error `TimedOut` quotes its
/// output.
pub fn output(command: &mut Command, input: &[u8], timeout: Duration) -> io::Result<Output> {
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut running = Running::start(command)?;
    feed(&mut running, input);
    let stdout = running.take_stdout().map(CapturedOutput::from);
    let stderr = running.take_stderr().map(CapturedOutput::from);
    let ended = running.wait(timeout);
    if ended.is_err() {
        running.kill()?;
    }
    let deadline = Instant::now() + Duration::from_secs(1);
    let [stdout, stderr] =
        [stdout, stderr].map(|captured| captured.map_or(Vec::new(), |all| all.finish(deadline)));
    match ended {
        Ok(status) => Ok(Output {
            status,
            stdout,
            stderr,
        }),
        Err(error) => Err(io::Error::new(
            error.kind(),
            format!(
                "{error}\nstdout: {}\nstderr: {}",
                String::from_utf8_lossy(&stdout),
                String::from_utf8_lossy(&stderr)
            ),
        )),
    }
}

/// Writes the input in a new thread, so that a command that reads late does not block the test.
fn feed(running: &mut Running, input: &[u8]) {
    if let Some(mut stdin) = running.take_stdin() {
        let input = input.to_vec();
        thread::spawn(move || {
            // A command may exit without reading its input.
            let _ = stdin.write_all(&input);
        });
    }
}

/// Captures the output of a pipe in a background thread, so that a test can inspect the output of a
/// [`Running`] process.
#[derive(Debug)]
pub struct CapturedOutput {
    bytes: Arc<Mutex<Vec<u8>>>,
    reader: thread::JoinHandle<()>,
}

impl<R: Read + Send + 'static> From<R> for CapturedOutput {
    fn from(mut pipe: R) -> Self {
        let bytes = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&bytes);
        let reader = thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = pipe.read(&mut buffer) {
                lock(&sink).extend_from_slice(&buffer[..count]);
            }
        });
        Self { bytes, reader }
    }
}

impl CapturedOutput {
    /// The output so far, as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&lock(&self.bytes)).into_owned()
    }

    /// Waits until the output contains `expected`.
    ///
    /// # Errors
    /// `TimedOut` after `timeout`, with the output so far.
    pub fn wait_for(&self, expected: &str, timeout: Duration) -> io::Result<()> {
        let deadline = Instant::now() + timeout;
        while !self.text().contains(expected) {
            if Instant::now() >= deadline {
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    format!(
                        "{expected:?} did not appear within {timeout:?}, but {:?}",
                        self.text()
                    ),
                ));
            }
            thread::sleep(POLL_INTERVAL);
        }
        Ok(())
    }

    /// Waits for end of file or the deadline, and returns all output.
    pub fn finish(self, deadline: Instant) -> Vec<u8> {
        while !self.reader.is_finished() && Instant::now() < deadline {
            thread::sleep(POLL_INTERVAL);
        }
        std::mem::take(&mut *lock(&self.bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Environment variable with the role of the process that runs [`child`].
    const ROLE: &str = "HVSOCK_TESTKIT_CHILD";

    /// The body of the child processes of the other tests, which run this program with this test only.
    /// So they need no program that only some systems have.
    #[test]
    fn child() {
        match std::env::var(ROLE).as_deref() {
            Ok("answer") => {
                let mut input = String::new();
                io::stdin().read_to_string(&mut input).expect("stdin");
                print!("{input}");
                eprint!("no");
                std::process::exit(3);
            }
            Ok("hang") => {
                println!("so far");
                thread::sleep(Duration::from_secs(30));
            }
            _ => {}
        }
    }

    fn child_command(role: &str) -> Command {
        let mut command = Command::new(std::env::current_exe().expect("this program"));
        command.args(["--exact", "process::tests::child", "--nocapture"]);
        command.env(ROLE, role);
        command
    }

    #[test]
    fn output_passes_stdin_and_captures_both_streams() {
        let timeout = Duration::from_secs(20);
        let output = output(&mut child_command("answer"), b"hi\n", timeout).expect("a child");
        assert!(output.stdout.ends_with(b"hi\n"), "{output:?}");
        assert!(output.stderr.ends_with(b"no"), "{output:?}");
        assert_eq!(output.status.code(), Some(3));
    }

    #[test]
    fn a_command_that_times_out_is_killed_and_its_output_quoted() {
        let start = Instant::now();
        let timeout = Duration::from_secs(5);
        let error = output(&mut child_command("hang"), b"", timeout).expect_err("it sleeps");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(error.to_string().contains("so far"), "{error}");
        assert!(start.elapsed() < Duration::from_secs(20));
    }

    #[test]
    fn a_test_waits_for_output_and_a_dropped_process_is_killed() {
        let mut command = child_command("hang");
        let mut running = Running::start(command.stdout(Stdio::piped())).expect("a child");
        let stdout = CapturedOutput::from(running.take_stdout().expect("piped"));
        stdout
            .wait_for("so far", Duration::from_secs(20))
            .expect("it prints");
        let error = stdout
            .wait_for("never", Duration::from_millis(50))
            .expect_err("never");
        assert!(error.to_string().contains("so far"), "{error}");
        let start = Instant::now();
        drop(running);
        stdout.finish(start + Duration::from_secs(60));
        // The kill closes the pipe; the process itself would do so after 30 s only.
        assert!(start.elapsed() < Duration::from_secs(20));
    }
}
