//! Logs of a few days, and what they tell of versions.

use super::{super::provenance::tests::site, *};
use crate::{
    audit::{Actor, Draft},
    time::Timestamp,
};

fn digest(what: &str) -> Digest {
    Digest::of(what.as_bytes())
}

/// A log that grows by a day with each entry.
struct Log {
    lineage: Lineage,
    seq: u64,
}

const DAY_MS: i64 = 86_400_000;

impl Log {
    fn take(&mut self, draft: Draft) -> Result<u64, LineageError> {
        let at = Timestamp::from_millis(DAY_MS * self.seq.cast_signed());
        let bytes = draft.finish(self.seq, at, [0; 16]);
        self.lineage.take(&Entry::parse(&bytes).expect("an entry"))?;
        self.seq += 1;
        Ok(self.seq - 1)
    }

    fn ok(&mut self, draft: Draft) -> u64 {
        self.take(draft).expect("taken")
    }
}

fn heart() -> StudyId {
    "heart".parse().expect("a study")
}

fn round(kind: Kind, number: u32) -> Draft {
    let round = crate::id::RoundId { study: heart(), number };
    Draft::new(kind).round(&round).count("attempt", 0)
}

fn model(number: u32) -> Digest {
    digest(&format!("model {number}"))
}

fn update(number: u32, name: &str) -> Draft {
    round(Kind::UpdateAccepted, number)
        .text("site", &site(name).to_string())
        .digest("payload_sha256", &digest(&format!("payload {number} {name}")))
        .digest("header_sha256", &digest(&format!("header {number} {name}")))
        .count("weight", 100)
        .text("epsilon", &format!("0.{number}"))
        .decided(true, &["ACC-101".into()], &digest("policies"))
}

fn published(number: u32, names: &[&str]) -> Draft {
    let payloads = names.iter().map(|name| digest(&format!("payload {number} {name}")));
    round(Kind::ModelPublished, number)
        .digest("base_sha256", &model(number - 1))
        .digest("model_sha256", &model(number))
        .digest("manifest_sha256", &digest("manifest"))
        .digests("updates", &payloads.collect::<Vec<_>>())
        .count("total_weight", 100 * names.len() as u64)
}

fn made(version: u64, number: u32) -> Draft {
    round(Kind::VersionMade, number)
        .count("version", version)
        .digest("model_sha256", &model(number))
        .digest("manifest_sha256", &digest("manifest"))
        .digest("safetensors_sha256", &digest("file"))
}

fn moved(kind: Kind, version: u64, number: u32) -> Draft {
    let draft = Draft::new(kind).study(&heart());
    draft.count("version", version).digest("model_sha256", &model(number))
}

fn promoted(version: u64, number: u32, stage: Stage) -> Draft {
    moved(Kind::VersionPromoted, version, number).text("stage", stage.as_str())
}

/// A study was submitted.
fn begun() -> Log {
    let mut log = Log { lineage: Lineage::default(), seq: 0 };
    let started = Draft::new(Kind::CoordinatorStarted)
        .text("coordinator", "spiffe://t/ae-on/ae-az/coordinator/main")
        .text("version", "0.1.0");
    log.ok(started);
    let submitted = Draft::new(Kind::StudySubmitted)
        .study(&heart())
        .digest("study_sha256", &digest("study"))
        .digest("model_sha256", &model(0))
        .digest("manifest_sha256", &digest("manifest"))
        .decided(true, &["ACC-201".into()], &digest("policies"));
    let person = Actor { person: Some(Person([7; 16])), ..Actor::default() };
    log.ok(submitted.actor(&person));
    log
}

/// Three rounds: `a` in each, `b` in the second and the third, and `c` in a try that failed.
fn three_rounds() -> Log {
    let mut log = begun();
    log.ok(update(1, "a"));
    log.ok(published(1, &["a"]));
    log.ok(update(2, "a"));
    log.ok(update(2, "c").count("attempt", 0));
    log.ok(update(2, "a").count("attempt", 1));
    log.ok(update(2, "b").count("attempt", 1));
    log.ok(published(2, &["a", "b"]).count("attempt", 1));
    log.ok(update(3, "a"));
    log.ok(update(3, "b"));
    log.ok(published(3, &["a", "b"]));
    log
}

fn asked(source: Source) -> Asked {
    Asked { source, since: String::new(), until: String::new() }
}

