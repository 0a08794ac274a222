//! What is found out about a connection, besides who it is: a site that has opened its stream is probed, and policy decides
//! over what is known then, before the site takes part in anything, and again with every probe.
//!
//! A probe is a fresh nonce, which the site signs with its clock. The time until the signature is here is measured by the
//! coordinator's own clock, so that nothing that a site says can make it shorter; delays can only make it longer, and the
//! shortest of a few counts.
//!
//! Of a site for which a TPM is declared a quote is asked for as well, by a nonce of its own: a TPM takes its time.

use crate::{clock, engine::Engine, policy::Action, rpc::Joined};
use ed25519_dalek::VerifyingKey;
use falaj_core::{
    audit::{Draft, Kind},
    evidence::{CONTEXT, Evidence, NONCE_BYTES, Sample, Skew, probe_bytes},
    note,
    tpm::{self, Quote, Tpm},
};
use falaj_proto::{
    problem::{Code, Problem},
    v1::{Probe, ProbeAnswer, push},
};
use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

/// Nonces of one probe.
const NONCES: usize = 5;
/// A site that has not answered a nonce for so long does not answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// A TPM takes up to seconds for a signature, and has others to serve.
const PATIENCE_QUOTE: Duration = Duration::from_secs(20);

/// What is known of a connection.
#[derive(Default)]
pub struct Known {
    evidence: Mutex<Evidence>,
    /// The evidence of the newest entry, but for its figures.
    logged: Mutex<Option<Evidence>>,
    asked: Mutex<Option<Asked>>,
    /// Done once policy has let the site take part by what was found out.
    takes_part: CancellationToken,
}

/// A nonce that is not answered yet.
struct Asked {
    nonce: [u8; NONCE_BYTES],
    /// Whether a quote was asked for with it.
    quote: bool,
    sent: Instant,
    sent_ms: i64,
    answer: oneshot::Sender<Answered>,
}

/// What came of a nonce.
struct Answered {
    sample: Sample,
    quote: Option<Quote>,
}

impl Known {
    /// What is known, but for the address: whose networks those are changes with lists.
    #[must_use]
    pub fn evidence(&self) -> Evidence {
        held(&self.evidence).clone()
    }

    /// This is known from now on.
    pub fn take(&self, evidence: Evidence) {
        *held(&self.evidence) = evidence;
    }

    /// Policy has let the site take part by what was found out.
    pub fn let_in(&self) {
        self.takes_part.cancel();
    }

    /// Waits until policy has let the site take part by what is known of this connection.
    ///
    /// # Errors
    /// [`Code::Unavailable`] when that takes longer than probing can, as it does without an open stream.
    pub async fn take_part(&self) -> Result<(), Problem> {
        let asked = PATIENCE * u32::try_from(NONCES).unwrap_or(1) + PATIENCE_QUOTE + PATIENCE;
        tokio::time::timeout(asked, self.takes_part.cancelled()).await.map_err(|_| {
            Code::Unavailable.because("a site takes part by a connection on which it has opened its stream of tasks: connect again")
        })
    }

    /// A fresh nonce, which takes the place of one that was not answered.
    fn ask(&self, quote: bool) -> ([u8; NONCE_BYTES], oneshot::Receiver<Answered>) {
        let (answer, answered) = oneshot::channel();
        let nonce = clock::secret();
        let (sent_ms, sent) = (clock::now().as_millis(), Instant::now());
        *held(&self.asked) = Some(Asked { nonce, quote, sent, sent_ms, answer });
        (nonce, answered)
    }

    /// An answer has come.
    ///
    /// # Errors
    /// When nothing was asked, or it is not signed by the site's key, or is too long; it can be answered once more then.
    pub fn answered(&self, key: &[u8; 32], said: &ProbeAnswer) -> Result<(), Problem> {
        let arrived = Instant::now();
        let ProbeAnswer { clock_ms, signature, attest, attest_signature } = said;
        let mut asked = held(&self.asked);
        let refused = |why: &str| Code::Malformed.because(why);
        let Some(open) = asked.as_ref() else {
            return Err(refused("this site was asked nothing, or too long ago"));
        };
        if attest.len().max(attest_signature.len()) > tpm::BYTES_MAX {
            return Err(refused("a part of this quote is longer than any TPM's"));
        }
        let mut signed = probe_bytes(&open.nonce, *clock_ms);
        let mut context = CONTEXT;
        if open.quote {
            signed = tpm::answer_bytes(&signed, attest, attest_signature);
            context = tpm::CONTEXT;
        }
        let by_site = VerifyingKey::from_bytes(key)
            .is_ok_and(|key| note::verify_context(&key, context, &signed, signature));
        if !by_site {
            return Err(refused("the key of the site's certificate did not sign this nonce"));
        }
        if let Some(Asked { nonce, quote, sent, sent_ms, answer }) = asked.take() {
            let round_trip = arrived.saturating_duration_since(sent);
            let sample = Sample { round_trip, sent_ms, clock_ms: *clock_ms };
            let given = quote && !attest.is_empty();
            let (attest, signature) = (attest.to_vec(), attest_signature.to_vec());
            let quote = given.then_some(Quote { nonce, attest, signature });
            // Nobody waits any more.
            let _ = answer.send(Answered { sample, quote });
        }
        Ok(())
    }

