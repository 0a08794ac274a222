//! Entries of the audit log: what is said about each access and each change, as canonical JSON.
//!
//! An entry holds identifiers, digests and counts; never rows, parameters or people, who have pseudonyms ([`person`]). Each
//! carries 16 random bytes, so that nobody who sees only its hash can guess it. Real quantities are decimal strings.

pub mod approvals;
pub mod erasure;
pub mod objects;
pub mod person;
pub mod siem;

use crate::{
    canon::{Canon, CanonError, Document, Node},
    evidence::Evidence,
    id::{Digest, Place, RoundId, SpiffeId, StudyId},
    merkle::ENTRY_BYTES_MAX,
    roles::{self, Roles},
    time::Timestamp,
};
use person::{Disclosure, Person, PersonError};
use std::{borrow::Cow, collections::BTreeMap, fmt, str::FromStr};

/// Foreign text in an entry is cut to this many characters.
const TEXT_CHARS_MAX: usize = 1_000;
/// The member that verdicts are judged by again: as long as anything else can make room, its digest does not take its place.
const JUDGED_BY: &str = "compared";
/// A member that is no longer than this makes no room.
const SHORT_BYTES: usize = 100;
/// Members that every entry has, and that a draft cannot set.
const RESERVED: [&str; 5] = ["v", "seq", "ts", "kind", "nonce"];

