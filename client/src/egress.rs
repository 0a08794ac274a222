//! The egress journal on disk: every message that leaves this site, written down before it does.
//!
//! What can leave is a closed set of types: [`Message`] is sealed, [`Egress::note`] alone makes a [`Journalled`] of one, and
//! the wire (`crate::wire`) takes nothing else. A journal that cannot be written stops what would leave. Entries are the chain of
//! `falaj_core::egress`; its head is kept a second time beside the database, so that an older copy put in its place is
//! noticed.
//!
//! The journal is bounded. Nothing is dropped by itself: entries go when a steward releases them, who has exported them
//! before, and when there are [`ENTRIES_MAX`] nothing leaves any more.

use crate::{clock, head};
use falaj_core::{
    canon::Canon,
    egress::{BrokenChain, Chain, Entry, Event, HEAD_CONTEXT, Kind, Sent, head_bytes},
    id::{Digest, RoundId, SiteId},
    note,
    sign::{SignError, SignKey},
    time::Timestamp,
    update::{SignedUpdate, UpdateHeader},
};
use falaj_proto::v1::{
    AnswerRequest, CheckpointRequest, ConnectRequest, CosignRequest, DeclineRequest,
    FetchModelRequest, ProbeAnswer, ProveInclusionRequest, RenewRequest,
};
use prost::Message as _;
use sqlx::{
    Connection as _, Row as _, SqliteConnection, SqlitePool,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};
use std::{
    collections::BTreeMap,
    fmt::{self, Write as _},
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::sync::Mutex;

const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS entries (seq INTEGER PRIMARY KEY, body BLOB NOT NULL) STRICT;
-- The first entry that was kept, and what the released ones came to.
CREATE TABLE IF NOT EXISTS kept (only INTEGER PRIMARY KEY CHECK (only = 1), first INTEGER NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS released (kind TEXT PRIMARY KEY, messages INTEGER NOT NULL, bytes INTEGER NOT NULL) STRICT;
INSERT INTO kept (only, first) VALUES (1, 0) ON CONFLICT DO NOTHING;
-- Entries before this one were exported.
CREATE TABLE IF NOT EXISTS exported (only INTEGER PRIMARY KEY CHECK (only = 1), before INTEGER NOT NULL) STRICT;
INSERT INTO exported (only, before) VALUES (1, 0) ON CONFLICT DO NOTHING;
CREATE TRIGGER IF NOT EXISTS entries_stay BEFORE DELETE ON entries WHEN OLD.seq >= (SELECT first FROM kept)
BEGIN SELECT RAISE(ABORT, 'what left stays written down until it is released'); END;
CREATE TRIGGER IF NOT EXISTS entries_stay_as_they_are BEFORE UPDATE ON entries
BEGIN SELECT RAISE(ABORT, 'what left stays as it was written down'); END;
";

/// The database's name in the state folder.
const FILE: &str = "egress.sqlite";
/// The newest head's name in the state folder.
const HEAD: &str = "egress.head";
/// Entries that are kept at most: some 300 MB, and a month of rounds without a pause.
pub const ENTRIES_MAX: u64 = 1_000_000;
/// From this share of them on, in percent, it is said that the journal should be exported.
const NEARLY_FULL: u64 = 80;
/// How often that is said: once in so many entries.
const SAID_EVERY: u64 = 1_000;

/// Why nothing leaves.
#[derive(Debug, thiserror::Error)]
pub enum EgressError {
    /// The database failed.
    #[error("the egress journal failed, so nothing leaves: {0}")]
    Sql(#[from] sqlx::Error),
    /// The head beside the database cannot be read or written.
    #[error("{HEAD} cannot be read or written, so nothing leaves: {0}")]
    Io(#[from] io::Error),
    /// What lies in the journal is not what was written there.
    #[error("the egress journal was changed or damaged ({0}): restore its newest copy")]
    Broken(#[from] BrokenChain),
    /// There was a journal, and it is gone.
    #[error(
        "{FILE} is missing in {}, and {HEAD} says that there was one: restore its newest copy", .0.display()
    )]
    Missing(PathBuf),
    /// It is another site's.
    #[error("the egress journal in {} is {found}'s: `state.dir` names another site's folder", .dir.display())]
    OtherSite {
        /// Where.
        dir: PathBuf,
        /// Whose.
        found: Box<SiteId>,
    },
    /// An older copy was put in its place.
    #[error(
        "the egress journal does not end with entry {0}, as it once did: an older copy was put in its place; restore the newest one"
    )]
    RolledBack(Digest),
    /// It holds as much as it can.
    #[error(
        "the egress journal has {0} entries, so nothing leaves: export it, and release what was exported (`falaj-agent egress export`, `falaj-agent egress release`)"
    )]
    Full(u64),
    /// A message is larger than its kind can be.
    #[error("a message of kind {kind} has {bytes} bytes, and {most} at most may leave")]
    Large {
        /// Its kind.
        kind: Kind,
        /// Its size.
        bytes: u64,
        /// What may leave.
        most: u64,
    },
    /// What should be released was not written, or was released before.
    #[error(
        "entries {first} to {last} are there: entry {asked} cannot be the last that is released"
    )]
    NotThere {
        /// The first that is there.
        first: u64,
        /// The newest.
        last: u64,
        /// What was asked for.
        asked: u64,
    },
    /// What should be released is nowhere else.
    #[error(
        "entries before {before} were exported, and {asked} is none of them, so it is not released: run `falaj-agent egress export`, and keep the file"
    )]
    NotExported {
        /// The first entry that was not exported.
        before: u64,
        /// What was asked for.
        asked: u64,
    },
    /// The head cannot be signed.
    #[error(transparent)]
    Sign(#[from] SignError),
}