    /// Whether the log has something like this already: figures aside.
    fn is_logged(&self, evidence: &Evidence) -> bool {
        let plain = Evidence {
            rtt_us: evidence.rtt_us.map(|_| 0),
            skew: evidence.skew.map(|_| Skew { ms: 0, uncertainty_ms: 0 }),
            tpm: evidence.tpm.clone().map(|tpm| Tpm { quote: None, ..tpm }),
            ..evidence.clone()
        };
        let mut logged = held(&self.logged);
        let same = logged.as_ref() == Some(&plain);
        *logged = Some(plain);
        same
    }
}

fn held<T>(part: &Mutex<T>) -> MutexGuard<'_, T> {
    part.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Probes a site that has opened its stream, has policy decide, and lets it take part; then the same again every while until
/// the stream is gone. An agent that answers no probes is not waited for.
pub async fn attend(engine: Engine, joined: Joined, every: Duration, gone: CancellationToken) {
    let mut taking_part = false;
    loop {
        let (samples, quote) = tokio::select! {
            () = gone.cancelled() => return,
            found = probe(&engine, &joined) => found,
        };
        let Joined { site, peer, declared, .. } = &joined;
        let more = |evidence: Evidence| {
            let (storage, compute) = declared.clone();
            Evidence { storage, compute, ..evidence }.probed(&samples)
        };
        let Some((decision, evidence)) = peer.trusted.know(&engine, peer, quote, more).await else {
            return;
        };
        if !peer.known.is_logged(&evidence) {
            let entry = Draft::new(Kind::EvidenceTaken)
                .actor(&peer.actor)
                .text("action", Action::Connect.as_str())
                .decided(decision.allow, &decision.policies, &decision.policy_set)
                .evidence(&evidence);
            if let Err(e) = engine.parts().writer.record(vec![entry]).await {
                tracing::error!(%site, error = %e, "what is known of a connection cannot be logged; it is ended");
                engine.sites().leave(site, joined.serial);
                return;
            }
        }
        if !taking_part {
            taking_part = true;
            engine.sites().take_part(site, joined.serial);
            peer.known.let_in();
            engine.joined(site).await;
        }
        tokio::select! {
            () = gone.cancelled() => return,
            () = tokio::time::sleep(every) => {}
        }
    }
}

/// What a site answers to one nonce after the other, and then to one with which a quote is asked for, if a TPM is declared for it.
async fn probe(engine: &Engine, joined: &Joined) -> (Vec<Sample>, Option<Quote>) {
    let mut samples = Vec::new();
    let nonces = if joined.answers_probes { NONCES } else { 0 };
    for _ in 0..nonces {
        match ask(engine, joined, false, PATIENCE).await {
            Some(answered) => samples.push(answered.sample),
            None => return (samples, None),
        }
    }
    let is_declared = joined.peer.trusted.now().is_tpm_declared(&joined.site);
    let quote = if joined.gives_quotes && is_declared {
        ask(engine, joined, true, PATIENCE_QUOTE).await
    } else {
        None
    };
    (samples, quote.and_then(|answered| answered.quote))
}