macro_rules! kinds {
    ($($(#[$doc:meta])* $variant:ident = $name:literal;)*) => {
        /// What happened.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Kind { $($(#[$doc])* $variant,)* }

        impl Kind {
            /// Every kind.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// Its stable name.
            #[must_use]
            pub const fn as_str(self) -> &'static str { match self { $(Self::$variant => $name,)* } }
        }
    };
}

kinds! {
    /// The log begins.
    LogOpened = "log.opened";
    /// The log ends here, and another shard goes on from it.
    LogClosed = "log.closed";
    /// Another key speaks for the log from now on.
    KeyRotated = "key.rotated";
    /// The coordinator started, and under which policies.
    CoordinatorStarted = "coordinator.started";
    /// The policy set was read afresh.
    PolicyLoaded = "policy.loaded";
    /// Changed policies cannot be used; the old ones stay in force.
    PolicyRefused = "policy.refused";
    /// Rescue policies took the place of all others: somebody with the run of the machine broke the glass.
    GlassBroken = "glass.broken";
    /// The policies of before are asked again.
    GlassMended = "glass.mended";
    /// A connection was let in.
    ConnectionAdmitted = "connection.admitted";
    /// A connection was refused: at the handshake, for its identity, or by policy.
    ConnectionRefused = "connection.refused";
    /// The coordinator may speak to an endpoint: a database, a witness, an authority for time-stamps, an identity provider.
    EndpointAllowed = "endpoint.allowed";
    /// What was found out about a connection, and that it may stay.
    EvidenceTaken = "evidence.taken";
    /// A connection was ended: whoever it belonged to may not be here any more.
    ConnectionEnded = "connection.ended";
    /// Whom the coordinator trusts, or its own certificate, was read afresh.
    TrustLoaded = "trust.loaded";
    /// A certificate, or all of an identity, is not to be trusted any more.
    CertificateRevoked = "certificate.revoked";
    /// A revocation was taken back.
    CertificateReinstated = "certificate.reinstated";
    /// Somebody approves that another person has a model or the log, and takes it somewhere.
    ApprovalGiven = "approval.given";
    /// An approval was taken back.
    ApprovalWithdrawn = "approval.withdrawn";
    /// An operator made a token by which a site gets its first certificate.
    EnrolmentOffered = "enrolment.offered";
    /// An operator took a token back that nobody had used.
    EnrolmentWithdrawn = "enrolment.withdrawn";
    /// Somebody who came with a token, or to renew a certificate, gets none.
    EnrolmentRefused = "enrolment.refused";
    /// A site is about to be given its first certificate, or is given the same one again.
    SiteEnrolled = "site.enrolled";
    /// A site is about to be given another certificate about its key.
    CertificateRenewed = "certificate.renewed";
    /// An operator has signed in at an identity provider, and is about to be given a certificate.
    OperatorSignedIn = "operator.signed_in";
    /// Something is wrong that somebody should look into.
    AlertRaised = "alert.raised";
    /// A study was submitted.
    StudySubmitted = "study.submitted";
    /// A study has run all its rounds.
    StudyFinished = "study.finished";
    /// A study failed.
    StudyFailed = "study.failed";
    /// An operator stopped a study.
    StudyStopped = "study.stopped";
    /// A round opened on a base model.
    RoundOpened = "round.opened";
    /// A round takes no more updates.
    RoundClosed = "round.closed";
    /// A round failed.
    RoundFailed = "round.failed";
    /// A site joined a round.
    SiteJoined = "site.joined";
    /// A site will not take part in a round.
    SiteDeclined = "site.declined";
    /// A site's message in a masked round is durable.
    ExchangeAnswered = "exchange.answered";
    /// What a site counted about a candidate is durable.
    EvaluationAccepted = "evaluation.accepted";
    /// A site was given its task.
    TaskSent = "task.sent";
    /// A model is about to be served.
    ModelRead = "model.read";
    /// A candidate became a study's model.
    ModelPublished = "model.published";
    /// A gate kept a candidate out.
    ModelRejected = "model.rejected";
    /// Gates ask people about a candidate, which waits for them.
    CandidateHeld = "candidate.held";
    /// Somebody approves it.
    CandidateApproved = "candidate.approved";
    /// Somebody refuses it.
    CandidateRefused = "candidate.refused";
    /// A study goes on from the last of its models that passed every gate.
    ModelRolledBack = "model.rolled_back";
    /// A round's model is a version, by which it can be promoted.
    VersionMade = "version.made";
    /// A version goes on to another stage.
    VersionPromoted = "version.promoted";
    /// A version is not good enough.
    VersionRejected = "version.rejected";
    /// A version must not be used any more.
    VersionRevoked = "version.revoked";
    /// The version that was in production before serves again.
    VersionRolledBack = "version.rolled_back";
    /// An alias was given to a version, or taken away.
    VersionAliased = "version.aliased";
    /// An update is durable and counted.
    UpdateAccepted = "update.accepted";
    /// An update was refused.
    UpdateRefused = "update.refused";
    /// The very same update came again.
    UpdateDuplicate = "update.duplicate";
    /// An operator is about to be served.
    AdminRead = "admin.read";
    /// Somebody who is connected was refused by policy.
    AccessDenied = "access.denied";
    /// The log is about to be exported.
    LogExported = "log.exported";
    /// The coordinator is about to put the report of a period, and the bundle under it, into the operator's folder.
    ReportExported = "report.exported";
    /// What became of an access that carries data away.
    AccessServed = "access.served";
    /// An authority has stamped a checkpoint with the time.
    CheckpointStamped = "checkpoint.stamped";
    /// An authority has stamped a report over the log with the time.
    ReportStamped = "report.stamped";
    /// A person is about to be erased.
    ErasureBegun = "erasure.begun";
    /// What identifies a person has been erased.
    ErasurePerformed = "erasure.performed";
    /// A person was not erased, for the law says so.
    ErasureRefused = "erasure.refused";
    /// Nothing of a person, or of a study's people, may be erased from now on.
    HoldPlaced = "hold.placed";
    /// A hold has ended.
    HoldReleased = "hold.released";
    /// The contents of a shard that has ended are about to be deleted.
    PruningBegun = "pruning.begun";
    /// They have been deleted; hashes stay.
    PruningPerformed = "pruning.performed";
    /// A shard was not pruned, for something keeps it.
    PruningRefused = "pruning.refused";
}

impl Kind {
    /// What stays of a shard that is pruned: who speaks for the log after whom, and whatever binds those who come later.
    pub const KEPT: [Self; 12] = [
        Self::LogOpened,
        Self::LogClosed,
        Self::KeyRotated,
        Self::ErasureBegun,
        Self::ErasurePerformed,
        Self::HoldPlaced,
        Self::HoldReleased,
        Self::CertificateRevoked,
        Self::CertificateReinstated,
        Self::PruningBegun,
        Self::PruningPerformed,
        Self::ReportExported,
    ];
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Kind {
    type Err = CanonError;
    fn from_str(s: &str) -> Result<Self, CanonError> {
        Self::ALL
            .iter()
            .copied()
            .find(|k| k.as_str() == s)
            .ok_or_else(|| CanonError::Member("kind".into()))
    }
}

/// Who did it, as far as is known.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Actor {
    /// The pseudonym, if it is a person: entries name that, and commit to the rest.
    pub person: Option<Person>,
    /// The certificate's identity.
    pub id: Option<SpiffeId>,
    /// SHA-256 of the certificate.
    pub cert: Option<Digest>,
    /// The source address.
    pub address: Option<String>,
    /// A person's roles.
    pub roles: Roles,
}

impl Actor {
    /// How whoever it is stands where people must not stand in clear; empty if nobody is known.
    #[must_use]
    pub fn name(&self) -> String {
        match (self.person, &self.id) {
            (Some(person), _) => objects::Object::Person(person).to_string(),
            (None, Some(id)) => id.to_string(),
            (None, None) => String::new(),
        }
    }
}

/// An entry before it has a place in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Draft {
    kind: Kind,
    members: BTreeMap<String, Canon>,
    /// Who did it, if it was a person, and what is to be committed to.
    personal: Option<(Person, Canon)>,
}

impl Draft {
    /// An entry of this kind.
    #[must_use]
    pub const fn new(kind: Kind) -> Self {
        Self { kind, members: BTreeMap::new(), personal: None }
    }

    /// What happened.
    #[must_use]
    pub const fn kind(&self) -> Kind {
        self.kind
    }

    /// The same entry as one of another kind.
    #[must_use]
    pub const fn into_kind(mut self, kind: Kind) -> Self {
        self.kind = kind;
        self
    }

    /// Who did it.
    #[must_use]
    pub fn actor(mut self, actor: &Actor) -> Self {
        if let Some(person) = actor.person {
            self.personal = Some((person, person::payload(actor)));
            return self.with("actor", Canon::Map(person::members(person, actor)));
        }
        self.personal = None;
        let mut members = BTreeMap::new();
        if let Some(id) = &actor.id {
            members.insert("id".to_owned(), id.to_string().into());
            members.insert("place".to_owned(), id.place().to_string().into());
        }
        if let Some(cert) = &actor.cert {
            members.insert("cert_sha256".to_owned(), cert.to_string().into());
        }
        if let Some(address) = &actor.address {
            members.insert("address".to_owned(), bounded(address));
        }
        if !actor.roles.is_empty() {
            members.insert("roles".to_owned(), roles::list(actor.roles));
        }
        self.with("actor", Canon::Map(members))
    }

    /// The person who did it, if it was one and nothing is committed to yet.
    #[must_use]
    pub fn uncommitted(&self) -> Option<Person> {
        self.personal.as_ref().map(|(person, _)| *person)
    }

    /// Commits to who did it, if it was a person, for the entry's place in the log: gives who, and what opens the commitment.
    pub fn commit_to_person(&mut self, seq: u64, salt: [u8; 32]) -> Option<(Person, Disclosure)> {
        let (person, payload) = self.personal.take()?;
        let disclosure = Disclosure { seq, salt, payload };
        if let Some(Canon::Map(actor)) = self.members.get_mut("actor") {
            let commitment = disclosure.commitment().to_string();
            actor.insert("personal_commit".to_owned(), commitment.into());
        }
        Some((person, disclosure))
    }

    /// The person that it is about, who need not be the one who did it.
    #[must_use]
    pub fn person(self, person: Person) -> Self {
        self.text("person", &person.to_string())
    }

    /// Under which policies it was decided, and how.
    #[must_use]
    pub fn decided(self, allow: bool, policies: &[String], policy_set: &Digest) -> Self {
        self.text("decision", if allow { "allow" } else { "deny" })
            .with("policy_ids", Canon::List(policies.iter().map(|p| bounded(p)).collect()))
            .digest("policy_set_sha256", policy_set)
    }

    /// What is known of the connection.
    #[must_use]
    pub fn evidence(self, evidence: &Evidence) -> Self {
        self.with("evidence", evidence.to_canon())
    }

    /// Which study it is about.
    #[must_use]
    pub fn study(self, study: &StudyId) -> Self {
        self.text("study", study.as_str())
    }

    /// Which round it is about.
    #[must_use]
    pub fn round(self, round: &RoundId) -> Self {
        self.study(&round.study).with("round", round.number.into())
    }

    /// What was asked for: names and values; nothing is said when there are none.
    #[must_use]
    pub fn asked<'a>(self, what: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let asked = Canon::map(what.into_iter().map(|(name, value)| (name, bounded(value))));
        if asked == Canon::Map(BTreeMap::new()) { self } else { self.with("asked", asked) }
    }

    /// A member of text, cut to a bound.
    #[must_use]
    pub fn text(self, key: &str, value: &str) -> Self {
        self.with(key, bounded(value))
    }

    /// A member that is a digest.
    #[must_use]
    pub fn digest(self, key: &str, value: &Digest) -> Self {
        self.with(key, value.to_string().into())
    }

    /// A member that counts.
    #[must_use]
    pub fn count(self, key: &str, value: u64) -> Self {
        self.with(key, Canon::Int(i64::try_from(value).unwrap_or(i64::MAX).min((1 << 53) - 1)))
    }

    /// A member that lists digests.
    #[must_use]
    pub fn digests(self, key: &str, values: &[Digest]) -> Self {
        self.with(key, Canon::List(values.iter().map(|d| d.to_string().into()).collect()))
    }

    /// A member that lists texts, each cut to a bound.
    #[must_use]
    pub fn texts(self, key: &str, values: impl IntoIterator<Item = String>) -> Self {
        self.with(key, Canon::List(values.into_iter().map(|text| bounded(&text)).collect()))
    }

    fn with(mut self, key: &str, value: Canon) -> Self {
        debug_assert!(!RESERVED.contains(&key), "{key} is set by the log");
        self.members.insert(key.to_owned(), value);
        self
    }

    /// The entry's bytes at its place in the log. Should a list have made it longer than an entry may be, the
    /// longest member is replaced by its digest, so that an entry can always be written. `compared` is the last of them.
    #[must_use]
    pub fn finish(mut self, seq: u64, ts: Timestamp, nonce: [u8; 16]) -> Vec<u8> {
        loop {
            let mut members = self.members.clone();
            members.insert("v".into(), Canon::Int(1));
            members.insert("seq".into(), Canon::Int(i64::try_from(seq).unwrap_or(i64::MAX)));
            members.insert("ts".into(), ts.to_string().into());
            members.insert("kind".into(), self.kind.as_str().into());
            members.insert("nonce".into(), hex::encode(nonce).into());
            let bytes = Canon::Map(members).to_bytes();
            if bytes.len() <= ENTRY_BYTES_MAX {
                return bytes;
            }
            let length = |(_, v): &(&String, &Canon)| v.to_bytes().len();
            let others = self.members.iter().filter(|(k, _)| *k != JUDGED_BY);
            let longest = others.filter(|member| length(member) > SHORT_BYTES).max_by_key(length);
            let longest = longest.or_else(|| self.members.iter().max_by_key(length));
            let Some((key, value)) = longest.map(|(k, v)| (k.clone(), v.to_bytes())) else {
                return bytes;
            };
            self.members.remove(&key);
            let digest = Digest::of(&value).to_string();
            self.members.insert(format!("{key}_sha256"), digest.into());
        }
    }
}

