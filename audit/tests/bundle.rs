//! A real bundle, made with core's own functions, and every way in which it can be wrong.

#[path = "bundle/attested.rs"]
mod attested;
#[path = "bundle/decided.rs"]
mod decided;
#[path = "bundle/enrolled.rs"]
mod enrolled;
#[path = "bundle/fixture.rs"]
mod fixture;
#[path = "bundle/judged.rs"]
mod judged;
#[path = "bundle/ml_dsa.rs"]
mod ml_dsa;
#[path = "bundle/people.rs"]
mod people;
#[path = "bundle/versions.rs"]
mod versions;

use ed25519_dalek::SigningKey;
use falaj_certs::trust::TrustFile;
use falaj_core::{
    audit::{Actor, Draft, Kind, bundle, policy_set},
    canon::{self, Canon},
    id::{Digest, RoundId, SiteId},
    merkle,
    note::{Checkpoint, NoteSigner},
    succession::Succession,
    witness,
};
use falaj_verify::{Options, Wrong, verify};
use fixture::{
    Parts, SITE, STUDY, by_minutes, parts, parts_of, pinned, policies, report, signer, trust,
};
use std::path::Path;

#[test]
fn a_whole_bundle_is_verified_and_counted() {
    let report = parts(|_| {}).verify().expect("verified");
    assert_eq!((report.tree_size, report.models, report.updates), (5, 1, 1));
    assert!(report.key_pinned);
}

#[test]
fn a_changed_byte_anywhere_is_found() {
    for beginning in [
        bundle::CHECKPOINT,
        bundle::ISSUERS,
        bundle::TRUST,
        "certificates/",
        "policies/",
        "studies/",
        "updates/",
        bundle::TILES,
        bundle::ENTRIES,
        bundle::REPORT,
    ] {
        let whole = parts(|_| {}).file(beginning).len();
        for at in (0..whole).step_by(1 + whole / 40) {
            let mut changed = parts(|_| {});
            changed.file(beginning)[at] ^= 1;
            assert!(changed.verify().is_err(), "{beginning} at {at}");
        }
    }
}

#[test]
fn a_changed_entry_is_named_by_its_index() {
    let mut changed = parts(|_| {});
    let entries = changed.file(bundle::ENTRIES);
    let needle = b"\"kind\":\"round.opened\"";
    let at = entries.windows(needle.len()).position(|w| w == needle).expect("there");
    entries[at + 10] ^= 1;
    let wrong = changed.verify().expect_err("changed");
    assert!(matches!(wrong, Wrong::Entry { index: 2, .. }), "{wrong}");
    assert!(wrong.to_string().starts_with("entry 2 is wrong"), "{wrong}");
}

#[test]
fn another_log_s_key_opens_nothing() {
    let bundle = parts(|_| {});
    let stranger = NoteSigner::new("t/log", SigningKey::from_bytes(&[6; 32])).expect("a signer");
    let wrong = verify(&bundle.tar()[..], pinned(stranger.verifier()), |_, _| {});
    assert!(matches!(wrong, Err(Wrong::Checkpoint(_))));
}

#[test]
fn a_bundle_that_is_cut_short_is_not_verified() {
    let whole = parts(|_| {}).tar();
    for cut in (0..whole.len() - 1024).step_by(997) {
        assert!(verify(&whole[..cut], Options::default(), |_, _| {}).is_err(), "cut at {cut}");
    }
}

#[test]
fn a_huge_declared_size_is_refused_without_being_believed() {
    let mut header = tar::Header::new_ustar();
    header.set_path(bundle::ABOUT).expect("a path");
    header.set_size(1 << 40);
    header.set_cksum();
    assert!(verify(&header.as_bytes()[..], Options::default(), |_, _| {}).is_err());
}

