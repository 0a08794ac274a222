//! Properties that hold for any input.

use ed25519_dalek::SigningKey;
use falaj_core::{
    aggregate::Accumulator,
    dp::{Mechanism, Noise, NoiseError, Reservation, rdp::RdpCurve},
    id::Digest,
    manifest::{Manifest, TensorSpec},
    update::{About, Encoding, PayloadCheck, RawUpdate, SignedUpdate, UpdateHeader},
};
use proptest::prelude::*;

struct Silent;

impl Noise for Silent {
    fn add(&mut self, _: &mut [i64], _: f64) -> Result<(), NoiseError> {
        Ok(())
    }
}

fn manifest(params: usize) -> Manifest {
    let shape = vec![u32::try_from(params).expect("small")];
    Manifest::new(vec![TensorSpec { name: "w".into(), shape }]).expect("a manifest")
}

fn signed(values: Vec<f32>, encoding: Encoding, weight: u32) -> SignedUpdate {
    let manifest = manifest(values.len());
    let raw = RawUpdate::new(values);
    let paid = Reservation::from_ledger(1);
    let sealed =
        Mechanism::DpSgd.seal(raw, paid, encoding, &manifest, &mut Silent).expect("sealed");
    let about = About {
        round: falaj_core::id::RoundId { study: "s".parse().expect("valid"), number: 1 },
        site: "spiffe://t/ae-on/ae-az/site/h".parse().expect("valid"),
        base: Digest::of(b"base"),
        manifest: manifest.digest(),
        weight,
        epsilon: "1.0000".into(),
    };
    sealed.sign(about, &SigningKey::from_bytes(&[1; 32]))
}

fn finite() -> impl Strategy<Value = f32> {
    any::<f32>().prop_filter("finite", |v| v.is_finite())
}

proptest! {
    #[test]
    fn whatever_is_sealed_passes_the_check_on_arrival(
        values in proptest::collection::vec(finite(), 1..40),
        bits in 8_u8..=32,
        range in 1e-3..1e3_f64,
        cut in any::<prop::sample::Index>(),
    ) {
        let encoding = Encoding::for_range(bits, range).expect("a grid");
        let update = signed(values, encoding, 5);
        let header = UpdateHeader::parse(update.header()).expect("a header");
        let mut check = PayloadCheck::new(&header);
        let cut = cut.index(update.payload().len());
        check.feed(&update.payload()[..cut]).expect("on the grid");
        check.feed(&update.payload()[cut..]).expect("on the grid");
        check.finish(header.payload).expect("the same bytes");
    }

    #[test]
    fn arrival_order_cannot_change_a_bit(
        updates in proptest::collection::vec(
            (proptest::collection::vec(-1.0_f32..1.0, 6), 1_u32..10_000), 1..8),
        seed in any::<u64>(),
    ) {
        let encoding = Encoding::for_range(16, 1.0).expect("a grid");
        let sealed: Vec<_> =
            updates.into_iter().map(|(v, w)| (signed(v, encoding, w), w)).collect();
        let model = |order: &[usize]| {
            let mut sums = Accumulator::new(6, encoding);
            for &i in order {
                sums.fold(sealed[i].0.payload(), sealed[i].1).expect("fits");
            }
            sums.finish(&[0.25; 6], 1.0).expect("a model").digest
        };
        let mut order: Vec<usize> = (0..sealed.len()).collect();
        let first = model(&order);
        order.sort_by_key(|i| (*i as u64).wrapping_mul(seed | 1).rotate_left(17));
        prop_assert_eq!(first, model(&order));
    }

    #[test]
    fn spend_only_grows(
        steps in 1_u64..2_000,
        more in 1_u64..2_000,
        rate in 0.001..1.0_f64,
        noise in 0.5..8.0_f64,
    ) {
        let cost = |n| RdpCurve::poisson_gaussian(rate, noise, n).expect("a guarantee");
        let eps = |c: &RdpCurve| c.epsilon(1e-5).expect("a delta").value();
        let before = cost(steps);
        let after = before.compose(&cost(more));
        prop_assert!(eps(&after) >= eps(&before));
        prop_assert!(eps(&after) >= eps(&cost(more)));
    }

    #[test]
    fn no_foreign_header_makes_the_parser_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = UpdateHeader::parse(&bytes);
    }
}
