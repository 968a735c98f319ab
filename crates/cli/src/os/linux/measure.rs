//! Measures a stream against a Unix socket in the same run: throughput, round trip time, and
//! connections per second.
//!
//! A machine's speed changes from one second to the next. hvsock and the Unix socket therefore take
//! turns, and the ratio is computed for each turn.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread;
use std::time::{Duration, Instant};

use hvsock::{HvListener, HvStream};
use serde::{Deserialize, Serialize};

/// The size of one write of the throughput measurement, in bytes.
const CHUNK: usize = 64 * 1024;
/// The size of one message of the round trip measurement, in bytes.
const MESSAGE: usize = 64;

/// First byte of a connection: the server reads all data and then confirms with the same byte.
const SINK: u8 = b'S';
/// First byte of a connection: the server echoes all data.
pub const ECHO: u8 = b'E';
/// First byte of a connection: the server closes the connection.
const CLOSE: u8 = b'C';

/// A stream that can shut down its sending half.
pub trait Stream: Read + Write + Send + Sized + 'static {
    /// Shuts down the sending half (half-close).
    fn finish(&self) -> io::Result<()>;
}

impl Stream for HvStream {
    fn finish(&self) -> io::Result<()> {
        self.shutdown(Shutdown::Write)
    }
}

impl Stream for UnixStream {
    fn finish(&self) -> io::Result<()> {
        self.shutdown(Shutdown::Write)
    }
}

/// Serves one connection as its first byte selects. `CLOSE` needs no thread, so that the connections
/// per second are not limited by thread creation.
pub fn serve(mut stream: impl Stream) {
    let mut wanted = [0];
    if stream.read_exact(&mut wanted).is_err() || wanted[0] == CLOSE {
        return;
    }
    // If no thread can be started, the connection closes, which the client reports.
    let _ = thread::Builder::new()
        .name("measure".into())
        .spawn(move || serve_long(stream, wanted[0]));
}

fn serve_long(mut stream: impl Stream, wanted: u8) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    match wanted {
        SINK => {
            while stream.read(&mut buffer)? > 0 {}
            stream.write_all(&[SINK])
        }
        ECHO => loop {
            match stream.read(&mut buffer)? {
                0 => return Ok(()),
                count => stream.write_all(&buffer[..count])?,
            }
        },
        _ => Ok(()),
    }
}

/// Serves the connections of an hvsock listener in a thread until the listener is closed.
pub fn serve_hvsock(listener: HvListener) -> io::Result<()> {
    let serve_all = move || listener.incoming().flatten().for_each(serve);
    thread::Builder::new()
        .name("serve-hvsock".into())
        .spawn(serve_all)?;
    Ok(())
}

/// Serves the connections of a Unix socket in a thread.
pub fn serve_unix(listener: UnixListener) -> io::Result<()> {
    let serve_all = move || listener.incoming().flatten().for_each(serve);
    thread::Builder::new()
        .name("serve-unix".into())
        .spawn(serve_all)?;
    Ok(())
}

/// The median, least and greatest of several measurements.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Spread {
    pub median: f64,
    pub min: f64,
    pub max: f64,
}

impl Spread {
    /// `None` if there are no measurements.
    fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        Some(Self {
            median: *values.get(values.len() / 2)?,
            min: *values.first()?,
            max: *values.last()?,
        })
    }
}

/// One figure of hvsock and of a Unix socket, and their ratio.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Figure {
    pub hvsock: Spread,
    pub unix: Spread,
    /// hvsock's figure divided by the Unix socket's, for each turn.
    pub ratio: Spread,
}

/// All figures of one run.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Figures {
    /// Bytes per second, in writes of 64 KiB.
    pub throughput: Figure,
    /// Seconds for the round trip of 64 bytes, the median of one turn.
    pub round_trip: Figure,
    /// Connections per second, each accepted and closed before the next.
    pub connections: Figure,
}

/// How long to measure.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Turns that count. One more warms up.
    pub turns: usize,
    /// The duration of each measurement of each turn.
    pub time: Duration,
}

