//! Figures of a stream: bytes a second, round trips, connections a second, each against a Unix
//! socket in the same run.
//!
//! Machines change their pace from one second to the next, so ours and the Unix socket take turns
//! and the ratio is taken turn by turn: it holds where a single figure does not.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread;
use std::time::{Duration, Instant};

use hvsock::{HvListener, HvStream};
use serde::{Deserialize, Serialize};

/// Bytes of one write when throughput is measured.
const CHUNK: usize = 64 * 1024;
/// Bytes of a message that goes there and back.
const MESSAGE: usize = 64;

/// What the client wants of a connection, its first byte.
const SINK: u8 = b'S';
pub const ECHO: u8 = b'E';
const CLOSE: u8 = b'C';

/// A stream that can end its sending half.
pub trait Stream: Read + Write + Send + Sized + 'static {
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

/// Serves one connection: what the first byte says. Short work is done at once, so that the
/// number of connections a second is not that of threads a second.
pub fn serve(mut stream: impl Stream) {
    let mut wanted = [0];
    if stream.read_exact(&mut wanted).is_err() || wanted[0] == CLOSE {
        return;
    }
    // A thread that cannot be had ends the connection, which the client sees.
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

/// Serves connections of ours from a thread of its own, until the listener is cut.
pub fn serve_ours(listener: HvListener) -> io::Result<()> {
    let serve_all = move || listener.incoming().flatten().for_each(serve);
    thread::Builder::new()
        .name("serve-ours".into())
        .spawn(serve_all)?;
    Ok(())
}

/// Serves connections of a Unix socket likewise.
pub fn serve_unix(listener: UnixListener) -> io::Result<()> {
    let serve_all = move || listener.incoming().flatten().for_each(serve);
    thread::Builder::new()
        .name("serve-unix".into())
        .spawn(serve_all)?;
    Ok(())
}

/// The middle of several measurements, and their ends.
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

/// One figure of ours, of a Unix socket, and of the one by the other.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Figure {
    pub ours: Spread,
    pub unix: Spread,
    /// Ours divided by the Unix socket's, turn by turn.
    pub ratio: Spread,
}

/// All figures of one run.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Figures {
    /// Bytes a second, in writes of 64 KiB.
    pub throughput: Figure,
    /// Seconds for 64 bytes to go there and back: the median of one turn.
    pub round_trip: Figure,
    /// Connections a second, each accepted and closed before the next.
    pub connections: Figure,
}

/// How long to measure.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Turns that count; one more is made to warm up.
    pub turns: usize,
    /// Of each measurement of each turn.
    pub time: Duration,
}

/// Measures against servers that [`serve`].
pub fn compare<A: Stream, B: Stream>(
    ours: impl Fn() -> io::Result<A>,
    unix: impl Fn() -> io::Result<B>,
    effort: Effort,
    mut progress: impl FnMut(usize),
) -> io::Result<Figures> {
    let mut all: [Vec<(f64, f64)>; 3] = Default::default();
    for turn in 0..=effort.turns {
        progress(turn);
        let time = effort.time;
        let measured = [
            (throughput(ours()?, time)?, throughput(unix()?, time)?),
            (round_trip(ours()?, time)?, round_trip(unix()?, time)?),
            (connections(&ours, time)?, connections(&unix, time)?),
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
            ours: of(|(ours, _)| *ours)?,
            unix: of(|(_, unix)| *unix)?,
            ratio: of(|(ours, unix)| ours / unix)?,
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
    // All of it has arrived when this comes back.
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
        // Its end says that it was accepted.
        stream.read_to_end(&mut Vec::new())?;
        made += 1;
    }
    Ok(f64::from(made) / start.elapsed().as_secs_f64())
}

/// The rows of a table of figures: what, ours, a Unix socket's, the ratio with its ends.
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
        shown(figure.ours.median),
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
            assert!(figure.ours.min > 0.0 && figure.ratio.max >= figure.ratio.median);
        }
        assert!(rows(&figures)[0][1].ends_with("GB/s"));
    }
}
