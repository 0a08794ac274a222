//! Simulation of rounds under faults: a seed yields operations, operations move a small world, and after each
//! one the oracles look. A failure prints its seed and its shortest failing operations; one that was found
//! stays in `reproduction.rs`.

mod reproduction;
mod world;

use world::{Disk, Op, World, ops};

/// Seeds of every run, unless the environment asks for more.
const SEEDS: u64 = 200;
/// Operations per seed.
const LENGTH: usize = 160;

/// Runs operations in a fresh world; gives what an oracle found.
fn run(ops: &[Op]) -> Result<(), String> {
    let mut world = World::new();
    for (i, op) in ops.iter().enumerate() {
        world.apply(op);
        world.check().map_err(|e| format!("after operation {i} ({op:?}): {e}"))?;
    }
    world.settle();
    world.check()?;
    world.check_end()
}

/// Leaves out whatever can be left out while it still fails.
fn shrink(mut ops: Vec<Op>) -> Vec<Op> {
    let mut at = 0;
    while at < ops.len() {
        let mut fewer = ops.clone();
        fewer.remove(at);
        if run(&fewer).is_err() {
            ops = fewer;
        } else {
            at += 1;
        }
    }
    ops
}

#[test]
fn no_fault_breaks_a_promise() {
    let seeds = std::env::var("FALAJ_SIM_SEEDS").ok().and_then(|s| s.parse().ok()).unwrap_or(SEEDS);
    for seed in 0..seeds {
        let ops = ops(seed, LENGTH);
        if let Err(found) = run(&ops) {
            let short = shrink(ops);
            panic!("seed {seed}: {found}\nshortest: {short:#?}\nwhich gives: {:?}", run(&short));
        }
    }
    println!("{seeds} seeds of {LENGTH} operations");
}

/// Whatever all four sites do in a round: they train, and send that.
fn trained() -> impl Iterator<Item = Op> {
    let send = |site| Op::Send { site, lose_request: false, lose_answer: false };
    (0..4).flat_map(move |site| [Op::Connect(site), Op::Train(site), send(site)])
}

/// They count about a round's candidate, and the answers are lost or not.
fn counted(lose_answer: bool) -> impl Iterator<Item = Op> {
    let answer = move |site| Op::Answer { site, lose_request: false, lose_answer };
    (0..4).flat_map(move |site| [Op::Connect(site), Op::Count(site), answer(site)])
}

/// What comes of operations: how often sites' counts were taken, and how many candidates were kept out.
fn evaluated(ops: &[Op]) -> Result<(usize, usize), String> {
    run(ops)?;
    let mut world = World::new();
    ops.iter().for_each(|op| world.apply(op));
    Ok(world.evaluated())
}

#[test]
fn a_candidate_that_nobody_counts_about_is_kept_out_and_its_round_is_tried_again() {
    // The second round is the first whose candidate is evaluated. A task comes when all four are there.
    let connected = || (0..4).map(Op::Connect);
    let mut ops: Vec<Op> = connected().chain(trained()).chain(trained()).collect();
    ops.push(Op::Pass(1_100));
    assert_eq!(evaluated(&ops), Ok((0, 1)));
    ops.extend(trained().chain(counted(false)));
    assert_eq!(evaluated(&ops), Ok((4, 1)));
}

#[test]
fn kills_and_lost_answers_while_a_candidate_is_evaluated_count_nobody_twice() {
    let mut ops: Vec<Op> = (0..4).map(Op::Connect).chain(trained()).chain(trained()).collect();
    let first = Op::Answer { site: 0, lose_request: false, lose_answer: true };
    ops.extend([Op::Count(0), first.clone(), Op::Kill, Op::Connect(0), first]);
    ops.extend([Op::AnswerDifferent(0), Op::KillSite(1), Op::Disk(Disk::FailsYetPersists)]);
    ops.extend([Op::Connect(2), Op::Disk(Disk::Good), Op::Kill]);
    ops.extend(counted(true).chain(counted(false)));
    assert_eq!(evaluated(&ops), Ok((4, 0)));
}

#[test]
fn seeds_come_as_far_as_an_evaluation() {
    let taken = |seed| evaluated(&ops(seed, LENGTH)).expect("every promise kept").0;
    let taken: usize = (0..SEEDS).map(taken).sum();
    assert!(taken > 0, "no seed came as far");
}
