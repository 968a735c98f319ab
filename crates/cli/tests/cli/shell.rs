//! Colours of the output.

use crate::util::{DEMO, Done, World};

#[test]
fn colours_are_for_terminals_and_for_those_who_want_them() {
    let world = World::new();
    world.register(DEMO);
    assert!(!world.ok(["status"]).contains('\x1b'));
    let mut forced = world.command(["status"]);
    assert!(
        Done::of(forced.env("CLICOLOR_FORCE", "1"))
            .ok()
            .contains('\x1b')
    );
    let mut never = world.command(["status"]);
    let never = Done::of(never.env("CLICOLOR_FORCE", "1").env("NO_COLOR", "1"));
    assert!(!never.ok().contains('\x1b'));
}
