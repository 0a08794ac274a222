//! Gates of a study: what it declares, and what each says of a candidate.

use super::{
    Answer, App, Ctx, Who,
    pages::{Newest, Try},
};
use crate::{
    engine::{evaluation, problem_of, unreadable},
    policy::Action,
};
use axum::{
    Extension, Json,
    extract::{Path, Query, State},
};
use falaj_core::{
    audit::{Entry, Kind, objects::Object},
    canon::Node,
    gate::Judged,
    registry::provenance::GateSaid,
    round::AnyRound,
};
use falaj_proto::{
    problem::{Code, Problem, ProblemJson},
    rest::{self, GateFigure, Page},
};
use serde::Deserialize;
use std::collections::BTreeSet;
use utoipa::IntoParams;

/// Of which candidate.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct GatesQuery {
    /// That of this round's last try; the newest that each gate has looked at when absent.
    round: Option<u32>,
}

/// The gates that a study declares, and what each says of a candidate. Figures of counts are made again from the counts; all others are
/// as the round's verdict has them in the log.
#[utoipa::path(get, path = "/api/v1/studies/{id}/gates", params(("id" = String, Path), GatesQuery), responses((status = 200, body = Page<rest::Gate>), (status = 400, body = ProblemJson), (status = 403, body = ProblemJson), (status = 404, body = ProblemJson)))]
pub(super) async fn gates(
    State(app): Ctx,
    Extension(peer): Who,
    Path(id): Path<String>,
    Query(asked): Query<GatesQuery>,
) -> Answer<Json<Page<rest::Gate>>> {
    let handle = app.study(&peer, &id).await?;
    app.grant(&peer, Action::StudyRead, Some(&handle)).await?;
    let (store, meta) = (&app.engine.parts().store, &handle.meta);
    let study = &meta.study;
    let mut rounds = Newest::of((store, &study.id), None, asked.round);
    let (mut newest, mut evaluated, mut is_there) = (None, None, false);
    while newest.is_none() || (evaluated.is_none() && study.evaluation.is_some()) {
        let Some(round) = rounds.next().await? else { break };
        is_there = true;
        if has_candidate(&round) {
            if evaluated.is_none() && round.spec().evaluates {
                evaluated = Some(round.clone());
            }
            newest = newest.or(Some(round));
        }
    }
    if let Some(number) = asked.round.filter(|_| !is_there) {
        let none = format!("study `{id}` has had no round {number}");
        return Err(Code::NotFound.because(none).into());
    }
    let (newest, evaluated) = (newest.as_ref(), evaluated.as_ref());
    let counted = match (&study.evaluation, evaluated) {
        (Some(e), Some(round)) => {
            let of = (round.id(), round.spec().attempt);
            Some(evaluation::kept(store, meta, e, of).await.map_err(|e| problem_of(&e))?.evaluated)
        }
        _ => None,
    };
    let said = match newest {
        Some(round) if study.gates.iter().any(|g| !g.figure.is_evaluated()) => {
            recorded(&app, round).await?
        }
        _ => Recorded::default(),
    };
    let each = study.gates.iter().map(|gate| {
        let name = gate.figure.name(study.evaluation.as_ref());
        let bound = gate.bound.to_string();
        let is_evaluated = gate.figure.is_evaluated();
        let (of, figures): (_, Vec<GateFigure>) = if is_evaluated {
            let found = counted.as_ref().map(|counted| gate.figure.of(counted)).unwrap_or_default();
            (evaluated, found.into_iter().map(|found| shown(gate.on(found))).collect())
        } else {
            (newest, of_gate(&said.gates, &name, &bound, gate.figure.metric()))
        };
        let is_last = |round: &AnyRound| round.id().number == study.rounds.count;
        rest::Gate {
            gate: name,
            bound,
            when: gate.when.as_str().to_owned(),
            on_failure: gate.on_failure.as_str().to_owned(),
            round: of.map(|round| round.id().number),
            attempt: of.map(|round| round.spec().attempt),
            asked: of.is_some_and(|round| gate.is_asked(is_last(round), round.spec().evaluates)),
            pass: (!figures.is_empty()).then(|| figures.iter().all(|figure| figure.pass)),
            figures,
            gates_sha256: said.too_long.clone().filter(|_| !is_evaluated),
        }
    });
    Ok(Json(Page { items: each.collect(), next: None }))
}

/// Whether a round has come to a candidate that gates can be asked about.
const fn has_candidate(round: &AnyRound) -> bool {
    matches!(
        round,
        AnyRound::Gated(_) | AnyRound::Held(_) | AnyRound::Promoted(_) | AnyRound::Rejected(_)
    )
}

/// What a round's verdict said of gates, as its entry has it.
#[derive(Default)]
struct Recorded {
    gates: Vec<GateSaid>,
    /// SHA-256 of the list, where it was too long for the entry.
    too_long: Option<String>,
}

