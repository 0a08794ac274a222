//! Which records each step sees.

use super::{Chance, Plan};
use crate::data::Batch;
use falaj_core::dp::{Batches, Cyclic};
use std::{borrow::Cow, collections::HashMap};

/// The batches of a round, one after the other.
pub(super) struct Turns {
    batches: Batches,
    records: usize,
    /// The rows of each batch, where batches take turns.
    fixed: Vec<Vec<usize>>,
    step: u64,
}

impl Turns {
    /// From the plan's first step on.
    pub(super) fn new(plan: &Plan, records: &Batch) -> Self {
        let batches = plan.training.batches;
        let fixed = match batches {
            Batches::Poisson(_) => Vec::new(),
            Batches::Cyclic(cyclic) => split(cyclic, records),
        };
        Self { batches, records: records.rows(), fixed, step: plan.first_step }
    }

    /// The rows of the next batch.
    pub(super) fn next(&mut self, chance: &mut Chance) -> Cow<'_, [usize]> {
        let step = self.step;
        self.step += 1;
        match self.batches {
            Batches::Poisson(sampling) => Cow::Owned(chance.sample(self.records, sampling)),
            Batches::Cyclic(cyclic) => Cow::Borrowed(&self.fixed[cyclic.at(step) as usize]),
        }
    }
}

/// The first step in which the first of some records has its turn, where batches take turns.
pub(crate) fn first_turn(batches: Batches, records: &Batch) -> u64 {
    let Batches::Cyclic(cyclic) = batches else { return 0 };
    let batch = split(cyclic, records).iter().position(|rows| rows.contains(&0));
    batch.map_or(0, |batch| batch as u64)
}

/// Each record in its batch, by its own content.
fn split(cyclic: Cyclic, records: &Batch) -> Vec<Vec<usize>> {
    let mut fixed = vec![Vec::new(); cyclic.count() as usize];
    let mut copies: HashMap<Vec<u8>, u32> = HashMap::new();
    for row in 0..records.rows() {
        let mut bytes = Vec::with_capacity(4 * records.width + 4);
        records.row(row).iter().for_each(|v| bytes.extend_from_slice(&v.to_le_bytes()));
        bytes.extend_from_slice(&records.labels[row].to_le_bytes());
        let before = copies.get(&bytes).copied().unwrap_or(0);
        fixed[cyclic.of(&bytes, before) as usize].push(row);
        copies.insert(bytes, before + 1);
    }
    fixed
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::step::tests::{SGD, plan};
    use falaj_core::dp::Poisson;

    fn records(values: &[f32]) -> Batch {
        Batch { features: values.to_vec(), labels: vec![0; values.len()], width: 1 }
    }

    /// The values of each batch, sorted.
    fn batches_of(cyclic: Cyclic, values: &[f32]) -> Vec<Vec<u32>> {
        let sorted = |rows: &Vec<usize>| {
            let mut bits: Vec<u32> = rows.iter().map(|r| values[*r].to_bits()).collect();
            bits.sort_unstable();
            bits
        };
        split(cyclic, &records(values)).iter().map(sorted).collect()
    }

    #[test]
    fn a_record_more_or_less_or_elsewhere_leaves_all_others_in_their_batches() {
        let cyclic = Cyclic::new(4).expect("batches");
        // Some of them twice and thrice.
        let values: Vec<f32> = (0_u16..60).map(|i| f32::from(i % 25)).collect();
        let whole = batches_of(cyclic, &values);
        assert_eq!(whole.iter().map(Vec::len).sum::<usize>(), 60);
        for gone in 0..60 {
            let mut fewer = values.clone();
            let gone = fewer.remove(gone).to_bits();
            let fewer = batches_of(cyclic, &fewer);
            let mut missing = Vec::new();
            for (a, b) in whole.iter().zip(&fewer) {
                let mut left = b.clone();
                for v in a {
                    match left.iter().position(|l| l == v) {
                        Some(at) => drop(left.remove(at)),
                        None => missing.push(*v),
                    }
                }
                assert!(left.is_empty(), "a batch gained {left:?}");
            }
            assert_eq!(missing, [gone]);
        }
        let mut turned = values;
        turned.reverse();
        assert_eq!(batches_of(cyclic, &turned), whole);
    }

    #[test]
    fn batches_take_turns_from_where_the_last_round_ended() {
        let mut plan = plan(None, SGD);
        plan.training.batches = Batches::Cyclic(Cyclic::new(3).expect("batches"));
        let records = records(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]);
        let mut chance = Chance::insecure(b"turns");
        let mut turns = Turns::new(&plan, &records);
        let first: Vec<Vec<usize>> = (0..6).map(|_| turns.next(&mut chance).to_vec()).collect();
        assert_eq!(first[..3], first[3..]);
        let mut all = first[..3].concat();
        all.sort_unstable();
        assert_eq!(all, [0, 1, 2, 3, 4, 5, 6, 7]);
        plan.first_step = 5;
        let mut later = Turns::new(&plan, &records);
        assert_eq!(later.next(&mut chance), first[2]);
        assert_eq!(later.next(&mut chance), first[0]);
        plan.training.batches = Batches::Poisson(Poisson::ALL);
        assert_eq!(Turns::new(&plan, &records).next(&mut chance).len(), 8);
    }
}
