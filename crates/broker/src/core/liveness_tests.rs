use hvsock_address::{PartitionName, VmId};
use hvsock_fabric::{Fabric, Limits, PartitionKind, RootSpec};
use proptest::prelude::*;

use super::*;

const INTERVAL: Duration = Duration::from_secs(1);
const RUNNING: PartitionState = PartitionState::Running;
const PAUSED: PartitionState = PartitionState::Paused;

fn a_key() -> PartitionKey {
    let root = RootSpec {
        kind: PartitionKind::Host,
        name: PartitionName::new("web").unwrap(),
        vm_id: VmId::of_container("web"),
    };
    Fabric::new(root, Limits::default(), 0).root()
}

fn report(health: Health) -> GuestReport {
    GuestReport {
        health,
        ..Default::default()
    }
}

#[test]
fn a_guest_with_heartbeats_is_connected_and_without_them_is_lost_once() {
    let (mut liveness, web, start) = (Liveness::default(), a_key(), Instant::now());
    let beat = |liveness: &mut Liveness, at| {
        liveness.heartbeat(web, RUNNING, report(Health::Starting), at)
    };
    assert_eq!(beat(&mut liveness, start), [LivenessEvent::Connected]);
    let last = start + INTERVAL;
    assert_eq!(beat(&mut liveness, last), []);
    assert!(liveness.expire(start + HEARTBEAT_TIMEOUT).is_empty());
    assert_eq!(liveness.next_deadline(), Some(last + HEARTBEAT_TIMEOUT));
    let lost = liveness.expire(last + HEARTBEAT_TIMEOUT);
    assert_eq!(lost, [(web, LivenessEvent::Lost(HEARTBEAT_TIMEOUT))]);
    assert_eq!(liveness.next_deadline(), None);
    assert!(liveness.expire(last + HEARTBEAT_TIMEOUT * 9).is_empty());
    let known = liveness.guest(web, last + HEARTBEAT_TIMEOUT).unwrap();
    assert_eq!(
        (known.agent, known.last_seen_seconds),
        (AgentState::Lost, Some(3.5))
    );
    assert_eq!(
        beat(&mut liveness, last + HEARTBEAT_TIMEOUT * 9),
        [LivenessEvent::Connected]
    );
}

#[test]
fn a_paused_guest_is_not_lost_unless_it_stays_silent_after_the_resume() {
    let (mut liveness, web, start) = (Liveness::default(), a_key(), Instant::now());
    liveness.heartbeat(web, RUNNING, report(Health::Ok), start);
    liveness.set_state(web, PAUSED, start);
    let resumed = start + Duration::from_secs(3600);
    assert!(liveness.expire(resumed).is_empty());
    assert_eq!(
        liveness.guest(web, resumed).unwrap().agent,
        AgentState::Paused
    );
    liveness.set_state(web, RUNNING, resumed);
    assert!(liveness.expire(resumed + HEARTBEAT_TIMEOUT).is_empty());
    // A guest that returns after a pause was never lost.
    let back = resumed + INTERVAL * 4;
    assert_eq!(
        liveness.heartbeat(web, RUNNING, report(Health::Ok), back),
        []
    );
    assert_eq!(
        liveness.guest(web, back).unwrap().agent,
        AgentState::Connected
    );
    liveness.set_state(web, PAUSED, back);
    liveness.set_state(web, RUNNING, back);
    let lost = liveness.expire(back + RESUME_TIMEOUT);
    assert_eq!(lost, [(web, LivenessEvent::Lost(RESUME_TIMEOUT))]);
}

