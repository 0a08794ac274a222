//! Secure aggregation from end to end in memory: the masked sum is the plain sum, whoever drops out; and what
//! a coordinator or a site may try against the protocol.

use ed25519_dalek::SigningKey;
use falaj_core::{
    dp::{Distributed, ExactDiscreteGaussian, Noise, NoiseError, Reservation},
    id::{Digest, RoundId},
    manifest::{Manifest, TensorSpec},
    secagg::{
        Cohort, CohortError, Collector, Member, MessageError, Site, Sum,
        site::{Advertised, Confirmed, MaskedStage, Shared},
        wire::{Advert, Confirmation, Envelope, Reveal},
    },
    update::{About, Encoding, PartialUpdate, RawUpdate, SealedUpdate},
};
use proptest::prelude::*;
use rand_chacha::ChaCha20Rng;
use rand_core::{RngCore as _, SeedableRng as _};

fn rng(seed: u64) -> ChaCha20Rng {
    ChaCha20Rng::seed_from_u64(seed)
}

fn signer(i: usize) -> SigningKey {
    SigningKey::from_bytes(Digest::of(&(i as u64).to_le_bytes()).as_bytes())
}

fn members(n: usize) -> Vec<Member> {
    let member = |i| Member {
        site: format!("spiffe://t/ae-on/ae-az/site/h{i:03}").parse().expect("valid"),
        key: signer(i).verifying_key(),
    };
    (0..n).map(member).collect()
}

fn cohort_of(n: usize, terms: (u32, u32), bits: u8, params: usize, round: u32) -> Cohort {
    let round = RoundId { study: "masked".parse().expect("valid"), number: round };
    let encoding = Encoding::new(bits, 1.0).expect("a grid");
    Cohort::new((round, 0), members(n), terms, encoding, params).expect("a cohort")
}

struct Silent;
impl Noise for Silent {
    fn add(&mut self, _: &mut [i64], _: f64) -> Result<(), NoiseError> {
        Ok(())
    }
}

/// An update of these whole numbers, without noise.
fn partial(values: &[i32], bits: u8) -> PartialUpdate {
    let shape = vec![u32::try_from(values.len()).expect("small")];
    let manifest = Manifest::new(vec![TensorSpec { name: "w".into(), shape }]).expect("valid");
    let encoding = Encoding::new(bits, 1.0).expect("a grid");
    #[expect(clippy::cast_precision_loss, reason = "numbers of at most 24 bits")]
    let raw = RawUpdate::new(values.iter().map(|&v| v as f32).collect());
    let paid = Reservation::from_ledger(1);
    let noise = Distributed::new(1 << 30, 1.0, (3, 0)).expect("valid");
    noise.seal(raw, paid, (encoding, 3), &manifest, &mut Silent).expect("sealed")
}

/// What travels of a masked update.
fn payload_of(update: SealedUpdate) -> Vec<u8> {
    let about = About {
        round: RoundId { study: "masked".parse().expect("valid"), number: 1 },
        site: members(1).remove(0).site,
        base: Digest::of(b"base"),
        manifest: Digest::of(b"manifest"),
        weight: 1,
        epsilon: "1".into(),
        ledger: Digest::of(b"ledger"),
    };
    update.sign(about, &signer(0)).expect("signs").payload().to_vec()
}

/// Sites in one stage, by number.
type InStage<T> = Vec<(u16, Site<T>)>;

/// The stage before which each site drops out, 5 for never.
type Drops = Vec<u8>;

/// Sites and coordinator up to the stage where confirmations are in.
struct Run {
    cohort: Cohort,
    collector: Collector,
    adverts: Vec<Advert>,
    envelopes: Vec<Envelope>,
    masked: Vec<Vec<u8>>,
    confirmations: Vec<Confirmation>,
    confirmed: Vec<(u16, Site<Confirmed>)>,
}

fn advertise(
    cohort: &Cohort,
    drops: &Drops,
    seed: u64,
) -> (Vec<(u16, Site<Advertised>)>, Vec<Advert>) {
    let (mut sites, mut adverts) = (Vec::new(), Vec::new());
    for (i, drop) in drops.iter().enumerate() {
        if *drop > 0 {
            let index = u16::try_from(i).expect("small");
            let mut rng = rng(seed + i as u64);
            let (site, advert) =
                Site::advertise(cohort.clone(), index, signer(i), &mut rng).expect("adverts");
            let bytes = advert.to_bytes(cohort);
            adverts.push(Advert::parse(&bytes, cohort).expect("round trip"));
            sites.push((index, site));
        }
    }
    (sites, adverts)
}