#[test]
fn a_model_that_does_not_follow_from_its_updates_is_named() {
    let other = Digest::of(b"never sent");
    let round = RoundId { study: "s".parse().expect("a study"), number: 1 };
    let publish = |base: &[u8], updates: &[Digest]| {
        Draft::new(Kind::ModelPublished)
            .round(&round)
            .digest("base_sha256", &Digest::of(base))
            .digest("model_sha256", &Digest::of(b"model"))
            .digests("updates", updates)
    };
    for last in [
        publish(b"base", &[other]),
        publish(b"base", &[]),
        publish(b"another base", &[Digest::of(b"payload")]),
    ] {
        let wrong = parts(|drafts| drafts[4] = last).verify().expect_err("it does not follow");
        assert!(matches!(wrong, Wrong::Content { index: 4, .. }), "{wrong}");
    }
}

#[test]
fn an_update_counted_twice_or_without_a_signed_header_is_named() {
    let twice = parts(|drafts| drafts.insert(4, drafts[3].clone())).verify();
    assert!(matches!(twice, Err(Wrong::Content { index: 4, .. })));
    let unsigned = parts(|drafts| {
        drafts[3] = drafts[3].clone().digest("header_sha256", &Digest::of(b"no header"));
    });
    assert!(matches!(unsigned.verify(), Err(Wrong::Content { index: 3, .. })));
    let stranger = parts(|drafts| drafts[3] = drafts[3].clone().actor(&Actor::default())).verify();
    assert!(matches!(stranger, Err(Wrong::Content { index: 3, .. })));
}

/// Who vouches for whom is in the log, and an auditor need not believe the coordinator about it.
#[test]
fn a_site_for_which_nobody_trusted_vouches_counts_for_nothing() {
    let file = |text: &str| TrustFile::parse(Path::new("trust.toml"), text).expect("a file");
    let with = |bundle: &Parts, trust: &TrustFile| {
        let options = Options { trust: Some(trust), ..pinned(&bundle.key) };
        verify(&bundle.tar()[..], options, |_, _| {})
    };
    let bundle = parts(|_| {});
    let report = with(&bundle, &file(&trust(&bundle.spki, "ae-on/ae-az"))).expect("verified");
    assert!(report.issuers_pinned);
    let strangers = [
        trust(&Digest::of(b"another key"), "ae-on/ae-az"),
        trust(&bundle.spki, "ae-on/ae-du"),
        trust(&bundle.spki, "ae-on/ae-az").replace("\"t\"", "\"another\""),
    ];
    for text in strangers {
        let wrong = with(&bundle, &file(&text)).expect_err("not vouched for").to_string();
        assert!(wrong.contains("it is no signature by a certificate of"), "{wrong}");
    }
    // The coordinator's own trust binds the issuer to another place.
    let mut moved = parts(|_| {});
    let elsewhere = trust(&moved.spki, "ae-on/ae-du").into_bytes();
    let at = moved.files.iter().position(|(path, _)| path.starts_with(bundle::TRUST));
    moved.files[at.expect("there")] = (bundle::trust(&Digest::of(&elsewhere)), elsewhere);
    let wrong = moved.verify().expect_err("not vouched for").to_string();
    assert!(wrong.contains("it is no signature by a certificate of"), "{wrong}");
    // Under the trust that the log names, nobody was let in yet.
    let before = parts(|drafts| drafts[0] = Draft::new(Kind::LogOpened)).verify();
    let wrong = before.expect_err("no trust").to_string();
    assert!(wrong.contains("no issuer that the coordinator trusted then vouches"), "{wrong}");
}

#[test]
fn a_connection_by_a_certificate_that_had_expired_is_named() {
    // The entries here are of 1970, and certificates begin in 1975.
    let bundle = parts(|drafts| drafts.push(drafts[3].clone().into_kind(Kind::ConnectionAdmitted)));
    let wrong = bundle.verify().expect_err("not valid then");
    assert!(matches!(wrong, Wrong::Content { index: 5, .. }), "{wrong}");
    assert!(wrong.to_string().contains("is valid from 1975"), "{wrong}");
}

/// A checkpoint of the first entries, as `root` has it, with this site's cosignature.
fn witnessed(parts: &Parts, size: usize, root: Digest) -> String {
    let head = Checkpoint { origin: "t/log".into(), tree_size: size as u64, root_hash: root };
    let site: SiteId = SITE.parse().expect("a site");
    let name = witness::name_of_party(site.spiffe());
    let line = witness::cosign(&name, &parts.site, 1_700_000_000, &head).expect("a line");
    signer().sign(&head.body()).expect("signs") + &line
}