/// Measures two kinds of connections, whose servers run [`serve`].
///
/// # Errors
///
/// Fails if a connection fails, or if a turn is too short to measure anything.
pub fn compare<A: Stream, B: Stream>(
    hvsock: impl Fn() -> io::Result<A>,
    unix: impl Fn() -> io::Result<B>,
    effort: Effort,
    mut progress: impl FnMut(usize),
) -> io::Result<Figures> {
    let mut all: [Vec<(f64, f64)>; 3] = Default::default();
    for turn in 0..=effort.turns {
        progress(turn);
        let time = effort.time;
        let measured = [
            (throughput(hvsock()?, time)?, throughput(unix()?, time)?),
            (round_trip(hvsock()?, time)?, round_trip(unix()?, time)?),
            (connections(&hvsock, time)?, connections(&unix, time)?),
        ];
        if turn > 0 {
            for (series, pair) in all.iter_mut().zip(measured) {
                series.push(pair);
            }
        }
    }
    let mut figures = all.iter().map(|series| {
        let of = |value: fn(&(f64, f64)) -> f64| {
            let spread = Spread::of(series.iter().map(value).collect());
            spread.ok_or_else(|| io::Error::other("nothing was measured"))
        };
        Ok::<_, io::Error>(Figure {
            hvsock: of(|(hvsock, _)| *hvsock)?,
            unix: of(|(_, unix)| *unix)?,
            ratio: of(|(hvsock, unix)| hvsock / unix)?,
        })
    });
    let mut next = || {
        figures
            .next()
            .unwrap_or_else(|| Err(io::ErrorKind::NotFound.into()))
    };
    Ok(Figures {
        throughput: next()?,
        round_trip: next()?,
        connections: next()?,
    })
}

fn throughput(mut stream: impl Stream, time: Duration) -> io::Result<f64> {
    stream.write_all(&[SINK])?;
    let chunk = vec![0x5a; CHUNK];
    let start = Instant::now();
    let mut sent = 0_u64;
    while start.elapsed() < time {
        stream.write_all(&chunk)?;
        sent += CHUNK as u64;
    }
    stream.finish()?;
    // The server answers after it has read everything.
    stream.read_exact(&mut [0])?;
    Ok(sent as f64 / start.elapsed().as_secs_f64())
}

fn round_trip(mut stream: impl Stream, time: Duration) -> io::Result<f64> {
    stream.write_all(&[ECHO])?;
    let mut message = [0x5a; MESSAGE];
    let mut trips = Vec::new();
    let start = Instant::now();
    while start.elapsed() < time {
        let sent = Instant::now();
        stream.write_all(&message)?;
        stream.read_exact(&mut message)?;
        trips.push(sent.elapsed().as_secs_f64());
    }
    trips.sort_by(f64::total_cmp);
    let median = trips.get(trips.len() / 2).copied();
    median.ok_or_else(|| io::Error::other("no round trip was made"))
}

fn connections<S: Stream>(connect: impl Fn() -> io::Result<S>, time: Duration) -> io::Result<f64> {
    let start = Instant::now();
    let mut made = 0_u32;
    while start.elapsed() < time {
        let mut stream = connect()?;
        stream.write_all(&[CLOSE])?;
        // The server closes the connection after it has accepted it.
        stream.read_to_end(&mut Vec::new())?;
        made += 1;
    }
    Ok(f64::from(made) / start.elapsed().as_secs_f64())
}

/// The rows of a table: the measurement, hvsock, the Unix socket, and the ratio with its range.
pub fn rows(figures: &Figures) -> [[String; 4]; 3] {
    let rate = |value: f64| format!("{:.2} GB/s", value / 1e9);
    let time = |value: f64| format!("{:.1} µs", value * 1e6);
    let count = |value: f64| format!("{value:.0}/s");
    [
        row("throughput, 64 KiB writes", &figures.throughput, rate),
        row("round trip, 64 bytes", &figures.round_trip, time),
        row("connect, accept, close", &figures.connections, count),
    ]
}

fn row(what: &str, figure: &Figure, shown: impl Fn(f64) -> String) -> [String; 4] {
    let ratio = figure.ratio;
    [
        what.to_owned(),
        shown(figure.hvsock.median),
        shown(figure.unix.median),
        format!("{:.2} ({:.2} to {:.2})", ratio.median, ratio.min, ratio.max),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_measured_against_itself_has_all_figures() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        thread::spawn(move || listener.incoming().flatten().for_each(serve));
        let connect = || UnixStream::connect(&path);
        let effort = Effort {
            turns: 3,
            time: Duration::from_millis(5),
        };
        let mut turns = 0;
        let figures = compare(connect, connect, effort, |_| turns += 1).unwrap();
        assert_eq!(turns, 4);
        for figure in [figures.throughput, figures.round_trip, figures.connections] {
            assert!(figure.hvsock.min > 0.0 && figure.ratio.max >= figure.ratio.median);
        }
        assert!(rows(&figures)[0][1].ends_with("GB/s"));
    }
}
