//! Who may do what: Cedar policies, checked against their schema when they are read. Pure: whoever decides and whoever
//! checks a decision later call the same function.
//!
//! The default is deny. Cedar skips a policy that errs, so any error in a decision denies. A decision carries
//! the ids of the policies that made it and the digest of the whole set, for the log.

mod cases;
mod explain;
mod index;
mod site;

pub use cases::{CASES, Cases, CasesError, Mismatch};
pub use explain::Rule;
pub use site::{SITE_POLICIES, SITE_SHIPPED, SiteDecision, SitePolicies, SiteRequest};

use cedar_policy::{
    Context, Entities, Entity, EntityUid, PolicyId, PolicySet, Request, RestrictedExpression,
    Schema, ValidationMode, Validator,
};
use falaj_core::{
    audit::{person::is_person, policy_set},
    evidence::Evidence,
    id::{Digest, Place, Role, SpiffeId, StudyId},
    roles::{OperatorRole, Roles},
    tpm::Tpm,
};
use index::Index;
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    str::FromStr,
};

/// What somebody wants to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Speak to the coordinator at all.
    Connect,
    /// Take part in a study's round.
    StudyJoin,
    /// Be given a task.
    TaskGet,
    /// Send an update.
    UpdateSend,
    /// Read a model.
    ModelRead,
    /// Submit a study.
    StudySubmit,
    /// Read about a study.
    StudyRead,
    /// Stop a study.
    StudyStop,
    /// Read how the coordinator is.
    StatusRead,
    /// Read the log.
    LogRead,
    /// Export the log.
    LogExport,
    /// Delete the contents of a shard of the log that has ended.
    LogPrune,
    /// See who the people in the log are.
    PersonRead,
    /// Erase a person.
    PersonErase,
    /// See the legal holds.
    HoldRead,
    /// Place a legal hold.
    HoldPlace,
    /// Release a legal hold.
    HoldRelease,
    /// See what was revoked, revoke, and take a revocation back.
    SiteRevoke,
    /// Make a token by which a site gets its first certificate.
    SiteEnroll,
    /// Make a round's model a version.
    VersionMake,
    /// Have a version go on to another stage.
    VersionPromote,
    /// Say that a version is not good enough.
    VersionReject,
    /// Say that a version must not be used any more.
    VersionRevoke,
    /// Have the version that was in production before serve again.
    VersionRollBack,
    /// Give an alias to a version, or take it away.
    VersionAlias,
    /// See which approvals are in force.
    ApprovalRead,
    /// Approve that another person has a model or the log, and takes it somewhere.
    ApprovalGive,
    /// Take an approval back.
    ApprovalWithdraw,
    /// Speak to a database, a witness, or an authority for time-stamps.
    EndpointUse,
}

impl Action {
    /// Every action.
    pub const ALL: [Self; 29] = [
        Self::Connect,
        Self::StudyJoin,
        Self::TaskGet,
        Self::UpdateSend,
        Self::ModelRead,
        Self::StudySubmit,
        Self::StudyRead,
        Self::StudyStop,
        Self::StatusRead,
        Self::LogRead,
        Self::LogExport,
        Self::LogPrune,
        Self::PersonRead,
        Self::PersonErase,
        Self::HoldRead,
        Self::HoldPlace,
        Self::HoldRelease,
        Self::SiteRevoke,
        Self::SiteEnroll,
        Self::VersionMake,
        Self::VersionPromote,
        Self::VersionReject,
        Self::VersionRevoke,
        Self::VersionRollBack,
        Self::VersionAlias,
        Self::ApprovalRead,
        Self::ApprovalGive,
        Self::ApprovalWithdraw,
        Self::EndpointUse,
    ];

    /// The word that policies use.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::StudyJoin => "study.join",
            Self::TaskGet => "task.get",
            Self::UpdateSend => "update.send",
            Self::ModelRead => "model.read",
            Self::StudySubmit => "study.submit",
            Self::StudyRead => "study.read",
            Self::StudyStop => "study.stop",
            Self::StatusRead => "status.read",
            Self::LogRead => "log.read",
            Self::LogExport => "log.export",
            Self::LogPrune => "log.prune",
            Self::PersonRead => "person.read",
            Self::PersonErase => "person.erase",
            Self::HoldRead => "hold.read",
            Self::HoldPlace => "hold.place",
            Self::HoldRelease => "hold.release",
            Self::SiteRevoke => "site.revoke",
            Self::SiteEnroll => "site.enroll",
            Self::VersionMake => "version.make",
            Self::VersionPromote => "version.promote",
            Self::VersionReject => "version.reject",
            Self::VersionRevoke => "version.revoke",
            Self::VersionRollBack => "version.roll_back",
            Self::VersionAlias => "version.alias",
            Self::ApprovalRead => "approval.read",
            Self::ApprovalGive => "approval.give",
            Self::ApprovalWithdraw => "approval.withdraw",
            Self::EndpointUse => "endpoint.use",
        }
    }
}

