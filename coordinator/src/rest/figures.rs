//! Figures of candidates: what sites have counted on records that they hold out.

use super::{
    Answer, App, Ctx, Who,
    pages::{Try, foreign},
};
use crate::{
    engine::{Handle, evaluation, problem_of, unreadable},
    policy::Action,
};
use axum::{
    Extension, Json,
    extract::{Path, Query, State},
};
use falaj_core::{
    gate::{self, Found},
    round::AnyRound,
};
use falaj_proto::{
    problem::ProblemJson,
    rest::{self, Page},
};
use serde::Deserialize;
use std::sync::Arc;
use utoipa::IntoParams;

/// Rounds on one page, at most.
const PAGE_MAX: usize = 50;
/// Rounds on one page unless asked otherwise.
const PAGE: usize = 10;

/// Which figures are asked for.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct FiguresQuery {
    /// This round alone, every try of it; every round that was evaluated when absent.
    round: Option<u32>,
    /// Figures that begin with this alone: `roc_auc`, `recall of SEX`.
    figure: Option<String>,
    /// Those of each site alone, too.
    #[serde(default)]
    sites: bool,
    /// Rounds before this one; `next` of one page is the `cursor` of the one after it.
    cursor: Option<String>,
    /// Rounds on the page, at most 50.
    limit: Option<usize>,
}

/// Figures of candidates, the newest round first: each with its interval, and what the study's gates say of it.
#[utoipa::path(get, path = "/api/v1/studies/{id}/figures", params(("id" = String, Path), FiguresQuery), responses((status = 200, body = Page<rest::Figures>), (status = 400, body = ProblemJson), (status = 403, body = ProblemJson), (status = 404, body = ProblemJson)))]
pub(super) async fn figures(
    State(app): Ctx,
    Extension(peer): Who,
    Path(id): Path<String>,
    Query(asked): Query<FiguresQuery>,
) -> Answer<Json<Page<rest::Figures>>> {
    let handle = app.study(&peer, &id).await?;
    app.grant(&peer, Action::StudyRead, Some(&handle)).await?;
    let before = asked.cursor.as_deref().map(|cursor| cursor.parse::<Try>().map_err(|_| foreign()));
    let before = before.transpose()?;
    let rounds = app.engine.parts().store.rounds(&handle.meta.study.id).await;
    let mut rounds = rounds.map_err(unreadable)?;
    rounds.sort_by_key(|round| std::cmp::Reverse(Try::of(round)));
    let wanted = rounds.iter().filter(|r| {
        r.spec().evaluates
            && before.is_none_or(|before| Try::of(r) < before)
            && asked.round.is_none_or(|round| r.id().number == round)
    });
    let limit = asked.limit.unwrap_or(PAGE).clamp(1, PAGE_MAX);
    let (mut items, mut next) = (Vec::new(), None);
    for round in wanted {
        if items.len() == limit {
            let last = items.last();
            next = last.map(|last: &rest::Figures| {
                Try { number: last.round, attempt: last.attempt }.to_string()
            });
            break;
        }
        items.extend(of_round(&app, &handle, round, &asked).await?);
    }
    Ok(Json(Page { items, next }))
}

/// What was counted about a round's candidate, if anybody has.
async fn of_round(
    app: &Arc<App>,
    handle: &Handle,
    round: &AnyRound,
    asked: &FiguresQuery,
) -> Answer<Option<rest::Figures>> {
    let study = &handle.meta.study;
    let Some(e) = &study.evaluation else { return Ok(None) };
    let (round_id, attempt) = (round.id(), round.spec().attempt);
    let store = &app.engine.parts().store;
    let kept = evaluation::kept(store, &handle.meta, e, (round_id, attempt)).await;
    let kept = kept.map_err(|e| problem_of(&e))?;
    let Some(candidate) = kept.candidate else { return Ok(None) };
    let evaluated = kept.evaluated;
    let mut figures = Vec::new();
    for figure in gate::Figure::every(e, study.target()) {
        if matches!(figure, gate::Figure::EachSite(_)) && !asked.sites {
            continue;
        }
        let gates: Vec<_> = study.gates.iter().filter(|g| g.figure == figure).collect();
        for found in figure.of(&evaluated) {
            if asked.figure.as_ref().is_none_or(|begin| found.figure.starts_with(begin)) {
                figures.push(shown(found, &gates));
            }
        }
    }
    Ok(Some(rest::Figures {
        round: round_id.number,
        attempt,
        stage: round.stage().into(),
        candidate_sha256: candidate.to_string(),
        sites: evaluated.by_site.iter().map(|(site, _)| site.name().to_owned()).collect(),
        records: evaluated.all.records(),
        confidence: e.confidence,
        noise: e.noise.as_str().to_owned(),
        figures,
    }))
}

fn shown(found: Found, gates: &[&gate::Declared]) -> rest::Figure {
    let gates = gates.iter().map(|gate| gate.on(found.clone()));
    let gates = gates.map(|said| rest::FigureGate { bound: said.bound, pass: said.pass }).collect();
    let Found { figure, found } = found;
    let (estimate, missing) = match found {
        Ok(estimate) => (Some(estimate), None),
        Err(why) => (None, Some(why)),
    };
    rest::Figure {
        figure,
        value: estimate.map(|e| e.value),
        low: estimate.map(|e| e.low),
        high: estimate.map(|e| e.high),
        missing,
        gates,
    }
}
