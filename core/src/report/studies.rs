//! What was learned, from what, and at what cost: E3, E6, E9, E10, E12, E13 and E14.

use super::{
    About, Seen,
    charts::Charts,
    count_of,
    findings::Findings,
    parts::{All, Level, ROWS_MAX, Section, Tally},
};
use crate::{
    audit::Kind,
    canon::Canon,
    id::{Digest, SiteId, StudyId},
    study::{Mechanism, Study},
};
use std::collections::BTreeMap;

/// What the studies did.
#[derive(Default)]
pub(super) struct Studies {
    runs: BTreeMap<StudyId, Run>,
    models: Vec<Vec<Canon>>,
    published: Tally,
    /// What people did: who, what, and to which study.
    acts: BTreeMap<[String; 3], Tally>,
}

/// One study.
#[derive(Default)]
struct Run {
    /// Entries in range that are about it.
    seen: Tally,
    submitted_by: String,
    /// Rounds that gave a model, that a gate kept out, and that failed.
    rounds: [u64; 3],
    opened: Tally,
    sites: BTreeMap<SiteId, Spent>,
}

/// What one site spent in one study.
#[derive(Default)]
struct Spent {
    /// Updates since the log began, for the privacy loss is that of all of them.
    updates: u32,
    in_range: Tally,
    /// As the site states it, and when.
    epsilon: String,
    ts: String,
}

impl Studies {
    pub(super) fn take(&mut self, seen: &Seen<'_>) {
        let Some(id) = &seen.study else { return };
        let index = seen.index();
        let run = match self.runs.get_mut(id) {
            Some(run) => run,
            None => self.runs.entry(id.clone()).or_default(),
        };
        if seen.kind() == Kind::StudySubmitted {
            run.submitted_by = seen.who();
        }
        if let (Kind::UpdateAccepted, Some(site)) = (seen.kind(), &seen.site) {
            let spent = run.sites.entry(site.clone()).or_default();
            spent.updates = spent.updates.saturating_add(1);
            if seen.counts {
                spent.in_range.add(index);
                seen.text("epsilon").clone_into(&mut spent.epsilon);
                spent.ts.clone_from(&seen.entry.ts);
            }
        }
        if !seen.counts {
            return;
        }
        run.seen.add(index);
        match seen.kind() {
            Kind::RoundOpened => run.opened.add(index),
            Kind::ModelPublished => {
                run.rounds[0] += 1;
                self.published.add(index);
                self.model(seen);
            }
            Kind::ModelRejected => run.rounds[1] += 1,
            Kind::RoundFailed => run.rounds[2] += 1,
            Kind::StudySubmitted
            | Kind::StudyStopped
            | Kind::HoldPlaced
            | Kind::HoldReleased
            | Kind::CandidateApproved
            | Kind::CandidateRefused
            | Kind::VersionPromoted
            | Kind::VersionRejected
            | Kind::VersionRevoked
            | Kind::VersionRolledBack => {
                let key = [seen.who(), seen.kind().as_str().to_owned(), id.as_str().to_owned()];
                self.acts.entry(key).or_default().add(index);
            }
            _ => {}
        }
    }

    fn model(&mut self, seen: &Seen<'_>) {
        let body = seen.entry.body();
        let digest = |key: &str| {
            body.parsed::<Digest>(key).map(|d| d.to_string()).unwrap_or_default().into()
        };
        let updates = body.list("updates").map_or(0, |updates| updates.len()) as u64;
        let round = seen.round.as_ref().map_or(0, |r| u64::from(r.number));
        if self.models.len() < ROWS_MAX {
            self.models.push(vec![
                seen.study().into(),
                count_of(round),
                digest("base_sha256"),
                digest("model_sha256"),
                count_of(updates),
                count_of(body.int("total_weight").unwrap_or_default()),
                count_of(body.list("witnesses").map_or(0, |witnesses| witnesses.len()) as u64),
                count_of(seen.index()),
            ]);
        }
    }

