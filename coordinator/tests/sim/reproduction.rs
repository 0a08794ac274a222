//! Operations that once broke a promise, kept so that they never do again.

use crate::{
    run,
    world::{Disk, Op},
};

#[test]
fn a_write_that_failed_and_persisted_is_read_again_before_going_on() {
    let ops = [
        Op::Connect(0),
        Op::Connect(1),
        Op::Disk(Disk::FailsYetPersists),
        Op::Connect(2),
        Op::Disk(Disk::Good),
        Op::Connect(3),
        Op::Kill,
    ];
    assert_eq!(run(&ops), Ok(()));
}
