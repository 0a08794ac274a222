//! What only a database server has: roles, sessions that break, and a process that can be killed.

use super::{Home, Running, everything, signer};
use crate::server::Server;
use anyhow::{Context as _, Result};
use falaj_certs::ca::{Authority, Request};
use falaj_coordinator::{
    fsck,
    persons::Persons,
    store::{self, Database, Store, writer::CommitError},
};
use falaj_core::{
    audit::{Draft, Kind},
    id::{Digest, Role},
};
use sqlx::{
    AssertSqlSafe, ConnectOptions as _, Row as _,
    error::DatabaseError,
    postgres::{PgConnectOptions, PgSslMode},
};
use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU8, Ordering},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, UnixStream},
    task::JoinSet,
};

/// How long a test waits for what must happen.
const PATIENCE: Duration = Duration::from_mins(2);

/// A fresh database on the shared server, if there is one.
async fn home() -> Result<Option<(Home, Arc<Server>, u32)>> {
    let Some(server) = Server::shared()? else { return Ok(None) };
    on(server).await.map(Some)
}

async fn on(server: Arc<Server>) -> Result<(Home, Arc<Server>, u32)> {
    let home = Home::on(server.clone()).await?;
    let Home::Postgres(_, n) = home else { anyhow::bail!("another kind") };
    Ok((home, server, n))
}

/// Records an entry as soon as the writer takes one, and gives its place. Who is told that nothing was acknowledged may ask
/// again.
async fn as_soon_as(running: &Running) -> Result<u64> {
    let taken = async {
        loop {
            match running.record(1).await {
                Ok(place) => return place,
                Err(_) => tokio::task::yield_now().await,
            }
        }
    };
    Ok(tokio::time::timeout(PATIENCE, taken).await?)
}

/// Not acknowledged, in bounded time, and to be tried again.
fn passes(refused: &Result<u64, CommitError>) -> bool {
    matches!(refused, Err(CommitError::Unavailable(_) | CommitError::Slow))
}

/// Why a coordinator does not start.
async fn refused(database: &Database) -> Result<String> {
    let error = Running::open(database, None).await.err().context("it started")?;
    Ok(format!("{error:#}"))
}

fn as_role(server: &Server, role: &str, n: u32) -> Database {
    Database::Postgres(Box::new(server.options(role, &format!("falaj_{n}"))))
}

