//! What REST says: the shapes that the server sends and the `falaj` command reads.
//!
//! Times are RFC 3339 in UTC; digests are lower-case hexadecimal SHA-256; epsilon is a number at the
//! study's delta, rounded up.

use serde::{Deserialize, Serialize, Serializer};
use std::collections::BTreeMap;
use utoipa::ToSchema;

/// How the coordinator is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Status {
    /// Version of the program.
    pub version: String,
    /// The coordinator's SPIFFE ID.
    pub identity: String,
    /// When it started.
    pub started: String,
    /// Sites whose agents are connected.
    pub sites_connected: u32,
    /// Studies that are running.
    pub studies_running: u32,
    /// Entries in the log.
    pub log_size: u64,
    /// SHA-256 of the policy set in force.
    pub policy_set_sha256: String,
    /// The log's verifier key (C2SP signed-note text form).
    pub log_verifier_key: String,
    /// Its second key, of ML-DSA-44, if checkpoints are signed by one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_ml_dsa_key: Option<String>,
}

/// A connected site.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Site {
    /// Its SPIFFE ID.
    pub id: String,
    /// Since when it is connected.
    pub connected: String,
    /// From which address.
    pub address: String,
    /// Version of its agent.
    pub agent_version: String,
    /// Data sets that it offers.
    pub datasets: Vec<String>,
}

/// A list of something, a page at a time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Page<T> {
    /// What is on this page.
    pub items: Vec<T>,
    /// Where the next page starts; absent on the last.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub next: Option<String>,
}

/// A study and where it stands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Study {
    /// Its name.
    pub id: String,
    /// SHA-256 of the study file.
    pub study_sha256: String,
    /// running, finished, stopped or failed.
    pub state: String,
    /// Why it failed, if it did.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub reason: Option<String>,
    /// When it was submitted.
    pub submitted: String,
    /// Who submitted it.
    pub submitted_by: String,
    /// The round that runs, or ran last; 0 before the first.
    pub round: u32,
    /// Rounds that are planned.
    pub rounds: u32,
    /// Rounds that gave a model.
    pub rounds_promoted: u32,
    /// SHA-256 of the newest model's parameters.
    pub model_sha256: String,
    /// Epsilon per site, as the sites' newest updates and counts about candidates state it. A site without a guarantee is absent.
    #[serde(serialize_with = "only_finite")]
    pub epsilon_by_site: BTreeMap<String, f64>,
    /// Bytes of update payloads received per site.
    pub bytes_by_site: BTreeMap<String, u64>,
    /// How far it is from its end by patience, if it has any.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub patience: Option<Patience>,
}

/// How far a study is from its end by patience.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Patience {
    /// By which figure models are compared.
    pub figure: String,
    /// What is better by less counts as equally good.
    pub improve_by: f64,
    /// Evaluated rounds in a row without a better model that end the study.
    pub rounds: u32,
    /// How many there are so far.
    pub without: u32,
    /// The best model so far, once there is a figure.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub best: Option<BestModel>,
}

/// The best model of a study so far.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct BestModel {
    /// The round that gave it.
    pub round: u32,
    /// SHA-256 of its parameters.
    pub model_sha256: String,
    /// The worse end of its figure's interval.
    pub end: f64,
}

/// One round.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Round {
    /// Its number, from 1.
    pub round: u32,
    /// planned, enrolling, exchanging keys, exchanging shares, confirming, collecting, unmasking, aggregating, evaluating, gated, held (its
    /// candidate waits for people), promoted, rejected or failed.
    pub stage: String,
    /// 0 for the first try.
    pub attempt: u32,
    /// Where each site stands: joined, updated, or declined with its reason.
    pub sites: BTreeMap<String, String>,
    /// The model that it started from.
    pub base_sha256: String,
    /// The model that it gave.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub model_sha256: Option<String>,
    /// Why it failed or was rejected.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub reason: Option<String>,
}

