//! The audit report's figures: what the log says, folded entry by entry into fifteen sections of evidence.
//!
//! Pure and deterministic: the same entries, and the same files that they name, give the same bytes, whoever computes
//! them. Memory is bounded by the parties and studies that there are, never by the log: lists are cut at [`ROWS_MAX`] and
//! say how many more there are. Nothing here judges: a [finding](FINDINGS) is an event that somebody should look at.

mod access;
mod charts;
mod findings;
mod parts;
mod people;
mod security;
mod stamps;
mod studies;

use crate::{
    audit::{Entry, Kind, person::Person},
    canon::{Canon, Node},
    id::{Digest, Place, RoundId, SiteId, SpiffeId, StudyId},
    study::Study,
    time::Timestamp,
};
use std::{borrow::Cow, collections::BTreeMap};

pub use findings::FINDINGS;
pub use parts::{FACTS, Level, ROWS_MAX};

/// The layout of what [`Sections::finish`] gives.
pub const VERSION: u32 = 1;

/// Which entries a report is about. All of the log is read in any case: what came before the range decides what its
/// entries mean.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scope {
    /// Not before this time, RFC 3339 in UTC or the beginning of one (`2026-01`); empty for the log's beginning.
    pub since: String,
    /// Not after this time or the whole day, month or year that it names; empty for the log's end.
    pub until: String,
    /// Only this study.
    pub study: Option<StudyId>,
    /// Only what this party did, or what was done with it: what somebody asks for who wants to know everything about them.
    pub subject: Option<SpiffeId>,
}

impl Scope {
    fn in_time(&self, ts: &str) -> bool {
        let until = &*self.until;
        *ts >= *self.since && (until.is_empty() || *ts < *until || ts.starts_with(until))
    }

    fn covers(&self, seen: &Seen<'_>) -> bool {
        let study = self.study.as_ref().is_none_or(|s| seen.study.as_ref() == Some(s));
        let subject = self.subject.as_ref().is_none_or(|subject| {
            seen.entry.actor_id() == Some(subject)
                || seen.site.as_ref().is_some_and(|site| site.spiffe() == subject)
        });
        self.in_time(&seen.entry.ts) && study && subject
    }
}

/// A time in UTC or the beginning of one, as scopes compare it: `2026`, `2026-03`, `2026-03-01`, `2026-03-01T09:30`, with
/// seconds and fractions or without, and `Z` at its end or not. None for anything else: another offset from UTC would be
/// compared wrongly.
#[must_use]
pub fn moment(text: &str) -> Option<String> {
    const FORM: &str = "0000-00-00T00:00:00.000";
    // Where a span may end: year, month, day, minute, second, and its fractions.
    const ENDS: [usize; 8] = [4, 7, 10, 16, 19, 21, 22, 23];
    let bare = text.strip_suffix('Z').filter(|bare| bare.len() > 10).unwrap_or(text);
    let fits = bare.bytes().zip(FORM.bytes()).all(|(found, form)| match form {
        b'0' => found.is_ascii_digit(),
        form => found == form,
    });
    let within = |at: std::ops::Range<usize>, most: u8| {
        bare.get(at).is_none_or(|two| two.parse::<u8>().is_ok_and(|n| n <= most))
    };
    let dated = within(5..7, 12) && within(8..10, 31) && !bare.contains("-00");
    let timed = within(11..13, 23) && within(14..16, 59) && within(17..19, 60);
    (fits && ENDS.contains(&bare.len()) && dated && timed).then(|| bare.to_owned())
}

/// A certificate that an issuer vouches for.
#[derive(Clone, Debug)]
pub struct Holder {
    /// Whom it names.
    pub id: SpiffeId,
    /// The digest of the issuer's key.
    pub issuer: Digest,
    /// Valid from.
    pub from: Timestamp,
    /// Valid until.
    pub until: Timestamp,
}

/// An entry as the sections see it.
struct Seen<'a> {
    entry: &'a Entry,
    /// Who did it; nobody if it was a person.
    who: Option<&'a SpiffeId>,
    /// How tables name who it was: people by their pseudonyms, whether or not more is disclosed.
    name: Cow<'a, str>,
    /// The person who did it.
    person: Option<Person>,
    /// By which certificate; of a person only if that is disclosed.
    cert: Option<Digest>,
    study: Option<StudyId>,
    round: Option<RoundId>,
    site: Option<SiteId>,
    decision: &'a str,
    /// The list of policies that decided.
    decided_by: Option<Node<'a>>,
    succession: Option<&'a str>,
    /// Whether it is within the scope.
    counts: bool,
}