#[test]
fn witnesses_are_named_and_what_they_saw_is_held_against_the_tree() {
    let with = |size: usize, change: &dyn Fn(&Parts, String) -> String| {
        let mut bundle = parts(|_| {});
        let root = *bundle.roots.get(size - 1).unwrap_or(&bundle.roots[0]);
        let note = change(&bundle, witnessed(&bundle, size, root));
        let witnessed = report(&bundle.files, bundle.roots[4], Some(size as u64));
        *bundle.file(bundle::REPORT) = witnessed;
        let before_entries = bundle.files.len() - 3;
        bundle.files.insert(before_entries, (bundle::witnessed(size as u64), note.into_bytes()));
        bundle.verify()
    };
    for size in 1..=5 {
        let report = with(size, &|_, note| note).expect("verified");
        let [one] = &report.witnesses[..] else { panic!("{:?}", report.witnesses) };
        assert_eq!((one.witness.as_str(), one.tree_size), (SITE, size as u64));
        assert_eq!(one.time, "2023-11-14T22:13:20.000Z");
    }
    let wrong = with(3, &|bundle, _| witnessed(bundle, 3, bundle.roots[0])).expect_err("a fork");
    assert!(matches!(wrong, Wrong::Root { size: 3, .. }), "{wrong}");
    let more = with(6, &|_, note| note).expect_err("beyond the bundle");
    assert!(more.to_string().contains("more entries than the bundle has"), "{more}");
    // The cosignature of another size, moved under this checkpoint.
    let moved = with(3, &|bundle, note| {
        let (own, _) = note.trim_end().rsplit_once('\n').expect("lines");
        let other = witnessed(bundle, 4, bundle.roots[3]);
        let line = other.trim_end().rsplit_once('\n').expect("lines").1;
        format!("{own}\n{line}\n")
    });
    assert!(moved.expect_err("moved").to_string().contains("does not verify"));
}

#[test]
fn a_study_is_as_its_file_says() {
    let told = |mechanism: &str| {
        parts(|drafts| drafts[1] = drafts[1].clone().text("mechanism", mechanism)).verify()
    };
    told("dp_sgd").expect("verified");
    let wrong = told("none").expect_err("refused").to_string();
    assert!(wrong.contains("entry 1") && wrong.contains("`dp_sgd`"), "{wrong}");
}

#[test]
fn a_model_is_made_by_the_rule_that_its_study_asks_for() {
    let asking = STUDY.replace("min_sites: 1", "min_sites: 1, weights: uniform")
        + "aggregation: { rule: norm_bounded, clip_norm: 1.0 }\n";
    let made_by = |study: &str, rule: Option<&str>| {
        let told = |drafts: &mut Vec<Draft>| {
            if let Some(rule) = rule {
                drafts[4] = drafts[4].clone().text("rule", rule);
            }
        };
        parts_of(study, told).verify()
    };
    made_by(&asking, Some("norm_bounded")).expect("verified");
    made_by(STUDY, None).expect("verified");
    for (study, rule, told, wanted) in [
        (&*asking, None, "`mean`", "`norm_bounded`"),
        (&*asking, Some("median"), "`median`", "`norm_bounded`"),
        (STUDY, Some("median"), "`median`", "`mean`"),
    ] {
        let wrong = made_by(study, rule).expect_err("another rule").to_string();
        assert!(wrong.contains("entry 4") && wrong.contains(told), "{wrong}");
        assert!(wrong.contains(wanted), "{wrong}");
    }
}