fn bounded(text: &str) -> Canon {
    Canon::Text(within_bounds(text))
}

/// A text as entries have it: cut to a bound.
#[must_use]
pub fn within_bounds(text: &str) -> String {
    text.chars().take(TEXT_CHARS_MAX).collect()
}

/// An entry read back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its index in the log.
    pub seq: u64,
    /// When it was committed, RFC 3339 in UTC; the format is fixed, so text order is time order.
    pub ts: String,
    /// What happened.
    pub kind: Kind,
    body: Document,
    actor: Acting,
}

/// Who did an entry, as far as it says so. Everybody asks for that, so it is read once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Acting {
    person: Option<Person>,
    commit: Option<Digest>,
    /// Of a person only if it was disclosed, as the certificate.
    id: Option<SpiffeId>,
    cert: Option<Digest>,
}

impl Acting {
    fn read(said: Node<'_>) -> Self {
        let person = said.find("person");
        let commit = said.find("personal_commit");
        if person.is_some() {
            return Self { person, commit, ..Self::default() };
        }
        Self { person, commit, id: said.find("id"), cert: said.find("cert_sha256") }
    }
}

impl Entry {
    /// Reads an entry's bytes.
    ///
    /// # Errors
    /// [`CanonError`] when they are not canonical, or lack what every entry has.
    pub fn parse(bytes: &[u8]) -> Result<Self, CanonError> {
        let body = Document::parse(bytes)?;
        let said = body.root();
        if said.int::<u32>("v")? != 1 {
            return Err(CanonError::Member("v".into()));
        }
        if said.text("nonce")?.len() != 32 {
            return Err(CanonError::Member("nonce".into()));
        }
        Ok(Self {
            seq: said.int("seq")?,
            ts: said.text("ts")?.to_owned(),
            kind: said.parsed("kind")?,
            actor: said.member("actor").map(Acting::read).unwrap_or_default(),
            body,
        })
    }

