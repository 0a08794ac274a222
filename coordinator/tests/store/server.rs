//! A throw-away PostgreSQL server: own folder, own user, a unix socket in it, and TCP on loopback if a test wants it.

use anyhow::{Context as _, Result, ensure};
use sqlx::{
    AssertSqlSafe, ConnectOptions as _, PgConnection,
    postgres::{PgConnectOptions, PgSslMode},
};
use std::{
    fs,
    io::{self, Write as _},
    os::unix::{fs::chown, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::Duration,
};
use tempfile::TempDir;

/// How often a server is asked whether it is there, and how long between two questions.
const TRIES: u32 = 600;
const BETWEEN: Duration = Duration::from_millis(100);

/// A server that ends with its last handle.
pub(crate) struct Server {
    dir: TempDir,
    programs: PathBuf,
    /// Whom the server runs as, where this process is root: it refuses to be.
    user: Option<(u32, u32)>,
    settings: Vec<String>,
    port: u16,
    postmaster: Mutex<Option<Child>>,
    databases: AtomicU32,
}

/// The folder with the newest server's programs.
fn programs() -> Option<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql").ok()?;
    let found = versions.flatten().map(|v| v.path().join("bin"));
    found.filter(|bin| bin.join("postgres").is_file()).max()
}

/// Somebody who is not root, if this process is.
fn unprivileged() -> Result<Option<(u32, u32)>> {
    let root = Command::new("id").arg("-u").output()?.stdout == b"0\n";
    if !root {
        return Ok(None);
    }
    let users = fs::read_to_string("/etc/passwd")?;
    let line = |name: &str| users.lines().find(|l| l.split(':').next() == Some(name));
    let line = line("postgres").or_else(|| line("nobody")).context("no user but root")?;
    let number = |n| line.split(':').nth(n).context("a short line")?.parse().context("a number");
    Ok(Some((number(2)?, number(3)?)))
}

impl Server {
    /// The server that tests share while any of them needs it; none, said aloud, where PostgreSQL is not installed.
    pub(crate) fn shared() -> Result<Option<Arc<Self>>> {
        static SHARED: Mutex<Weak<Server>> = Mutex::new(Weak::new());
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(server) = shared.upgrade() {
            return Ok(Some(server));
        }
        let server = Self::start(&[])?;
        *shared = server.as_ref().map(Arc::downgrade).unwrap_or_default();
        Ok(server)
    }

    /// A server with settings of its own, such as `fsync=off`.
    pub(crate) fn start(settings: &[&str]) -> Result<Option<Arc<Self>>> {
        Self::with(settings, &[])
    }