impl Action {
    /// What takes something to a place, and can be approved: policies may speak of both. A version is promoted for the place where
    /// it is to serve.
    pub const TAKING: [Self; 3] = [Self::ModelRead, Self::LogExport, Self::VersionPromote];

    /// Whether an entry about it says where: where something is taken to or may be, or an endpoint is declared.
    #[must_use]
    pub const fn is_somewhere(self) -> bool {
        matches!(
            self,
            Self::ModelRead
                | Self::LogRead
                | Self::LogExport
                | Self::VersionPromote
                | Self::ApprovalGive
                | Self::EndpointUse
        )
    }

    /// Whether it is wanted of the coordinator itself, whatever study an entry about it names. An approval is wanted of the
    /// study whose model may be taken, or of the coordinator when it is the log.
    #[must_use]
    pub const fn is_of_service(self) -> bool {
        match self {
            Self::StudyJoin
            | Self::TaskGet
            | Self::UpdateSend
            | Self::ModelRead
            | Self::StudySubmit
            | Self::StudyRead
            | Self::StudyStop
            | Self::VersionMake
            | Self::VersionPromote
            | Self::VersionReject
            | Self::VersionRevoke
            | Self::VersionRollBack
            | Self::VersionAlias
            | Self::ApprovalGive => false,
            Self::Connect
            | Self::StatusRead
            | Self::LogRead
            | Self::LogExport
            | Self::LogPrune
            | Self::PersonRead
            | Self::PersonErase
            | Self::HoldRead
            | Self::HoldPlace
            | Self::HoldRelease
            | Self::SiteRevoke
            | Self::SiteEnroll
            | Self::ApprovalRead
            | Self::ApprovalWithdraw
            | Self::EndpointUse => true,
        }
    }
}

impl FromStr for Action {
    type Err = UnknownAction;
    fn from_str(text: &str) -> Result<Self, UnknownAction> {
        let found = Self::ALL.into_iter().find(|action| action.as_str() == text);
        found.ok_or_else(|| UnknownAction(text.to_owned()))
    }
}

/// A word that is no action.
#[derive(Debug, thiserror::Error)]
#[error("there is no action `{0}`")]
pub struct UnknownAction(String);

/// Who wants it.
#[derive(Clone, Copy, Debug)]
pub struct Party<'a> {
    /// Whom their certificate names.
    pub id: &'a SpiffeId,
    /// An operator's roles. Of others they count for nothing.
    pub roles: Roles,
}

impl<'a> From<&'a SpiffeId> for Party<'a> {
    /// Somebody without a role: a site, a coordinator or a witness.
    fn from(id: &'a SpiffeId) -> Self {
        Self { id, roles: Roles::NONE }
    }
}

/// What it is wanted of.
#[derive(Clone, Debug)]
pub enum Resource<'a> {
    /// The coordinator itself.
    Service,
    /// A study, sealed by this mechanism.
    Study(&'a StudyId, &'a str),
}

/// What a request says besides who wants to do what.
#[derive(Clone, Copy, Debug)]
pub struct With<'a> {
    /// Where something is taken to or may be, or an endpoint is declared. It counts for what [`Action::is_somewhere`] alone.
    pub destination: &'a Place,
    /// What is known of the connection; nothing when absent. It counts for [`Action::Connect`] and, of its address, for
    /// [`Action::EndpointUse`].
    pub evidence: Option<&'a Evidence>,
    /// What an endpoint is to the coordinator. It counts for [`Action::EndpointUse`] alone.
    pub endpoint: &'a str,
    /// How many other people have approved it and are still heard. It counts for [`Action::TAKING`] alone.
    pub approvals: usize,
    /// Where a version is to go on to. It counts for [`Action::VersionPromote`] alone.
    pub stage: &'a str,
}

impl<'a> With<'a> {
    /// What is taken goes to where they are, and nothing is known of their connection.
    #[must_use]
    pub fn of(who: &'a SpiffeId) -> Self {
        Self { destination: who.place(), evidence: None, endpoint: "", approvals: 0, stage: "" }
    }
}

