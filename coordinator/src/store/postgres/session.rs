//! The writer's session: one at a time over all coordinators, on a server that keeps what it acknowledges. When it breaks,
//! the next one looks at what became of the last commit before anything else is written.

use super::init::{APPEND_ONLY, SCHEMA, check_schema};
use crate::{
    clock,
    persons::Persons,
    proofs,
    store::{
        Store, StoreError,
        writer::{self, Due, Results, Tip, Tx},
    },
};
use falaj_core::merkle::{Frontier, verify_inclusion};
use sqlx::{
    ConnectOptions as _, Connection as _, PgConnection, PgPool,
    postgres::{PgConnectOptions, PgPoolOptions, PgSslMode},
};
use std::{
    fs, io,
    net::IpAddr,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    str::FromStr as _,
    time::Duration,
};

/// Readers at once, beside the writer.
const READERS: u32 = 4;
/// The oldest server that is taken.
const SERVER_MIN: i32 = 14;
/// The advisory lock of the one writer: its class, `falj`, and its number in it.
const LOCK: (i32, i32) = (0x6661_6c6a, 1);
/// How long a statement waits for any lock, the writer's among them: less than those whose commits wait are ready to wait.
const LOCK_WAIT: Duration = Duration::from_secs(1);
/// How often the writer's lock is asked for at the start: who ended just now may not have let go of it.
const LOCK_TRIES: u32 = 3;
/// Connecting, checking and becoming the writer take at most this long.
const READY_MAX: Duration = Duration::from_secs(5);
/// One transaction takes at most this long.
const COMMIT_MAX: Duration = Duration::from_secs(10);
/// A reader's statement takes at most this long.
const READ_MAX: Duration = Duration::from_secs(30);
/// How long a reader waits for a connection.
const ACQUIRE_MAX: Duration = Duration::from_secs(5);

/// Why a file with a database's URL cannot be used. The URL holds a password, so nothing of it is shown.
#[derive(Debug, thiserror::Error)]
pub enum UrlError {
    /// It cannot be read.
    #[error("cannot read {0}")]
    Read(PathBuf, #[source] io::Error),
    /// Others can read it.
    #[error("{0} can be read by others (mode {1:o}): run `chmod 600 {0}`")]
    Mode(PathBuf, u32),
    /// It is not a URL.
    #[error("{0} holds no `postgres://user@host/database`")]
    Malformed(PathBuf, #[source] Option<sqlx::Error>),
    /// A server on another machine, and no or half a check of who it is.
    #[error(
        "{0} names a server on another machine with a weak `sslmode`: leave it out or set it to `verify-full`, and set `sslrootcert` to the server's CA"
    )]
    Tls(PathBuf),
}

/// How a database is reached, from a file with its URL. A server on another machine is reached by TLS, its certificate and
/// name checked; on this one TLS is used if the URL says so.
///
/// # Errors
/// [`UrlError`].
pub fn url(path: &Path) -> Result<PgConnectOptions, UrlError> {
    let read = |e| UrlError::Read(path.to_owned(), e);
    let mode = fs::metadata(path).map_err(read)?.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(UrlError::Mode(path.to_owned(), mode));
    }
    let text = fs::read_to_string(path).map_err(read)?;
    let malformed = |e| UrlError::Malformed(path.to_owned(), e);
    if !text.starts_with("postgres://") && !text.starts_with("postgresql://") {
        return Err(malformed(None));
    }
    let options = PgConnectOptions::from_str(text.trim()).map_err(|e| malformed(Some(e)))?;
    if options.get_database().is_none() {
        return Err(malformed(None));
    }
    let host = options.get_host().trim_matches(['[', ']']);
    let local = options.get_socket().is_some()
        || host.starts_with('/')
        || host == "localhost"
        || host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback());
    match options.get_ssl_mode() {
        _ if local => Ok(options),
        PgSslMode::VerifyFull => Ok(options),
        // What is meant when nothing is said.
        PgSslMode::Prefer => Ok(options.ssl_mode(PgSslMode::VerifyFull)),
        _ => Err(UrlError::Tls(path.to_owned())),
    }
}

/// Readers: whatever they are asked, they change nothing.
pub(in crate::store) async fn readers(options: &PgConnectOptions) -> Result<PgPool, StoreError> {
    let options = options.clone().application_name("falaj-coordinator, reading").options([
        ("search_path", SCHEMA.to_owned()),
        ("default_transaction_read_only", "on".to_owned()),
        ("lock_timeout", LOCK_WAIT.as_millis().to_string()),
        ("statement_timeout", READ_MAX.as_millis().to_string()),
    ]);
    let pool = PgPoolOptions::new().max_connections(READERS).acquire_timeout(ACQUIRE_MAX);
    Ok(pool.connect_with(options).await?)
}