impl<'a> Seen<'a> {
    fn new(entry: &'a Entry, scope: &Scope) -> Self {
        let person = entry.actor_person();
        let mut seen = Self {
            entry,
            who: entry.actor_id().filter(|_| person.is_none()),
            name: Cow::default(),
            person,
            cert: entry.actor_cert(),
            study: None,
            round: None,
            site: None,
            decision: "",
            decided_by: None,
            succession: None,
            counts: false,
        };
        let (mut actor, mut number) = (None, None);
        // One walk over the members is quicker than one for each of them.
        for (name, value) in entry.body().members() {
            match name {
                "actor" => actor = value.find_text("id"),
                // Who wants to know everything about a site wants to know this too.
                "identity" => seen.site = value.as_text().and_then(|site| site.parse().ok()),
                "decision" => seen.decision = value.as_text().unwrap_or_default(),
                "policy_ids" => seen.decided_by = Some(value),
                "round" => number = value.as_int(),
                "site" => seen.site = value.as_text().and_then(|site| site.parse().ok()),
                "study" => seen.study = value.as_text().and_then(|study| study.parse().ok()),
                "succession" => seen.succession = value.as_text(),
                _ => {}
            }
        }
        seen.round =
            seen.study.clone().zip(number).map(|(study, number)| RoundId { study, number });
        // An identity has one spelling, so the entry has it already.
        seen.name = match (person, seen.who, &seen.site) {
            (Some(person), ..) => people::name(person).into(),
            (None, Some(_), _) => actor.unwrap_or_default().into(),
            (None, None, Some(_)) => seen.text("site").into(),
            (None, None, None) => Cow::default(),
        };
        seen.counts = scope.covers(&seen);
        seen
    }

    const fn kind(&self) -> Kind {
        self.entry.kind
    }

    const fn index(&self) -> u64 {
        self.entry.seq
    }

    fn text(&self, key: &str) -> &'a str {
        self.entry.body().find_text(key).unwrap_or_default()
    }

    /// As `name`, to be kept.
    fn who(&self) -> String {
        self.name.clone().into_owned()
    }

    fn study(&self) -> &str {
        self.study.as_ref().map_or("", StudyId::as_str)
    }

    /// Where the other side is.
    fn place(&self) -> Option<Place> {
        if self.person.is_some() {
            return self.entry.actor_place();
        }
        let site = || self.site.as_ref().map(|s| s.spiffe().place().clone());
        self.who.map(|who| who.place().clone()).or_else(site)
    }

    /// Policies that decided.
    fn policies(&self) -> impl Iterator<Item = &'a str> {
        self.decided_by.into_iter().flat_map(Node::items).filter_map(Node::as_text)
    }

    /// Whether it counts the approval of another person.
    fn is_approved(&self) -> bool {
        self.entry.approvals().is_ok_and(|approvals| !approvals.is_empty())
    }

    /// Whether it took something somewhere: a model, the log, or entries that were read and, by the word of who reads, passed on.
    fn takes_out(&self) -> bool {
        match self.kind() {
            Kind::ModelRead | Kind::LogExported => true,
            Kind::AdminRead => {
                self.text("action") == "log.read" && self.entry.destination().is_some()
            }
            _ => false,
        }
    }

    const fn is_refusal(&self) -> bool {
        matches!(self.kind(), Kind::ConnectionRefused | Kind::UpdateRefused | Kind::AccessDenied)
    }

    /// Whether somebody was served, or handed something in.
    const fn is_access(&self) -> bool {
        matches!(
            self.kind(),
            Kind::TaskSent
                | Kind::ModelRead
                | Kind::AdminRead
                | Kind::LogExported
                | Kind::UpdateAccepted
                | Kind::ExchangeAnswered
                | Kind::EvaluationAccepted
                | Kind::StudySubmitted
        )
    }
}

