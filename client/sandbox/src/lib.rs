//! What a process takes away from itself before it touches records: files that it does not need, connections to anywhere but
//! the coordinator, other programs. The kernel refuses from then on, whatever becomes of the process, and nothing gives it back.
//!
//! Files and TCP ports are Landlock's, system calls are seccomp's; neither needs privileges. What the running kernel lacks is
//! named ([`Entered::missing`]). [`probe`] tries what should be refused.

mod calls;
mod files;
mod probe;

pub use probe::{Probe, probe};

use std::path::PathBuf;

/// What stays possible.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Files and folders that may be read, beside what every program needs.
    pub read: Vec<PathBuf>,
    /// Folders in which files may be made, changed and removed.
    pub write: Vec<PathBuf>,
    /// The TCP port to which connections may be made, wherever that is; none at all when absent.
    pub port: Option<u16>,
    /// Names are resolved, so datagrams may be sent: a way out that addresses instead of names close.
    pub names: bool,
    /// A GPU's devices and its driver's sockets are needed.
    pub gpu: bool,
    /// Devices that may be read and written.
    pub devices: Vec<PathBuf>,
    /// Local sockets are needed.
    pub local: bool,
}

/// What is in force.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Entered {
    /// What the running kernel cannot refuse; nothing when all is in force.
    pub missing: Vec<&'static str>,
}

/// Why a process could not be restricted.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// Something that may be read or written is not there.
    #[error("{0} cannot be opened, and the sandbox has to let it through")]
    Path(PathBuf, #[source] landlock::PathFdError),
    /// Landlock failed.
    #[error("the kernel refused the rules for files and connections")]
    Landlock(#[from] landlock::RulesetError),
    /// Seccomp failed.
    #[error("the kernel refused the filter of system calls: {0}")]
    Seccomp(String),
}

/// Restricts this thread, and every thread and process that it begins from now on. To be called before there are others.
///
/// # Errors
/// [`SandboxError`]; the process may be restricted in part then, and should end.
pub fn enter(limits: &Limits) -> Result<Entered, SandboxError> {
    let missing = files::restrict(limits)?;
    calls::restrict(limits)?;
    Ok(Entered { missing })
}