/// What the policies say.
#[derive(Clone, Debug)]
pub struct Decision {
    /// Whether it may be done.
    pub allow: bool,
    /// Ids of the policies that decided; none when nothing permits it.
    pub policies: Vec<String>,
    /// For people: which policy said no, and why. It stands in the log, so it names no natural person.
    pub reason: String,
    /// SHA-256 of the policy set.
    pub policy_set: Digest,
}

/// Why policies cannot be used: the file, and what is wrong in it.
#[derive(Debug, thiserror::Error)]
#[error("{file}: {what}")]
pub struct PolicyError {
    /// The file's name.
    pub file: &'static str,
    /// What is wrong.
    pub what: String,
}

/// The file with the policies.
pub const POLICIES: &str = "coordinator.cedar";
/// The file with what they may speak of.
pub const SCHEMA: &str = "coordinator.cedarschema";

/// The files of the rescue set, which is asked while the glass is broken: operators look, stop studies and revoke, and nothing
/// else happens.
#[must_use]
pub fn rescue() -> Vec<(String, Vec<u8>)> {
    let file = |name: &str, text: &str| (name.to_owned(), text.as_bytes().to_vec());
    vec![
        file(POLICIES, include_str!("../sets/break-glass/coordinator.cedar")),
        file(SCHEMA, include_str!("../sets/break-glass/coordinator.cedarschema")),
    ]
}

/// The files of a set that permits nothing.
#[must_use]
pub fn nothing() -> Vec<(String, Vec<u8>)> {
    let file = |name: &str, text: &str| (name.to_owned(), text.as_bytes().to_vec());
    vec![
        file(POLICIES, "// Nothing is permitted.\n"),
        file(SCHEMA, include_str!("../coordinator.cedarschema")),
    ]
}

/// A set of policies that fits its schema.
pub struct Policies {
    set: PolicySet,
    index: Index,
    schema: Schema,
    /// Actions whose requests say where something is taken to; older sets know of none.
    destined: Vec<Action>,
    /// Actions whose requests say how many people have approved them; older sets know of none.
    approved: Vec<Action>,
    /// Whether requests to connect say what is known of the connection; older sets know nothing of it.
    evidenced: bool,
    /// Whether they say what is known of a TPM, too; older sets know of none.
    attested: bool,
    /// The roles that operators can have; older sets know of none.
    roles: BTreeMap<OperatorRole, EntityUid>,
    digest: Digest,
}

