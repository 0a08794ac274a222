//! The policies in force: read from a folder, and again when its files change. What they say is decided in
//! `falaj_policies`.

pub mod glass;
#[cfg(test)]
mod tests;

use crate::{
    metrics::Metrics,
    persons::Persons,
    store::writer::{Change, Commit, CommitError, Writer},
    trusted::Trusted,
};
use arc_swap::ArcSwap;
use falaj_core::{
    audit::{Draft, Kind, approvals::OF_ONE_MAX, policy_set},
    evidence::Evidence,
    id::{Digest, Place, SpiffeId},
    roles::{OperatorRole, Roles},
};
pub use falaj_policies::{Action, Decision, Party, Resource, With};
use falaj_policies::{POLICIES, Policies, PolicyError, SCHEMA, rescue};
use glass::Glass;
use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::{
    signal::unix::{SignalKind, signal},
    time::{MissedTickBehavior, interval},
};
use tokio_util::sync::CancellationToken;

/// How often the files are looked at. They are read when two looks, one after the other, see the same.
const LOOK: Duration = Duration::from_secs(2);

/// Why policies cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A file cannot be read.
    #[error("cannot read {0}")]
    Read(PathBuf, #[source] io::Error),
    /// A file does not parse, or does not fit the schema.
    #[error("{0}")]
    Invalid(PathBuf, #[source] PolicyError),
    /// Nobody could put it right any more.
    #[error(
        "{0}: no operator who is known could connect and, by the same role, read the status or revoke a site any more; an operator could until now, so this is taken for a mistake"
    )]
    LockOut(PathBuf),
    /// What breaks the glass is no such file.
    #[error("{0}: {1}; `falaj-coordinator break-glass` writes it")]
    Glass(PathBuf, String),
}

/// Why other policies were not put in force.
#[derive(Debug, thiserror::Error)]
enum NotInForce {
    #[error(transparent)]
    Load(#[from] LoadError),
    #[error("the log takes no entry about it")]
    Log(#[from] CommitError),
}

/// By these an operator sees that something is wrong, or keeps out whoever does harm: whoever may do none of them is locked out.
const DUTIES: [Action; 2] = [Action::StatusRead, Action::SiteRevoke];

type Files = Vec<(String, Vec<u8>)>;

/// What a look at the folder finds.
struct Found {
    files: Files,
    /// That the glass is broken; the files are not the folder's then.
    glass: Option<Glass>,
}

impl Found {
    /// What tells one find from another.
    fn state(&self) -> (Digest, Option<Glass>) {
        (policy_set(&self.files), self.glass.clone())
    }
}

struct Loaded {
    policies: Policies,
    files: Files,
    glass: Option<Glass>,
    /// What was in force before the glass was broken.
    before: Option<Arc<Loaded>>,
}

/// An approval that would count.
pub struct Given {
    /// Its name.
    pub approval: String,
    /// Who gave it.
    pub giver: SpiffeId,
    /// The roles that they have.
    pub roles: Roles,
}

/// Decides. A cheap handle: clones share the set in force.
#[derive(Clone)]
pub struct PolicyEngine {
    dir: Arc<PathBuf>,
    place: Arc<Place>,
    loaded: Arc<ArcSwap<Loaded>>,
}

impl PolicyEngine {
    /// Loads `coordinator.cedar` under `coordinator.cedarschema` for a coordinator in `place`.
    ///
    /// # Errors
    /// [`LoadError`], with the file and what is wrong in it.
    pub fn load(dir: &Path, place: &Place) -> Result<Self, LoadError> {
        let loaded = Arc::new(ArcSwap::from_pointee(load(dir, read(dir)?)?));
        Ok(Self { dir: Arc::new(dir.to_owned()), place: Arc::new(place.clone()), loaded })
    }

    /// SHA-256 of the policy set in force.
    #[must_use]
    pub fn digest(&self) -> Digest {
        self.loaded.load().policies.digest()
    }

    /// Whether the policies in force are told of sites' TPMs.
    #[must_use]
    pub fn know_tpms(&self) -> bool {
        self.loaded.load().policies.know_tpms()
    }

    /// The files in force: names and bytes.
    #[must_use]
    pub fn files(&self) -> Files {
        self.loaded.load().files.clone()
    }

    /// The entry which says that the glass is broken, if it is.
    #[must_use]
    pub fn broken(&self) -> Option<Draft> {
        self.loaded.load().glass.as_ref().map(broken)
    }

    /// The rows that keep the files in force for whoever reads the log later.
    #[must_use]
    pub fn rows(&self) -> Vec<Change> {
        rows(&self.loaded.load())
    }

    /// Whether `who` may do `action`.
    #[must_use]
    pub fn decide<'a>(
        &self,
        who: impl Into<Party<'a>>,
        action: Action,
        resource: &Resource<'_>,
    ) -> Decision {
        let who = who.into();
        self.decide_to(who, action, resource, who.id.place())
    }

    /// Whether `who` may speak to the coordinator at all, by what is known of the connection.
    #[must_use]
    pub fn decide_connect<'a>(&self, who: impl Into<Party<'a>>, evidence: &Evidence) -> Decision {
        self.loaded.load().policies.decide_connect(&self.place, who, evidence)
    }

