//! What sites counted about candidates, and whether verdicts follow from it.
//!
//! The figures of every gate are made again from the signed counts in the bundle, and must be those that the log has: in the
//! verifier as in the coordinator, by `falaj_core::gate`. So is what patience makes of them: when a study ends by it, and with which
//! model. Updates are not in a bundle: how they compare with each other is what the coordinator says, and gates are judged again
//! by that.

use crate::revoked::{Revoked, UNDER_WAY_MS};
use ed25519_dalek::VerifyingKey;
use falaj_core::{
    audit::{Entry, Kind, approvals::Promotion, bundle, person::Person, within_bounds},
    canon::{Canon, CanonError, Node},
    evaluation::{
        Evaluation, Target,
        answer::{CONTEXT, EvaluationHeader, from_bytes},
    },
    gate::{
        Declared, Evaluated, Facts, Gate, Judged, OnFailure, Verdict, When, compare_updates, judge,
        judge_promotion,
        patience::{Patience, Progress},
    },
    id::{Digest, RoundId, SiteId, StudyId},
    note,
    robust::{Compared, Standing},
    round::APPROVERS,
    study::Study,
    time::Timestamp,
};
use falaj_policies::Action;
use std::collections::BTreeMap;

/// How a study's candidates are judged.
#[derive(Clone)]
pub(crate) struct Gating {
    evaluation: Option<Evaluation>,
    gates: Vec<Declared>,
    patience: Option<Patience>,
    target: Target,
    rounds: u32,
    /// So many sites have to count before anything is said of all together.
    min_sites: u32,
}

impl Gating {
    pub(crate) fn of(study: &Study) -> Self {
        Self {
            evaluation: study.evaluation.clone(),
            gates: study.gates.clone(),
            patience: study.patience,
            target: study.target(),
            rounds: study.rounds.count,
            min_sites: study.cohort.min_sites,
        }
    }

    /// How the updates of a round, which are these sites', compare as an entry says, where a gate asks for it.
    fn compared(
        &self,
        entry: &Entry,
        round: u32,
        sites: &[SiteId],
    ) -> Result<Option<Compared>, String> {
        let asked = compare_updates(&self.gates, round == self.rounds, self.is_due(round));
        if asked { compared(entry, sites) } else { Ok(None) }
    }

    /// The model that a study which has come so far ends with, or None if that is its newest; or why it does not end yet.
    fn ends(&self, coming: &Coming) -> Result<Option<Digest>, String> {
        let best = coming.progress.best.as_ref().map(|best| best.model);
        let patience = self.patience.map(|patience| patience.is_over(&coming.progress));
        match coming.newest {
            Some(Outcome::Gave(round)) if round >= self.rounds || patience == Some(true) => {
                Ok(best)
            }
            Some(Outcome::Gave(round)) => Err(format!(
                "round {round} of {} was its newest{}",
                self.rounds,
                patience.map_or("", |_| ", and its patience has not run out")
            )),
            Some(Outcome::Kept(_, OnFailure::Stop)) => Ok(best),
            Some(Outcome::Kept(round, OnFailure::RollBack)) if round >= self.rounds => {
                Ok(best.or(coming.good))
            }
            Some(Outcome::Kept(round, _)) => Err(format!(
                "the candidate of round {round} of {} was kept out, by no gate that ends it",
                self.rounds
            )),
            None => Err("its newest round gave no model".into()),
        }
    }

    /// Whether a round is evaluated.
    fn is_due(&self, round: u32) -> bool {
        self.evaluation.as_ref().is_some_and(|e| e.is_due(round, self.rounds))
    }
}

/// What is known of a round that was judged.
struct Round {
    counted: Counted,
    /// The candidate that sites were asked about.
    candidate: Digest,
    /// What each of them counted.
    taken: BTreeMap<SiteId, Digest>,
    /// How its updates compare, as the coordinator says, where gates ask for it.
    compared: Option<Compared>,
}

/// A candidate that waits for people.
struct Waits {
    round: Round,
    until: Timestamp,
    /// Who has approved it, and when they were erased.
    approved: BTreeMap<Person, Option<Timestamp>>,
    /// Whose approval counts for less than one thinks, and why.
    remarks: BTreeMap<Person, &'static str>,
}

impl Waits {
    /// Somebody approves it.
    fn approve(&mut self, by: Person) {
        match self.approved.insert(by, None) {
            Some(_) => self.remarks.insert(by, "approved it twice, which counts once"),
            None => self.remarks.remove(&by),
        };
    }

    /// Whoever was revoked or erased by this time has approved nothing.
    fn hear(&mut self, at: Timestamp, revoked: &Revoked) {
        self.approved.retain(|person, erased| {
            let why = if revoked.is_out(&person.to_string(), at) {
                "was revoked before"
            } else if erased.is_some_and(|erased| at > erased.plus_ms(UNDER_WAY_MS)) {
                "was erased before"
            } else {
                return true;
            };
            self.remarks.insert(*person, why);
            false
        });
    }

    /// That enough people have approved it, or what it lacks.
    fn is_let_through(&self) -> Result<(), String> {
        let found = self.approved.len();
        if found >= APPROVERS {
            return Ok(());
        }
        let people = if found == 1 { "person has" } else { "people have" };
        let mut lacks = vec![format!("{found} {people} approved it, and {APPROVERS} are needed")];
        lacks.extend(self.remarks.iter().map(|(who, why)| format!("person {who} {why}")));
        Err(lacks.join("; "))
    }
}

/// What is known of a round's updates.
pub(crate) struct Counted {
    /// Whose they are, in the order of ids.
    pub(crate) sites: Vec<SiteId>,
    pub(crate) examples: u64,
    /// The most epsilon that a site had spent on the study by then, as headers state, whether its update is among them or not.
    pub(crate) epsilon: Option<f64>,
}

/// A header that waits for its signature and counts.
struct Waiting {
    digest: Digest,
    bytes: Vec<u8>,
    signed: bool,
}

/// Signed counts, and what was said with them.
struct Signed {
    header: EvaluationHeader,
    counts: Vec<i64>,
}

/// How the newest round of a study has come out.
#[derive(Clone, Copy)]
enum Outcome {
    /// It gave a model.
    Gave(u32),
    /// Its candidate was kept out, which has this consequence.
    Kept(u32, OnFailure),
}