impl Policies {
    /// Reads a set from its files, by name.
    ///
    /// # Errors
    /// [`PolicyError`] when a file is missing, does not parse, or does not fit the schema.
    pub fn parse(files: &[(String, Vec<u8>)]) -> Result<Self, PolicyError> {
        let invalid = |file, what: String| PolicyError { file, what };
        let read = |name: &'static str| {
            let found = files.iter().find(|(file, _)| file == name);
            let (_, bytes) = found.ok_or_else(|| invalid(name, "it is not there".into()))?;
            str::from_utf8(bytes).map_err(|e| invalid(name, e.to_string()))
        };
        let (schema, _) = Schema::from_cedarschema_str(read(SCHEMA)?)
            .map_err(|e| invalid(SCHEMA, e.to_string()))?;
        let policies =
            PolicySet::from_str(read(POLICIES)?).map_err(|e| invalid(POLICIES, e.to_string()))?;
        let verdict = Validator::new(schema.clone()).validate(&policies, ValidationMode::Strict);
        if let Some(problem) = verdict.validation_errors().next() {
            return Err(invalid(POLICIES, problem.to_string()));
        }
        if let Some(problem) = verdict.validation_warnings().next() {
            return Err(invalid(POLICIES, problem.to_string()));
        }
        let index = Index::new(&policies, &schema).map_err(|e| invalid(POLICIES, e.to_string()))?;
        let destined = destined(&schema).map_err(|e| invalid(SCHEMA, e.to_string()))?;
        let approved = approved(&schema).map_err(|e| invalid(SCHEMA, e.to_string()))?;
        let takes = |tpm| evidenced(&schema, tpm).map_err(|e| invalid(SCHEMA, e.to_string()));
        let attested = takes(true)?;
        let evidenced = attested || takes(false)?;
        let roles = known_roles(&schema).map_err(|e| invalid(SCHEMA, e.to_string()))?;
        let digest = policy_set(files);
        Ok(Self {
            set: policies,
            index,
            schema,
            destined,
            approved,
            evidenced,
            attested,
            roles,
            digest,
        })
    }

    /// SHA-256 of the set's files.
    #[must_use]
    pub const fn digest(&self) -> Digest {
        self.digest
    }

    /// Whether the schema lets rules speak of sites' TPMs.
    #[must_use]
    pub const fn know_tpms(&self) -> bool {
        self.attested
    }

    /// Whether `who` may do `action` at a coordinator in `here`. What is taken goes to where they are.
    #[must_use]
    pub fn decide<'a>(
        &self,
        here: &Place,
        who: impl Into<Party<'a>>,
        action: Action,
        resource: &Resource<'_>,
    ) -> Decision {
        let who = who.into();
        self.decide_to(here, who, action, resource, who.id.place())
    }

    /// As [`Self::decide`], where `who` takes it to a `destination`, and nobody has approved it.
    #[must_use]
    pub fn decide_to<'a>(
        &self,
        here: &Place,
        who: impl Into<Party<'a>>,
        action: Action,
        resource: &Resource<'_>,
        destination: &Place,
    ) -> Decision {
        let who = who.into();
        self.decide_with(here, who, action, resource, &With { destination, ..With::of(who.id) })
    }

    /// Whether `who` may speak to a coordinator in `here` at all, by what is known of the connection.
    #[must_use]
    pub fn decide_connect<'a>(
        &self,
        here: &Place,
        who: impl Into<Party<'a>>,
        evidence: &Evidence,
    ) -> Decision {
        let who = who.into();
        let with = With { evidence: Some(evidence), ..With::of(who.id) };
        self.decide_with(here, who, Action::Connect, &Resource::Service, &with)
    }

    /// As [`Self::decide`], with all that a request may say besides.
    #[must_use]
    pub fn decide_with<'a>(
        &self,
        here: &Place,
        who: impl Into<Party<'a>>,
        action: Action,
        resource: &Resource<'_>,
        with: &With<'_>,
    ) -> Decision {
        let who = who.into();
        // An error means that the schema knows no such request: this kind of party never does this.
        let said = self.ask(here, who, action, resource, with).unwrap_or_else(|_| Decision {
            allow: false,
            policies: Vec::new(),
            reason: format!("`{}` is not for a {}", action.as_str(), who.id.role()),
            policy_set: self.digest,
        });
        if !is_person(who.id) {
            return said;
        }
        let reason = said.reason.replace(&who.id.to_string(), "this operator");
        Decision { reason, ..said }
    }

    /// The request, what it speaks of, and its parties.
    fn request(
        &self,
        here: &Place,
        Party { id: who, roles }: Party<'_>,
        action: Action,
        resource: &Resource<'_>,
        with: &With<'_>,
    ) -> Result<(Request, Entities, [EntityUid; 3]), Box<dyn std::error::Error + Send + Sync>> {
        let text = |s: &str| RestrictedExpression::new_string(s.to_owned());
        let principal = uid(role_type(who), &who.to_string())?;
        let place = who.place();
        let principal_entity = Entity::new(
            principal.clone(),
            HashMap::from([
                ("name".to_owned(), text(who.name())),
                ("trust_domain".to_owned(), text(who.trust_domain())),
                ("jurisdiction".to_owned(), text(place.jurisdiction())),
                ("region".to_owned(), text(place.region())),
            ]),
            match who.role() {
                Role::Operator => {
                    roles.iter().filter_map(|role| self.roles.get(&role).cloned()).collect()
                }
                _ => HashSet::new(),
            },
        )?;
        let jurisdiction = text(here.jurisdiction());
        let (resource_uid, attributes) = match resource {
            Resource::Service => (
                uid("Service", "coordinator")?,
                HashMap::from([
                    ("jurisdiction".to_owned(), jurisdiction),
                    ("region".to_owned(), text(here.region())),
                ]),
            ),
            Resource::Study(id, mechanism) => (
                uid("Study", id.as_str())?,
                HashMap::from([
                    ("mechanism".to_owned(), text(mechanism)),
                    ("jurisdiction".to_owned(), jurisdiction),
                ]),
            ),
        };
        let resource_entity = Entity::new(resource_uid.clone(), attributes, HashSet::new())?;
        let context = if action == Action::VersionPromote {
            promoted_to(with)?
        } else if self.approved.contains(&action) {
            approved_by(with.destination, with.approvals)?
        } else if self.destined.contains(&action) {
            destined_to(with.destination)?
        } else if self.evidenced && action == Action::Connect {
            match with.evidence {
                Some(evidence) => evidenced_by(evidence, self.attested)?,
                None => evidenced_by(&Evidence::default(), self.attested)?,
            }
        } else if action == Action::EndpointUse {
            let known = with.evidence.cloned().unwrap_or_default();
            let is = RestrictedExpression::new_bool;
            let endpoint = RestrictedExpression::new_string(with.endpoint.to_owned());
            Context::from_pairs([
                ("destination".to_owned(), place_record(with.destination)?),
                ("endpoint".to_owned(), endpoint),
                ("address_known".to_owned(), is(known.address_known)),
                ("address_in_place".to_owned(), is(known.address_in_place)),
            ])?
        } else {
            Context::empty()
        };
        let action = uid("Action", action.as_str())?;
        let request = Request::new(
            principal.clone(),
            action.clone(),
            resource_uid.clone(),
            context,
            Some(&self.schema),
        )?;
        let entities =
            Entities::from_entities([principal_entity, resource_entity], Some(&self.schema))?;
        Ok((request, entities, [principal, action, resource_uid]))
    }

    fn ask(
        &self,
        here: &Place,
        who: Party<'_>,
        action: Action,
        resource: &Resource<'_>,
        with: &With<'_>,
    ) -> Result<Decision, Box<dyn std::error::Error + Send + Sync>> {
        let (request, entities, [principal, named, of]) =
            self.request(here, who, action, resource, with)?;
        let said = self.index.ask((&principal, &named, &of), &request, &entities);
        let mut policies: Vec<String> = said.decided().iter().map(|id| self.name(id)).collect();
        policies.sort();
        if let Some(error) = said.errors().first() {
            return Ok(Decision {
                allow: false,
                policies,
                reason: format!("a policy erred, which denies: {error}"),
                policy_set: self.digest,
            });
        }
        let reason = if said.allow() {
            String::new()
        } else if policies.is_empty() {
            let roles = match who.id.role() {
                Role::Operator if !self.roles.is_empty() => {
                    format!(", whose roles are: {},", who.roles)
                }
                _ => String::new(),
            };
            format!("nothing permits {}{roles} to {}", who.id, action.as_str())
        } else {
            let why = said.decided().iter().filter_map(|id| annotation(&self.set, id, "reason"));
            let why: Vec<String> = why.collect();
            format!(
                "denied to {} in {} by {}: {}",
                who.id,
                who.id.place(),
                policies.join(", "),
                why.join("; ")
            )
        };
        Ok(Decision { allow: said.allow(), policies, reason, policy_set: self.digest })
    }

    /// What a rule is called.
    fn name(&self, id: &PolicyId) -> String {
        annotation(&self.set, id, "id").unwrap_or_else(|| id.to_string())
    }
}