/// AUD-05, AUD-07: what the coordinator's own role could do to the log, it cannot.
#[tokio::test(flavor = "multi_thread")]
async fn on_postgresql_the_writers_role_adds_to_the_log_and_changes_nothing_in_it() -> Result<()> {
    let Some((home, server, n)) = home().await? else { return Ok(()) };
    let running = home.open().await?;
    running.writer.commit(everything()).await?;
    running.close().await?;
    let writer = server.options(&format!("writer_{n}"), &format!("falaj_{n}"));
    let mut writer = writer.options([("search_path", "falaj")]).connect().await?;
    let mut statements: Vec<String> = [
        "UPDATE studies SET yaml = ''",
        "DELETE FROM studies",
        "DELETE FROM rounds",
        "DELETE FROM exchanges",
        "DELETE FROM writer",
        "DELETE FROM _sqlx_migrations",
        "CREATE TABLE falaj.mine ()",
        "CREATE TABLE public.mine ()",
        "CREATE ROLE mine",
        "SET session_replication_role = replica",
    ]
    .map(str::to_owned)
    .into();
    for table in [
        "log_entries",
        "log_checkpoints",
        "log_cosignatures",
        "certificates",
        "policies",
        "updates",
        "models",
    ] {
        let column: String = sqlx::query("SELECT attname::text FROM pg_attribute WHERE attrelid = to_regclass($1) AND attnum = 1")
            .bind(table)
            .fetch_one(&mut writer)
            .await?
            .get(0);
        for statement in [
            format!("UPDATE {table} SET {column} = {column}"),
            format!("DELETE FROM {table}"),
            format!("TRUNCATE {table}"),
            format!("ALTER TABLE {table} DISABLE TRIGGER append_only"),
            format!("DROP TABLE {table}"),
        ] {
            statements.push(statement);
        }
    }
    for statement in statements {
        let done = sqlx::query(AssertSqlSafe(statement.clone())).execute(&mut writer).await;
        let error = done.err().with_context(|| format!("{statement}: done"))?;
        let code = error.as_database_error().and_then(DatabaseError::code);
        assert_eq!(code.as_deref(), Some("42501"), "{statement}: {error}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn on_postgresql_a_role_that_could_rewrite_the_log_is_refused() -> Result<()> {
    let Some((home, server, n)) = home().await? else { return Ok(()) };
    let writer = as_role(&server, &format!("writer_{n}"), n);
    let said = refused(&as_role(&server, &format!("owner_{n}"), n)).await?;
    assert!(said.contains(&format!("role owner_{n} owns")), "{said}");
    let said = refused(&as_role(&server, "postgres", n)).await?;
    assert!(said.contains("role postgres owns") && said.contains("superuser"), "{said}");
    let owner = async |statement: String| -> Result<()> {
        home.owner(&statement).await?.map_err(anyhow::Error::msg)
    };
    for (give, take, why) in [
        ("GRANT UPDATE (kind) ON log_entries TO", "", "may change what is in log_entries"),
        ("GRANT DELETE ON log_checkpoints TO", "", "may change what is in log_checkpoints"),
        ("GRANT TRUNCATE ON updates TO", "", "may change what is in updates"),
        ("REVOKE INSERT ON log_entries FROM", "", "may not add to log_entries"),
    ] {
        owner(format!("{give} writer_{n} {take}")).await?;
        let said = refused(&writer).await?;
        assert!(said.contains(why) && said.contains("database init"), "{said}");
        // What mends it.
        let owner = server.options(&format!("owner_{n}"), &format!("falaj_{n}"));
        assert!(!store::init(&owner, &format!("writer_{n}")).await?.created);
        home.open().await?.close().await?;
    }
    // A member of the owner's role can become the owner.
    owner(format!("GRANT owner_{n} TO writer_{n}")).await?;
    assert!(refused(&writer).await?.contains("owns"));
    owner(format!("REVOKE owner_{n} FROM writer_{n}")).await?;
    owner("ALTER TABLE log_entries DISABLE TRIGGER append_only".into()).await?;
    let said = refused(&writer).await?;
    assert!(said.contains("`append_only` of log_entries is missing or switched off"), "{said}");
    owner("ALTER TABLE log_entries ENABLE ALWAYS TRIGGER append_only".into()).await?;
    home.open().await?.close().await
}

#[tokio::test(flavor = "multi_thread")]
async fn on_postgresql_a_schema_that_is_not_up_to_date_is_refused_with_the_command_to_run()
-> Result<()> {
    let Some(server) = Server::shared()? else { return Ok(()) };
    let n = server.database().await?;
    server.run("postgres", &[&format!("CREATE ROLE writer_{n} LOGIN")]).await?;
    let writer = as_role(&server, &format!("writer_{n}"), n);
    let said = refused(&writer).await?;
    assert!(
        said.contains("not set up for this role: run `falaj-coordinator database init`"),
        "{said}"
    );
    let owner = server.options(&format!("owner_{n}"), &format!("falaj_{n}"));
    let same = store::init(&owner, &format!("owner_{n}")).await.err().context("done")?;
    assert!(same.to_string().contains("needs one that owns nothing"), "{same}");
    let newest = store::init(&owner, &format!("writer_{n}")).await?.version;
    let home = Home::Postgres(server.clone(), n);
    home.open().await?.close().await?;
    for (statement, why) in [
        (
            "UPDATE _sqlx_migrations SET version = version + 100",
            "use a newer coordinator".to_owned(),
        ),
        (
            "UPDATE _sqlx_migrations SET version = version - 200",
            format!("{newest} is needed: run `falaj-coordinator database init`"),
        ),
        (
            "UPDATE _sqlx_migrations SET version = version + 100, checksum = 'x'",
            "is not the one of this coordinator".into(),
        ),
    ] {
        home.owner(statement).await?.map_err(anyhow::Error::msg)?;
        let said = refused(&writer).await?;
        assert!(said.contains(&why), "{statement}: {said}");
        assert!(Store::read(&writer).await.is_err(), "fsck takes {statement}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn on_postgresql_a_server_that_may_lose_what_it_acknowledged_is_refused() -> Result<()> {
    for setting in ["fsync=off", "full_page_writes=off"] {
        let Some(server) = Server::start(&[setting])? else { return Ok(()) };
        let (_, server, n) = on(server).await?;
        let said = refused(&as_role(&server, &format!("writer_{n}"), n)).await?;
        let (name, _) = setting.split_once('=').context("a setting")?;
        assert!(said.contains(&format!("runs with {name} = off")), "{said}");
    }
    Ok(())
}

/// Who writes, as the database tells it.
async fn sessions(server: &Server, n: u32) -> Result<Vec<(i32, String)>> {
    let mut superuser = server.superuser("postgres").await?;
    Ok(sqlx::query_as("SELECT pid, application_name FROM pg_stat_activity WHERE datname = $1 AND application_name LIKE 'falaj-coordinator, process %'")
        .bind(format!("falaj_{n}"))
        .fetch_all(&mut superuser)
        .await?)
}

#[tokio::test(flavor = "multi_thread")]
async fn on_postgresql_a_second_writer_is_refused_and_told_who_the_first_is() -> Result<()> {
    let Some((home, _, _)) = home().await? else { return Ok(()) };
    let first = home.open().await?;
    first.record(1).await?;
    let said = refused(&home.database()).await?;
    let process = format!("falaj-coordinator, process {}", std::process::id());
    assert!(said.contains("another coordinator writes") && said.contains(&process), "{said}");
    // The first is not disturbed, and the second can follow it.
    first.record(1).await?;
    first.close().await?;
    let second = home.open().await?;
    assert_eq!(second.record(1).await?, 2);
    second.close().await
}

/// A coordinator that lost its session while another wrote knows too little to go on.
#[tokio::test(flavor = "multi_thread")]
async fn on_postgresql_a_writer_that_was_replaced_writes_no_more() -> Result<()> {
    let Some((home, server, n)) = home().await? else { return Ok(()) };
    let first = home.open().await?;
    first.record(3).await?;
    for (pid, _) in sessions(&server, n).await? {
        server.run("postgres", &[&format!("SELECT pg_terminate_backend({pid})")]).await?;
    }
    let second = home.open().await?;
    let held = first.record(1).await;
    assert!(
        matches!(&held, Err(CommitError::Unavailable(why)) if why.contains("another coordinator")),
        "{held:?}"
    );
    assert_eq!(second.record(1).await?, 3);
    second.close().await?;
    for _ in 0..2 {
        let lost = first.record(1).await;
        assert!(
            matches!(&lost, Err(CommitError::Failed(why)) if why.contains("written by somebody else after 3 of ours")),
            "{lost:?}"
        );
    }
    first.close().await?;
    let third = home.open().await?;
    assert_eq!(third.writer.head().0, 4);
    third.close().await
}

#[tokio::test(flavor = "multi_thread")]
async fn on_postgresql_a_session_that_was_ended_is_replaced_without_a_restart() -> Result<()> {
    let Some((home, server, n)) = home().await? else { return Ok(()) };
    let running = home.open().await?;
    running.record(300).await?;
    for (pid, _) in sessions(&server, n).await? {
        server.run("postgres", &[&format!("SELECT pg_terminate_backend({pid})")]).await?;
    }
    assert_eq!(as_soon_as(&running).await?, 300);
    running.close().await
}

/// AUD-04: a disk that is full, a server that takes no writes, a lock that is not given back.
#[tokio::test(flavor = "multi_thread")]
async fn on_postgresql_full_read_only_and_locked_are_told_apart_and_pass() -> Result<()> {
    let Some((home, server, n)) = home().await? else { return Ok(()) };
    let owner = async |statement: &str| -> Result<()> {
        home.owner(statement).await?.map_err(anyhow::Error::msg)
    };
    let running = home.open().await?;
    running.record(1).await?;
    // The code that the server gives when it cannot extend a file.
    owner("CREATE FUNCTION no_room() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'could not extend file' USING ERRCODE = 'disk_full'; END $$").await?;
    owner("CREATE TRIGGER no_room BEFORE INSERT ON log_entries EXECUTE FUNCTION no_room()").await?;
    assert!(matches!(running.record(1).await, Err(CommitError::Full)));
    owner("DROP TRIGGER no_room ON log_entries").await?;
    assert_eq!(running.record(1).await?, 1);

    let database = format!("ALTER DATABASE falaj_{n} SET default_transaction_read_only =");
    server.run("postgres", &[&format!("{database} on")]).await?;
    for (pid, _) in sessions(&server, n).await? {
        server.run("postgres", &[&format!("SELECT pg_terminate_backend({pid})")]).await?;
    }
    assert!(matches!(running.record(1).await, Err(CommitError::ReadOnly)));
    assert!(refused(&home.database()).await?.contains("read-only"));
    server.run("postgres", &[&format!("{database} off")]).await?;
    assert_eq!(running.record(1).await?, 2);

    let mut locker = server.superuser(&format!("falaj_{n}")).await?;
    sqlx::raw_sql("BEGIN; LOCK TABLE falaj.log_entries").execute(&mut locker).await?;
    let slow = running.record(1).await;
    assert!(
        matches!(&slow, Err(CommitError::Unavailable(why)) if why.contains("lock timeout")),
        "{slow:?}"
    );
    drop(locker);
    assert_eq!(running.record(1).await?, 3);
    running.close().await
}

/// AUD-03, AUD-04: killed under load, a server loses nothing that was acknowledged, and the coordinator finds it again.
#[tokio::test(flavor = "multi_thread")]
async fn on_postgresql_nothing_acknowledged_is_lost_when_the_server_is_killed_under_load()
-> Result<()> {
    let Some(server) = Server::start(&[])? else { return Ok(()) };
    let (home, server, _) = on(server).await?;
    let running = Arc::new(home.open().await?);
    let mut acknowledged: BTreeMap<u64, Digest> = BTreeMap::new();
    for _ in 0..5 {
        let over = Arc::new(AtomicBool::new(false));
        let mut callers = JoinSet::new();
        for _ in 0..8 {
            let (running, over) = (running.clone(), over.clone());
            callers.spawn(async move {
                let mut held = Vec::new();
                // Each goes on until its first refusal after the kill.
                loop {
                    let drafts = vec![Draft::new(Kind::AdminRead)];
                    match running.writer.record(drafts).await {
                        Ok(done) => held.push((done.first, done.leaves[0])),
                        Err(_) if over.load(Ordering::Relaxed) => return held,
                        Err(_) => tokio::task::yield_now().await,
                    }
                }
            });
        }
        let before = running.writer.head().0;
        let mut heads = running.writer.heads();
        heads.wait_for(|(size, _)| *size >= before + 200).await?;
        over.store(true, Ordering::Relaxed);
        server.kill()?;
        while let Some(held) = callers.join_next().await {
            acknowledged.extend(held?);
        }
        let away = running.record(1).await;
        assert!(passes(&away), "{away:?}");
        server.launch()?;
        let next = as_soon_as(&running).await?;
        let (size, _) = running.writer.head();
        assert_eq!(size, next + 1);
    }
    let (size, root) = running.writer.head();
    let entries = running.store.entries(0, size, u32::MAX, None).await?;
    assert_eq!(entries.len() as u64, size);
    for (index, leaf) in &acknowledged {
        assert_eq!(entries[usize::try_from(*index)?].2, *leaf, "entry {index}");
    }
    assert!(acknowledged.len() >= 1_000, "{}", acknowledged.len());
    Arc::into_inner(running).context("still used")?.close().await?;
    let again = home.open().await?;
    assert_eq!(again.writer.head(), (size, root));
    again.close().await?;
    let store = Store::read(&home.database()).await?;
    let found =
        fsck::check(&store, (signer().verifier(), None), &Persons::default(), None, |_| {}).await?;
    assert_eq!((found.entries, found.faults), (size, vec![]));
    Ok(())
}

/// AUD-05: the server comes back with an older database under a coordinator that runs.
#[tokio::test(flavor = "multi_thread")]
async fn on_postgresql_an_older_database_under_a_running_coordinator_is_written_no_more()
-> Result<()> {
    let Some((mut home, server, n)) = home().await? else { return Ok(()) };
    let running = home.open().await?;
    running.record(5).await?;
    running.close().await?;
    home.back_up().await?;
    let running = home.open().await?;
    running.record(4).await?;
    // Everybody is shut out while the copy takes the database's place.
    let shut = format!("ALTER DATABASE falaj_{n} ALLOW_CONNECTIONS false");
    server.run("postgres", &[&shut]).await?;
    home.restore().await?;
    let lost = running.record(1).await;
    assert!(
        matches!(&lost, Err(CommitError::Failed(why)) if why.contains("the log has 5 entries, but 9 were durable")),
        "{lost:?}"
    );
    running.close().await
}

/// What a proxy does when it sees a `COMMIT` go by.
#[derive(Clone, Copy)]
enum Fault {
    None,
    /// It breaks before the server sees it.
    LoseRequest,
    /// It breaks before the client sees the answer.
    LoseAnswer,
    /// As before, and then nobody gets through.
    LoseAnswerAndStay,
    /// Nobody gets through.
    Away,
    /// Everybody is let in, and nothing is passed on.
    Silent,
}

/// Passes bytes between TCP and a server's socket.
struct Proxy {
    port: u16,
    fault: Arc<AtomicU8>,
}

impl Proxy {
    async fn start(socket: &Path) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let port = listener.local_addr()?.port();
        let fault = Arc::new(AtomicU8::new(Fault::None as u8));
        let socket = socket.join(".s.PGSQL.5432");
        let shared = fault.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                if shared.load(Ordering::SeqCst) == Fault::Away as u8 {
                    continue;
                }
                let Ok(server) = UnixStream::connect(&socket).await else { continue };
                tokio::spawn(pass(client, server, shared.clone()));
            }
        });
        Ok(Self { port, fault })
    }

    fn fault(&self, fault: Fault) {
        self.fault.store(fault as u8, Ordering::SeqCst);
    }

    fn database(&self, server: &Server, n: u32) -> Database {
        let options = server.options(&format!("writer_{n}"), &format!("falaj_{n}"));
        let database = options.get_database().unwrap_or_default().to_owned();
        Database::Postgres(Box::new(
            PgConnectOptions::new_without_pgpass()
                .host("127.0.0.1")
                .port(self.port)
                .username(options.get_username())
                .password("")
                .database(&database)
                .ssl_mode(PgSslMode::Disable),
        ))
    }
}