/// What entries refer to, and where the coordinator is: what every section may look up.
#[derive(Default)]
struct About {
    coordinator: Option<SpiffeId>,
    holders: BTreeMap<Digest, Holder>,
    /// Study files by digest, and the digest of each study that was submitted.
    files: BTreeMap<Digest, Study>,
    submitted: BTreeMap<StudyId, Digest>,
    /// What each witness has cosigned: entries, and when.
    witnesses: BTreeMap<String, (u64, String)>,
}

impl About {
    fn study(&self, id: &StudyId) -> Option<&Study> {
        self.files.get(self.submitted.get(id)?)
    }

    /// Whether a place is under another law than the coordinator.
    fn is_abroad(&self, place: &Place) -> bool {
        let here = self.coordinator.as_ref().map(|c| c.place().jurisdiction());
        here.is_some_and(|here| here != place.jurisdiction())
    }

    /// Entries that somebody other than the coordinator vouches for.
    fn witnessed(&self) -> u64 {
        self.witnesses.values().map(|(size, _)| *size).max().unwrap_or_default()
    }
}

/// Folds a log into a report.
#[derive(Default)]
pub struct Sections {
    scope: Scope,
    about: About,
    range: Option<(u64, u64, String, String)>,
    counted: u64,
    access: access::Access,
    studies: studies::Studies,
    security: security::Security,
    findings: findings::Findings,
    charts: charts::Charts,
    people: people::People,
}

impl Sections {
    /// A report of what is in `scope`.
    #[must_use]
    pub fn new(scope: Scope) -> Self {
        Self { scope, ..Self::default() }
    }

    /// A certificate that an issuer vouches for, by its digest.
    pub fn certificate(&mut self, digest: Digest, holder: Holder) {
        self.about.holders.insert(digest, holder);
    }

    /// A study file, by its digest.
    pub fn study(&mut self, digest: Digest, study: Study) {
        self.about.files.insert(digest, study);
    }

    /// A policy file of the set with this digest.
    pub fn policy(&mut self, set: Digest, file: &str, bytes: &[u8]) {
        self.security.policy(set, file, bytes);
    }

    /// What a witness has cosigned.
    pub fn witness(&mut self, witness: &str, tree_size: u64, time: &str) {
        let newest = self.about.witnesses.entry(witness.to_owned()).or_default();
        if tree_size >= newest.0 {
            *newest = (tree_size, time.to_owned());
        }
    }

    /// The next entry.
    pub fn take(&mut self, entry: &Entry) {
        let seen = Seen::new(entry, &self.scope);
        if self.scope.in_time(&entry.ts) {
            let (seq, ts) = (entry.seq, &entry.ts);
            let range = self.range.get_or_insert_with(|| (seq, seq, ts.clone(), ts.clone()));
            range.1 = seq;
            range.3.clone_from(ts);
        }
        match seen.kind() {
            Kind::CoordinatorStarted => {
                self.about.coordinator = entry.body().parsed("coordinator").ok();
            }
            Kind::StudySubmitted => {
                if let (Some(id), Ok(digest)) =
                    (seen.study.clone(), entry.body().parsed("study_sha256"))
                {
                    self.about.submitted.insert(id, digest);
                }
            }
            _ => {}
        }
        self.counted += u64::from(seen.counts);
        self.findings.take(&seen, &self.about);
        self.studies.take(&seen);
        if seen.counts {
            self.access.take(&seen, &self.about);
            self.security.take(&seen);
            self.charts.take(&seen);
        }
        self.people.take(&seen);
    }

