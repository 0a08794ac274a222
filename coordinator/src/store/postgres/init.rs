//! What an owner sets up before a coordinator may use a database: tables, triggers, and a role that can do what the
//! coordinator must and nothing else. The coordinator itself never comes here with more than a look.

use crate::store::StoreError;
use sqlx::{
    AssertSqlSafe, ConnectOptions as _, Connection as _, PgConnection, migrate::Migrator,
    postgres::PgConnectOptions,
};
use std::cmp::Ordering;

/// The schema that everything lies in.
pub(super) const SCHEMA: &str = "falaj";

/// Tables to which rows are only added. Their triggers are in the migrations.
pub(super) const APPEND_ONLY: [&str; 13] = [
    "log_entries",
    "log_checkpoints",
    "log_cosignatures",
    "log_shards",
    "log_prunings",
    "log_timestamps",
    "certificates",
    "policies",
    "updates",
    "models",
    "provenances",
    "log_personal",
    "personal_certificates",
];

/// What else the writer's role may do, and where.
const GRANTS: [(&str, &str); 9] = [
    ("studies", "SELECT, INSERT, UPDATE (state, reason)"),
    ("rounds", "SELECT, INSERT, UPDATE (state, version)"),
    ("registries", "SELECT, INSERT, UPDATE (state, version)"),
    ("exchanges", "SELECT, INSERT, UPDATE (messages)"),
    ("log_object_names", "SELECT, INSERT"),
    ("log_objects", "SELECT, INSERT"),
    ("log_tiles", "SELECT, INSERT, DELETE"),
    ("writer", "SELECT, UPDATE (mark)"),
    ("_sqlx_migrations", "SELECT"),
];

static MIGRATOR: Migrator = sqlx::migrate!("./migrations/postgres");

/// What was set up.
#[derive(Clone, Debug)]
pub struct Initialised {
    /// The newest migration.
    pub version: i64,
    /// Whether the role is new; it has no password then.
    pub created: bool,
}

/// Brings the schema up to date and makes `role` the writer's, which may add to the log and change nothing in it.
/// Running it again does no harm.
///
/// # Errors
/// [`StoreError`]; when the owner is the writer, or may not do this.
pub async fn init(owner: &PgConnectOptions, role: &str) -> Result<Initialised, StoreError> {
    let options = owner
        .clone()
        .application_name("falaj-coordinator, database init")
        .options([("search_path", SCHEMA)]);
    let mut connection = options.connect().await?;
    let connection = &mut connection;
    let (owner, database, quoted, exists): (String, String, String, bool) = sqlx::query_as("SELECT current_user::text, quote_ident(current_database()), quote_ident($1), EXISTS (SELECT FROM pg_roles WHERE rolname = $1)")
        .bind(role)
        .fetch_one(&mut *connection)
        .await?;
    if owner == role {
        return Err(StoreError::Unfit(format!(
            "the owner's URL and the coordinator's both name the role {role}: the coordinator needs one that owns nothing"
        )));
    }
    run(connection, format!("CREATE SCHEMA IF NOT EXISTS {SCHEMA}")).await?;
    MIGRATOR.run_direct(None, connection, false).await?;
    let mut tx = connection.begin().await?;
    if !exists {
        run(&mut tx, format!("CREATE ROLE {quoted} LOGIN")).await?;
    }
    run(&mut tx, format!("GRANT CONNECT ON DATABASE {database} TO {quoted}")).await?;
    run(&mut tx, format!("GRANT USAGE ON SCHEMA {SCHEMA} TO {quoted}")).await?;
    for who in [&quoted, "PUBLIC"] {
        run(&mut tx, format!("REVOKE ALL ON ALL TABLES IN SCHEMA {SCHEMA} FROM {who}")).await?;
    }
    let append_only = APPEND_ONLY.map(|table| (table, "SELECT, INSERT"));
    for (table, what) in append_only.into_iter().chain(GRANTS) {
        run(&mut tx, format!("GRANT {what} ON {table} TO {quoted}")).await?;
    }
    run(&mut tx, format!("GRANT EXECUTE ON FUNCTION empty_entries TO {quoted}")).await?;
    tx.commit().await?;
    let version = MIGRATOR.iter().map(|m| m.version).max().unwrap_or(0);
    Ok(Initialised { version, created: !exists })
}

/// A statement whose names cannot be bound; they are our own or quoted by the server.
async fn run(connection: &mut PgConnection, statement: String) -> Result<(), StoreError> {
    sqlx::query(AssertSqlSafe(statement)).execute(connection).await?;
    Ok(())
}

/// Refuses a schema that is not this version's.
pub(in crate::store) async fn check_schema(
    connection: &mut PgConnection,
) -> Result<(), StoreError> {
    let found: Result<Vec<(i64, Vec<u8>, bool)>, _> =
        sqlx::query_as("SELECT version, checksum, success FROM _sqlx_migrations ORDER BY version")
            .fetch_all(connection)
            .await;
    let found = match found {
        Ok(found) => found,
        // There is no such table or schema, or this role may not look into it.
        Err(sqlx::Error::Database(e))
            if matches!(e.code().as_deref(), Some("42P01" | "3F000" | "42501")) =>
        {
            return Err(StoreError::Unfit(
                "the database is not set up for this role: run `falaj-coordinator database init` with an owner's URL".into(),
            ));
        }
        Err(e) => return Err(e.into()),
    };
    let ours: Vec<_> = MIGRATOR.iter().map(|m| (m.version, &m.checksum[..])).collect();
    let theirs: Vec<_> = found.iter().map(|(version, sum, _)| (*version, &sum[..])).collect();
    if found.iter().all(|(.., whole)| *whole) && theirs == ours {
        return Ok(());
    }
    let newest = |of: &[(i64, &[u8])]| of.last().map_or(0, |(version, _)| *version);
    let (has, needs) = (newest(&theirs), newest(&ours));
    let what = match has.cmp(&needs) {
        Ordering::Greater => {
            format!("has version {has}, this coordinator knows {needs}: use a newer coordinator")
        }
        Ordering::Less => format!(
            "has version {has}, {needs} is needed: run `falaj-coordinator database init` with an owner's URL"
        ),
        Ordering::Equal => {
            format!("of version {has} is not the one of this coordinator: restore it from a backup")
        }
    };
    Err(StoreError::Unfit(format!("the database's schema {what}")))
}
