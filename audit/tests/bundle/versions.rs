//! Versions in a bundle: their moves are made again, and what was signed of one follows from the entries.

use super::fixture::{Cast, Parts, STUDY, parts, permitted, pinned, policies, signer};
use falaj_core::{
    audit::{Actor, Draft, Entry, Kind, bundle, person::Person, policy_set},
    canon::{self, Canon},
    id::{Digest, RoundId},
    merkle::{self, Hashes, inclusion_proof, node_hash},
    note::{Checkpoint, NoteSigner},
    registry::{
        dsse::Envelope,
        lineage::Lineage,
        provenance::{About, PAYLOAD_TYPE, Provenance},
    },
    roles::Roles,
    witness::InclusionProof,
};
use falaj_proto::study;
use falaj_verify::{Options, Report, Wrong, verify};
use std::convert::Infallible;

pub(crate) fn digest(what: &str) -> Digest {
    Digest::of(what.as_bytes())
}

/// The study makes a version of itself.
pub(crate) fn made() -> Draft {
    let round = RoundId { study: "s".parse().expect("a study"), number: 1 };
    Draft::new(Kind::VersionMade)
        .round(&round)
        .count("version", 1)
        .digest("model_sha256", &digest("model"))
        .digest("manifest_sha256", &digest("manifest"))
        .digest("safetensors_sha256", &digest("file"))
}

/// The operator does something with it, which these rules permit.
fn moved(cast: &Cast, kind: Kind, action: &str, rules: &[&str]) -> Draft {
    let draft = cast.may(kind, &cast.operator, action, rules).study(&"s".parse().expect("a study"));
    draft.count("version", 1).digest("model_sha256", &digest("model"))
}

fn promoted(cast: &Cast, stage: &str) -> Draft {
    moved(cast, Kind::VersionPromoted, "version.promote", &["ACC-213"]).text("stage", stage)
}

/// What is wrong with a bundle that has these entries behind the usual ones.
fn wrong(more: impl FnOnce(&Cast) -> Vec<Draft>) -> String {
    let parts = super::fixture::by_minutes(|drafts, cast| drafts.extend(more(cast)));
    parts.wrong().1
}

#[test]
fn the_moves_of_a_version_are_made_again() {
    let whole = super::fixture::by_minutes(|drafts, cast| {
        drafts.push(made());
        drafts.push(promoted(cast, "staging"));
        let revoked = moved(cast, Kind::VersionRevoked, "version.revoke", &["ACC-215"]);
        drafts.push(revoked.text("reason", "consent was withdrawn"));
    });
    let report = whole.verify().expect("verified");
    assert_eq!(report.tree_size, 8);
    let no_model = made().digest("model_sha256", &digest("other"));
    assert!(wrong(|_| vec![no_model]).contains("its `model_sha256` is"));
    assert!(wrong(|_| vec![made(), made()]).contains("is version 1 already"));
    let unmade = wrong(|cast| vec![promoted(cast, "staging")]);
    assert!(unmade.contains("has no version 1"), "{unmade}");
    let twice = wrong(|cast| vec![made(), promoted(cast, "staging"), promoted(cast, "staging")]);
    assert!(twice.contains("version 1 is `staging`"), "{twice}");
}

/// A bundle of the usual round, of a study which asks this of versions that are promoted, with these entries behind it.
fn gated(gate: &str, more: impl FnOnce(&Cast) -> Vec<Draft>) -> Parts {
    let study = format!("{STUDY}gates: [{{ {gate}, when: promotion }}]\n");
    super::fixture::by_minutes_of(&study, |drafts, cast| {
        let published = drafts.last_mut().expect("a model");
        *published = published.clone().count("attempt", 0);
        drafts.push(made());
        drafts.extend(more(cast));
    })
}

/// The operator puts it into staging, for gates say this of it.
fn staged(line: &'static str) -> impl FnOnce(&Cast) -> Vec<Draft> {
    move |cast| vec![promoted(cast, "staging").texts("gates", [line.to_owned()])]
}