async fn pass(mut client: TcpStream, mut server: UnixStream, fault: Arc<AtomicU8>) {
    let (mut asked, mut answered) = (vec![0; 1 << 16], vec![0; 1 << 16]);
    loop {
        tokio::select! {
            read = client.read(&mut asked) => {
                let Ok(n @ 1..) = read else { return };
                let now = fault.load(Ordering::SeqCst);
                if now == Fault::Silent as u8 {
                    continue;
                }
                let commit = asked[..n].windows(7).any(|w| w == b"COMMIT\0");
                if commit && now == Fault::LoseRequest as u8 {
                    fault.store(Fault::None as u8, Ordering::SeqCst);
                    return;
                }
                if server.write_all(&asked[..n]).await.is_err() {
                    return;
                }
                let lose = now == Fault::LoseAnswer as u8;
                let stay = now == Fault::LoseAnswerAndStay as u8;
                if commit && (lose || stay) {
                    // It is done when the answer is there.
                    let _ = server.read(&mut answered).await;
                    let next = if stay { Fault::Away } else { Fault::None };
                    fault.store(next as u8, Ordering::SeqCst);
                    return;
                }
            }
            read = server.read(&mut answered) => {
                let Ok(n @ 1..) = read else { return };
                if client.write_all(&answered[..n]).await.is_err() {
                    return;
                }
            }
        }
    }
}

