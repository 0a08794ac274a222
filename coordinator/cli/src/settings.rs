//! Settings: flags and environment first, then the file that `--config` names, then defaults.

use crate::args::Connection;
use anyhow::{Context as _, Result, ensure};
use falaj_certs::{keys::KeyAt, tls::Credentials};
use falaj_core::id::Place;
use serde::Deserialize;
use std::{
    fs,
    path::{Path, PathBuf},
};

/// The coordinator, when nothing else is said: on this machine.
const SERVER_DEFAULT: &str = "https://127.0.0.1:7444";
/// Where a coordinator may be, when nothing else is said: the onshore UAE.
const PLACE_DEFAULT: &str = "ae-on/*";
/// Where the certificate of whoever has signed in lies, in their home.
const LOGIN_DEFAULT: &str = ".falaj/login";
/// The certificate in such a folder.
pub(crate) const CERT: &str = "cert.pem";
/// Its key.
pub(crate) const KEY: &str = "key.pem";

/// How to reach the coordinator, and as whom.
#[derive(Debug)]
pub(crate) struct Settings {
    /// Its REST address, without a slash at the end.
    pub(crate) server: String,
    /// The operator's certificate.
    pub(crate) cert: PathBuf,
    /// Its key.
    pub(crate) key: KeyAt,
    /// Whether these are of whoever has signed in.
    signed_in: bool,
    /// The federation's trust configuration.
    pub(crate) trust: PathBuf,
    /// Where the coordinator may be.
    pub(crate) places: Vec<String>,
}

/// The file that `--config` names.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    server: Option<String>,
    cert: Option<PathBuf>,
    key: Option<KeyAt>,
    login: Option<PathBuf>,
    trust: Option<PathBuf>,
    #[serde(default)]
    places: Vec<String>,
}

impl File {
    /// The file that is named; nothing stands in none.
    fn of(given: &Connection) -> Result<Self> {
        Ok(given.config.as_deref().map(Self::load).transpose()?.unwrap_or_default())
    }

    /// Reads the file; paths in it are relative to it.
    fn load(path: &Path) -> Result<Self> {
        let shown = path.display();
        let text = fs::read_to_string(path).with_context(|| format!("cannot read {shown}"))?;
        let mut file: Self = toml::from_str(&text).with_context(|| format!("{shown} is wrong"))?;
        let base = path.parent().unwrap_or(Path::new("."));
        for path in [&mut file.cert, &mut file.login, &mut file.trust].into_iter().flatten() {
            *path = base.join(&*path);
        }
        file.key = file.key.map(|key| key.below(base));
        Ok(file)
    }
}

impl Settings {
    /// Puts the settings together.
    ///
    /// # Errors
    /// What is missing or wrong, and how to give it.
    pub(crate) fn new(given: Connection) -> Result<Self> {
        let file = File::of(&given)?;
        let server = given.server.or(file.server).unwrap_or_else(|| SERVER_DEFAULT.to_owned());
        ensure!(
            server.starts_with("https://"),
            "`{server}` is no address of a coordinator: it begins with https://"
        );
        let places = places(given.places, file.places)?;
        // What is said here wins over the file, and a certificate over the folder.
        let named = given.cert.is_some() || given.key.is_some();
        let by_file = file.cert.is_some() || file.key.is_some();
        let signed_in = !named && (given.login.is_some() || !by_file);
        let (cert, key) = if signed_in {
            let folder = login_folder(given.login, file.login)?;
            (folder.join(CERT), KeyAt::File(folder.join(KEY)))
        } else {
            (needed(given.cert.or(file.cert), "cert")?, needed(given.key.or(file.key), "key")?)
        };
        Ok(Self {
            server: server.trim_end_matches('/').to_owned(),
            cert,
            key,
            signed_in,
            trust: needed(given.trust.or(file.trust), "trust")?,
            places,
        })
    }

    /// The operator's certificate and key.
    ///
    /// # Errors
    /// What is wrong with them, or that nobody has signed in, or not lately.
    pub(crate) fn credentials(&self) -> Result<Credentials> {
        if self.signed_in {
            ensure!(
                self.cert.is_file(),
                "nobody has signed in, {} is not there: `falaj login` signs in; or give --cert and --key",
                self.cert.display()
            );
        }
        let credentials = Credentials::load(&self.cert, &self.key)?;
        if self.signed_in {
            let ended = jiff::Timestamp::from_second(credentials.identity()?.not_after)?;
            ensure!(
                jiff::Timestamp::now() < ended,
                "signing in was for a time that was over at {ended}: `falaj login` signs in again"
            );
        }
        Ok(credentials)
    }
}

