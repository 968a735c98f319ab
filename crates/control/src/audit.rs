//! The records of the audit: who did what, when, and with which outcome.
//!
//! Every field says where it comes from. What the broker saw for itself (the kernel's credentials,
//! the partition, the request, bytes and times) cannot be changed by the process that it is about. What
//! that process says about itself is in [`Claim`] and nowhere else.

use std::fmt::{self, Write as _};

use serde::{Deserialize, Serialize};

/// One record of the audit.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AuditRecord {
    /// Its number since the broker started. Records are numbered from 1 without gaps.
    pub number: u64,
    /// The time in milliseconds since 1970-01-01 UTC.
    pub time_ms: u64,
    /// What kind of action it is about.
    pub category: AuditCategory,
    /// What was done: `connect`, `disconnect`, `grant`, `grant_ended`, `listen`, `lease`, `look_up`,
    /// `edit_file`, or the operation of the control API, such as `change_service`.
    pub action: String,
    /// What became of it.
    pub outcome: AuditOutcome,
    /// Why it was refused, failed or reset.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Who did it, as the kernel reports it. Absent if that is unknown, as for an edited file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub actor: Option<AuditActor>,
    /// The service that it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// The partition that it acts on, or the address of a request that led to none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// The number of the connection or listener.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connection: Option<u64>,
    /// What was asked for, as the broker received it: the body of a change, or the path of a file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// What the process says that it does. The broker cannot verify it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claim: Option<Claim>,
    /// Of a connection that has ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<AuditEnd>,
    /// How many records of this kind, from the same source, were left out before this one: by the rate
    /// limit, and for connections of an arena that the broker did not see.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub left_out: u64,
}

/// Who did something. The numbers are those of the host, also for a process in a container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AuditActor {
    /// The partition of the process.
    pub partition: String,
    /// The user's name. Absent for a process in another partition, whose users are not the host's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// The user id. Absent for a process in a guest, which the host cannot identify.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// The group id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gid: Option<u32>,
    /// The process id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// The path of the program that the process ran at that time, or else the name that it has given
    /// itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub program: Option<String>,
}

/// What a process says about its own request. Nothing but the process vouches for it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Claim {
    /// What it does: `exec`, `shell`, `cp`, `forward`, ...
    pub action: String,
    /// The command line, paths or addresses, with control characters and the like escaped, and
    /// truncated.
    pub detail: String,
    /// How it ended, such as `exit status 1`; once that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<String>,
}

/// The end of a connection.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AuditEnd {
    /// How long it was open, in milliseconds.
    pub duration_ms: u64,
    /// Bytes from the connecting end. With shared memory the ends count themselves. Absent for a direct
    /// connection, whose bytes are not counted.
    #[serde(default)]
    pub bytes_sent: Option<u64>,
    /// Bytes from the accepting end, likewise.
    #[serde(default)]
    pub bytes_received: Option<u64>,
}

/// The kinds of actions. Each has its own limits, so a flood of one kind displaces no record of another.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize,
)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum AuditCategory {
    /// A change of services, partitions or connections, or an attempt at one.
    Change,
    /// Use of a guest's integration services: commands, copies, forwards, shutdowns.
    Guest,
    /// Any other connection or listener between partitions.
    #[default]
    Connection,
}

/// What became of an action.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize,
)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum AuditOutcome {
    /// It was allowed and done.
    #[default]
    Allowed,
    /// It was refused by a rule, a state or a limit.
    Refused,
    /// It was allowed and failed, or its outcome is unknown.
    Failed,
    /// The connection ended.
    Ended,
}

/// Which records to return. Records must meet every condition that is set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::IntoParams))]
#[cfg_attr(feature = "openapi", into_params(parameter_in = Query))]
#[serde(deny_unknown_fields)]
pub struct AuditFilter {
    /// Only records from this time on, in milliseconds since 1970-01-01 UTC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since_ms: Option<u64>,
    /// Only records whose number is higher.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<u64>,
    /// Only what this user did: a name of the host, or a number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Only what was done from or to this partition.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partition: Option<String>,
    /// Only this category.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub category: Option<AuditCategory>,
    /// Only what concerns this service, by friendly name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// Only this action, as the broker saw it or as it was claimed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub action: Option<String>,
    /// Only what was refused, failed, or ended with a reset.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub failed: bool,
    /// Only the newest ones, at most this many.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
}

/// How a process says that its own connection ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct ConnectionResult {
    /// Such as `exit status 1`. At most 128 bytes are kept.
    pub result: String,
}