/// AUD-03: whether a commit happened whose answer was lost is looked up, and never guessed.
#[tokio::test(flavor = "multi_thread")]
async fn on_postgresql_a_commit_whose_answer_was_lost_is_looked_up() -> Result<()> {
    let Some((home, server, n)) = home().await? else { return Ok(()) };
    let proxy = Proxy::start(server.dir()).await?;
    let running = Running::open(&proxy.database(&server, n), None).await?;
    running.record(257).await?;

    proxy.fault(Fault::LoseAnswer);
    assert_eq!(running.record(2).await?, 257, "it is durable, and said to be");

    proxy.fault(Fault::LoseRequest);
    let lost = running.record(2).await;
    assert!(passes(&lost), "{lost:?}");
    assert_eq!(as_soon_as(&running).await?, 259, "it is not there, and its place is free");

    // Rows without entries leave the head as it is; it is known all the same.
    proxy.fault(Fault::LoseAnswer);
    let rows = everything()
        .rows
        .into_iter()
        .filter(|r| matches!(r, store::writer::Change::Certificate(..)));
    let commit = store::writer::Commit { rows: rows.collect(), ..Default::default() };
    running.writer.commit(commit).await?;
    assert_eq!(running.store.certificates().await?.len(), 1);

    // Nobody can look: the caller is refused, and the entries are found when somebody can.
    proxy.fault(Fault::LoseAnswerAndStay);
    let unknown = running.record(3).await;
    assert!(passes(&unknown), "{unknown:?}");
    assert_eq!(running.writer.head().0, 260);
    assert!(passes(&running.record(1).await));
    proxy.fault(Fault::None);
    assert_eq!(as_soon_as(&running).await?, 263);
    running.close().await?;
    let again = home.open().await?;
    assert_eq!(again.writer.head().0, 264);
    again.close().await
}