/// What a request says of where something is taken to.
fn destined_to(place: &Place) -> Result<Context, Box<dyn std::error::Error + Send + Sync>> {
    Ok(Context::from_pairs([("destination".to_owned(), place_record(place)?)])?)
}

/// The same, and how many people have approved it.
fn approved_by(
    place: &Place,
    approvals: usize,
) -> Result<Context, Box<dyn std::error::Error + Send + Sync>> {
    let count = RestrictedExpression::new_long(i64::try_from(approvals).unwrap_or(i64::MAX));
    let members =
        [("destination".to_owned(), place_record(place)?), ("approvals".to_owned(), count)];
    Ok(Context::from_pairs(members)?)
}

/// The same of a version, and where it is to go on to.
fn promoted_to(with: &With<'_>) -> Result<Context, Box<dyn std::error::Error + Send + Sync>> {
    let stage = RestrictedExpression::new_string(with.stage.to_owned());
    let more = Context::from_pairs([("stage".to_owned(), stage)])?;
    Ok(approved_by(with.destination, with.approvals)?.merge(more)?)
}

fn place_record(
    place: &Place,
) -> Result<RestrictedExpression, Box<dyn std::error::Error + Send + Sync>> {
    let text = |s: &str| RestrictedExpression::new_string(s.to_owned());
    Ok(RestrictedExpression::new_record([
        ("jurisdiction".to_owned(), text(place.jurisdiction())),
        ("region".to_owned(), text(place.region())),
    ])?)
}