    /// Its members.
    #[must_use]
    pub const fn body(&self) -> Node<'_> {
        self.body.root()
    }

    /// The same entry, in which it is known who the person is; the disclosure must open its commitment.
    ///
    /// # Errors
    /// [`PersonError`], which says what is wrong with the disclosure.
    pub fn disclosed(mut self, disclosure: &Disclosure) -> Result<Self, PersonError> {
        let committed = self.actor.commit.filter(|_| disclosure.seq == self.seq);
        let Some(committed) = committed else {
            let (disclosed, entry) = (disclosure.seq, self.seq);
            return Err(PersonError::Misplaced { disclosed, entry, kind: self.kind.as_str() });
        };
        let found = disclosure.commitment();
        if found != committed {
            return Err(PersonError::Commitment { committed, found });
        }
        let place = self.actor_place();
        let id = disclosure.id();
        if place.is_none() || place.as_ref() != id.as_ref().map(SpiffeId::place) {
            let place = place.map(|p| p.to_string()).unwrap_or_default();
            let id = id.map_or_else(|| "nobody".to_owned(), |id| id.to_string());
            return Err(PersonError::Place { place, id });
        }
        // Who names no person, but commits to one, is refused for that elsewhere.
        if self.actor.person.is_some() {
            (self.actor.id, self.actor.cert) = (id, disclosure.cert());
        }
        Ok(self)
    }

    /// What it commits to about the person who did it, if it was one.
    #[must_use]
    pub const fn personal_commit(&self) -> Option<Digest> {
        self.actor.commit
    }

    /// The actor's pseudonym, if it is a person.
    #[must_use]
    pub const fn actor_person(&self) -> Option<Person> {
        self.actor.person
    }

    /// The person that it is about.
    #[must_use]
    pub fn person(&self) -> Option<Person> {
        self.body().find("person")
    }

    /// Where the actor is, when that is known.
    #[must_use]
    pub fn actor_place(&self) -> Option<Place> {
        self.body().member("actor")?.find("place")
    }

    /// The roles that the actor had, if it is a person. Entries from before there were roles say nothing of them.
    ///
    /// # Errors
    /// [`CanonError::Member`] when they are no list of roles.
    pub fn actor_roles(&self) -> Result<Option<Roles>, CanonError> {
        match self.body().member("actor") {
            Some(actor) if actor.member("roles").is_some() => {
                roles::read(actor.list("roles")?.iter().map(|role| role.as_text())).map(Some)
            }
            _ => Ok(None),
        }
    }

    /// Where something is taken to, by the word of whoever takes it.
    #[must_use]
    pub fn destination(&self) -> Option<Place> {
        self.body().member("asked")?.text("place").ok()?.parse().ok()
    }

    /// The approvals that were counted when it was decided, by their names: one for each person. None if it says nothing of them.
    ///
    /// # Errors
    /// [`CanonError::Member`] when it says something else there.
    pub fn approvals(&self) -> Result<Vec<&str>, CanonError> {
        if self.body().member("approvals").is_none() {
            return Ok(Vec::new());
        }
        let names = self.body().list("approvals")?.into_iter().map(Node::as_text);
        names.collect::<Option<_>>().ok_or_else(|| CanonError::Member("approvals".into()))
    }

    /// What was known of the connection, if the entry says so.
    ///
    /// # Errors
    /// [`CanonError::Member`] when it says something else there.
    pub fn evidence(&self) -> Result<Option<Evidence>, CanonError> {
        let Some(said) = self.body().member("evidence") else { return Ok(None) };
        let bad = || CanonError::Member("evidence".into());
        Evidence::read(said).map(Some).ok_or_else(bad)
    }

    /// The actor's identity, when it is known.
    #[must_use]
    pub const fn actor_id(&self) -> Option<&SpiffeId> {
        self.actor.id.as_ref()
    }

    /// About whose request it is: the actor's, or the site's where the coordinator acts for one. Of a person it is known if it
    /// was disclosed.
    #[must_use]
    pub fn requester(&self) -> Option<Cow<'_, SpiffeId>> {
        let site = || self.body().find("site").map(Cow::Owned);
        self.actor_id().map(Cow::Borrowed).or_else(site)
    }

    /// The actor's certificate, when it is known.
    #[must_use]
    pub const fn actor_cert(&self) -> Option<Digest> {
        self.actor.cert
    }

    /// The study and round it is about.
    ///
    /// # Errors
    /// [`CanonError::Member`] when it is about none.
    pub fn round(&self) -> Result<RoundId, CanonError> {
        Ok(RoundId { study: self.body().parsed("study")?, number: self.body().int("round")? })
    }

    /// A member that lists digests.
    ///
    /// # Errors
    /// [`CanonError::Member`] when it is missing or holds anything else.
    pub fn digests(&self, key: &str) -> Result<Vec<Digest>, CanonError> {
        let bad = || CanonError::Member(key.to_owned());
        let items = self.body().list(key)?.into_iter();
        items.map(|item| item.as_text().ok_or_else(bad)?.parse().map_err(|_| bad())).collect()
    }
}