    fn in_range(&self) -> impl Iterator<Item = (&StudyId, &Run)> {
        self.runs.iter().filter(|(_, run)| run.seen.count > 0)
    }

    pub(super) fn count(&self) -> u64 {
        self.in_range().count() as u64
    }

    pub(super) fn rounds(&self) -> u64 {
        self.in_range().map(|(_, run)| run.opened.count).sum()
    }

    pub(super) const fn models(&self) -> u64 {
        self.published.count
    }

    pub(super) fn updates(&self) -> u64 {
        self.in_range().flat_map(|(_, run)| run.sites.values()).map(|s| s.in_range.count).sum()
    }

    pub(super) fn write(
        &self,
        sections: &mut All,
        about: &About,
        findings: &mut Findings,
        charts: &mut Charts,
    ) {
        let [_, _, e3, _, _, e6, _, _, e9, e10, _, e12, e13, e14, _] = sections;
        self.processing(e3, about);
        self.privacy(e6, about, findings, charts);
        e9.fact("E9.lineage", Level::Proven, self.published);
        let columns =
            ["study", "round", "base_model", "model", "updates", "weight", "witnesses", "index"];
        e9.first_of("models", &columns, self.models.clone(), self.published.count);
        self.governance(
            e10,
            "E10.dpia",
            "assessments",
            ["study", "dpia", "index"],
            |run, study| {
                let dpia = study.governance.dpia.clone()?;
                Some(vec![dpia.into(), count_of(run.seen.first)])
            },
            about,
        );
        self.governance(
            e12,
            "E12.consent",
            "consents",
            ["study", "consent", "expires"],
            |_, study| {
                let consent = study.governance.consent.clone()?;
                Some(vec![consent.reference.into(), consent.expires.into()])
            },
            about,
        );
        let acts = self.acts.iter().map(|(key, tally)| {
            let cells = key.iter().map(|c| Canon::Text(c.clone()));
            cells.chain(tally.cells()).collect()
        });
        e13.table("human_acts", &["party", "kind", "study", "count", "first", "last"], acts);
        let columns = ["study", "retention_class", "index"];
        self.governance(
            e14,
            "E14.retention",
            "retention",
            columns,
            |run, study| {
                let class = study.governance.retention?.as_str();
                Some(vec![class.into(), count_of(run.seen.first)])
            },
            about,
        );
        let rounds = self.in_range().map(|(id, run)| {
            (id.as_str().to_owned(), run.rounds.iter().map(ToString::to_string).collect())
        });
        charts.over_names("chart_rounds", &["published", "rejected", "failed"], rounds);
    }