fn about() -> About {
    super::super::provenance::tests::example().about
}

fn signed(log: &Log, number: u32) -> Option<Provenance> {
    log.lineage.provenance(&heart(), number, about(), "falaj.test/log", "a proof".into())
}

#[test]
fn what_a_site_spent_on_a_version_is_what_it_said_last_before_its_model() {
    let mut log = begun();
    let counted = |number: u32, epsilon: &str| {
        round(Kind::EvaluationAccepted, number)
            .text("site", &site("a").to_string())
            .text("epsilon", epsilon)
    };
    log.ok(update(1, "a"));
    log.ok(update(1, "b"));
    log.ok(counted(1, "0.7"));
    log.ok(published(1, &["a", "b"]));
    log.ok(counted(2, "0.9"));
    log.ok(made(1, 1));
    let provenance = signed(&log, 1).expect("a version");
    let spent: Vec<_> = provenance.epsilon.iter().map(|(s, e)| (s.name(), &e[..])).collect();
    assert_eq!(spent, [("a", "0.7"), ("b", "0.1")]);
}

#[test]
fn a_version_leads_to_every_update_that_made_it_and_to_no_other() {
    let mut log = three_rounds();
    let entry = log.ok(made(1, 2));
    let ancestry = log.lineage.ancestry(&heart(), 1).expect("a version");
    let updates: Vec<Vec<&str>> = ancestry
        .rounds
        .iter()
        .map(|round| round.updates.iter().map(|update| update.site.name()).collect())
        .collect();
    assert_eq!(updates, [vec!["a"], vec!["a", "b"]]);
    assert_eq!((ancestry.made, ancestry.submitted), (entry, 1));
    assert_eq!(ancestry.policy_sets, [(digest("policies"), 1)]);
    assert_eq!(log.lineage.submitter(&heart()), Some(Person([7; 16])));
    let provenance = signed(&log, 1).expect("one");
    assert_eq!(log.lineage.made(&heart(), 1), Some((entry, provenance.log.leaf)));
    assert_eq!((provenance.model, provenance.base), (model(2), model(0)));
    // What a site spent in a try that gave nothing is spent.
    let spent: Vec<_> = provenance.epsilon.iter().map(|(s, e)| (s.name(), &e[..])).collect();
    assert_eq!(spent, [("a", "0.2"), ("b", "0.2"), ("c", "0.2")]);
    assert_eq!(provenance.software, "0.1.0");
    let read = Provenance::read(&provenance.statement().to_bytes()).expect("it reads");
    assert_eq!(read, provenance);
    assert_eq!(signed(&log, 2), None);
}

#[test]
fn an_approval_that_was_taken_back_stays_only_where_it_counted() {
    use crate::audit::approvals::Approved;
    let mut log = three_rounds();
    log.ok(made(1, 1));
    let of = Approved {
        action: "version.promote".into(),
        study: Some(heart()),
        promotion: Some(Promotion { version: 1, stage: Stage::Staging }),
        place: "ae-on/ae-az".parse().expect("a place"),
        person: Person([1; 16]),
    };
    let giver = Actor { person: Some(Person([7; 16])), ..Actor::default() };
    let say = |kind, id| Approval::tell(Draft::new(kind).actor(&giver), id, &of);
    for id in ["counted", "taken back", "left"] {
        let given = say(Kind::ApprovalGiven, id);
        log.ok(given.text("until", &Timestamp::from_millis(i64::from(u32::MAX)).to_string()));
    }
    log.ok(say(Kind::ApprovalWithdrawn, "taken back"));
    log.ok(promoted(1, 1, Stage::Staging).texts("approvals", vec!["counted".into()]));
    log.ok(say(Kind::ApprovalWithdrawn, "counted"));
    let ancestry = log.lineage.ancestry(&heart(), 1).expect("it was made");
    let ids: Vec<&str> = ancestry.approvals.iter().map(|a| &*a.id).collect();
    assert_eq!(ids, ["counted", "left"]);
}