/// AUD-04: a server that says nothing is given up in bounded time.
#[tokio::test(flavor = "multi_thread")]
async fn on_postgresql_a_server_that_falls_silent_is_given_up_and_found_again() -> Result<()> {
    let Some((_, server, n)) = home().await? else { return Ok(()) };
    let proxy = Proxy::start(server.dir()).await?;
    let running = Running::open(&proxy.database(&server, n), None).await?;
    running.record(1).await?;
    proxy.fault(Fault::Silent);
    let slow = running.record(1).await;
    assert!(passes(&slow), "{slow:?}");
    proxy.fault(Fault::None);
    assert_eq!(as_soon_as(&running).await?, 1);
    running.close().await
}

#[tokio::test(flavor = "multi_thread")]
async fn on_postgresql_tls_is_rustls_and_the_servers_name_is_checked() -> Result<()> {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()])?;
    let (certificate, key) = (made.cert.pem(), made.signing_key.serialize_pem());
    let port = TcpListener::bind("127.0.0.1:0").await?.local_addr()?.port();
    let settings = [
        format!("port={port}"),
        "listen_addresses=127.0.0.1".into(),
        "ssl=on".into(),
        "ssl_cert_file=../server.pem".into(),
        "ssl_key_file=../server.key".into(),
    ];
    let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
    let files = [("server.pem", certificate.as_bytes()), ("server.key", key.as_bytes())];
    let Some(server) = Server::with(&settings, &files)? else { return Ok(()) };
    let (_, server, n) = on(server).await?;
    let root = server.dir().join("server.pem");
    let dir = tempfile::tempdir()?;
    let at = |host: &str, root: &str| -> Result<Database> {
        let file = dir.path().join("database.url");
        fs::write(
            &file,
            format!("postgres://writer_{n}@{host}:{port}/falaj_{n}?sslmode=verify-full{root}"),
        )?;
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600))?;
        Ok(Database::Postgres(Box::new(store::url(&file)?)))
    };
    let trusted = format!("&sslrootcert={}", root.display());
    let running = Running::open(&at("localhost", &trusted)?, None).await?;
    running.record(1).await?;
    let mut superuser = server.superuser("postgres").await?;
    let versions: Vec<Option<String>> = sqlx::query_scalar(
        "SELECT version FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE usename = $1",
    )
    .bind(format!("writer_{n}"))
    .fetch_all(&mut superuser)
    .await?;
    assert!(!versions.is_empty());
    assert!(versions.iter().all(|v| v.as_deref() == Some("TLSv1.3")), "{versions:?}");
    running.close().await?;
    for (database, why) in [
        (at("localhost", "")?, "UnknownIssuer"),
        (at("127.0.0.1", &trusted)?, "not valid for name"),
    ] {
        let said = refused(&database).await?;
        assert!(said.contains(why), "{said}");
    }
    Ok(())
}