/// Sends a nonce, and waits for what comes of it.
async fn ask(
    engine: &Engine,
    joined: &Joined,
    quote: bool,
    patience: Duration,
) -> Option<Answered> {
    let (nonce, answered) = joined.peer.known.ask(quote);
    let push = push::Push::Probe(Probe { nonce: nonce.to_vec().into(), quote });
    if !engine.sites().push_on(&joined.site, joined.serial, push) {
        return None;
    }
    tokio::time::timeout(patience, answered).await.ok()?.ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use ed25519_dalek::SigningKey;

    /// Shows RES-02: only the site's key answers, only the nonce that was asked, and only once.
    #[test]
    fn a_nonce_is_answered_by_the_sites_key_and_once() {
        let key = SigningKey::from_bytes(&[7; 32]);
        let public = key.verifying_key().to_bytes();
        let known = Known::default();
        let signed = |nonce: &[u8], clock_ms, key: &SigningKey| {
            note::sign_context(key, CONTEXT, &probe_bytes(nonce, clock_ms))
                .expect("a key in memory")
        };
        let answer = |signature: &[u8], clock_ms| ProbeAnswer {
            clock_ms,
            signature: signature.to_vec().into(),
            ..ProbeAnswer::default()
        };
        let refused = |signature: &[u8], clock_ms| {
            known.answered(&public, &answer(signature, clock_ms)).expect_err("refused").detail
        };
        assert!(refused(&signed(&[0; 32], 5, &key), 5).contains("asked nothing"));
        let (before, _) = known.ask(false);
        let (nonce, mut answered) = known.ask(false);
        assert_ne!(before, nonce);
        for (signature, clock_ms) in [
            (signed(&before, 5, &key), 5),
            (signed(&nonce, 5, &SigningKey::from_bytes(&[8; 32])), 5),
            (signed(&nonce, 5, &key), 6),
            ([0; 64], 5),
        ] {
            assert!(refused(&signature, clock_ms).contains("did not sign"));
        }
        let good = signed(&nonce, 5, &key);
        known.answered(&public, &answer(&good, 5)).expect("it is good");
        let found = answered.try_recv().expect("an answer");
        assert_eq!((found.sample.clock_ms, found.quote), (5, None));
        assert!(refused(&good, 5).contains("asked nothing"));
    }

    /// A quote counts where one was asked for, and under the site's signature over all of it.
    #[test]
    fn a_quote_is_given_under_the_sites_key_and_only_when_it_was_asked_for() {
        let key = SigningKey::from_bytes(&[7; 32]);
        let public = key.verifying_key().to_bytes();
        let known = Known::default();
        let answer = |nonce: &[u8], attest: &[u8]| {
            let signed = tpm::answer_bytes(&probe_bytes(nonce, 5), attest, b"signature");
            let signature = note::sign_context(&key, tpm::CONTEXT, &signed).expect("in memory");
            ProbeAnswer {
                clock_ms: 5,
                signature: signature.to_vec().into(),
                attest: attest.to_vec().into(),
                attest_signature: b"signature".to_vec().into(),
            }
        };
        let refused = |said: &ProbeAnswer, why: &str| {
            let detail = known.answered(&public, said).expect_err("refused").detail;
            assert!(detail.contains(why), "{detail}");
        };
        let (nonce, _) = known.ask(false);
        refused(&answer(&nonce, b"quote"), "did not sign");
        let (nonce, mut answered) = known.ask(true);
        let good = answer(&nonce, b"quote");
        refused(&ProbeAnswer { attest: b"other".to_vec().into(), ..good.clone() }, "did not sign");
        let other = b"other".to_vec().into();
        refused(&ProbeAnswer { attest_signature: other, ..good.clone() }, "did not sign");
        let plain = note::sign_context(&key, CONTEXT, &probe_bytes(&nonce, 5)).expect("in memory");
        refused(&ProbeAnswer { signature: plain.to_vec().into(), ..good.clone() }, "did not sign");
        refused(&answer(&nonce, &[0; tpm::BYTES_MAX + 1]), "longer than any");
        known.answered(&public, &good).expect("it is good");
        let quote = answered.try_recv().expect("an answer").quote.expect("a quote");
        assert_eq!(
            (quote.nonce, &*quote.attest, &*quote.signature),
            (nonce, &b"quote"[..], &b"signature"[..])
        );
        // A TPM that gives none is said under the same signature.
        let (nonce, mut answered) = known.ask(true);
        known.answered(&public, &answer(&nonce, b"")).expect("it is an answer");
        assert_eq!(answered.try_recv().expect("an answer").quote, None);
    }

    #[test]
    fn an_entry_is_made_when_more_than_figures_have_changed() {
        let known = Known::default();
        let sample =
            |ms: u64| Sample { round_trip: Duration::from_millis(ms), sent_ms: 0, clock_ms: 9 };
        let quick = Evidence::default().probed(&[sample(1)]);
        assert!(!known.is_logged(&quick));
        assert!(known.is_logged(&Evidence::default().probed(&[sample(2)])));
        assert!(!known.is_logged(&Evidence { address_known: true, ..quick.clone() }));
        assert!(!known.is_logged(&quick));
    }
}
