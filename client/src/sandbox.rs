//! What the agent takes away from itself before it touches records, as its configuration says; `falaj_sandbox` does it.

use crate::{
    config::{Config, SandboxMode},
    tpm::Device,
};
use anyhow::{Context as _, Result, ensure};
use falaj_certs::{
    keys::{KeyAt, open_token},
    trust::TrustFile,
};
use falaj_sandbox::{Entered, Limits, Probe, enter, probe};
use std::{
    collections::BTreeSet,
    fs,
    net::{IpAddr, TcpListener},
    os::unix::net::UnixListener,
    path::{Path, PathBuf},
};

/// What a process of the agent is about to do.
#[derive(Clone, Copy, Debug)]
pub enum Task<'a> {
    /// To take part in rounds, with a coordinator.
    Rounds,
    /// To train the study in this file alone: it speaks to nobody.
    Alone(&'a Path),
}

/// What an agent with this configuration needs: its own files, its records, its state, the libraries that it runs with, and
/// the port of its coordinator if it speaks to it.
///
/// # Errors
/// When the address of the coordinator has no port, or the state's folder cannot be made.
pub fn limits(config: &Config, file: &Path, task: Task<'_>) -> Result<Limits> {
    let own = own(config, file)?;
    if let Task::Alone(study) = task {
        let read = own.read.into_iter().chain([study.to_owned()]).collect();
        return Ok(Limits { read, ..own });
    }
    let (host, port) = config
        .coordinator
        .address
        .rsplit_once(':')
        .with_context(|| format!("`{}` has no port", config.coordinator.address))?;
    let port = port.parse().with_context(|| format!("`{port}` is no port"))?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let (devices, local) = match config.tpm.as_ref().map(|tpm| &tpm.device) {
        Some(Device::File(path)) => (vec![path.clone()], false),
        Some(Device::Socket(_)) => (Vec::new(), true),
        None => (Vec::new(), false),
    };
    Ok(Limits { port: Some(port), names: host.parse::<IpAddr>().is_err(), devices, local, ..own })
}

/// What it needs of its own machine.
fn own(config: &Config, file: &Path) -> Result<Limits> {
    fs::create_dir_all(&config.state.dir)
        .with_context(|| format!("making {}", config.state.dir.display()))?;
    // Files that are replaced by others of their name: what may be read is their folder.
    let identity = &config.identity;
    let beside = [file, &identity.cert, &identity.trust];
    let beside = beside.into_iter().chain(identity.root.as_deref());
    let mut read: BTreeSet<PathBuf> = beside.map(folder).collect();
    read.extend(identity.key.files().into_iter().map(folder));
    read.extend(issuers(&identity.trust));
    read.extend(config.datasets.iter().map(|d| d.path.clone()));
    read.extend(config.train.libtorch_cuda.clone());
    read.extend(libraries());
    let gpu = match config.train.device.as_str() {
        "cpu" => false,
        "auto" => Path::new("/dev/nvidiactl").exists(),
        _ => true,
    };
    Ok(Limits {
        read: read.into_iter().collect(),
        write: [&config.state.dir].into_iter().chain(&config.sandbox.token_dirs).cloned().collect(),
        gpu,
        ..Limits::default()
    })
}

/// Restricts the agent as its configuration says; what the kernel lacks, unless the sandbox is off. To be called before there
/// are other threads.
///
/// # Errors
/// When the sandbox is required and the kernel lacks a part of it, or refuses it.
pub fn restrict(config: &Config, file: &Path, task: Task<'_>) -> Result<Option<Entered>> {
    if config.sandbox.mode == SandboxMode::Off {
        return Ok(None);
    }
    let entered = enter(&limits(config, file, task)?).context("the sandbox cannot be entered")?;
    ensure!(
        config.sandbox.mode == SandboxMode::Available || entered.missing.is_empty(),
        "`sandbox.mode` is \"required\", and this kernel cannot refuse {}: use a newer one (6.12 has everything)",
        entered.missing.join(", ")
    );
    Ok(Some(entered))
}

/// Restricts this process and tries what should be refused, and what must not be.
///
/// # Errors
/// When the attempts cannot be prepared, or the sandbox cannot be entered.
pub fn check(config: &Config, file: &Path, task: Task<'_>) -> Result<(Entered, Vec<Probe>)> {
    let limits = limits(config, file, task)?;
    let outside = tempfile::tempdir().context("making a folder outside of the sandbox")?;
    fs::write(outside.path().join("secret"), b"secret")?;
    let _local = UnixListener::bind(outside.path().join("socket"))?;
    let elsewhere = TcpListener::bind("127.0.0.1:0")?;
    let address = elsewhere.local_addr()?;
    // Nothing can be removed any more once the sandbox is entered.
    let outside_of_it = outside.path().to_owned();
    let entered = enter(&limits).context("the sandbox cannot be entered")?;
    let mut probes = probe(&limits, address, &outside_of_it);
    if let KeyAt::Token(token) = &config.identity.key {
        let refused = open_token(token).err().map(|e| e.to_string());
        probes.push(Probe { what: format!("sign with {token}"), unwanted: false, refused });
    }
    Ok((entered, probes))
}

fn folder(path: &Path) -> PathBuf {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder.to_owned(),
        _ => PathBuf::from("."),
    }
}

/// Where the certificates lie that a trust configuration names: they may be anywhere. What is wrong with it is said when it is
/// used.
fn issuers(trust: &Path) -> Vec<PathBuf> {
    let text = fs::read_to_string(trust).unwrap_or_default();
    let named = TrustFile::parse(trust, &text).map(|file| file.issuers).unwrap_or_default();
    let paths = named.into_iter().map(|issuer| folder(trust).join(issuer.cert));
    paths.filter(|path| path.exists()).map(|path| folder(&path)).collect()
}

/// Where the libraries lie that this program runs with: they open others beside them when they are needed.
fn libraries() -> BTreeSet<PathBuf> {
    let maps = fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let files = maps.lines().filter_map(|line| line.split_whitespace().nth(5));
    let paths = files.filter(|file| file.starts_with('/')).map(Path::new);
    paths.filter(|path| path.exists()).map(folder).collect()
}