fn share(
    collector: &mut Collector,
    sites: Vec<(u16, Site<Advertised>)>,
    adverts: &[Advert],
    (cohort, drops): (&Cohort, &Drops),
) -> Result<(InStage<Shared>, Vec<Envelope>), MessageError> {
    adverts.iter().try_for_each(|a| collector.advertised(a))?;
    let (mut shared, mut envelopes) = (Vec::new(), Vec::new());
    for (index, site) in sites {
        if drops[usize::from(index)] > 1 {
            let (site, dealt) = site.share(adverts, &mut rng(u64::from(index)))?;
            let dealt: Vec<Envelope> = dealt
                .iter()
                .map(|e| Envelope::parse(&e.to_bytes(cohort), cohort).expect("round trip"))
                .collect();
            collector.dealt(index, &dealt)?;
            envelopes.extend(dealt);
            shared.push((index, site));
        }
    }
    Ok((shared, envelopes))
}

fn run(
    cohort: Cohort,
    updates: &[Vec<i32>],
    drops: &Drops,
    seed: u64,
) -> Result<Run, MessageError> {
    let bits = cohort.encoding().bits();
    let mut collector = Collector::new(cohort.clone());
    let (sites, adverts) = advertise(&cohort, drops, seed);
    let (shared, envelopes) = share(&mut collector, sites, &adverts, (&cohort, drops))?;
    let mut masked_sites: Vec<(u16, Site<MaskedStage>)> = Vec::new();
    let mut masked = Vec::new();
    for (index, site) in shared {
        let drop = drops[usize::from(index)];
        if drop > 2 {
            let mine: Vec<Envelope> =
                envelopes.iter().filter(|e| e.to() == index).cloned().collect();
            let update = partial(&updates[usize::from(index)], bits);
            let (site, update) = site.mask(&mine, update)?;
            let payload = payload_of(update);
            collector.masked(index, &payload)?;
            masked.push(payload);
            masked_sites.push((index, site));
        }
    }
    let survivors = collector.survivors();
    let (mut confirmed, mut confirmations) = (Vec::new(), Vec::new());
    for (index, site) in masked_sites {
        if drops[usize::from(index)] > 3 {
            let (site, confirmation) = site.confirm(&survivors)?;
            let bytes = confirmation.to_bytes(&cohort);
            confirmations.push(Confirmation::parse(&bytes, &cohort).expect("round trip"));
            confirmed.push((index, site));
        }
    }
    confirmations.iter().try_for_each(|c| collector.confirmed(c))?;
    Ok(Run { cohort, collector, adverts, envelopes, masked, confirmations, confirmed })
}

impl Run {
    fn finish(self, drops: &Drops) -> Result<Sum, MessageError> {
        let Self { cohort, mut collector, confirmations, confirmed, .. } = self;
        for (index, site) in confirmed {
            if drops[usize::from(index)] > 4 {
                let reveal = site.reveal(&confirmations)?;
                let reveal = Reveal::parse(&reveal.to_bytes(&cohort), &cohort).expect("round trip");
                collector.reveal(&reveal)?;
            }
        }
        collector.sum()
    }
}

fn updates(n: usize, params: usize, bits: u8, seed: u64) -> Vec<Vec<i32>> {
    let mut rng = rng(seed);
    let most = i64::from(i32::MAX >> (32 - bits.min(24)));
    let draw = |rng: &mut ChaCha20Rng| {
        let within = i64::from(rng.next_u32()) % (2 * most + 1) - most;
        i32::try_from(within).expect("within")
    };
    (0..n).map(|_| (0..params).map(|_| draw(&mut rng)).collect()).collect()
}

