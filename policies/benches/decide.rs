//! What a decision costs: by the shipped policies, and by a set of a thousand rules.

use falaj_core::id::{Place, SpiffeId, StudyId};
use falaj_policies::{Action, POLICIES, Policies, Resource, SCHEMA};
use std::{
    error::Error,
    fmt::Write as _,
    hint::black_box,
    time::{Duration, Instant},
};

/// Decisions that are timed.
const DECISIONS: usize = 20_000;
/// Rules of the long set.
const RULES: usize = 1_000;

fn main() -> Result<(), Box<dyn Error>> {
    let shipped = include_str!("../coordinator.cedar");
    let mut long = shipped.to_owned();
    for n in 0..RULES - shipped.matches("@id").count() {
        // Most name a party or a study, as rules do where there are so many; one in ten speaks of all.
        let who = format!("principal == Falaj::Site::\"spiffe://t/ae-on/ae-az/site/h-{n}\"");
        let what = "action == Falaj::Action::\"task.get\"";
        let rule = match n % 10 {
            0 => format!(
                "forbid (principal is Falaj::Site, {what}, resource) when {{ resource.mechanism == \"m-{n}\" }};"
            ),
            1..5 => format!("forbid (principal, {what}, resource == Falaj::Study::\"s-{n}\");"),
            _ => format!("forbid ({who}, {what}, resource);"),
        };
        writeln!(long, "@id(\"LONG-{n}\")\n{rule}")?;
    }
    for (name, text, aim_us) in [("shipped", shipped, 25.0), ("long", &long, 100.0)] {
        let file = |name: &str, text: &str| (name.to_owned(), text.as_bytes().to_vec());
        let schema = file(SCHEMA, include_str!("../coordinator.cedarschema"));
        let policies = Policies::parse(&[file(POLICIES, text), schema])?;
        let here: Place = "ae-on/ae-az".parse()?;
        let who: SpiffeId = "spiffe://t/ae-on/ae-az/site/hospital-1".parse()?;
        let study: StudyId = "s".parse()?;
        let resource = Resource::Study(&study, "dp_sgd");
        let mut times: Vec<Duration> = (0..DECISIONS)
            .map(|_| {
                let started = Instant::now();
                let said = policies.decide(&here, black_box(&who), Action::TaskGet, &resource);
                assert!(black_box(said).allow);
                started.elapsed()
            })
            .collect();
        times.sort_unstable();
        let us = |share: usize| times[DECISIONS * share / 100].as_secs_f64() * 1e6;
        let rules = text.matches("@id(").count();
        println!(
            "a decision by {rules} rules ({name}): p50 {:.1} us, p99 {:.1} us (aim {aim_us} us)",
            us(50),
            us(99)
        );
    }
    Ok(())
}
