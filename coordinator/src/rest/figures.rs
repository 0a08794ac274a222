//! Figures of candidates: what sites have counted on records that they hold out, and how the updates that went into them compare.

use super::{
    Answer, App, Ctx, Who,
    gates::verdict,
    pages::{Newest, Try, foreign},
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
    canon::Node,
    gate::{self, Found},
    id::{Digest, SiteId},
    robust::{Compared, Standing},
    round::AnyRound,
    study::Study,
};
use falaj_proto::{
    problem::ProblemJson,
    rest::{self, Page},
};
use serde::Deserialize;
use std::{collections::BTreeSet, sync::Arc};
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
    /// This round alone, every try of it; every round that was evaluated, or whose updates were compared, when absent.
    round: Option<u32>,
    /// Figures that begin with this alone: `roc_auc`, `recall of SEX`.
    figure: Option<String>,
    /// What each site has counted alone, too.
    #[serde(default)]
    sites: bool,
    /// Rounds before this one; `next` of one page is the `cursor` of the one after it.
    cursor: Option<String>,
    /// Rounds on the page, at most 50.
    limit: Option<usize>,
}

/// Figures of candidates, the newest round first: each with its interval, and what the study's gates say of it. Where a gate asks how
/// updates compare with each other, those figures of each update are among them, as the log has them with the verdict.
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
    let (store, study) = (&app.engine.parts().store, &handle.meta.study);
    let (mut items, mut next) = (Vec::new(), None);
    let compares = compares(study);
    if study.evaluation.is_none() && !compares {
        return Ok(Json(Page { items, next }));
    }
    let limit = asked.limit.unwrap_or(PAGE).clamp(1, PAGE_MAX);
    let mut rounds = Newest::of((store, &study.id), before, asked.round);
    while let Some(round) = rounds.next().await? {
        let attempt = round.spec().attempt;
        let sites =
            if compares { store.counted_sites(round.id(), attempt).await } else { Ok(Vec::new()) };
        let sites: BTreeSet<SiteId> = sites.map_err(unreadable)?.into_iter().collect();
        if !round.spec().evaluates && sites.is_empty() {
            continue;
        }
        if items.len() == limit {
            let last = items.last();
            next = last.map(|last: &rest::Figures| {
                Try { number: last.round, attempt: last.attempt }.to_string()
            });
            break;
        }
        items.extend(of_round(&app, &handle, &round, (&asked, &sites)).await?);
    }
    Ok(Json(Page { items, next }))
}

/// What was counted about a round's candidate, if anybody has, and how its updates compare, if anybody has asked.
async fn of_round(
    app: &Arc<App>,
    handle: &Handle,
    round: &AnyRound,
    (asked, updated): (&FiguresQuery, &BTreeSet<SiteId>),
) -> Answer<Option<rest::Figures>> {
    let study = &handle.meta.study;
    let Try { number, attempt } = Try::of(round);
    let mut told = rest::Figures {
        round: number,
        attempt,
        stage: round.stage().into(),
        candidate_sha256: String::new(),
        sites: Vec::new(),
        records: 0,
        confidence: None,
        noise: None,
        figures: Vec::new(),
    };
    let is_wanted =
        |found: &Found| asked.figure.as_ref().is_none_or(|begin| found.figure.starts_with(begin));
    let mut candidate = None;
    if let Some(e) = study.evaluation.as_ref().filter(|_| round.spec().evaluates) {
        let store = &app.engine.parts().store;
        let kept = evaluation::kept(store, &handle.meta, e, (round.id(), attempt)).await;
        let kept = kept.map_err(|e| problem_of(&e))?;
        if kept.candidate.is_some() {
            candidate = kept.candidate;
            let evaluated = kept.evaluated;
            for figure in gate::Figure::every(e, study.target()) {
                if matches!(figure, gate::Figure::EachSite(_)) && !asked.sites {
                    continue;
                }
                let gates: Vec<_> = study.gates.iter().filter(|g| g.figure == figure).collect();
                let found = figure.of(&evaluated).into_iter().filter(is_wanted);
                told.figures.extend(found.map(|found| shown(found, &gates)));
            }
            let names = evaluated.names();
            let sites = evaluated.by_site.keys().filter_map(|site| names.get(site).cloned());
            told.sites = sites.collect();
            told.records = evaluated.all.records();
            told.confidence = Some(e.confidence);
            told.noise = Some(e.noise.as_str().to_owned());
        }
    }
    if let Some((of, compared)) = of_updates(app, round, updated).await? {
        candidate = candidate.or(Some(of));
        for standing in Standing::ALL {
            let figure = gate::Figure::EachUpdate(standing);
            let gates: Vec<_> = study.gates.iter().filter(|g| g.figure == figure).collect();
            let found = gate::of_updates(&compared, standing).into_iter().filter(is_wanted);
            told.figures.extend(found.map(|found| shown(found, &gates)));
        }
    }
    Ok(candidate.map(|candidate| {
        told.candidate_sha256 = candidate.to_string();
        told
    }))
}

/// Whether a study has gates for which updates are compared with each other.
fn compares(study: &Study) -> bool {
    study.gates.iter().any(|gate| matches!(gate.figure, gate::Figure::EachUpdate(_)))
}

/// How the updates of these sites, which were counted in a round, compare with each other, and the candidate that they make, as the
/// log has it with the round's verdict.
async fn of_updates(
    app: &App,
    round: &AnyRound,
    sites: &BTreeSet<SiteId>,
) -> Answer<Option<(Digest, Compared)>> {
    if sites.is_empty() {
        return Ok(None);
    }
    let Some(entry) = verdict(app, round).await? else { return Ok(None) };
    let body = entry.body();
    let (Some(candidate), Some(lines)) = (body.find("model_sha256"), body.member("compared"))
    else {
        return Ok(None);
    };
    let sites: Vec<SiteId> = sites.iter().cloned().collect();
    let compared = Compared::parse(lines.items().filter_map(Node::as_text), &sites);
    Ok(compared.ok().map(|compared| (candidate, compared)))
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