/// How far a study has come.
#[derive(Default)]
struct Coming {
    /// How its models compare, if it has patience.
    progress: Progress,
    /// None while a round is open, or if it failed.
    newest: Option<Outcome>,
    /// What a gate rolls it back to: the last model of which everything was asked, or the one that it began with.
    good: Option<Digest>,
    /// Where it has gone back for good, and with what it is to finish.
    back: Option<Digest>,
}

impl Coming {
    /// What an entry says of patience follows from the figures of the candidate that was judged; `given` is its round and itself,
    /// if it became the model.
    fn weigh(
        &mut self,
        patience: &Patience,
        entry: &Entry,
        given: Option<(u32, Digest)>,
        facts: &Facts<'_>,
    ) -> Result<(), String> {
        let weighed = given.and_then(|given| patience.weigh(&self.progress, facts, given));
        let ours = weighed.as_ref().map(|weighed| within_bounds(&weighed.line));
        let theirs = entry.body().find_text("patience");
        if ours.as_deref() != theirs {
            let told = |text: Option<&str>| text.unwrap_or("nothing").to_owned();
            return Err(format!(
                "`patience` says `{}`, and by what the sites signed it is `{}`",
                told(theirs),
                told(ours.as_deref())
            ));
        }
        if let Some(weighed) = weighed {
            self.progress = weighed.progress;
        }
        Ok(())
    }
}

/// What sites have counted.
#[derive(Default)]
pub(crate) struct Evaluations {
    waiting: Option<Waiting>,
    signed: BTreeMap<Digest, Signed>,
    /// By round and try, what each site counted.
    accepted: BTreeMap<(RoundId, u32), BTreeMap<SiteId, Digest>>,
    gatings: BTreeMap<String, Gating>,
    /// Candidates that wait for people, by round and try.
    held: BTreeMap<(RoundId, u32), Waits>,
    /// Rounds that gave models which gates are asked about when they are promoted.
    gave: BTreeMap<RoundId, Round>,
    /// By study and number, the round whose model a version is.
    versions: BTreeMap<(String, u32), u32>,
    /// How far each study has come.
    coming: BTreeMap<String, Coming>,
    /// The most epsilon that a site has spent on each study, as headers state.
    spent: BTreeMap<StudyId, f64>,
    /// Verdicts whose figures were made again.
    pub(crate) judged: u64,
    /// Verdicts by figures of updates, which are what the coordinator says.
    pub(crate) compared: u64,
}

impl Evaluations {
    /// A file under `evaluations/`; `keys` are those of a site's certificates.
    pub(crate) fn take_file(
        &mut self,
        name: &str,
        bytes: Vec<u8>,
        keys: &BTreeMap<String, Vec<VerifyingKey>>,
    ) -> Result<(), String> {
        let (digest, ending) = name.split_once('.').ok_or("no bundle has such a file")?;
        let digest: Digest = digest.parse().map_err(|_| "no bundle has such a file")?;
        if ending == "header" {
            let found = Digest::of(&bytes);
            if found != digest {
                return Err(format!("its SHA-256 is {found}"));
            }
            self.waiting = Some(Waiting { digest, bytes, signed: false });
            return Ok(());
        }
        let before = self.waiting.take().filter(|w| w.digest == digest);
        let mut before = before.ok_or("its header does not stand before it")?;
        let header = EvaluationHeader::parse(&before.bytes).map_err(|e| e.to_string())?;
        match (ending, before.signed) {
            ("sig", false) => {
                let site = header.site.to_string();
                let keys = keys.get(&site).map(Vec::as_slice).unwrap_or_default();
                let by = |k: &VerifyingKey| note::verify_context(k, CONTEXT, &before.bytes, &bytes);
                if !keys.iter().any(by) {
                    return Err(format!("it is no signature by a certificate of {site}"));
                }
                before.signed = true;
                self.waiting = Some(before);
            }
            ("counts", true) => {
                let counts = from_bytes(&bytes).filter(|c| c.len() == header.cells as usize);
                let counts = counts.filter(|_| Digest::of(&bytes) == header.counts);
                let counts = counts.ok_or("the counts are not those that the site signed")?;
                self.signed.insert(digest, Signed { header, counts });
            }
            _ => return Err("no bundle has such a file there".into()),
        }
        Ok(())
    }

    /// The path of what is left over, if anything is.
    pub(crate) fn missing(&self) -> Option<String> {
        let missing =
            |w: &Waiting| bundle::evaluation(&w.digest, if w.signed { "counts" } else { "sig" });
        self.waiting.as_ref().map(missing)
    }

    /// A version was made of a round's model: every gate of its study that rounds are asked was asked about that round. A study that was submitted in
    /// another shard says nothing here.
    pub(crate) fn every_gate_was_asked(&self, entry: &Entry) -> Result<(), String> {
        let text = |e: CanonError| e.to_string();
        let round = entry.round().map_err(text)?;
        let version: u32 = entry.body().int("version").map_err(text)?;
        let Some(gating) = self.gatings.get(round.study.as_str()) else { return Ok(()) };
        let is_last = round.number == gating.rounds;
        let evaluated = gating.is_due(round.number);
        let mut of_rounds = gating.gates.iter().filter(|gate| gate.when != When::Promotion);
        of_rounds.find(|gate| !gate.is_asked(is_last, evaluated)).map_or(Ok(()), |gate| {
            let gate = gate.figure.name(gating.evaluation.as_ref());
            Err(format!(
                "version {version} of study `{}` is the model of round {}, which was not judged by the study's gate on `{gate}`",
                round.study, round.number
            ))
        })
    }

    /// A study was submitted.
    pub(crate) fn submitted(&mut self, study: &str, gating: Gating) {
        self.gatings.insert(study.to_owned(), gating);
    }

    /// A site has spent so much epsilon on a study, as it states.
    pub(crate) fn spent(&mut self, study: &StudyId, epsilon: f64) {
        let most = self.spent.entry(study.clone()).or_insert(epsilon);
        *most = most.max(epsilon);
    }

    /// The most that a site has spent on a study.
    pub(crate) fn most_spent(&self, study: &StudyId) -> Option<f64> {
        self.spent.get(study).copied()
    }

