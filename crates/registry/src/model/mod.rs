//! Registrations as plain values, and the access decisions that follow from them.
//!
//! A [`Registry`] holds the [`Registration`]s of one partition, and the [`Defaults`] for what a
//! registration leaves out. A registration says whether a service is enabled, who may bind and
//! connect, whether a listener may bind the wildcard, and how the bytes of connections travel. An [`Override`] can change each of these
//! for one child partition. [`Registry::policy`] returns each [`Decision`] with the [`Rule`] that
//! made it.

mod edit;
mod effective;
mod policy;
mod registration;
mod registry;
mod requester;
mod rule;
mod transport;

pub use edit::{AccessEdit, Edit, EditError, Inherited, Subject};
pub use effective::{EffectiveAccess, EffectiveFlag, EffectiveRules, EffectiveTransport};
pub use policy::{Decision, Policy};
pub use registration::{AccessRule, Defaults, Override, Registration};
pub use registry::{Clash, Registry, UnknownService};
pub use requester::{PARENT, PartitionIdentity, Principal, Requester};
pub use rule::{Action, Rule, RuleSource};
pub use transport::TransportSetting;
