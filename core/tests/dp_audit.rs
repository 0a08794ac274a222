//! The two-world audit: can an attacker tell a site's update from no update better than the charge says?
//!
//! In one world the site's update is zero, in the other it is as long as clipping lets it be, all in one
//! parameter. The attacker sees the payload as it would travel and guesses by a threshold half way.
//! Under `local_gaussian` no guess succeeds more often than chance by more than the total variation
//! distance of two Gaussians at distance `1 / noise_multiplier` (Dong, Roth, Su 2022, section 2.2). Faulty
//! noise must be found, or finding nothing would mean nothing.

use ed25519_dalek::SigningKey;
use falaj_core::{
    dp::{ExactDiscreteGaussian, Mechanism, Noise, NoiseError, Reservation},
    id::{Digest, RoundId},
    manifest::{Manifest, TensorSpec},
    update::{About, Encoding, RawUpdate},
};

/// Updates in each world.
const UPDATES: u32 = 20_000;
/// L2 bound of an update.
const CLIP_NORM: f64 = 1.0;
/// Noise over the clip norm.
const NOISE_MULTIPLIER: f64 = 1.0;

/// Noise at a part of the scale it is asked for.
struct Weakened<N>(N, f64);

impl<N: Noise> Noise for Weakened<N> {
    fn add(&mut self, values: &mut [i64], sigma: f64) -> Result<(), NoiseError> {
        self.0.add(values, sigma * self.1)
    }
}

/// How often an update of this length is taken for a long one.
fn taken_for_long(length: f32, part: f64, seed: u64) -> f64 {
    let encoding = Encoding::for_range(16, 16.0).expect("a grid");
    let tensor = TensorSpec { name: "w".into(), shape: vec![1] };
    let manifest = Manifest::new(vec![tensor]).expect("a manifest");
    let exact = ExactDiscreteGaussian::new(*Digest::of(&seed.to_le_bytes()).as_bytes());
    let mut noise = Weakened(exact, part);
    let mechanism =
        Mechanism::LocalGaussian { clip_norm: CLIP_NORM, noise_multiplier: NOISE_MULTIPLIER };
    let key = SigningKey::from_bytes(&[1; 32]);
    let about = About {
        round: RoundId { study: "audit".parse().expect("valid"), number: 1 },
        site: "spiffe://t/ae-on/ae-az/site/h".parse().expect("valid"),
        base: Digest::of(b"base"),
        manifest: manifest.digest(),
        weight: 1,
        epsilon: "inf".into(),
        ledger: Digest::of(b"ledger"),
    };
    let mut taken = 0;
    for n in 0..UPDATES {
        let paid = Reservation::from_ledger(n.into());
        let sealed = mechanism
            .seal(RawUpdate::new(vec![length]), paid, encoding, &manifest, &mut noise)
            .expect("sealed");
        // The payload of an update is seen only once it is signed; one byte pair is one parameter.
        let signed = sealed.sign(about.clone(), &key).expect("signs");
        let seen = i16::from_le_bytes(signed.payload().try_into().expect("two bytes"));
        taken += u32::from(f64::from(seen) * encoding.step() > CLIP_NORM / 2.0);
    }
    f64::from(taken) / f64::from(UPDATES)
}

/// The attacker's success above chance, less 3.5 standard errors, over what the charge allows.
fn leak(part: f64) -> f64 {
    let (long, zero) = (taken_for_long(1e6, part, 1), taken_for_long(0.0, part, 2));
    let variance = (long * (1.0 - long) + zero * (1.0 - zero)) / f64::from(UPDATES);
    let allowed = libm::erf(1.0 / NOISE_MULTIPLIER / 8.0_f64.sqrt());
    (long - zero - 3.5 * variance.sqrt()) / allowed
}

#[test]
fn an_attacker_learns_no_more_than_the_charge_and_nearly_that_much() {
    let found = leak(1.0);
    assert!((0.9..=1.0).contains(&found), "{found}");
}

#[test]
fn noise_that_is_a_tenth_too_weak_is_found() {
    let found = leak(0.9);
    assert!(found > 1.0, "{found}");
}

#[test]
fn noise_that_is_far_too_weak_is_found() {
    let found = leak(0.5_f64.sqrt());
    assert!(found > 1.2, "{found}");
}
