//! Properties that hold for any input.

#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    reason = "tests compare with a tolerance"
)]

use ed25519_dalek::SigningKey;
use falaj_core::{
    aggregate::{Accumulator, params_to_bytes},
    dp::{Mechanism, Noise, NoiseError, Poisson, Reservation, rdp::RdpCurve},
    id::Digest,
    manifest::{Manifest, TensorSpec},
    merkle::leaf_hash,
    note::{Checkpoint, VerifierKey},
    update::{About, Encoding, PayloadCheck, RawUpdate, SignedUpdate, UpdateHeader},
    witness::{AddCheckpoint, InclusionProof, WitnessKey},
};
use proptest::prelude::*;

struct Silent;

impl Noise for Silent {
    fn add(&mut self, _: &mut [i64], _: f64) -> Result<(), NoiseError> {
        Ok(())
    }
}

/// Remembers what it was asked to hide, and at which scale.
struct Listens {
    norm_squared: i128,
    sigma: f64,
}

impl Noise for Listens {
    fn add(&mut self, values: &mut [i64], sigma: f64) -> Result<(), NoiseError> {
        self.norm_squared = values.iter().map(|&v| i128::from(v).pow(2)).sum();
        self.sigma = sigma;
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
        ledger: Digest::of(b"ledger"),
    };
    sealed.sign(about, &SigningKey::from_bytes(&[1; 32])).expect("signs")
}

fn finite() -> impl Strategy<Value = f32> {
    any::<f32>().prop_filter("finite", |v| v.is_finite())
}