/// Reads in bounded time: the server ends a statement that takes too long, and this one whose server is gone.
pub(in crate::store) async fn reading<T>(
    read: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    bounded(READ_MAX, "reading", read).await
}

/// What every transaction leaves behind, for whoever has to find out whether it is there.
type Mark = Vec<u8>;

/// The writer's session.
pub(in crate::store) struct Session {
    options: PgConnectOptions,
    /// None after anything went wrong on it.
    connection: Option<PgConnection>,
    /// The server's process that the connection spoke to last, and since when it runs.
    backend: Option<(i32, String)>,
    /// The mark of the newest transaction that is known to be durable.
    mark: Mark,
    /// The mark of a transaction whose `COMMIT` was sent and not answered, and where the log ends if it is there.
    in_doubt: Option<(Mark, Tip)>,
    /// Why nothing is written any more.
    lost: Option<String>,
}

async fn bounded<T>(
    limit: Duration,
    what: &str,
    work: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    let late = |_| StoreError::Slow(format!("{what} took more than {} s", limit.as_secs()));
    tokio::time::timeout(limit, work).await.map_err(late)?
}

impl Session {
    /// Becomes the one writer.
    pub(in crate::store) async fn open(options: &PgConnectOptions) -> Result<Self, StoreError> {
        // No timeout for statements: the server would break off the wait for a standby and call the commit done. The
        // transaction as a whole has a limit, kept here.
        let options = options.clone().options([
            ("search_path", SCHEMA.to_owned()),
            ("lock_timeout", LOCK_WAIT.as_millis().to_string()),
            ("statement_timeout", "0".to_owned()),
            ("idle_in_transaction_session_timeout", (2 * COMMIT_MAX).as_millis().to_string()),
            // The lock of a machine that is gone is free again after this.
            ("tcp_keepalives_idle", "5".to_owned()),
            ("tcp_keepalives_interval", "5".to_owned()),
            ("tcp_keepalives_count", "3".to_owned()),
        ]);
        let name = format!("falaj-coordinator, process {}", std::process::id());
        let mut this = Self {
            options: options.application_name(&name),
            connection: None,
            backend: None,
            mark: Mark::new(),
            in_doubt: None,
            lost: None,
        };
        bounded(READY_MAX, "connecting", async {
            let mut connection = this.connect().await?;
            check_schema(&mut connection).await?;
            check_role(&mut connection).await?;
            let mut tries = 1;
            while let Err(e) = this.lock(&mut connection).await {
                if !matches!(e, StoreError::Held(_)) || tries == LOCK_TRIES {
                    return Err(e);
                }
                tries += 1;
            }
            this.mark = mark(&mut connection).await?;
            this.connection = Some(connection);
            Ok(())
        })
        .await?;
        Ok(this)
    }

    /// The open connection.
    pub(in crate::store) fn connection(&mut self) -> Result<&mut PgConnection, StoreError> {
        let closed = || StoreError::Unreachable(sqlx::Error::PoolClosed);
        self.connection.as_mut().ok_or_else(closed)
    }

    /// One transaction, with its outcome known wherever it can be.
    pub(in crate::store) async fn write(
        &mut self,
        store: &Store,
        tip: &mut Tip,
        persons: &Persons,
        commits: Vec<Due>,
    ) -> Result<Results, StoreError> {
        self.ready(store, tip).await?;
        match self.transact(tip, persons, commits).await {
            Ok((results, after)) => {
                *tip = after;
                Ok(results)
            }
            Err((e, None)) => Err(e),
            Err((e, Some(results))) => match self.ready(store, tip).await {
                Ok(true) => Ok(results),
                Ok(false) => Err(e),
                Err(later) => {
                    tracing::warn!(error = %format!("{:#}", anyhow::Error::from(later)), "it is not known yet whether the last commit is durable");
                    Err(e)
                }
            },
        }
    }

    /// Sees to it that the connection is there and the log in the database the one in memory. Says whether a commit that
    /// was in doubt is durable; `tip` counts it in then.
    async fn ready(&mut self, store: &Store, tip: &mut Tip) -> Result<bool, StoreError> {
        if let Some(why) = &self.lost {
            return Err(StoreError::Lost(why.clone()));
        }
        if let Some(connection) = &mut self.connection {
            let asked = async { Ok(connection.ping().await?) };
            if bounded(LOCK_WAIT, "an answer", asked).await.is_ok() {
                return Ok(false);
            }
            self.connection = None;
        }
        let looked = bounded(READY_MAX, "connecting", self.look(store, tip)).await;
        if let Err(StoreError::Lost(why)) = &looked {
            self.lost = Some(why.clone());
        }
        let durable = looked?;
        if durable {
            // What was found there may still be on its way to a standby; once the next commit is acknowledged it is not.
            self.transact(tip, &Persons::default(), Vec::new()).await.map_err(|(e, _)| e)?;
        }
        Ok(durable)
    }

