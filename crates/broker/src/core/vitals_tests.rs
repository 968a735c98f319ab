use hvsock_address::{PartitionName, VmId};
use hvsock_fabric::{Fabric, Limits, PartitionKind, RootSpec};
use proptest::prelude::*;

use super::*;

const BEAT: Duration = Duration::from_secs(1);
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
fn a_guest_that_beats_is_heard_and_one_that_stops_is_lost_once() {
    let (mut vitals, web, start) = (Vitals::default(), a_key(), Instant::now());
    let beat = |vitals: &mut Vitals, at| vitals.beat(web, RUNNING, report(Health::Starting), at);
    assert_eq!(beat(&mut vitals, start), [Sign::Contact]);
    let last = start + BEAT;
    assert_eq!(beat(&mut vitals, last), []);
    assert!(vitals.expire(start + SILENCE).is_empty());
    assert_eq!(vitals.next_deadline(), Some(last + SILENCE));
    let lost = vitals.expire(last + SILENCE);
    assert_eq!(lost, [(web, Sign::Lost(SILENCE))]);
    assert_eq!(vitals.next_deadline(), None);
    assert!(vitals.expire(last + SILENCE * 9).is_empty());
    let known = vitals.guest(web, last + SILENCE).unwrap();
    assert_eq!(
        (known.contact, known.heard_seconds),
        (Contact::Lost, Some(3.5))
    );
    assert_eq!(beat(&mut vitals, last + SILENCE * 9), [Sign::Contact]);
}

#[test]
fn a_pause_is_no_loss_and_what_does_not_come_back_after_it_is() {
    let (mut vitals, web, start) = (Vitals::default(), a_key(), Instant::now());
    vitals.beat(web, RUNNING, report(Health::Ok), start);
    vitals.state(web, PAUSED, start);
    let resumed = start + Duration::from_secs(3600);
    assert!(vitals.expire(resumed).is_empty());
    assert_eq!(vitals.guest(web, resumed).unwrap().contact, Contact::Paused);
    vitals.state(web, RUNNING, resumed);
    assert!(vitals.expire(resumed + SILENCE).is_empty());
    // One that comes back was never away.
    let back = resumed + BEAT * 4;
    assert_eq!(vitals.beat(web, RUNNING, report(Health::Ok), back), []);
    assert_eq!(vitals.guest(web, back).unwrap().contact, Contact::Ok);
    vitals.state(web, PAUSED, back);
    vitals.state(web, RUNNING, back);
    let lost = vitals.expire(back + AFTER_PAUSE);
    assert_eq!(lost, [(web, Sign::Lost(AFTER_PAUSE))]);
}

#[test]
fn ready_is_said_once_by_whoever_says_it_first_and_ends_with_the_machine() {
    let (mut vitals, web, start) = (Vitals::default(), a_key(), Instant::now());
    let ready = |notice: &mut GuestNotice| notice.ready = true;
    assert_eq!(vitals.notice(web, RUNNING, |_| ()), None);
    assert!(!vitals.guest(web, start).unwrap().ready);
    assert_eq!(vitals.notice(web, RUNNING, ready), Some(Sign::Ready));
    assert_eq!(
        vitals.beat(web, RUNNING, report(Health::Ok), start),
        [Sign::Contact]
    );
    assert!(vitals.guest(web, start).unwrap().ready);
    vitals.beat(web, RUNNING, report(Health::Stopping), start);
    assert!(!vitals.guest(web, start).unwrap().ready);
    vitals.state(web, PartitionState::Off, start);
    assert_eq!(vitals.guest(web, start), None);
    // What comes late from the boot before says nothing of the next one.
    assert_eq!(vitals.notice(web, PartitionState::Off, ready), None);
    assert_eq!(
        vitals.beat(web, PartitionState::Off, report(Health::Ok), start),
        []
    );
    assert_eq!(vitals.guest(web, start), None);
    assert_eq!(
        vitals.beat(web, RUNNING, report(Health::Ok), start),
        [Sign::Contact, Sign::Ready]
    );
}

#[test]
fn an_agents_word_that_it_has_started_holds_while_it_is_heard() {
    let (mut vitals, web, start) = (Vitals::default(), a_key(), Instant::now());
    vitals.beat(web, RUNNING, report(Health::Ok), start);
    assert!(vitals.guest(web, start).unwrap().ready);
    vitals.expire(start + SILENCE);
    assert!(!vitals.guest(web, start + SILENCE).unwrap().ready);
}

#[test]
fn an_order_reaches_an_agent_that_is_heard_and_no_other() {
    let (mut vitals, web, start) = (Vitals::default(), a_key(), Instant::now());
    let (sender, taken) = std::sync::mpsc::sync_channel(1);
    vitals.attend(web, Box::new(move |order| sender.try_send(order).is_ok()));
    let order = GuestOrder::SyncClock;
    assert!(!vitals.order(web, order), "nobody was heard yet");
    vitals.beat(web, RUNNING, report(Health::Ok), start);
    assert!(vitals.order(web, order));
    assert!(!vitals.order(web, order), "there is no room");
    assert_eq!(taken.try_iter().collect::<Vec<_>>(), [order]);
    vitals.expire(start + SILENCE);
    assert!(!vitals.order(web, order), "it is lost");
}

proptest! {
    /// Whatever happens, a guest is lost exactly if it runs and its time is up, and the moment to
    /// look is never missed.
    #[test]
    fn no_silence_is_missed_and_none_is_made_up(
        steps in proptest::collection::vec((0..4u8, 0..6000u64), 1..80)
    ) {
        let (mut vitals, web) = (Vitals::default(), a_key());
        let (mut now, mut state) = (Instant::now(), RUNNING);
        // The plain reference: when it was last heard or began to run again, with what it may take.
        let mut since: Option<(Instant, Duration)> = None;
        let mut contact = Contact::None;
        for (what, wait) in steps {
            let next = now + Duration::from_millis(wait);
            // As the core does: look when told to, then at the next thing that happens.
            while let Some(look) = vitals.next_deadline().filter(|look| *look <= next) {
                vitals.expire(look);
                prop_assert!(vitals.next_deadline() != Some(look), "it goes round in circles");
            }
            now = next;
            if let Some((from, limit)) = since
                && state == RUNNING && matches!(contact, Contact::Ok | Contact::Paused)
                && from + limit <= now
            {
                contact = Contact::Lost;
            }
            match what {
                0 | 1 => {
                    vitals.beat(web, state, report(Health::Ok), now);
                    contact = if state == PAUSED { Contact::Paused } else { Contact::Ok };
                    since = Some((now, SILENCE));
                }
                2 => {
                    state = PAUSED;
                    vitals.state(web, state, now);
                    if contact == Contact::Ok { contact = Contact::Paused; }
                }
                _ => {
                    let paused = state == PAUSED;
                    state = RUNNING;
                    if paused || contact == Contact::Paused {
                        vitals.state(web, state, now);
                        if contact == Contact::Paused { since = Some((now, AFTER_PAUSE)); }
                    }
                }
            }
            let known = vitals.guest(web, now).map_or(Contact::None, |guest| guest.contact);
            prop_assert_eq!(known, contact);
        }
    }
}
