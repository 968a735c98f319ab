//! The state of the guest in a partition, as text.

use hvsock_control::{AgentState, ClockKeeper, Guest, GuestClock, GuestReport, Health, Partition};
use hvsock_services::catalog::ALL;

use crate::os::linux::format;

/// The state of a guest in a few words. `None` if the guest has reported nothing since it started.
pub fn word(partition: &Partition) -> Option<&'static str> {
    let guest = partition.guest.as_ref()?;
    let health = guest.report.as_ref().map(|report| report.health);
    Some(match (guest.agent, health) {
        (AgentState::Lost, _) => "agent lost",
        (AgentState::Connected, Some(Health::Critical)) => "critical",
        (AgentState::Connected, Some(Health::Stopping)) => "stopping",
        (AgentState::Connected | AgentState::Paused, _) if guest.ready => "ready",
        (AgentState::None, _) if guest.ready => "ready, no agent",
        (AgentState::Connected, _) => "starting",
        (AgentState::Paused, _) => "no heartbeat since it was paused",
        (AgentState::None, _) => "no agent",
    })
}

/// The state of a guest as labelled lines.
pub fn facts(partition: &Partition) -> Vec<(&'static str, String)> {
    let Some(guest) = &partition.guest else {
        return Vec::new();
    };
    let mut facts = vec![("guest", agent_state(partition, guest))];
    if let Some(status) = guest.notice.as_ref().and_then(|n| n.status.clone()) {
        facts.push(("status", status));
    }
    if let Some(report) = &guest.report {
        of_report(report, &mut facts);
    }
    facts
}

fn agent_state(partition: &Partition, guest: &Guest) -> String {
    let word = word(partition).unwrap_or_default();
    let manager = guest.report.as_ref().map(|report| report.manager.as_str());
    let manager = match manager {
        Some(manager) if !manager.is_empty() => format!(" ({manager})"),
        _ => String::new(),
    };
    match guest.last_seen_seconds {
        Some(seconds) if guest.agent == AgentState::Connected => {
            format!("{word}{manager}, heartbeat {seconds:.1} s ago")
        }
        Some(seconds) => format!("{word}, last heartbeat {} ago", format::age(seconds)),
        None => word.to_owned(),
    }
}

fn of_report(report: &GuestReport, lines: &mut Vec<(&'static str, String)>) {
    let facts = &report.facts;
    lines.push(("system", format!("{}, Linux {}", facts.os, facts.kernel)));
    let addresses = facts.addresses.join(", ");
    lines.push(("host name", facts.hostname.clone()));
    if !addresses.is_empty() {
        lines.push(("addresses", addresses));
    }
    let [one, five, fifteen] = report.load;
    lines.push((
        "load",
        format!(
            "{one:.2} {five:.2} {fifteen:.2}, up {}",
            format::age(report.uptime_seconds)
        ),
    ));
    let available = format::bytes(report.memory_available_bytes);
    let total = format::bytes(report.memory_total_bytes);
    lines.push(("memory", format!("{available} of {total} available")));
    if let Some(known) = &report.clock {
        lines.push(("clock", clock(known)));
    }
    let offered = ALL.iter().filter(|service| {
        let mut services = facts.services.iter();
        services.any(|reported| reported.port == service.port && reported.offered)
    });
    let offered: Vec<&str> = offered.map(|service| service.key).collect();
    lines.push((
        "agent",
        format!("{}, offers {}", facts.agent, offered.join(", ")),
    ));
}

/// The offset of a guest's clock, such as `0.12 ms ahead ± 0.30 ms, 3 s ago`.
pub fn clock(clock: &GuestClock) -> String {
    let direction = match clock.offset_seconds {
        offset if offset < 0.0 => "behind",
        _ => "ahead",
    };
    let keeper = match clock.keeper {
        ClockKeeper::Unknown | ClockKeeper::Agent => "",
        ClockKeeper::Other => ", kept by another program in the guest",
        ClockKeeper::Host => ", the host's own",
    };
    format!(
        "{} {direction} ± {}, {} ago{keeper}",
        milliseconds(clock.offset_seconds.abs()),
        milliseconds(clock.error_seconds),
        format::age(clock.age_seconds),
    )
}

/// Seconds in milliseconds or seconds: `0.012 ms`, `12 ms`, `12.0 s`.
fn milliseconds(seconds: f64) -> String {
    match seconds * 1e3 {
        small if small < 9.995 => format!("{small:.3} ms"),
        middle if middle < 9_999.5 => format!("{middle:.0} ms"),
        _ => format!("{seconds:.1} s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clocks_offset_has_a_unit_that_fits() {
        let clock_of = |offset_seconds, keeper| GuestClock {
            offset_seconds,
            error_seconds: 0.0005,
            age_seconds: 3.2,
            keeper,
        };
        for (offset, keeper, want) in [
            (
                0.00012,
                ClockKeeper::Agent,
                "0.120 ms ahead ± 0.500 ms, 3 s ago",
            ),
            (
                -0.25,
                ClockKeeper::Agent,
                "250 ms behind ± 0.500 ms, 3 s ago",
            ),
            (
                3600.0,
                ClockKeeper::Unknown,
                "3600.0 s ahead ± 0.500 ms, 3 s ago",
            ),
            (
                0.0,
                ClockKeeper::Host,
                "0.000 ms ahead ± 0.500 ms, 3 s ago, the host's own",
            ),
        ] {
            assert_eq!(clock(&clock_of(offset, keeper)), want);
        }
    }
}