    /// A site's counts were taken.
    pub(crate) fn accepted(&mut self, entry: &Entry) -> Result<(), String> {
        let body = entry.body();
        let text = |e: CanonError| e.to_string();
        let round = entry.round().map_err(text)?;
        let attempt: u32 = body.int("attempt").map_err(text)?;
        let site: SiteId = body.parsed("site").map_err(text)?;
        let digest: Digest = body.parsed("header_sha256").map_err(text)?;
        if entry.actor_id() != Some(site.spiffe()) {
            return Err(format!("it takes counts of {site}, but somebody else sent them"));
        }
        let Some(Signed { header, .. }) = self.signed.get(&digest) else {
            return Err(format!("the signed header {digest} is not in the bundle"));
        };
        let same = header.site == site
            && header.round == round
            && header.attempt == attempt
            && Ok(header.candidate) == body.parsed("candidate_sha256")
            && Ok(header.counts) == body.parsed("counts_sha256")
            && Ok(header.epsilon.as_str()) == body.text("epsilon")
            && Ok(header.noise.as_str()) == body.text("noise");
        if !same {
            return Err(format!("the header that {site} signed speaks of other counts"));
        }
        let spent = header.epsilon.parse::<f64>().map_err(|e| e.to_string())?;
        self.spent(&round.study, spent);
        let of_round = self.accepted.entry((round.clone(), attempt)).or_default();
        if of_round.insert(site.clone(), digest).is_some() {
            return Err(format!("round {round} takes two counts of {site}"));
        }
        Ok(())
    }

    /// A candidate was judged: the gates' figures follow from what was counted, and a model was published only if all of them
    /// passed.
    pub(crate) fn verdict(&mut self, entry: &Entry, counted: Counted) -> Result<(), String> {
        let body = entry.body();
        let text = |e: CanonError| e.to_string();
        let round = entry.round().map_err(text)?;
        let Some(gating) = self.gatings.get(round.study.as_str()) else { return Ok(()) };
        let published = entry.kind == Kind::ModelPublished;
        let coming = self.coming.entry(round.study.as_str().to_owned()).or_default();
        // Entries of the first logs have none.
        let attempt: u32 = body.int("attempt").unwrap_or_default();
        let candidate: Digest = body.parsed("model_sha256").map_err(text)?;
        let place = (round.clone(), attempt);
        let (judged, let_through) = match self.held.remove(&place) {
            Some(Waits { round: judged, .. }) if judged.candidate != candidate => {
                return Err(format!(
                    "{} of round {round} waited for people, and not {candidate}",
                    judged.candidate
                ));
            }
            // It failed gates, and was refused or forgotten.
            Some(_) if !published => {
                coming.newest = Some(Outcome::Kept(round.number, OnFailure::Reject));
                return Ok(());
            }
            Some(waits) => {
                let let_through = waits.is_let_through();
                let judged = waits.round;
                let compared = gating.compared(entry, round.number, &judged.counted.sites)?;
                if compared != judged.compared {
                    return Err(format!(
                        "`compared` of round {round} is not what it was when people were asked"
                    ));
                }
                (judged, let_through)
            }
            None => {
                let taken = self.accepted.remove(&place).unwrap_or_default();
                let compared = gating.compared(entry, round.number, &counted.sites)?;
                let nobody = Err("it did not wait for anybody to approve it".to_owned());
                (Round { counted, candidate, taken, compared }, nobody)
            }
        };
        let (facts, verdict) = verdict_on(gating, &self.signed, round.number, &judged)?;
        if published && !verdict.pass {
            let failed = format!(
                "the model of round {round} fails a gate of its study: {}",
                verdict.reasons.join("; ")
            );
            match let_through {
                Ok(()) if verdict.asks() => {}
                Err(lacks) if verdict.asks() => return Err(format!("{failed}; {lacks}")),
                _ => return Err(failed),
            }
        }
        let ours: Vec<String> = verdict.judged.iter().map(Judged::line).collect();
        let sites: Vec<String> = judged.taken.keys().map(ToString::to_string).collect();
        let lists = [("gates", &ours[..]), ("evaluated_by", &sites)];
        same(entry, &format!("round {round}"), &lists)?;
        if let Some(patience) = &gating.patience {
            let given = published.then_some((round.number, candidate));
            coming.weigh(patience, entry, given, &facts)?;
        }
        coming.newest = Some(if published {
            Outcome::Gave(round.number)
        } else {
            Outcome::Kept(round.number, verdict.on_failure)
        });
        if published && (gating.evaluation.is_none() || gating.is_due(round.number)) {
            coming.good = Some(candidate);
        }
        self.judged += u64::from(!ours.is_empty());
        self.compared += u64::from(by_updates(&facts, &verdict));
        let later = gating.gates.iter().any(|gate| gate.when == When::Promotion);
        if published && later {
            self.gave.insert(round, judged);
        }
        Ok(())
    }

    /// A candidate waits for people: gates that ask failed, and no other.
    pub(crate) fn hold(&mut self, entry: &Entry, counted: Counted) -> Result<(), String> {
        let body = entry.body();
        let text = |e: CanonError| e.to_string();
        let round = entry.round().map_err(text)?;
        let Some(gating) = self.gatings.get(round.study.as_str()) else { return Ok(()) };
        let attempt: u32 = body.int("attempt").map_err(text)?;
        let candidate: Digest = body.parsed("model_sha256").map_err(text)?;
        let until = body.text("until").ok().and_then(Timestamp::parse);
        let until = until.ok_or("it does not say until when it waits")?;
        let place = (round.clone(), attempt);
        let taken = self.accepted.remove(&place).unwrap_or_default();
        let compared = gating.compared(entry, round.number, &counted.sites)?;
        let judged = Round { counted, candidate, taken, compared };
        let (facts, verdict) = verdict_on(gating, &self.signed, round.number, &judged)?;
        if !verdict.asks() {
            return Err(format!(
                "the candidate of round {round} waits for people, and its study's gates do not ask them"
            ));
        }
        let ours: Vec<String> = verdict.judged.iter().map(Judged::line).collect();
        let sites: Vec<String> = judged.taken.keys().map(ToString::to_string).collect();
        let lists = [("gates", &ours[..]), ("evaluated_by", &sites)];
        same(entry, &format!("round {round}"), &lists)?;
        self.judged += 1;
        self.compared += u64::from(by_updates(&facts, &verdict));
        let (approved, remarks) = (BTreeMap::new(), BTreeMap::new());
        self.held.insert(place, Waits { round: judged, until, approved, remarks });
        Ok(())
    }