/// The digest of a policy set: of each file's name, a zero byte, its length in decimal, a zero byte, and its bytes.
#[must_use]
pub fn policy_set(files: &[(String, Vec<u8>)]) -> Digest {
    let mut whole = Vec::new();
    for (name, bytes) in files {
        whole.extend_from_slice(format!("{name}\0{}\0", bytes.len()).as_bytes());
        whole.extend_from_slice(bytes);
    }
    Digest::of(&whole)
}

/// Names inside an exported bundle, which is one uncompressed tar. What the log binds by digest is found
/// under its digest.
///
/// Order in the tar: [`bundle::ABOUT`], [`bundle::CHECKPOINT`], then everything that entries refer to, then
/// for each 256 entries their level-0 tile (`tile/0/…`), what is disclosed of the people in them (`personal/…`, if anything
/// is), and the entries themselves (`tile/entries/…`), so that a reader needs no more memory than one tile.
pub mod bundle {
    use super::person::Person;
    use crate::id::Digest;

    /// What the bundle is, in canonical JSON: `v`, `origin`, `tree_size`, `log_verifier_key`; `successions`,
    /// `log_ml_dsa_key` and `later` if there are any.
    pub const ABOUT: &str = "bundle.json";
    /// The signed checkpoint.
    pub const CHECKPOINT: &str = "checkpoint";
    /// Checkpoints that witnesses have cosigned.
    pub const WITNESSED: &str = "witnessed/";
    /// Checkpoints that an authority has stamped with the time, each followed by its time-stamp.
    pub const STAMPED: &str = "stamped/";
    /// Entries of later shards, which say that somebody has been erased, each followed by its proof.
    pub const ERASED: &str = "erased/";
    /// Level-0 tiles.
    pub const TILES: &str = "tile/0/";
    /// What is disclosed of the people in the entries of a tile.
    pub const PERSONAL: &str = "personal/";
    /// Entry bundles.
    pub const ENTRIES: &str = "tile/entries/";
    /// Certificates of issuers, DER, each by its digest.
    pub const ISSUERS: &str = "issuers/";
    /// Trust configurations that were ever in force, by the digest that entries name as `trust_sha256`.
    pub const TRUST: &str = "trust/";
    /// The report over all of the log, which follows from the rest.
    pub const REPORT: &str = "report.json";
    /// The time-stamp of that report, which is there only when it was asked for.
    pub const REPORT_STAMP: &str = "report.json.tsr";
    /// The version of this layout.
    pub const VERSION: u32 = 1;

