//! What a candidate must show before it becomes a model.
//!
//! A study declares gates, each a figure and a bound; some are there without being declared. A figure with an interval is
//! judged by the end of it that is worse: a gate asks what the candidate is at least, not what it may be by luck. A figure
//! that is missing fails its gate: nothing passes by silence.

pub mod patience;

use crate::{
    evaluation::{
        Evaluation, Perturbation, Target, Watched,
        figures::{By, Estimate, Grouped, Kind, Metric, Missing, Pool, listed},
    },
    id::SiteId,
    registry::version::Stage,
    robust::{Compared, Standing},
    round::UpdateRef,
    study::WitnessQuorum,
};
use patience::Weighed;
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

/// What is known of a candidate.
#[derive(Clone, Debug)]
pub struct Facts<'a> {
    /// Updates that went into it.
    pub sites: u32,
    /// Examples behind them, as noised by the sites.
    pub examples: u64,
    /// Whether every parameter is a finite number.
    pub finite: bool,
    /// Witnesses that have cosigned the log with every entry of the round in it.
    pub witnesses: u32,
    /// The most epsilon that one of the sites has spent on the study, as they say.
    pub epsilon: Option<f64>,
    /// Whether the round is the study's last.
    pub is_last: bool,
    /// What was counted, if the round is one that is evaluated.
    pub evaluated: Option<Evaluated<'a>>,
    /// How the updates compare with each other, where a gate asks for it and they are seen.
    pub compared: Option<Compared>,
}

/// What sites have counted about a candidate.
#[derive(Clone, Debug)]
pub struct Evaluated<'a> {
    /// How.
    pub settings: &'a Evaluation,
    /// All sites together.
    pub all: Pool<'a>,
    /// Each site that has counted, alone.
    pub by_site: BTreeMap<SiteId, Pool<'a>>,
    /// Whose updates are in the candidate: each was asked.
    asked: BTreeSet<SiteId>,
    /// So many have to count before anything is said of all together: otherwise one of many could carry every gate.
    min_sites: u32,
}

impl<'a> Evaluated<'a> {
    /// Nothing counted yet, for a model that says this and was made of these sites' updates, in a study of at least so many.
    #[must_use]
    pub fn new(
        settings: &'a Evaluation,
        target: impl Into<Target>,
        asked: impl IntoIterator<Item = SiteId>,
        min_sites: u32,
    ) -> Self {
        let (all, by_site) = (Pool::new(settings, target), BTreeMap::new());
        Self { settings, all, by_site, asked: asked.into_iter().collect(), min_sites }
    }

    /// Adds what a site counted.
    ///
    /// # Errors
    /// [`crate::evaluation::cells::CountsError`]; nothing is added then.
    pub fn add(
        &mut self,
        site: SiteId,
        target: impl Into<Target>,
        counts: &[i64],
    ) -> Result<(), crate::evaluation::cells::CountsError> {
        let mut alone = Pool::new(self.settings, target);
        alone.add(counts)?;
        self.all.add(counts)?;
        self.by_site.insert(site, alone);
        Ok(())
    }

    /// What its sites are called, those that are silent included.
    #[must_use]
    pub fn names(&self) -> BTreeMap<&SiteId, String> {
        SiteId::told_apart(self.asked.iter().chain(self.by_site.keys()))
    }

    /// All sites together, if they are enough.
    fn whole(&self) -> Result<&Pool<'a>, Missing> {
        match (self.all.sites(), self.min_sites) {
            (0, _) => Err(Missing::Nothing),
            (sites, needed) if sites < needed => Err(Missing::Sites { sites, needed }),
            _ => Ok(&self.all),
        }
    }
}

impl Facts<'_> {
    /// What the counted updates say.
    pub fn of<'u>(
        updates: impl Iterator<Item = &'u UpdateRef>,
        finite: bool,
        witnesses: u32,
    ) -> Self {
        let (sites, examples) = updates.fold((0, 0), |(n, w), u| (n + 1, w + u64::from(u.weight)));
        let (epsilon, is_last, evaluated, compared) = (None, true, None, None);
        Self { sites, examples, finite, witnesses, epsilon, is_last, evaluated, compared }
    }
}

/// A gate that a study declares.
#[derive(Clone, Debug, PartialEq)]
pub struct Declared {
    /// What is looked at.
    pub figure: Figure,
    /// What it must be.
    pub bound: Bound,
    /// When it is asked.
    pub when: When,
    /// What becomes of the study when it fails.
    pub on_failure: OnFailure,
}

/// What a gate looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Figure {
    /// A metric of all held-out records.
    Overall(Metric),
    /// A metric of each group.
    EachGroup(Metric, By),
    /// A metric of each site.
    EachSite(Metric),
    /// A metric between groups.
    Between(Metric, By),
    /// The accuracy that a perturbation costs, by its number.
    Drop(usize),
    /// How far a watched column, by its number, is from its reference.
    Column(Metric, usize),
    /// The most epsilon that a site has spent on the study.
    Epsilon,
    /// Sites whose updates are in the candidate.
    Sites,
    /// Examples behind it.
    Examples,
    /// How far the update of each site stands out from the others.
    EachUpdate(Standing),
}

/// What a figure must be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Bound {
    /// No less.
    AtLeast(f64),
    /// No more.
    AtMost(f64),
}

impl Bound {
    /// Whether a figure is within it at its worse end.
    fn holds(self, e: &Estimate) -> bool {
        match self {
            Self::AtLeast(bound) => e.low >= bound,
            Self::AtMost(bound) => e.high <= bound,
        }
    }

