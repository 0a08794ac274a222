//! Lineage, both ways: everything that made a version, and the versions that learned from a site, a place or an update.

use super::{
    Answer, App, Ctx, Who,
    pages::{foreign, limited},
    versions::{malformed, shown},
};
use crate::policy::Action;
use axum::{
    Extension, Json,
    extract::{Path, Query, State},
};
use falaj_core::{
    audit::objects::Object,
    id::{Place, SiteId, StudyId},
    registry::{
        lineage::{Ancestry, Asked, Remedy, Source, Touched},
        provenance::{GateSaid, UpdateCounted},
    },
    time::Timestamp,
};
use falaj_proto::{
    problem::{Problem, ProblemJson},
    rest,
};
use serde::Deserialize;
use utoipa::IntoParams;

/// Everything that made a version, and what became of it, as the log tells.
#[utoipa::path(get, path = "/api/v1/studies/{id}/versions/{version}/lineage", params(("id" = String, Path), ("version" = String, Path)), responses((status = 200, body = rest::VersionLineage), (status = 403, body = ProblemJson), (status = 404, body = ProblemJson), (status = 410, body = ProblemJson)))]
pub(super) async fn ancestry(
    State(app): Ctx,
    Extension(peer): Who,
    Path((id, version)): Path<(String, String)>,
) -> Answer<Json<rest::VersionLineage>> {
    let (handle, registry, revision, number) =
        app.version(&peer, Action::StudyRead, &id, &version).await?;
    let ancestry = app.versions.ancestry(&handle.meta.study.id, number).await?;
    Ok(Json(told(&app, shown(&registry, revision, number)?, ancestry)))
}

pub(super) fn gate_said(said: GateSaid) -> rest::LineageGate {
    rest::LineageGate {
        round: said.round,
        name: said.name,
        scope: said.scope,
        figure: said.figure,
        interval: said.interval,
        bound: said.bound,
        pass: said.pass,
    }
}

fn told(app: &App, version: rest::Version, of: Ancestry) -> rest::VersionLineage {
    let update = |u: &UpdateCounted| rest::LineageUpdate {
        site: u.site.to_string(),
        payload_sha256: u.payload.to_string(),
        header_sha256: u.header.to_string(),
        weight: u.weight,
        epsilon: u.epsilon.clone(),
        index: u.index,
    };
    let rounds = of.rounds.iter().map(|round| rest::LineageRound {
        round: round.number,
        base_sha256: round.base.to_string(),
        model_sha256: round.model.to_string(),
        index: round.index,
        updates: round.updates.iter().map(update).collect(),
    });
    let gates = of.gates.into_iter().map(gate_said);
    let evaluations = of.evaluations.iter().map(|evaluated| rest::LineageEvaluation {
        round: evaluated.round,
        site: evaluated.site.to_string(),
        index: evaluated.index,
    });
    let policies = of.policy_sets.iter().map(|(set, index)| rest::LineagePolicies {
        policy_set_sha256: set.to_string(),
        index: *index,
    });
    let approvals = of.approvals.into_iter().map(|approval| rest::LineageApproval {
        stage: approval.promotion.stage.as_str().to_owned(),
        by: app.named(&Object::Person(approval.giver).to_string()),
        approval: approval.id,
        index: approval.index,
    });
    let moves = of.moves.into_iter().map(|moved| rest::LineageMove {
        kind: moved.kind.as_str().to_owned(),
        stage: moved.stage.as_str().to_owned(),
        at: moved.ts,
        reason: moved.reason,
        approvals: moved.approvals,
        gates: moved.gates.into_iter().map(gate_said).collect(),
        index: moved.index,
    });
    rest::VersionLineage {
        version,
        index: of.made,
        submitted: of.submitted,
        rounds: rounds.collect(),
        evaluations: evaluations.collect(),
        gates: gates.collect(),
        policies: policies.collect(),
        approvals: approvals.collect(),
        moves: moves.collect(),
    }
}

/// From what. One of `site`, `place` and `update`.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct LineageQuery {
    /// A site, by SPIFFE ID.
    site: Option<String>,
    /// A place such as `ae-on/ae-az`: every site in it.
    place: Option<String>,
    /// An update, by the SHA-256 of its payload or of its header.
    update: Option<String>,
    /// Accepted not earlier than this: RFC 3339, or a date in UTC.
    since: Option<String>,
    /// Accepted earlier than this: RFC 3339, or a date in UTC, which is included to its end.
    until: Option<String>,
    /// Versions after this one; `next` of one page is the `cursor` of the one after it.
    cursor: Option<String>,
    /// Versions on the page, at most 200; 50 when absent.
    limit: Option<u32>,
}

