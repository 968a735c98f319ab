//! Doorbells: how one process wakes another that waits in poll, without trusting it.
//!
//! A doorbell is a pipe of which the waiting process holds the reading end and the ringing one
//! the writing end. An eventfd would cost 0.2 µs less, but there both processes hold the same
//! open file description: a hostile waiter could fill the counter and clear `O_NONBLOCK`, and the
//! next ring would block for ever. With a pipe neither process can make a call of the other wait.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use rustix::io::Errno;
use rustix::pipe::PipeFlags;

use super::poll::{self, PollFd, PollFlags};

/// The two ends of a new doorbell: where it is heard, and where it is rung.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(rustix::pipe::pipe_with(
        PipeFlags::CLOEXEC | PipeFlags::NONBLOCK,
    )?)
}

/// Rings; whether anybody can still hear it. Never waits: a bell that is full of rings has not
/// been heard yet, and will be.
pub fn ring(bell: impl AsFd) -> io::Result<bool> {
    match super::sigpipe::without(|| rustix::io::retry_on_intr(|| rustix::io::write(&bell, &[1]))) {
        Ok(_) | Err(Errno::AGAIN) => Ok(true),
        Err(Errno::PIPE) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Takes back all rings; whether anybody can still ring. Where they come faster than they are
/// taken, some stay.
pub fn clear(bell: impl AsFd) -> io::Result<bool> {
    for _ in 0..MOST_READS {
        match take(&bell, MOST_TAKEN)? {
            Some(0) => return Ok(true),
            Some(_) => {}
            None => return Ok(false),
        }
    }
    Ok(!look(&bell)?.hung_up)
}

/// As [`clear`], with one system call where few rings are there, as is usual; does not find out
/// whether anybody can still ring.
pub fn clear_few(bell: impl AsFd) -> io::Result<()> {
    let mut rings = [0; FEW];
    match rustix::io::retry_on_intr(|| rustix::io::read(&bell, &mut rings)) {
        Ok(FEW) => clear(bell).map(drop),
        Ok(_) | Err(Errno::AGAIN) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Rings that [`clear_few`] takes at once.
const FEW: usize = 16;
/// How often [`clear`] reads.
const MOST_READS: u32 = 32;
/// How many rings [`take`] takes at most.
const MOST_TAKEN: usize = 4096;

/// Takes back at most `most` rings, and never waits for them; how many they were, or `None` if
/// there are none and nobody can ring any more.
pub fn take(bell: impl AsFd, most: usize) -> io::Result<Option<usize>> {
    let mut rings = [0; MOST_TAKEN];
    let rings = &mut rings[..most.min(MOST_TAKEN)];
    if rings.is_empty() {
        return Ok(Some(0));
    }
    match rustix::io::retry_on_intr(|| rustix::io::read(&bell, &mut *rings)) {
        Ok(0) => Ok(None),
        Ok(count) => Ok(Some(count)),
        Err(Errno::AGAIN) => Ok(Some(0)),
        Err(error) => Err(error.into()),
    }
}

/// What there is to be heard of a bell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heard {
    /// How many rings.
    pub rings: usize,
    /// Nobody can ring it any more.
    pub hung_up: bool,
}

/// Looks what there is to be heard, and leaves it there.
pub fn look(bell: impl AsFd) -> io::Result<Heard> {
    let mut fds = [PollFd::new(&bell, PollFlags::IN)];
    poll::wait(&mut fds, Some(Instant::now()))?;
    let found = fds[0].revents();
    let rings = match found.contains(PollFlags::IN) {
        true => usize::try_from(rustix::io::ioctl_fionread(&bell)?).unwrap_or(usize::MAX),
        false => 0,
    };
    Ok(Heard {
        rings,
        hung_up: found.contains(PollFlags::HUP),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(bell: &OwnedFd) -> bool {
        let mut fds = [PollFd::new(bell, PollFlags::IN)];
        poll::wait(&mut fds, Some(Instant::now())).unwrap()
    }

    #[test]
    fn a_ring_is_heard_until_it_is_cleared() {
        let (hear, bell) = pair().unwrap();
        assert!(!heard(&hear));
        assert!(ring(&bell).unwrap());
        assert!(ring(&bell).unwrap());
        assert!(heard(&hear));
        assert!(clear(&hear).unwrap());
        assert!(!heard(&hear));
        assert!(clear(&hear).unwrap());
    }

    #[test]
    fn a_full_bell_does_not_make_anybody_wait() {
        let (hear, bell) = pair().unwrap();
        for _ in 0..100_000 {
            assert!(ring(&bell).unwrap());
        }
        assert!(heard(&hear));
        let rings = look(&hear).unwrap().rings;
        assert!(rings > 2 * MOST_TAKEN);
        assert_eq!(take(&hear, 5).unwrap(), Some(5));
        assert_eq!(look(&hear).unwrap().rings, rings - 5);
        assert!(clear(&hear).unwrap());
        assert!(!heard(&hear));
        assert_eq!(take(&hear, 5).unwrap(), Some(0));
    }

    #[test]
    fn few_or_many_rings_are_cleared() {
        let (hear, bell) = pair().unwrap();
        for rings in [0, 1, FEW - 1, FEW, FEW + 1, 20_000] {
            (0..rings).for_each(|_| assert!(ring(&bell).unwrap()));
            clear_few(&hear).unwrap();
            assert!(!heard(&hear), "{rings}");
        }
    }

    #[test]
    fn a_side_that_is_gone_is_noticed() {
        let (hear, bell) = pair().unwrap();
        drop(bell);
        assert!(heard(&hear));
        assert!(!clear(&hear).unwrap());
        let (hear, bell) = pair().unwrap();
        for _ in 0..10_000 {
            ring(&bell).unwrap();
        }
        drop(bell);
        assert!(look(&hear).unwrap().hung_up);
        assert!(!clear(&hear).unwrap());
        let gone = Heard {
            rings: 0,
            hung_up: true,
        };
        assert_eq!(look(&hear).unwrap(), gone);
        let (hear, bell) = pair().unwrap();
        drop(hear);
        assert!(!ring(&bell).unwrap());
    }
}