mod sealed {
    pub trait Sealed {}
}

/// What can leave: the messages of the protocol, and nothing else can be made one outside of this file.
pub trait Message: sealed::Sealed {
    /// Its entry.
    fn described(&self) -> Sent;
}

/// A message that the journal holds.
#[derive(Debug)]
pub struct Journalled<M>(M);

impl<M: Message> Journalled<M> {
    /// The message, for the wire.
    pub(crate) fn into_message(self) -> M {
        self.0
    }
}

macro_rules! message {
    ($message:ty, $kind:expr, $round:expr) => {
        impl sealed::Sealed for $message {}
        impl Message for $message {
            fn described(&self) -> Sent {
                let bytes = self.encode_to_vec();
                let round: fn(&Self) -> Option<RoundId> = $round;
                Sent {
                    kind: $kind,
                    bytes: bytes.len() as u64,
                    sha256: Digest::of(&bytes),
                    header: None,
                    round: round(self),
                }
            }
        }
    };
}

message!(ConnectRequest, Kind::Hello, |_| None);
message!(DeclineRequest, Kind::Decline, |m| round(&m.study, m.round));
message!(AnswerRequest, Kind::Answer, |m| round(&m.study, m.round));
message!(FetchModelRequest, Kind::ModelAsked, |_| None);
message!(CheckpointRequest, Kind::CheckpointAsked, |_| None);
message!(CosignRequest, Kind::Cosignature, |_| None);
message!(ProveInclusionRequest, Kind::ProofAsked, |_| None);
message!(RenewRequest, Kind::Renewal, |_| None);
message!(ProbeAnswer, Kind::Probe, |_| None);

fn round(study: &str, number: u32) -> Option<RoundId> {
    Some(RoundId { study: study.parse().ok()?, number })
}

impl sealed::Sealed for &SignedUpdate {}
impl Message for &SignedUpdate {
    fn described(&self) -> Sent {
        let parts = [self.header().len(), self.signature().len(), self.payload().len()];
        Sent {
            kind: Kind::Update,
            bytes: parts.iter().sum::<usize>() as u64,
            sha256: Digest::of(self.payload()),
            header: Some(Digest::of(self.header())),
            round: UpdateHeader::parse(self.header()).ok().map(|header| header.round),
        }
    }
}