/// The operator would put it into staging, and is told that a gate keeps it from there.
fn kept_from(cast: &Cast, line: &str) -> Draft {
    let draft = cast.may(Kind::AdminRead, &cast.operator, "version.promote", &["ACC-213"]);
    let draft = draft.study(&"s".parse().expect("a study")).count("version", 1);
    draft.text("stage", "staging").texts("gates", [line.to_owned()])
}

#[test]
fn what_gates_say_of_a_promotion_follows_from_what_was_accepted() {
    let (few, many) = ("metric: examples, at_least: 5", "metric: examples, at_least: 50");
    let (pass, fail) =
        ("pass: examples: 10, at least 5 needed", "fail: examples: 10, at least 50 needed");
    gated(few, staged(pass)).verify().expect("verified");
    gated(many, |cast| vec![kept_from(cast, fail)]).verify().expect("verified");
    // A version that is put away is asked nothing.
    let archived = gated(few, |cast| {
        let archived = promoted(cast, "archived");
        staged(pass)(cast).into_iter().chain([archived]).collect()
    });
    archived.verify().expect("verified");
    for (bundle, said) in [
        (gated(few, |cast| vec![promoted(cast, "staging")]), "`gates` of version 1 says `nothing`"),
        (gated(few, staged("pass: examples: 90, at least 5 needed")), "it is `pass: examples: 10,"),
        (gated(many, staged(fail)), "goes on to `staging`, and fails a gate of its study"),
        (
            gated(many, staged("pass: examples: 10, at least 50 needed")),
            "goes on to `staging`, and fails a gate of its study",
        ),
        (gated(few, |cast| vec![kept_from(cast, pass)]), "and it passes every one that is asked"),
        (
            gated(many, |cast| vec![kept_from(cast, "fail: examples: 1, at least 50 needed")]),
            "it is `fail: examples: 10, at least 50 needed`",
        ),
        (
            super::fixture::by_minutes(|drafts, cast| {
                drafts.push(made());
                drafts.extend(staged(pass)(cast));
            }),
            "it is `nothing`",
        ),
    ] {
        let (_, wrong) = bundle.wrong();
        assert!(wrong.contains(said), "{said}: {wrong}");
    }
}

/// A bundle of the usual round, of a study with this gate, in which this comes where its model was published.
fn judged(gate: &str, then: impl FnOnce(&Cast, Draft) -> Vec<Draft>) -> Parts {
    let study = format!("{STUDY}gates: [{{ {gate} }}]\n");
    super::fixture::by_minutes_of(&study, |drafts, cast| {
        let published = drafts.pop().expect("a model").count("attempt", 0);
        drafts.extend(then(cast, published));
    })
}

fn about(draft: Draft) -> Draft {
    let round = RoundId { study: "s".parse().expect("a study"), number: 1 };
    draft.round(&round).count("attempt", 0).digest("model_sha256", &digest("model"))
}

/// The candidate waits for people, for gates say this of it.
fn held(line: &str) -> Draft {
    let draft = about(Draft::new(Kind::CandidateHeld)).texts("gates", [line.to_owned()]);
    draft.text("until", "2099-01-01T00:00:00.000Z")
}