#[test]
fn gates_are_told_as_the_entry_of_the_model_has_them() {
    let mut log = three_rounds();
    let gates = [
        "pass: auc: 0.7512 [0.7312, 0.7721], at least 0.72 needed",
        "fail: sites: 2, at least 3 needed",
        "something else",
    ];
    let told = published(4, &[]).texts("gates", gates.map(str::to_owned));
    log.ok(told.texts("witnesses", ["9 t/w".to_owned()]));
    log.ok(made(1, 4));
    let said = signed(&log, 1).expect("one").gates;
    let texts = said.iter().map(|g| [&g.name[..], &g.figure, &g.interval, &g.bound]);
    let wanted = [
        ["auc", "0.7512", "0.7312, 0.7721", "at least 0.72"],
        ["sites", "2", "", "at least 3"],
        ["something else", "", "", ""],
        ["witnesses", "1", "", ""],
    ];
    assert_eq!(texts.collect::<Vec<_>>(), wanted);
    let pass: Vec<bool> = said.iter().map(|gate| gate.pass).collect();
    assert_eq!(pass, [true, false, false, true]);
}

#[test]
fn gates_that_were_too_many_for_an_entry_are_told_by_their_digest() {
    let digest = Digest::of(b"a long list");
    let figure = format!("too many for the log's entry, which has their SHA-256: {digest}");
    // All passed, or people let the candidate through that waited for them.
    for waited in [false, true] {
        let mut log = three_rounds();
        if waited {
            log.ok(round(Kind::CandidateHeld, 4));
        }
        log.ok(published(4, &[]).digest("gates_sha256", &digest));
        log.ok(made(1, 4));
        let said = signed(&log, 1).expect("one").gates;
        let told: Vec<_> = said.iter().map(|g| (&*g.name, &*g.figure, g.pass)).collect();
        assert_eq!(told, [("gates", &*figure, !waited)]);
    }
}

#[test]
fn a_site_leads_to_every_version_that_learned_from_it() {
    let mut log = three_rounds();
    for (version, number) in [(1, 1), (2, 2), (3, 3)] {
        log.ok(made(version, number));
    }
    let numbers = |asked: &Asked| -> Vec<u32> {
        log.lineage.touched(asked).iter().map(|touched| touched.version.number).collect()
    };
    assert_eq!(numbers(&asked(Source::Site(site("a")))), [1, 2, 3]);
    assert_eq!(numbers(&asked(Source::Site(site("b")))), [2, 3]);
    // It was accepted, and no model follows from it.
    assert_eq!(numbers(&asked(Source::Site(site("c")))), Vec::<u32>::new());
    let place = "ae-on/ae-az".parse().expect("a place");
    assert_eq!(numbers(&asked(Source::Place(place))), [1, 2, 3]);
    let place = "ae-on/ae-du".parse().expect("a place");
    assert_eq!(numbers(&asked(Source::Place(place))), Vec::<u32>::new());
    assert_eq!(numbers(&asked(Source::Update(digest("payload 3 b")))), [3]);
    assert_eq!(numbers(&asked(Source::Update(digest("header 2 b")))), [2, 3]);
    // Between two days, of which the second is not meant any more.
    let between = |since: i64, until: i64| Asked {
        since: Timestamp::from_millis(DAY_MS * since).to_string(),
        until: Timestamp::from_millis(DAY_MS * until).to_string(),
        ..asked(Source::Site(site("b")))
    };
    assert_eq!(numbers(&between(0, 7)), Vec::<u32>::new());
    assert_eq!(numbers(&between(7, 8)), [2, 3]);
    assert_eq!(numbers(&between(8, 100)), [3]);
    let touched = log.lineage.touched(&asked(Source::Site(site("b"))));
    assert_eq!((touched[1].updates, touched[1].rounds, touched[1].untouched), (2, (2, 3), 1));
    assert_eq!(touched[1].indices, (7, 10));
}

#[test]
fn what_a_study_left_aside_when_it_was_rolled_back_is_in_no_later_version() {
    let mut log = three_rounds();
    // The fourth round begins where the first one ended.
    log.ok(update(4, "a"));
    log.ok(published(4, &["a"]).digest("base_sha256", &model(1)));
    log.ok(made(1, 4));
    let rounds: Vec<u32> = signed(&log, 1).expect("one").rounds.iter().map(|r| r.number).collect();
    assert_eq!(rounds, [1, 4]);
    let touched = log.lineage.touched(&asked(Source::Site(site("b"))));
    assert_eq!(touched, []);
    log.ok(made(2, 3));
    let touched = log.lineage.touched(&asked(Source::Site(site("b"))));
    assert_eq!((touched.len(), touched[0].version.number, touched[0].untouched), (1, 2, 4));
}

