//! The audit log, asked: entries, who accessed what with proofs, and entries as they come.

use crate::{
    args::{Accessed, Filter, LogCommand, Span, Which},
    client::{Client, ClientError},
    download::{digest_of, save_as_is},
    feed::{Feed, Format, Receiver},
    mirror::Mirror,
    show, stamps,
};
use anyhow::{Context as _, Result, bail, ensure};
use falaj_core::{
    audit::{Entry, Kind, objects::objects, person::Disclosure},
    id::Digest,
    merkle::leaf_hash,
    note::VerifierKey,
    witness::InclusionProof,
};
use falaj_proto::{
    problem::ProblemJson,
    rest::{LogEntry, LogShard, Page, ProvenEntry, PruningRequest, Witness},
};
use serde::Serialize;
use serde_json::{Value, json};
use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

/// Entries asked for at once.
const ENTRIES_PER_PAGE: u32 = 1_000;
/// How often a coordinator that is away is tried again before `tail` gives up.
const RETRIES: u32 = 30;
/// How long to wait in between.
const PAUSE: Duration = Duration::from_secs(1);

/// Does what the command line says about the log.
///
/// # Errors
/// What went wrong, and what to do.
pub(crate) async fn run(client: &Client, command: LogCommand, json: bool) -> Result<()> {
    match command {
        LogCommand::Checkpoint => {
            show::answer(json, &client.checkpoint().await?, |c| c.note.clone())
        }
        LogCommand::Witnesses => show::answer(json, &client.witnesses().await?, |page| {
            let row =
                |w: &Witness| [w.witness.clone(), w.tree_size.to_string(), w.since.to_string()];
            show::table(["WITNESS", "SAW ENTRIES", "SINCE THEN"], page.items.iter().map(row))
        }),
        LogCommand::Entries { kind, from, limit, to_place } => {
            let filter = Filter { kind, to_place, ..Filter::default() };
            let mut all = Page { items: Vec::new(), next: None };
            let take = |page: Vec<LogEntry>| {
                all.items.extend(page);
                Ok(())
            };
            entries(client, &filter, None, from, limit, take).await?;
            show::answer(json, &all, |all| entries_table(None, &all.items))
        }
        LogCommand::Query { filter, which, from, limit } => {
            query(client, &filter, &which, from, limit, json).await
        }
        LogCommand::WhoAccessed(asked) => accessed(client, asked, json).await,
        LogCommand::Tail { last, follow, after, shard, format, to, to_place, to_ca } => {
            let mut feed =
                feed(client, json, shard.as_deref(), format, to, to_ca.as_deref()).await?;
            let mut asked = vec![("last", last.to_string()), ("follow", follow.to_string())];
            asked.extend(shard.map(|origin| ("shard", origin)));
            asked.extend(to_place.map(|place| ("place", place.to_string())));
            tail(client, (&asked, follow), after, &mut feed).await
        }
        LogCommand::Shards => show::answer(json, &client.shards().await?, |page| {
            let row = |s: &LogShard| {
                let state = match (s.pruned, s.ended) {
                    (true, _) => "pruned",
                    (_, true) => "ended",
                    _ => "written",
                };
                [s.origin.clone(), s.entries.to_string(), state.to_owned()]
            };
            show::table(["SHARD", "ENTRIES", "STATE"], page.items.iter().map(row))
        }),
        LogCommand::Prune { origin: shard, bundle } => {
            let bundle_sha256 = digest_of(&bundle, json).await?.to_string();
            let done = client.prune(&PruningRequest { shard, bundle_sha256 }).await?;
            show::answer(json, &done, |done| {
                format!(
                    "the contents of {} entries of {} are deleted, entry {} says so; keep {}",
                    done.entries,
                    done.shard,
                    done.index,
                    bundle.display()
                )
            })
        }
        LogCommand::Prove { index, output, shard } => {
            let proof = client.proof(index, shard).await?;
            let Some(file) = output else {
                return show::answer(json, &json!({ "index": index, "proof": proof }), |_| {
                    proof.trim_end().to_owned()
                });
            };
            std::fs::write(&file, &proof).with_context(|| format!("writing {}", file.display()))?;
            show::answer(json, &json!({ "index": index, "file": file }), |_| {
                format!("{}; check it with `falaj-verify --proof`", file.display())
            })
        }
        LogCommand::Timestamps { output, shard } => {
            stamps::run(client, shard.as_deref(), output.as_deref(), json).await
        }
        LogCommand::Mirror { destination, to_place, shard, log_key, follow, every } => {
            let every = follow.then(|| Duration::from_secs(every));
            let mirror = Mirror { client, place: to_place, shard, log_key, json };
            mirror.run(&destination, every).await
        }
        LogCommand::Export { output, tree_size, shard, timestamp, to_place } => {
            let answer = client.export(tree_size, shard, timestamp, to_place).await?;
            let bytes = save_as_is(answer, &output, json).await?;
            let answer = json!({ "file": output, "bytes": bytes });
            let (file, size) = (output.display(), show::bytes(bytes));
            show::answer(json, &answer, |_| {
                format!("{file} ({size}); check it with `falaj-verify {file}`")
            })
        }
    }
}

