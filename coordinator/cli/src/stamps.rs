//! Time-stamps of the log: shown, and written out for whoever wants to check them with tools of their own.

use crate::{client::Client, show};
use anyhow::{Context as _, Result, ensure};
use falaj_certs::timestamp::Stamp;
use falaj_core::id::Digest;
use falaj_proto::rest::{Page, Timestamp};
use serde_json::json;
use std::{fs, path::Path};

/// Shows the stamps of a shard, or writes each with its checkpoint into a folder.
///
/// # Errors
/// What went wrong, and what to do.
pub(crate) async fn run(
    client: &Client,
    shard: Option<&str>,
    output: Option<&Path>,
    json: bool,
) -> Result<()> {
    let all = client.timestamps(shard).await?;
    let Some(folder) = output else {
        return show::answer(json, &all, table);
    };
    fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
    for stamp in &all.items {
        let answer = client.timestamp(stamp.tree_size, shard).await?;
        let opened = Stamp::open(&answer, &Digest::of(stamp.note.as_bytes()));
        opened.context("do not believe this answer")?;
        ensure!(
            Digest::of(&answer).to_string() == stamp.token_sha256,
            "the time-stamp of {} entries is not the one that was named: do not believe this answer",
            stamp.tree_size
        );
        let note = folder.join(format!("checkpoint-{}", stamp.tree_size));
        let token = folder.join(format!("checkpoint-{}.tsr", stamp.tree_size));
        fs::write(&note, &stamp.note).with_context(|| format!("writing {}", note.display()))?;
        fs::write(&token, &answer).with_context(|| format!("writing {}", token.display()))?;
        let command = format!(
            "openssl ts -verify -in {} -data {} -CAfile CA.pem",
            token.display(),
            note.display()
        );
        let row = json!({ "tree_size": stamp.tree_size, "time": stamp.time, "command": command });
        show::line(&if json { row.to_string() } else { command })?;
    }
    if !json {
        eprintln!(
            "{} time-stamps; CA.pem is the certificate of who issued the authority's, as you know it from elsewhere",
            all.items.len()
        );
    }
    Ok(())
}

fn table(all: &Page<Timestamp>) -> String {
    let row = |stamp: &Timestamp| {
        [
            stamp.tree_size.to_string(),
            stamp.time.clone(),
            stamp.index.to_string(),
            stamp.authority.clone(),
        ]
    };
    show::table(["ENTRIES", "TIME", "INDEX", "AUTHORITY"], all.items.iter().map(row))
}