impl LineageQuery {
    /// After which version the page begins, and how many are on it.
    fn page(&self) -> Result<(Option<(StudyId, u32)>, usize), Problem> {
        let after = self.cursor.as_deref().map(|cursor| {
            let (study, version) = cursor.rsplit_once(':')?;
            Some((study.parse::<StudyId>().ok()?, version.parse::<u32>().ok()?))
        });
        match after {
            Some(None) => Err(foreign()),
            after => Ok((after.flatten(), limited(self.limit)? as usize)),
        }
    }

    fn read(&self) -> Result<Asked, Problem> {
        let source = match (&self.site, &self.place, &self.update) {
            (Some(site), None, None) => {
                Source::Site(site.parse::<SiteId>().map_err(|e| malformed(format!("`site`: {e}")))?)
            }
            (None, Some(place), None) => Source::Place(
                place.parse::<Place>().map_err(|e| malformed(format!("`place`: {e}")))?,
            ),
            (None, None, Some(update)) => {
                Source::Update(update.parse().map_err(|e| malformed(format!("`update`: {e}")))?)
            }
            _ => return Err(malformed("ask by one of `site`, `place` and `update`")),
        };
        let time = |name, text: Option<&String>, days| -> Result<String, Problem> {
            let point = text.map(|text| super::log::point(name, text, days)).transpose()?;
            Ok(point.map(|point: Timestamp| point.to_string()).unwrap_or_default())
        };
        Ok(Asked {
            source,
            since: time("since", self.since.as_ref(), 0)?,
            until: time("until", self.until.as_ref(), 1)?,
        })
    }

    /// What is asked for, in words that are known.
    fn asked(asked: &Asked) -> Vec<(&'static str, String)> {
        let mut said = vec![match &asked.source {
            Source::Site(site) => ("object", site.to_string()),
            Source::Place(place) => ("of_place", place.to_string()),
            Source::Update(update) => ("object", update.to_string()),
        }];
        for (name, time) in [("since", &asked.since), ("until", &asked.until)] {
            said.extend((!time.is_empty()).then(|| (name, time.clone())));
        }
        said
    }
}

/// The versions that learned from a site, a place or an update, and what a withdrawal of consent makes of each.
#[utoipa::path(get, path = "/api/v1/lineage", params(LineageQuery), responses((status = 200, body = rest::Touched), (status = 400, body = ProblemJson), (status = 403, body = ProblemJson)))]
pub(super) async fn lineage(
    State(app): Ctx,
    Extension(peer): Who,
    Query(query): Query<LineageQuery>,
) -> Answer<Json<rest::Touched>> {
    let asked = query.read();
    let said = asked.as_ref().map(LineageQuery::asked).unwrap_or_default();
    app.grant_asked(&peer, Action::LogRead, None, &said).await?;
    let (asked, (after, limit)) = (asked?, query.page()?);
    let (lineage, deleted) = app.versions.lineage().await?;
    let version = |touched: Touched| rest::TouchedVersion {
        study: touched.study.to_string(),
        version: touched.version.number,
        stage: touched.version.stage.as_str().to_owned(),
        round: touched.version.round,
        model_sha256: touched.version.model.to_string(),
        sites: touched.sites.iter().map(ToString::to_string).collect(),
        updates: touched.updates,
        first_round: touched.rounds.0,
        last_round: touched.rounds.1,
        first_index: touched.indices.0,
        last_index: touched.indices.1,
        remedy: touched.remedy.as_str().to_owned(),
        back_to: match touched.remedy {
            Remedy::RollBack(number) => Some(number),
            _ => None,
        },
        untouched_round: touched.untouched,
    };
    let mut touched = lineage.touched(&asked);
    if let Some(after) = after {
        touched.retain(|touched| (&touched.study, touched.version.number) > (&after.0, after.1));
    }
    let more = touched.len() > limit;
    touched.truncate(limit);
    let versions: Vec<rest::TouchedVersion> = touched.into_iter().map(version).collect();
    let next = versions.last().filter(|_| more);
    let next = next.map(|last| format!("{}:{}", last.study, last.version));
    Ok(Json(rest::Touched { versions, deleted, next }))
}