#[test]
fn an_outcome_tells_of_an_access_and_only_once() {
    let with = |told: &[(u64, &str)]| {
        let outcome = |(intent, served): &(u64, &str)| {
            Draft::new(Kind::AccessServed).count("intent", *intent).text("served", served)
        };
        by_minutes(|drafts, cast| {
            let exports = ["ACC-207"];
            drafts.push(cast.reads());
            drafts.push(cast.may(Kind::LogExported, &cast.operator, "log.export", &exports));
            drafts.extend(told.iter().map(outcome));
        })
        .verify()
    };
    with(&[(5, "model.read"), (6, "log.exported")]).expect("verified");
    for told in [
        [(5, "model.read"), (5, "model.read")],
        [(5, "log.exported"), (6, "log.exported")],
        [(4, "model.published"), (6, "log.exported")],
        [(99, "model.read"), (6, "log.exported")],
    ] {
        let wrong = with(&told).expect_err("refused").to_string();
        assert!(wrong.contains("without an outcome"), "{told:?}: {wrong}");
    }
}

#[test]
fn a_model_before_enough_witnesses_stood_behind_its_round_is_named() {
    let wanting = format!("{STUDY}governance: {{ witnesses: {{ quorum: 1 }} }}\n");
    // What the entry says, and how many entries the cosignature in the bundle is of.
    let with = |said: Option<&str>, cosigned: Option<usize>| {
        let mut bundle = parts_of(&wanting, |drafts| {
            let published = drafts.pop().expect("the model");
            let line = said.map(str::to_owned);
            drafts.push(if said.is_some() {
                published.texts("witnesses", line)
            } else {
                published
            });
        });
        if let Some(size) = cosigned {
            let note = witnessed(&bundle, size, bundle.roots[size - 1]);
            let seen = report(&bundle.files, bundle.roots[4], Some(size as u64));
            *bundle.file(bundle::REPORT) = seen;
            let at = bundle.files.len() - 3;
            bundle.files.insert(at, (bundle::witnessed(size as u64), note.into_bytes()));
        }
        bundle.verify()
    };
    let named = "t/ae-on/ae-az/site/h-1";
    let model = with(Some(&format!("4 {named}")), Some(4)).expect("verified");
    assert_eq!(model.models, 1);
    with(Some(&format!("4 {named}")), Some(5)).expect("verified: it has seen more since");
    for (said, cosigned, why) in [
        (None, Some(4), "0 witnesses stood behind round s/1"),
        (Some(format!("3 {named}")), Some(4), "0 witnesses stood behind"),
        (Some(format!("5 {named}")), Some(5), "0 witnesses stood behind"),
        (Some(format!("4 {named}")), Some(3), "no cosignature in the bundle shows so much"),
        (Some(format!("4 {named}")), None, "no cosignature in the bundle"),
        (Some("4 t/ae-on/ae-az/site/other".into()), Some(4), "no cosignature in the bundle"),
        (Some(named.to_owned()), Some(4), "is no witness"),
    ] {
        let wrong = with(said.as_deref(), cosigned).expect_err("refused").to_string();
        assert!(wrong.contains(why) && wrong.contains("entry 4"), "{said:?}: {wrong}");
    }
}

#[test]
fn static_files_have_a_checkpoint_only_while_the_bundle_holds() {
    let folder = tempfile::tempdir().expect("a folder");
    let laid_out = |bundle: &Parts| {
        let options = Options { tiles: Some(folder.path()), ..pinned(&bundle.key) };
        verify(&bundle.tar()[..], options, |_, _| {})
    };
    let mut bundle = parts(|_| {});
    laid_out(&bundle).expect("verified");
    for path in
        [bundle::CHECKPOINT.to_owned(), merkle::tile_path(0, 0, 5), merkle::entries_path(0, 5)]
    {
        let written = std::fs::read(folder.path().join(&path)).expect("a file");
        assert_eq!(&written, bundle.file(&path), "{path}");
    }
    bundle.file(bundle::ENTRIES)[40] ^= 1;
    laid_out(&bundle).expect_err("changed");
    assert!(!folder.path().join(bundle::CHECKPOINT).exists());
}

/// Signers of this log before, and of the shard before it.
fn earlier() -> (NoteSigner, NoteSigner) {
    let signer = |origin, seed| NoteSigner::new(origin, SigningKey::from_bytes(&[seed; 32]));
    (signer("t/log", 4).expect("a signer"), signer("t/log/before", 3).expect("a signer"))
}