/// What it takes to sign in.
#[derive(Debug)]
pub(crate) struct SignIn {
    /// The folder for certificate and key.
    pub(crate) folder: PathBuf,
    /// The federation's trust configuration.
    pub(crate) trust: PathBuf,
    /// Where the coordinator may be.
    pub(crate) places: Vec<String>,
}

impl SignIn {
    /// Puts the settings together.
    ///
    /// # Errors
    /// As [`Settings::new`].
    pub(crate) fn new(given: Connection) -> Result<Self> {
        let file = File::of(&given)?;
        Ok(Self {
            folder: login_folder(given.login, file.login)?,
            trust: needed(given.trust.or(file.trust), "trust")?,
            places: places(given.places, file.places)?,
        })
    }

    /// Where certificate and key of whoever has signed in lie.
    ///
    /// # Errors
    /// As [`Settings::new`].
    pub(crate) fn folder(given: Connection) -> Result<PathBuf> {
        let file = File::of(&given)?;
        login_folder(given.login, file.login)
    }
}

fn login_folder(given: Option<PathBuf>, file: Option<PathBuf>) -> Result<PathBuf> {
    let at_home = || std::env::home_dir().map(|home| home.join(LOGIN_DEFAULT));
    needed(given.or(file).or_else(at_home), "login")
}

fn places(given: Vec<String>, file: Vec<String>) -> Result<Vec<String>> {
    let mut places = if given.is_empty() { file } else { given };
    if places.is_empty() {
        places.push(PLACE_DEFAULT.to_owned());
    }
    for place in &places {
        // A pattern is a place whose region may be `*`.
        place.replace("/*", "/any").parse::<Place>().with_context(|| format!("--place {place}"))?;
    }
    Ok(places)
}

fn needed<T>(found: Option<T>, name: &str) -> Result<T> {
    found.with_context(|| {
        format!(
            "no `{name}` is given: use --{name}, FALAJ_{}, or `{name}` in the file of --config",
            name.to_uppercase()
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given() -> Connection {
        Connection {
            config: None,
            server: None,
            cert: Some("c.pem".into()),
            key: Some(KeyAt::File("k.pem".into())),
            login: None,
            trust: Some("t.toml".into()),
            places: Vec::new(),
        }
    }

    #[test]
    fn flags_win_over_the_file_and_paths_in_it_are_its_own() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("falaj.toml");
        let text = "server = \"https://h:1/\"\ncert = \"mine.pem\"\nplaces = [\"ae-difc/ae-du\"]\n";
        fs::write(&path, text).expect("written");
        let settings = Settings::new(Connection {
            config: Some(path),
            cert: None,
            places: vec!["ae-on/ae-az".into()],
            ..given()
        })
        .expect("settings");
        assert_eq!(settings.server, "https://h:1");
        assert_eq!(settings.cert, dir.path().join("mine.pem"));
        assert_eq!(settings.places, ["ae-on/ae-az"]);
    }

    #[test]
    fn what_is_missing_is_named_with_every_way_to_give_it() {
        let e = Settings::new(Connection { key: None, ..given() }).expect_err("no key").to_string();
        assert!(["--key", "FALAJ_KEY", "--config"].iter().all(|way| e.contains(way)), "{e}");
    }

    #[test]
    fn a_certificate_wins_over_whoever_has_signed_in_and_what_is_said_here_over_the_file() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("falaj.toml");
        fs::write(&path, "cert = \"mine.pem\"\nkey = \"mine.key\"\nlogin = \"in\"\n")
            .expect("written");
        let cert = |given| Settings::new(given).expect("settings").cert;
        let none = || Connection { cert: None, key: None, ..given() };
        let config = Some(path.clone());
        let login = Some(PathBuf::from("here"));
        assert_eq!(cert(Connection { login: login.clone(), ..given() }), Path::new("c.pem"));
        let both = Connection { login, config: config.clone(), ..none() };
        assert_eq!(cert(both), Path::new("here/cert.pem"));
        assert_eq!(
            cert(Connection { config: config.clone(), ..none() }),
            dir.path().join("mine.pem")
        );
        fs::write(&path, "login = \"in\"\n").expect("written");
        let settings = Settings::new(Connection { config, ..none() }).expect("settings");
        assert_eq!(settings.cert, dir.path().join("in/cert.pem"));
        let said = settings.credentials().expect_err("nobody has signed in").to_string();
        assert!(said.contains("falaj login"), "{said}");
    }

    #[test]
    fn plain_http_and_half_places_are_refused() {
        let plain = Connection { server: Some("http://h:1".into()), ..given() };
        assert!(Settings::new(plain).expect_err("plain").to_string().contains("https://"));
        let half = Connection { places: vec!["ae-on".into()], ..given() };
        assert!(format!("{:#}", Settings::new(half).expect_err("half")).contains("ae-on"));
    }
}