    /// Connects again and compares.
    async fn look(&mut self, store: &Store, tip: &mut Tip) -> Result<bool, StoreError> {
        let mut connection = self.connect().await?;
        check_role(&mut connection).await?;
        // Whoever has the lock is the only one that writes: a transaction of the session that had it before is over.
        self.lock(&mut connection).await?;
        let found = mark(&mut connection).await?;
        let size = store.size().await?;
        let after = match &self.in_doubt {
            Some((mark, after)) if *mark == found => Some(after.clone()),
            _ => None,
        };
        let expected = &after.as_ref().unwrap_or(tip).frontier;
        if size < expected.size() {
            return Err(StoreError::Lost(format!(
                "the log has {size} entries, but {} were durable: an older database was restored",
                expected.size()
            )));
        }
        if (after.is_none() && found != self.mark)
            || size != expected.size()
            || !has_root(store, expected).await?
        {
            return Err(StoreError::Lost(format!(
                "the log of {size} entries was written by somebody else after {} of ours",
                expected.size()
            )));
        }
        self.connection = Some(connection);
        self.in_doubt = None;
        let durable = after.is_some();
        if let Some(after) = after {
            *tip = after;
            self.mark = found;
        }
        Ok(durable)
    }

    /// One transaction. An error comes with results when `COMMIT` was sent, and it is in doubt.
    async fn transact(
        &mut self,
        tip: &Tip,
        persons: &Persons,
        commits: Vec<Due>,
    ) -> Result<(Results, Tip), (StoreError, Option<Results>)> {
        let mark = clock::nonce().to_vec();
        let mut sent = None;
        let done = bounded(COMMIT_MAX, "a commit", async {
            let before = self.mark.clone();
            let mut tx = self.connection()?.begin().await?;
            let set = sqlx::query("UPDATE writer SET mark = $1 WHERE mark = $2")
                .bind(&mark)
                .bind(before)
                .execute(&mut *tx)
                .await?;
            if set.rows_affected() != 1 {
                return Err(StoreError::Lost("somebody else wrote to the database".into()));
            }
            let mut tx = Tx::Postgres(tx);
            sent = Some(writer::fill(&mut tx, tip, persons, commits).await?);
            tx.commit().await
        })
        .await;
        match (done, sent) {
            (Ok(()), Some(group)) => {
                self.mark = mark;
                Ok(group)
            }
            (Ok(()), None) => Err((StoreError::Unreachable(sqlx::Error::WorkerCrashed), None)),
            (Err(e), sent) => {
                self.connection = None;
                if let StoreError::Lost(why) = &e {
                    self.lost = Some(why.clone());
                }
                let results = sent.map(|(results, after)| {
                    self.in_doubt = Some((mark, after));
                    results
                });
                Err((e, results))
            }
        }
    }

    /// A new connection to a server that keeps what it acknowledges.
    async fn connect(&mut self) -> Result<PgConnection, StoreError> {
        let mut connection = self.options.connect().await?;
        check_server(&mut connection).await?;
        if let Some((pid, since)) = &self.backend {
            // A session of ours that the server has not missed yet would keep the lock from us.
            sqlx::query("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid = $1 AND backend_start::text = $2")
                .bind(pid)
                .bind(since)
                .execute(&mut connection)
                .await?;
        }
        Ok(connection)
    }

    /// Takes the writer's lock, which ends with the connection.
    async fn lock(&mut self, connection: &mut PgConnection) -> Result<(), StoreError> {
        let (class, number) = LOCK;
        let taken = sqlx::query("SELECT pg_advisory_lock($1, $2)")
            .bind(class)
            .bind(number)
            .execute(&mut *connection)
            .await
            .map_err(StoreError::from);
        if let Err(StoreError::Slow(_)) = taken {
            let holder: Option<String> = sqlx::query_scalar("SELECT concat_ws(', ', a.application_name, 'as ' || a.usename, 'from ' || coalesce(host(a.client_addr), 'the server''s machine'), 'since ' || a.backend_start::text) FROM pg_locks l JOIN pg_stat_activity a USING (pid) WHERE l.locktype = 'advisory' AND l.granted AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database()) AND l.classid = $1::int4::oid AND l.objid = $2::int4::oid AND l.objsubid = 2")
                .bind(class)
                .bind(number)
                .fetch_optional(connection)
                .await?;
            return Err(StoreError::Held(holder.unwrap_or_else(|| "it has just ended".into())));
        }
        taken?;
        let backend = sqlx::query_as(
            "SELECT pid, backend_start::text FROM pg_stat_activity WHERE pid = pg_backend_pid()",
        );
        self.backend = Some(backend.fetch_one(connection).await?);
        Ok(())
    }
}