#[test]
fn a_candidate_that_waits_for_people_failed_gates_that_ask_and_does_not_become_a_model_by_itself() {
    let asks = "metric: examples, at_least: 50, on_failure: ask";
    let fail = "fail: examples: 10, at least 50 needed";
    let rejected = || about(Draft::new(Kind::ModelRejected)).text("reason", "forgotten");
    let approved = |cast: &Cast| {
        about(cast.may(Kind::CandidateApproved, &cast.operator, "approval.give", &["ACC-211"]))
    };
    judged(asks, |_, _| vec![held(fail), rejected()]).verify().expect("verified");
    let failed = |draft: Draft| draft.texts("gates", [fail.to_owned()]);
    for (bundle, said) in [
        (judged(asks, |_, model| vec![failed(model)]), "fails a gate of its study"),
        (judged(asks, |_, model| vec![held(fail), failed(model)]), "fails a gate of its study"),
        // Whom nobody can name has approved nothing.
        (judged(asks, |cast, _| vec![held(fail), approved(cast)]), "names nobody who approves"),
        (judged(asks, |cast, _| vec![approved(cast)]), "waits for people"),
        (judged(asks, |cast, _| vec![held(fail), rejected(), approved(cast)]), "waits for people"),
        (
            judged("metric: examples, at_least: 50", |_, _| vec![held(fail)]),
            "gates do not ask them",
        ),
        (
            judged("metric: examples, at_least: 5, on_failure: ask", |_, _| {
                vec![held("pass: examples: 10, at least 5 needed")]
            }),
            "gates do not ask them",
        ),
        (
            judged(asks, |_, _| vec![held("fail: examples: 49, at least 50 needed")]),
            "it is `fail: examples: 10",
        ),
    ] {
        let (_, wrong) = bundle.wrong();
        assert!(wrong.contains(said), "{said}: {wrong}");
    }
}

/// Who submitted a study, and two who approve its candidate.
const OMAR: Person = Person([1; 16]);
const LINA: Person = Person([2; 16]);
const NOOR: Person = Person([3; 16]);

/// A person, of whom nothing else is known.
fn by(person: Person) -> Actor {
    Actor { person: Some(person), roles: Roles::ALL, ..Actor::default() }
}

fn approved(who: Person) -> Draft {
    let draft = Draft::new(Kind::CandidateApproved).actor(&by(who));
    about(permitted(draft.text("action", "approval.give"), &["ACC-211"]))
}

fn erased(who: Person) -> Draft {
    Draft::new(Kind::ErasurePerformed).person(who).text("article", "Article 15")
}

/// A bundle of a study of Omar's whose candidate waits for people, and is published after these entries. Nobody in it is disclosed, for
/// in the end all were erased.
fn let_through(people: impl FnOnce(&Cast) -> Vec<Draft>) -> Parts {
    let asks = "metric: examples, at_least: 50, on_failure: ask";
    let fail = "fail: examples: 10, at least 50 needed";
    let study = format!("{STUDY}gates: [{{ {asks} }}]\n");
    super::fixture::by_minutes_of(&study, |drafts, cast| {
        drafts[1] = drafts[1].clone().actor(&by(OMAR));
        let published = drafts.pop().expect("a model").count("attempt", 0);
        drafts.push(held(fail));
        drafts.extend(people(cast));
        drafts.push(published.texts("gates", [fail.to_owned()]));
        drafts.extend([OMAR, LINA, NOOR].map(erased));
        for (seq, draft) in drafts.iter_mut().enumerate() {
            draft.commit_to_person(seq as u64, [seq.to_le_bytes()[0]; 32]);
        }
    })
}

