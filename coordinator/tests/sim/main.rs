//! Simulation of rounds under faults: a seed yields operations, operations move a small world, and after each
//! one the oracles look. A failure prints its seed and its shortest failing operations; one that was found
//! stays in `reproduction.rs`.

mod reproduction;
mod world;

use world::{Op, World, ops};

/// Seeds of every run, unless the environment asks for more.
const SEEDS: u64 = 200;
/// Operations per seed.
const LENGTH: usize = 120;

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
