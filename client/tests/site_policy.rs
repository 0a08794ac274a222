//! The policy file, what stewards approved, and what a month has cost: at one site, without a coordinator.

use ed25519_dalek::SigningKey;
use falaj_agent::{
    journal::Journal,
    ledger::{Charge, Ledger, Limit},
    policy::{
        APPROVAL_CONTEXT, Approval, Approvals, POLICY_BYTES_MAX, PolicyFile, PolicyFileError,
        month_of, spent_since,
    },
};
use falaj_core::{
    dp::rdp::RdpCurve,
    id::{Digest, SiteId, StudyId},
    note,
    time::Timestamp,
};
use std::fs;

const PERMIT: &str = "@id(\"P\") permit (principal, action, resource);";
const FORBID: &str = "@id(\"F\") @reason(\"closed\") forbid (principal, action, resource);";

fn site() -> SiteId {
    "spiffe://falaj.test/ae-on/ae-az/site/s".parse().expect("a site")
}

fn digest_in_force(file: &PolicyFile) -> Option<Digest> {
    file.current().map(|p| p.digest())
}

#[test]
fn a_broken_policy_stops_the_start_and_names_the_file() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("site.cedar");
    fs::write(&path, "permit (principal, action").expect("written");
    let Err(e) = PolicyFile::open(&path) else { panic!("it was taken") };
    assert!(e.to_string().contains("site.cedar"), "{e}");
    fs::write(&path, " ".repeat(usize::try_from(POLICY_BYTES_MAX).expect("fits") + 1))
        .expect("written");
    assert!(matches!(PolicyFile::open(&path), Err(PolicyFileError::Long(_))));
}

/// POL-03, at the site.
#[test]
fn a_changed_policy_comes_into_force_and_a_broken_or_lost_one_leaves_the_one_before() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("site.cedar");
    let file = PolicyFile::open(&path).expect("none is fine");
    assert_eq!(digest_in_force(&file), None);
    for text in [PERMIT, FORBID] {
        fs::write(&path, text).expect("written");
        assert_eq!(digest_in_force(&file), Some(Digest::of(text.as_bytes())));
    }
    fs::write(&path, "permit (principal").expect("written");
    assert_eq!(digest_in_force(&file), Some(Digest::of(FORBID.as_bytes())));
    fs::remove_file(&path).expect("removed");
    assert_eq!(digest_in_force(&file), Some(Digest::of(FORBID.as_bytes())));
    fs::write(&path, PERMIT).expect("written");
    assert_eq!(digest_in_force(&file), Some(Digest::of(PERMIT.as_bytes())));
}

#[tokio::test]
async fn a_policy_that_was_there_once_is_missed_and_one_that_never_was_is_not() {
    let dir = tempfile::tempdir().expect("a folder");
    let journal = Journal::open(&dir.path().join("journal")).await.expect("a journal");
    let path = dir.path().join("site.cedar");
    let begin = async || PolicyFile::open(&path).expect("opened").begin(&journal).await;
    begin().await.expect("there never was one");
    fs::write(&path, PERMIT).expect("written");
    begin().await.expect("there is one");
    fs::remove_file(&path).expect("removed");
    let gone = begin().await.expect_err("it was there");
    assert!(matches!(gone, PolicyFileError::Gone(_)), "{gone}");
    let missed = PolicyFile::open(&path).expect("opened").missed(&journal).await;
    assert!(missed.is_err());
    fs::write(&path, PERMIT).expect("restored");
    begin().await.expect("there is one");
}

#[tokio::test]
async fn an_approval_counts_for_one_file_until_it_is_revoked_and_only_under_the_sites_key() {
    let dir = tempfile::tempdir().expect("a folder");
    let journal = Journal::open(dir.path()).await.expect("a journal");
    let (signer, site) = (SigningKey::from_bytes(&[1; 32]), site());
    let key = signer.verifying_key();
    let approvals = Approvals { journal: &journal, site: &site, key: &key };
    let study_sha256 = Digest::of(b"study");
    let mut word = Approval {
        study: "tumours".into(),
        study_sha256,
        steward: "dpo".into(),
        at: Timestamp::from_millis(1),
        approved: true,
    };
    let steward = async || approvals.steward(&study_sha256).await.expect("readable");
    assert_eq!(steward().await, None);
    approvals.keep(&signer, &word).await.expect("kept");
    assert_eq!(steward().await.as_deref(), Some("dpo"));
    let changed = approvals.steward(&Digest::of(b"changed study")).await.expect("readable");
    assert_eq!(changed, None);

    word.approved = false;
    approvals.keep(&signer, &word).await.expect("kept");
    assert_eq!(steward().await, None);

    // Neither somebody else's signature counts, nor this site's under another study's digest.
    word.approved = true;
    approvals.keep(&SigningKey::from_bytes(&[2; 32]), &word).await.expect("kept");
    assert_eq!(steward().await, None);
    let other = Approval { study_sha256: Digest::of(b"other"), ..word.clone() };
    let body = other.to_bytes(&site);
    let signature = note::sign_context(&signer, APPROVAL_CONTEXT, &body).expect("signs");
    journal.approve(&study_sha256, &body, &signature).await.expect("kept");
    assert_eq!(steward().await, None);

    let all = approvals.all().await.expect("readable");
    assert_eq!(all.len(), 4);
    assert_eq!(all.iter().filter(|word| word.is_none()).count(), 1);
}

#[tokio::test]
async fn a_month_counts_what_was_reserved_in_it_and_not_given_back() {
    let dir = tempfile::tempdir().expect("a folder");
    let ledger = Ledger::open(dir.path(), &site()).await.expect("a ledger");
    let study: StudyId = "tumours".parse().expect("a name");
    let limit = Limit { epsilon: 100.0, delta: 1e-5 };
    let cost = RdpCurve::pure(0.5).expect("a cost");
    let reserve = async |dataset| {
        let (dataset_limit, study_limit) = (limit, limit);
        let charge = Charge {
            dataset,
            study: &study,
            purpose: "p",
            cost: &cost,
            dataset_limit,
            study_limit,
        };
        ledger.reserve(&charge).await.expect("reserved")
    };
    let back = reserve("d").await;
    reserve("d").await;
    reserve("other").await;
    ledger.give_back(back).await.expect("given back");
    let entries = ledger.entries().await.expect("readable");
    let since = |at| spent_since(&entries, "d", at).expect("readable");
    assert_eq!(since(Timestamp::from_millis(0)), RdpCurve::zero().compose(&cost));
    assert_eq!(since(Timestamp::from_millis(i64::MAX)), RdpCurve::zero());
}

#[test]
fn a_month_begins_with_its_first_day_in_utc() {
    let at = |text| Timestamp::parse(text).expect("a time");
    let began = month_of(at("2028-02-29T23:59:59.999Z"));
    assert_eq!(began, at("2028-02-01T00:00:00.000Z"));
    assert_eq!(month_of(began), began);
}
