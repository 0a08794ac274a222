//! The policies in force: read from a folder, and again on request. What they say is decided in `falaj_policies`.

use arc_swap::ArcSwap;
use falaj_core::id::{Digest, Place, SpiffeId};
pub use falaj_policies::{Action, Decision, Resource};
use falaj_policies::{POLICIES, Policies, PolicyError, SCHEMA};
use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

/// Why policies cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A file cannot be read.
    #[error("cannot read {0}")]
    Read(PathBuf, #[source] io::Error),
    /// A file does not parse, or does not fit the schema.
    #[error("{0}")]
    Invalid(PathBuf, #[source] PolicyError),
}

struct Loaded {
    policies: Policies,
    files: Vec<(String, Vec<u8>)>,
}

/// Decides. A cheap handle: clones share the set in force.
#[derive(Clone)]
pub struct PolicyEngine {
    dir: Arc<PathBuf>,
    place: Arc<Place>,
    loaded: Arc<ArcSwap<Loaded>>,
}

impl PolicyEngine {
    /// Loads `coordinator.cedar` under `coordinator.cedarschema` for a coordinator in `place`.
    ///
    /// # Errors
    /// [`LoadError`], with the file and what is wrong in it.
    pub fn load(dir: &Path, place: &Place) -> Result<Self, LoadError> {
        let loaded = Arc::new(ArcSwap::from_pointee(load(dir)?));
        Ok(Self { dir: Arc::new(dir.to_owned()), place: Arc::new(place.clone()), loaded })
    }

    /// Reads the files again. What does not parse leaves the old set in force.
    ///
    /// # Errors
    /// [`LoadError`], with the file and what is wrong in it.
    pub fn reload(&self) -> Result<Digest, LoadError> {
        let fresh = load(&self.dir)?;
        let digest = fresh.policies.digest();
        self.loaded.store(Arc::new(fresh));
        Ok(digest)
    }

    /// SHA-256 of the policy set in force.
    #[must_use]
    pub fn digest(&self) -> Digest {
        self.loaded.load().policies.digest()
    }

    /// The files in force: names and bytes.
    #[must_use]
    pub fn files(&self) -> Vec<(String, Vec<u8>)> {
        self.loaded.load().files.clone()
    }

    /// Whether `who` may do `action`.
    #[must_use]
    pub fn decide(&self, who: &SpiffeId, action: Action, resource: &Resource<'_>) -> Decision {
        self.loaded.load().policies.decide(&self.place, who, action, resource)
    }
}

impl fmt::Debug for PolicyEngine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PolicyEngine({}, {})", self.dir.display(), self.digest())
    }
}

fn load(dir: &Path) -> Result<Loaded, LoadError> {
    let read = |name: &str| {
        let path = dir.join(name);
        let bytes = fs::read(&path).map_err(|e| LoadError::Read(path, e))?;
        Ok((name.to_owned(), bytes))
    };
    let files = vec![read(POLICIES)?, read(SCHEMA)?];
    let policies = Policies::parse(&files).map_err(|e| LoadError::Invalid(dir.to_owned(), e))?;
    Ok(Loaded { policies, files })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_does_not_fit_the_schema_leaves_the_old_set_in_force() {
        let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("../policies");
        let dir = tempfile::tempdir().expect("a folder");
        for file in [POLICIES, SCHEMA] {
            fs::copy(shipped.join(file), dir.path().join(file)).expect("copied");
        }
        let here = "ae-on/ae-az".parse().expect("valid");
        let engine = PolicyEngine::load(dir.path(), &here).expect("policies load");
        let before = engine.digest();
        let misspelt =
            "permit (principal is Falaj::Site, action, resource) when { principal.nmae == \"x\" };";
        fs::write(dir.path().join(POLICIES), misspelt).expect("written");
        let err = format!("{:#}", anyhow::Error::from(engine.reload().expect_err("refused")));
        assert!(err.contains(POLICIES), "{err}");
        assert_eq!(engine.digest(), before);
        let abu_dhabi = "spiffe://t/ae-on/ae-az/site/h".parse().expect("valid");
        assert!(engine.decide(&abu_dhabi, Action::Connect, &Resource::Service).allow);
    }
}