    /// A certificate, DER, by the digest that entries name as `cert_sha256`.
    #[must_use]
    pub fn certificate(cert: &Digest) -> String {
        format!("certificates/{cert}.der")
    }

    /// An issuer's certificate, by its digest.
    #[must_use]
    pub fn issuer(cert: &Digest) -> String {
        format!("{ISSUERS}{cert}.der")
    }

    /// A trust configuration, by its digest.
    #[must_use]
    pub fn trust(trust: &Digest) -> String {
        format!("{TRUST}{trust}.toml")
    }

    /// A study file, by its digest.
    #[must_use]
    pub fn study(study: &Digest) -> String {
        format!("studies/{study}.yaml")
    }

    /// What is disclosed of the people in the entries of tile `n`: one line for each, in order.
    #[must_use]
    pub fn personal(n: u64) -> String {
        format!("{PERSONAL}{n}")
    }

    /// The entry of a later shard which says that this person has been erased.
    #[must_use]
    pub fn erased(person: Person) -> String {
        format!("{ERASED}{person}.json")
    }

    /// The proof of that entry (C2SP tlog-proof).
    #[must_use]
    pub fn erased_proof(person: Person) -> String {
        format!("{ERASED}{person}.tlog-proof")
    }

    /// A policy file of a set, by the set's digest.
    #[must_use]
    pub fn policy(set: &Digest, file: &str) -> String {
        format!("policies/{set}/{file}")
    }

