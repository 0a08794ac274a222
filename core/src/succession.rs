//! What comes after a log's key, or after a log: a statement by both sides that whoever trusted the one may trust the other.
//!
//! A key is followed by another of the same log, and both sign for a while. A log is followed by the next shard, which
//! begins where it ended. Statements are C2SP signed notes, so that anybody can check them; a chain of them leads from
//! a key that was pinned long ago to the one that signs now.

use crate::{
    id::Digest,
    ml_dsa::MlDsaKey,
    note::{self, Checkpoint, NoteError, NoteSigner, VerifierKey},
    sign::SignError,
};
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};

/// First line of a statement.
const HEAD: &str = "falaj/log-succession/v1";
/// Statements that are followed from a key that was pinned: two in a year for a century.
pub const SUCCESSIONS_MAX: usize = 200;
/// Characters of a log's origin, at most, so that a statement fits into an entry.
pub const ORIGIN_CHARS_MAX: usize = 128;

/// That one key follows another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Succession {
    /// The key before.
    pub from: VerifierKey,
    /// The key after. Under another name it speaks for the next shard.
    pub to: VerifierKey,
    /// Where the log of the key before ended, if another shard goes on from there: entries and root.
    pub ended: Option<(u64, Digest)>,
}

/// Why a statement does not lead on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SuccessionError {
    /// It is not one.
    #[error("this is not a statement as `{HEAD}` describes it")]
    Malformed,
    /// A signature is missing or wrong.
    #[error(transparent)]
    Note(#[from] NoteError),
    /// No chain.
    #[error("no statement leads from `{from}` to `{to}`")]
    Unreachable {
        /// What was pinned.
        from: String,
        /// What signs now.
        to: String,
    },
}

impl Succession {
    /// The statement, signed by both: `before` and `after` are the signers of [`Self::from`] and [`Self::to`].
    ///
    /// # Errors
    /// [`SignError`] when one of the keys cannot be used now.
    pub fn sign(
        before: &NoteSigner,
        after: &NoteSigner,
        ended: Option<&Checkpoint>,
    ) -> Result<String, SignError> {
        let (from, to) = (before.verifier().clone(), after.verifier().clone());
        let ended = ended.map(|head| (head.tree_size, head.root_hash));
        let body = Self { from, to, ended }.body();
        Ok(before.sign(&body)? + &after.line(&body)?)
    }

    fn body(&self) -> String {
        let Self { from, to, ended } = self;
        let ended = ended.map_or_else(String::new, |(size, root)| {
            format!("{size}\n{}\n", BASE64.encode(root.0))
        });
        format!("{HEAD}\n{from}\n{to}\n{ended}")
    }

    /// Reads a statement, and checks that both keys have signed it.
    ///
    /// # Errors
    /// [`SuccessionError`].
    pub fn open(text: &str) -> Result<Self, SuccessionError> {
        let (body, _) = note::split(text)?;
        let this = Self::parse(body).ok_or(SuccessionError::Malformed)?;
        note::open(text, &this.from)?;
        note::open(text, &this.to)?;
        Ok(this)
    }

    fn parse(body: &str) -> Option<Self> {
        let mut lines = body.strip_prefix(HEAD)?.strip_prefix('\n')?.lines();
        let (from, to): (VerifierKey, VerifierKey) =
            (lines.next()?.parse().ok()?, lines.next()?.parse().ok()?);
        let ended = match (lines.next(), lines.next()) {
            (None, _) => None,
            (Some(size), Some(root)) => {
                let root = BASE64.decode(root).ok()?.try_into().ok()?;
                Some((note::decimal(size)?, Digest(root)))
            }
            _ => return None,
        };
        let this = Self { from, to, ended };
        // The next shard has another name; a key of the same log has the same one. One spelling only.
        let fits = this.ended.is_some() == (this.from.name() != this.to.name());
        (fits && this.body() == body).then_some(this)
    }
}

/// The keys that spoke for one log, the newest last. Each note of it is signed by one of them at least; of its checkpoints
/// also by a second key, if it has one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogKeys {
    keys: Vec<VerifierKey>,
    ml_dsa: Option<MlDsaKey>,
}

impl From<VerifierKey> for LogKeys {
    fn from(key: VerifierKey) -> Self {
        Self { keys: vec![key], ml_dsa: None }
    }
}

