//! The site's own policy: `site.cedar` beside the configuration, final at the site, and who approved which study.
//!
//! It is asked before anything is read or paid, in each round again, and narrows what the configuration permits; where
//! there never was such a file the configuration alone decides, and one that was there once is missed. A file that cannot be used stops the start. Changed while the agent runs, it
//! comes into force with the next question, unless it cannot be used: the policies before it stay then, and an error is
//! said. What cannot be asked is refused. The rules' language is `falaj_policies::SitePolicies`.

use crate::{
    config::Config,
    journal::{Journal, JournalError, Refused},
    ledger::{Ledger, LedgerError},
    streams::{self, Turn},
};
use ed25519_dalek::VerifyingKey;
use falaj_core::{
    canon::{self, Canon, CanonError},
    dp::rdp::{AccountantError, Epsilon, RdpCurve},
    evidence::Declared,
    id::{Digest, SiteId, SpiffeId},
    note,
    sign::SignKey,
    study::Study,
    time::Timestamp,
};
use falaj_policies::{PolicyError, SiteDecision, SitePolicies, SiteRequest};
use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

/// The context under which a site signs that a steward approved a study, or no longer does.
pub const APPROVAL_CONTEXT: &str = "falaj/site-approval/v1";
/// What the journal remembers once there was a policy file.
const PIN: &str = "site policy";
/// A policy file is at most this long.
pub const POLICY_BYTES_MAX: u64 = 1 << 20;