/// What left in one kind of message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Count {
    /// Messages.
    pub messages: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// A message that left, for people.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Left {
    /// The number of its entry.
    pub seq: u64,
    /// When, in RFC 3339.
    pub at: String,
    /// Its kind.
    pub kind: &'static str,
    /// Its size.
    pub bytes: u64,
    /// Its SHA-256; of an update that of its payload.
    pub sha256: String,
    /// The study that it is about.
    pub study: Option<String>,
    /// And the round.
    pub round: Option<u32>,
}

impl fmt::Display for Left {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seq, at, kind, bytes, sha256, study, round } = self;
        write!(f, "{seq:>7} {at} {kind:16} {bytes:>10} bytes {sha256}")?;
        if let (Some(study), Some(round)) = (study, round) {
            write!(f, " {study}/{round}")?;
        }
        Ok(())
    }
}

/// Counters of what has left, as OpenMetrics text.
#[must_use]
pub fn openmetrics(counts: &BTreeMap<String, Count>) -> String {
    let (mut messages, mut bytes) = (String::new(), String::new());
    for (kind, count) in counts {
        // Writing to a string cannot fail.
        let _ =
            writeln!(messages, "falaj_egress_messages_total{{kind=\"{kind}\"}} {}", count.messages);
        let _ = writeln!(bytes, "falaj_egress_bytes_total{{kind=\"{kind}\"}} {}", count.bytes);
    }
    format!(
        "# TYPE falaj_egress_messages counter\n{messages}# TYPE falaj_egress_bytes counter\n{bytes}# EOF\n"
    )
}

/// The journal as a file for an auditor.
#[derive(Clone, Debug)]
pub struct Export {
    /// One entry per line, and a last line with its head, signed by the site.
    pub text: String,
    /// The number of the entry that will come next.
    before: u64,
}

/// The journal.
#[derive(Clone)]
pub struct Egress {
    pool: SqlitePool,
    chain: Arc<Mutex<Chain>>,
    dir: PathBuf,
    site: SiteId,
    most: u64,
}

impl Egress {
    /// Opens the journal of `site` in its state folder, creating it if there never was one, and checks its chain.
    ///
    /// # Errors
    /// [`EgressError`]: missing, damaged, of another site, or older than it was.
    pub async fn open(dir: &Path, site: &SiteId) -> Result<Self, EgressError> {
        Self::with_room(dir, site, ENTRIES_MAX).await
    }