/// What sites have counted about the candidate of one round, and how the updates that it is made of compare with each other.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Figures {
    /// The round.
    pub round: u32,
    /// 0 for the first try.
    pub attempt: u32,
    /// As that of `Round`.
    pub stage: String,
    /// SHA-256 of the candidate's parameters.
    pub candidate_sha256: String,
    /// The sites that have counted; none where no site was asked to.
    pub sites: Vec<String>,
    /// About how many records were counted.
    pub records: i64,
    /// What an interval covers, such as 0.95, where sites have counted.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub confidence: Option<f64>,
    /// none, laplace or gaussian, where sites have counted.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub noise: Option<String>,
    /// Each figure; of updates, `update_norm_ratio at mafraq` and `update_cosine at mafraq` of each site.
    pub figures: Vec<Figure>,
}

/// A figure with its interval, or why there is none.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Figure {
    /// What was looked at, of whom: `roc_auc`, `recall of SEX=1`, `equal_opportunity_difference by SEX`, `accuracy at mafraq`.
    pub figure: String,
    /// What the counts give.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub value: Option<f64>,
    /// The interval's lower end.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub low: Option<f64>,
    /// The interval's upper end.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub high: Option<f64>,
    /// Why there is no figure.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub missing: Option<String>,
    /// Gates of the study that ask for it.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub gates: Vec<FigureGate>,
}

/// What a gate of the study says of a figure.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FigureGate {
    /// What the figure must be: `at least 0.72`.
    pub bound: String,
    /// Whether its interval's worse end is.
    pub pass: bool,
}

/// A gate that a study declares, and what it says of a candidate.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Gate {
    /// What it looks at, in the words of studies: `roc_auc`, `recall of each group by SEX`.
    pub gate: String,
    /// What the figure must be: `at least 0.72`.
    pub bound: String,
    /// When it is asked: as the study says.
    pub when: String,
    /// What becomes of the study when it fails.
    pub on_failure: String,
    /// The round whose candidate this is about; absent before there is one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub round: Option<u32>,
    /// The try of the round.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub attempt: Option<u32>,
    /// Whether the candidate has to pass it: a gate that is asked at the end has a figure before, and keeps nothing out.
    pub asked: bool,
    /// Whether every figure is within the bound; absent where there is none.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub pass: Option<bool>,
    /// What it looked at: one figure, or one of each group or site.
    pub figures: Vec<GateFigure>,
    /// SHA-256 of what the candidate's verdict says of all gates, where that was too long for its entry in the log: what it says of this
    /// one is not known then.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub gates_sha256: Option<String>,
}

/// One figure that a gate looked at.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct GateFigure {
    /// As that of `Figure`.
    pub figure: String,
    /// As that of `Figure`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub value: Option<f64>,
    /// The interval's lower end.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub low: Option<f64>,
    /// The interval's upper end.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub high: Option<f64>,
    /// Why there is no figure.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub missing: Option<String>,
    /// Whether its interval's worse end is within the bound.
    pub pass: bool,
}

/// One model of a study; round 0 is the first, untrained one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Model {
    /// The round that gave it.
    pub round: u32,
    /// SHA-256 of its parameters, as little-endian f32 in manifest order.
    pub model_sha256: String,
    /// SHA-256 of its manifest.
    pub manifest_sha256: String,
    /// Number of parameters.
    pub params: u64,
    /// When it was published.
    pub published: String,
}

/// Something that happened in a study, as it happens.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct StudyEvent {
    /// Rises by one per event of this study since the coordinator started.
    pub seq: u64,
    /// When.
    pub at: String,
    /// The study.
    pub study: String,
    /// running, finished, stopped or failed.
    pub state: String,
    /// The round.
    pub round: u32,
    /// Rounds that are planned.
    pub rounds: u32,
    /// The round's stage.
    pub stage: String,
    /// Sites in the round.
    pub cohort: u32,
    /// Updates that are durable and counted.
    pub updates_in: u32,
    /// The site that this is about, if it is about one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub site: Option<String>,
    /// What happened, in one line for people.
    pub message: String,
    /// Epsilon per site so far. A site without a guarantee is absent.
    #[serde(serialize_with = "only_finite")]
    pub epsilon_by_site: BTreeMap<String, f64>,
    /// The model that was published, if one was.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub model_sha256: Option<String>,
}