    /// Whether no figure between these can be within it, or none outside.
    #[must_use]
    pub fn decides_nothing(self, least: f64, most: f64) -> Option<&'static str> {
        match self {
            Self::AtLeast(b) if b > most => Some("never"),
            Self::AtMost(b) if b < least => Some("never"),
            Self::AtLeast(b) if b <= least => Some("always"),
            Self::AtMost(b) if b >= most => Some("always"),
            _ => None,
        }
    }
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtLeast(b) => write!(f, "at least {b}"),
            Self::AtMost(b) => write!(f, "at most {b}"),
        }
    }
}

/// When a gate is asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum When {
    /// Of each candidate that is evaluated.
    #[default]
    EachRound,
    /// Of the last round's alone.
    End,
    /// In no round, but of a version each time that it is to go on to `staging` or `production`. What it fails stays where it
    /// stands.
    Promotion,
}

impl When {
    /// The word that studies use.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::EachRound => "each_round",
            Self::End => "end",
            Self::Promotion => "promotion",
        }
    }
}

/// What becomes of a study whose gate fails.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum OnFailure {
    /// People decide whether the candidate becomes the study's model all the same. If a gate fails beside it that does not ask, they
    /// are not asked.
    Ask,
    /// The candidate is not taken, and the round is tried again as often as the study says.
    #[default]
    Reject,
    /// The next round starts from the last model that passed every gate.
    RollBack,
    /// The study ends with the last model that it has.
    Stop,
}

impl OnFailure {
    /// Every answer.
    pub const ALL: [Self; 4] = [Self::Ask, Self::Reject, Self::RollBack, Self::Stop];

    /// The word that studies and the store use.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ask => "ask",
            Self::Reject => "reject",
            Self::RollBack => "roll_back",
            Self::Stop => "stop",
        }
    }

    /// The answer of that name.
    #[must_use]
    pub fn find(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|f| f.as_str() == name)
    }
}

/// A check on a candidate.
#[derive(Clone, Debug, PartialEq)]
pub enum Gate {
    /// At least this many sites stand behind it.
    Participation {
        /// The least number of sites.
        min_sites: u32,
    },
    /// Every parameter is a finite number.
    Finite,
    /// At least so many witnesses stand behind the round.
    Witnesses(WitnessQuorum),
    /// One that the study declares.
    Declared(Declared),
}

impl Gate {
    /// What it looks at, in one word: of a fixed list, whatever a study declares.
    #[must_use]
    pub const fn metric(&self) -> &'static str {
        match self {
            Self::Participation { .. } => "participation",
            Self::Finite => "finite",
            Self::Witnesses(_) => "witnesses",
            Self::Declared(declared) => declared.figure.metric(),
        }
    }
}

/// One figure against its bound.
#[derive(Clone, Debug, PartialEq)]
pub struct Judged {
    /// What was looked at, of whom.
    pub figure: String,
    /// The figure with its interval, or why there is none.
    pub found: Result<Estimate, String>,
    /// What it had to be.
    pub bound: String,
    /// Whether it is.
    pub pass: bool,
}

impl Judged {
    /// As the log has it.
    #[must_use]
    pub fn line(&self) -> String {
        format!("{} {self}", if self.pass { "pass:" } else { "fail:" })
    }
}

impl fmt::Display for Judged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}, {} needed", self.figure, told(&self.found), self.bound)
    }
}

/// A figure with its interval, or why there is none.
fn told(found: &Result<Estimate, String>) -> String {
    match found {
        // Whole numbers and what has no interval are shown as they are.
        Ok(e) if e.low.total_cmp(&e.high).is_eq() => e.value.to_string(),
        Ok(e) => format!("{:.4} [{:.4}, {:.4}]", e.value, e.low, e.high),
        Err(why) => why.clone(),
    }
}

/// What the gates say.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdict {
    /// Whether every gate passed.
    pub pass: bool,
    /// Each gate that failed: its name, its figure and its bound.
    pub reasons: Vec<String>,
    /// Every declared gate that was asked, passed or not.
    pub judged: Vec<Judged>,
    /// What each gate that was asked looks at, those included that nobody declares, and whether it passed for everybody whom it asks for.
    pub asked: Vec<(&'static str, bool)>,
    /// What becomes of the study if a gate failed: the furthest-reaching of those that did.
    pub on_failure: OnFailure,
    /// How the candidate compares with the best before it, where every gate passed, or people may let it through, and the study has
    /// patience.
    pub weighed: Option<Weighed>,
}

impl Verdict {
    /// Of gates that failed for these reasons; of none if there are none.
    #[must_use]
    pub fn of(reasons: Vec<String>) -> Self {
        let pass = reasons.is_empty();
        let (judged, asked) = (Vec::new(), Vec::new());
        Self { pass, reasons, judged, asked, on_failure: OnFailure::Reject, weighed: None }
    }

    /// Whether people decide over it: gates that ask failed, and no other.
    #[must_use]
    pub fn asks(&self) -> bool {
        !self.pass && self.on_failure == OnFailure::Ask
    }

    /// What a declared gate says.
    fn ask(&mut self, declared: &Declared, facts: &Facts<'_>) {
        let judged = declared.judge(facts);
        let failed: Vec<String> =
            judged.iter().filter(|j| !j.pass).map(ToString::to_string).collect();
        self.asked.push((declared.figure.metric(), failed.is_empty()));
        self.fail(failed, declared.on_failure);
        self.judged.extend(judged);
    }

    /// A gate failed for these reasons; it did not if there are none.
    fn fail(&mut self, reasons: Vec<String>, on_failure: OnFailure) {
        if reasons.is_empty() {
            return;
        }
        let first = self.reasons.is_empty();
        self.on_failure = if first { on_failure } else { self.on_failure.max(on_failure) };
        self.reasons.extend(reasons);
    }
}