    /// Whoever was revoked or erased is not heard when somebody else approves the same candidate, nor when it is published: as the
    /// coordinator has it, which hears of both a little earlier than the log.
    pub(crate) fn hear(&mut self, entry: &Entry, revoked: &Revoked) -> Result<(), String> {
        let decides = matches!(entry.kind, Kind::CandidateApproved | Kind::ModelPublished);
        let erases = entry.kind == Kind::ErasurePerformed;
        if self.held.is_empty() || !(decides || erases) {
            return Ok(());
        }
        let at = Timestamp::parse(&entry.ts).ok_or_else(|| format!("`{}` is no time", entry.ts))?;
        if let Some(person) = entry.person().filter(|_| erases) {
            let erased = self.held.values_mut().filter_map(|w| w.approved.get_mut(&person));
            erased.for_each(|erased| *erased = Some(at));
        }
        if decides
            && let (Ok(round), Ok(attempt)) = (entry.round(), entry.body().int("attempt"))
            && let Some(waits) = self.held.get_mut(&(round, attempt))
        {
            waits.hear(at, revoked);
        }
        Ok(())
    }

    /// Somebody approves or refuses a candidate that waits; `submitter` is whoever submitted its study.
    pub(crate) fn decided(
        &mut self,
        entry: &Entry,
        submitter: Option<Person>,
    ) -> Result<(), String> {
        let body = entry.body();
        let text = |e: CanonError| e.to_string();
        let round = entry.round().map_err(text)?;
        if !self.gatings.contains_key(round.study.as_str()) {
            return Ok(());
        }
        let attempt: u32 = body.int("attempt").map_err(text)?;
        let candidate: Digest = body.parsed("model_sha256").map_err(text)?;
        let waits = self.held.get_mut(&(round.clone(), attempt));
        let waits = waits
            .filter(|waits| waits.round.candidate == candidate)
            .ok_or_else(|| format!("no candidate {candidate} of round {round} waits for people"))?;
        let at = Timestamp::parse(&entry.ts).ok_or_else(|| format!("`{}` is no time", entry.ts))?;
        if at > waits.until.plus_ms(UNDER_WAY_MS) {
            return Err(format!("the candidate of round {round} waited until {}", waits.until));
        }
        if entry.kind == Kind::CandidateApproved {
            let by = entry.actor_person().ok_or("it names nobody who approves")?;
            if Some(by) == submitter {
                return Err(format!(
                    "whoever submitted the study approves the candidate of round {round}"
                ));
            }
            waits.approve(by);
        }
        Ok(())
    }

    /// A round's model became a version.
    pub(crate) fn made(&mut self, entry: &Entry) -> Result<(), String> {
        let text = |e: CanonError| e.to_string();
        let round = entry.round().map_err(text)?;
        let number = entry.body().int("version").map_err(text)?;
        self.versions.insert((round.study.to_string(), number), round.number);
        Ok(())
    }

    /// A version was promoted, or was kept from it, by gates or by policy: what gates say follows from what was counted in the round
    /// whose model it is, and it went on only if it passed every one of them.
    pub(crate) fn promotion(&mut self, entry: &Entry) -> Result<(), String> {
        let body = entry.body();
        let promoted = entry.kind == Kind::VersionPromoted;
        let says = |member| body.member(member).is_some();
        let promotes = body.find_text("action") == Some(Action::VersionPromote.as_str());
        if !promoted && !(promotes && (says("gates") || says("gates_sha256"))) {
            return Ok(());
        }
        let text = |e: CanonError| e.to_string();
        let study = body.text("study").map_err(text)?;
        // Of a study in an earlier shard nothing is known here.
        let Some(gating) = self.gatings.get(study) else { return Ok(()) };
        let Promotion { version, stage } =
            Promotion::read(entry).map_err(text)?.ok_or("it names no version")?;
        if promoted && !gating.gates.iter().any(|gate| gate.is_asked_of(stage)) {
            let nothing = ["gates", "compared", "evaluated_by"].map(|member| (member, &[][..]));
            return same(entry, &format!("version {version}"), &nothing);
        }
        let number = self.versions.get(&(study.to_owned(), version)).copied();
        let number = number.ok_or_else(|| format!("study `{study}` has no version {version}"))?;
        let id = RoundId { study: body.parsed("study").map_err(text)?, number };
        let round = self.gave.get(&id);
        let round = round.ok_or_else(|| format!("round {id} gave no model"))?;
        let facts = facts(gating, &self.signed, number, round)?;
        let verdict = judge_promotion(&facts, &gating.gates, stage);
        let ours: Vec<String> = verdict.judged.iter().map(Judged::line).collect();
        let sites: Vec<String> = round.taken.keys().map(ToString::to_string).collect();
        match (entry.kind, verdict.pass) {
            (Kind::VersionPromoted, false) => {
                return Err(format!(
                    "version {version} goes on to `{stage}`, and fails a gate of its study that is asked then: {}",
                    verdict.reasons.join("; ")
                ));
            }
            // Who was told why it stays where it stands might have promoted it.
            (Kind::AdminRead, true) => {
                return Err(format!(
                    "it keeps version {version} from `{stage}` by gates of its study, and it passes every one that is asked then"
                ));
            }
            _ => {}
        }
        let compared = facts.compared.as_ref().filter(|_| by_updates(&facts, &verdict));
        let compared = compared.map(Compared::lines).unwrap_or_default();
        let lists = [("gates", &ours[..]), ("compared", &compared), ("evaluated_by", &sites)];
        same(entry, &format!("version {version}"), &lists)?;
        self.judged += 1;
        self.compared += u64::from(!compared.is_empty());
        Ok(())
    }

    /// A round opens on a model, so that its study has not come to its end.
    pub(crate) fn opened(&mut self, round: &RoundId, base: Digest) -> Result<(), String> {
        let study = round.study.as_str();
        let Some(gating) = self.gatings.get(study) else { return Ok(()) };
        let coming = self.coming.entry(study.to_owned()).or_default();
        if gating.patience.is_some_and(|patience| patience.is_over(&coming.progress)) {
            return Err(format!(
                "round {round} opens after {} rounds without a better model, by which its study was to end",
                coming.progress.without
            ));
        }
        if let Some(model) = coming.back {
            return Err(format!("round {round} opens, and its study went back to {model} to end"));
        }
        coming.newest = None;
        coming.good.get_or_insert(base);
        Ok(())
    }

    /// A round failed, and was not judged.
    pub(crate) fn failed(&mut self, round: &RoundId) {
        let coming = self.coming.get_mut(round.study.as_str());
        coming.into_iter().for_each(|coming| coming.newest = None);
    }