#[test]
fn ready_is_reported_once_and_reset_when_the_partition_goes_off() {
    let (mut liveness, web, start) = (Liveness::default(), a_key(), Instant::now());
    let ready = |notice: &mut GuestNotice| notice.ready = true;
    assert_eq!(liveness.notice(web, RUNNING, |_| ()), None);
    assert!(!liveness.guest(web, start).unwrap().ready);
    assert_eq!(
        liveness.notice(web, RUNNING, ready),
        Some(LivenessEvent::Ready)
    );
    assert_eq!(
        liveness.heartbeat(web, RUNNING, report(Health::Ok), start),
        [LivenessEvent::Connected]
    );
    assert!(liveness.guest(web, start).unwrap().ready);
    liveness.heartbeat(web, RUNNING, report(Health::Stopping), start);
    assert!(!liveness.guest(web, start).unwrap().ready);
    liveness.set_state(web, PartitionState::Off, start);
    assert_eq!(liveness.guest(web, start), None);
    // A late report of the previous boot does not count for the next one.
    assert_eq!(liveness.notice(web, PartitionState::Off, ready), None);
    assert_eq!(
        liveness.heartbeat(web, PartitionState::Off, report(Health::Ok), start),
        []
    );
    assert_eq!(liveness.guest(web, start), None);
    assert_eq!(
        liveness.heartbeat(web, RUNNING, report(Health::Ok), start),
        [LivenessEvent::Connected, LivenessEvent::Ready]
    );
}

#[test]
fn ready_from_the_agent_lasts_while_the_agent_is_live() {
    let (mut liveness, web, start) = (Liveness::default(), a_key(), Instant::now());
    liveness.heartbeat(web, RUNNING, report(Health::Ok), start);
    assert!(liveness.guest(web, start).unwrap().ready);
    liveness.expire(start + HEARTBEAT_TIMEOUT);
    assert!(
        !liveness
            .guest(web, start + HEARTBEAT_TIMEOUT)
            .unwrap()
            .ready
    );
}

#[test]
fn a_command_reaches_only_a_live_agent() {
    let (mut liveness, web, start) = (Liveness::default(), a_key(), Instant::now());
    let (sender, taken) = std::sync::mpsc::sync_channel(1);
    liveness.set_handler(
        web,
        Box::new(move |command| sender.try_send(command).is_ok()),
    );
    let command = GuestCommand::SyncClock;
    assert!(!liveness.send_command(web, command), "no heartbeat yet");
    liveness.heartbeat(web, RUNNING, report(Health::Ok), start);
    assert!(liveness.send_command(web, command));
    assert!(!liveness.send_command(web, command), "the queue is full");
    assert_eq!(taken.try_iter().collect::<Vec<_>>(), [command]);
    liveness.expire(start + HEARTBEAT_TIMEOUT);
    assert!(!liveness.send_command(web, command), "the agent is lost");
}

proptest! {
    /// A guest is lost exactly if it runs and its deadline has passed, in any order of events, and
    /// `next_deadline` never misses a deadline.
    #[test]
    fn a_guest_is_lost_exactly_when_its_deadline_has_passed(
        steps in proptest::collection::vec((0..4u8, 0..6000u64), 1..80)
    ) {
        let (mut liveness, web) = (Liveness::default(), a_key());
        let (mut now, mut state) = (Instant::now(), RUNNING);
        // The reference model: the last heartbeat or resume, with the timeout from then on.
        let mut since: Option<(Instant, Duration)> = None;
        let mut agent = AgentState::None;
        for (what, wait) in steps {
            let next = now + Duration::from_millis(wait);
            // As the core does: expire at each deadline, then handle the next event.
            while let Some(check) = liveness.next_deadline().filter(|check| *check <= next) {
                liveness.expire(check);
                prop_assert!(liveness.next_deadline() != Some(check), "the deadline does not advance");
            }
            now = next;
            if let Some((from, limit)) = since
                && state == RUNNING && matches!(agent, AgentState::Connected | AgentState::Paused)
                && from + limit <= now
            {
                agent = AgentState::Lost;
            }
            match what {
                0 | 1 => {
                    liveness.heartbeat(web, state, report(Health::Ok), now);
                    agent = if state == PAUSED { AgentState::Paused } else { AgentState::Connected };
                    since = Some((now, HEARTBEAT_TIMEOUT));
                }
                2 => {
                    state = PAUSED;
                    liveness.set_state(web, state, now);
                    if agent == AgentState::Connected { agent = AgentState::Paused; }
                }
                _ => {
                    let paused = state == PAUSED;
                    state = RUNNING;
                    if paused || agent == AgentState::Paused {
                        liveness.set_state(web, state, now);
                        if agent == AgentState::Paused { since = Some((now, RESUME_TIMEOUT)); }
                    }
                }
            }
            let known = liveness.guest(web, now).map_or(AgentState::None, |guest| guest.agent);
            prop_assert_eq!(known, agent);
        }
    }
}
