//! The shards of the log, and which one a request is about.

use super::{
    Answer, App, Asked, Ctx, Who,
    asking::{Asking, asker},
    pages::PageQuery,
    to_the_end,
};
use crate::{clock, engine::unreadable, policy::Action, store::Store};
use axum::{
    Extension, Json,
    extract::{Query, State},
    http::StatusCode,
};
use falaj_core::{
    id::Digest,
    succession::{LogKeys, ORIGIN_CHARS_MAX},
};
use falaj_proto::{
    problem::{Code, Problem, ProblemJson},
    rest::{LogShard, Page, Pruning, PruningRequest},
};
use serde::Deserialize;
use utoipa::IntoParams;

/// A shard, and who speaks for it.
pub(super) type Shard = (Store, LogKeys);

/// Which shard of the log.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct ShardQuery {
    /// The origin of a shard; the one that is written when absent.
    pub(super) shard: Option<String>,
}

impl ShardQuery {
    pub(super) fn find<'a>(&self, app: &'a App) -> Result<&'a Shard, Problem> {
        let shards = &app.engine.parts().shards;
        let Some(origin) = &self.shard else { return Ok(shards.newest()) };
        let known = || {
            let known: Vec<_> = shards.all().iter().map(|(_, keys)| keys.newest().name()).collect();
            let origin: String = origin.chars().take(ORIGIN_CHARS_MAX).collect();
            Code::NotFound.because(format!(
                "the log has no shard {origin}; there are {}, as `falaj log shards` lists them",
                known.join(", ")
            ))
        };
        shards.find(origin).ok_or_else(known)
    }

    /// What is asked for, in words that are known.
    pub(super) fn asked(&self, found: &Result<&Shard, Problem>) -> Asked {
        let named = found.as_ref().ok().filter(|_| self.shard.is_some());
        named.map(|(_, keys)| ("shard", keys.newest().name().to_owned())).into_iter().collect()
    }
}

/// The shard that a request is about, and what the log says of that.
///
/// # Errors
/// When there is no shard of this origin.
pub(super) fn named<'a>(
    app: &'a App,
    shard: Option<&String>,
) -> Result<(&'a Shard, Asked), Problem> {
    let wanted = ShardQuery { shard: shard.cloned() };
    let found = wanted.find(app);
    let asked = wanted.asked(&found);
    Ok((found?, asked))
}

/// The shards of the log, oldest first: each goes on where the one before ended.
#[utoipa::path(get, path = "/api/v1/log/shards", params(PageQuery), responses((status = 200, body = Page<LogShard>), (status = 403, body = ProblemJson)))]
pub(super) async fn shards(
    State(app): Ctx,
    Extension(peer): Who,
    Query(query): Query<PageQuery>,
) -> Answer<Json<Page<LogShard>>> {
    app.grant_asked(&peer, Action::LogRead, None, &[("shards", "all".to_owned())]).await?;
    let mut items = Vec::new();
    // None is ever taken away, nor put before another.
    let shards = app.engine.parts().shards.all().iter().enumerate();
    let (shards, next) = query.of(shards, |(place, _)| *place)?;
    for (_, (store, keys)) in shards {
        items.push(LogShard {
            origin: keys.newest().name().to_owned(),
            entries: store.size().await.map_err(unreadable)?,
            ended: store.ended(),
            pruned: store.pruned().await.map_err(unreadable)?,
            log_verifier_key: keys.newest().to_string(),
            log_ml_dsa_key: keys.ml_dsa().map(ToString::to_string),
        });
    }
    Ok(Json(Page { items, next }))
}

/// Deletes the contents of a shard that has ended, under the coordinator's policy of retention.
#[utoipa::path(post, path = "/api/v1/log/prunings", request_body = PruningRequest, responses((status = 201, body = Pruning), (status = 400, body = ProblemJson), (status = 403, body = ProblemJson), (status = 404, body = ProblemJson), (status = 409, body = ProblemJson), (status = 410, body = ProblemJson)))]
pub(super) async fn prune(
    State(app): Ctx,
    Extension(peer): Who,
    asking: Asking,
) -> Answer<(StatusCode, Json<Pruning>)> {
    let (asked, once): (PruningRequest, _) = app.document(&peer, Action::LogPrune, &asking).await?;
    let Ok(bundle) = asked.bundle_sha256.parse::<Digest>() else {
        app.grant(&peer, Action::LogPrune, None).await?;
        let why = "`bundle_sha256` is the SHA-256 of the bundle, 64 lower-case hexadecimal digits";
        return Err(Code::Malformed.because(why).into());
    };
    let pruning = to_the_end("a pruning", async move {
        let asker = asker(&peer, once)?;
        let shard = (&*asked.shard, &bundle);
        let by = (&*app.scratch, &app.checkpointer);
        let done = app.prunings.prune(asker, shard, by, clock::now()).await?;
        Ok(Pruning { shard: asked.shard, entries: done.entries, index: done.index })
    });
    Ok((StatusCode::CREATED, Json(pruning.await?)))
}
