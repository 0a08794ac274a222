//! Files and TCP ports, by Landlock.

use crate::{Limits, SandboxError};
use landlock::{
    ABI, Access as _, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible as _, NetPort,
    PathBeneath, PathFd, Ruleset, RulesetAttr as _, RulesetCreated, RulesetCreatedAttr as _,
    RulesetStatus, Scope,
};
use std::path::Path;

/// What every program reads: libraries, time zones, how names are resolved, what the processor can do.
pub(crate) const SYSTEM: [&str; 20] = [
    "/usr",
    "/lib",
    "/lib64",
    "/etc/ld.so.cache",
    "/etc/localtime",
    "/etc/ssl",
    "/etc/resolv.conf",
    "/etc/hosts",
    "/etc/host.conf",
    "/etc/nsswitch.conf",
    "/etc/gai.conf",
    "/proc/self",
    "/proc/cpuinfo",
    "/proc/meminfo",
    "/proc/stat",
    "/sys/devices/system",
    "/sys/fs/cgroup",
    "/dev/urandom",
    "/dev/random",
    "/dev/zero",
];
/// What is written to although it keeps nothing.
const SINKS: [&str; 2] = ["/dev/null", "/dev/tty"];
/// Where the driver of a GPU lies.
const GPU: [&str; 8] = [
    "/dev/nvidia0",
    "/dev/nvidiactl",
    "/dev/nvidia-uvm",
    "/dev/nvidia-uvm-tools",
    "/dev/nvidia-modeset",
    "/dev/shm",
    "/proc/driver/nvidia",
    "/sys/bus/pci",
];
/// The newest set of rights that this knows; older kernels know fewer.
const NEWEST: ABI = ABI::V6;

/// Gives what the running kernel lacks.
pub(crate) fn restrict(limits: &Limits) -> Result<Vec<&'static str>, SandboxError> {
    let mut missing = Vec::new();
    let mut whole = true;
    // Each set of rights for itself, so that what a kernel lacks can be named.
    for (what, ruleset) in [
        ("files", Ruleset::default().handle_access(AccessFs::from_all(NEWEST))),
        ("TCP connections", Ruleset::default().handle_access(AccessNet::from_all(NEWEST))),
        ("signals and abstract sockets", Ruleset::default().scope(Scope::from_all(NEWEST))),
    ] {
        let made = ruleset.map(|r| r.set_compatibility(CompatLevel::BestEffort))?.create()?;
        let made = match what {
            "files" => files(made, limits)?,
            "TCP connections" => port(made, limits.port)?,
            _ => made,
        };
        let status = made.restrict_self()?;
        if status.ruleset != RulesetStatus::FullyEnforced {
            missing.push(what);
        }
        whole &= status.no_new_privs;
    }
    if !whole {
        missing.push("new privileges");
    }
    Ok(missing)
}

fn files(mut rules: RulesetCreated, limits: &Limits) -> Result<RulesetCreated, SandboxError> {
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    // Whatever may be done to files but to run them.
    let all = AccessFs::from_all(NEWEST) & !BitFlags::from(AccessFs::Execute);
    let sinks = AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::IoctlDev;
    let gpu: &[&str] = if limits.gpu { &GPU } else { &[] };
    for (paths, access) in [(&SYSTEM[..], read), (&SINKS[..], sinks), (gpu, all)] {
        for path in paths.iter().filter(|path| Path::new(path).exists()) {
            rules = beneath(rules, Path::new(path), access)?;
        }
    }
    let device = AccessFs::ReadFile | AccessFs::WriteFile;
    for (paths, access) in [(&limits.read, read), (&limits.write, all), (&limits.devices, device)] {
        for path in paths {
            rules = beneath(rules, path, access)?;
        }
    }
    Ok(rules)
}

fn beneath(
    rules: RulesetCreated,
    path: &Path,
    access: BitFlags<AccessFs>,
) -> Result<RulesetCreated, SandboxError> {
    let opened = PathFd::new(path).map_err(|e| SandboxError::Path(path.to_owned(), e))?;
    let access = if path.is_dir() { access } else { access & AccessFs::from_file(NEWEST) };
    Ok(rules.add_rule(PathBeneath::new(opened, access))?)
}

fn port(rules: RulesetCreated, port: Option<u16>) -> Result<RulesetCreated, SandboxError> {
    let Some(port) = port else { return Ok(rules) };
    Ok(rules.add_rule(NetPort::new(port, AccessNet::ConnectTcp))?)
}