fn span_filters(span: &Span) -> Vec<(&'static str, String)> {
    let given = [("since", &span.since), ("until", &span.until)];
    given.into_iter().filter_map(|(name, value)| Some((name, value.clone()?))).collect()
}

/// The shards to ask, oldest first, each with the key that its answer is checked by. The one that is written has no name
/// unless it was asked for by it.
async fn with_keys(
    client: &Client,
    which: &Which,
    given: &[VerifierKey],
) -> Result<Vec<(Option<String>, VerifierKey)>> {
    let read = |key: String| key.parse().context("the log's public key cannot be read");
    ensure!(given.len() < 2 || which.all_shards, "several --log-key are for --all-shards");
    if which.shard.is_none() && !which.all_shards {
        let key = match given.first() {
            Some(key) => key.clone(),
            None => read(client.status().await?.log_verifier_key)?,
        };
        return Ok(vec![(None, key)]);
    }
    let listed = match &which.shard {
        None => with_contents(client).await?,
        Some(origin) => {
            let mut listed = client.shards().await?.items;
            listed.retain(|shard| shard.origin == *origin);
            let known = "`falaj log shards` lists them";
            ensure!(!listed.is_empty(), "the log has no shard {origin}; {known}");
            listed
        }
    };
    let keyed = |LogShard { origin, log_verifier_key, .. }: LogShard| {
        let key = match given.iter().find(|key| key.name() == origin) {
            Some(key) => key.clone(),
            None if given.is_empty() => read(log_verifier_key)?,
            None => bail!("no --log-key is of the shard {origin}: give its key, too"),
        };
        Ok((Some(origin), key))
    };
    listed.into_iter().map(keyed).collect()
}

/// Shows who accessed an object, of the shard that is written, of another, or of each.
async fn accessed(client: &Client, asked: Accessed, json: bool) -> Result<()> {
    let Accessed { object, span, which, limit, cursor, witnessed, log_key, output, to_place } =
        asked;
    let mut filters = vec![("object", object)];
    filters.extend(span_filters(&span));
    filters.extend(witnessed.then(|| ("witnessed", "true".to_owned())));
    filters.extend(to_place.map(|place| ("place", place.to_string())));
    let mut shards = with_keys(client, &which, &log_key).await?.into_iter().enumerate();
    let mut left = limit.unwrap_or(u64::MAX);
    for (n, (shard, key)) in shards.by_ref() {
        let apart = which.all_shards.then(|| format!("shard-{}", n + 1));
        let output = output.as_ref().map(|to| to.join(apart.unwrap_or_default()));
        let show = Shown { shard, key, json, output };
        left -= who_accessed(client, &filters, cursor.clone(), left, &show).await?;
        if left == 0 {
            break;
        }
    }
    if let Some((_, (Some(origin), _))) = shards.next() {
        eprintln!("there may be more in {origin}, and in those after it");
    }
    Ok(())
}