/// What a request says of the connection, and of a TPM where the schema knows of them.
fn evidenced_by(
    evidence: &Evidence,
    tpm: bool,
) -> Result<Context, Box<dyn std::error::Error + Send + Sync>> {
    let issuer = evidence.issuer.map(|issuer| issuer.to_string()).unwrap_or_default();
    let mut members = vec![
        ("issuer".to_owned(), RestrictedExpression::new_string(issuer)),
        ("address_known".to_owned(), RestrictedExpression::new_bool(evidence.address_known)),
        ("address_in_place".to_owned(), RestrictedExpression::new_bool(evidence.address_in_place)),
        ("probed".to_owned(), RestrictedExpression::new_bool(evidence.probed)),
    ];
    let figures = [
        ("rtt_us", evidence.rtt_us),
        ("skew_ms", evidence.skew.map(|skew| skew.ms)),
        ("skew_uncertainty_ms", evidence.skew.map(|skew| skew.uncertainty_ms)),
    ];
    for (name, figure) in figures {
        if let Some(figure) = figure {
            let figure = i64::try_from(figure).unwrap_or(i64::MAX);
            members.push((name.to_owned(), RestrictedExpression::new_long(figure)));
        }
    }
    for (name, place) in [("storage", &evidence.storage), ("compute", &evidence.compute)] {
        if let Some(place) = place {
            members.push((name.to_owned(), place_record(place)?));
        }
    }
    if tpm {
        let declared = RestrictedExpression::new_bool(evidence.tpm.is_some());
        members.push(("tpm_declared".to_owned(), declared));
        if let Some(Tpm { declared, found: Ok(quoted), .. }) = &evidence.tpm {
            let key = declared.key.name_sha256().to_string();
            let count = |n: u32| RestrictedExpression::new_long(n.into());
            let quoted = RestrictedExpression::new_record([
                ("key".to_owned(), RestrictedExpression::new_string(key)),
                ("as_declared".to_owned(), RestrictedExpression::new_bool(quoted.as_declared)),
                ("resets".to_owned(), count(quoted.resets)),
                ("restarts".to_owned(), count(quoted.restarts)),
            ])?;
            members.push(("tpm".to_owned(), quoted));
        }
    }
    let record = RestrictedExpression::new_record(members)?;
    Ok(Context::from_pairs([("evidence".to_owned(), record)])?)
}

/// Whether requests to connect say what is known of the connection, and of a TPM, as a schema has it.
fn evidenced(schema: &Schema, tpm: bool) -> Result<bool, Box<dyn std::error::Error + Send + Sync>> {
    let (principal, named) = (uid("Site", "s")?, uid("Action", Action::Connect.as_str())?);
    let context = evidenced_by(&Evidence::default(), tpm)?;
    let request = Request::new(principal, named, uid("Service", "r")?, context, Some(schema));
    Ok(request.is_ok())
}

/// The actions whose requests say where something is taken to, or may be, as a schema has it.
fn destined(schema: &Schema) -> Result<Vec<Action>, Box<dyn std::error::Error + Send + Sync>> {
    let context = destined_to(&"ae-on/any".parse()?)?;
    let actions = [Action::ModelRead, Action::LogRead, Action::LogExport, Action::ApprovalGive];
    knowing(schema, &actions, &context)
}

/// The actions whose requests say how many people have approved them, as a schema has it.
fn approved(schema: &Schema) -> Result<Vec<Action>, Box<dyn std::error::Error + Send + Sync>> {
    let actions = [Action::ModelRead, Action::LogExport];
    knowing(schema, &actions, &approved_by(&"ae-on/any".parse()?, 0)?)
}

/// Those of the actions that may be asked with such a context.
fn knowing(
    schema: &Schema,
    actions: &[Action],
    context: &Context,
) -> Result<Vec<Action>, Box<dyn std::error::Error + Send + Sync>> {
    let mut known = Vec::new();
    for action in actions {
        let of = if action.is_of_service() { "Service" } else { "Study" };
        let (principal, of) = (uid("Operator", "o")?, uid(of, "r")?);
        let named = uid("Action", action.as_str())?;
        if Request::new(principal, named, of, context.clone(), Some(schema)).is_ok() {
            known.push(*action);
        }
    }
    Ok(known)
}