/// The plain sum of those whose masked updates arrived, modulo `2^bits` and centred.
fn plain(updates: &[Vec<i32>], drops: &Drops, bits: u8) -> Vec<i32> {
    let params = updates[0].len();
    let mut sum = vec![0_i32; params];
    for (update, drop) in updates.iter().zip(drops) {
        if *drop > 2 {
            sum.iter_mut().zip(update).for_each(|(s, u)| *s = s.wrapping_add(*u));
        }
    }
    let shift = 32 - u32::from(bits);
    sum.iter().map(|s| (s << shift) >> shift).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_500, ..ProptestConfig::default() })]

    #[test]
    fn the_masked_sum_is_the_plain_sum_whoever_drops_out_and_whenever(
        n in 3_usize..9,
        colluders in 0_u32..3,
        slack in 0_u32..3,
        drops in prop::collection::vec(prop_oneof![3 => Just(5_u8), 2 => 0_u8..5], 9),
        bits in prop::sample::select(vec![8_u8, 12, 16, 20, 24, 32]),
        seed in any::<u32>(),
    ) {
        let count = u32::try_from(n).expect("small");
        let threshold = (u32::midpoint(count, colluders) + 1 + slack).min(count);
        prop_assume!(colluders + 2 <= threshold && 2 * threshold > count + colluders);
        let drops: Drops = drops[..n].to_vec();
        let cohort = cohort_of(n, (threshold, colluders), bits, 5, 1);
        let updates = updates(n, 5, bits, u64::from(seed));
        let reach = |stage: u8| drops.iter().filter(|d| **d > stage).count();
        let outcome = run(cohort, &updates, &drops, u64::from(seed)).and_then(|r| r.finish(&drops));
        // Each stage needs the threshold of sites; the last needs one less share than that.
        if reach(4) >= threshold as usize {
            let sum = outcome.expect("enough sites were there to the end");
            prop_assert_eq!(sum.values, plain(&updates, &drops, bits));
            prop_assert_eq!(sum.sites.len(), reach(2));
        } else if let Ok(sum) = outcome {
            prop_assert!(reach(3) >= threshold as usize);
            prop_assert_eq!(sum.values, plain(&updates, &drops, bits));
        } else {
            prop_assert!(matches!(outcome, Err(MessageError::TooFew { .. })), "{:?}", outcome);
        }
    }
}

#[test]
fn a_sparse_graph_of_sixty_sites_gives_the_plain_sum_under_drop_outs() {
    let n = 60;
    let cohort = cohort_of(n, (54, 3), 16, 9, 1);
    assert!(cohort.graph().neighbours(0).len() < n - 1, "the graph is complete");
    let updates = updates(n, 9, 16, 3);
    let mut drops: Drops = vec![5; n];
    for (i, stage) in [(3, 0), (17, 1), (18, 2), (19, 3), (40, 4), (59, 2)] {
        drops[i] = stage;
    }
    let sum = run(cohort, &updates, &drops, 9).and_then(|r| r.finish(&drops)).expect("a sum");
    assert_eq!(sum.values, plain(&updates, &drops, 16));
}

#[test]
fn cohorts_that_protect_nobody_are_refused() {
    let round = RoundId { study: "masked".parse().expect("valid"), number: 1 };
    let encoding = Encoding::new(16, 1.0).expect("a grid");
    let with = |members, terms| Cohort::new((round.clone(), 0), members, terms, encoding, 4);
    assert!(matches!(with(members(2), (2, 0)), Err(CohortError::Members(2))));
    assert!(matches!(with(members(201), (150, 0)), Err(CohortError::Members(201))));
    for terms in [(3, 0), (7, 0), (4, 2), (5, 4), (u32::MAX, 0), (2, u32::MAX)] {
        let err = with(members(6), terms).expect_err("refused");
        assert!(matches!(err, CohortError::Threshold { .. }), "{terms:?}: {err}");
    }
    let mut twice = members(4);
    twice[3].key = twice[0].key;
    assert!(matches!(with(twice, (3, 0)), Err(CohortError::Twice(_))));
    let empty = Cohort::new((round.clone(), 0), members(4), (3, 0), encoding, 0);
    assert_eq!(empty.expect_err("empty"), CohortError::Empty);
}

const ALL: [u8; 5] = [5; 5];

fn five() -> (Cohort, Vec<Vec<i32>>, Drops) {
    (cohort_of(5, (4, 1), 16, 4, 1), updates(5, 4, 16, 1), ALL.to_vec())
}