/// One entry of the log.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct LogEntry {
    /// Its index.
    pub index: u64,
    /// Its leaf hash.
    pub leaf_hash: String,
    /// Who did it, if that was a person who has not been erased: what opens the entry's commitment, in canonical JSON.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub personal: Option<String>,
    /// The entry itself: canonical JSON, decoded.
    #[schema(value_type = Object)]
    pub entry: serde_json::Value,
}

/// An entry with the proof that it is in the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ProvenEntry {
    /// Its index.
    pub index: u64,
    /// Its leaf hash.
    pub leaf_hash: String,
    /// Who did it, if that was a person who has not been erased: what opens the entry's commitment, in canonical JSON.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub personal: Option<String>,
    /// The entry's bytes, which are canonical JSON: the leaf hash is SHA-256 over a zero byte and these.
    pub bytes: String,
    /// The hashes that lead from the leaf to the root of the answer's checkpoint (RFC 9162, 2.1.3), from below.
    pub proof: Vec<String>,
}

/// Who accessed an object: a page of entries that touched it, all of them proven under one checkpoint.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Accesses {
    /// The object, spelled in full.
    pub object: String,
    /// The checkpoint, the same on every page.
    pub checkpoint: Checkpoint,
    /// The entries, in the order of the log: the newest last.
    pub items: Vec<ProvenEntry>,
    /// Where the next page starts; absent on the last.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub next: Option<String>,
}

/// A person in the log.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Person {
    /// The pseudonym, as the log has it: `person:` and 32 hexadecimal digits.
    pub person: String,
    /// Who it is.
    pub id: String,
}

/// Whom to erase.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ErasureRequest {
    /// A SPIFFE ID, or a pseudonym.
    pub person: String,
    /// The article of law by which it is asked for. It stays in the log: nothing about the person.
    pub article: String,
}

/// Somebody was erased.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Erasure {
    /// The pseudonym, which names nobody any more.
    pub person: String,
    /// The entry that says so.
    pub index: u64,
}

/// Which shard to prune.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PruningRequest {
    /// Its origin.
    pub shard: String,
    /// SHA-256 of the bundle that was exported of it, without a time-stamp of its report; what would be exported now has to
    /// be the same.
    pub bundle_sha256: String,
}

/// A shard was pruned.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Pruning {
    /// Its origin.
    pub shard: String,
    /// Entries of it; those that bind whoever comes later kept their contents.
    pub entries: u64,
    /// The entry, of the shard that is written, that says so.
    pub index: u64,
}

/// What to place a legal hold on: a person or a study.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct HoldRequest {
    /// A SPIFFE ID, or a pseudonym.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub person: Option<String>,
    /// A study: everybody who acted in it is held.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub study: Option<String>,
    /// The article of law by which it is placed. It stays in the log: nothing about the person.
    pub article: String,
}

/// A legal hold.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Hold {
    /// Its name.
    pub hold: String,
    /// The person, by pseudonym, or the study that it is on.
    pub object: String,
    /// The article of law.
    pub article: String,
}

/// A site that is to enrol.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct EnrolmentTokenRequest {
    /// The site's short name.
    pub name: String,
    /// Where it is: `jurisdiction/region`.
    pub place: String,
    /// How long the token can be used, in seconds.
    pub ttl_s: u64,
}

/// A token by which a site gets its first certificate, once.
#[derive(Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct EnrolmentToken {
    /// The token, a secret: for the site's operator, and nobody else.
    pub token: String,
    /// Its number, as it stands in the log.
    pub id: String,
    /// The identity that the site gets.
    pub site: String,
    /// Until when it can be used, RFC 3339 in UTC.
    pub until: String,
}

impl std::fmt::Debug for EnrolmentToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "EnrolmentToken({} for {}, [redacted])", self.id, self.site)
    }
}

