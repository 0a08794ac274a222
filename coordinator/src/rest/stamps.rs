//! Time-stamps of the log, as an authority gave them.

use super::{
    Answer, Ctx, Who,
    pages::{foreign, limited},
    shards::ShardQuery,
};
use crate::{
    engine::unreadable,
    policy::Action,
    store::{Store, row::TimestampRow},
};
use axum::{
    Extension, Json,
    extract::{Path, Query, State},
    http::header,
    response::{IntoResponse as _, Response},
};
use falaj_certs::timestamp::REPLY_TYPE;
use falaj_core::id::Digest;
use falaj_proto::{
    problem::{Code, Problem, ProblemJson},
    rest::{Page, Timestamp},
};
use serde::Deserialize;
use utoipa::IntoParams;

/// Which time-stamps.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct TimestampsQuery {
    /// `next` of the page before this one.
    cursor: Option<String>,
    /// On the page, at most 200; 50 when absent.
    limit: Option<u32>,
    /// The origin of a shard; the one that is written when absent.
    shard: Option<String>,
}

/// Checkpoints that an authority has stamped with the time, a page at a time.
#[utoipa::path(get, path = "/api/v1/log/timestamps", params(TimestampsQuery), responses((status = 200, body = Page<Timestamp>), (status = 403, body = ProblemJson), (status = 404, body = ProblemJson)))]
pub(super) async fn timestamps(
    State(app): Ctx,
    Extension(peer): Who,
    Query(query): Query<TimestampsQuery>,
) -> Answer<Json<Page<Timestamp>>> {
    let after = query.cursor.as_deref().map_or(Ok(0), str::parse::<u64>);
    let wanted = ShardQuery { shard: query.shard };
    let shard = wanted.find(&app);
    let mut asked = wanted.asked(&shard);
    asked.push(("timestamps", after.as_ref().copied().unwrap_or(0).to_string()));
    app.grant_asked(&peer, Action::LogRead, None, &asked).await?;
    let (store, _) = shard?;
    let (after, limit) = (after.map_err(|_| foreign())?, limited(query.limit)?);
    // One more than is shown says whether there is another page.
    let rows = store.timestamps(after, u64::MAX, limit + 1).await;
    let mut rows = rows.map_err(unreadable)?;
    let more = rows.len() > limit as usize;
    rows.truncate(limit as usize);
    let next = rows.last().filter(|_| more).map(|row| row.tree_size.to_string());
    let mut items = Vec::with_capacity(rows.len());
    for row in rows {
        items.push(stamp_shown(store, row).await?);
    }
    Ok(Json(Page { items, next }))
}

/// The time-stamp of the checkpoint of so many entries, as the authority answered (RFC 3161, `TimeStampResp`).
#[utoipa::path(get, path = "/api/v1/log/timestamps/{tree_size}", params(("tree_size" = u64, Path), ShardQuery), responses((status = 200, body = Vec<u8>, content_type = "application/timestamp-reply"), (status = 403, body = ProblemJson), (status = 404, body = ProblemJson)))]
pub(super) async fn timestamp(
    State(app): Ctx,
    Extension(peer): Who,
    Path(tree_size): Path<u64>,
    Query(query): Query<ShardQuery>,
) -> Answer<Response> {
    let shard = query.find(&app);
    let mut asked = query.asked(&shard);
    asked.push(("timestamp", tree_size.to_string()));
    app.grant_asked(&peer, Action::LogRead, None, &asked).await?;
    let (store, _) = shard?;
    let after = tree_size.saturating_sub(1);
    let rows = store.timestamps(after, u64::MAX, 1).await.map_err(unreadable)?;
    let row = rows.into_iter().find(|row| row.tree_size == tree_size).ok_or_else(|| {
        Code::NotFound.because(format!("no checkpoint of {tree_size} entries was stamped"))
    })?;
    Ok(([(header::CONTENT_TYPE, REPLY_TYPE)], row.answer).into_response())
}

async fn stamp_shown(store: &Store, row: TimestampRow) -> Result<Timestamp, Problem> {
    let note = store.checkpoint(row.tree_size).await.map_err(unreadable)?;
    let gone = || Code::Internal.because("a checkpoint that was stamped is not in the store");
    Ok(Timestamp {
        tree_size: row.tree_size,
        time: row.stamped.to_string(),
        authority: row.authority,
        checkpoint_sha256: row.imprint.to_string(),
        token_sha256: Digest::of(&row.answer).to_string(),
        index: row.log_index,
        note: note.ok_or_else(gone)?,
    })
}