/// The last checkpoint of the shard before, and where that is.
fn ended() -> (Checkpoint, String) {
    let head = Checkpoint {
        origin: "t/log/before".into(),
        tree_size: 9,
        root_hash: Digest::of(b"the shard before"),
    };
    let note = earlier().1.sign(&head.body()).expect("signs");
    (head, note)
}

/// A log that goes on from another shard, and whose key was then replaced: the statements, and its entries.
fn continued() -> (Vec<String>, Draft, Draft) {
    let (old, before) = earlier();
    let (head, note) = ended();
    let opening = Succession::sign(&before, &old, Some(&head)).expect("signs");
    let rotation = Succession::sign(&old, &signer(), None).expect("signs");
    let opened = Draft::new(Kind::LogOpened).text("checkpoint", &note).text("succession", &opening);
    let rotated = Draft::new(Kind::KeyRotated).text("succession", &rotation);
    (vec![opening, rotation], opened, rotated)
}

impl Parts {
    /// The same bundle, which says of itself who followed whom.
    fn saying(mut self, successions: &[String]) -> Self {
        let about = canon::parse(self.file(bundle::ABOUT)).expect("canonical");
        let Canon::Map(mut members) = about else { panic!("a map") };
        let list = successions.iter().map(|text| text.as_str().into()).collect();
        members.insert("successions".into(), Canon::List(list));
        *self.file(bundle::ABOUT) = Canon::Map(members).to_bytes();
        self
    }
}

/// AUD-11.
#[test]
fn whoever_knows_the_first_key_alone_follows_it_through_shards_and_keys() {
    let (statements, opened, rotated) = continued();
    let bundle = parts(|drafts| {
        drafts.insert(0, opened);
        drafts.insert(2, rotated);
    })
    .saying(&statements);
    let (old, before) = earlier();
    for (known, steps) in [(&signer(), 0), (&old, 1), (&before, 2)] {
        let known = known.verifier();
        let report = verify(&bundle.tar()[..], pinned(known), |_, _| {}).expect("verified");
        assert_eq!((report.successions, report.log_verifier_key), (steps, bundle.key.to_string()));
        let goes_on = report.before.expect("a shard before");
        assert_eq!((goes_on.origin.as_str(), goes_on.tree_size), ("t/log/before", 9));
    }
    let stranger = NoteSigner::new("t/log", SigningKey::from_bytes(&[7; 32])).expect("a signer");
    let wrong = verify(&bundle.tar()[..], pinned(stranger.verifier()), |_, _| {});
    assert!(wrong.is_err_and(|e| e.to_string().contains("no statement leads from")));
}

#[test]
fn what_a_bundle_says_of_its_keys_has_to_be_in_the_log_and_the_log_in_it() {
    let (statements, opened, rotated) = continued();
    let with = |drafts: &[Option<&Draft>; 2]| {
        let [opened, rotated] = drafts.map(Option::<&Draft>::cloned);
        parts(|drafts| {
            drafts.splice(1..1, rotated);
            drafts.splice(0..0, opened);
        })
    };
    let both = [Some(&opened), Some(&rotated)];
    let (_, note) = ended();
    let elsewhere = Checkpoint { tree_size: 8, ..ended().0 };
    let elsewhere = earlier().1.sign(&elsewhere.body()).expect("signs");
    let other_end = Draft::new(Kind::LogOpened)
        .text("checkpoint", &elsewhere)
        .text("succession", &statements[0]);
    let unsaid = Draft::new(Kind::LogOpened).text("checkpoint", &note);
    let closed = Draft::new(Kind::LogClosed).text("next", "t/log/after");
    for (bundle, what) in [
        (with(&both), "it does not open the log as"),
        (with(&both).saying(&statements[..1]), "it does not open the log as"),
        (with(&both).saying(&statements[1..]), "it does not open the log as"),
        (with(&[Some(&opened), None]).saying(&statements), "that is in no entry"),
        (with(&[None, Some(&rotated)]).saying(&statements), "where the log goes on from"),
        (with(&[Some(&other_end), both[1]]).saying(&statements), "ended elsewhere"),
        (with(&[Some(&unsaid), both[1]]).saying(&statements), "it does not open the log as"),
        (with(&[Some(&opened), Some(&closed)]).saying(&statements), "after the log was closed"),
        (with(&both).saying(&[statements[0].clone(), "no note".into()]), "not a signed note"),
    ] {
        let wrong = bundle.verify().expect_err(what).to_string();
        assert!(wrong.contains(what), "{what}: {wrong}");
    }
}