    /// A table of what studies say of themselves, and the fact that they do.
    fn governance(
        &self,
        section: &mut Section,
        fact: &'static str,
        table: &'static str,
        columns: [&'static str; 3],
        cells: impl Fn(&Run, &Study) -> Option<Vec<Canon>>,
        about: &About,
    ) {
        let mut tally = Tally::default();
        let mut rows = Vec::new();
        for (id, run) in self.in_range() {
            if let Some(said) = about.study(id).and_then(|study| cells(run, study)) {
                tally.add(run.seen.first);
                rows.push([id.as_str().into()].into_iter().chain(said).collect::<Vec<_>>());
            }
        }
        section.fact(fact, Level::Declared, tally);
        section.table(table, &columns, rows);
    }

    fn processing(&self, e3: &mut Section, about: &About) {
        let (mut all, mut based) = (Tally::default(), Tally::default());
        let mut rows = Vec::new();
        for (id, run) in self.in_range() {
            let Some(study) = about.study(id) else { continue };
            all.add(run.seen.first);
            let basis = study.governance.legal_basis.clone().unwrap_or_default();
            if !basis.is_empty() {
                based.add(run.seen.first);
            }
            let columns = study.data.features.len() as u64 + 1;
            rows.push(vec![
                id.as_str().into(),
                study.purpose.as_str().into(),
                basis.into(),
                study.data.dataset.as_str().into(),
                count_of(columns),
                study.cohort.places.join(", ").into(),
                run.submitted_by.as_str().into(),
                count_of(run.seen.first),
            ]);
        }
        e3.fact("E3.processing", Level::Declared, all);
        e3.fact("E3.purposes", Level::Declared, all);
        e3.fact("E3.legal_basis", Level::Declared, based);
        let columns =
            ["study", "purpose", "legal_basis", "dataset", "columns", "places", "party", "index"];
        e3.table("studies", &columns, rows);
    }

    fn privacy(
        &self,
        e6: &mut Section,
        about: &About,
        findings: &mut Findings,
        charts: &mut Charts,
    ) {
        let (mut stated, mut recomputed) = (Tally::default(), Tally::default());
        let (mut rows, mut bars) = (Vec::new(), Vec::new());
        for (id, run) in self.in_range() {
            let Some(study) = about.study(id) else { continue };
            let limit = format!("{:.4}", study.privacy.epsilon_limit);
            for (site, spent) in run.sites.iter().filter(|(_, s)| s.in_range.count > 0) {
                let last = spent.in_range.last;
                stated.add(last);
                let own = epsilon(study, spent.updates);
                if own.is_some() {
                    recomputed.add(last);
                }
                let (own, name) = (own.unwrap_or_default(), site.to_string());
                let below = |a: &str, b: &str| matches!((a.parse::<f64>(), b.parse::<f64>()), (Ok(a), Ok(b)) if a < b);
                if below(&spent.epsilon, &own) {
                    let detail = format!("{} < {own}", spent.epsilon);
                    findings.understated(id, &name, (last, &spent.ts), &detail);
                }
                bars.push((
                    format!("{} · {id}", site.name()),
                    vec![spent.epsilon.clone(), limit.clone()],
                ));
                let mechanism = study.privacy.mechanism.as_str();
                let (noise, clip) = noise(&study.privacy.mechanism);
                let texts = [
                    id.as_str().to_owned(),
                    name,
                    mechanism.to_owned(),
                    noise,
                    clip,
                    study.training.batches.rate().to_string(),
                    format!("{:e}", study.privacy.delta),
                ];
                let texts = texts.map(Canon::Text).into_iter();
                let updates = [count_of(spent.in_range.count)];
                let sums = [spent.epsilon.clone(), own, limit.clone()].map(Canon::Text);
                rows.push(texts.chain(updates).chain(sums).chain([count_of(last)]).collect());
            }
        }
        e6.fact("E6.epsilon", Level::Attested, stated);
        e6.fact("E6.mechanisms", Level::Proven, recomputed);
        let columns = [
            "study",
            "site",
            "mechanism",
            "noise_multiplier",
            "clip_norm",
            "sample_rate",
            "delta",
            "updates",
            "epsilon",
            "epsilon_recomputed",
            "limit",
            "last",
        ];
        e6.table("privacy", &columns, rows);
        charts.over_names("chart_epsilon", &["epsilon", "limit"], bars);
    }
}

/// What so many updates cost by the study's own mechanism, at its delta: no less may be stated. Rounds that a site paid
/// for and that gave nothing come on top.
fn epsilon(study: &Study, updates: u32) -> Option<String> {
    if study.privacy.mechanism == Mechanism::None {
        return None;
    }
    let rounds = study.cost_of_rounds(updates).ok()?;
    let cost = study.cost_of_joining().ok()?.compose(&rounds);
    Some(cost.epsilon(study.privacy.delta).ok()?.to_string())
}

/// Noise multiplier and clip norm.
fn noise(mechanism: &Mechanism) -> (String, String) {
    match mechanism {
        Mechanism::DpSgd { noise_multiplier, clip_norm, .. }
        | Mechanism::DpFtrl { noise_multiplier, clip_norm }
        | Mechanism::LocalGaussian { noise_multiplier, clip_norm }
        | Mechanism::DistributedGaussian { noise_multiplier, clip_norm, .. } => {
            (noise_multiplier.to_string(), clip_norm.to_string())
        }
        Mechanism::None => (String::new(), String::new()),
    }
}