    /// A study goes back to a model that it had: to the last good one, because a gate rolls it back, or to the one that it ends with.
    pub(crate) fn rolled_back(&mut self, round: &RoundId, model: Digest) -> Result<(), String> {
        let study = round.study.as_str();
        let Some(gating) = self.gatings.get(study) else { return Ok(()) };
        let coming = self.coming.entry(study.to_owned()).or_default();
        match gating.ends(coming) {
            Ok(Some(with)) if with == model => {
                coming.back = Some(model);
                Ok(())
            }
            Ok(with) => Err(format!(
                "study `{study}` goes back to {model} to end, and is to end with {}",
                with.map_or_else(|| "its newest".into(), |with| with.to_string())
            )),
            Err(_) if matches!(coming.newest, Some(Outcome::Kept(_, OnFailure::RollBack))) => {
                match coming.good {
                    Some(good) if good != model => Err(format!(
                        "round {round} rolls back to {model}, and the last good model is {good}"
                    )),
                    _ => Ok(()),
                }
            }
            Err(why) => Err(format!(
                "study `{study}` goes back to {model}, and no gate rolls it back: {why}"
            )),
        }
    }

    /// A study has finished: when it was to, and with the model that it was to.
    pub(crate) fn finished(&self, entry: &Entry) -> Result<(), String> {
        let body = entry.body();
        let text = |e: CanonError| e.to_string();
        let study: StudyId = body.parsed("study").map_err(text)?;
        let Some(gating) = self.gatings.get(study.as_str()) else { return Ok(()) };
        let none = Coming::default();
        let coming = self.coming.get(study.as_str()).unwrap_or(&none);
        let with =
            gating.ends(coming).map_err(|why| format!("study {study} finishes, and {why}"))?;
        let model: Digest = body.parsed("model_sha256").map_err(text)?;
        match with {
            Some(with) if with != model => Err(match &coming.progress.best {
                Some(best) => format!(
                    "study {study} finishes with {model}, and its best model is {with} of round {}",
                    best.round
                ),
                None => format!("study {study} finishes with {model}, and was to with {with}"),
            }),
            _ => Ok(()),
        }
    }
}

/// What an entry says of how the updates of these sites compare with each other.
fn compared(entry: &Entry, sites: &[SiteId]) -> Result<Option<Compared>, String> {
    let Some(list) = entry.body().member("compared") else { return Ok(None) };
    let lines: Option<Vec<&str>> = list.items().map(Node::as_text).collect();
    let lines = lines.ok_or("`compared` is no list of texts")?;
    let compared = Compared::parse(lines, sites);
    compared.map(Some).map_err(|e| format!("`compared` does not hold: {e}"))
}

/// Whether gates were judged by figures of updates.
fn by_updates(facts: &Facts<'_>, verdict: &Verdict) -> bool {
    let of_updates = |(metric, _): &(&str, bool)| Standing::find(metric).is_some();
    facts.compared.is_some() && verdict.asked.iter().any(of_updates)
}

/// What a study's gates know, and say, of a candidate.
fn verdict_on<'a>(
    gating: &'a Gating,
    signed: &BTreeMap<Digest, Signed>,
    number: u32,
    round: &Round,
) -> Result<(Facts<'a>, Verdict), String> {
    let facts = facts(gating, signed, number, round)?;
    let gates: Vec<Gate> = gating.gates.iter().cloned().map(Gate::Declared).collect();
    let verdict = judge(&facts, &gates);
    Ok((facts, verdict))
}

/// What gates know of a round's candidate, by what sites have signed.
fn facts<'a>(
    gating: &'a Gating,
    signed: &BTreeMap<Digest, Signed>,
    number: u32,
    Round { counted, candidate, taken, compared }: &Round,
) -> Result<Facts<'a>, String> {
    let due = gating.evaluation.as_ref().filter(|e| e.is_due(number, gating.rounds));
    let mut evaluated = due
        .map(|e| Evaluated::new(e, gating.target, counted.sites.iter().cloned(), gating.min_sites));
    for (site, digest) in taken {
        let signed = signed.get(digest).ok_or("invariant: it was there")?;
        if signed.header.candidate != *candidate {
            return Err(format!("{site} has counted about another candidate"));
        }
        let all = evaluated.as_mut().ok_or("its study is not evaluated in this round")?;
        let added = all.add(site.clone(), gating.target, &signed.counts);
        added.map_err(|e| format!("the counts of {site} cannot be: {e}"))?;
    }
    Ok(Facts {
        sites: u32::try_from(counted.sites.len()).unwrap_or(u32::MAX),
        examples: counted.examples,
        finite: true,
        witnesses: 0,
        epsilon: counted.epsilon,
        is_last: number == gating.rounds,
        evaluated,
        compared: compared.clone(),
    })
}

/// Holds lists in an entry against ours.
fn same(entry: &Entry, of: &str, lists: &[(&str, &[String])]) -> Result<(), String> {
    for (member, ours) in lists {
        if let Some((ours, theirs)) = differ(entry, member, ours)? {
            return Err(format!(
                "`{member}` of {of} says `{theirs}`, and by what the sites signed it is `{ours}`"
            ));
        }
    }
    Ok(())
}

/// Where a list in an entry differs from ours, if it does: what is ours, and what is theirs.
fn differ(
    entry: &Entry,
    member: &str,
    ours: &[String],
) -> Result<Option<(String, String)>, String> {
    let ours: Vec<String> = ours.iter().map(|text| within_bounds(text)).collect();
    if let Some(digest) = entry.body().find_text(&format!("{member}_sha256")) {
        // It was too long for an entry.
        let list = Canon::List(ours.iter().map(|text| text.as_str().into()).collect());
        let found = Digest::of(&list.to_bytes()).to_string();
        return Ok((found != digest).then(|| (found, digest.to_owned())));
    }
    let theirs: Vec<String> = match entry.body().member(member) {
        Some(list) => {
            let texts = list.items().map(|item| item.as_text().map(str::to_owned));
            let texts: Option<_> = texts.collect();
            texts.ok_or_else(|| format!("`{member}` is no list of texts"))?
        }
        None => Vec::new(),
    };
    let at = |list: &[String], i: usize| list.get(i).cloned().unwrap_or_else(|| "nothing".into());
    let mut pairs = (0..ours.len().max(theirs.len())).map(|i| (at(&ours, i), at(&theirs, i)));
    Ok(pairs.find(|(a, b)| a != b))
}