/// Why a study does not run here.
#[derive(Debug, thiserror::Error)]
pub enum PolicyRefusal {
    /// The site's rules say so.
    #[error("{0}")]
    Denied(String),
    /// The ledger cannot say what it would cost.
    #[error("the site's policy cannot be asked, which refuses: {0}")]
    Ledger(#[from] LedgerError),
    /// The study's settings have no guarantee.
    #[error("the site's policy cannot be asked, which refuses: {0}")]
    Accountant(#[from] AccountantError),
    /// The ledger's entries or an approval cannot be read.
    #[error("the site's policy cannot be asked, which refuses: {0}")]
    Unreadable(#[from] CanonError),
    /// The journal fails.
    #[error("the site's policy cannot be asked, which refuses: {0}")]
    Journal(#[from] JournalError),
}

impl PolicyRefusal {
    /// What the coordinator is told.
    #[must_use]
    pub fn disclosed(&self) -> String {
        match self {
            Self::Denied(reason) => reason.clone(),
            _ => "the site's policy cannot be asked at present, which refuses".into(),
        }
    }
}

/// Why the policy file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PolicyFileError {
    /// It cannot be read.
    #[error("cannot read {}: {}", .0.display(), .1)]
    Read(PathBuf, io::Error),
    /// It is too long.
    #[error("{} is longer than {POLICY_BYTES_MAX} bytes: keep rules, not lists of records, in it", .0.display())]
    Long(PathBuf),
    /// It does not parse, or does not fit.
    #[error("{} cannot be used: {}", .0.display(), .1.what)]
    Wrong(PathBuf, PolicyError),
    /// There was one.
    #[error("{} is gone, and studies ran by its rules: restore it; if agent.toml alone is to decide, write `permit (principal, action, resource);` into it", .0.display())]
    Gone(PathBuf),
    /// The journal cannot say whether there was one.
    #[error(transparent)]
    Journal(#[from] JournalError),
}

/// The policy file and what of it is in force.
pub struct PolicyFile {
    path: PathBuf,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    in_force: Option<Arc<SitePolicies>>,
    /// What was said about the file last, so that it is said once.
    said: Option<String>,
}

impl PolicyFile {
    /// Reads the file, if there is one.
    ///
    /// # Errors
    /// [`PolicyFileError`]; the agent must not start then.
    pub fn open(path: &Path) -> Result<Self, PolicyFileError> {
        let in_force = read(path, None)?;
        let state = Mutex::new(State { in_force, said: None });
        Ok(Self { path: path.to_owned(), state })
    }

    /// Sees to it that a file that was there once is missed.
    ///
    /// # Errors
    /// [`PolicyFileError::Gone`]; no study may run then.
    pub async fn missed(&self, journal: &Journal) -> Result<(), PolicyFileError> {
        if self.current().is_none() && journal.pinned(PIN).await?.is_some() {
            return Err(PolicyFileError::Gone(self.path.clone()));
        }
        Ok(())
    }

    /// As [`Self::missed`], at the start: says aloud that there is no file where there never was one, and remembers one that is there.
    ///
    /// # Errors
    /// [`PolicyFileError`]; the agent must not start then.
    pub async fn begin(&self, journal: &Journal) -> Result<(), PolicyFileError> {
        self.missed(journal).await?;
        if self.current().is_some() {
            journal.pin(PIN, "there").await?;
        } else {
            tracing::warn!(file = %self.path.display(), "there is no site policy: agent.toml alone decides which studies run, and no steward is asked");
        }
        Ok(())
    }

    /// The policies in force, taken from the file anew if it has changed; none where there never was a file.
    #[must_use]
    pub fn current(&self) -> Option<Arc<SitePolicies>> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let before = state.in_force.clone();
        let problem = match read(&self.path, before.as_ref()) {
            Ok(None) if before.is_none() => None,
            Ok(None) => Some(format!("{} is gone", self.path.display())),
            Ok(Some(now)) => {
                if before.as_ref().is_none_or(|before| before.digest() != now.digest()) {
                    tracing::info!(sha256 = %now.digest(), "the site's policy has changed and is in force");
                }
                state.in_force = Some(now);
                None
            }
            Err(e) => Some(e.to_string()),
        };
        if let Some(problem) = problem.as_ref().filter(|p| state.said.as_ref() != Some(*p)) {
            tracing::error!("{problem}; what was in force before stays in force");
        }
        state.said = problem;
        state.in_force.clone()
    }
}

/// The file's policies: those that are known, if its bytes are theirs.
fn read(
    path: &Path,
    known: Option<&Arc<SitePolicies>>,
) -> Result<Option<Arc<SitePolicies>>, PolicyFileError> {
    let unread = |e| PolicyFileError::Read(path.to_owned(), e);
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(unread(e)),
    };
    let mut text = String::new();
    let read = file.take(POLICY_BYTES_MAX + 1).read_to_string(&mut text).map_err(unread)?;
    if read as u64 > POLICY_BYTES_MAX {
        return Err(PolicyFileError::Long(path.to_owned()));
    }
    if let Some(known) = known.filter(|known| known.digest() == Digest::of(text.as_bytes())) {
        return Ok(Some(known.clone()));
    }
    let parsed = SitePolicies::parse(&text);
    parsed.map(|p| Some(Arc::new(p))).map_err(|e| PolicyFileError::Wrong(path.to_owned(), e))
}

/// What is asked of the policy.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// Who asks, by its certificate.
    pub coordinator: &'a SpiffeId,
    /// Where they say that they store and compute.
    pub declared: &'a Declared,
    /// For which study.
    pub study: &'a Study,
    /// SHA-256 of the study's file.
    pub study_sha256: Digest,
    /// Which round.
    pub round: u32,
    /// Whether this round stands in the ledger already, because it is being sent again.
    pub paid: bool,
    /// When.
    pub now: Timestamp,
}

/// Whom the policy asks in turn.
#[derive(Clone, Copy)]
pub struct Sources<'a> {
    /// The site's configuration.
    pub config: &'a Config,
    /// What was spent.
    pub ledger: &'a Ledger,
    /// What was approved.
    pub journal: &'a Journal,
    /// The site.
    pub site: &'a SiteId,
    /// The key that approvals are signed with.
    pub key: &'a VerifyingKey,
}

/// What the policy says, and what it was told.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The decision.
    pub decision: SiteDecision,
    /// Who approved the study.
    pub steward: Option<String>,
    /// Epsilon of the study after the round.
    pub epsilon_study: Epsilon,
    /// Epsilon of the data set this month, after the round.
    pub epsilon_month: Epsilon,
}