impl LogKeys {
    /// The keys of a log, as far as statements lead back from the key that signs now, for it or for a later shard.
    ///
    /// # Errors
    /// [`SuccessionError`] when a statement does not hold, or none leads to the log.
    pub fn of(
        origin: &str,
        now: &VerifierKey,
        statements: &[String],
    ) -> Result<Self, SuccessionError> {
        let mut chain = vec![now.clone()];
        for text in statements.iter().rev().take(SUCCESSIONS_MAX) {
            let Succession { from, to, .. } = Succession::open(text)?;
            if chain.last() == Some(&to) {
                chain.push(from);
            }
        }
        chain.retain(|key| key.name() == origin);
        chain.reverse();
        if chain.is_empty() {
            let (from, to) = (origin.to_owned(), now.to_string());
            return Err(SuccessionError::Unreachable { from, to });
        }
        Ok(Self { keys: chain, ml_dsa: None })
    }

    /// The same, with a second key.
    #[must_use]
    pub fn beside(self, ml_dsa: Option<MlDsaKey>) -> Self {
        Self { ml_dsa, ..self }
    }

    /// The second key, if there is one. Checkpoints from before it have no signature by it.
    #[must_use]
    pub const fn ml_dsa(&self) -> Option<&MlDsaKey> {
        self.ml_dsa.as_ref()
    }

    /// The newest of them that has signed this note.
    #[must_use]
    pub fn who_signed(&self, note: &str) -> Option<&VerifierKey> {
        self.keys.iter().rev().find(|key| note::open(note, key).is_ok())
    }

    /// All of them, oldest first.
    pub fn all(&self) -> impl Iterator<Item = &VerifierKey> {
        self.keys.iter()
    }

    /// Whether this key is one of them.
    #[must_use]
    pub fn has(&self, key: &VerifierKey) -> bool {
        self.keys.contains(key)
    }

    /// The key that signs now.
    ///
    /// # Panics
    /// Never: there is always one.
    #[must_use]
    pub fn newest(&self) -> &VerifierKey {
        self.keys.last().expect("invariant: a log has a key")
    }

    /// Opens a checkpoint that one of them has signed; a signature that claims to be by any of them has to verify.
    ///
    /// # Errors
    /// [`NoteError`].
    pub fn open(&self, note: &str) -> Result<Checkpoint, NoteError> {
        let mut opened = Err(NoteError::Unsigned(self.newest().to_string()));
        for key in &self.keys {
            match Checkpoint::open(note, key) {
                Ok(head) => opened = Ok(head),
                Err(NoteError::Unsigned(_)) => {}
                Err(e) => return Err(e),
            }
        }
        if let Some(key) = &self.ml_dsa {
            key.signed(note)?;
        }
        opened
    }
}