#[cfg(test)]
mod tests {
    use super::*;
    use falaj_core::{
        audit::{Actor, Draft},
        evaluation::{HeldOut, Noise, cells::Tally, figures::Metric},
        gate::{Bound, Figure, OnFailure},
        registry::version::Stage,
        robust::Standing,
        time::Timestamp,
    };

    const FIRST: &str = "better: accuracy: ";

    fn round(number: u32) -> RoundId {
        RoundId { study: "s".parse().expect("valid"), number }
    }

    fn model(number: u32) -> Digest {
        Digest::of(&number.to_be_bytes())
    }

    fn entry(draft: Draft) -> Entry {
        Entry::parse(&draft.finish(0, Timestamp::from_millis(0), [0; 16])).expect("an entry")
    }

    /// A study of four rounds that ends after two without a better model.
    fn patient() -> Evaluations {
        let evaluation = Evaluation {
            held_out: HeldOut::Part(0.2),
            every: 1,
            noise: Noise::None,
            bins: 2,
            calibration_bins: 2,
            threshold: 0.5,
            attributes: Vec::new(),
            group_min: 1,
            confidence: 0.95,
            perturbations: Vec::new(),
            drift: Vec::new(),
        };
        let figure = Figure::Overall(Metric::Accuracy);
        let patience = Patience { figure, improve_by: 0.01, rounds: 2 };
        let mut evaluations = Evaluations::default();
        let gating = Gating {
            evaluation: Some(evaluation),
            patience: Some(patience),
            target: Target::Classes(2),
            rounds: 4,
            min_sites: 1,
            gates: Vec::new(),
        };
        evaluations.submitted("s", gating);
        evaluations
    }

    /// A round's model is published, of which a site has counted that so many of 100 are right; `patience` says so.
    fn published(
        of: &mut Evaluations,
        number: u32,
        right: usize,
        patience: &str,
    ) -> Result<(), String> {
        let settings = of.gatings["s"].evaluation.clone().expect("it is evaluated");
        let mut tally = Tally::new(settings.layout(2));
        for i in 0..100 {
            let p = if (i < right) == (i % 2 == 1) { 0.8 } else { 0.2 };
            tally.record(0, i % 2, &[1.0 - p, p]);
        }
        let counts = tally.into_counts();
        let site: SiteId = "spiffe://t/ae-on/ae-az/site/h-1".parse().expect("valid");
        let header = EvaluationHeader {
            round: round(number),
            attempt: 0,
            site: site.clone(),
            study_sha256: Digest::of(b"study"),
            candidate: model(number),
            counts: Digest::of(b"counts"),
            cells: u32::try_from(counts.len()).expect("few"),
            noise: "none".into(),
            epsilon: "0".into(),
            ledger: Digest::of(b"ledger"),
        };
        let digest = Digest::of(&[u8::try_from(number).expect("few")]);
        of.signed.insert(digest, Signed { header, counts });
        let taken = [(site.clone(), digest)].into();
        of.accepted.insert((round(number), 0), taken);
        let draft = Draft::new(Kind::ModelPublished)
            .round(&round(number))
            .count("attempt", 0)
            .digest("model_sha256", &model(number))
            .texts("evaluated_by", [site.to_string()])
            .text("patience", patience);
        let counted = Counted { sites: vec![site], examples: 100, epsilon: None };
        of.verdict(&entry(draft), counted)
    }

    /// What it should have said, from the complaint about what it says.
    fn due(number: u32, right: usize, of: &mut Evaluations) -> String {
        let wrong = published(of, number, right, "something else").expect_err("it is another");
        let (_, ours) = wrong.split_once("signed it is `").expect("it says so");
        ours.trim_end_matches('`').to_owned()
    }

    fn finished(of: &Evaluations, number: u32, model: &Digest) -> Result<(), String> {
        let study = round(number).study;
        let draft = Draft::new(Kind::StudyFinished).study(&study).digest("model_sha256", model);
        of.finished(&entry(draft.count("round", number.into())))
    }

    #[test]
    fn a_study_ends_by_patience_when_it_was_to_and_with_its_best_model() {
        let mut of = patient();
        for (number, right) in [(1, 80), (2, 79)] {
            let line = due(number, right, &mut of);
            assert_eq!(line.starts_with(FIRST), number == 1, "{line}");
            published(&mut of, number, right, &line).expect("it follows");
        }
        let early = finished(&of, 2, &model(1)).expect_err("it may go on");
        assert!(
            early.ends_with("round 2 of 4 was its newest, and its patience has not run out"),
            "{early}"
        );
        assert_eq!(of.opened(&round(3), model(2)), Ok(()));

        let line = due(3, 80, &mut of);
        assert!(line.ends_with(" needed to be better than round 1; 2 of 2 such rounds"), "{line}");
        published(&mut of, 3, 80, &line).expect("it follows");
        let late = of.opened(&round(4), model(3)).expect_err("it was to end");
        assert!(
            late.starts_with("round s/4 opens after 2 rounds without a better model"),
            "{late}"
        );
        let other = finished(&of, 3, &model(3)).expect_err("it is not the best");
        assert!(other.contains(&format!("its best model is {} of round 1", model(1))), "{other}");
        let other = of.rolled_back(&round(3), model(2)).expect_err("nor is that one");
        assert!(other.ends_with(&format!("is to end with {}", model(1))), "{other}");
        assert_eq!(of.rolled_back(&round(3), model(1)), Ok(()));
        assert_eq!(finished(&of, 3, &model(1)), Ok(()));
    }

    /// A round's candidate is kept out by a gate of this consequence, on how many sites there are.
    fn kept(of: &mut Evaluations, number: u32, on_failure: OnFailure) {
        let gate = Declared {
            figure: Figure::Sites,
            bound: Bound::AtLeast(2.0),
            when: When::EachRound,
            on_failure,
        };
        of.gatings.get_mut("s").expect("it was submitted").gates = vec![gate];
        let draft = Draft::new(Kind::ModelRejected)
            .round(&round(number))
            .count("attempt", 0)
            .digest("model_sha256", &model(number))
            .texts("gates", ["fail: sites: 1, at least 2 needed".to_owned()]);
        let site = "spiffe://t/ae-on/ae-az/site/h-1".parse().expect("valid");
        let counted = Counted { sites: vec![site], examples: 100, epsilon: None };
        of.opened(&round(number), model(number - 1)).expect("it goes on");
        of.verdict(&entry(draft), counted).expect("it follows");
    }