/// Judges a candidate by every gate.
#[must_use]
pub fn judge(facts: &Facts<'_>, gates: &[Gate]) -> Verdict {
    let mut verdict = Verdict::of(Vec::new());
    for gate in gates {
        let failed = match gate {
            Gate::Participation { min_sites } if facts.sites < *min_sites => {
                Some(format!("participation: {} sites, at least {min_sites} needed", facts.sites))
            }
            Gate::Finite if !facts.finite => {
                Some("finite: the candidate has parameters that are not numbers".to_owned())
            }
            Gate::Witnesses(WitnessQuorum { quorum, within_s }) if facts.witnesses < *quorum => {
                Some(format!(
                    "witnesses: {} stood behind the round within {within_s} s, at least {quorum} needed",
                    facts.witnesses
                ))
            }
            Gate::Declared(declared) => {
                if declared.is_asked(facts.is_last, facts.evaluated.is_some()) {
                    verdict.ask(declared, facts);
                }
                continue;
            }
            _ => None,
        };
        verdict.asked.push((gate.metric(), failed.is_none()));
        // Of what nobody declares nobody is asked.
        verdict.fail(failed.into_iter().collect(), OnFailure::Reject);
    }
    verdict.pass = verdict.reasons.is_empty();
    verdict
}

/// Judges a version that is to go on to a stage, by what is known of the round whose model it is: by the gates that are asked
/// then, and by no others.
#[must_use]
pub fn judge_promotion(facts: &Facts<'_>, gates: &[Declared], to: Stage) -> Verdict {
    let mut verdict = Verdict::of(Vec::new());
    for gate in gates.iter().filter(|gate| gate.is_asked_of(to)) {
        verdict.ask(gate, facts);
    }
    verdict.pass = verdict.reasons.is_empty();
    verdict
}

/// Whether gates ask how updates compare with each other: in a round that is a study's last, or is evaluated, or later, of the
/// version that it may give.
#[must_use]
pub fn compare_updates(gates: &[Declared], is_last: bool, evaluated: bool) -> bool {
    let of_updates = |gate: &Declared| matches!(gate.figure, Figure::EachUpdate(_));
    let asks = |gate: &Declared| gate.when == When::Promotion || gate.is_asked(is_last, evaluated);
    gates.iter().any(|gate| of_updates(gate) && asks(gate))
}

/// A number as a figure without an interval.
fn exactly(value: f64) -> Estimate {
    Estimate { value, low: value, high: value }
}

impl Declared {
    /// Whether it is asked in a round that is a study's last, or is evaluated.
    #[must_use]
    pub const fn is_asked(&self, is_last: bool, evaluated: bool) -> bool {
        match self.when {
            When::End => is_last,
            When::EachRound => is_last || evaluated || !self.figure.is_evaluated(),
            When::Promotion => false,
        }
    }

    /// Whether it is asked when a version goes on to this stage. What is only put away is asked nothing.
    #[must_use]
    pub const fn is_asked_of(&self, to: Stage) -> bool {
        matches!((self.when, to), (When::Promotion, Stage::Staging | Stage::Production))
    }

    /// What it says of a figure.
    #[must_use]
    pub fn on(&self, Found { figure, found }: Found) -> Judged {
        let pass = found.as_ref().is_ok_and(|e| self.bound.holds(e));
        Judged { figure, found, bound: self.bound.to_string(), pass }
    }

    /// What it says of a candidate, whether or not it is due.
    fn judge(&self, facts: &Facts<'_>) -> Vec<Judged> {
        let one = |figure, found| vec![self.on(Found { figure, found })];
        #[expect(clippy::cast_precision_loss, reason = "examples are below 2^53")]
        let counted = match self.figure {
            Figure::Sites => Some(("sites", Ok(exactly(f64::from(facts.sites))))),
            Figure::Examples => Some(("examples", Ok(exactly(facts.examples as f64)))),
            Figure::Epsilon => Some((
                "epsilon",
                facts.epsilon.map(exactly).ok_or_else(|| "no site has said it".to_owned()),
            )),
            _ => None,
        };
        if let Some((name, found)) = counted {
            return one(name.into(), found);
        }
        if let Figure::EachUpdate(standing) = self.figure {
            let Some(compared) = &facts.compared else {
                let why = format!("nobody has compared the {} updates", facts.sites);
                return one(self.figure.name(None), Err(why));
            };
            return of_updates(compared, standing)
                .into_iter()
                .map(|found| self.on(found))
                .collect();
        }
        let Some(evaluated) = &facts.evaluated else {
            return one(self.figure.name(None), Err(Missing::Nothing.to_string()));
        };
        self.figure.of(evaluated).into_iter().map(|found| self.on(found)).collect()
    }
}

/// How each update stands among the others: a figure of each site.
#[must_use]
pub fn of_updates(compared: &Compared, standing: Standing) -> Vec<Found> {
    let names = SiteId::told_apart(compared.each(standing).map(|(site, _)| site));
    let each = compared.each(standing).map(|(site, found)| Found {
        figure: at(standing.as_str(), site, &names),
        found: found.map(exactly).map_err(str::to_owned),
    });
    each.collect()
}

/// One figure of what was counted.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    /// What was looked at, of whom.
    pub figure: String,
    /// The figure with its interval, or why there is none.
    pub found: Result<Estimate, String>,
}

/// A site's figure.
fn at(word: &str, site: &SiteId, names: &BTreeMap<&SiteId, String>) -> String {
    format!("{word} at {}", names.get(site).map_or_else(|| site.name(), String::as_str))
}