    /// The report over all entries of a log with this name and root.
    #[must_use]
    pub fn finish(self, origin: &str, tree_size: u64, root_hash: &Digest) -> Canon {
        let Self {
            scope,
            about,
            range,
            counted,
            access,
            studies,
            security,
            mut findings,
            mut charts,
            people,
        } = self;
        let (from, last, first_ts, last_ts) = range.unwrap_or_default();
        let to = if first_ts.is_empty() { from } else { last + 1 };
        let mut sections = parts::all();
        access.write(&mut sections, &about);
        studies.write(&mut sections, &about, &mut findings, &mut charts);
        access.write_approvals(&mut sections);
        security.write(&mut sections, &about, &mut charts, (tree_size, root_hash, &last_ts));
        people.write(&mut sections);
        let summary = [
            ("entries", counted),
            ("accesses", access.accesses),
            ("refusals", access.refusals),
            ("sites", access.sites()),
            ("studies", studies.count()),
            ("rounds", studies.rounds()),
            ("models", studies.models()),
            ("updates", studies.updates()),
            ("witnesses", about.witnesses.len() as u64),
            ("findings", findings.count()),
        ];
        let summary = summary
            .map(|(name, count)| Canon::map([("name", name.into()), ("count", count_of(count))]));
        let text = |id: Option<String>| Canon::Text(id.unwrap_or_default());
        let (found, found_more) = findings.write();
        let (timeline, timeline_more) = charts.timeline();
        let witnessed = about.witnessed();
        Canon::map([
            ("v", VERSION.into()),
            ("report", "falaj/report/v1".into()),
            ("origin", origin.into()),
            ("coordinator", text(about.coordinator.map(|c| c.to_string()))),
            (
                "log",
                Canon::map([
                    ("tree_size", count_of(tree_size)),
                    ("root_hash", root_hash.to_string().into()),
                ]),
            ),
            (
                "range",
                Canon::map([
                    ("from", count_of(from)),
                    ("to", count_of(to)),
                    ("first_ts", first_ts.into()),
                    ("last_ts", last_ts.into()),
                    ("since", scope.since.into()),
                    ("until", scope.until.into()),
                ]),
            ),
            (
                "scope",
                Canon::map([
                    ("study", text(scope.study.map(|s| s.as_str().to_owned()))),
                    ("subject", text(scope.subject.map(|s| s.to_string()))),
                ]),
            ),
            ("summary", Canon::List(summary.into())),
            ("findings", found),
            ("findings_more", count_of(found_more)),
            ("timeline", timeline),
            ("timeline_more", count_of(timeline_more)),
            ("charts", charts.write()),
            ("sections", parts::write(sections, witnessed)),
        ])
    }
}