impl Sources<'_> {
    /// Asks; none where no policy file is in force. Nothing is read but ledger and journal, and nothing is written.
    ///
    /// # Errors
    /// [`PolicyRefusal`] when it cannot be asked.
    pub async fn ask(
        self,
        file: &PolicyFile,
        asked: Asked<'_>,
    ) -> Result<Option<Answer>, PolicyRefusal> {
        let Some(policies) = file.current() else { return Ok(None) };
        let study = asked.study;
        let approvals = Approvals { journal: self.journal, site: self.site, key: self.key };
        let steward = approvals.steward(&asked.study_sha256).await?;
        let name = study.data.dataset.as_str();
        let next = if asked.paid {
            RdpCurve::zero()
        } else {
            let turn = streams::turn(&self.config.state.dir, self.ledger, study).await?;
            let round = study.cost_of_round_after(turn.as_ref().map_or(0, Turn::steps))?;
            let joins = self.ledger.spent(name, Some(&study.id)).await? == RdpCurve::zero();
            if joins { round.compose(&study.cost_of_joining()?) } else { round }
        };
        let approver = steward.as_deref();
        let (decision, [epsilon_study, epsilon_month]) =
            self.decide(&policies, &asked, approver, (name, next)).await?;
        let mut answer =
            Answer { decision, steward: steward.clone(), epsilon_study, epsilon_month };
        // A data set that is kept for evaluation is asked for like any other.
        let kept = study.evaluated_on();
        if let Some(e) = study.evaluation.as_ref().filter(|_| answer.decision.allow && kept != name)
        {
            let next = if asked.paid { RdpCurve::zero() } else { e.noise.cost()? };
            answer.decision = self.decide(&policies, &asked, approver, (kept, next)).await?.0;
        }
        Ok(Some(answer))
    }

    /// Asks for one data set, after `next` is spent on it; and gives epsilon of the study and of the month then.
    async fn decide(
        self,
        policies: &SitePolicies,
        asked: &Asked<'_>,
        steward: Option<&str>,
        (name, next): (&str, RdpCurve),
    ) -> Result<(SiteDecision, [Epsilon; 2]), PolicyRefusal> {
        let Some(dataset) = self.config.dataset(name) else {
            let why = format!("this site offers no data set `{name}`");
            return Err(PolicyRefusal::Denied(why));
        };
        let spent = self.ledger.spent(name, Some(&asked.study.id)).await?;
        let month = spent_since(&self.ledger.entries().await?, name, month_of(asked.now))?;
        let epsilon = |spent: &RdpCurve| spent.compose(&next).epsilon(dataset.delta);
        let (epsilon_study, epsilon_month) = (epsilon(&spent)?, epsilon(&month)?);
        let decision = policies.decide(&SiteRequest {
            coordinator: asked.coordinator,
            declared: asked.declared,
            study: asked.study,
            dataset: name,
            study_sha256: asked.study_sha256,
            round: asked.round,
            now: asked.now,
            steward,
            epsilon_study: epsilon_study.value(),
            epsilon_month: epsilon_month.value(),
        });
        Ok((decision, [epsilon_study, epsilon_month]))
    }

    /// Asks, and keeps a refusal in the journal.
    ///
    /// # Errors
    /// [`PolicyRefusal`]: refused, or it cannot be asked.
    pub async fn permit(self, file: &PolicyFile, asked: Asked<'_>) -> Result<(), PolicyRefusal> {
        let Some(Answer { decision, .. }) = self.ask(file, asked).await? else { return Ok(()) };
        // From here on it is missed where it is gone.
        self.journal.pin(PIN, "there").await?;
        if decision.allow {
            return Ok(());
        }
        self.journal
            .refused(&Refused {
                at: asked.now.to_string(),
                study: asked.study.id.to_string(),
                study_sha256: asked.study_sha256.to_string(),
                round: asked.round,
                policy_sha256: decision.digest.to_string(),
                reason: decision.reason.clone(),
            })
            .await?;
        Err(PolicyRefusal::Denied(decision.reason))
    }
}

/// When the month of a point in time began, in UTC.
#[must_use]
pub fn month_of(now: Timestamp) -> Timestamp {
    let text = now.to_string();
    let first = text.get(..7).and_then(|m| Timestamp::parse(&format!("{m}-01T00:00:00.000Z")));
    first.unwrap_or(now)
}