#[test]
fn an_approval_that_nobody_gave_is_named() {
    let lying = parts(|drafts| {
        let sent = drafts.iter().find(|draft| draft.kind() == Kind::UpdateAccepted);
        let read = sent.expect("an update").clone().into_kind(Kind::ModelRead);
        let read = read
            .text("action", "model.read")
            .decided(true, &["ACC-101".to_owned()], &policy_set(&policies()))
            .texts("approvals", ["00".repeat(16)]);
        drafts.push(read);
    });
    let wrong = lying.verify().expect_err("nobody gave it").to_string();
    assert!(wrong.starts_with("entry 5 is wrong") && wrong.contains("nobody gave"), "{wrong}");
}

/// A bundle whose model names these witnesses, and the site's cosignature of so many entries.
fn naming(quorum: u32, said: &[&str], cosigned: usize) -> Parts {
    naming_in(STUDY, quorum, said, cosigned)
}

/// As [`naming`], of another study.
fn naming_in(study: &str, quorum: u32, said: &[&str], cosigned: usize) -> Parts {
    let wanting = format!("{study}governance: {{ witnesses: {{ quorum: {quorum} }} }}\n");
    let mut bundle = parts_of(&wanting, |drafts| {
        let published = drafts.pop().expect("the model");
        drafts.push(published.texts("witnesses", said.iter().map(|s| (*s).to_owned())));
    });
    let note = witnessed(&bundle, cosigned, bundle.roots[cosigned - 1]);
    *bundle.file(bundle::REPORT) = report(&bundle.files, bundle.roots[4], Some(cosigned as u64));
    let at = bundle.files.len() - 3;
    bundle.files.insert(at, (bundle::witnessed(cosigned as u64), note.into_bytes()));
    bundle
}

#[test]
fn a_site_that_the_study_does_not_admit_is_no_witness_behind_its_rounds() {
    let other = STUDY.replace("min_sites: 1", "sites: [h-2], min_sites: 1");
    let said = ["4 t/ae-on/ae-az/site/h-1"];
    naming_in(STUDY, 1, &said, 4).verify().expect("verified");
    let wrong = naming_in(&other, 1, &said, 4).verify().expect_err("not of the study").to_string();
    assert!(wrong.contains("0 witnesses stood behind round s/1"), "{wrong}");
}

#[test]
fn one_site_under_two_spellings_is_one_witness() {
    let said = ["4 t/ae-on/ae-az/site/h-1", "4 spiffe://t/ae-on/ae-az/site/h-1"];
    assert!(naming(2, &said, 4).verify().is_err(), "one site made a quorum of two");
}

#[test]
fn one_site_at_two_sizes_is_one_witness() {
    let said = ["4 t/ae-on/ae-az/site/h-1", "04 t/ae-on/ae-az/site/h-1"];
    assert!(naming(2, &said, 4).verify().is_err(), "one site made a quorum of two");
}

#[test]
fn another_file_of_the_same_name_does_not_lower_the_quorum() {
    let mut bundle = naming(2, &["4 t/ae-on/ae-az/site/h-1"], 4);
    assert!(bundle.verify().is_err());
    let other = format!("{STUDY}governance: {{ witnesses: {{ quorum: 1 }} }}\n").into_bytes();
    let at = 1 + bundle.files.iter().position(|(p, _)| p.starts_with("studies/")).expect("one");
    bundle.files.insert(at, (bundle::study(&Digest::of(&other)), other));
    let root = bundle.roots[4];
    *bundle.file(bundle::REPORT) = report(&bundle.files, root, Some(4));
    assert!(bundle.verify().is_err(), "an unsubmitted file lowered the quorum");
}
