//! What a mirror of the log lacks: the newest checkpoint, and the entries that it has not.
//!
//! It is an export like any other, to the place that the caller names. Entries go as they were hashed, so people are in it
//! under their pseudonyms only.

use super::{Answer, App, Ctx, Who, export_failed, log::malformed, send_file, shards::ShardQuery};
use crate::{
    engine::{problem_of, unreadable},
    export,
    policy::Action,
    store::Store,
};
use axum::{
    Extension,
    extract::{Query, State},
    response::Response,
};
use falaj_core::id::Place;
use falaj_proto::problem::{Code, Problem, ProblemJson};
use serde::Deserialize;
use utoipa::IntoParams;

/// What is there already, and where that is.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct MirrorQuery {
    /// Entries that the mirror has.
    from: u64,
    /// Where the mirror lies: a place such as `ae-on/ae-az`.
    place: String,
    /// The origin of a shard; the one that is written when absent.
    shard: Option<String>,
}

/// What a mirror of the log lacks, as one tar: `checkpoint`, up to and including this access, and the bundles of entries
/// (C2SP tlog-tiles) from the one on in which the mirror ends.
#[utoipa::path(get, path = "/api/v1/log/mirror", params(MirrorQuery), responses((status = 200, body = Vec<u8>, content_type = "application/x-tar"), (status = 400, body = ProblemJson), (status = 403, body = ProblemJson), (status = 404, body = ProblemJson), (status = 410, body = ProblemJson), (status = 503, body = ProblemJson)))]
pub(super) async fn mirror(
    State(app): Ctx,
    Extension(peer): Who,
    Query(query): Query<MirrorQuery>,
) -> Answer<Response> {
    let wanted = ShardQuery { shard: query.shard };
    let shard = wanted.find(&app);
    let place: Result<Place, _> = query.place.parse();
    let mut asked = wanted.asked(&shard);
    asked.push(("from", query.from.to_string()));
    asked.extend(place.as_ref().ok().map(|place| ("place", place.to_string())));
    let intent = app.grant_asked(&peer, Action::LogExport, None, &asked).await?;
    place.map_err(|e| malformed(format!("`place`: {e}")))?;
    let (store, _) = shard?;
    store.check_whole().await.map_err(unreadable)?;
    let (tree_size, note) = newest(&app, store).await?;
    if query.from > tree_size {
        let why = format!(
            "the log has {tree_size} entries, and the mirror {}: it is another log's, or this one went back",
            query.from
        );
        return Err(Code::NotFound.because(why).into());
    }
    let file = app.scratch_file()?;
    let note = note + &store.cosignatures(tree_size).await.map_err(unreadable)?.concat();
    export::mirror(store, &note, (query.from, tree_size), file.path())
        .await
        .map_err(|e| export_failed(&e))?;
    send_file(&app, intent, &file).await
}

async fn newest(app: &App, store: &Store) -> Result<(u64, String), Problem> {
    if store.ended() {
        app.last_checkpoint(store).await
    } else {
        app.checkpointer.sign().await.map_err(|e| problem_of(&e))
    }
}