/// What all studies reserved on a data set since a point in time, and did not give back. Whoever the records were about
/// then: other people's spending counts too, so that a statement about them does not refill a month.
///
/// # Errors
/// When an entry cannot be read.
pub fn spent_since(
    entries: &[Vec<u8>],
    dataset: &str,
    since: Timestamp,
) -> Result<RdpCurve, CanonError> {
    let mut costs: BTreeMap<u64, RdpCurve> = BTreeMap::new();
    for entry in entries {
        let c = canon::parse(entry)?;
        match c.text("kind")? {
            "reserved"
                if c.text("dataset")? == dataset && c.int::<i64>("at_ms")? >= since.as_millis() =>
            {
                let cost = RdpCurve::parse(c.text("cost_rdp")?)
                    .ok_or_else(|| CanonError::Member("cost_rdp".into()))?;
                costs.insert(c.int("id")?, cost);
            }
            "given_back" => drop(costs.remove(&c.int("id")?)),
            _ => {}
        }
    }
    Ok(costs.values().fold(RdpCurve::zero(), |sum, cost| sum.compose(cost)))
}

/// A steward's word about a study file, signed by the site.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Approval {
    /// The study's name.
    pub study: String,
    /// SHA-256 of its file.
    pub study_sha256: Digest,
    /// Who says so. Whoever holds the site's key writes this name: it is not proven.
    pub steward: String,
    /// When.
    pub at: Timestamp,
    /// Whether it is approved from then on, or no longer.
    pub approved: bool,
}

impl Approval {
    /// Canonical bytes, as signed under [`APPROVAL_CONTEXT`] for this site.
    #[must_use]
    pub fn to_bytes(&self, site: &SiteId) -> Vec<u8> {
        Canon::map([
            ("approved", Canon::Bool(self.approved)),
            ("at_ms", Canon::Int(self.at.as_millis())),
            ("site", site.to_string().into()),
            ("steward", self.steward.as_str().into()),
            ("study", self.study.as_str().into()),
            ("study_sha256", self.study_sha256.to_string().into()),
            ("v", Canon::Int(1)),
        ])
        .to_bytes()
    }

    fn parse(bytes: &[u8]) -> Result<Self, CanonError> {
        let c = canon::parse(bytes)?;
        let Some(Canon::Bool(approved)) = c.member("approved") else {
            return Err(CanonError::Member("approved".into()));
        };
        Ok(Self {
            study: c.text("study")?.to_owned(),
            study_sha256: c.parsed("study_sha256")?,
            steward: c.text("steward")?.to_owned(),
            at: Timestamp::from_millis(c.int("at_ms")?),
            approved: *approved,
        })
    }
}

/// What the site's stewards approved.
#[derive(Clone, Copy)]
pub struct Approvals<'a> {
    /// Where it is kept.
    pub journal: &'a Journal,
    /// The site.
    pub site: &'a SiteId,
    /// Its key.
    pub key: &'a VerifyingKey,
}

impl Approvals<'_> {
    /// Keeps a steward's word, signed.
    ///
    /// # Errors
    /// When the journal fails, or the key cannot be used now.
    pub async fn keep(self, signer: &dyn SignKey, word: &Approval) -> anyhow::Result<()> {
        let body = word.to_bytes(self.site);
        let signature = note::sign_context(signer, APPROVAL_CONTEXT, &body)?;
        Ok(self.journal.approve(&word.study_sha256, &body, &signature).await?)
    }

    /// Who has approved a study file, by the newest word about it. A word that this site's key did not sign is none.
    ///
    /// # Errors
    /// When the journal fails.
    pub async fn steward(self, study_sha256: &Digest) -> Result<Option<String>, PolicyRefusal> {
        let Some((body, signature)) = self.journal.approval(study_sha256).await? else {
            return Ok(None);
        };
        let Some(word) = self.opened(&body, &signature) else {
            tracing::error!(%study_sha256, "an approval in the journal is not signed by this site's key and does not count: approve the study again");
            return Ok(None);
        };
        Ok((word.approved && word.study_sha256 == *study_sha256).then_some(word.steward))
    }

    /// Every word, oldest first, those that do not count as none.
    ///
    /// # Errors
    /// When the journal fails.
    pub async fn all(self) -> Result<Vec<Option<Approval>>, JournalError> {
        let rows = self.journal.approvals().await?;
        Ok(rows.iter().map(|(body, signature)| self.opened(body, signature)).collect())
    }

    fn opened(self, body: &[u8], signature: &[u8]) -> Option<Approval> {
        if !note::verify_context(self.key, APPROVAL_CONTEXT, body, signature) {
            return None;
        }
        let word = Approval::parse(body).ok()?;
        // A word for another site would be written otherwise.
        (word.to_bytes(self.site) == body).then_some(word)
    }
}