#[test]
fn a_candidate_becomes_a_model_by_two_people_who_are_heard_and_did_not_submit_the_study() {
    let two = let_through(|_| vec![approved(LINA), approved(NOOR)]);
    assert_eq!(two.verify().expect("verified").models, 1);
    let of_lina = |cast: &Cast, kind| {
        cast.may(kind, &cast.operator, "site.revoke", &["ACC-204"]).person(LINA)
    };
    let revoked = |cast: &Cast| of_lina(cast, Kind::CertificateRevoked);
    let few = "fails a gate of its study: examples: 10";
    let lacks = |why: &str| format!("1 person has approved it, and 2 are needed{why}");
    for (bundle, said) in [
        (let_through(|_| vec![approved(LINA)]), lacks("")),
        (
            let_through(|_| vec![approved(LINA), approved(LINA)]),
            lacks(&format!("; person {LINA} approved it twice, which counts once")),
        ),
        (
            let_through(|cast| vec![approved(LINA), revoked(cast), approved(NOOR)]),
            lacks(&format!("; person {LINA} was revoked before")),
        ),
        (
            let_through(|_| vec![approved(LINA), erased(LINA), approved(NOOR)]),
            lacks(&format!("; person {LINA} was erased before")),
        ),
    ] {
        let (_, wrong) = bundle.wrong();
        assert!(wrong.contains(few) && wrong.ends_with(&said), "{said}: {wrong}");
    }
    let (index, own) = let_through(|_| vec![approved(LINA), approved(OMAR)]).wrong();
    assert_eq!(index, 6, "{own}");
    assert!(own.contains("whoever submitted the study approves the candidate"), "{own}");
    // Whoever comes back and approves it again counts.
    let back = |cast: &Cast| {
        let reinstated = of_lina(cast, Kind::CertificateReinstated);
        vec![approved(LINA), revoked(cast), approved(NOOR), reinstated, approved(LINA)]
    };
    assert_eq!(let_through(back).verify().expect("verified").models, 1);
}

#[test]
fn a_move_that_policy_did_not_allow_is_found() {
    // Nobody puts a version into production alone, whatever an entry says.
    let alone = wrong(|cast| vec![made(), promoted(cast, "staging"), promoted(cast, "production")]);
    assert!(alone.contains("they decide `deny` by [APR-002]"), "{alone}");
    let bare = |cast: &Cast| {
        let draft = Draft::new(Kind::VersionRevoked).actor(&cast.operator);
        let draft = draft.study(&"s".parse().expect("a study")).count("version", 1);
        vec![made(), draft.digest("model_sha256", &digest("model"))]
    };
    let bare = wrong(bare);
    assert!(bare.contains("policy decides on version.revoke"), "{bare}");
    let by_hand = wrong(|cast| vec![made().actor(&cast.operator)]);
    assert!(by_hand.contains("does not say that anybody might ask for it"), "{by_hand}");
    let else_ = wrong(|cast| {
        vec![permitted(made().actor(&cast.operator).text("action", "version.promote"), &[])]
    });
    assert!(else_.contains("version.made"), "{else_}");
}

/// The leaves of a small tree.
struct Leaves(Vec<Digest>);

impl Hashes for Leaves {
    type Error = Infallible;

    fn subtree(&self, level: u32, index: u64) -> Result<Digest, Infallible> {
        if level == 0 {
            return Ok(self.0[usize::try_from(index).expect("small")]);
        }
        let half = |n| self.subtree(level - 1, 2 * index + n);
        Ok(node_hash(&half(0)?, &half(1)?))
    }
}

/// A bundle with a version, and what there is to sign of it.
fn signed() -> (Parts, Provenance) {
    let mut bundle = parts(|drafts| drafts.push(made()));
    let entries = bundle.file(bundle::ENTRIES).clone();
    let entries: Vec<&[u8]> = merkle::entries(&entries).map(|e| e.expect("whole")).collect();
    let mut lineage = Lineage::default();
    for bytes in &entries {
        lineage.take(&Entry::parse(bytes).expect("an entry")).expect("taken");
    }
    let leaves = Leaves(entries.iter().map(|bytes| merkle::leaf_hash(bytes)).collect());
    let (index, size) = (5, 6);
    let Ok(hashes) = inclusion_proof(&leaves, index, size);
    let root_hash = *bundle.roots.last().expect("a root");
    let head = Checkpoint { origin: "t/log".into(), tree_size: size, root_hash };
    let note = signer().sign(&head.body()).expect("signs");
    let proof = InclusionProof { index, hashes, note }.to_text();
    let about = About::of(&study::parse(STUDY, "s").expect("a study"));
    let study = "s".parse().expect("a study");
    let provenance = lineage.provenance(&study, 1, about, "t/log", proof).expect("a version");
    (bundle, provenance)
}