#[test]
fn a_coordinator_that_shows_its_own_keys_as_a_sites_is_caught() {
    let (cohort, _, drops) = five();
    let (mut sites, adverts) = advertise(&cohort, &drops, 1);
    // It makes keys of its own and signs them with whatever it has.
    let (_, forged) = {
        let mut other = members(5);
        other[2].key = signer(77).verifying_key();
        let round = cohort.round().clone();
        let theirs =
            Cohort::new((round, 0), other, (4, 1), cohort.encoding(), 4).expect("a cohort");
        Site::advertise(theirs, 2, signer(77), &mut rng(8)).expect("adverts")
    };
    let mut shown = adverts.clone();
    shown[2] = forged;
    let (_, site) = sites.remove(0);
    assert_eq!(site.share(&shown, &mut rng(1)).err(), Some(MessageError::Signature(2)));
    // One site's keys shown as another's, or twice, or too few of them.
    for (change, expected) in [
        (vec![0, 1, 1, 3, 4], MessageError::Twice(1)),
        (vec![0, 1, 2], MessageError::TooFew { found: 3, needed: 4 }),
        (vec![1, 2, 3, 4], MessageError::List),
    ] {
        let shown: Vec<Advert> = change.iter().map(|&i: &usize| adverts[i].clone()).collect();
        let (mut sites, _) = advertise(&cohort, &drops, 1);
        let (_, site) = sites.remove(0);
        assert_eq!(site.share(&shown, &mut rng(1)).err(), Some(expected));
    }
}

#[test]
fn a_message_of_another_round_is_refused_everywhere() {
    let (cohort, updates, drops) = five();
    let later = cohort_of(5, (4, 1), 16, 4, 2);
    let run = run(cohort.clone(), &updates, &drops, 1).expect("a run");
    let refused = Some(MessageError::Cohort);
    assert_eq!(Advert::parse(&run.adverts[0].to_bytes(&cohort), &later).err(), refused);
    assert_eq!(Envelope::parse(&run.envelopes[0].to_bytes(&cohort), &later).err(), refused);
    assert_eq!(Confirmation::parse(&run.confirmations[0].to_bytes(&cohort), &later).err(), refused);
    let reveal = run.confirmed.into_iter().next().expect("a site").1;
    let reveal = reveal.reveal(&run.confirmations).expect("a reveal");
    assert_eq!(Reveal::parse(&reveal.to_bytes(&cohort), &later).err(), refused);
    // The same keys under a new head do not pass: the signature covers it.
    let (mut sites, _) = advertise(&later, &drops, 1);
    assert_eq!(
        sites.remove(0).1.share(&run.adverts, &mut rng(1)).err(),
        Some(MessageError::Signature(0))
    );
}

type Parse = fn(&[u8], &Cohort) -> Result<(), MessageError>;

#[test]
fn a_message_of_any_other_form_is_refused() {
    let (cohort, updates, drops) = five();
    let run = run(cohort.clone(), &updates, &drops, 1).expect("a run");
    let reveal = run.confirmed.into_iter().next().expect("a site").1;
    let reveal = reveal.reveal(&run.confirmations).expect("a reveal");
    let parsers: [Parse; 4] = [
        |b, c| Advert::parse(b, c).map(drop),
        |b, c| Envelope::parse(b, c).map(drop),
        |b, c| Confirmation::parse(b, c).map(drop),
        |b, c| Reveal::parse(b, c).map(drop),
    ];
    let messages = [
        run.adverts[0].to_bytes(&cohort),
        run.envelopes[0].to_bytes(&cohort),
        run.confirmations[0].to_bytes(&cohort),
        reveal.to_bytes(&cohort),
    ];
    for (i, (parse, bytes)) in parsers.iter().zip(&messages).enumerate() {
        assert_eq!(parse(bytes, &cohort), Ok(()));
        for cut in 0..bytes.len() {
            assert!(parse(&bytes[..cut], &cohort).is_err(), "message {i} cut at {cut}");
        }
        let mut long = bytes.clone();
        long.push(0);
        assert!(matches!(parse(&long, &cohort), Err(MessageError::Length { .. })), "message {i}");
        let mut stranger = bytes.clone();
        stranger[33..35].copy_from_slice(&5_u16.to_le_bytes());
        assert_eq!(parse(&stranger, &cohort), Err(MessageError::Member(5)), "message {i}");
        for (j, other) in parsers.iter().enumerate() {
            assert_eq!(other(bytes, &cohort).is_ok(), i == j, "message {i} as {j}");
        }
    }
}