/// Every shard that can be asked, oldest first. Which ones are left out because their contents were deleted is said.
pub(crate) async fn with_contents(client: &Client) -> Result<Vec<LogShard>> {
    let mut listed = client.shards().await?.items;
    for shard in listed.extract_if(.., |shard| shard.pruned) {
        eprintln!(
            "{} is left out: its contents were deleted when their term was over",
            shard.origin
        );
    }
    Ok(listed)
}

/// Shows entries that pass a filter, of the shard that is written, of another, or of each.
async fn query(
    client: &Client,
    filter: &Filter,
    which: &Which,
    from: u64,
    limit: Option<u64>,
    json: bool,
) -> Result<()> {
    let shards = if which.all_shards {
        with_contents(client).await?.into_iter().map(|shard| Some(shard.origin)).collect()
    } else {
        vec![which.shard.clone()]
    };
    let mut left = limit;
    for shard in shards {
        let (shard, most) = (shard.as_deref(), left);
        let take = |page: Vec<LogEntry>| {
            left = left.map(|left| left.saturating_sub(page.len() as u64));
            entries_shown(json, shard, &page)
        };
        entries(client, filter, shard, from, most, take).await?;
    }
    Ok(())
}

/// Entries of a shard that pass a filter, page after page, handed on as they come. Asking is itself an entry, so the log
/// grows by one for every page: this ends.
pub(crate) async fn entries(
    client: &Client,
    filter: &Filter,
    shard: Option<&str>,
    mut from: u64,
    limit: Option<u64>,
    mut take: impl FnMut(Vec<LogEntry>) -> Result<()>,
) -> Result<()> {
    if let Some(kind) = &filter.kind {
        kind.parse::<Kind>().map_err(|_| {
            let known: Vec<&str> = Kind::ALL.iter().map(|k| k.as_str()).collect();
            anyhow::anyhow!("`{kind}` is no kind of entry; there are {}", known.join(", "))
        })?;
    }
    let given = [
        ("kind", filter.kind.clone()),
        ("actor", filter.actor.clone()),
        ("study", filter.study.clone()),
        ("round", filter.round.map(|n| n.to_string())),
        ("decision", filter.decision.clone()),
        ("policy", filter.policy.clone()),
        ("place", filter.to_place.as_ref().map(ToString::to_string)),
    ];
    let mut filters: Vec<_> =
        given.into_iter().filter_map(|(name, value)| Some((name, value?))).collect();
    filters.extend(span_filters(&filter.span));
    filters.extend(shard.map(|origin| ("shard", origin.to_owned())));
    let mut left = limit.unwrap_or(u64::MAX);
    while left > 0 {
        let mut asked = filters.clone();
        asked.push(("from", from.to_string()));
        asked.push(("limit", page_limit(left).to_string()));
        let page = client.entries(&asked).await?;
        left -= left.min(page.items.len() as u64);
        take(page.items)?;
        match page.next.and_then(|next| next.parse().ok()).filter(|next| *next > from) {
            Some(next) => from = next,
            None => break,
        }
    }
    Ok(())
}

/// How much to ask for when so many are left.
fn page_limit(left: u64) -> u32 {
    u32::try_from(left).unwrap_or(ENTRIES_PER_PAGE).min(ENTRIES_PER_PAGE)
}

/// How the rows of an answer with proofs are checked and shown.
struct Shown {
    /// Of which shard they are, if it was named.
    shard: Option<String>,
    key: VerifierKey,
    json: bool,
    output: Option<PathBuf>,
}