/// Which groups nothing is said about, and nobody is asked about, in brackets.
fn left_out(grouped: &Grouped) -> String {
    let unasked = grouped.withheld.iter().filter(|group| !grouped.small.contains(group));
    let names: Vec<&str> = unasked.map(String::as_str).collect();
    if names.is_empty() {
        return String::new();
    }
    format!(" (without {}, too few records)", listed(names.into_iter()))
}

/// Which groups are looked at as one, in brackets.
fn merged(grouped: &Grouped) -> String {
    if grouped.merged.is_empty() {
        return String::new();
    }
    format!(" (merging {})", listed(grouped.merged.iter().map(String::as_str)))
}

impl Figure {
    /// Everything that can be looked at where candidates are evaluated so, for a model that says this.
    #[must_use]
    pub fn every(e: &Evaluation, target: impl Into<Target>) -> Vec<Self> {
        let target = target.into();
        let several = !target.is_number() && target.outputs() != 2;
        let of = |kind: Kind| {
            let fits = move |m: &Metric| m.kind() == kind && m.is_for(target);
            Metric::ALL.into_iter().filter(fits)
        };
        let mut every: Vec<Self> = of(Kind::Records).map(Self::Overall).collect();
        for by in By::every(e.attributes.len()) {
            every.extend(of(Kind::Groups).map(|m| Self::Between(m, by)));
            let by_group = of(Kind::Records).filter(|m| !several || m.is_by_group());
            every.extend(by_group.map(|m| Self::EachGroup(m, by)));
        }
        every.extend((0..e.perturbations.len()).map(Self::Drop));
        for number in 0..e.drift.len() {
            every.extend(of(Kind::Column).map(|m| Self::Column(m, number)));
        }
        every.extend(of(Kind::Records).map(Self::EachSite));
        every
    }

    /// What was counted of it: one, or one of each group or site. Nothing where it is not made of counts.
    #[must_use]
    pub fn of(self, evaluated: &Evaluated<'_>) -> Vec<Found> {
        let (e, whole) = (evaluated.settings, evaluated.whole());
        let one = |figure: String, found: Result<Estimate, Missing>| Found {
            figure,
            found: found.map_err(|why| why.to_string()),
        };
        let name = self.name(Some(e));
        match (self, whole) {
            (Self::EachSite(metric), _) => {
                let names = evaluated.names();
                if names.is_empty() {
                    return vec![one(name, Err(Missing::Nothing))];
                }
                let each = names.keys().map(|site| {
                    let alone = evaluated.by_site.get(*site).ok_or(Missing::Silent);
                    let found = alone.and_then(|pool| pool.overall(metric));
                    one(at(metric.as_str(), site, &names), found)
                });
                each.collect()
            }
            (Self::Epsilon | Self::Sites | Self::Examples | Self::EachUpdate(_), _) => Vec::new(),
            (_, Err(why)) => vec![one(name, Err(why))],
            (Self::Overall(metric), Ok(all)) => vec![one(name, all.overall(metric))],
            (Self::Drop(number), Ok(all)) => vec![one(name, all.drop_under(number))],
            (Self::Column(metric, number), Ok(all)) => vec![one(name, all.drift(metric, number))],
            (Self::Between(metric, by), Ok(all)) => {
                let grouped = all.groups(by);
                let figure = format!("{name}{}{}", merged(&grouped), left_out(&grouped));
                vec![one(figure, all.between(metric, by))]
            }
            (Self::EachGroup(metric, by), Ok(all)) => {
                let grouped = all.groups(by);
                if grouped.groups.is_empty() {
                    return vec![one(name, Err(Missing::Groups(e.group_min)))];
                }
                let (merged, left_out) = (merged(&grouped), left_out(&grouped));
                let each = grouped.groups.iter().map(|group| {
                    let merged = if grouped.is_merged(group) { merged.as_str() } else { "" };
                    let figure = format!("{} of {}{merged}{left_out}", metric.as_str(), group.name);
                    one(figure, all.of_group(metric, group))
                });
                let small = grouped.small.iter().map(|group| {
                    let why = Missing::Small { least: e.group_min, groups: group.clone() };
                    one(format!("{} of {group}{left_out}", metric.as_str()), Err(why))
                });
                each.chain(small).collect()
            }
        }
    }

    /// What it is, in the words that studies use.
    #[must_use]
    pub fn name(self, e: Option<&Evaluation>) -> String {
        let by = |metric: Metric, word: &str, by: By| match e {
            Some(e) => format!("{} {word} {}", metric.as_str(), by.name(e)),
            None => metric.as_str().to_owned(),
        };
        match self {
            Self::Overall(metric) => metric.as_str().to_owned(),
            Self::EachGroup(metric, groups) => by(metric, "of each group by", groups),
            Self::EachSite(metric) => format!("{} at each site", metric.as_str()),
            Self::Between(metric, groups) => by(metric, "by", groups),
            Self::Drop(number) => {
                let under = e.and_then(|e| e.perturbations.get(number)).map(Perturbation::name);
                let word = Metric::AccuracyDrop.as_str();
                under.map_or_else(|| word.to_owned(), |under| format!("{word} under {under}"))
            }
            Self::Column(metric, number) => {
                let watched = e.and_then(|e| e.drift.get(number));
                let of = |w: &Watched| format!("{} of {}", metric.as_str(), w.values.column);
                watched.map_or_else(|| metric.as_str().to_owned(), of)
            }
            Self::Epsilon => "epsilon".into(),
            Self::Sites => "sites".into(),
            Self::Examples => "examples".into(),
            Self::EachUpdate(standing) => format!("{} at each site", standing.as_str()),
        }
    }