fn check(bundle: &Parts, envelope: &Envelope) -> Result<Report, Wrong> {
    let provenances = [envelope.to_json()];
    let options = Options { provenances: &provenances, ..pinned(&bundle.key) };
    verify(&bundle.tar()[..], options, |_, _| {})
}

fn refused(bundle: &Parts, envelope: &Envelope) -> String {
    let wrong = check(bundle, envelope).expect_err("refused");
    assert!(matches!(wrong, Wrong::Provenance { .. }), "{wrong}");
    wrong.to_string()
}

#[test]
fn what_was_signed_of_a_version_follows_from_the_entries() {
    let (bundle, provenance) = signed();
    let envelope = provenance.sign(&signer()).expect("signed");
    let report = check(&bundle, &envelope).expect("verified");
    let version = &report.versions[0];
    assert_eq!((version.study.as_str(), version.version, version.updates), ("s", 1, 1));
    assert_eq!((version.stage.as_str(), version.index), ("candidate", 5));
    let stranger = ed25519_dalek::SigningKey::from_bytes(&[6; 32]);
    let stranger = NoteSigner::new("t/other", stranger).expect("a signer");
    let other = refused(&bundle, &provenance.sign(&stranger).expect("signed"));
    assert!(other.contains("`signatures` has none by `t/log+"), "{other}");
    let unknown = Provenance { version: 2, ..provenance.clone() };
    let unknown = refused(&bundle, &unknown.sign(&signer()).expect("signed"));
    assert!(unknown.contains("this log tells of no version 2 of study `s`"), "{unknown}");
    // A proof that leads nowhere.
    let mut moved = provenance;
    moved.log.proof = moved.log.proof.replace("index 5", "index 4");
    let moved = refused(&bundle, &moved.sign(&signer()).expect("signed"));
    assert!(moved.contains("`predicate.falaj_log.proof`"), "{moved}");
}

/// Every value in a statement that is no list and no object, and where it stands.
fn leaves<'a>(value: &'a mut Canon, at: &str, found: &mut Vec<(String, &'a mut Canon)>) {
    match value {
        Canon::Map(members) => {
            for (key, member) in members {
                leaves(member, &format!("{at}.{key}"), found);
            }
        }
        Canon::List(items) => {
            for (n, item) in items.iter_mut().enumerate() {
                leaves(item, &format!("{at}[{n}]"), found);
            }
        }
        leaf => found.push((at.trim_start_matches('.').to_owned(), leaf)),
    }
}

#[test]
fn whoever_signs_another_field_is_told_which() {
    let (bundle, provenance) = signed();
    let mut whole = provenance.statement();
    let mut all = Vec::new();
    leaves(&mut whole, "", &mut all);
    let count = all.len();
    assert!(count > 50, "{count}");
    for n in 0..count {
        let mut statement = provenance.statement();
        let mut all = Vec::new();
        leaves(&mut statement, "", &mut all);
        let (field, value) = all.swap_remove(n);
        *value = match value {
            Canon::Int(i) => Canon::Int(*i + 1),
            Canon::Bool(b) => Canon::Bool(!*b),
            Canon::Text(text) => Canon::Text(format!("{text}0")),
            Canon::List(_) | Canon::Map(_) => continue,
        };
        drop(all);
        // By the log's own key: it is the entries that say otherwise.
        let envelope =
            Envelope::sign(PAYLOAD_TYPE, statement.to_bytes(), &signer()).expect("signed");
        let said = refused(&bundle, &envelope);
        let name =
            field.rsplit(['.', '[']).find(|w| w.parse::<u32>().is_err() && !w.ends_with(']'));
        let by_name = ["externalParameters", "resolvedDependencies", "byproducts"];
        let named = said.contains(&field)
            || by_name.iter().any(|part| field.contains(part))
            || said.contains(name.expect("a name"));
        assert!(named, "{field}: {said}");
        assert!(canon::parse(&envelope.payload).is_ok());
    }
    assert_eq!(policy_set(&policies()), provenance.policy_sets[0]);
}