/// The entry that has a round's verdict; none before there is one, or where its contents were deleted.
pub(super) async fn verdict(app: &App, round: &AnyRound) -> Result<Option<Entry>, Problem> {
    let kind = match round {
        AnyRound::Promoted(_) => Kind::ModelPublished,
        AnyRound::Rejected(_) => Kind::ModelRejected,
        AnyRound::Held(_) => Kind::CandidateHeld,
        _ => return Ok(None),
    };
    let attempt = Try::of(round).attempt;
    let is = |entry: &Entry| entry.body().int::<u32>("attempt").is_ok_and(|of| of == attempt);
    let of = Object::Round(round.id().clone());
    app.engine.parts().store.find_one(&of, Some(kind), is).await.map_err(unreadable)
}

/// What a round's verdict said of each gate; nothing before there is one, or where its contents were deleted.
async fn recorded(app: &App, round: &AnyRound) -> Result<Recorded, Problem> {
    let Some(entry) = verdict(app, round).await? else { return Ok(Recorded::default()) };
    let number = Try::of(round).number;
    let lines = entry.body().member("gates").into_iter().flat_map(Node::items);
    let gates = lines.filter_map(Node::as_text).map(|line| GateSaid::of_line(number, line));
    let too_long = entry.body().find_text("gates_sha256").map(str::to_owned);
    Ok(Recorded { gates: gates.collect(), too_long })
}

/// What of a verdict is a gate's: one figure by its name, or one of each site. Another gate may have asked the same, and was answered
/// the same.
fn of_gate(said: &[GateSaid], name: &str, bound: &str, metric: &str) -> Vec<GateFigure> {
    let at_a_site = format!("{metric} at ");
    let mut names = BTreeSet::new();
    let mine = said.iter().filter(|said| {
        let is_its = said.name == name || said.name.starts_with(&at_a_site);
        is_its && said.bound == bound && names.insert(&said.name)
    });
    mine.map(read).collect()
}

fn shown(judged: Judged) -> GateFigure {
    let (estimate, missing) = match judged.found {
        Ok(estimate) => (Some(estimate), None),
        Err(why) => (None, Some(why)),
    };
    GateFigure {
        figure: judged.figure,
        value: estimate.map(|e| e.value),
        low: estimate.map(|e| e.low),
        high: estimate.map(|e| e.high),
        missing,
        pass: judged.pass,
    }
}

/// What an entry says of one figure. One without an interval is known to a point.
fn read(said: &GateSaid) -> GateFigure {
    let value: Option<f64> = said.figure.parse().ok();
    let ends = said.interval.split_once(", ");
    let ends = ends.and_then(|(low, high)| Some((low.parse().ok()?, high.parse().ok()?)));
    GateFigure {
        figure: said.name.clone(),
        value,
        low: ends.map_or(value, |(low, _)| Some(low)),
        high: ends.map_or(value, |(_, high)| Some(high)),
        missing: value.is_none().then(|| said.figure.clone()),
        pass: said.pass,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use falaj_core::evaluation::figures::Estimate;

    #[test]
    fn a_figure_reads_back_from_the_line_that_the_log_has_of_it() {
        let judged = |found, pass| Judged {
            figure: "epsilon".into(),
            found,
            bound: "at most 4".into(),
            pass,
        };
        let exactly = Estimate { value: 3.25, low: 3.25, high: 3.25 };
        for judged in [
            judged(Ok(exactly), true),
            judged(Ok(Estimate { value: 0.75, low: 0.5, high: 1.0 }), false),
            judged(Err("no site has said it".into()), false),
        ] {
            let said = GateSaid::of_line(3, &judged.line());
            assert_eq!(said.bound, "at most 4");
            assert_eq!(read(&said), shown(judged));
        }
    }

    #[test]
    fn a_gate_finds_its_own_figures_in_a_verdict() {
        let lines = [
            "pass: sites: 3, at least 2 needed",
            "pass: sites: 3, at least 3 needed",
            "pass: sites: 3, at least 2 needed",
            "fail: update_cosine at h-1: -0.75, at least -0.25 needed",
            "pass: update_cosine at h-2: 0.5, at least -0.25 needed",
        ];
        let said = lines.map(|line| GateSaid::of_line(1, line));
        let of = |name: &str, bound, metric| {
            let found = of_gate(&said, name, bound, metric);
            found.into_iter().map(|f| (f.figure, f.pass)).collect::<Vec<_>>()
        };
        assert_eq!(of("sites", "at least 2", "sites"), [("sites".to_owned(), true)]);
        let each =
            [("update_cosine at h-1".to_owned(), false), ("update_cosine at h-2".to_owned(), true)];
        assert_eq!(of("update_cosine at each site", "at least -0.25", "update_cosine"), each);
        assert!(of("epsilon", "at most 4", "epsilon").is_empty());
    }
}