    #[test]
    fn what_a_gate_kept_out_ends_a_study_as_the_gate_says_and_not_otherwise() {
        // Two of four rounds gave a model, of which the first is the best; then one is kept out.
        let after = |number: u32, on_failure| {
            let mut of = patient();
            for (number, right) in [(1, 80), (2, 79)] {
                of.opened(&round(number), model(number - 1)).expect("it goes on");
                let line = due(number, right, &mut of);
                published(&mut of, number, right, &line).expect("it follows");
            }
            kept(&mut of, number, on_failure);
            of
        };
        let kept_out = "was kept out, by no gate that ends it";
        for (number, on_failure) in
            [(3, OnFailure::Reject), (4, OnFailure::Reject), (3, OnFailure::RollBack)]
        {
            let of = after(number, on_failure);
            for with in [1, 2] {
                let wrong = finished(&of, number, &model(with)).expect_err("it does not end it");
                assert!(wrong.ends_with(kept_out), "{wrong}");
            }
        }
        for (number, on_failure) in [(3, OnFailure::Stop), (4, OnFailure::RollBack)] {
            let mut of = after(number, on_failure);
            let other = finished(&of, number, &model(2)).expect_err("it is not the best");
            assert!(other.ends_with("of round 1"), "{other}");
            assert_eq!(of.rolled_back(&round(number), model(1)), Ok(()));
            assert_eq!(finished(&of, number, &model(1)), Ok(()));
            let on = of.opened(&round(number + 1), model(1)).expect_err("it ends");
            assert!(on.ends_with("to end"), "{on}");
        }

        // In the middle a gate rolls back to the last good model, and nothing else does.
        let mut of = after(3, OnFailure::RollBack);
        let other = of.rolled_back(&round(3), model(1)).expect_err("round 2 was good");
        assert!(other.ends_with(&format!("the last good model is {}", model(2))), "{other}");
        assert_eq!(of.rolled_back(&round(3), model(2)), Ok(()));
        let mut of = after(3, OnFailure::Reject);
        let why = of.rolled_back(&round(3), model(2)).expect_err("nothing rolls it back");
        assert!(why.contains("no gate rolls it back") && why.ends_with(kept_out), "{why}");

        // Nor does a study end with a round that failed.
        let mut of = after(3, OnFailure::Stop);
        of.opened(&round(4), model(2)).expect("it goes on");
        of.failed(&round(4));
        let failed = finished(&of, 4, &model(1)).expect_err("it gave nothing");
        assert!(failed.ends_with("its newest round gave no model"), "{failed}");
    }

    #[test]
    fn what_a_study_has_cost_is_what_its_most_expensive_site_has_spent_whoever_comes_later() {
        let mut of = Evaluations::default();
        let (study, other) = (round(1).study, "other".parse().expect("a name"));
        assert_eq!(of.most_spent(&study), None);
        for epsilon in [1.5, 4.05, 3.1] {
            of.spent(&study, epsilon);
        }
        of.spent(&other, 9.0);
        assert_eq!(of.most_spent(&study), Some(4.05));
        // A gate is judged by it, though nobody whose update is in the candidate has spent so much.
        let gate = |at_most| Declared {
            figure: Figure::Epsilon,
            bound: Bound::AtMost(at_most),
            when: When::EachRound,
            on_failure: OnFailure::Reject,
        };
        for (at_most, pass) in [(4.0, false), (4.1, true)] {
            let of = gated(gate(at_most));
            let site = "spiffe://t/ae-on/ae-az/site/h-1".parse().expect("valid");
            let judged = Round {
                counted: Counted { sites: vec![site], examples: 100, epsilon: Some(4.05) },
                candidate: model(1),
                taken: BTreeMap::new(),
                compared: None,
            };
            let (_, verdict) =
                verdict_on(&of.gatings["s"], &of.signed, 1, &judged).expect("it is judged");
            assert_eq!(verdict.pass, pass, "{verdict:?}");
        }
    }

    const COMPARED: [&str; 3] =
        ["1.000000e0 0.900000 h-0", "1.250000e0 0.812500 h-1", "9.000000e0 -0.500000 h-2"];
    const GATES: [&str; 3] = [
        "pass: update_norm_ratio at h-0: 0.8, at most 8 needed",
        "pass: update_norm_ratio at h-1: 1, at most 8 needed",
        "pass: update_norm_ratio at h-2: 7.2, at most 8 needed",
    ];

    /// A study of nine rounds with one gate, which is not evaluated.
    fn gated(gate: Declared) -> Evaluations {
        let (evaluation, patience, target) = (None, None, Target::Classes(2));
        let (rounds, min_sites) = (9, 1);
        let gating = Gating { gates: vec![gate], evaluation, patience, target, rounds, min_sites };
        let mut evaluations = Evaluations::default();
        evaluations.submitted("s", gating);
        evaluations
    }

    /// What is wrong with a verdict on three updates, with these lines and this bound.
    fn said(compared: &[&str], gates: &[&str], most: f64) -> String {
        let site = |n: u32| format!("spiffe://t/ae-on/ae-az/site/h-{n}").parse().expect("valid");
        let declared = Declared {
            figure: Figure::EachUpdate(Standing::NormRatio),
            bound: Bound::AtMost(most),
            when: When::EachRound,
            on_failure: OnFailure::Reject,
        };
        let mut evaluations = gated(declared);
        let round = RoundId { study: "s".parse().expect("valid"), number: 1 };
        let draft = Draft::new(Kind::ModelPublished)
            .round(&round)
            .count("attempt", 0)
            .digest("model_sha256", &Digest::of(b"a model"))
            .texts("gates", gates.iter().map(|line| (*line).to_owned()));
        let lines = compared.iter().map(|line| (*line).to_owned());
        let draft = if compared.is_empty() { draft } else { draft.texts("compared", lines) };
        let bytes = draft.finish(0, Timestamp::from_millis(0), [0; 16]);
        let entry = Entry::parse(&bytes).expect("an entry");
        let sites = (0..3).map(site).collect();
        let counted = Counted { sites, examples: 30, epsilon: None };
        evaluations.verdict(&entry, counted).err().unwrap_or_default()
    }

