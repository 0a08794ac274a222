//! The timeline, and figures over time.

use super::{Seen, count_of, parts::ROWS_MAX};
use crate::{audit::Kind, canon::Canon};
use std::collections::{BTreeMap, BTreeSet};

/// Columns of a chart at most.
const BARS_MAX: usize = 60;
/// Spans that are kept while reading, at most.
const SPANS_MAX: usize = 2_000;
/// How much of a time names its span: minute, hour, day, month, year.
const UNITS: [(usize, &str); 5] =
    [(16, "minute"), (13, "hour"), (10, "day"), (7, "month"), (4, "year")];

/// Counts by span of time. Spans grow when there are too many of them.
#[derive(Default)]
struct Series {
    unit: usize,
    spans: BTreeMap<String, [u64; 2]>,
}

impl Series {
    fn add(&mut self, ts: &str, which: usize) {
        let span = ts.get(..UNITS[self.unit].0).unwrap_or(ts);
        if let Some(counts) = self.spans.get_mut(span) {
            counts[which] += 1;
            return;
        }
        self.spans.entry(span.to_owned()).or_default()[which] += 1;
        self.shrink(SPANS_MAX);
    }

    fn shrink(&mut self, most: usize) {
        while self.spans.len() > most && self.unit + 1 < UNITS.len() {
            self.unit += 1;
            let width = UNITS[self.unit].0;
            for (span, [a, b]) in std::mem::take(&mut self.spans) {
                let wider = span.get(..width).unwrap_or(&span).to_owned();
                let sum = self.spans.entry(wider).or_default();
                sum[0] += a;
                sum[1] += b;
            }
        }
    }
}

/// What is drawn.
#[derive(Default)]
pub(super) struct Charts {
    accesses: Series,
    events: Vec<Canon>,
    more: u64,
    /// Whose first connection and refusal the timeline has.
    met: BTreeSet<(bool, String)>,
    drawn: Vec<Canon>,
}

impl Charts {
    pub(super) fn take(&mut self, seen: &Seen<'_>) {
        if seen.is_access() || seen.is_refusal() {
            self.accesses.add(&seen.entry.ts, usize::from(seen.is_refusal()));
        }
        let first_of = match seen.kind() {
            Kind::LogOpened
            | Kind::CoordinatorStarted
            | Kind::PolicyLoaded
            | Kind::PolicyRefused
            | Kind::GlassBroken
            | Kind::GlassMended
            | Kind::TrustLoaded
            | Kind::CertificateRevoked
            | Kind::CertificateReinstated
            | Kind::ApprovalGiven
            | Kind::ApprovalWithdrawn
            | Kind::EnrolmentOffered
            | Kind::EnrolmentWithdrawn
            | Kind::SiteEnrolled
            | Kind::ConnectionEnded
            | Kind::EndpointAllowed
            | Kind::AlertRaised
            | Kind::OperatorSignedIn
            | Kind::StudySubmitted
            | Kind::StudyFinished
            | Kind::StudyFailed
            | Kind::StudyStopped
            | Kind::ModelPublished
            | Kind::ModelRejected
            | Kind::CandidateHeld
            | Kind::CandidateApproved
            | Kind::CandidateRefused
            | Kind::ModelRolledBack
            | Kind::VersionMade
            | Kind::VersionPromoted
            | Kind::VersionRejected
            | Kind::VersionRevoked
            | Kind::VersionRolledBack
            | Kind::RoundFailed
            | Kind::ErasurePerformed
            | Kind::ErasureRefused
            | Kind::HoldPlaced
            | Kind::HoldReleased
            | Kind::PruningPerformed
            | Kind::PruningRefused
            | Kind::LogExported => None,
            Kind::ConnectionAdmitted => Some((true, seen.who())),
            Kind::ConnectionRefused
            | Kind::EnrolmentRefused
            | Kind::AccessDenied
            | Kind::UpdateRefused => Some((false, seen.who())),
            _ => return,
        };
        if first_of.is_some_and(|who| self.met.len() >= ROWS_MAX || !self.met.insert(who)) {
            return;
        }
        if self.events.len() >= ROWS_MAX {
            self.more += 1;
            return;
        }
        let round = seen.round.as_ref().map(|r| r.number.to_string());
        let detail = match seen.text("reason") {
            "" => round.unwrap_or_default(),
            reason => reason.to_owned(),
        };
        self.events.push(Canon::map([
            ("ts", seen.entry.ts.as_str().into()),
            ("index", count_of(seen.index())),
            ("kind", seen.kind().as_str().into()),
            ("who", seen.who().into()),
            ("study", seen.study().into()),
            ("detail", detail.into()),
        ]));
    }

    /// A chart over names: each with a label and a value for each series.
    pub(super) fn over_names(
        &mut self,
        name: &'static str,
        series: &[&'static str],
        bars: impl IntoIterator<Item = (String, Vec<String>)>,
    ) {
        let bars: Vec<_> = bars.into_iter().take(BARS_MAX).collect();
        if bars.is_empty() {
            return;
        }
        let labels = bars.iter().map(|(label, _)| Canon::Text(label.clone())).collect();
        let series = series.iter().enumerate().map(|(i, name)| {
            let values =
                bars.iter().map(|(_, v)| Canon::Text(v.get(i).cloned().unwrap_or_default()));
            one_series(name, values.collect())
        });
        self.drawn.push(chart(name, "name", labels, series.collect()));
    }

    /// What happened, and how much more did.
    pub(super) fn timeline(&mut self) -> (Canon, u64) {
        (Canon::List(std::mem::take(&mut self.events)), self.more)
    }

    pub(super) fn write(mut self) -> Canon {
        self.accesses.shrink(BARS_MAX);
        let spans = &self.accesses.spans;
        let mut charts = Vec::new();
        if !spans.is_empty() {
            let labels: Vec<Canon> = spans.keys().map(|s| Canon::Text(s.clone())).collect();
            let values = |which: usize| {
                spans.values().map(|n| Canon::Text(n[which].to_string())).collect::<Vec<_>>()
            };
            let unit = UNITS[self.accesses.unit].1;
            let allow = vec![one_series("allow", values(0))];
            let deny = vec![one_series("deny", values(1))];
            charts.push(chart("chart_accesses", unit, labels.clone(), allow));
            charts.push(chart("chart_refusals", unit, labels, deny));
        }
        charts.append(&mut self.drawn);
        Canon::List(charts)
    }
}

fn one_series(name: &str, values: Vec<Canon>) -> Canon {
    Canon::map([("name", name.into()), ("values", Canon::List(values))])
}

fn chart(name: &str, unit: &str, labels: Vec<Canon>, series: Vec<Canon>) -> Canon {
    Canon::map([
        ("name", name.into()),
        ("unit", unit.into()),
        ("labels", Canon::List(labels)),
        ("series", Canon::List(series)),
    ])
}