#[test]
fn forged_missing_and_duplicate_shares_are_named() {
    let (cohort, updates, drops) = five();
    let mine = |envelopes: &[Envelope]| -> Vec<Envelope> {
        envelopes.iter().filter(|e| e.to() == 0).cloned().collect()
    };
    let start = || {
        let mut collector = Collector::new(cohort.clone());
        let (sites, adverts) = advertise(&cohort, &drops, 1);
        let (mut shared, envelopes) =
            share(&mut collector, sites, &adverts, (&cohort, &drops)).expect("shares");
        (shared.remove(0).1, envelopes, collector)
    };
    let flip = |e: &Envelope, at: usize| {
        let mut bytes = e.to_bytes(&cohort);
        bytes[at] ^= 1;
        Envelope::parse(&bytes, &cohort).expect("of the form")
    };
    let update = || partial(&updates[0], 16);
    // Ciphertext, authenticator, either commitment.
    for at in [40, 37 + 70, 37 + 80 + 3, 37 + 80 + 40] {
        let (site, envelopes, _) = start();
        let mut mine = mine(&envelopes);
        mine[1] = flip(&mine[1], at);
        assert_eq!(site.mask(&mine, update()).err(), Some(MessageError::Shares(2)), "byte {at}");
    }
    let (site, envelopes, _) = start();
    let mut twice = mine(&envelopes);
    twice.push(twice[0].clone());
    assert_eq!(site.mask(&twice, update()).err(), Some(MessageError::Twice(1)));
    let (site, envelopes, _) = start();
    let few = &mine(&envelopes)[..2];
    assert_eq!(site.mask(few, update()).err(), Some(MessageError::TooFew { found: 2, needed: 3 }));
    let (site, envelopes, _) = start();
    let others: Vec<Envelope> = envelopes.iter().filter(|e| e.to() == 1).cloned().collect();
    assert!(matches!(site.mask(&others, update()), Err(MessageError::Member(_))));
    let (site, envelopes, _) = start();
    assert_eq!(
        site.mask(&mine(&envelopes), partial(&[1; 3], 16)).err(),
        Some(MessageError::Update)
    );
    // A site that deals to some neighbours only, or twice.
    let (_, envelopes, mut collector) = start();
    let of_one: Vec<Envelope> = envelopes.iter().filter(|e| e.to() != 1).cloned().collect();
    assert!(collector.dealt(1, &of_one).is_err());
    let own: Vec<Envelope> = envelopes[4..8].to_vec();
    assert_eq!(collector.dealt(1, &own), Err(MessageError::Twice(1)));
}

#[test]
fn shares_revealed_falsely_are_named_and_never_enter_a_sum() {
    let (cohort, updates, mut drops) = five();
    drops[4] = 2;
    let mut run = run(cohort.clone(), &updates, &drops, 1).expect("a run");
    let (_, site) = run.confirmed.remove(0);
    let reveal = site.reveal(&run.confirmations).expect("a reveal");
    let bytes = reveal.to_bytes(&cohort);
    let mut forged = bytes.clone();
    *forged.last_mut().expect("bytes") ^= 1;
    let forged = Reveal::parse(&forged, &cohort).expect("of the form");
    assert_eq!(run.collector.reveal(&forged), Err(MessageError::Reveals(0)));
    // One share fewer.
    let mut fewer = bytes[..bytes.len() - 34].to_vec();
    fewer[35] -= 1;
    let fewer = Reveal::parse(&fewer, &cohort).expect("of the form");
    assert_eq!(run.collector.reveal(&fewer), Err(MessageError::Reveals(0)));
    run.collector.reveal(&reveal).expect("the true one is taken after all");
    assert_eq!(run.collector.reveal(&reveal), Err(MessageError::Twice(0)));
    // Someone who sent no masked update has nothing to reveal.
    let mut stranger = bytes;
    stranger[33] = 4;
    let stranger = Reveal::parse(&stranger, &cohort).expect("of the form");
    assert_eq!(run.collector.reveal(&stranger), Err(MessageError::Member(4)));
}