/// How many records the audit has written and lost since the broker started.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditMetrics {
    /// Records by category and outcome.
    pub records: Vec<(AuditCategory, AuditOutcome, u64)>,
    /// Records that the rate limit left out.
    pub left_out: u64,
    /// Records that could not be written to the journal or the log in time. They were in memory.
    pub not_written: u64,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl AuditCategory {
    /// All categories.
    pub const ALL: [Self; 3] = [Self::Change, Self::Guest, Self::Connection];

    /// Its name, as in JSON.
    pub fn label(self) -> &'static str {
        match self {
            Self::Change => "change",
            Self::Guest => "guest",
            Self::Connection => "connection",
        }
    }
}

impl AuditOutcome {
    /// Its name, as in JSON.
    pub fn label(self) -> &'static str {
        match self {
            Self::Allowed => "allowed",
            Self::Refused => "refused",
            Self::Failed => "failed",
            Self::Ended => "ended",
        }
    }
}

impl AuditFilter {
    /// Whether a record meets every condition but the limit.
    pub fn matches(&self, record: &AuditRecord) -> bool {
        let actor = record.actor.as_ref();
        let is = |wanted: &Option<String>, found: [Option<&str>; 2]| match wanted {
            Some(wanted) => found.into_iter().flatten().any(|one| one == wanted),
            None => true,
        };
        let failed = match record.outcome {
            AuditOutcome::Allowed => false,
            AuditOutcome::Refused | AuditOutcome::Failed => true,
            AuditOutcome::Ended => record.reason.is_some(),
        };
        let uid = actor.and_then(|actor| actor.uid).map(|uid| uid.to_string());
        self.since_ms.is_none_or(|since| record.time_ms >= since)
            && self.after.is_none_or(|after| record.number > after)
            && is(
                &self.user,
                [
                    actor.and_then(|actor| actor.user.as_deref()),
                    uid.as_deref(),
                ],
            )
            && is(
                &self.partition,
                [
                    actor.map(|actor| actor.partition.as_str()),
                    record.target.as_deref(),
                ],
            )
            && self
                .category
                .is_none_or(|category| category == record.category)
            && is(&self.service, [record.service.as_deref(), None])
            && is(
                &self.action,
                [
                    Some(record.action.as_str()),
                    record.claim.as_ref().map(|claim| claim.action.as_str()),
                ],
            )
            && (!self.failed || failed)
    }
}

impl AuditActor {
    /// The user, by name if it has one, and the process: `alice (uid 1000, pid 4711)`.
    pub fn label(&self) -> String {
        let mut ids = Vec::new();
        if let (Some(uid), Some(_)) = (self.uid, &self.user) {
            ids.push(format!("uid {uid}"));
        }
        if let Some(pid) = self.pid {
            ids.push(format!("pid {pid}"));
        }
        let who = match (&self.user, self.uid) {
            (Some(user), _) => user.clone(),
            (None, Some(uid)) => format!("uid {uid} in {}", self.partition),
            (None, None) => format!("a process in {}", self.partition),
        };
        match ids.is_empty() {
            true => who,
            false => format!("{who} ({})", ids.join(", ")),
        }
    }
}

impl AuditRecord {
    /// What was done, to what, in a few words. What a process claims about itself follows `says`.
    pub fn what(&self) -> String {
        let mut text = self.action.clone();
        if let Some(service) = &self.service {
            let _ = write!(text, " `{service}`");
        }
        if let Some(detail) = &self.detail {
            let _ = write!(text, " {detail}");
        }
        if let Some(claim) = &self.claim {
            let _ = match claim.detail.is_empty() {
                true => write!(text, ", says: {}", claim.action),
                false => write!(text, ", says: {} {}", claim.action, claim.detail),
            };
        }
        text
    }

    /// What became of it.
    pub fn result(&self) -> String {
        let mut text = self.outcome.label().to_owned();
        if let Some(reason) = &self.reason {
            let _ = write!(text, ": {reason}");
        }
        if let Some(end) = &self.ended {
            let AuditEnd {
                duration_ms,
                bytes_sent,
                bytes_received,
            } = end;
            let seconds = *duration_ms as f64 / 1e3;
            let _ = write!(text, " after {seconds:.3} s, ");
            let _ = match (bytes_sent, bytes_received) {
                (Some(sent), Some(received)) => {
                    write!(text, "{sent} bytes sent, {received} received")
                }
                _ => write!(text, "bytes not counted"),
            };
        }
        if let Some(result) = self.claim.as_ref().and_then(|claim| claim.result.as_ref()) {
            let _ = write!(text, ", says: {result}");
        }
        text
    }
}

