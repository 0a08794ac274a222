//! What a mirror of the log lacks: the newest checkpoint, and the entries that it has not.
//!
//! It is an export like any other, to the place that the caller names. Entries go as they were hashed, so people are in it
//! under their pseudonyms only. Of a bucket the caller says where it is spoken to, and policy decides over that, too, as over what
//! the coordinator itself speaks to.

use super::{Answer, App, Ctx, Who, export_failed, log::malformed, send_file, shards::ShardQuery};
use crate::{
    endpoints,
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
use std::net::IpAddr;
use utoipa::IntoParams;

/// The longest name of a host.
const HOST_BYTES_MAX: usize = 253;
/// Addresses of one host.
const ADDRESSES_MAX: usize = 32;

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
    /// Of a mirror in a bucket: the host to which it is written. Absent when it is a folder.
    host: Option<String>,
    /// With `host` all of its addresses to which connections may be made, with commas between them: 32 at most.
    addresses: Option<String>,
}

impl MirrorQuery {
    /// Where the mirror is written to over the network, if it is.
    fn at(&self) -> Result<Option<(&str, Vec<IpAddr>)>, String> {
        let (host, addresses) = match (&self.host, &self.addresses) {
            (None, None) => return Ok(None),
            (Some(host), Some(addresses)) => (host, addresses),
            _ => return Err("`host` and `addresses` come together".into()),
        };
        if host.is_empty() || host.len() > HOST_BYTES_MAX {
            return Err(format!("`host` has {} bytes; 1 to {HOST_BYTES_MAX} may be", host.len()));
        }
        let address = |text: &str| {
            text.parse().map_err(|_| format!("`addresses`: `{text}` is no IP address"))
        };
        let found: Vec<IpAddr> =
            addresses.split(',').take(ADDRESSES_MAX + 1).map(address).collect::<Result<_, _>>()?;
        if found.len() > ADDRESSES_MAX {
            return Err(format!("`addresses` has more than {ADDRESSES_MAX}"));
        }
        Ok(Some((host, found)))
    }
}

/// What a mirror of the log lacks, as one tar: `checkpoint`, up to and including this access, and the bundles of entries
/// (C2SP tlog-tiles) from the one on in which the mirror ends.
#[utoipa::path(get, path = "/api/v1/log/mirror", params(MirrorQuery), responses((status = 200, body = Vec<u8>, content_type = "application/x-tar"), (status = 400, body = ProblemJson), (status = 403, body = ProblemJson), (status = 404, body = ProblemJson), (status = 410, body = ProblemJson), (status = 429, body = ProblemJson), (status = 503, body = ProblemJson)))]
pub(super) async fn mirror(
    State(app): Ctx,
    Extension(peer): Who,
    Query(query): Query<MirrorQuery>,
) -> Answer<Response> {
    let wanted = ShardQuery { shard: query.shard.clone() };
    let shard = wanted.find(&app);
    let (place, at): (Result<Place, _>, _) = (query.place.parse(), query.at());
    let mut asked = wanted.asked(&shard);
    asked.push(("from", query.from.to_string()));
    asked.extend(place.as_ref().ok().map(|place| ("place", place.to_string())));
    if let Ok(Some((host, addresses))) = &at {
        let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
        asked.extend([("host", (*host).to_owned()), ("addresses", addresses.join(","))]);
    }
    let intent = app.grant_asked(&peer, Action::LogExport, None, &asked).await?;
    let serving = app.engine.parts().outcomes.serving(intent);
    let place = place.map_err(|e| malformed(format!("`place`: {e}")))?;
    if let Some((host, addresses)) = at.map_err(malformed)? {
        may_be_at(&app, (host, &addresses), &place).await?;
    }
    let (store, _) = shard?;
    let room = app.room_to_export()?;
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
    send_file((serving, room), &file).await
}

/// Has policy decide over the host of a bucket.
async fn may_be_at(app: &App, at: (&str, &[IpAddr]), place: &Place) -> Result<(), Problem> {
    let parts = app.engine.parts();
    let by = (&parts.policy, &app.trusted);
    match endpoints::mirrored(by, at, place) {
        Ok((decision, draft)) => {
            app.engine.record(Action::EndpointUse, decision, draft).await.map(|_| ())
        }
        Err(e) => {
            tracing::error!(error = %format!("{e:#}"), "a mirror cannot be decided over");
            Err(Code::Internal.because("the coordinator's own certificate cannot be read"))
        }
    }
}

async fn newest(app: &App, store: &Store) -> Result<(u64, String), Problem> {
    if store.ended() {
        app.last_checkpoint(store).await
    } else {
        app.checkpointer.sign().await.map_err(|e| problem_of(&e))
    }
}