    /// Whether the coordinator may speak to an endpoint of this kind, which is declared in a place, by what is known of its
    /// addresses.
    #[must_use]
    pub fn decide_endpoint(
        &self,
        me: &SpiffeId,
        endpoint: &str,
        destination: &Place,
        evidence: &Evidence,
    ) -> Decision {
        let evidence = Some(evidence);
        let with = With { destination, evidence, endpoint, ..With::of(me) };
        let loaded = self.loaded.load();
        let (action, resource) = (Action::EndpointUse, Resource::Service);
        loaded.policies.decide_with(&self.place, me, action, &resource, &with)
    }

    /// As [`Self::decide`], where `who` takes it to a `destination`.
    #[must_use]
    pub fn decide_to<'a>(
        &self,
        who: impl Into<Party<'a>>,
        action: Action,
        resource: &Resource<'_>,
        destination: &Place,
    ) -> Decision {
        let loaded = self.loaded.load();
        loaded.policies.decide_to(&self.place, who, action, resource, destination)
    }

    /// Decides over a request with the approvals of other people: those count whose givers may give them now. Their names come
    /// with the decision.
    #[must_use]
    pub fn decide_approved(
        &self,
        who: Party<'_>,
        action: Action,
        resource: &Resource<'_>,
        with: &With<'_>,
        given: Vec<Given>,
    ) -> (Decision, Vec<String>) {
        let (loaded, here, destination) = (self.loaded.load(), &*self.place, with.destination);
        let policies = &loaded.policies;
        let may = |given: &Given| {
            let giver = Party { id: &given.giver, roles: given.roles };
            policies.decide_to(here, giver, Action::ApprovalGive, resource, destination).allow
        };
        let counted: Vec<String> =
            given.into_iter().filter(may).map(|given| given.approval).collect();
        let with = With { approvals: counted.len(), ..*with };
        (policies.decide_with(here, who, action, resource, &with), counted)
    }

    /// Whether a request that is denied would be allowed if enough other people had approved it.
    #[must_use]
    pub fn wants_approval(
        &self,
        who: Party<'_>,
        action: Action,
        resource: &Resource<'_>,
        with: &With<'_>,
    ) -> bool {
        let (loaded, with) = (self.loaded.load(), With { approvals: OF_ONE_MAX, ..*with });
        loaded.policies.decide_with(&self.place, who, action, resource, &with).allow
    }
}

impl fmt::Debug for PolicyEngine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PolicyEngine({}, {})", self.dir.display(), self.digest())
    }
}