/// Any finite number, and more often than chance gives them: zeros of both signs, the smallest and the
/// largest there are, and ordinary ones.
fn extreme() -> impl Strategy<Value = f32> {
    prop_oneof![
        finite(),
        -1.0_f32..1.0,
        prop::sample::select(vec![0.0, -0.0, f32::MIN, f32::MAX, f32::from_bits(1)]),
    ]
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
    fn noise_is_scaled_to_a_norm_that_no_input_exceeds(
        values in proptest::collection::vec(extreme(), 1..200),
        bits in 8_u8..=32,
        clip_steps in 16.0..20_000.0_f64,
        noise_multiplier in 0.1..10.0_f64,
    ) {
        let encoding = Encoding::for_range(bits, 1.0).expect("a grid");
        let clip_norm = clip_steps * encoding.step();
        let mut listens = Listens { norm_squared: 0, sigma: 0.0 };
        let manifest = manifest(values.len());
        Mechanism::LocalGaussian { clip_norm, noise_multiplier }
            .seal(RawUpdate::new(values), Reservation::from_ledger(1), encoding, &manifest, &mut listens)
            .expect("sealed");
        let sensitivity = (listens.sigma / noise_multiplier).round();
        prop_assert!(sensitivity <= clip_steps * (1.0 + 1e-12));
        prop_assert!(listens.norm_squared as f64 <= sensitivity * sensitivity);
    }

    #[test]
    fn a_header_round_trips_and_a_flipped_bit_breaks_its_signature(
        values in proptest::collection::vec(finite(), 1..10),
        bits in 8_u8..=32,
        range in 1e-30..1e30_f64,
        weight in any::<u32>(),
        flipped in any::<prop::sample::Index>(),
    ) {
        let encoding = Encoding::for_range(bits, range).expect("a grid");
        let update = signed(values, encoding, weight);
        let header = UpdateHeader::parse(update.header()).expect("a header");
        prop_assert_eq!(header.to_bytes(), update.header());
        prop_assert_eq!((header.weight, header.encoding), (weight, encoding));
        let site = SigningKey::from_bytes(&[1; 32]).verifying_key();
        let (bytes, payload) = (update.header().to_vec(), update.payload().to_vec());
        let mut forged = bytes.clone();
        let bit = flipped.index(bytes.len() * 8);
        forged[bit / 8] ^= 1 << (bit % 8);
        let signature = *update.signature();
        prop_assert!(SignedUpdate::restore(forged, signature, payload.clone(), &site).is_err());
        let mut changed = payload.clone();
        let bit = flipped.index(payload.len() * 8);
        changed[bit / 8] ^= 1 << (bit % 8);
        prop_assert!(SignedUpdate::restore(bytes.clone(), signature, changed, &site).is_err());
        prop_assert!(SignedUpdate::restore(bytes, signature, payload, &site).is_ok());
    }

    #[test]
    fn the_sum_in_any_blocks_is_the_sum_in_whole_numbers(
        updates in proptest::collection::vec(
            (proptest::collection::vec(any::<i32>(), 9), 1_u32..100_000), 1..6),
        bits in 8_u8..=32,
        cut in 0_usize..=9,
    ) {
        let encoding = Encoding::new(bits, 1.0).expect("a grid");
        let width = encoding.bytes_per_value();
        let mut sums = Accumulator::new(9, encoding);
        let (mut expected, mut total) = ([0_i128; 9], 0_i128);
        for (values, weight) in updates {
            let values = values.iter().map(|v| v.rem_euclid(encoding.max()));
            let bytes: Vec<u8> =
                values.clone().flat_map(|v| v.to_le_bytes()[..width].to_vec()).collect();
            sums.admit(weight).expect("fits");
            sums.fold_values(cut, &bytes[cut * width..], weight).expect("fits");
            sums.fold_values(0, &bytes[..cut * width], weight).expect("fits");
            expected.iter_mut().zip(values).for_each(|(e, v)| *e += i128::from(v) * i128::from(weight));
            total += i128::from(weight);
        }
        let mut model = params_to_bytes(&[0.0; 9]);
        sums.move_base(0, &mut model, 1.0, None).expect("a model");
        let mean = expected.map(|sum| (sum as f64 / total as f64) as f32);
        prop_assert_eq!(model, params_to_bytes(&mean));
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
            let mut model = params_to_bytes(&[0.25; 6]);
            sums.move_base(0, &mut model, 1.0, None).expect("a model");
            model
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
        let cost = |n| RdpCurve::poisson_gaussian(Poisson::new(rate).expect("a chance"), noise, n).expect("a guarantee");
        let eps = |c: &RdpCurve| c.epsilon(1e-5).expect("a delta").value();
        let before = cost(steps);
        let after = before.compose(&cost(more));
        prop_assert!(eps(&after) >= eps(&before));
        prop_assert!(eps(&after) >= eps(&cost(more)));
    }

    #[test]
    fn no_foreign_note_key_or_proof_makes_a_parser_panic(
        bytes in proptest::collection::vec(any::<u8>(), 0..300),
        at in any::<prop::sample::Index>(),
        flip in 1_u8..,
    ) {
        let all: serde_json::Value =
            serde_json::from_str(include_str!("../testdata/merkle_vectors.json")).expect("JSON");
        let real = &all["generated_70000"];
        let texts = [
            real["tlog_proof_index_42"].as_str().expect("text").to_owned(),
            real["witness_add_checkpoint_body_65537_to_70000"].as_str().expect("text").to_owned(),
            real["checkpoint"]["cosigned_checkpoint"].as_str().expect("text").to_owned(),
            real["checkpoint"]["witness_vkey"].as_str().expect("text").to_owned(),
        ];
        let log: VerifierKey = real["checkpoint"]["vkey"].as_str().expect("text").parse().expect("a key");
        let witness: WitnessKey = texts[3].parse().expect("a key");
        let broken = texts.iter().map(|text| {
            let mut bytes = text.clone().into_bytes();
            let at = at.index(bytes.len());
            bytes[at] ^= flip;
            bytes
        });
        for bytes in broken.chain([bytes]) {
            let text = String::from_utf8_lossy(&bytes);
            let _ = text.parse::<VerifierKey>();
            let _ = text.parse::<WitnessKey>();
            let _ = Checkpoint::open(&text, &log);
            let _ = witness.cosigned(&text);
            let _ = AddCheckpoint::parse(&text);
            if let Ok(proof) = InclusionProof::parse(&text) {
                let _ = proof.verify(&leaf_hash(b"leaf-42"), &log);
            }
        }
    }

    #[test]
    fn no_foreign_header_makes_the_parser_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = UpdateHeader::parse(&bytes);
    }
}