    /// The metric alone, whoever's it is.
    #[must_use]
    pub const fn metric(self) -> &'static str {
        match self {
            Self::Overall(metric)
            | Self::EachGroup(metric, _)
            | Self::EachSite(metric)
            | Self::Between(metric, _)
            | Self::Column(metric, _) => metric.as_str(),
            Self::Drop(_) => Metric::AccuracyDrop.as_str(),
            Self::Epsilon => "epsilon",
            Self::Sites => "sites",
            Self::Examples => "examples",
            Self::EachUpdate(standing) => standing.as_str(),
        }
    }

    /// Whether it needs federated evaluation.
    #[must_use]
    pub const fn is_evaluated(self) -> bool {
        !matches!(self, Self::Epsilon | Self::Sites | Self::Examples | Self::EachUpdate(_))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluation::{
        Attribute, Groups, Noise,
        cells::{Tally, tests::settings},
    };
    use crate::{registry::provenance::GateSaid, robust::Outlier};

    fn facts() -> Facts<'static> {
        let (epsilon, is_last, evaluated, compared) = (Some(1.5), true, None, None);
        let (sites, examples, finite, witnesses) = (3, 9, true, 2);
        Facts { sites, examples, finite, witnesses, epsilon, is_last, evaluated, compared }
    }

    fn declared(figure: Figure, bound: Bound) -> Declared {
        Declared { figure, bound, when: When::EachRound, on_failure: OnFailure::Reject }
    }

    fn site(n: u32) -> SiteId {
        format!("spiffe://t/ae-on/ae-az/site/h-{n}").parse().expect("valid")
    }

    #[test]
    fn every_failed_gate_is_named_with_its_figure() {
        let quorum = WitnessQuorum { quorum: 2, within_s: 60 };
        let gates = [Gate::Participation { min_sites: 3 }, Gate::Finite, Gate::Witnesses(quorum)];
        let bad = judge(&Facts { sites: 2, finite: false, witnesses: 1, ..facts() }, &gates);
        assert!(!bad.pass);
        assert_eq!(bad.reasons.len(), 3);
        assert!(bad.reasons[0].contains("2 sites, at least 3"));
        assert!(bad.reasons[2].contains("1 stood behind the round within 60 s, at least 2"));
        assert_eq!(bad.asked, [("participation", false), ("finite", false), ("witnesses", false)]);
        assert!(judge(&facts(), &gates).pass);
    }

    /// 400 records at each of two sites: 9 of 10 are said right in group 1, 6 of 10 in group 2.
    fn counted(e: &Evaluation) -> Evaluated<'_> {
        counted_of(e, 2, 2)
    }

    /// The same of so many asked sites, of which the first two count in a study of at least so many.
    fn counted_of(e: &Evaluation, asked: u32, min_sites: u32) -> Evaluated<'_> {
        let mut evaluated = Evaluated::new(e, 2, (0..asked).map(site), min_sites);
        for n in 0..2 {
            let mut tally = Tally::new(e.layout(2));
            for i in 0..400 {
                let (group, class) = (i % 2, (i / 2) % 2);
                let right = (i / 4) % 10 < if group == 0 { 9 } else { 6 };
                let p = if right == (class == 1) { 0.8 } else { 0.2 };
                tally.record(group, class, &[1.0 - p, p]);
                tally.perturbed(0, right, right && i % 5 != 0);
            }
            evaluated.add(site(n), 2, &tally.into_counts()).expect("counts");
        }
        evaluated
    }

    #[test]
    fn a_gate_is_judged_by_the_worse_end_of_the_interval() {
        let e = Evaluation { noise: Noise::None, ..settings() };
        let facts = Facts { evaluated: Some(counted(&e)), ..facts() };
        let verdict = |figure, bound| judge(&facts, &[Gate::Declared(declared(figure, bound))]);
        // 0.75 of 800: an interval of about 0.03 on each side.
        let accuracy = Figure::Overall(Metric::Accuracy);
        let lucky = verdict(accuracy, Bound::AtLeast(0.74));
        assert!(!lucky.pass);
        assert_eq!(lucky.reasons, ["accuracy: 0.7500 [0.7173, 0.7801], at least 0.74 needed"]);
        assert!(verdict(accuracy, Bound::AtLeast(0.715)).pass);
        let gap = Figure::Between(Metric::AccuracyDifference, By::attribute(0));
        let wide = verdict(gap, Bound::AtMost(0.32));
        assert!(
            wide.reasons[0].starts_with(
                "accuracy_difference by SEX (without SEX=other, too few records): 0.3000 ["
            ),
            "{wide:?}"
        );
        assert!(!wide.pass && verdict(gap, Bound::AtMost(0.37)).pass);
        assert!(!verdict(Figure::Drop(0), Bound::AtMost(0.15)).pass);
        assert!(verdict(Figure::Drop(0), Bound::AtMost(0.2)).pass);
    }

    #[test]
    fn each_group_and_each_site_is_judged_on_its_own() {
        let e = Evaluation { noise: Noise::None, ..settings() };
        let facts = Facts { evaluated: Some(counted(&e)), ..facts() };
        let verdict =
            |figure| judge(&facts, &[Gate::Declared(declared(figure, Bound::AtLeast(0.7)))]);
        let groups = verdict(Figure::EachGroup(Metric::Accuracy, By::attribute(0)));
        assert_eq!(groups.judged.len(), 2);
        assert_eq!(groups.reasons.len(), 1);
        assert!(groups.reasons[0].starts_with("accuracy of SEX=2"), "{groups:?}");
        let sites = verdict(Figure::EachSite(Metric::Accuracy));
        let names: Vec<_> = sites.judged.iter().map(|j| j.figure.as_str()).collect();
        assert_eq!(names, ["accuracy at h-0", "accuracy at h-1"]);
        // However many groups or sites there are, one gate was asked.
        assert_eq!(groups.asked, [("accuracy", false)]);
        assert_eq!(sites.asked, [("accuracy", sites.pass)]);
    }

    /// However many groups are merged or left out, the line ends with the figure and its bound: what is signed of a version is read
    /// from it.
    #[test]
    fn a_line_is_never_too_long_for_its_figure() {
        let long = |sign: char, n: u32| format!("{n}{}", String::from(sign).repeat(60));
        let attribute = |sign: char| Attribute {
            column: String::from(sign).repeat(64),
            groups: Groups::Values((1..=8).map(|n| long(sign, n)).collect()),
        };
        for group_min in [20, 1_000] {
            let e = Evaluation {
                noise: Noise::None,
                attributes: vec![attribute('a'), attribute('b')],
                group_min,
                perturbations: Vec::new(),
                ..settings()
            };
            let mut evaluated = Evaluated::new(&e, 2, [site(0)], 1);
            let mut tally = Tally::new(e.layout(2));
            (0..81).for_each(|group| tally.record(group, group % 2, &[0.3, 0.7]));
            for large in [30, 40] {
                (0..1_000).for_each(|i| tally.record(large, i % 2, &[0.3, 0.7]));
            }
            evaluated.add(site(0), 2, &tally.into_counts()).expect("counts");
            let facts = Facts { evaluated: Some(evaluated), ..facts() };
            for figure in [
                Figure::EachGroup(Metric::Accuracy, By::BOTH),
                Figure::Between(Metric::AccuracyDifference, By::BOTH),
            ] {
                let gate = [Gate::Declared(declared(figure, Bound::AtLeast(0.1)))];
                for judged in judge(&facts, &gate).judged {
                    let line = judged.line();
                    assert_eq!(crate::audit::within_bounds(&line), line);
                    let said = GateSaid::of_line(1, &line);
                    assert_eq!(said.bound, "at least 0.1", "{line}");
                    if let Ok(found) = judged.found {
                        assert_eq!(said.figure, format!("{:.4}", found.value), "{line}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_figure_that_is_missing_fails_its_gate() {
        let gates = |figure, when| {
            let bound = Bound::AtLeast(0.1);
            [Gate::Declared(Declared { when, ..declared(figure, bound) })]
        };
        let roc_auc = Figure::Overall(Metric::RocAuc);
        let nothing = judge(&facts(), &gates(roc_auc, When::EachRound));
        assert_eq!(nothing.reasons, ["roc_auc: no site has sent counts, at least 0.1 needed"]);
        let e = settings();
        let empty = Facts { evaluated: Some(Evaluated::new(&e, 2, [], 0)), ..facts() };
        assert!(!judge(&empty, &gates(roc_auc, When::End)).pass);
        let by_site = Figure::EachSite(Metric::Accuracy);
        assert!(!judge(&empty, &gates(by_site, When::End)).pass);
        let silent = Facts { epsilon: None, ..facts() };
        assert!(!judge(&silent, &gates(Figure::Epsilon, When::EachRound)).pass);
        // In between, a round that is not evaluated is not asked; the last one always is.
        let between = Facts { is_last: false, ..facts() };
        assert!(judge(&between, &gates(roc_auc, When::EachRound)).pass);
        let not_due = judge(&between, &gates(roc_auc, When::End));
        assert!(not_due.pass && not_due.asked.is_empty(), "{not_due:?}");
    }

    #[test]
    fn a_site_that_is_silent_fails_what_is_asked_of_each_and_too_few_fail_what_is_asked_of_all() {
        let e = Evaluation { noise: Noise::None, ..settings() };
        let judged = |asked, min_sites, figure| {
            let evaluated = Some(counted_of(&e, asked, min_sites));
            let bound = Bound::AtLeast(0.1);
            judge(&Facts { evaluated, ..facts() }, &[Gate::Declared(declared(figure, bound))])
        };
        let (accuracy, at_each) =
            (Figure::Overall(Metric::Accuracy), Figure::EachSite(Metric::Accuracy));
        // Two of three have counted, which is enough for what is said of all.
        assert!(judged(3, 2, accuracy).pass);
        let silent = judged(3, 2, at_each);
        assert_eq!(silent.judged.len(), 3);
        assert_eq!(silent.reasons, ["accuracy at h-2: has sent no counts, at least 0.1 needed"]);
        assert_eq!(silent.asked, [("accuracy", false)]);
        assert!(judged(2, 2, at_each).pass);
        let sex = By::attribute(0);
        for figure in [
            accuracy,
            Figure::EachGroup(Metric::Accuracy, sex),
            Figure::Between(Metric::WorstGroupAccuracy, sex),
            Figure::Drop(0),
        ] {
            let few = judged(3, 3, figure);
            let why = format!(
                "{}: 2 of the 3 sites that it takes sent counts, at least 0.1 needed",
                figure.name(Some(&e))
            );
            assert_eq!(few.reasons, [why]);
        }
        // Where nobody has counted, each of them has not.
        let nobody =
            Facts { evaluated: Some(Evaluated::new(&e, 2, (0..2).map(site), 2)), ..facts() };
        let gate = |figure| [Gate::Declared(declared(figure, Bound::AtLeast(0.1)))];
        assert_eq!(judge(&nobody, &gate(at_each)).reasons.len(), 2);
        assert_eq!(
            judge(&nobody, &gate(accuracy)).reasons,
            ["accuracy: no site has sent counts, at least 0.1 needed"]
        );
    }

    /// So many records of two declared groups, which are all said right.
    fn of_groups(e: &Evaluation, [first, second, other]: [usize; 3]) -> Evaluated<'_> {
        let mut tally = Tally::new(e.layout(2));
        for (group, records) in [first, second, other].into_iter().enumerate() {
            (0..records).for_each(|i| {
                let p = if i % 2 == 1 { 0.8 } else { 0.2 };
                tally.record(group, i % 2, &[1.0 - p, p]);
            });
        }
        let mut evaluated = Evaluated::new(e, 2, [site(0)], 1);
        evaluated.add(site(0), 2, &tally.into_counts()).expect("counts");
        evaluated
    }

    #[test]
    fn a_declared_group_that_is_too_small_fails_its_gate_and_what_is_merged_is_named() {
        let e = Evaluation { noise: Noise::None, group_min: 50, ..settings() };
        let by = By::attribute(0);
        let judged = |e, groups, metric: Metric| {
            let evaluated = Some(of_groups(e, groups));
            let figure = match metric.kind() {
                Kind::Groups => Figure::Between(metric, by),
                _ => Figure::EachGroup(metric, by),
            };
            let gate = declared(figure, Bound::AtLeast(0.2));
            judge(&Facts { evaluated, ..facts() }, &[Gate::Declared(gate)])
        };
        // Of the second group there are 30, which nobody is merged with.
        let each = judged(&e, [200, 30, 0], Metric::Accuracy);
        let small = "accuracy of SEX=2 (without SEX=other, too few records): fewer than 50 records of SEX=2, at least 0.2 needed";
        assert_eq!(each.reasons, [small]);
        assert_eq!(each.judged.len(), 2);
        // Between two groups that are large enough the third one, which is declared too, is not passed over.
        let all = Groups::Values(vec!["1".into(), "2".into(), "3".into()]);
        let attributes = vec![Attribute { column: "SEX".into(), groups: all }];
        let declares = Evaluation { attributes, ..e.clone() };
        let worst = judged(&declares, [200, 200, 30], Metric::WorstGroupAccuracy);
        assert_eq!(
            worst.reasons,
            [
                "worst_group_accuracy by SEX (without SEX=other, too few records): fewer than 50 records of SEX=3, at least 0.2 needed"
            ]
        );
        // *Other* is not declared, and a group that holds nobody for certain is nobody's.
        assert!(judged(&e, [200, 200, 30], Metric::WorstGroupAccuracy).pass);
        assert!(judged(&declares, [200, 200, 0], Metric::WorstGroupAccuracy).pass);
        // With noise nobody knows that it holds nobody.
        let noised = Evaluation { noise: Noise::Laplace { epsilon: 8.0 }, ..declares.clone() };
        let uncertain = judged(&noised, [200, 200, 0], Metric::WorstGroupAccuracy);
        assert!(uncertain.reasons[0].contains("fewer than 50 records of SEX=3"), "{uncertain:?}");
        // Two that are enough together are judged as one.
        let merged = judged(&e, [200, 30, 30], Metric::Accuracy);
        assert!(merged.pass, "{merged:?}");
        let names: Vec<_> = merged.judged.iter().map(|j| j.figure.as_str()).collect();
        assert_eq!(
            names,
            ["accuracy of SEX=1", "accuracy of smaller groups (merging SEX=2; SEX=other)"]
        );
        let worst = judged(&e, [200, 30, 30], Metric::WorstGroupAccuracy);
        let name = "worst_group_accuracy by SEX (merging SEX=2; SEX=other)";
        assert!(worst.pass && worst.judged[0].figure == name, "{worst:?}");
    }

    #[test]
    fn sites_of_one_name_are_told_apart_by_their_places() {
        let e = Evaluation { noise: Noise::None, ..settings() };
        let clinic = |place: &str| -> SiteId {
            format!("spiffe://t/ae-on/{place}/site/clinic").parse().expect("valid")
        };
        let asked = [clinic("ae-az"), clinic("ae-du"), site(7)];
        let evaluated = Some(Evaluated::new(&e, 2, asked.clone(), 2));
        let gate = declared(Figure::EachSite(Metric::Accuracy), Bound::AtLeast(0.1));
        let verdict = judge(&Facts { evaluated, ..facts() }, &[Gate::Declared(gate)]);
        let names: Vec<_> = verdict.judged.iter().map(|j| j.figure.as_str()).collect();
        let (az, du) = (
            "accuracy at spiffe://t/ae-on/ae-az/site/clinic",
            "accuracy at spiffe://t/ae-on/ae-du/site/clinic",
        );
        assert_eq!(names, [az, "accuracy at h-7", du]);
        let update = Outlier { norm: 1.0, cosine: Some(0.5) };
        let mut sites = asked.to_vec();
        sites.sort();
        let compared = Some(Compared::new(sites, vec![update; 3]).expect("three"));
        let gate = declared(Figure::EachUpdate(Standing::Cosine), Bound::AtLeast(0.1));
        let verdict = judge(&Facts { compared, ..facts() }, &[Gate::Declared(gate)]);
        let names: Vec<_> = verdict.judged.iter().map(|j| j.figure.as_str()).collect();
        assert_eq!(
            names,
            [
                "update_cosine at spiffe://t/ae-on/ae-az/site/clinic",
                "update_cosine at h-7",
                "update_cosine at spiffe://t/ae-on/ae-du/site/clinic"
            ]
        );
    }

    #[test]
    fn a_version_is_asked_what_a_round_is_not_and_only_on_its_way_to_where_it_serves() {
        let e = Evaluation { noise: Noise::None, ..settings() };
        let evaluated = Facts { evaluated: Some(counted(&e)), ..facts() };
        let accuracy = declared(Figure::Overall(Metric::Accuracy), Bound::AtLeast(0.74));
        let asked = Declared { when: When::Promotion, ..accuracy.clone() };
        let sites =
            Declared { when: When::Promotion, ..declared(Figure::Sites, Bound::AtLeast(3.0)) };
        let gates = [accuracy, asked, sites];
        // In its round it would have failed by the one that is asked then.
        let round =
            judge(&evaluated, &gates[1..].iter().cloned().map(Gate::Declared).collect::<Vec<_>>());
        assert!(round.pass && round.judged.is_empty() && round.asked.is_empty(), "{round:?}");
        for to in [Stage::Staging, Stage::Production] {
            let verdict = judge_promotion(&evaluated, &gates, to);
            assert!(!verdict.pass);
            assert_eq!(
                verdict.reasons,
                ["accuracy: 0.7500 [0.7173, 0.7801], at least 0.74 needed"]
            );
            assert_eq!(verdict.asked, [("accuracy", false), ("sites", true)]);
        }
        assert!(judge_promotion(&evaluated, &gates, Stage::Archived).judged.is_empty());
        // A version of a round that was not evaluated has no figure, and does not pass by silence.
        let silent = judge_promotion(&facts(), &gates, Stage::Staging);
        assert_eq!(silent.reasons, ["accuracy: no site has sent counts, at least 0.74 needed"]);
        assert!(judge_promotion(&facts(), &gates[2..], Stage::Staging).pass);
    }

    #[test]
    fn whoever_stands_out_is_named_and_updates_that_nobody_compared_fail() {
        let outlier = |norm, cosine| Outlier { norm, cosine };
        let figures = vec![
            outlier(1.0, Some(0.8)),
            outlier(10.0, Some(-0.75)),
            outlier(1.25, Some(0.7)),
            outlier(0.0, None),
        ];
        let compared = Compared::new((0..4).map(site).collect(), figures).expect("four");
        let facts = Facts { sites: 4, compared: Some(compared), ..facts() };
        let gates = [
            declared(Figure::EachUpdate(Standing::NormRatio), Bound::AtMost(3.0)),
            declared(Figure::EachUpdate(Standing::Cosine), Bound::AtLeast(-0.25)),
        ];
        let gates = gates.map(Gate::Declared);
        let verdict = judge(&facts, &gates);
        assert_eq!(
            verdict.reasons,
            [
                "update_norm_ratio at h-1: 8.888889, at most 3 needed",
                "update_cosine at h-1: -0.75, at least -0.25 needed",
                "update_cosine at h-3: it, or the median, is zero and has no direction, at least -0.25 needed",
            ]
        );
        assert_eq!(verdict.judged.len(), 8);
        assert_eq!(verdict.asked, [("update_norm_ratio", false), ("update_cosine", false)]);
        // They are asked in every round, whether it is evaluated or not.
        let unseen = judge(&Facts { compared: None, is_last: false, ..facts }, &gates);
        assert_eq!(
            unseen.reasons[0],
            "update_norm_ratio at each site: nobody has compared the 4 updates, at most 3 needed"
        );
        assert_eq!(unseen.reasons.len(), 2);
        // Those that are asked of a version are compared in its round, for then.
        let at = |when, figure| [Declared { when, ..declared(figure, Bound::AtMost(3.0)) }];
        let norms = Figure::EachUpdate(Standing::NormRatio);
        assert!(compare_updates(&at(When::Promotion, norms), false, false));
        assert!(!compare_updates(&at(When::End, norms), false, true));
        assert!(!compare_updates(&at(When::Promotion, Figure::Sites), true, true));
    }

    #[test]
    fn the_furthest_reaching_answer_of_the_gates_that_failed_is_taken() {
        let gate = |bound, on_failure| {
            Gate::Declared(Declared { on_failure, ..declared(Figure::Sites, bound) })
        };
        let (fails, holds) = (Bound::AtLeast(4.0), Bound::AtLeast(3.0));
        let verdict = judge(
            &facts(),
            &[
                gate(fails, OnFailure::RollBack),
                gate(holds, OnFailure::Stop),
                gate(fails, OnFailure::Reject),
            ],
        );
        assert_eq!(verdict.on_failure, OnFailure::RollBack);
        assert_eq!(verdict.reasons[0], "sites: 3, at least 4 needed");
        assert_eq!(verdict.judged.len(), 3);
        // People are asked only where nothing else fails, and what nobody declares asks nobody.
        let asks = gate(fails, OnFailure::Ask);
        let of = |gates: &[Gate]| judge(&facts(), gates).on_failure;
        assert_eq!(of(&[asks.clone(), gate(holds, OnFailure::Stop)]), OnFailure::Ask);
        assert_eq!(of(&[asks.clone(), gate(fails, OnFailure::Reject)]), OnFailure::Reject);
        assert_eq!(of(&[gate(fails, OnFailure::Reject), asks.clone()]), OnFailure::Reject);
        let few = Gate::Participation { min_sites: 4 };
        assert_eq!(of(&[few.clone(), asks.clone()]), OnFailure::Reject);
        assert_eq!(of(&[asks, few]), OnFailure::Reject);
    }

    #[test]
    fn bounds_that_decide_nothing_are_known() {
        for (bound, says) in [
            (Bound::AtLeast(1.01), Some("never")),
            (Bound::AtMost(-0.1), Some("never")),
            (Bound::AtLeast(0.0), Some("always")),
            (Bound::AtMost(1.0), Some("always")),
            (Bound::AtLeast(0.5), None),
            (Bound::AtMost(0.5), None),
        ] {
            assert_eq!(bound.decides_nothing(0.0, 1.0), says, "{bound}");
        }
    }
}