impl fmt::Display for AuditRecord {
    /// One sentence, for a log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.actor {
            Some(actor) => write!(f, "{}", actor.label())?,
            None => f.write_str("someone")?,
        }
        write!(f, ": {}", self.what())?;
        if let Some(target) = &self.target {
            write!(f, ", on {target}")?;
        }
        if let Some(connection) = self.connection {
            write!(f, " (connection {connection})")?;
        }
        write!(f, ": {}", self.result())?;
        if self.left_out > 0 {
            write!(f, "; {} records before it were left out", self.left_out)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> AuditRecord {
        AuditRecord {
            number: 7,
            time_ms: 1000,
            category: AuditCategory::Guest,
            action: "connect".into(),
            actor: Some(AuditActor {
                partition: "host".into(),
                user: Some("alice".into()),
                uid: Some(1000),
                gid: Some(1000),
                pid: Some(4711),
                program: Some("/usr/bin/hvsock".into()),
            }),
            service: Some("hvsock session".into()),
            target: Some("web".into()),
            connection: Some(3),
            claim: Some(Claim {
                action: "exec".into(),
                detail: "cat /etc/shadow".into(),
                result: None,
            }),
            ..AuditRecord::default()
        }
    }

    #[test]
    fn a_record_is_one_sentence_of_who_what_where_and_outcome() {
        assert_eq!(
            record().to_string(),
            "alice (uid 1000, pid 4711): connect `hvsock session`, says: exec cat /etc/shadow, on \
             web (connection 3): allowed"
        );
        let refused = AuditRecord {
            outcome: AuditOutcome::Refused,
            reason: Some("denied".into()),
            left_out: 9,
            connection: None,
            claim: None,
            ..record()
        };
        assert_eq!(
            refused.to_string(),
            "alice (uid 1000, pid 4711): connect `hvsock session`, on web: refused: denied; 9 \
             records before it were left out"
        );
    }

    #[test]
    fn a_filter_selects_by_every_condition_that_is_set() {
        let yes = |filter: AuditFilter| assert!(filter.matches(&record()), "{filter:?}");
        let no = |filter: AuditFilter| assert!(!filter.matches(&record()), "{filter:?}");
        let text = |text: &str| Some(text.to_owned());
        let none = AuditFilter::default;
        yes(none());
        yes(AuditFilter {
            user: text("alice"),
            ..none()
        });
        yes(AuditFilter {
            user: text("1000"),
            ..none()
        });
        no(AuditFilter {
            user: text("bob"),
            ..none()
        });
        no(AuditFilter {
            user: text("100"),
            ..none()
        });
        yes(AuditFilter {
            partition: text("web"),
            ..none()
        });
        yes(AuditFilter {
            partition: text("host"),
            ..none()
        });
        no(AuditFilter {
            partition: text("we"),
            ..none()
        });
        yes(AuditFilter {
            service: text("hvsock session"),
            ..none()
        });
        no(AuditFilter {
            service: text("hvsock copy"),
            ..none()
        });
        yes(AuditFilter {
            action: text("exec"),
            ..none()
        });
        yes(AuditFilter {
            action: text("connect"),
            ..none()
        });
        no(AuditFilter {
            action: text("cp"),
            ..none()
        });
        yes(AuditFilter {
            category: Some(AuditCategory::Guest),
            ..none()
        });
        no(AuditFilter {
            category: Some(AuditCategory::Change),
            ..none()
        });
        yes(AuditFilter {
            since_ms: Some(1000),
            ..none()
        });
        no(AuditFilter {
            since_ms: Some(1001),
            ..none()
        });
        yes(AuditFilter {
            after: Some(6),
            ..none()
        });
        no(AuditFilter {
            after: Some(7),
            ..none()
        });
        no(AuditFilter {
            failed: true,
            ..none()
        });
        no(AuditFilter {
            user: text("alice"),
            partition: text("db"),
            ..none()
        });
    }

    #[test]
    fn only_an_end_with_a_reason_counts_as_failed() {
        let filter = AuditFilter {
            failed: true,
            ..AuditFilter::default()
        };
        let of = |outcome, reason: Option<&str>| {
            filter.matches(&AuditRecord {
                outcome,
                reason: reason.map(Into::into),
                ..record()
            })
        };
        assert!(of(AuditOutcome::Refused, Some("denied")));
        assert!(of(AuditOutcome::Failed, None));
        assert!(of(AuditOutcome::Ended, Some("reset")));
        assert!(!of(AuditOutcome::Ended, None));
    }
}