/// The mark of the newest transaction.
async fn mark(connection: &mut PgConnection) -> Result<Mark, StoreError> {
    Ok(sqlx::query_scalar("SELECT mark FROM writer").fetch_one(connection).await?)
}

/// Whether the entries in the database have this root: the last one, and by its proof all before it.
async fn has_root(store: &Store, tree: &Frontier) -> Result<bool, StoreError> {
    let Some(last) = tree.size().checked_sub(1) else { return Ok(true) };
    let entries = store.entries(last, tree.size(), 1, None).await?;
    let Some((_, _, leaf)) = entries.first() else { return Ok(false) };
    match proofs::inclusion(store, last, tree.size()).await {
        Ok(proof) => Ok(verify_inclusion(leaf, last, tree.size(), &proof, &tree.root()).is_ok()),
        Err(StoreError::Corrupt(_)) => Ok(false),
        Err(e) => Err(e),
    }
}

/// Refuses a server that could lose what it has acknowledged.
async fn check_server(connection: &mut PgConnection) -> Result<(), StoreError> {
    let unfit = |what: String| Err(StoreError::Unfit(what));
    let (version, fsync, pages, commit, read_only): (i32, String, String, String, bool) =
        sqlx::query_as("SELECT current_setting('server_version_num')::int, current_setting('fsync'), current_setting('full_page_writes'), current_setting('synchronous_commit'), pg_is_in_recovery() OR current_setting('transaction_read_only') = 'on'")
            .fetch_one(&mut *connection)
            .await?;
    if version < SERVER_MIN * 10_000 {
        return unfit(format!(
            "the server is PostgreSQL {}, version {SERVER_MIN} or newer is needed",
            version / 10_000
        ));
    }
    for (name, value) in [("fsync", fsync), ("full_page_writes", pages)] {
        if value != "on" {
            return unfit(format!(
                "the server runs with {name} = {value} and can lose what it has acknowledged: set it to on"
            ));
        }
    }
    if read_only {
        return Err(StoreError::ReadOnly);
    }
    // `remote_apply` waits for even more.
    if commit != "on" && commit != "remote_apply" {
        sqlx::query("SET synchronous_commit = on").execute(connection).await?;
    }
    Ok(())
}

/// Refuses a role that can rewrite the log, or cannot add to it.
async fn check_role(connection: &mut PgConnection) -> Result<(), StoreError> {
    let tables: Vec<(String, String, bool, bool, bool, bool)> = sqlx::query_as("SELECT c.relname::text, current_user::text, pg_has_role(c.relowner, 'MEMBER'), has_any_column_privilege(c.oid, 'UPDATE') OR has_table_privilege(c.oid, 'DELETE') OR has_table_privilege(c.oid, 'TRUNCATE') OR has_table_privilege(c.oid, 'TRIGGER'), has_table_privilege(c.oid, 'INSERT') AND has_table_privilege(c.oid, 'SELECT'), EXISTS (SELECT FROM pg_trigger t WHERE t.tgrelid = c.oid AND t.tgname = 'append_only' AND t.tgenabled = 'A') FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = $1 AND c.relname = ANY ($2)")
        .bind(SCHEMA)
        .bind(&APPEND_ONLY[..])
        .fetch_all(connection)
        .await?;
    let again = "run `falaj-coordinator database init` with an owner's URL";
    if tables.len() != APPEND_ONLY.len() {
        return Err(StoreError::Unfit(format!("tables of the log are missing: {again}")));
    }
    for (table, role, owns, changes, adds, guarded) in tables {
        let what = if owns {
            format!(
                "the role {role} owns {table} or is a superuser, so it could rewrite the log: give the coordinator a role of its own"
            )
        } else if changes {
            format!("the role {role} may change what is in {table}: {again}, which takes that away")
        } else if !adds {
            format!("the role {role} may not add to {table}: {again}")
        } else if !guarded {
            format!(
                "the trigger `append_only` of {table} is missing or switched off: have its owner switch it on again (ALTER TABLE {SCHEMA}.{table} ENABLE ALWAYS TRIGGER append_only)"
            )
        } else {
            continue;
        };
        return Err(StoreError::Unfit(what));
    }
    Ok(())
}