#[test]
fn a_withdrawal_takes_out_of_use_what_learned_from_the_site() {
    let mut log = three_rounds();
    for (version, number) in [(1, 1), (2, 2), (3, 3)] {
        log.ok(made(version, number));
    }
    let remedies = |log: &Log, name: &str| -> Vec<(u32, Remedy)> {
        let touched = log.lineage.touched(&asked(Source::Site(site(name))));
        touched.iter().map(|touched| (touched.version.number, touched.remedy)).collect()
    };
    log.ok(promoted(1, 1, Stage::Staging));
    log.ok(promoted(1, 1, Stage::Production));
    assert_eq!(remedies(&log, "b"), [(2, Remedy::Reject), (3, Remedy::Reject)]);
    log.ok(promoted(2, 2, Stage::Staging));
    log.ok(promoted(2, 2, Stage::Production).count("replaces", 1));
    assert_eq!(remedies(&log, "b"), [(2, Remedy::RollBack(1)), (3, Remedy::Reject)]);
    // The version before learned from this one too.
    let of_a = [(1, Remedy::Revoke), (2, Remedy::Revoke), (3, Remedy::Reject)];
    assert_eq!(remedies(&log, "a"), of_a);
    log.ok(moved(Kind::VersionRolledBack, 1, 1).count("replaces", 2));
    log.ok(moved(Kind::VersionRevoked, 2, 2).text("reason", "consent was withdrawn"));
    assert_eq!(remedies(&log, "b"), [(2, Remedy::Nothing), (3, Remedy::Reject)]);
    let ancestry = log.lineage.ancestry(&heart(), 2).expect("a version");
    let stages: Vec<Stage> = ancestry.moves.iter().map(|moved| moved.stage).collect();
    let wanted = [Stage::Candidate, Stage::Staging, Stage::Production, Stage::Archived];
    assert_eq!(stages, [&wanted[..], &[Stage::Revoked]].concat());
    assert_eq!(ancestry.moves[4].reason, "consent was withdrawn");
    assert_eq!(
        log.lineage.registry(&heart()).and_then(Registry::serving).map(|v| v.number),
        Some(1)
    );
}

#[test]
fn a_log_that_says_what_cannot_be_names_the_field() {
    let mut log = three_rounds();
    let mut wrong = |draft: Draft, why: &str| {
        let said = log.take(draft).expect_err(why).to_string();
        assert!(said.contains(why), "`{why}`, and it says: {said}");
    };
    wrong(made(1, 4), "`model_sha256`");
    wrong(made(2, 2), "its `version` is 2, and what follows is 1");
    wrong(made(1, 2).digest("model_sha256", &model(3)), "its `model_sha256` is");
    wrong(made(1, 2).digest("manifest_sha256", &model(3)), "its `manifest_sha256` is");
    wrong(promoted(1, 2, Stage::Staging), "no version 1");
    let other = moved(Kind::VersionRevoked, 1, 1).study(&"liver".parse().expect("a study"));
    wrong(other, "never submitted");
    log.ok(made(1, 2));
    log.ok(made(2, 3));
    let mut wrong = |draft: Draft, why: &str| {
        let said = log.take(draft).expect_err(why).to_string();
        assert!(said.contains(why), "`{why}`, and it says: {said}");
    };
    wrong(promoted(1, 2, Stage::Production), "which leads to `staging`");
    wrong(promoted(1, 3, Stage::Staging), "its `model_sha256` is");
    wrong(promoted(1, 2, Stage::Staging).count("replaces", 2), "its `replaces` is 2");
    log.ok(promoted(1, 2, Stage::Staging));
    let alias = |draft: Draft| draft.text("alias", "challenger");
    log.ok(alias(moved(Kind::VersionAliased, 1, 2)));
    let taken = || alias(Draft::new(Kind::VersionAliased).study(&heart()));
    let said = log.take(taken().count(WAS, 2)).expect_err("it was another's").to_string();
    assert!(said.contains("its `was` is 2, and what follows is 1"), "{said}");
    log.ok(taken().count(WAS, 1));
    log.ok(alias(moved(Kind::VersionAliased, 1, 2)));
    // As older coordinators said it.
    log.ok(taken());
    let mut shard = Log { lineage: Lineage::new(true), seq: 0 };
    shard.ok(promoted(1, 2, Stage::Staging));
}