/// An enrolment token, without its secret.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct EnrolmentTokenState {
    /// Its number, as it stands in the log.
    pub id: String,
    /// The identity that it is for.
    pub site: String,
    /// Until when it can be used, RFC 3339 in UTC.
    pub until: String,
    /// `open`, `used`, `expired` or `withdrawn`.
    pub state: String,
}

/// An identity provider at which operators sign in.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct LoginProvider {
    /// Its name, where it is asked: `https://`.
    pub issuer: String,
    /// What `falaj login` is called there, a public client.
    pub client_id: String,
    /// What is asked for beside `openid`.
    pub scopes: Vec<String>,
    /// Whether its tokens are taken of a device flow.
    pub device: bool,
    /// For which resource pipelines ask access tokens; they cannot sign in when it is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resource: Option<String>,
    /// The certificates of those who may vouch for its server, PEM.
    pub ca: String,
}

/// A token of an identity provider, and the key for which a certificate is asked.
#[derive(Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LoginRequest {
    /// The provider.
    pub issuer: String,
    /// Its token, a secret.
    pub token: String,
    /// A signing request (PKCS #10), DER in base64.
    pub request: String,
}

impl std::fmt::Debug for LoginRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "LoginRequest(at {}, [redacted])", self.issuer)
    }
}

/// A certificate for a short time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Login {
    /// It, and the issuer that follows it, PEM.
    pub chain: String,
    /// Whom it names.
    pub identity: String,
    /// The roles that they have.
    pub roles: Vec<String>,
    /// Until when it is valid.
    pub until: String,
}

/// What to approve.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ApprovalRequest {
    /// `model.read`, `log.export` or `version.promote`.
    pub action: String,
    /// Whose model; of `model.read` and `version.promote` alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub study: Option<String>,
    /// Which version; of `version.promote` alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u32>,
    /// Where the version is to go on to; of `version.promote` alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stage: Option<String>,
    /// Who is to act: another person, by SPIFFE ID.
    #[serde(rename = "for")]
    pub whom: String,
    /// Where it is taken to: a place such as `ae-on/ae-az`; where they are when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub place: Option<String>,
    /// For how long it counts: 1 to 2,592,000 seconds; a day when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_s: Option<u64>,
}

/// An approval.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Approval {
    /// Its name.
    pub approval: String,
    /// `model.read`, `log.export` or `version.promote`.
    pub action: String,
    /// Whose model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub study: Option<String>,
    /// Of a promotion, which version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u32>,
    /// Of a promotion, where the version is to go on to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stage: Option<String>,
    /// Where it is taken to.
    pub place: String,
    /// Who is to act, by SPIFFE ID; by pseudonym if they were erased.
    #[serde(rename = "for")]
    pub whom: String,
    /// Who gave it, likewise.
    pub by: String,
    /// Until when it counts, RFC 3339 in UTC.
    pub until: String,
    /// Index of the entry that says so, in the shard of the log that is written.
    pub index: u64,
}

/// What to revoke, or to take back.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RevocationRequest {
    /// A SPIFFE ID, or the SHA-256 of a certificate.
    pub subject: String,
    /// Why. It stays in the log: nothing about a person.
    pub reason: String,
}

/// A revocation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Revocation {
    /// A SPIFFE ID, or the SHA-256 of a certificate.
    pub subject: String,
    /// Why.
    pub reason: String,
    /// When.
    pub at: String,
    /// Index of the entry that says so, in the shard of the log in which it was made.
    pub index: u64,
}

/// A version of a study's model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Version {
    /// The study.
    pub study: String,
    /// Its number, from 1.
    pub version: u32,
    /// candidate, staging, production, archived, rejected or revoked.
    pub stage: String,
    /// champion, challenger.
    pub aliases: Vec<String>,
    /// The round whose model it is.
    pub round: u32,
    /// SHA-256 of its parameters.
    pub model_sha256: String,
    /// SHA-256 of the manifest of its tensors.
    pub manifest_sha256: String,
    /// SHA-256 of the `safetensors` file that it is downloaded as.
    pub safetensors_sha256: String,
    /// How often the study's versions were changed: what the `ETag` begins with, and what `If-Match` is held against.
    pub revision: u64,
    /// Where one version is shown, the study's gates that are asked when it goes on to staging or production, and what they say of
    /// it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gates: Vec<LineageGate>,
}

