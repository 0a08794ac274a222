//! The log's checkpoints and hash tiles over plain HTTP, for any tool that reads C2SP tlog-tiles. Hashes and sizes, never
//! entries: those are for auditors, by the export.
//!
//! Each shard lies under its origin. What is served follows from signed checkpoints alone, so whoever reads here learns what
//! every witness learns: how much the log has grown.

use crate::{shards::Shards, store::Store};
use axum::{
    Router,
    extract::State,
    http::{StatusCode, Uri, header},
    response::{IntoResponse as _, Response},
};
use falaj_core::merkle::{TILE_HEIGHT, TILE_WIDTH, tile_path};
use std::{sync::Arc, time::Duration};
use tokio::{net::TcpListener, sync::Semaphore};
use tokio_util::sync::CancellationToken;

/// A request that takes longer is broken off.
const PATIENCE: Duration = Duration::from_secs(30);
/// Requests at once; more wait.
const AT_ONCE: usize = 64;
/// What never changes may be kept for a year.
const FOR_EVER: &str = "public, max-age=31536000, immutable";
/// Levels of tiles.
const LEVELS: u8 = 8;

/// Serves until shutdown.
pub async fn serve(listener: TcpListener, shards: Shards, shutdown: CancellationToken) {
    let room = Arc::new(Semaphore::new(AT_ONCE));
    let router = Router::new().fallback(answer).with_state((shards, room));
    let served = axum::serve(listener, router)
        .with_graceful_shutdown(async move { shutdown.cancelled().await })
        .await;
    if let Err(e) = served {
        tracing::error!(error = %e, "tiles are not served any more");
    }
}

type Shared = (Shards, Arc<Semaphore>);

async fn answer(State((shards, room)): State<Shared>, uri: Uri) -> Response {
    let Some((store, path)) = find(&shards, uri.path()) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let read = async {
        let _room = room.acquire().await.ok()?;
        let found =
            if path == "checkpoint" { checkpoint(store).await } else { tile(store, path).await };
        found.inspect_err(|e| tracing::error!(error = %e, path, "a tile cannot be read")).ok()
    };
    match tokio::time::timeout(PATIENCE, read).await {
        Ok(Some(Some(response))) => response,
        Ok(Some(None)) => StatusCode::NOT_FOUND.into_response(),
        Ok(None) | Err(_) => StatusCode::SERVICE_UNAVAILABLE.into_response(),
    }
}

/// The shard whose origin a path begins with, and the rest of the path.
fn find<'a>(shards: &'a Shards, path: &'a str) -> Option<(&'a Store, &'a str)> {
    shards.all().iter().find_map(|(store, keys)| {
        let rest = path.strip_prefix('/')?.strip_prefix(keys.newest().name())?;
        Some((store, rest.strip_prefix('/')?))
    })
}

/// The newest checkpoint that was signed, with its cosignatures.
async fn checkpoint(store: &Store) -> anyhow::Result<Option<Response>> {
    let Some((size, note)) = store.newest_checkpoint().await? else { return Ok(None) };
    let note = note + &store.cosignatures(size).await?.concat();
    let headers =
        [(header::CONTENT_TYPE, "text/plain; charset=utf-8"), (header::CACHE_CONTROL, "no-cache")];
    Ok(Some((headers, note).into_response()))
}

/// A tile of as many hashes as a path names, if a signed checkpoint has them.
async fn tile(store: &Store, path: &str) -> anyhow::Result<Option<Response>> {
    let Some((level, n, width)) = parse(path) else { return Ok(None) };
    let Some((size, _)) = store.newest_checkpoint().await? else { return Ok(None) };
    // Whole subtrees of that level in the signed tree.
    let there = size.checked_shr(u32::from(level) * TILE_HEIGHT).unwrap_or(0);
    let below = n.checked_mul(TILE_WIDTH).and_then(|first| first.checked_add(width));
    if below.is_none_or(|below| below > there) {
        return Ok(None);
    }
    let hashes = store.tile(level.into(), n).await?;
    let wanted = usize::try_from(width)?;
    anyhow::ensure!(hashes.len() >= wanted, "{} of {width} hashes are there", hashes.len());
    let bytes: Vec<u8> = hashes[..wanted].iter().flat_map(|hash| hash.0).collect();
    let headers =
        [(header::CONTENT_TYPE, "application/octet-stream"), (header::CACHE_CONTROL, FOR_EVER)];
    Ok(Some((headers, bytes).into_response()))
}

/// Level, number and width of a tile, in the one spelling that it has.
fn parse(path: &str) -> Option<(u8, u64, u64)> {
    let (level, rest) = path.strip_prefix("tile/")?.split_once('/')?;
    let level: u8 = level.parse().ok().filter(|level| *level < LEVELS)?;
    let (number, width) = match rest.split_once(".p/") {
        Some((number, width)) => (number, width.parse().ok().filter(|w| *w < TILE_WIDTH)?),
        None => (rest, TILE_WIDTH),
    };
    let mut n: u64 = 0;
    for part in number.split('/') {
        let digits = part.strip_prefix('x').unwrap_or(part);
        n = n.checked_mul(1_000)?.checked_add(digits.parse().ok()?)?;
    }
    (width > 0 && tile_path(level, n, width) == path).then_some((level, n, width))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_has_one_spelling() {
        for (level, n, width) in [(0, 0, 256), (1, 7, 3), (0, 1_234_067, 256), (7, 999, 255)] {
            assert_eq!(parse(&tile_path(level, n, width)), Some((level, n, width)));
        }
        for wrong in [
            "tile/0/000.p/0",
            "tile/0/000.p/256",
            "tile/0/0",
            "tile/8/000",
            "tile/00/000",
            "tile/entries/000",
            "tile/0/x000/001",
            "tile/0/001/067",
            "tile/0/+01",
            "tile/0/999/999/999/999/999/999/999/999",
            "tile/0/../000",
            "",
        ] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }
}
