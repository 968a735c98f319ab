//! How many calls of the core a request costs.

use std::sync::atomic::Ordering;

use hvsock_endpoint::Dirs;
use hvsock_testkit::TempFolder;

use super::Handle;
use crate::model::NewService;
use crate::{Broker, BrokerConfig};

fn new_service(name: &str) -> NewService {
    serde_json::from_str(&format!(r#"{{"name": "{name}"}}"#)).unwrap()
}

/// The number of calls that `request` makes, and its result.
fn calls<R>(handle: &Handle, request: impl FnOnce(&Handle) -> R) -> (usize, R) {
    let count = || handle.about.calls.load(Ordering::Relaxed);
    let before = count();
    let result = request(handle);
    (count() - before, result)
}

#[test]
fn registering_a_service_is_one_call() {
    let folder = TempFolder::new();
    let mut config = BrokerConfig::new(Dirs {
        run: folder.path().to_owned(),
        config: folder.path().to_owned(),
    });
    config.control = false;
    let broker = Broker::start(config).unwrap();
    // The watch of the broker has a handle of its own, and its first notification has no change.
    let handle = broker.handle();
    let register = |handle: &Handle| handle.register(new_service("One"), "tester".into());
    let (number, one) = calls(&handle, register);
    let one = one.unwrap();
    assert_eq!((number, one.owner.as_deref()), (1, Some("tester")));
    let (number, off) = calls(&handle, |handle| {
        handle.set_enabled(&one.id.into(), false, None)
    });
    assert_eq!(
        (number, off.unwrap().enabled),
        (2, false),
        "one resolves the name"
    );
    let (number, clash) = calls(&handle, register);
    assert!(clash.is_err());
    assert_eq!(number, 0, "the store refuses it");
    let (number, list) = calls(&handle, |handle| handle.services(true));
    assert_eq!((number, list.unwrap().len()), (1, 3));
    let (number, gone) = calls(&handle, |handle| handle.unregister(&one.id.into()));
    assert_eq!(
        (number, gone.unwrap().id),
        (2, one.id),
        "one resolves the name"
    );
    let (number, status) = calls(&handle, Handle::status);
    assert_eq!((number, status.unwrap().services), (1, 0));
}