/// Which round's model is to be a version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VersionRequest {
    /// The round.
    pub round: u32,
}

/// Where a version is to go on to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PromotionRequest {
    /// staging, production or archived.
    pub stage: String,
    /// Where it is to serve: a place such as `ae-on/ae-az`; where whoever asks is when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub place: Option<String>,
}

/// Why something is done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ReasonRequest {
    /// One line. It stays in the log: nothing about a person.
    pub reason: String,
}

/// Which candidate somebody decides over, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CandidateRequest {
    /// SHA-256 of the candidate, so that nobody decides over another one than they have seen.
    pub candidate_sha256: String,
    /// One line. It stays in the log: nothing about a person.
    pub reason: String,
}

/// Who is to have an alias.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AliasRequest {
    /// The version; nobody when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u32>,
}

/// Everything that made a version, and what became of it. Indices are of entries in the shard of the log in which each was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VersionLineage {
    /// The version.
    pub version: Version,
    /// The entry that made it.
    pub index: u64,
    /// The entry by which its study was submitted.
    pub submitted: u64,
    /// The rounds up to its own.
    pub rounds: Vec<LineageRound>,
    /// What sites counted about the models of these rounds.
    pub evaluations: Vec<LineageEvaluation>,
    /// The gates that were judged on the way.
    pub gates: Vec<LineageGate>,
    /// The sets of policies by which it was decided who takes part.
    pub policies: Vec<LineagePolicies>,
    /// Approvals of its promotions.
    pub approvals: Vec<LineageApproval>,
    /// What became of it.
    pub moves: Vec<LineageMove>,
}

/// A round that a version came from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LineageRound {
    /// Its number.
    pub round: u32,
    /// The model that it began from.
    pub base_sha256: String,
    /// The model that it gave.
    pub model_sha256: String,
    /// The entry that says so.
    pub index: u64,
    /// The updates in it.
    pub updates: Vec<LineageUpdate>,
}

/// An update that went into a round.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LineageUpdate {
    /// Whose, by SPIFFE ID.
    pub site: String,
    /// SHA-256 of its payload.
    pub payload_sha256: String,
    /// SHA-256 of its signed header.
    pub header_sha256: String,
    /// Examples behind it, as noised by the site.
    pub weight: u64,
    /// Epsilon as the site states it.
    pub epsilon: String,
    /// The entry that says that it counts.
    pub index: u64,
}

/// That a site counted what a candidate says of the records that it holds out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LineageEvaluation {
    /// The candidate's round.
    pub round: u32,
    /// The site, by SPIFFE ID.
    pub site: String,
    /// The entry that says so.
    pub index: u64,
}

/// A gate as a verdict has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LineageGate {
    /// The round.
    pub round: u32,
    /// Its name.
    pub name: String,
    /// Whom it is about.
    pub scope: String,
    /// What was measured.
    pub figure: String,
    /// Between which figures the true one lies.
    pub interval: String,
    /// What it is held against.
    pub bound: String,
    /// Whether it passed.
    pub pass: bool,
}

/// A set of policies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LineagePolicies {
    /// Its SHA-256.
    pub policy_set_sha256: String,
    /// The first entry of the study that names it.
    pub index: u64,
}

/// An approval of a version's promotion.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LineageApproval {
    /// Its name.
    pub approval: String,
    /// To which stage.
    pub stage: String,
    /// Who gave it, by SPIFFE ID; by pseudonym if they were erased.
    pub by: String,
    /// The entry that says so.
    pub index: u64,
}

/// A move of a version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LineageMove {
    /// What happened: the entry's kind.
    pub kind: String,
    /// Where the version stood from then on.
    pub stage: String,
    /// When.
    pub at: String,
    /// Why, if anybody said so.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// The approvals that counted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub approvals: Vec<String>,
    /// Of a promotion, what the gates said that are asked then.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gates: Vec<LineageGate>,
    /// The entry that says so.
    pub index: u64,
}

