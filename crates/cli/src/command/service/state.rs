//! The state of a service as one word.

use hvsock_control::Service;

/// The state of a service, as tables and `service show` print it.
pub fn word(service: &Service) -> &'static str {
    match service {
        _ if service.in_box => "in-box",
        _ if !service.enabled => "disabled",
        _ if service.built_in => "built in",
        _ if service.lease => "lease",
        _ => "enabled",
    }
}