/// Shows every entry of a shard that touched an object, after having checked each, page after page under one checkpoint.
/// Gives how many there were, `limit` at most.
async fn who_accessed(
    client: &Client,
    filters: &[(&'static str, String)],
    mut cursor: Option<String>,
    limit: u64,
    show: &Shown,
) -> Result<u64> {
    let mut left = limit;
    let mut note: Option<String> = None;
    loop {
        let mut asked = filters.to_vec();
        asked.extend(show.shard.clone().map(|origin| ("shard", origin)));
        asked.extend(cursor.clone().map(|cursor| ("cursor", cursor)));
        asked.push(("limit", page_limit(left).to_string()));
        let page = client.accesses(&asked).await?;
        let body = |note: &str| note.split("\n\n").next().map(str::to_owned);
        if let Some(first) = &note {
            ensure!(
                body(first) == body(&page.checkpoint.note),
                "the coordinator went on under another checkpoint: ask again"
            );
        } else {
            show.head(&page.object, &page.checkpoint.note)?;
        }
        let rows: Vec<Row> = page
            .items
            .iter()
            .map(|e| show.check(e, &page.object, &page.checkpoint.note))
            .collect::<Result<_>>()?;
        show.rows(&rows, &page.items)?;
        note = Some(page.checkpoint.note);
        left -= left.min(rows.len() as u64);
        let next = page.next.filter(|next| Some(next) != cursor.as_ref());
        if left == 0 || next.is_none() {
            if let Some(next) = next {
                let of = show.shard.as_ref().map(|origin| format!("--shard {origin} "));
                eprintln!("there may be more: {}--cursor {next}", of.unwrap_or_default());
            }
            return Ok(limit - left);
        }
        cursor = next;
    }
}

/// An entry that was found to be in the log.
struct Row {
    entry: Entry,
    proof: InclusionProof,
}

impl Shown {
    /// Checks that an entry is in the log and touched the object: its leaf is computed from its bytes, and the proof
    /// leads from there to the checkpoint.
    fn check(&self, found: &ProvenEntry, object: &str, note: &str) -> Result<Row> {
        let index = found.index;
        let digest = |text: &String| text.parse::<Digest>().context("a proof cannot be read");
        let hashes = found.proof.iter().map(digest).collect::<Result<_>>()?;
        let proof = InclusionProof { index, hashes, note: note.to_owned() };
        let leaf = leaf_hash(found.bytes.as_bytes());
        ensure!(
            leaf.to_string() == found.leaf_hash,
            "entry {index} is not the one that was hashed: do not believe this answer"
        );
        proof.verify(&leaf, &self.key).context("do not believe this answer")?;
        let entry = Entry::parse(found.bytes.as_bytes())
            .with_context(|| format!("entry {index} cannot be read"))?;
        ensure!(entry.seq == index, "entry {index} says that it is entry {}", entry.seq);
        ensure!(
            objects(&entry).iter().any(|touched| touched.to_string() == object),
            "entry {index} has not touched {object}: do not believe this answer"
        );
        let entry = match &found.personal {
            None => entry,
            Some(personal) => Disclosure::parse(personal.as_bytes())
                .and_then(|disclosure| entry.disclosed(&disclosure))
                .with_context(|| format!("entry {index}: do not believe this answer"))?,
        };
        Ok(Row { entry, proof })
    }

    fn head(&self, object: &str, note: &str) -> Result<()> {
        if self.json {
            let head = json!({ "object": object, "checkpoint": note });
            show::line(&named(&head, self.shard.as_deref())?)
        } else {
            show::line(&format!("{object}, as of the checkpoint\n\n{note}"))
        }
    }

    fn rows(&self, rows: &[Row], found: &[ProvenEntry]) -> Result<()> {
        if let Some(folder) = &self.output {
            for (row, found) in rows.iter().zip(found) {
                write(folder, row, found)?;
            }
        }
        if self.json {
            let named = |e| named(e, self.shard.as_deref());
            return found.iter().try_for_each(|e| show::line(&named(e)?));
        }
        let cells = |row: &Row| {
            let body = row.entry.body();
            let actor = |name| body.member("actor").and_then(|a| a.text(name).ok()).unwrap_or("-");
            let person = row.entry.actor_person().map(|p| format!("person:{p}"));
            let clear = || match actor("id") {
                "-" => actor("address").to_owned(),
                id => id.to_owned(),
            };
            let who = match (person, row.entry.actor_id()) {
                (Some(person), Some(id)) => format!("{id} ({person})"),
                (Some(person), None) => person,
                (None, _) => clear(),
            };
            [
                row.entry.ts.clone(),
                who,
                row.entry.kind.to_string(),
                body.text("decision").unwrap_or("-").to_owned(),
                actor("place").to_owned(),
                row.entry.seq.to_string(),
            ]
        };
        let headings = ["TIME", "WHO", "KIND", "DECISION", "PLACE", "INDEX"];
        let table = table(self.shard.as_deref(), headings, rows.iter().map(cells));
        show::line(table.trim_end())
    }
}

/// What machines read, which names the shard if one was asked for by name.
#[derive(Serialize)]
struct Named<'a, T> {
    #[serde(skip_serializing_if = "Option::is_none")]
    shard: Option<&'a str>,
    #[serde(flatten)]
    of: &'a T,
}

fn named<T: Serialize>(of: &T, shard: Option<&str>) -> Result<String> {
    Ok(serde_json::to_string(&Named { shard, of })?)
}

/// What people read: rows, which name their shard if one was asked for by name.
fn table(
    shard: Option<&str>,
    headings: [&str; 6],
    rows: impl Iterator<Item = [String; 6]>,
) -> String {
    let Some(shard) = shard else { return show::table(headings, rows) };
    let [a, b, c, d, e, f] = headings;
    let rows = rows.map(|[a, b, c, d, e, f]| [shard.to_owned(), a, b, c, d, e, f]);
    show::table(["SHARD", a, b, c, d, e, f], rows)
}

/// Writes an entry and its proof, for whoever has the log's key.
fn write(folder: &Path, row: &Row, found: &ProvenEntry) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
    let index = found.index;
    for (name, text) in [
        (format!("entry-{index}.json"), &found.bytes),
        (format!("entry-{index}.tlog-proof"), &row.proof.to_text()),
    ] {
        let file = folder.join(name);
        fs::write(&file, text).with_context(|| format!("writing {}", file.display()))?;
    }
    Ok(())
}