    #[test]
    fn gates_on_updates_are_judged_again_by_what_the_log_says_of_them() {
        assert_eq!(said(&COMPARED, &GATES, 8.0), "");
        let failed = said(&COMPARED, &GATES, 7.0);
        assert!(
            failed.contains("fails a gate of its study: update_norm_ratio at h-2: 7.2"),
            "{failed}"
        );
        let other = [GATES[0], GATES[1], "pass: update_norm_ratio at h-2: 2, at most 8 needed"];
        assert!(said(&COMPARED, &other, 8.0).contains("`gates` of round"));
        let silent = said(&[], &GATES, 8.0);
        assert!(silent.contains("nobody has compared the 3 updates"), "{silent}");
        let fewer = said(&COMPARED[..2], &GATES, 8.0);
        assert!(fewer.contains("figures of 2 updates, and 3 were counted"), "{fewer}");
        let somebody = [COMPARED[0], COMPARED[1], "9.000000e0 -0.500000 h-3"];
        let somebody = said(&somebody, &GATES, 8.0);
        assert!(
            somebody.contains("h-3` is no norm and cosine of the update of spiffe:"),
            "{somebody}"
        );
    }

    /// What is wrong with the promotion of a version whose study asks then how updates compare, with this bound, where its round
    /// and the promotion say these figures.
    fn promoted(most: f64, in_round: &[&str], then: &[&str]) -> String {
        let declared = Declared {
            figure: Figure::EachUpdate(Standing::NormRatio),
            bound: Bound::AtMost(most),
            when: When::Promotion,
            on_failure: OnFailure::Reject,
        };
        let mut evaluations = gated(declared);
        let listed = |draft: Draft, name, lines: &[&str]| match lines {
            [] => draft,
            lines => draft.texts(name, lines.iter().map(|line| (*line).to_owned())),
        };
        let site = |n: u32| format!("spiffe://t/ae-on/ae-az/site/h-{n}").parse().expect("valid");
        let counted = Counted { sites: (0..3).map(site).collect(), examples: 30, epsilon: None };
        let published = Draft::new(Kind::ModelPublished).round(&round(1)).count("attempt", 0);
        let published = published.digest("model_sha256", &model(1));
        let published = entry(listed(published, "compared", in_round));
        // No round is asked.
        evaluations.verdict(&published, counted).expect("it follows");
        let made = entry(Draft::new(Kind::VersionMade).round(&round(1)).count("version", 1));
        evaluations.every_gate_was_asked(&made).expect("none was to be");
        evaluations.made(&made).expect("it is read");
        let promotion = Promotion { version: 1, stage: Stage::Staging };
        let draft = promotion.tell(Draft::new(Kind::VersionPromoted).study(&round(1).study));
        let draft = listed(listed(draft, "gates", &GATES), "compared", then);
        evaluations.promotion(&entry(draft)).err().unwrap_or_default()
    }

    #[test]
    fn a_version_goes_on_by_what_its_round_says_of_its_updates() {
        assert_eq!(promoted(8.0, &COMPARED, &COMPARED), "");
        let failed = promoted(7.0, &COMPARED, &COMPARED);
        assert!(
            failed.starts_with("version 1 goes on to `staging`, and fails a gate")
                && failed.contains("update_norm_ratio at h-2: 7.2"),
            "{failed}"
        );
        let silent = promoted(8.0, &COMPARED, &[]);
        assert!(silent.starts_with("`compared` of version 1 says `nothing`"), "{silent}");
        let unseen = promoted(8.0, &[], &COMPARED);
        assert!(unseen.contains("nobody has compared the 3 updates"), "{unseen}");
    }

    const SARA: Person = Person([1; 16]);
    const OMAR: Person = Person([2; 16]);

    /// What is wrong with a candidate that is let through so: Sara approves it in the first second, this comes in the second one, and
    /// Omar approves it then, by which it is published.
    fn by_two(between: Draft, then_s: i64) -> String {
        let (figure, bound) = (Figure::Sites, Bound::AtLeast(2.0));
        let (when, on_failure) = (When::EachRound, OnFailure::Ask);
        let mut of = gated(Declared { figure, bound, when, on_failure });
        let about = |kind| Draft::new(kind).round(&round(1)).count("attempt", 0);
        let about = |kind| about(kind).digest("model_sha256", &model(1));
        let judged =
            |kind| about(kind).texts("gates", ["fail: sites: 1, at least 2 needed".into()]);
        let approved = |who| {
            let actor = Actor { person: Some(who), ..Actor::default() };
            about(Kind::CandidateApproved).actor(&actor)
        };
        let held = judged(Kind::CandidateHeld).text("until", "2026-01-01T00:00:00.000Z");
        let mut revoked = Revoked::default();
        for (at, draft) in [
            (0, held),
            (1, approved(SARA)),
            (2, between),
            (then_s, approved(OMAR)),
            (then_s, judged(Kind::ModelPublished)),
        ] {
            let bytes = draft.finish(0, Timestamp::from_millis(at * 1_000), [0; 16]);
            let entry = Entry::parse(&bytes).expect("an entry");
            revoked.take(&entry, |_| None).expect("nobody is served");
            of.hear(&entry, &revoked).expect("it has a time");
            let site = "spiffe://t/ae-on/ae-az/site/h-1".parse().expect("valid");
            let counted = Counted { sites: vec![site], examples: 100, epsilon: None };
            let taken = match entry.kind {
                Kind::CandidateHeld => of.hold(&entry, counted),
                Kind::CandidateApproved => of.decided(&entry, None),
                Kind::ModelPublished => of.verdict(&entry, counted),
                _ => Ok(()),
            };
            if let Err(wrong) = taken {
                return wrong;
            }
        }
        String::new()
    }

    #[test]
    fn whoever_was_revoked_or_erased_before_the_second_approval_has_given_none() {
        let gone = [(Kind::CertificateRevoked, "revoked"), (Kind::ErasurePerformed, "erased")];
        for (kind, word) in gone {
            // What was under way has its entry afterwards.
            assert_eq!(by_two(Draft::new(kind).person(SARA), 7), "");
            let late = by_two(Draft::new(kind).person(SARA), 8);
            let why = format!(
                "1 person has approved it, and 2 are needed; person {SARA} was {word} before"
            );
            assert!(late.contains("fails a gate of its study: sites: 1"), "{late}");
            assert!(late.ends_with(&why), "{late}");
            assert_eq!(by_two(Draft::new(kind).person(Person([3; 16])), 60), "", "somebody else");
        }
    }
}