/// The statements that lead from a pinned key to the one that signs now, oldest first; none when they are the same.
///
/// # Errors
/// [`SuccessionError`] when there is no such chain, or a statement in it does not hold.
pub fn follow(
    pinned: &VerifierKey,
    now: &VerifierKey,
    statements: &[String],
) -> Result<Vec<Succession>, SuccessionError> {
    let mut steps: Vec<Succession> = Vec::new();
    for text in statements.iter().take(SUCCESSIONS_MAX) {
        let reached = steps.last().map_or(pinned, |step| &step.to);
        if reached == now {
            break;
        }
        let step = Succession::open(text)?;
        if step.from == *reached {
            steps.push(step);
        }
    }
    if steps.last().map_or(pinned, |step| &step.to) == now {
        Ok(steps)
    } else {
        Err(SuccessionError::Unreachable { from: pinned.to_string(), to: now.to_string() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ed25519_dalek::SigningKey;

    fn signer(origin: &str, seed: u8) -> NoteSigner {
        NoteSigner::new(origin, SigningKey::from_bytes(&[seed; 32])).expect("a name")
    }

    fn signed(before: &NoteSigner, after: &NoteSigner, ended: Option<&Checkpoint>) -> String {
        Succession::sign(before, after, ended).expect("signs")
    }

    fn head(origin: &str, tree_size: u64) -> Checkpoint {
        Checkpoint { origin: origin.into(), tree_size, root_hash: Digest::of(b"root") }
    }

    #[test]
    fn a_chain_leads_from_an_old_key_to_the_one_that_signs_now_and_back() {
        let (a, b) = (signer("t/2026", 1), signer("t/2026", 2));
        let (c, d) = (signer("t/2027", 2), signer("t/2027", 3));
        let end = head("t/2026", 9);
        let chain = [signed(&a, &b, None), signed(&b, &c, Some(&end)), signed(&c, &d, None)];
        let steps = follow(a.verifier(), d.verifier(), &chain).expect("a chain");
        assert_eq!(steps.len(), 3);
        assert_eq!(steps[1].ended, Some((9, end.root_hash)));
        assert_eq!(follow(c.verifier(), d.verifier(), &chain).expect("a chain").len(), 1);
        assert_eq!(follow(d.verifier(), d.verifier(), &[]), Ok(Vec::new()));
        // Another shard's keys do not speak for this one.
        let keys = |of: [&NoteSigner; 2]| {
            Ok(LogKeys { keys: of.map(|s| s.verifier().clone()).to_vec(), ml_dsa: None })
        };
        assert_eq!(LogKeys::of("t/2027", d.verifier(), &chain), keys([&c, &d]));
        assert_eq!(LogKeys::of("t/2026", d.verifier(), &chain), keys([&a, &b]));
        assert!(LogKeys::of("t/2025", d.verifier(), &chain).is_err());
        for broken in [&chain[1..], &chain[..2]] {
            let e = follow(a.verifier(), d.verifier(), broken).expect_err("a gap");
            assert!(matches!(e, SuccessionError::Unreachable { .. }), "{e}");
        }
        assert!(follow(d.verifier(), a.verifier(), &chain).is_err(), "keys do not go back");
    }

    #[test]
    fn a_statement_that_one_side_has_not_signed_or_that_was_changed_leads_nowhere() {
        let (a, b) = (signer("t/2026", 1), signer("t/2026", 2));
        let whole = signed(&a, &b, None);
        assert!(whole.len() < 1_000, "it fits into an entry");
        assert_eq!(Succession::open(&whole).expect("holds").to, *b.verifier());
        let lines: Vec<&str> = whole.lines().collect();
        for missing in [lines.len() - 1, lines.len() - 2] {
            let kept = lines.iter().enumerate().filter(|(i, _)| *i != missing);
            let mut kept: Vec<&str> = kept.map(|(_, line)| *line).collect();
            kept.push("");
            let text = kept.join("\n");
            assert!(matches!(Succession::open(&text), Err(SuccessionError::Note(_))), "{text}");
        }
        let stranger = signer("t/2026", 7);
        let changed = whole.replace(&b.verifier().to_string(), &stranger.verifier().to_string());
        assert!(changed != whole && Succession::open(&changed).is_err());
        // An end without another shard, another shard without an end.
        let next = signer("t/2027", 2);
        assert!(Succession::open(&signed(&a, &b, Some(&head("t/2026", 1)))).is_err());
        assert!(Succession::open(&signed(&a, &next, None)).is_err());
        let longest = "o".repeat(ORIGIN_CHARS_MAX);
        let (old, new) = (signer(&longest, 1), signer(&longest.replace('o', "p"), 2));
        let end = head(&longest, u64::MAX);
        assert!(signed(&old, &new, Some(&end)).chars().count() <= 1_000);
    }

    #[test]
    fn a_checkpoint_opens_under_any_of_a_logs_keys_and_under_no_other() {
        let (a, b) = (signer("t/2026", 1), signer("t/2026", 2));
        let keys = LogKeys::of("t/2026", b.verifier(), &[signed(&a, &b, None)]).expect("a chain");
        let head = head("t/2026", 5);
        let body = head.body();
        let (old, new, both) = (
            a.sign(&body).expect("signs"),
            b.sign(&body).expect("signs"),
            b.sign(&body).expect("signs") + &a.line(&body).expect("signs"),
        );
        for note in [&old, &new, &both] {
            assert_eq!(keys.open(note), Ok(head.clone()));
        }
        assert_eq!(Checkpoint::open(&both, a.verifier()), Ok(head.clone()), "old keys still do");
        assert!(matches!(
            keys.open(&signer("t/2026", 7).sign(&body).expect("signs")),
            Err(NoteError::Unsigned(_))
        ));
        let spoilt = both.replace("\n5\n", "\n6\n");
        assert!(matches!(keys.open(&spoilt), Err(NoteError::BadSignature(_))));
    }
}