/// Where followed entries go.
async fn feed(
    client: &Client,
    json: bool,
    shard: Option<&str>,
    format: Option<Format>,
    to: Option<Receiver>,
    ca: Option<&Path>,
) -> Result<Feed> {
    ensure!(!json || format.is_none(), "--json and --format are two forms: give one");
    match format {
        None => Ok(Feed::screen(json)),
        Some(Format::Ocsf) => {
            ensure!(to.is_none(), "--to is for --format syslog");
            if let Some(origin) = shard {
                return Ok(Feed::ocsf(origin.to_owned()));
            }
            let key: VerifierKey = client.status().await?.log_verifier_key.parse()?;
            Ok(Feed::ocsf(key.name().to_owned()))
        }
        Some(Format::Syslog) => Feed::syslog(client.host(), to, ca),
    }
}

/// Shows the newest entries, and those that come until Ctrl-C or until the coordinator ends.
async fn tail(
    client: &Client,
    asked: (&[(&str, String)], bool),
    after: Option<u64>,
    feed: &mut Feed,
) -> Result<()> {
    let mut seen = after;
    let mut tries = 0;
    loop {
        let broken = tokio::select! {
            interrupted = tokio::signal::ctrl_c() => return Ok(interrupted?),
            ended = follow_on(client, asked, feed, &mut seen, &mut tries) => match ended {
                Ok(true) => return Ok(()),
                Ok(false) => None,
                Err(e) => Some(e),
            },
        };
        tries += 1;
        if let Some(e) = broken {
            let away = matches!(e.downcast_ref(), Some(ClientError::Unreachable { .. }));
            // An answer that never began is no stream that broke.
            if !away || seen == after || tries > RETRIES {
                return Err(e);
            }
        } else if tries > RETRIES {
            bail!("the coordinator has broken off {RETRIES} times");
        }
        tokio::select! {
            interrupted = tokio::signal::ctrl_c() => return Ok(interrupted?),
            () = tokio::time::sleep(PAUSE) => {}
        }
    }
}

/// Shows entries as they come. Whether the stream is over, and did not only break off.
async fn follow_on(
    client: &Client,
    (asked, follow): (&[(&str, String)], bool),
    feed: &mut Feed,
    seen: &mut Option<u64>,
    tries: &mut u32,
) -> Result<bool> {
    let mut events = client.tail(asked, *seen).await?;
    while let Some(event) = events.next().await? {
        match event.kind.as_str() {
            "end" => {
                if follow {
                    eprintln!(
                        "the coordinator ended this: {}",
                        String::from_utf8_lossy(&event.data)
                    );
                }
                return Ok(true);
            }
            "problem" => return Err(ClientError::Refused(event.read::<ProblemJson>()?).into()),
            _ => {}
        }
        let entry: LogEntry = event.read()?;
        feed.put(&entry, |entry| cells(entry).join("  ")).await?;
        (*seen, *tries) = (Some(entry.index), 0);
    }
    Ok(false)
}