    /// The same, with files beside its data.
    pub(crate) fn with(settings: &[&str], files: &[(&str, &[u8])]) -> Result<Option<Arc<Self>>> {
        let Some(programs) = programs() else {
            // Not by a macro: what those write is only seen when a test fails.
            writeln!(
                io::stderr(),
                "SKIPPED: there is no PostgreSQL server; `apt-get install -y postgresql` mends that"
            )?;
            return Ok(None);
        };
        let dir = tempfile::tempdir()?;
        let user = unprivileged()?;
        if let Some((uid, gid)) = user {
            chown(dir.path(), Some(uid), Some(gid))?;
        }
        let port = settings.iter().find_map(|s| s.strip_prefix("port=")).unwrap_or("5432");
        let this = Self {
            port: port.parse()?,
            dir,
            programs,
            user,
            settings: settings.iter().map(|s| (*s).to_owned()).collect(),
            postmaster: Mutex::new(None),
            databases: AtomicU32::new(0),
        };
        let made = this
            .command("initdb")
            .args(["--auth=trust", "--username=postgres", "--encoding=UTF8", "--no-sync", "-D"])
            .arg(this.dir.path().join("data"))
            .output()?;
        ensure!(made.status.success(), "initdb: {}", String::from_utf8_lossy(&made.stderr));
        for (name, bytes) in files {
            this.put(name, bytes)?;
        }
        this.launch()?;
        Ok(Some(Arc::new(this)))
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.programs.join(program));
        command.current_dir(self.dir.path()).env_clear().env("LC_ALL", "C.UTF-8");
        if let Some((uid, gid)) = self.user {
            command.uid(uid).gid(gid);
        }
        command
    }

    /// Its folder, readable by it.
    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// A file of its own, readable by nobody else.
    fn put(&self, name: &str, bytes: &[u8]) -> Result<()> {
        use std::os::unix::fs::PermissionsExt as _;
        let path = self.dir.path().join(name);
        fs::write(&path, bytes)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
        if let Some((uid, gid)) = self.user {
            chown(&path, Some(uid), Some(gid))?;
        }
        Ok(())
    }

    /// Starts it and waits until it answers. What is left of a killed one may be in the way for a moment.
    pub(crate) fn launch(&self) -> Result<()> {
        let mut postmaster = self.postmaster.lock().unwrap_or_else(PoisonError::into_inner);
        ensure!(postmaster.is_none(), "it runs already");
        for _ in 0..TRIES {
            let mut child = self.spawn()?;
            let ended = loop {
                let asked = self
                    .command("pg_isready")
                    .args(["-q", "-p", &self.port.to_string(), "-h"])
                    .arg(self.dir.path())
                    .status()?;
                if asked.success() {
                    break false;
                }
                if child.try_wait()?.is_some() {
                    break true;
                }
                thread::sleep(BETWEEN);
            };
            if !ended {
                *postmaster = Some(child);
                return Ok(());
            }
            thread::sleep(BETWEEN);
        }
        let said = fs::read_to_string(self.dir.path().join("said")).unwrap_or_default();
        anyhow::bail!("the server does not start: {said}")
    }

    fn spawn(&self) -> Result<Child> {
        let said = fs::File::create(self.dir.path().join("said"))?;
        let mut command = self.command("postgres");
        command.arg("-D").arg(self.dir.path().join("data")).arg("-k").arg(self.dir.path());
        command.args(["-c", "listen_addresses=", "-c", "max_connections=100"]);
        for setting in &self.settings {
            command.args(["-c", setting]);
        }
        Ok(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(said).spawn()?)
    }

    /// Ends it as a power cut would: no process of it says goodbye.
    pub(crate) fn kill(&self) -> Result<()> {
        let mut postmaster = self.postmaster.lock().unwrap_or_else(PoisonError::into_inner);
        let mut child = postmaster.take().context("it does not run")?;
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    /// How to be somebody in a database, over the socket.
    pub(crate) fn options(&self, user: &str, database: &str) -> PgConnectOptions {
        PgConnectOptions::new_without_pgpass()
            .socket(self.dir.path())
            .port(self.port)
            .username(user)
            .password("")
            .database(database)
            .ssl_mode(PgSslMode::Disable)
    }

    /// A URL for the same.
    pub(crate) fn url(&self, user: &str, database: &str) -> String {
        let socket = self.dir.path().display().to_string().replace('/', "%2F");
        format!("postgres://{user}@{socket}:{}/{database}?sslmode=disable", self.port)
    }

    /// The superuser, in a database.
    pub(crate) async fn superuser(&self, database: &str) -> Result<PgConnection> {
        Ok(self.options("postgres", database).connect().await?)
    }

    /// Runs statements as the superuser, one after the other.
    pub(crate) async fn run(&self, database: &str, statements: &[&str]) -> Result<()> {
        let mut connection = self.superuser(database).await?;
        for statement in statements {
            sqlx::query(AssertSqlSafe((*statement).to_owned()))
                .execute(&mut connection)
                .await
                .with_context(|| (*statement).to_owned())?;
        }
        Ok(())
    }

    /// A fresh database with an owner who is no superuser: the number in `falaj_N`, `owner_N`, `writer_N`.
    pub(crate) async fn database(&self) -> Result<u32> {
        let n = self.databases.fetch_add(1, Ordering::Relaxed);
        let owner = format!("CREATE ROLE owner_{n} LOGIN CREATEROLE");
        let database = format!("CREATE DATABASE falaj_{n} OWNER owner_{n}");
        self.run("postgres", &[&owner, &database]).await?;
        Ok(n)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let mut postmaster = self.postmaster.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(mut child) = postmaster.take() {
            // At once, but by itself: killed, it would leave its shared memory behind.
            let _ = Command::new("kill").args(["-QUIT", &child.id().to_string()]).status();
            let _ = child.wait();
        }
    }
}
