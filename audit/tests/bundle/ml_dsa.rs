//! Bundles of a log with a second key, of ML-DSA-44: checked, pinned, missing, wrong, and by a build that does not know it.

use super::{Parts, parts};
use falaj_core::{
    audit::bundle,
    canon::{self, Canon},
    ml_dsa::MlDsaKey,
};
use falaj_verify::{Options, Report, Wrong, verify};

/// A checkpoint's line and the key, made by another implementation. It is of another log: good enough for a build that
/// ignores it.
fn vectors() -> serde_json::Value {
    serde_json::from_str(include_str!("../../../core/testdata/ml_dsa_vectors.json")).expect("JSON")
}

impl Parts {
    /// The same bundle, which names a second key.
    fn naming(mut self, key: &str) -> Self {
        let about = canon::parse(self.file(bundle::ABOUT)).expect("canonical");
        let Canon::Map(mut members) = about else { panic!("a map") };
        members.insert("log_ml_dsa_key".into(), key.into());
        *self.file(bundle::ABOUT) = Canon::Map(members).to_bytes();
        self
    }

    fn verify_under(&self, pinned: Option<&MlDsaKey>) -> Result<Report, Wrong> {
        let options =
            Options { log_key: Some(&self.key), ml_dsa_key: pinned, ..Options::default() };
        verify(&self.tar()[..], options, |_, _| {})
    }
}

fn why(result: Result<Report, Wrong>) -> String {
    result.map_or_else(|e| e.to_string(), |_| "verified".into())
}

#[test]
fn a_second_key_that_is_none_or_is_another_logs_is_named() {
    let v = vectors();
    let key = v["key"].as_str().expect("text");
    assert!(why(parts(|_| {}).naming("none").verify_under(None)).contains("log_ml_dsa_key"));
    assert!(why(parts(|_| {}).naming(key).verify_under(None)).contains("another log's"));
    let pinned: MlDsaKey = key.parse().expect("a key");
    let other = why(parts(|_| {}).verify_under(Some(&pinned)));
    assert!(other.contains("is of falaj.test/log, and the bundle of t/log"), "{other}");
}

#[cfg(not(feature = "ml-dsa"))]
#[test]
fn a_build_that_does_not_know_it_says_so_and_refuses_to_vouch_for_it() {
    let v = vectors();
    let key: MlDsaKey = v["key"].as_str().expect("text").parse().expect("a key");
    let key = key.renamed("t/log").expect("a name");
    let mut bundle = parts(|_| {}).naming(&key.to_string());
    let line = v["line"].as_str().expect("text").replace("falaj.test/log", "t/log");
    bundle.file(bundle::CHECKPOINT).extend_from_slice(line.as_bytes());
    let report = bundle.verify_under(None).expect("verified");
    assert_eq!((report.log_ml_dsa_key, report.ml_dsa_checked), (Some(key.to_string()), false));
    let refused = why(bundle.verify_under(Some(&key)));
    assert!(refused.contains("does not check ML-DSA-44"), "{refused}");
}

#[cfg(feature = "ml-dsa")]
mod built {
    use super::*;
    use crate::{continued, signer};
    use falaj_core::{
        id::Digest,
        note::{Checkpoint, NoteSigner},
    };

    fn signing(seed: u8) -> NoteSigner {
        signer().with_ml_dsa(&[seed; 32]).expect("a signer")
    }

    fn key_of(signer: &NoteSigner) -> MlDsaKey {
        signer.ml_dsa().expect("a second key").clone()
    }

    /// A bundle whose checkpoint is signed by both keys, and which names the second.
    fn signed(mut bundle: Parts, signer: &NoteSigner) -> Parts {
        let note = String::from_utf8(bundle.file(bundle::CHECKPOINT).clone()).expect("text");
        let head = Checkpoint::of_kept(&note).expect("a checkpoint");
        let note = signer.checkpoint(&head, 1_793_000_000).expect("signed");
        *bundle.file(bundle::CHECKPOINT) = note.into_bytes();
        bundle.naming(&key_of(signer).to_string())
    }

    #[test]
    fn both_signatures_are_checked_whether_the_second_key_is_pinned_or_not() {
        let signer = signing(9);
        let key = key_of(&signer);
        let bundle = signed(parts(|_| {}), &signer);
        for pinned in [None, Some(&key)] {
            let report = bundle.verify_under(pinned).expect("verified");
            assert!(report.ml_dsa_checked && report.log_ml_dsa_key == Some(key.to_string()));
        }
        let report = parts(|_| {}).verify_under(None).expect("verified");
        assert!(!report.ml_dsa_checked && report.log_ml_dsa_key.is_none());
    }

    #[test]
    fn a_checkpoint_without_the_second_signature_or_with_a_wrong_one_is_refused() {
        let (signer, other) = (signing(9), signing(8));
        let key = key_of(&signer);
        // It is not there, whether the bundle admits to the key or not.
        let bare = parts(|_| {});
        assert!(why(bare.verify_under(Some(&key))).contains("not signed by `t/log (ML-DSA-44)`"));
        let named = parts(|_| {}).naming(&key.to_string());
        assert!(why(named.verify_under(None)).contains("not signed by `t/log (ML-DSA-44)`"));
        // It is another key's.
        let forged = signed(parts(|_| {}), &other);
        forged.verify_under(None).expect("nobody knows better");
        assert!(why(forged.verify_under(Some(&key))).contains("not signed by `t/log (ML-DSA-44)`"));
        // It is of another head, as if whoever broke Ed25519 had made a history of their own.
        let mut moved = signed(parts(|_| {}), &signer);
        let note = String::from_utf8(moved.file(bundle::CHECKPOINT).clone()).expect("text");
        let head = Checkpoint::of_kept(&note).expect("a checkpoint");
        let elsewhere = Checkpoint { root_hash: Digest::of(b"elsewhere"), ..head.clone() };
        let elsewhere = signer.checkpoint(&elsewhere, 1).expect("signed");
        let line = elsewhere.lines().last().expect("a line");
        let own = super::super::signer().sign(&head.body()).expect("signs");
        *moved.file(bundle::CHECKPOINT) = format!("{own}{line}\n").into_bytes();
        for pinned in [None, Some(&key)] {
            assert!(why(moved.verify_under(pinned)).contains("does not verify"));
        }
    }

    #[test]
    fn who_pinned_the_second_key_of_an_earlier_shard_has_that_of_this_one() {
        let (statements, opened, rotated) = continued();
        let bundle = parts(|drafts| {
            drafts.insert(0, opened);
            drafts.insert(2, rotated);
        });
        let signer = signing(9);
        let bundle = signed(bundle.saying(&statements), &signer);
        let before = key_of(&signer).renamed("t/log/before").expect("a name");
        assert!(bundle.verify_under(Some(&before)).expect("verified").ml_dsa_checked);
        let stranger = key_of(&signer).renamed("t/log/other").expect("a name");
        assert!(why(bundle.verify_under(Some(&stranger))).contains("is of t/log/other"));
    }
}