#[test]
fn a_coordinator_cannot_get_a_reveal_for_a_list_that_too_few_confirmed() {
    let (cohort, updates, drops) = five();
    // It tells sites 0 and 1 that site 4 dropped out, and the others that it did not: both of site 4's
    // secrets would come together.
    let mut collector = Collector::new(cohort.clone());
    let (sites, adverts) = advertise(&cohort, &drops, 1);
    let (shared, envelopes) =
        share(&mut collector, sites, &adverts, (&cohort, &drops)).expect("shares");
    let mut stage = Vec::new();
    for (index, site) in shared {
        let mine: Vec<Envelope> = envelopes.iter().filter(|e| e.to() == index).cloned().collect();
        let update = partial(&updates[usize::from(index)], 16);
        stage.push(site.mask(&mine, update).expect("masked").0);
    }
    let (mut without, mut with) = (Vec::new(), Vec::new());
    let mut confirmed = Vec::new();
    for (i, site) in stage.into_iter().enumerate() {
        let list: &[u16] = if i < 2 { &[0, 1, 2, 3] } else { &[0, 1, 2, 3, 4] };
        let (site, confirmation) = site.confirm(list).expect("a list of enough sites");
        if i < 2 {
            without.push(confirmation);
        } else {
            with.push(confirmation);
        }
        confirmed.push(site);
    }
    // Neither list has four signatures, and a signature on one does not serve for the other.
    let all: Vec<Confirmation> = without.iter().chain(&with).cloned().collect();
    for (i, site) in confirmed.into_iter().enumerate() {
        let shown = match i {
            0 => &without,
            2 => &with,
            _ => &all,
        };
        let err = site.reveal(shown).expect_err("no reveal");
        assert!(matches!(err, MessageError::TooFew { .. } | MessageError::List), "{i}: {err}");
    }
}

#[test]
fn masked_values_beyond_the_ring_or_too_few_of_them_never_enter_a_sum() {
    let cohort = cohort_of(5, (4, 1), 12, 4, 1);
    let (updates, drops) = (updates(5, 4, 12, 1), vec![5, 5, 2, 5, 5]);
    let mut run = run(cohort, &updates, &drops, 1).expect("a run");
    assert_eq!(run.collector.masked(2, &[0, 0x10, 0, 0, 0, 0, 0, 0]), Err(MessageError::Values(2)));
    let short = run.collector.masked(2, &[0; 7]);
    assert_eq!(short, Err(MessageError::Length { found: 7, expected: 8 }));
    assert_eq!(run.collector.masked(1, &[0; 8]), Err(MessageError::Twice(1)));
    let sum = run.finish(&drops).expect("a sum");
    assert_eq!(sum.values, plain(&updates, &drops, 12));
}

#[test]
fn what_was_signed_in_one_attempt_is_worth_nothing_in_the_next() {
    let (cohort, updates, drops) = five();
    let round = cohort.round().clone();
    let again =
        Cohort::new((round, 1), members(5), (4, 1), cohort.encoding(), 4).expect("a cohort");
    assert_ne!(cohort.digest(), again.digest());
    let first = run(cohort.clone(), &updates, &drops, 1).expect("a run");
    let second = run(again.clone(), &updates, &drops, 2).expect("a run");
    // The coordinator shows confirmations of the first attempt in the second.
    let (_, site) = second.confirmed.into_iter().next().expect("a site");
    assert_eq!(site.reveal(&first.confirmations).err(), Some(MessageError::List));
    let bytes = first.confirmations[0].to_bytes(&cohort);
    assert_eq!(Confirmation::parse(&bytes, &again).err(), Some(MessageError::Cohort));
}

#[test]
fn a_list_that_is_too_short_or_leaves_the_site_out_is_not_confirmed() {
    let (cohort, updates, drops) = five();
    let lists: [(&[u16], MessageError); 5] = [
        (&[0, 1, 2], MessageError::TooFew { found: 3, needed: 4 }),
        (&[1, 2, 3, 4], MessageError::List),
        (&[0, 1, 1, 2], MessageError::Member(1)),
        (&[0, 2, 1, 3], MessageError::Member(1)),
        (&[0, 1, 2, 9], MessageError::Member(9)),
    ];
    for (list, expected) in lists {
        let mut collector = Collector::new(cohort.clone());
        let (sites, adverts) = advertise(&cohort, &drops, 1);
        let (mut shared, envelopes) =
            share(&mut collector, sites, &adverts, (&cohort, &drops)).expect("shares");
        let mine: Vec<Envelope> = envelopes.iter().filter(|e| e.to() == 0).cloned().collect();
        let (site, _) = shared.remove(0).1.mask(&mine, partial(&updates[0], 16)).expect("masked");
        assert_eq!(site.confirm(list).err(), Some(expected), "{list:?}");
    }
}