/// The program itself: an owner sets the database up, the coordinator runs in it, and `fsck` reads it.
#[tokio::test(flavor = "multi_thread")]
async fn on_postgresql_the_program_sets_up_runs_and_checks() -> Result<()> {
    let Some(server) = Server::shared()? else { return Ok(()) };
    let n = server.database().await?;
    let dir = tempfile::tempdir()?;
    let at = |name: &str| dir.path().join(name);
    let authority = Authority::init(&at("ca"), "falaj.test")?;
    let place = "ae-on/ae-az".parse()?;
    authority.add_issuer(&place)?;
    let request =
        Request { role: Role::Coordinator, name: "main".into(), place, days: 1, dns: vec![] };
    let identity = authority.issue(&request)?;
    fs::write(
        at("coordinator.toml"),
        format!(
            "[identity]\ncert = \"{id}/cert.pem\"\nkey = \"{id}/key.pem\"\ntrust = \"{trust}\"\n\
         [listen]\ngrpc = \"127.0.0.1:0\"\nrest = \"127.0.0.1:0\"\n\
         [state]\ndir = \"state\"\n[state.database]\nurl_file = \"database.url\"\nplace = \"ae-on/ae-az\"\n\
         [log]\norigin = \"falaj.test/log\"\n[policy]\ndir = \"{policies}\"\n",
            id = identity.display(),
            trust = authority.trust_path().display(),
            policies = Path::new(env!("CARGO_MANIFEST_DIR")).join("../policies").display(),
        ),
    )?;
    for (file, role) in [("database.url", "writer"), ("owner.url", "owner")] {
        fs::write(at(file), server.url(&format!("{role}_{n}"), &format!("falaj_{n}")))?;
        fs::set_permissions(at(file), fs::Permissions::from_mode(0o600))?;
    }
    let program = |words: &[&str]| {
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_falaj-coordinator"));
        command.args(words).arg("--config").arg(at("coordinator.toml")).kill_on_drop(true);
        command
    };
    let said = async |words: &[&str]| -> Result<(bool, String)> {
        let out = program(words).output().await?;
        let said = [out.stdout, out.stderr].concat();
        Ok((out.status.success(), String::from_utf8(said)?))
    };
    server.run("postgres", &[&format!("CREATE ROLE writer_{n} LOGIN")]).await?;
    let (done, words) = said(&["run"]).await?;
    assert!(!done && words.contains("run `falaj-coordinator database init`"), "{words}");
    let owner = at("owner.url").display().to_string();
    let init = ["database", "init", "--owner-url-file", &owner];
    for _ in 0..2 {
        let (done, words) = said(&init).await?;
        assert!(
            done && words.contains(&format!("the role writer_{n} may add to the log")),
            "{words}"
        );
    }
    let (done, words) = said(&["config", "check"]).await?;
    assert!(done, "{words}");

    let ready = at("ready.json");
    let mut running = program(&["run", "--ready-file", &ready.display().to_string()])
        .stderr(std::process::Stdio::null())
        .spawn()?;
    while !ready.exists() {
        assert!(running.try_wait()?.is_none(), "it ended");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    let (done, words) = said(&["run"]).await?;
    assert!(!done && words.contains("another coordinator writes to this database"), "{words}");
    let pid = running.id().context("it ended")?.to_string();
    assert!(std::process::Command::new("kill").args(["-TERM", &pid]).status()?.success());
    assert!(running.wait().await?.success());
    let (done, words) = said(&["fsck"]).await?;
    assert!(done && words.contains("whole: falaj.test/log, 3 entries"), "{words}");
    assert!(!at("state/coordinator.sqlite").exists());
    Ok(())
}

#[test]
fn a_url_lies_in_a_file_of_its_own_and_another_machine_is_reached_by_tls() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("database.url");
    let read = |text: &str, mode: u32| -> Result<Result<PgConnectOptions, String>> {
        fs::write(&file, text)?;
        fs::set_permissions(&file, fs::Permissions::from_mode(mode))?;
        Ok(store::url(&file).map_err(|e| format!("{:#}", anyhow::Error::from(e))))
    };
    let weak = |text: &str| -> Result<String> { read(text, 0o600)?.err().context("taken") };
    let said = read("postgres://a:hush@localhost/falaj", 0o640)?.err().context("taken")?;
    assert!(said.contains("chmod 600") && !said.contains("hush"), "{said}");
    for text in
        ["", "mysql://a:hush@b/c", "postgres://a:hush@db.example", "postgres://a:hush@b:x/c"]
    {
        let said = weak(text)?;
        assert!(said.contains("holds no `postgres://") && !said.contains("hush"), "{said}");
    }
    for mode in ["disable", "allow", "require", "verify-ca"] {
        let said = weak(&format!("postgres://a:hush@db.example/falaj?sslmode={mode}"))?;
        assert!(said.contains("weak `sslmode`") && !said.contains("hush"), "{said}");
    }
    let options =
        read("postgres://a:hush@db.example/falaj\n", 0o600)?.map_err(anyhow::Error::msg)?;
    assert!(matches!(options.get_ssl_mode(), PgSslMode::VerifyFull));
    for host in ["localhost", "127.0.0.1", "[::1]", "%2Frun%2Fpostgresql"] {
        let options = read(&format!("postgres://a@{host}/falaj?sslmode=disable"), 0o600)?;
        assert!(matches!(options.map_err(anyhow::Error::msg)?.get_ssl_mode(), PgSslMode::Disable));
    }
    Ok(())
}