/// The roles that operators can have, as a schema has it.
fn known_roles(
    schema: &Schema,
) -> Result<BTreeMap<OperatorRole, EntityUid>, Box<dyn std::error::Error + Send + Sync>> {
    let kind = cedar_policy::EntityTypeName::from_str("Falaj::Role")?;
    if !schema.entity_types().any(|known| *known == kind) {
        return Ok(BTreeMap::new());
    }
    OperatorRole::ALL.iter().map(|role| Ok((*role, uid("Role", role.as_str())?))).collect()
}

fn annotation(policies: &PolicySet, id: &cedar_policy::PolicyId, key: &str) -> Option<String> {
    Some(policies.policy(id)?.annotation(key)?.to_owned())
}

const fn role_type(who: &SpiffeId) -> &'static str {
    match who.role() {
        Role::Site => "Site",
        Role::Operator => "Operator",
        Role::Coordinator => "Coordinator",
        Role::Witness => "Witness",
    }
}

fn uid(kind: &str, id: &str) -> Result<EntityUid, Box<dyn std::error::Error + Send + Sync>> {
    let kind = cedar_policy::EntityTypeName::from_str(&format!("Falaj::{kind}"))?;
    Ok(EntityUid::from_type_name_and_id(kind, cedar_policy::EntityId::new(id)))
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(crate) fn shipped() -> Policies {
        let file = |name: &str, text: &str| (name.to_owned(), text.as_bytes().to_vec());
        let files = [
            file(POLICIES, include_str!("../coordinator.cedar")),
            file(SCHEMA, include_str!("../coordinator.cedarschema")),
        ];
        Policies::parse(&files).expect("policies that fit their schema")
    }

    fn here() -> Place {
        "ae-on/ae-az".parse().expect("valid")
    }

    #[test]
    fn the_shipped_policies_decide_as_their_cases_say() {
        let cases = Cases::parse(include_str!("../coordinator_test.toml")).expect("cases");
        assert!(cases.count() >= 20);
        assert_eq!(cases.mismatches(&shipped()), []);
    }

    /// A set from before TPMs decides as it did, so that its log is verified as it was.
    #[test]
    fn a_set_that_knows_of_no_tpm_is_told_of_none() {
        let mut schema = include_str!("../coordinator.cedarschema").to_owned();
        for member in ["tpm_declared: Bool,", "tpm?: Quoted,"] {
            assert!(schema.contains(member));
            schema = schema.replace(member, "");
        }
        let rules = "@id(\"IN\") permit (principal is Falaj::Site, action == Falaj::Action::\"connect\", resource) \
                     unless { context.evidence.address_known };";
        let file = |name: &str, text: &str| (name.to_owned(), text.as_bytes().to_vec());
        let older =
            Policies::parse(&[file(POLICIES, rules), file(SCHEMA, &schema)]).expect("a set");
        assert!(!older.know_tpms() && shipped().know_tpms());
        let site: SpiffeId =
            "spiffe://falaj.demo/ae-on/ae-az/site/hospital-1".parse().expect("an id");
        let said = older.decide_connect(&here(), &site, &Evidence::default());
        assert_eq!((said.allow, said.policies), (true, vec!["IN".to_owned()]));
    }

    #[test]
    fn every_ready_set_decides_as_its_cases_say_under_the_same_schema() {
        let sets = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("sets");
        let mut seen = 0;
        for entry in std::fs::read_dir(sets).expect("the sets") {
            let folder = entry.expect("an entry").path();
            if !folder.is_dir() {
                continue;
            }
            let shown = folder.display();
            let read = |name: &str| {
                std::fs::read_to_string(folder.join(name))
                    .unwrap_or_else(|e| panic!("{shown}: {e}"))
            };
            assert_eq!(read(SCHEMA), include_str!("../coordinator.cedarschema"), "{shown}");
            let files = [POLICIES, SCHEMA].map(|name| (name.to_owned(), read(name).into_bytes()));
            let set = Policies::parse(&files).unwrap_or_else(|e| panic!("{shown}: {e}"));
            for rule in set.rules() {
                assert!(rule.law.is_some(), "{shown}: {} names no law", rule.id);
                assert!(!rule.forbids || rule.reason.is_some(), "{shown}: {}: no reason", rule.id);
            }
            let cases = Cases::parse(&read(crate::cases::CASES)).expect("cases");
            assert!(cases.count() >= 10, "{shown}");
            assert_eq!(cases.mismatches(&set), [], "{shown}");
            seen += 1;
        }
        assert_eq!(seen, 4);
    }

    #[test]
    fn a_set_that_lacks_a_file_or_does_not_fit_its_schema_is_refused_by_name() {
        let file = |name: &str, text: &str| (name.to_owned(), text.as_bytes().to_vec());
        let schema = file(SCHEMA, include_str!("../coordinator.cedarschema"));
        let misspelt =
            "permit (principal is Falaj::Site, action, resource) when { principal.nmae == \"x\" };";
        for files in [vec![schema.clone()], vec![schema, file(POLICIES, misspelt)]] {
            let Err(e) = Policies::parse(&files) else { panic!("it was taken") };
            assert_eq!(e.file, POLICIES, "{e}");
        }
    }

    /// POL-05: a rule that errs denies, though another one permits.
    #[test]
    fn a_rule_that_errs_denies() {
        let rules = r#"@id("ALL") permit (principal is Falaj::Operator, action == Falaj::Action::"log.export", resource);
            @id("SUM") forbid (principal is Falaj::Operator, action == Falaj::Action::"log.export", resource)
            when { 9223372036854775807 + context.approvals < 0 };"#;
        let file = |name: &str, text: &str| (name.to_owned(), text.as_bytes().to_vec());
        let schema = include_str!("../coordinator.cedarschema");
        let set = Policies::parse(&[file(POLICIES, rules), file(SCHEMA, schema)]).expect("a set");
        let omar: SpiffeId = "spiffe://t/ae-on/ae-az/operator/omar".parse().expect("valid");
        for (approvals, allow) in [(0, true), (1, false)] {
            let with = With { approvals, ..With::of(&omar) };
            let (action, of) = (Action::LogExport, Resource::Service);
            let said = set.decide_with(&here(), &omar, action, &of, &with);
            assert_eq!((said.allow, said.reason.contains("erred")), (allow, !allow), "{said:?}");
        }
    }

    #[test]
    fn a_set_from_before_there_were_approvals_decides_as_it_did() {
        let schema = include_str!("../coordinator.cedarschema").replace(", approvals: Long", "");
        let rule = r#"permit (principal is Falaj::Operator, action == Falaj::Action::"log.export", resource)
            when { context.destination.jurisdiction == "ae-on" };"#;
        let file = |name: &str, text: &str| (name.to_owned(), text.as_bytes().to_vec());
        let set = Policies::parse(&[file(POLICIES, rule), file(SCHEMA, &schema)]).expect("a set");
        let omar: SpiffeId = "spiffe://t/ae-on/ae-az/operator/omar".parse().expect("valid");
        for (place, allow) in [("ae-on/ae-du", true), ("gb/gb-lnd", false)] {
            let destination = place.parse().expect("a place");
            let with = With { destination: &destination, approvals: 1, ..With::of(&omar) };
            let (action, of) = (Action::LogExport, Resource::Service);
            assert_eq!(set.decide_with(&here(), &omar, action, &of, &with).allow, allow);
        }
    }

    #[test]
    fn a_set_from_before_reading_went_anywhere_decides_as_it_did() {
        let of_reading = "action \"log.read\" appliesTo {
        principal: [Operator],
        resource: [Service],
        context: { destination: Destination },
    };";
        let schema = include_str!("../coordinator.cedarschema");
        assert!(schema.contains(of_reading));
        let older = of_reading.replace("        context: { destination: Destination },\n", "");
        let schema = schema.replace(of_reading, &older);
        let rule = r#"permit (principal is Falaj::Operator, action == Falaj::Action::"log.read", resource);"#;
        let file = |name: &str, text: &str| (name.to_owned(), text.as_bytes().to_vec());
        let set = Policies::parse(&[file(POLICIES, rule), file(SCHEMA, &schema)]).expect("a set");
        let omar: SpiffeId = "spiffe://t/ae-on/ae-az/operator/omar".parse().expect("valid");
        let abroad = "gb/gb-lnd".parse().expect("a place");
        let asked = (Action::LogRead, &Resource::Service);
        assert!(set.decide_to(&here(), &omar, asked.0, asked.1, &abroad).allow);
        assert!(!shipped().decide_to(&here(), &omar, asked.0, asked.1, &abroad).allow);
    }

    #[test]
    fn a_denial_names_the_policy_its_reason_and_the_place() {
        let london = "spiffe://t/gb/gb-lnd/site/london".parse().expect("valid");
        let said = shipped().decide(&here(), &london, Action::Connect, &Resource::Service);
        assert!(!said.allow);
        for word in ["RES-001", "gb/gb-lnd", "onshore"] {
            assert!(said.reason.contains(word), "{}", said.reason);
        }
    }
}
