//! Colours of the output.

use crate::util::{Completed, DEMO, World};

#[test]
fn only_terminals_get_colours_unless_they_are_forced() {
    let world = World::new();
    world.register(DEMO);
    assert!(!world.ok(["status"]).contains('\x1b'));
    let mut forced = world.command(["status"]);
    assert!(
        Completed::of(forced.env("CLICOLOR_FORCE", "1"))
            .ok()
            .contains('\x1b')
    );
    let mut never = world.command(["status"]);
    let never = Completed::of(never.env("CLICOLOR_FORCE", "1").env("NO_COLOR", "1"));
    assert!(!never.ok().contains('\x1b'));
}
