//! Settings: flags and environment first, then the file that `--config` names, then defaults.

use crate::args::Connection;
use anyhow::{Context as _, Result, ensure};
use falaj_certs::keys::KeyAt;
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

/// How to reach the coordinator, and as whom.
#[derive(Debug)]
pub(crate) struct Settings {
    /// Its REST address, without a slash at the end.
    pub(crate) server: String,
    /// The operator's certificate.
    pub(crate) cert: PathBuf,
    /// Its key.
    pub(crate) key: KeyAt,
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
    trust: Option<PathBuf>,
    #[serde(default)]
    places: Vec<String>,
}

impl File {
    /// Reads the file; paths in it are relative to it.
    fn load(path: &Path) -> Result<Self> {
        let shown = path.display();
        let text = fs::read_to_string(path).with_context(|| format!("cannot read {shown}"))?;
        let mut file: Self = toml::from_str(&text).with_context(|| format!("{shown} is wrong"))?;
        let base = path.parent().unwrap_or(Path::new("."));
        for path in [&mut file.cert, &mut file.trust].into_iter().flatten() {
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
        let file = given.config.as_deref().map(File::load).transpose()?.unwrap_or_default();
        let server = given.server.or(file.server).unwrap_or_else(|| SERVER_DEFAULT.to_owned());
        ensure!(
            server.starts_with("https://"),
            "`{server}` is no address of a coordinator: it begins with https://"
        );
        let mut places = if given.places.is_empty() { file.places } else { given.places };
        if places.is_empty() {
            places.push(PLACE_DEFAULT.to_owned());
        }
        for place in &places {
            // A pattern is a place whose region may be `*`.
            place
                .replace("/*", "/any")
                .parse::<Place>()
                .with_context(|| format!("--place {place}"))?;
        }
        Ok(Self {
            server: server.trim_end_matches('/').to_owned(),
            cert: needed(given.cert.or(file.cert), "cert")?,
            key: needed(given.key.or(file.key), "key")?,
            trust: needed(given.trust.or(file.trust), "trust")?,
            places,
        })
    }
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
    fn plain_http_and_half_places_are_refused() {
        let plain = Connection { server: Some("http://h:1".into()), ..given() };
        assert!(Settings::new(plain).expect_err("plain").to_string().contains("https://"));
        let half = Connection { places: vec!["ae-on".into()], ..given() };
        assert!(format!("{:#}", Settings::new(half).expect_err("half")).contains("ae-on"));
    }
}