/// The noise of a securely aggregated sum has the variance and the distribution that were accounted for, with
/// everybody there and with as many gone as may be; and a share left out would be seen.
#[test]
fn aggregated_noise_is_as_accounted_whoever_drops_out() {
    let (n, params, terms) = (6, 30_000, (5_u32, 1_u32));
    let noise = Distributed::new(40, 1.0, terms).expect("valid");
    let cohort = cohort_of(n, terms, 16, params, 1);
    // The discrete Gaussian of this variance in 40 cells, as a chi-square with 39 degrees of freedom.
    let chi_square = |draws: &[i32], variance: f64| {
        let sigma = variance.sqrt();
        let cell = |x: f64| ((x / sigma + 2.5) * 8.0).floor().clamp(0.0, 39.0);
        let (mut found, mut expected) = ([0.0; 40], [0.0; 40]);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to 39")]
        let index = |x: f64| cell(x) as usize;
        draws.iter().for_each(|&d| found[index(f64::from(d))] += 1.0);
        for x in -400..=400 {
            let x = f64::from(x);
            expected[index(x)] += (-x * x / (2.0 * variance)).exp();
        }
        let total: f64 = expected.iter().sum();
        #[expect(clippy::cast_precision_loss, reason = "small counts")]
        let scale = draws.len() as f64 / total;
        found.iter().zip(&expected).map(|(o, e)| (o - e * scale).powi(2) / (e * scale)).sum::<f64>()
    };
    for (drops, there) in [(vec![5; 6], 6_u32), (vec![5, 5, 2, 5, 5, 5], 5)] {
        let mut updates = Vec::new();
        for site in 0..n {
            let mut values = vec![0_i64; params];
            let key = *Digest::of(&[u8::try_from(site).expect("small"), 9]).as_bytes();
            ExactDiscreteGaussian::new(key).add(&mut values, noise.share()).expect("noise");
            updates.push(values.iter().map(|&v| i32::try_from(v).expect("small")).collect());
        }
        let run = run(cohort.clone(), &updates, &drops, 5).expect("a run");
        let sum = run.finish(&drops).expect("a sum");
        // 100 is 6.9 standard deviations of a chi-square with 39 degrees of freedom.
        let as_accounted = chi_square(&sum.values, noise.variance(there));
        assert!(as_accounted < 100.0, "{there} sites: {as_accounted}");
        let one_share_short = chi_square(&sum.values, noise.variance(there - 1));
        assert!(one_share_short > 200.0, "{there} sites: {one_share_short}");
        // Even without the colluder's share at least the whole noise is there.
        assert!(noise.variance(there - terms.1) >= 1_600.0);
    }
}

/// What a coordinator sees of one site beside everything that all the others know: the other sites' secrets,
/// and the shares of this site's that colluders hold. Whatever the site's update is, the masked one is
/// uniform.
#[test]
fn a_lone_sites_update_stays_hidden_from_a_coordinator_with_colluders() {
    let n = 5;
    let params = 20_000;
    let cohort = cohort_of(n, (4, 1), 8, params, 1);
    let drops = ALL.to_vec();
    let uniform = |values: &[u8]| {
        let mut counts = [0.0; 256];
        values.iter().for_each(|&v| counts[usize::from(v)] += 1.0);
        #[expect(clippy::cast_precision_loss, reason = "small counts")]
        let expected = values.len() as f64 / 256.0;
        counts.iter().map(|c: &f64| (c - expected).powi(2) / expected).sum::<f64>()
    };
    for victim in [vec![0; params], vec![127; params]] {
        let mut updates = vec![vec![0; params]; n];
        updates[2] = victim;
        let run = run(cohort.clone(), &updates, &drops, 4).expect("a run");
        let payload = &run.masked[2];
        // Chi-square with 255 degrees of freedom: 360 is five standard deviations.
        assert!(uniform(payload) < 360.0, "{}", uniform(payload));
        // The sums of all, on the other hand, show what they should.
        let sum = run.finish(&drops).expect("a sum");
        assert_eq!(sum.values[0], updates[2][0]);
    }
    // Two rounds of one site with one update have nothing in common.
    let updates = vec![vec![5; params]; n];
    let one = run(cohort, &updates, &drops, 4).expect("a run").masked[2].clone();
    let later = cohort_of(n, (4, 1), 8, params, 2);
    let two = run(later, &updates, &drops, 4).expect("a run").masked[2].clone();
    let apart: Vec<u8> = one.iter().zip(&two).map(|(a, b)| a.wrapping_sub(*b)).collect();
    assert!(uniform(&apart) < 360.0, "{}", uniform(&apart));
}