    /// An earlier checkpoint, with the cosignatures of the witnesses of which it is the newest.
    #[must_use]
    pub fn witnessed(tree_size: u64) -> String {
        format!("{WITNESSED}{tree_size}")
    }

    /// An earlier checkpoint that was stamped, as it was then.
    #[must_use]
    pub fn stamped(tree_size: u64) -> String {
        format!("{STAMPED}{tree_size}")
    }

    /// The time-stamp of that checkpoint: what the authority answered.
    #[must_use]
    pub fn stamp(tree_size: u64) -> String {
        format!("{STAMPED}{tree_size}.tsr")
    }

    /// An update's signed header, by the digest of the header.
    #[must_use]
    pub fn header(header: &Digest) -> String {
        format!("updates/{header}.header")
    }

    /// The site's signature over that header.
    #[must_use]
    pub fn signature(header: &Digest) -> String {
        format!("updates/{header}.sig")
    }

    /// What sites counted about candidates: by the digest of the header its bytes, the signature over them, and the counts,
    /// in this order.
    pub const EVALUATIONS: &str = "evaluations/";

    /// A file of [`EVALUATIONS`]: `header`, `sig` or `counts`.
    #[must_use]
    pub fn evaluation(header: &Digest, file: &str) -> String {
        format!("{EVALUATIONS}{header}.{file}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::robust::OUTLIERS_MAX;

    #[test]
    fn an_entry_reads_back_as_it_was_written() {
        let site: SpiffeId = "spiffe://t/ae-on/ae-az/site/h".parse().expect("valid");
        let actor = Actor {
            id: Some(site.clone()),
            cert: Some(Digest::of(b"cert")),
            address: Some("127.0.0.1:1".into()),
            ..Actor::default()
        };
        let round = RoundId { study: "s".parse().expect("valid"), number: 2 };
        let bytes = Draft::new(Kind::UpdateAccepted)
            .actor(&actor)
            .round(&round)
            .digests("updates", &[Digest::of(b"u")])
            .finish(7, Timestamp::from_millis(0), [1; 16]);
        let entry = Entry::parse(&bytes).expect("an entry");
        assert_eq!((entry.seq, entry.kind), (7, Kind::UpdateAccepted));
        assert_eq!((entry.actor_id(), entry.round()), (Some(&site), Ok(round)));
        assert_eq!(entry.digests("updates"), Ok(vec![Digest::of(b"u")]));
        assert_eq!(entry.ts, "1970-01-01T00:00:00.000Z");
    }

    #[test]
    fn foreign_text_and_long_lists_never_make_an_entry_too_long() {
        let many = vec![Digest::of(b"x"); 5_000];
        let bytes = Draft::new(Kind::RoundClosed)
            .text("reason", &"é".repeat(1 << 20))
            .digests("updates", &many)
            .finish(0, Timestamp::from_millis(0), [0; 16]);
        assert!(bytes.len() <= ENTRY_BYTES_MAX);
        let entry = Entry::parse(&bytes).expect("an entry");
        assert!(entry.body().text("updates_sha256").is_ok());
    }

    #[test]
    fn what_verdicts_are_judged_by_is_the_last_to_make_room() {
        let sites = || (0..OUTLIERS_MAX).map(|n| format!("{n:063}"));
        let figures = sites().map(|name| format!("1.234567e-100 -0.123456 {name}"));
        let gates = sites().map(|name| format!("fail: update_norm_ratio at {name}: 1"));
        let many = vec![Digest::of(b"x"); OUTLIERS_MAX as usize];
        let bytes = Draft::new(Kind::ModelRejected)
            .digest("model_sha256", &many[0])
            .text("reason", &"é".repeat(1 << 20))
            .digests("updates", &many)
            .texts("gates", gates)
            .texts("evaluated_by", sites())
            .texts("compared", figures)
            .finish(0, Timestamp::from_millis(0), [0; 16]);
        assert!(bytes.len() <= ENTRY_BYTES_MAX);
        let entry = Entry::parse(&bytes).expect("an entry");
        let kept = entry.body().member("compared").expect("it has room").items().count();
        assert_eq!(kept, OUTLIERS_MAX as usize);
        assert!(entry.body().text("gates_sha256").is_ok());
        assert!(entry.body().text("model_sha256").is_ok());
        // By itself it makes room all the same.
        let endless = (0..2_000).map(|_| "x".repeat(100));
        let alone = Draft::new(Kind::ModelRejected).texts("compared", endless);
        let bytes = alone.finish(0, Timestamp::from_millis(0), [0; 16]);
        let entry = Entry::parse(&bytes).expect("an entry");
        assert!(entry.body().text("compared_sha256").is_ok());
    }

    #[test]
    fn every_kind_has_one_name() {
        for &kind in Kind::ALL {
            assert_eq!(kind.as_str().parse::<Kind>(), Ok(kind));
        }
    }
}