/// A count, which in canonical JSON is below 2^53.
fn count_of(n: u64) -> Canon {
    Canon::Int(i64::try_from(n).unwrap_or(i64::MAX).min((1 << 53) - 1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        audit::{
            Actor, Draft,
            approvals::{Approval, Approved},
        },
        dp::{Batches, Poisson},
        study::{
            Algorithm, Bounds, Cohort, Consent, Data, Feature, FeatureKind, Governance, Label,
            LabelValues, Mechanism, Missing, Model, Optimizer, Privacy, Rounds, Sealing, Training,
            Weights,
        },
    };

    const COORDINATOR: &str = "spiffe://t/ae-on/ae-az/coordinator/main";
    const SITE: &str = "spiffe://t/ae-on/ae-du/site/h-1";
    const SARA: &str = "spiffe://t/ae-on/ae-az/operator/sara";

    fn study(governance: Governance) -> Study {
        let kind = FeatureKind::Numeric {
            bounds: Bounds::Declared { min: 0.0, max: 1.0 },
            missing: Missing::Refuse,
        };
        Study {
            id: "s".parse().expect("a name"),
            purpose: "To learn".into(),
            data: Data {
                dataset: "d".into(),
                features: vec![Feature { name: "x".into(), kind }],
                label: Label {
                    column: "y".into(),
                    values: LabelValues::Classes(vec!["a".into(), "b".into()]),
                },
            },
            model: Model::Logistic,
            training: Training {
                algorithm: Algorithm::FedAvg,
                local_steps: 1,
                batches: Batches::Poisson(Poisson::new(0.1).expect("a chance")),
                learning_rate: 0.5,
                optimizer: Optimizer::Sgd { momentum: 0.0 },
                server_learning_rate: 1.0,
            },
            privacy: Privacy {
                mechanism: Mechanism::DpSgd {
                    noise_multiplier: 4.0,
                    clip_norm: 1.0,
                    adaptive: None,
                },
                delta: 1e-5,
                epsilon_limit: 2.0,
                weight_epsilon: 0.1,
            },
            sealing: Sealing { bits: 16, range: 1.0, rotated: false },
            cohort: Cohort {
                places: vec!["ae-on/*".into()],
                sites: vec![],
                min_sites: 1,
                weights: Weights::Uniform,
            },
            aggregation: crate::robust::Rule::Mean,
            rounds: Rounds { count: 1, deadline_s: 60, grace_s: 1, retries: 0 },
            governance,
            evaluation: None,
            gates: Vec::new(),
            patience: None,
        }
    }

    fn governed() -> Governance {
        Governance {
            legal_basis: Some("permission 7".into()),
            dpia: Some("DPIA-1".into()),
            consent: Some(Consent { reference: "C-1".into(), expires: "2026-06-30".into() }),
            witnesses: None,
            retention: None,
        }
    }

    fn actor(id: &str) -> Actor {
        let cert = Some(Digest::of(id.as_bytes()));
        Actor { id: Some(id.parse().expect("an identity")), cert, ..Actor::default() }
    }

    fn allowed(draft: Draft) -> Draft {
        draft.decided(true, &["ACC-1".into()], &Digest::of(b"set"))
    }

    /// A round as it should be.
    fn clean() -> Vec<Draft> {
        let round = RoundId { study: "s".parse().expect("a name"), number: 1 };
        let of = |kind| Draft::new(kind).round(&round);
        vec![
            Draft::new(Kind::CoordinatorStarted).text("coordinator", COORDINATOR),
            allowed(Draft::new(Kind::ConnectionAdmitted).actor(&actor(SARA))),
            allowed(Draft::new(Kind::ConnectionAdmitted).actor(&actor(SITE))),
            Draft::new(Kind::StudySubmitted)
                .actor(&actor(SARA))
                .study(&round.study)
                .digest("study_sha256", &Digest::of(b"study")),
            of(Kind::RoundOpened).digest("base_sha256", &Digest::of(b"base")),
            of(Kind::SiteJoined).text("site", SITE),
            allowed(of(Kind::TaskSent).text("site", SITE)),
            of(Kind::UpdateAccepted)
                .actor(&actor(SITE))
                .text("site", SITE)
                .text("epsilon", "0.9000"),
            of(Kind::ModelPublished).digest("model_sha256", &Digest::of(b"model")),
            allowed(Draft::new(Kind::AdminRead).actor(&actor(SARA)).text("action", "log.read")),
            allowed(Draft::new(Kind::ModelRead).actor(&actor(SARA)).study(&round.study)),
        ]
    }

    /// The report over these entries, one a day from 2026-03-01 on.
    fn report(drafts: Vec<Draft>, governance: Governance, scope: Scope) -> Canon {
        let mut sections = Sections::new(scope);
        for id in [SITE, SARA] {
            let holder = Holder {
                id: id.parse().expect("an identity"),
                issuer: Digest::of(b"issuer"),
                from: Timestamp::from_millis(0),
                until: Timestamp::from_millis(2_000_000_000_000),
            };
            sections.certificate(Digest::of(id.as_bytes()), holder);
        }
        sections.study(Digest::of(b"study"), study(governance));
        let size = drafts.len() as u64;
        for (i, draft) in drafts.into_iter().enumerate() {
            let at = 1_772_323_200_000 + i64::try_from(i).expect("small") * 86_400_000;
            let bytes = draft.finish(i as u64, Timestamp::from_millis(at), [0; 16]);
            sections.take(&Entry::parse(&bytes).expect("an entry"));
        }
        sections.finish("t/log", size, &Digest::of(b"root"))
    }

    fn found(report: &Canon) -> Vec<(String, i64)> {
        let list = report.list("findings").expect("a list");
        list.iter()
            .map(|f| {
                (f.text("finding").expect("text").to_owned(), f.int("index").expect("a place"))
            })
            .collect()
    }

    fn fact<'a>(report: &'a Canon, name: &str) -> Option<&'a str> {
        report.list("sections").expect("sections").iter().find_map(|s| {
            let facts = s.list("facts").expect("facts");
            facts.iter().find(|f| f.text("fact") == Ok(name))?.text("level").ok()
        })
    }

    /// The rows of a table, as text.
    fn rows(report: &Canon, name: &str) -> Vec<Vec<String>> {
        let sections = report.list("sections").expect("sections");
        let mut tables = sections.iter().flat_map(|s| s.list("tables").expect("tables"));
        let table = tables.find(|t| t.text("name") == Ok(name)).expect("the table");
        let rows = table.list("rows").expect("rows").iter();
        let cell = |cell: &Canon| match cell {
            Canon::Text(text) => text.clone(),
            Canon::Int(number) => number.to_string(),
            other => panic!("{other:?}"),
        };
        let cells = |row: &Canon| match row {
            Canon::List(cells) => cells.iter().map(cell).collect(),
            other => panic!("{other:?}"),
        };
        rows.map(cells).collect()
    }

    fn summary(report: &Canon, name: &str) -> i64 {
        let list = report.list("summary").expect("a list");
        let one = list.iter().find(|s| s.text("name") == Ok(name)).expect("there");
        one.int("count").expect("a count")
    }

    /// CMP-03: a clean run shows nothing.
    #[test]
    fn a_round_as_it_should_be_gives_no_finding() {
        let report = report(clean(), governed(), Scope::default());
        assert_eq!(found(&report), []);
        for (name, count) in
            [("entries", 11), ("sites", 1), ("models", 1), ("updates", 1), ("accesses", 5)]
        {
            assert_eq!(summary(&report, name), count, "{name}");
        }
        assert_eq!(report.list("sections").expect("sections").len(), 15);
    }

    /// Who was revoked, by whom, why and when; of a site, whoever asks about it reads so too.
    #[test]
    fn revocations_and_what_was_taken_back_are_told_with_who_did_it() {
        let person = Person([7; 16]);
        let cert = Digest::of(b"lost");
        let by = |kind| allowed(Draft::new(kind).actor(&actor(SARA))).text("action", "site.revoke");
        let mut drafts = clean();
        drafts.extend([
            by(Kind::CertificateRevoked).text("identity", SITE).text("reason", "left"),
            by(Kind::CertificateRevoked).digest("cert_sha256", &cert).text("reason", "key lost"),
            by(Kind::CertificateRevoked).person(person).text("reason", "left too"),
            by(Kind::CertificateReinstated).text("identity", SITE).text("reason", "back"),
            Draft::new(Kind::AlertRaised).text("alert", "deny_list_not_taken").text("detail", "x"),
        ]);
        let at = |day: u32| format!("2026-03-{day:02}T00:00:00.000Z");
        let all = report(drafts.clone(), governed(), Scope::default());
        assert_eq!(fact(&all, "E7.revocation"), Some("recorded"));
        let (cert, person) = (cert.to_string(), format!("person:{person}"));
        let expected: Vec<Vec<String>> = [
            ["certificate.revoked", SITE, "left", SARA, &at(12), "11"],
            ["certificate.revoked", &cert, "key lost", SARA, &at(13), "12"],
            ["certificate.revoked", &person, "left too", SARA, &at(14), "13"],
            ["certificate.reinstated", SITE, "back", SARA, &at(15), "14"],
        ]
        .map(|row| row.map(str::to_owned).to_vec())
        .to_vec();
        assert_eq!(rows(&all, "revocations"), expected);
        let incidents = rows(&all, "incidents");
        assert_eq!(
            incidents[0][..3],
            ["alert.raised", "deny_list_not_taken", "15"],
            "{incidents:?}"
        );
        let subject = Scope { subject: Some(SITE.parse().expect("valid")), ..Scope::default() };
        let about = rows(&report(drafts, governed(), subject), "revocations");
        assert_eq!(about, [expected[0].clone(), expected[3].clone()]);
        assert_eq!(fact(&report(clean(), governed(), Scope::default()), "E7.revocation"), None);
    }

    #[test]
    fn what_people_approved_is_told_and_what_was_approved_is_no_finding() {
        let person = Person([7; 16]);
        let place = "gb/gb-lnd".parse().expect("a place");
        let of =
            Approved { action: "log.export".into(), study: None, promotion: None, place, person };
        let given = allowed(Draft::new(Kind::ApprovalGiven).actor(&actor(SARA)));
        let exported = allowed(Draft::new(Kind::LogExported).actor(&actor(SARA)))
            .asked([("place", "gb/gb-lnd")])
            .texts("approvals", ["a".to_owned()]);
        let mut drafts = clean();
        drafts.extend([Approval::tell(given, "a", &of), exported]);
        let report = report(drafts, governed(), Scope::default());
        assert_eq!(found(&report), []);
        assert_eq!(fact(&report, "E2.approvals"), Some("recorded"));
        assert_eq!(fact(&report, "E13.approvals"), Some("recorded"));
        let row = [SARA, "approval.given", "", "gb/gb-lnd", "1", "11", "11"];
        assert_eq!(rows(&report, "approvals"), [row.map(str::to_owned).to_vec()]);
    }

    /// CMP-03: each planted violation is found where it is, and nothing else.
    #[test]
    fn each_violation_is_found_in_its_place() {
        let late = Governance {
            consent: Some(Consent { reference: "C".into(), expires: "2026-03-04".into() }),
            ..governed()
        };
        let changed = |at: usize, change: &dyn Fn(Draft) -> Draft| {
            let mut drafts = clean();
            let draft = drafts.remove(at);
            drafts.insert(at, change(draft));
            drafts
        };
        let abroad = "spiffe://t/gb/gb-lnd/operator/eve";
        let mut stranger = clean();
        stranger.insert(5, clean()[1].clone().actor(&actor(abroad)));
        stranger.push(clean()[10].clone().actor(&actor(abroad)));
        let mut mirrored = clean();
        mirrored.push(
            allowed(Draft::new(Kind::LogExported).actor(&actor(SARA)))
                .asked([("from", "0"), ("place", "gb/gb-lnd")]),
        );
        let mut passed_on = clean();
        passed_on.push(
            allowed(Draft::new(Kind::AdminRead).actor(&actor(SARA)).text("action", "log.read"))
                .asked([("tail", "0"), ("place", "gb/gb-lnd")]),
        );
        let joined = |d: Draft| d.text("site", "spiffe://t/ae-difc/ae-du/site/bank");
        let mut elsewhere = clean();
        elsewhere.insert(6, joined(clean()[5].clone()));
        let mut unseated = clean();
        unseated.remove(5);
        let cases: [(&str, i64, Vec<Draft>, Governance); 10] = [
            ("out_of_region_join", 6, elsewhere, governed()),
            ("export_without_approval", 12, stranger, governed()),
            ("export_without_approval", 11, mirrored, governed()),
            ("export_without_approval", 11, passed_on, governed()),
            ("epsilon_overrun", 7, changed(7, &|d| d.text("epsilon", "2.0001")), governed()),
            ("epsilon_understated", 7, changed(7, &|d| d.text("epsilon", "0.1000")), governed()),
            ("missing_dpia", 4, clean(), Governance { dpia: None, ..governed() }),
            ("expired_consent", 4, clean(), late),
            ("read_without_grant", 9, changed(9, &|d| d.text("decision", "deny")), governed()),
            ("read_without_grant", 5, unseated, governed()),
        ];
        for (finding, index, drafts, governance) in cases {
            let report = report(drafts, governance, Scope::default());
            let found = found(&report);
            assert_eq!(found.first(), Some(&(finding.to_owned(), index)), "{found:?}");
            assert!(found.iter().all(|(f, _)| f == finding), "{found:?}");
            assert_eq!(summary(&report, "findings"), i64::try_from(found.len()).expect("few"));
        }
    }

    /// Somebody who was never let in was served: by whatever way, it was not through the front door.
    #[test]
    fn a_read_by_a_certificate_that_was_never_admitted_is_found() {
        let mut drafts = clean();
        drafts.remove(1);
        let report = report(drafts, governed(), Scope::default());
        let reads = found(&report);
        assert_eq!(reads, [("read_without_grant".into(), 8), ("read_without_grant".into(), 9)]);
    }

    /// RES-06: a level stands on an entry, and goes with it.
    #[test]
    fn a_level_falls_when_the_entry_behind_it_is_gone() {
        let whole = report(clean(), governed(), Scope::default());
        for (name, level, behind) in [
            ("E1.places", "ca_attested", vec![1, 2]),
            ("E6.epsilon", "attested", vec![7]),
            ("E6.mechanisms", "proven", vec![7]),
            ("E9.lineage", "proven", vec![8]),
            ("E12.consent", "declared", vec![3]),
            ("E3.legal_basis", "declared", vec![3]),
        ] {
            assert_eq!(fact(&whole, name), Some(level), "{name}");
            let drafts = clean().into_iter().enumerate().filter(|(i, _)| !behind.contains(i));
            let drafts = drafts.map(|(_, d)| d).collect();
            let without = report(drafts, governed(), Scope::default());
            assert_eq!(fact(&without, name), None, "{name}");
        }
        assert_eq!(fact(&whole, "E10.dpia"), Some("declared"));
        let none = report(clean(), Governance::default(), Scope::default());
        assert_eq!(fact(&none, "E10.dpia"), None);
    }

    #[test]
    fn what_others_have_cosigned_is_witnessed() {
        let level = |witnessed: u64| {
            let mut sections = Sections::default();
            sections.witness(SITE, witnessed, "2026-03-02T00:00:00.000Z");
            for (i, draft) in clean().into_iter().enumerate() {
                let bytes = draft.finish(i as u64, Timestamp::from_millis(0), [0; 16]);
                sections.take(&Entry::parse(&bytes).expect("an entry"));
            }
            let report = sections.finish("t/log", 11, &Digest::of(b"root"));
            fact(&report, "E4.accesses").map(str::to_owned)
        };
        assert_eq!(level(11).as_deref(), Some("witnessed"));
        assert_eq!(level(10).as_deref(), Some("recorded"));
    }

    #[test]
    fn a_scope_counts_only_what_it_names_and_still_knows_what_came_before() {
        let late = Scope { since: "2026-03-08".into(), ..Scope::default() };
        let after = report(clean(), governed(), late);
        assert_eq!(found(&after), []);
        assert_eq!(summary(&after, "entries"), 4);
        let range = after.member("range").expect("there");
        assert_eq!((range.int("from"), range.int("to")), (Ok(7), Ok(11)));
        let subject = Scope { subject: Some(SITE.parse().expect("an id")), ..Scope::default() };
        assert_eq!(summary(&report(clean(), governed(), subject), "entries"), 4);
        let month = Scope { until: "2026-03".into(), ..Scope::default() };
        assert_eq!(summary(&report(clean(), governed(), month), "entries"), 11);
        let study = Scope { study: Some("s".parse().expect("a name")), ..Scope::default() };
        assert_eq!(summary(&report(clean(), governed(), study), "entries"), 7);
    }

    #[test]
    fn a_time_is_read_as_it_is_compared_or_not_at_all() {
        for (text, read) in [
            ("2026", "2026"),
            ("2026-03", "2026-03"),
            ("2026-03-01", "2026-03-01"),
            ("2026-03-01T09:30Z", "2026-03-01T09:30"),
            ("2026-03-01T09:30:00Z", "2026-03-01T09:30:00"),
            ("2026-03-01T09:30:00.125Z", "2026-03-01T09:30:00.125"),
        ] {
            assert_eq!(moment(text).as_deref(), Some(read));
        }
        for text in [
            "",
            "yesterday",
            "2026-3",
            "2026-13",
            "2026-00",
            "2026-03-32",
            "2026-03-01T24:00",
            "2026-03-01T09",
            "2026-03-01 09:30",
            "2026-03-01T09:30:00+04:00",
            "2026-03Z",
            "2026-03-01T09:30:00.1255Z",
            "٢٠٢٦",
        ] {
            assert_eq!(moment(text), None, "{text}");
        }
        let since = moment("2026-03-01T00:00:00Z").expect("a time");
        let first = Scope { since, ..Scope::default() };
        assert_eq!(summary(&report(clean(), governed(), first), "entries"), 11);
    }

    #[test]
    fn an_empty_range_says_that_there_is_nothing() {
        let never = Scope { since: "2030".into(), ..Scope::default() };
        let report = report(clean(), governed(), never);
        assert_eq!(summary(&report, "entries"), 0);
        assert_eq!(found(&report), []);
        let range = report.member("range").expect("there");
        assert_eq!((range.int("from"), range.int("to")), (Ok(0), Ok(0)));
    }

    #[test]
    fn long_logs_give_short_reports() {
        let mut drafts = clean();
        let refused = |i: u64| {
            Draft::new(Kind::ConnectionRefused).text("reason", &format!("foreign text {i}"))
        };
        drafts.extend((0..5_000).map(refused));
        let unread = clean()[9].clone().text("decision", "deny");
        drafts.extend((0..2_000).map(|_| unread.clone()));
        let report = report(drafts, governed(), Scope::default());
        assert_eq!(summary(&report, "findings"), 2_000);
        assert_eq!(report.int("findings_more"), Ok(1_000));
        assert_eq!(summary(&report, "refusals"), 5_000);
        assert!(report.to_bytes().len() < 1 << 20);
        for chart in report.list("charts").expect("charts") {
            assert!(chart.list("labels").expect("labels").len() <= 60);
        }
    }
}
