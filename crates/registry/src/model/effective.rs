//! The rules in force for a service, each with the level that defines it, for display.

use super::TransportSetting;
use super::rule::RuleSource;

/// All rules of a service, for all children or for one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EffectiveRules<'a> {
    /// Whether it is enabled.
    pub enabled: EffectiveFlag<'a>,
    /// Who may connect.
    pub connect: EffectiveAccess<'a>,
    /// Who may listen.
    pub bind: EffectiveAccess<'a>,
    /// Whether a listener may bind the wildcard.
    pub allow_wildcard_binds: EffectiveFlag<'a>,
    /// Whether in a child only root may listen.
    pub only_root_binds: EffectiveFlag<'a>,
    /// How the bytes of connections travel.
    pub transport: EffectiveTransport<'a>,
}

/// One setting, and the level that defines it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EffectiveFlag<'a> {
    /// The value.
    pub value: bool,
    /// The level that defines it.
    pub from: RuleSource<'a>,
}

/// How bytes travel, and the level that says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EffectiveTransport<'a> {
    /// The value.
    pub value: TransportSetting,
    /// The level that defines it.
    pub from: RuleSource<'a>,
}

/// Who may perform one action. An empty list is no one, `*` is everyone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EffectiveAccess<'a> {
    /// Users of the partition that owns the registry.
    pub users: Vec<String>,
    /// Groups of that partition. A match in either list is enough.
    pub groups: Vec<String>,
    /// The level that defines users and groups.
    pub processes_from: RuleSource<'a>,
    /// Its children.
    pub partitions: Vec<String>,
    /// The level that defines the children.
    pub partitions_from: RuleSource<'a>,
}