/// The versions that learned from a site, a place or an update.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Touched {
    /// They.
    pub versions: Vec<TouchedVersion>,
    /// Shards of the log whose contents were deleted, of which nothing can be said.
    pub deleted: Vec<String>,
    /// Where the next page starts; absent on the last.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub next: Option<String>,
}

/// A version that learned from what was asked about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TouchedVersion {
    /// The study.
    pub study: String,
    /// The version's number.
    pub version: u32,
    /// Where it stands.
    pub stage: String,
    /// The round whose model it is.
    pub round: u32,
    /// SHA-256 of its parameters.
    pub model_sha256: String,
    /// Whose updates they were, by SPIFFE ID.
    pub sites: Vec<String>,
    /// How many updates.
    pub updates: u64,
    /// The first round that has one.
    pub first_round: u32,
    /// The last round that has one.
    pub last_round: u32,
    /// The entry of the first of them.
    pub first_index: u64,
    /// The entry of the last of them.
    pub last_index: u64,
    /// What to do with it when the consent for them is withdrawn: nothing, reject, revoke or `roll_back`.
    pub remedy: String,
    /// Of `roll_back`, to which version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub back_to: Option<u32>,
    /// The last round that learned nothing from them; 0 is the first model, untrained.
    pub untouched_round: u32,
}

/// A signed checkpoint.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Checkpoint {
    /// The signed note (C2SP tlog-checkpoint).
    pub note: String,
    /// Entries that it covers.
    pub tree_size: u64,
    /// Root hash of the tree.
    pub root_hash: String,
    /// Witnesses that have cosigned it; their lines are in the note.
    pub witnesses: u32,
}

/// Who stands behind how much of the log.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Witness {
    /// Its name: a site's identity without `spiffe://`.
    pub witness: String,
    /// Entries in the newest checkpoint that it has cosigned.
    pub tree_size: u64,
    /// Entries that have come since.
    pub since: u64,
}

/// A shard of the log.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct LogShard {
    /// Its name in checkpoints.
    pub origin: String,
    /// Entries in it.
    pub entries: u64,
    /// Whether the next shard goes on from it.
    pub ended: bool,
    /// Whether its contents were deleted, or are being so; hashes stay.
    #[serde(default)]
    pub pruned: bool,
    /// The key that signed it last.
    pub log_verifier_key: String,
    /// Its second key, of ML-DSA-44, if checkpoints are signed by one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_ml_dsa_key: Option<String>,
}

/// A checkpoint that an authority has stamped with the time.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Timestamp {
    /// Entries in the checkpoint.
    pub tree_size: u64,
    /// When, by the authority's clock.
    pub time: String,
    /// The authority, as its certificate names it.
    pub authority: String,
    /// SHA-256 of the checkpoint.
    pub checkpoint_sha256: String,
    /// SHA-256 of the time-stamp, as the authority answered.
    pub token_sha256: String,
    /// Index of the entry that says so.
    pub index: u64,
    /// The checkpoint, as it was stamped: the signed note without cosignatures.
    pub note: String,
}

/// JSON has no infinity: what has no guarantee is left out, so that a reader never meets a `null`.
fn only_finite<S: Serializer>(
    epsilon: &BTreeMap<String, f64>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_map(epsilon.iter().filter(|(_, e)| e.is_finite()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_of_an_unprotected_study_can_be_read_back() {
        let event = StudyEvent {
            seq: 1,
            at: "2026-01-02T03:04:05.678Z".into(),
            study: "s".into(),
            state: "running".into(),
            round: 1,
            rounds: 2,
            stage: "collecting".into(),
            cohort: 2,
            updates_in: 2,
            site: None,
            message: "an update is in".into(),
            epsilon_by_site: [("a".to_owned(), 1.5), ("b".to_owned(), f64::INFINITY)].into(),
            model_sha256: None,
        };
        let text = serde_json::to_string(&event).expect("JSON");
        let read: StudyEvent = serde_json::from_str(&text).expect("an event");
        assert_eq!(read.epsilon_by_site, [("a".to_owned(), 1.5)].into());
    }
}
