//! Robust rules: time beside a copy of the same bytes, and what a coordinator's memory grows to.

use super::{PARAMS, best_of, gb_per_s, peak_at, report};
use anyhow::{Result, ensure};
use falaj_core::{
    aggregate::{Accumulator, AggregateError},
    robust::{BlockRule, Rule, Shape, outliers},
    update::Encoding,
};
use std::{
    hint::black_box,
    time::{Duration, Instant},
};

/// How often each is timed; the best one counts.
const TIMES: usize = 3;
/// Parameters of the base that are moved at once, as the coordinator does.
const BLOCK: usize = 3 << 16;

/// Rules, each as a study would say it of so many sites of which every fifth may be bad.
pub(super) fn rules(sites: u32) -> [Rule; 7] {
    let byzantine = sites / 5;
    [
        Rule::Median,
        Rule::TrimmedMean { byzantine },
        Rule::Krum { byzantine },
        Rule::MultiKrum { byzantine, keep: None },
        Rule::GeometricMedian,
        Rule::NormBounded { clip_norm: None },
        Rule::Mean,
    ]
}

/// Every part.
pub(super) fn run() -> Result<()> {
    for (sites, bits) in [(10, 16), (32, 16), (32, 24)] {
        speed(sites, bits)?;
    }
    for (few, many) in rules(7).into_iter().zip(rules(32)).filter(|(rule, _)| *rule != Rule::Mean) {
        memory(few, many)?;
    }
    Ok(())
}

/// A coordinator's peak memory under a rule at 7 sites, and at 32: bounded, whoever takes part.
#[expect(clippy::cast_precision_loss, reason = "figures for people")]
fn memory(few: Rule, many: Rule) -> Result<()> {
    let (of_few, of_many) = (peak_at(7, Some(few))? as f64, peak_at(32, Some(many))? as f64);
    let model = PARAMS as f64 * 4.0;
    let (rule, mib) = (many.as_str(), f64::from(1 << 20));
    let detail = format!("({:.0} MB, of 7 {:.0} MB)", of_many / mib, of_few / mib);
    report(
        &format!("peak memory, {rule} of 32 x 100 MB / 100 MB"),
        of_many / model,
        "<= 2",
        &detail,
    );
    let per_site = (of_many - of_few) / 25.0 / model;
    report("  per further site / model size", per_site, "<= 0.05", "");
    ensure!(per_site <= 0.05, "a coordinator's memory grows with its sites under {rule}");
    Ok(())
}

/// Updates that are near each other, in no pattern that a branch could learn.
fn payloads(sites: u32, encoding: Encoding) -> Vec<Vec<u8>> {
    let width = encoding.bytes_per_value();
    let shift = 32 - u32::from(encoding.bits());
    let payload = |site: u32| {
        let mut state = site.wrapping_mul(0x9e37_79b9) | 1;
        let mut bytes = vec![0; PARAMS * width];
        for value in bytes.chunks_exact_mut(width) {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            let v = (state.cast_signed() >> shift).max(-encoding.max());
            value.copy_from_slice(&v.to_le_bytes()[..width]);
        }
        bytes
    };
    (1..=sites).map(payload).collect()
}

fn speed(sites: u32, bits: u8) -> Result<()> {
    let encoding = Encoding::for_range(bits, 1.0)?;
    let payloads = payloads(sites, encoding);
    let bytes = payloads.iter().map(Vec::len).sum();
    let mut target = vec![0_u8; payloads[0].len()];
    let copying = best_of(TIMES, || {
        let started = Instant::now();
        payloads.iter().for_each(|p| target.copy_from_slice(black_box(p)));
        black_box(&target);
        Ok(started.elapsed())
    })?;
    let mut sums = Accumulator::new(PARAMS, encoding);
    let folding = best_of(TIMES, || {
        let started = Instant::now();
        sums.reset();
        payloads.iter().try_for_each(|p| sums.fold(black_box(p), 1))?;
        Ok(started.elapsed())
    })?;
    let copied = gb_per_s(bytes, copying);
    let show = |what: &str, took: Duration| {
        let name =
            format!("{what} of {sites} x {} MB, {bits} bits / copy", target.len() / 1_000_000);
        let detail = format!("({:.1} GB/s, copy {copied:.1})", gb_per_s(bytes, took));
        report(&name, took.as_secs_f64() / copying.as_secs_f64(), "", &detail);
    };
    show("fold", folding);
    let shape = Shape { updates: payloads.len(), params: PARAMS, encoding };
    let read = |update: usize, at: u64, into: &mut [u8]| -> Result<(), AggregateError> {
        let at = usize::try_from(at).expect("within memory");
        into.copy_from_slice(&payloads[update][at..at + into.len()]);
        Ok(())
    };
    for rule in rules(sites) {
        let took = best_of(TIMES, || {
            let started = Instant::now();
            let mut measured = BlockRule::measure(rule, shape, read)?;
            let mut block = vec![0; 4 * BLOCK];
            for at in (0..PARAMS).step_by(BLOCK) {
                let block = &mut block[..4 * BLOCK.min(PARAMS - at)];
                measured.move_base(at, block, 1.0, None, read)?;
            }
            black_box(&block);
            Ok(started.elapsed())
        })?;
        show(rule.as_str(), took);
    }
    let took = best_of(TIMES, || {
        let started = Instant::now();
        black_box(outliers(shape, read)?);
        Ok(started.elapsed())
    })?;
    show("norms and cosines", took);
    Ok(())
}