/// Keeps the policies in force as their files are: a change is taken up within seconds, and at once on SIGHUP. What cannot
/// be used leaves the old set in force, which is an entry, an error line and a metric.
pub async fn follow(
    engine: PolicyEngine,
    persons: Persons,
    writer: Writer,
    metrics: Arc<Metrics>,
    trusted: Trusted,
    shutdown: CancellationToken,
) {
    let Ok(mut hangup) = signal(SignalKind::hangup()) else { return };
    let mut look = interval(LOOK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // What was judged last, and what was seen last: nothing when the files could not be read.
    let mut judged = {
        let loaded = engine.loaded.load();
        Some((loaded.policies.digest(), loaded.glass.clone()))
    };
    let mut seen = judged.clone();
    loop {
        let asked = tokio::select! {
            () = shutdown.cancelled() => return,
            heard = hangup.recv() => match heard {
                Some(()) => true,
                None => return,
            },
            _ = look.tick() => false,
        };
        let found = read(&engine.dir);
        let now = found.as_ref().ok().map(Found::state);
        let settled = now == seen;
        seen.clone_from(&now);
        let over = engine.is_mended();
        if !asked && !over && (now == judged || !settled) {
            continue;
        }
        judged = now;
        let taken = match found {
            Ok(found) => {
                let evidence = trusted.now().best_evidence();
                engine.take_up(found, (&persons, &evidence), &writer, &metrics).await
            }
            Err(e) => Err(e.into()),
        };
        match taken {
            Ok(set) => {
                metrics.policy_set("loaded");
                tracing::info!(%set, "policies read again");
            }
            Err(NotInForce::Log(e)) => {
                // They are tried again with the next look.
                judged = None;
                tracing::error!(error = %e, "the old policies stay in force: the new ones could not be logged");
            }
            Err(NotInForce::Load(e)) => {
                if over && let Err(e) = engine.go_back(&writer).await {
                    judged = None;
                    tracing::error!(error = %e, "the glass is to be mended, and that could not be logged");
                    continue;
                }
                metrics.policy_set("refused");
                let why = format!("{:#}", anyhow::Error::from(e));
                tracing::error!(error = why, "the old policies stay in force");
                let entry = Draft::new(Kind::PolicyRefused)
                    .digest("policy_set_sha256", &engine.digest())
                    .text("reason", &why);
                if let Err(e) = writer.record(vec![entry]).await {
                    tracing::error!(error = %e, "that policies were refused could not be logged");
                }
            }
        }
    }
}

impl PolicyEngine {
    /// Whether any operator who is known could connect, and look or revoke, where nothing better than `evidence` can be known of
    /// their connection.
    #[must_use]
    pub fn lets_in(&self, persons: &Persons, evidence: &Evidence) -> bool {
        self.connects(&self.loaded.load().policies, persons, evidence)
    }

    fn connects(&self, policies: &Policies, persons: &Persons, evidence: &Evidence) -> bool {
        // Which roles somebody has is known when they come: whoever could by some role counts. Each is asked about by itself, for
        // a rule may forbid two at once.
        let may = |who: &SpiffeId, role: OperatorRole| {
            let who = || Party { id: who, roles: Roles::from_iter([role]) };
            let does = |duty| policies.decide(&self.place, who(), duty, &Resource::Service).allow;
            policies.decide_connect(&self.place, who(), evidence).allow
                && DUTIES.into_iter().any(does)
        };
        let may = |who: &SpiffeId| OperatorRole::ALL.iter().any(|role| may(who, *role));
        persons.all().iter().any(|(_, who)| may(who))
    }

    /// Puts other policies in force, after their entry is durable.
    async fn take_up(
        &self,
        found: Found,
        (persons, evidence): (&Persons, &Evidence),
        writer: &Writer,
        metrics: &Metrics,
    ) -> Result<Digest, NotInForce> {
        let mut fresh = load(&self.dir, found)?;
        let in_force = self.loaded.load_full();
        let before = in_force.glass.clone();
        // What is mended is as it was: the glass is broken for a bounded time, whatever comes after it.
        let mended = before.is_some() && fresh.glass.is_none();
        let connects = |policies| self.connects(policies, persons, evidence);
        if !mended && connects(&in_force.policies) && !connects(&fresh.policies) {
            return Err(LoadError::LockOut(self.dir.to_path_buf()).into());
        }
        let set = fresh.policies.digest();
        let mut entries = vec![Draft::new(Kind::PolicyLoaded).digest("policy_set_sha256", &set)];
        if mended {
            let why = before.as_ref().map_or("", |glass| glass.reason.as_str());
            entries.push(Draft::new(Kind::GlassMended).text("reason", why));
        } else if let Some(glass) = fresh.glass.as_ref().filter(|_| fresh.glass != before) {
            entries.push(broken(glass));
        }
        let commit = Commit { rows: rows(&fresh), entries, round: None };
        writer.commit(commit).await?;
        if let Some(glass) = fresh.glass.as_ref().filter(|_| fresh.glass != before) {
            metrics.alert("glass_broken");
            tracing::error!(reason = glass.reason, until = glass.until, "THE GLASS IS BROKEN");
        }
        if fresh.glass.is_some() {
            fresh.before = if before.is_some() { in_force.before.clone() } else { Some(in_force) };
        }
        self.loaded.store(Arc::new(fresh));
        Ok(set)
    }

    /// Whether the glass that is broken here has been mended, or its time is over.
    fn is_mended(&self) -> bool {
        let loaded = self.loaded.load();
        loaded
            .glass
            .as_ref()
            .is_some_and(|glass| glass.is_over() || matches!(glass::read(&self.dir), Ok(None)))
    }

    /// Ends the time of a broken glass when the folder has nothing that could be in force: what was before is again, and if
    /// nothing was, nothing is permitted.
    async fn go_back(&self, writer: &Writer) -> Result<(), CommitError> {
        let loaded = self.loaded.load_full();
        let why = loaded.glass.as_ref().map_or("", |glass| glass.reason.as_str());
        let back = match &loaded.before {
            Some(before) => before.clone(),
            None => Arc::new(nothing()),
        };
        let entries = vec![
            Draft::new(Kind::PolicyLoaded).digest("policy_set_sha256", &back.policies.digest()),
            Draft::new(Kind::GlassMended).text("reason", why),
        ];
        writer.commit(Commit { rows: rows(&back), entries, round: None }).await?;
        self.loaded.store(back);
        Ok(())
    }
}

/// A set that permits nothing.
fn nothing() -> Loaded {
    let files = falaj_policies::nothing();
    let policies =
        Policies::parse(&files).expect("invariant: a set without a rule fits its schema");
    Loaded { policies, files, glass: None, before: None }
}

fn rows(loaded: &Loaded) -> Vec<Change> {
    let set = loaded.policies.digest();
    let row = |(file, bytes): &(String, Vec<u8>)| Change::Policy(set, file.clone(), bytes.clone());
    loaded.files.iter().map(row).collect()
}

fn broken(glass: &Glass) -> Draft {
    Draft::new(Kind::GlassBroken).text("reason", &glass.reason).text("until", &glass.until)
}

fn read(dir: &Path) -> Result<Found, LoadError> {
    if let Some(glass) = glass::read(dir)? {
        return Ok(Found { files: rescue(), glass: Some(glass) });
    }
    let read = |name: &str| {
        let path = dir.join(name);
        let bytes = fs::read(&path).map_err(|e| LoadError::Read(path, e))?;
        Ok((name.to_owned(), bytes))
    };
    let files = [POLICIES, SCHEMA].into_iter().map(read).collect::<Result<_, _>>()?;
    Ok(Found { files, glass: None })
}

fn load(dir: &Path, Found { files, glass }: Found) -> Result<Loaded, LoadError> {
    let policies = Policies::parse(&files).map_err(|e| LoadError::Invalid(dir.to_owned(), e))?;
    Ok(Loaded { policies, files, glass, before: None })
}