fn entries_shown(json: bool, shard: Option<&str>, entries: &[LogEntry]) -> Result<()> {
    if json {
        return entries.iter().try_for_each(|e| show::line(&named(e, shard)?));
    }
    if entries.is_empty() {
        return Ok(());
    }
    show::line(entries_table(shard, entries).trim_end())
}

fn entries_table(shard: Option<&str>, entries: &[LogEntry]) -> String {
    let headings = ["INDEX", "TIME", "KIND", "WHO", "ABOUT", "REASON"];
    table(shard, headings, entries.iter().map(cells))
}

/// Who the person is that an entry names, if what was sent of them opens the entry's commitment.
fn disclosed(e: &LogEntry) -> Option<String> {
    let disclosure = Disclosure::parse(e.personal.as_ref()?.as_bytes()).ok()?;
    let committed = e.entry["actor"]["personal_commit"].as_str()?;
    let opens = disclosure.seq == e.index && disclosure.commitment().to_string() == committed;
    opens.then(|| disclosure.id().map(|id| id.to_string()))?
}

fn cells(e: &LogEntry) -> [String; 6] {
    let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    let entry = &e.entry;
    let actor = &entry["actor"];
    let clear = || actor["id"].as_str().or(actor["address"].as_str()).unwrap_or("-").to_owned();
    let who = match (actor["person"].as_str(), disclosed(e)) {
        (Some(_), Some(id)) => id,
        (Some(person), None) => format!("person:{person}"),
        (None, _) => clear(),
    };
    let about = match (entry["study"].as_str(), &entry["round"]) {
        (Some(study), Value::Number(round)) => format!("{study} round {round}"),
        (Some(study), _) => study.to_owned(),
        (None, _) => text(&entry["action"]),
    };
    let why = text(&entry["reason"]);
    [e.index.to_string(), text(&entry["ts"]), text(&entry["kind"]), who, about, why]
}

#[cfg(test)]
mod tests {
    use super::*;
    use ed25519_dalek::SigningKey;
    use falaj_core::{
        audit::Draft,
        note::{Checkpoint, NoteSigner},
        time::Timestamp,
    };

    #[test]
    fn a_row_is_shown_only_if_it_is_proven_and_about_what_was_asked() {
        let signer = NoteSigner::new("t", SigningKey::from_bytes(&[1; 32])).expect("a name");
        let study = "heart".parse().expect("a study");
        let draft = Draft::new(Kind::StudySubmitted).study(&study);
        let bytes = draft.finish(0, Timestamp::from_millis(0), [0; 16]);
        let head = Checkpoint { origin: "t".into(), tree_size: 1, root_hash: leaf_hash(&bytes) };
        let note = signer.sign(&head.body()).expect("signs");
        let found = ProvenEntry {
            index: 0,
            leaf_hash: head.root_hash.to_string(),
            personal: None,
            bytes: String::from_utf8(bytes).expect("text"),
            proof: Vec::new(),
        };
        let key = signer.verifier().clone();
        let show = Shown { shard: None, key, json: false, output: None };
        assert_eq!(show.check(&found, "heart", &note).expect("proven").entry.seq, 0);
        assert!(show.check(&found, "lung", &note).is_err());
        let mut longer = found.clone();
        longer.proof.push(found.leaf_hash.clone());
        let lied = found.bytes.replace("study.submitted", "study.finished");
        let root = leaf_hash(lied.as_bytes()).to_string();
        let other = ProvenEntry { bytes: lied.clone(), ..found.clone() };
        let rehashed = ProvenEntry { bytes: lied, leaf_hash: root, ..found };
        for broken in [longer, other, rehashed] {
            assert!(show.check(&broken, "heart", &note).is_err(), "{broken:?}");
        }
    }
}