    async fn with_room(dir: &Path, site: &SiteId, most: u64) -> Result<Self, EgressError> {
        let path = dir.join(FILE);
        let newest = head::read(dir, HEAD)?;
        if newest.is_some() && !path.try_exists()? {
            return Err(EgressError::Missing(dir.to_owned()));
        }
        let options = SqliteConnectOptions::new()
            .filename(&path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(Duration::from_secs(10));
        let pool = SqlitePoolOptions::new().max_connections(2).connect_with(options).await?;
        sqlx::raw_sql(SCHEMA).execute(&pool).await?;
        let (dir, site) = (dir.to_owned(), site.clone());
        let this = Self { pool, chain: Arc::default(), dir, site, most };
        let mut held = newest.is_none();
        {
            let mut tx = this.pool.begin().await?;
            let mut chain = this.chain.lock().await;
            this.catch_up(&mut tx, &mut chain, |head| held |= Some(head) == newest).await?;
            if let Some(found) = chain.site().filter(|found| **found != this.site) {
                let (dir, found) = (this.dir.clone(), Box::new(found.clone()));
                return Err(EgressError::OtherSite { dir, found });
            }
        }
        match newest {
            Some(head) if !held => Err(EgressError::RolledBack(head)),
            _ => Ok(this),
        }
    }

    /// Writes a message down, durably: only then can it leave.
    ///
    /// # Errors
    /// [`EgressError`]; the message does not leave then.
    pub async fn note<M: Message>(&self, message: M) -> Result<Journalled<M>, EgressError> {
        let sent = message.described();
        let (kind, bytes, most) = (sent.kind, sent.bytes, sent.kind.bytes_max());
        if bytes > most {
            return Err(EgressError::Large { kind, bytes, most });
        }
        self.append(Event::Sent(sent), None).await?;
        Ok(Journalled(message))
    }

    /// Drops the entries up to and including one, which were exported: what they came to stays, and so does an entry
    /// that says so.
    ///
    /// # Errors
    /// [`EgressError`]; nothing is dropped then.
    pub async fn release(&self, through: u64) -> Result<(), EgressError> {
        self.append(Event::Released { before: through + 1 }, Some(through)).await
    }

    /// The entries that are kept, as they are, oldest first, and the chain after them.
    ///
    /// # Errors
    /// When the journal cannot be read.
    pub async fn entries(&self) -> Result<(Vec<Vec<u8>>, Chain), EgressError> {
        let mut tx = self.pool.begin().await?;
        let mut chain = self.chain.lock().await;
        self.catch_up(&mut tx, &mut chain, |_| {}).await?;
        let rows = sqlx::query("SELECT body FROM entries WHERE seq < ? ORDER BY seq")
            .bind(chain.entries().cast_signed())
            .fetch_all(&mut *tx)
            .await?;
        Ok((rows.iter().map(|r| r.get("body")).collect(), chain.clone()))
    }

    /// What has left and is kept, oldest first, from a moment on.
    ///
    /// # Errors
    /// When the journal cannot be read.
    pub async fn left(&self, since: Option<Timestamp>) -> Result<Vec<Left>, EgressError> {
        let (entries, _) = self.entries().await?;
        let mut left = Vec::new();
        for body in &entries {
            let entry = read(body)?;
            let Event::Sent(sent) = entry.event else { continue };
            if since.is_none_or(|since| entry.at >= since) {
                left.push(Left {
                    seq: entry.seq,
                    at: entry.at.to_string(),
                    kind: sent.kind.as_str(),
                    bytes: sent.bytes,
                    sha256: sent.sha256.to_string(),
                    study: sent.round.as_ref().map(|r| r.study.to_string()),
                    round: sent.round.as_ref().map(|r| r.number),
                });
            }
        }
        Ok(left)
    }

    /// What has left since the journal began, released entries included.
    ///
    /// # Errors
    /// When the journal cannot be read.
    pub async fn counts(&self) -> Result<BTreeMap<String, Count>, EgressError> {
        let mut counts: BTreeMap<String, Count> =
            Kind::ALL.map(|kind| (kind.as_str().to_owned(), Count::default())).into();
        let (entries, _) = self.entries().await?;
        add_up(&mut counts, &entries)?;
        for row in
            sqlx::query("SELECT kind, messages, bytes FROM released").fetch_all(&self.pool).await?
        {
            let count = counts.entry(row.get("kind")).or_default();
            count.messages += row.get::<i64, _>("messages").cast_unsigned();
            count.bytes += row.get::<i64, _>("bytes").cast_unsigned();
        }
        Ok(counts)
    }

    /// The journal as a file for an auditor, which `falaj-verify --egress` reads. [`Self::exported`] is told once it is written.
    ///
    /// # Errors
    /// When the journal cannot be read, or the site's key cannot be used now.
    pub async fn export(
        &self,
        key: &dyn SignKey,
        certificate: &[u8],
    ) -> Result<Export, EgressError> {
        let (entries, chain) = self.entries().await?;
        let head = head_bytes(&self.site, chain.entries(), &chain.head());
        let signature = note::sign_context(key, HEAD_CONTEXT, &head)?;
        let last = Canon::map([
            ("certificate", hex::encode(certificate).into()),
            ("head", String::from_utf8_lossy(&head).into_owned().into()),
            ("signature", hex::encode(signature).into()),
        ])
        .to_bytes();
        let mut text = String::new();
        for line in entries.iter().chain([&last]) {
            text.push_str(&String::from_utf8_lossy(line));
            text.push('\n');
        }
        Ok(Export { text, before: chain.entries() })
    }

    /// Remembers that an export is where it should be: its entries may be released.
    ///
    /// # Errors
    /// When the journal cannot be written.
    pub async fn exported(&self, export: &Export) -> Result<(), EgressError> {
        sqlx::query("UPDATE exported SET before = max(before, ?)")
            .bind(export.before.cast_signed())
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    async fn append(&self, event: Event, release: Option<u64>) -> Result<(), EgressError> {
        let mut connection = self.pool.acquire().await?;
        let mut chain = self.chain.lock().await;
        let done = self.append_on(&mut connection, &mut chain, event, release).await;
        if matches!(done, Err(EgressError::Sql(_))) {
            // A commit that fails for want of room leaves the connection in doubt about its transaction; a fresh one has none.
            connection.close_on_drop();
        }
        done
    }

    async fn append_on(
        &self,
        connection: &mut SqliteConnection,
        chain: &mut Chain,
        event: Event,
        release: Option<u64>,
    ) -> Result<(), EgressError> {
        let mut tx = connection.begin_with("BEGIN IMMEDIATE").await?;
        self.catch_up(&mut tx, chain, |_| {}).await?;
        let first: i64 = sqlx::query_scalar("SELECT first FROM kept").fetch_one(&mut *tx).await?;
        let first = first.cast_unsigned();
        let kept = chain.entries() - first;
        if release.is_none() && kept >= self.most {
            return Err(EgressError::Full(kept));
        }
        if kept >= self.most * NEARLY_FULL / 100 && kept.is_multiple_of(SAID_EVERY) {
            tracing::warn!(
                entries = kept,
                most = self.most,
                "the egress journal is nearly full: export it, and release what was exported"
            );
        }
        let last = chain.entries().saturating_sub(1);
        if let Some(asked) = release.filter(|through| *through < first || *through > last) {
            return Err(EgressError::NotThere { first, last, asked });
        }
        let before: i64 =
            sqlx::query_scalar("SELECT before FROM exported").fetch_one(&mut *tx).await?;
        let before = before.cast_unsigned();
        if let Some(asked) = release.filter(|through| *through >= before) {
            return Err(EgressError::NotExported { before, asked });
        }
        let mut next = chain.clone();
        let mut events = vec![event];
        if next.entries() == 0 {
            events.insert(0, Event::Opened { site: self.site.clone() });
        }
        for event in events {
            let body = next.entry(&event, clock::now());
            let seq = next.entries();
            next.take(&body)?;
            sqlx::query("INSERT INTO entries (seq, body) VALUES (?, ?)")
                .bind(seq.cast_signed())
                .bind(body)
                .execute(&mut *tx)
                .await?;
        }
        if let Some(through) = release {
            // Should it break off once it is committed, this head is there still, or is what the first entry follows.
            head::write(&self.dir, HEAD, &chain.head())?;
            drop_through(&mut tx, through).await?;
        }
        tx.commit().await?;
        *chain = next;
        // Should this fail, the message is written down and does not leave.
        self.keep_head(connection, chain).await
    }

    /// Keeps the newest head beside the database, while nobody else adds to it: an older one that came later could name an
    /// entry that was released meanwhile.
    async fn keep_head(
        &self,
        connection: &mut SqliteConnection,
        chain: &mut Chain,
    ) -> Result<(), EgressError> {
        let mut tx = connection.begin_with("BEGIN IMMEDIATE").await?;
        self.catch_up(&mut tx, chain, |_| {}).await?;
        head::write(&self.dir, HEAD, &chain.head())?;
        Ok(tx.rollback().await?)
    }

    /// Takes in what was added to the database since, and says each head that it comes by. To be called in a transaction.
    async fn catch_up(
        &self,
        connection: &mut SqliteConnection,
        chain: &mut Chain,
        mut said: impl FnMut(Digest),
    ) -> Result<(), EgressError> {
        let first: i64 =
            sqlx::query_scalar("SELECT first FROM kept").fetch_one(&mut *connection).await?;
        let first = first.cast_unsigned();
        let rows = sqlx::query("SELECT body FROM entries WHERE seq >= ? ORDER BY seq")
            .bind(chain.entries().cast_signed())
            .fetch_all(connection)
            .await?;
        if let Some(next) = rows.first()
            && (chain.entries() == 0 || first > chain.entries())
        {
            // What came before was released, here or by another process.
            *chain = Chain::before(next.get("body"), self.site.clone())?;
            if chain.entries() != first {
                let what = format!("the journal begins with number {}", chain.entries());
                return Err(BrokenChain { seq: first, what }.into());
            }
            said(chain.head());
        }
        for row in rows {
            chain.take(row.get("body"))?;
            said(chain.head());
        }
        Ok(())
    }
}

fn read(body: &[u8]) -> Result<Entry, BrokenChain> {
    Entry::parse(body).map_err(|e| BrokenChain { seq: 0, what: e.to_string() })
}

/// Adds entries to what has left.
fn add_up(counts: &mut BTreeMap<String, Count>, entries: &[Vec<u8>]) -> Result<(), BrokenChain> {
    for body in entries {
        let entry = read(body)?;
        if let Event::Sent(sent) = entry.event {
            let count = counts.entry(sent.kind.as_str().to_owned()).or_default();
            count.messages += 1;
            count.bytes = count.bytes.saturating_add(sent.bytes);
        }
    }
    Ok(())
}

async fn drop_through(tx: &mut SqliteConnection, through: u64) -> Result<(), EgressError> {
    let rows = sqlx::query("SELECT body FROM entries WHERE seq <= ? ORDER BY seq")
        .bind(through.cast_signed())
        .fetch_all(&mut *tx)
        .await?;
    let mut counts = BTreeMap::new();
    add_up(&mut counts, &rows.iter().map(|r| r.get("body")).collect::<Vec<_>>())?;
    for (kind, count) in counts {
        sqlx::query("INSERT INTO released (kind, messages, bytes) VALUES (?, ?, ?) ON CONFLICT (kind) DO UPDATE SET messages = messages + excluded.messages, bytes = bytes + excluded.bytes")
            .bind(kind)
            .bind(count.messages.cast_signed())
            .bind(count.bytes.cast_signed())
            .execute(&mut *tx)
            .await?;
    }
    sqlx::query("UPDATE kept SET first = ?")
        .bind((through + 1).cast_signed())
        .execute(&mut *tx)
        .await?;
    sqlx::query("DELETE FROM entries WHERE seq <= ?")
        .bind(through.cast_signed())
        .execute(&mut *tx)
        .await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use ed25519_dalek::SigningKey;
    use falaj_core::id::SpiffeId;
    use std::fs;

    fn site(name: &str) -> SiteId {
        let id: SpiffeId = format!("spiffe://t/ae-on/ae-az/site/{name}").parse().expect("an id");
        id.try_into().expect("a site")
    }

    fn decline(reason: &str) -> DeclineRequest {
        DeclineRequest { study: "s".into(), round: 1, code: "busy".into(), reason: reason.into() }
    }

    #[tokio::test]
    async fn what_leaves_is_counted_and_written_down_and_a_restart_goes_on_from_it() {
        let dir = tempfile::tempdir().expect("a folder");
        let egress = Egress::open(dir.path(), &site("h")).await.expect("opens");
        let message = decline("no");
        let bytes = message.encode_to_vec();
        let noted = egress.note(message.clone()).await.expect("noted");
        assert_eq!(noted.into_message(), message);
        drop(egress);
        let egress = Egress::open(dir.path(), &site("h")).await.expect("opens again");
        egress.note(ConnectRequest::default()).await.expect("noted");
        let counts = egress.counts().await.expect("counted");
        assert_eq!(counts["decline"], Count { messages: 1, bytes: bytes.len() as u64 });
        assert_eq!(counts["hello"], Count { messages: 1, bytes: 0 });
        assert_eq!(counts["update"], Count::default());
        let (entries, chain) = egress.entries().await.expect("read");
        assert_eq!((entries.len(), chain.entries()), (3, 3));
        let Event::Sent(sent) = Entry::parse(&entries[1]).expect("an entry").event else {
            panic!("not sent")
        };
        assert_eq!(sent.sha256, Digest::of(&bytes));
        assert_eq!(sent.round.expect("a round").to_string(), "s/1");
    }

    #[tokio::test]
    async fn a_journal_that_was_put_back_removed_or_changed_is_noticed() {
        let dir = tempfile::tempdir().expect("a folder");
        let at = |name: &str| dir.path().join(name);
        let open = async || Egress::open(dir.path(), &site("h")).await;
        let egress = open().await.expect("opens");
        egress.note(decline("one")).await.expect("noted");
        egress.pool.close().await;
        fs::copy(at(FILE), at("older")).expect("copied");
        let egress = open().await.expect("opens");
        egress.note(decline("two")).await.expect("noted");
        egress.pool.close().await;
        fs::copy(at(FILE), at("newest")).expect("copied");
        fs::copy(at("older"), at(FILE)).expect("put back");
        assert!(matches!(open().await.err(), Some(EgressError::RolledBack(_))));
        fs::remove_file(at(FILE)).expect("removed");
        assert!(matches!(open().await.err(), Some(EgressError::Missing(_))));
        fs::copy(at("newest"), at(FILE)).expect("restored");
        let other = Egress::open(dir.path(), &site("other")).await.err();
        assert!(matches!(other, Some(EgressError::OtherSite { .. })), "{other:?}");
        let egress = open().await.expect("opens");
        for statement in ["DELETE FROM entries", "UPDATE entries SET body = X'00' WHERE seq = 1"] {
            let e = sqlx::query(statement).execute(&egress.pool).await.expect_err(statement);
            assert!(e.to_string().contains("what left stays"), "{e}");
        }
        // Whoever can write the file can take the triggers away: the chain still shows it.
        let forged = "DROP TRIGGER entries_stay; DELETE FROM entries WHERE seq = 1;";
        sqlx::raw_sql(forged).execute(&egress.pool).await.expect("done");
        egress.pool.close().await;
        assert!(matches!(open().await.err(), Some(EgressError::Broken(_))));
    }

    #[tokio::test]
    async fn a_full_journal_lets_nothing_out_until_what_was_exported_is_released() {
        let dir = tempfile::tempdir().expect("a folder");
        let egress = Egress::with_room(dir.path(), &site("h"), 5).await.expect("opens");
        for _ in 0..4 {
            egress.note(decline("no")).await.expect("noted");
        }
        let full = egress.note(decline("no")).await.err();
        assert!(matches!(full, Some(EgressError::Full(5))), "{full:?}");
        let key = SigningKey::from_bytes(&[1; 32]);
        let first = egress.export(&key, b"").await.expect("exported");
        assert_eq!(first.text.lines().count(), 6);
        let early = egress.release(2).await.expect_err("it was not exported");
        assert!(matches!(early, EgressError::NotExported { before: 0, asked: 2 }), "{early:?}");
        egress.exported(&first).await.expect("kept");
        assert!(matches!(egress.release(9).await.err(), Some(EgressError::NotThere { .. })));
        egress.release(2).await.expect("released");
        assert!(matches!(egress.release(1).await.err(), Some(EgressError::NotThere { .. })));
        egress.note(decline("no")).await.expect("noted");
        let counts = egress.counts().await.expect("counted");
        assert_eq!(counts["decline"].messages, 5);
        drop(egress);
        let egress = Egress::with_room(dir.path(), &site("h"), 5).await.expect("opens");
        assert_eq!(egress.counts().await.expect("counted"), counts);
        let (entries, chain) = egress.entries().await.expect("read");
        assert_eq!((entries.len(), chain.entries()), (4, 7));
        let late = egress.release(5).await.expect_err("it was not exported").to_string();
        assert!(late.contains("entries before 5 were exported, and 5 is none"), "{late}");
    }

    /// Exports all, and releases it.
    async fn empty(egress: &Egress) {
        let key = SigningKey::from_bytes(&[1; 32]);
        let whole = egress.export(&key, b"").await.expect("exported");
        egress.exported(&whole).await.expect("kept");
        egress.release(whole.before - 1).await.expect("released");
    }

    #[tokio::test]
    async fn a_release_that_broke_off_before_its_head_was_kept_stops_nothing() {
        let dir = tempfile::tempdir().expect("a folder");
        let open = async || Egress::open(dir.path(), &site("h")).await.expect("opens");
        let egress = open().await;
        egress.note(decline("one")).await.expect("noted");
        for _ in 0..2 {
            let before = egress.chain.lock().await.head();
            empty(&egress).await;
            // As if it had broken off there.
            head::write(dir.path(), HEAD, &before).expect("written");
        }
        egress.pool.close().await;
        let egress = open().await;
        // A message whose head was not kept, and then a release that broke off.
        let older = egress.chain.lock().await.head();
        egress.note(decline("two")).await.expect("noted");
        head::write(dir.path(), HEAD, &older).expect("written");
        egress.pool.close().await;
        let egress = open().await;
        let key = SigningKey::from_bytes(&[1; 32]);
        let whole = egress.export(&key, b"").await.expect("exported");
        egress.exported(&whole).await.expect("kept");
        let mut connection = egress.pool.acquire().await.expect("a connection");
        sqlx::raw_sql(
            "CREATE TRIGGER breaks BEFORE DELETE ON entries BEGIN SELECT RAISE(ABORT, 'no'); END",
        )
        .execute(&mut *connection)
        .await
        .expect("made");
        egress.release(whole.before - 1).await.expect_err("it breaks off before it is committed");
        sqlx::raw_sql("DROP TRIGGER breaks").execute(&mut *connection).await.expect("dropped");
        drop(connection);
        let kept = head::read(dir.path(), HEAD).expect("read").expect("a head");
        assert_ne!(kept, older, "a release keeps the newest head before it drops what others name");
        egress.pool.close().await;
        open().await;
    }

    #[tokio::test]
    async fn an_agent_goes_on_after_another_process_has_released_twice() {
        let dir = tempfile::tempdir().expect("a folder");
        let agent = Egress::open(dir.path(), &site("h")).await.expect("opens");
        agent.note(decline("one")).await.expect("noted");
        let other = Egress::open(dir.path(), &site("h")).await.expect("opens");
        empty(&other).await;
        empty(&other).await;
        agent.note(decline("two")).await.expect("noted");
        assert_eq!(agent.counts().await.expect("counted")["decline"].messages, 2);
        let (_, chain) = agent.entries().await.expect("read");
        assert_eq!(chain, other.entries().await.expect("read").1);
        // Both at once, each with its own file until the head is whole.
        tokio::join!(
            async {
                for _ in 0..20 {
                    agent.note(decline("a")).await.expect("noted");
                }
            },
            async {
                for _ in 0..20 {
                    other.note(decline("b")).await.expect("noted");
                }
            }
        );
        let (_, chain) = agent.entries().await.expect("read");
        assert_eq!(head::read(dir.path(), HEAD).expect("read"), Some(chain.head()));
        Egress::open(dir.path(), &site("h")).await.expect("opens");
    }

    #[tokio::test]
    async fn a_message_larger_than_its_kind_does_not_leave() {
        let dir = tempfile::tempdir().expect("a folder");
        let egress = Egress::open(dir.path(), &site("h")).await.expect("opens");
        let large = egress.note(decline(&"x".repeat(64 << 10))).await.err();
        assert!(matches!(large, Some(EgressError::Large { kind: Kind::Decline, .. })), "{large:?}");
        assert_eq!(egress.entries().await.expect("read").0.len(), 0, "it did not leave");
    }
}
