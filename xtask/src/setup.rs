//! libtorch for a CPU build, taken out of PyTorch's own wheel: pinned by hash, kept between runs.
//!
//! The wheel brings headers and libraries; of CUDA only the two small libraries that `libtorch_cpu.so` names
//! are needed. A `LIBTORCH` that the user sets is respected.

use crate::tools;
use anyhow::{Context as _, Result, bail, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use sha2::{Digest as _, Sha256};
use std::{
    env,
    fs::{self, File},
    io::{IsTerminal as _, Read as _},
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::Duration,
};

/// The version that the binding expects.
const VERSION: &str = "2.11.0";
/// What the download and the unpacked libraries take, with room to spare.
const BYTES_NEEDED: u64 = 2 << 30;

/// One wheel: the requirement, the file, its size and SHA-256.
struct Wheel {
    requirement: &'static str,
    file: &'static str,
    bytes: u64,
    sha256: &'static str,
}

const WHEELS: [Wheel; 3] = [
    Wheel {
        requirement: "torch==2.11.0",
        file: "torch-2.11.0-cp311-cp311-manylinux_2_28_x86_64.whl",
        bytes: 530_604_548,
        sha256: "7aa2f9bbc6d4595ba72138026b2074be1233186150e9292865e04b7a63b8c67a",
    },
    Wheel {
        requirement: "nvidia-cuda-runtime==13.0.96",
        file: "nvidia_cuda_runtime-13.0.96-py3-none-manylinux2014_x86_64.manylinux_2_17_x86_64.whl",
        bytes: 2_243_632,
        sha256: "7f82250d7782aa23b6cfe765ecc7db554bd3c2870c43f3d1821f1d18aebf0548",
    },
    Wheel {
        requirement: "nvidia-cuda-cupti==13.0.85",
        file: "nvidia_cuda_cupti-13.0.85-py3-none-manylinux_2_25_x86_64.whl",
        bytes: 10_715_597,
        sha256: "4eb01c08e859bf924d222250d2e8f8b8ff6d3db4721288cf35d14252a4d933c8",
    },
];

/// Takes what a CPU build needs out of a wheel; Python is there in any case, for pip.
const UNPACK: &str = r"
import os, sys, zipfile
wheel, out = sys.argv[1:]
libraries = {'libtorch_cpu.so', 'libc10.so', 'libgomp.so.1', 'libcudart.so.13', 'libcupti.so.13'}
with zipfile.ZipFile(wheel) as z:
    for name in z.namelist():
        base = os.path.basename(name)
        if name.startswith('torch/include/') and base:
            target = name[len('torch/'):]
        elif base in libraries:
            target = 'lib/' + base
        else:
            continue
        target = os.path.join(out, target)
        os.makedirs(os.path.dirname(target), exist_ok=True)
        with z.open(name) as src, open(target, 'wb') as dst:
            while chunk := src.read(1 << 20):
                dst.write(chunk)
";

/// Debian's packages by which Go's own tools check our log.
const GO: [&str; 2] = ["golang-go", "golang-golang-x-mod-dev"];

/// Debian's package of a database server, by which the store is tested on one.
const POSTGRESQL: [&str; 1] = ["postgresql"];

/// Debian's package by which calls to the operating system are made to fail.
const STRACE: [&str; 1] = ["strace"];

/// Programs that speak TLS and are not ours, each with what makes it say its version, and Debian's package of it. OpenSSL
/// stamps the log in tests as well, and checks stamps.
const TLS: [[&str; 3]; 3] = [
    ["openssl", "version", "openssl"],
    ["curl", "--version", "curl"],
    ["testssl", "--version", "testssl.sh"],
];

/// Debian's packages of a token in software, and of the tool that makes keys in it.
const TOKENS: [&str; 2] = ["softhsm2", "opensc"];

/// Debian's packages of a TPM in software, and of tools that speak to one.
const TPMS: [&str; 2] = ["swtpm", "tpm2-tools"];

/// Where Debian puts that token's module.
const SOFTHSM: &str = "/usr/lib/softhsm/libsofthsm2.so";

/// Debian's package of the solver by which policies are proven.
const CVC5: [&str; 1] = ["cvc5"];

/// Debian's package of the tool that tries alert rules. It brings a server, which is not started.
const PROMTOOL: [&str; 1] = ["prometheus"];

fn quiet(program: &str, args: &[&str]) -> bool {
    let mut command = Command::new(program);
    command.args(args).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

/// Makes sure that Go is there if this may install it; without it the test that needs it says that it is skipped.
pub(crate) fn go() {
    if !quiet("go", &["version"]) {
        packages(&GO);
    }
}

/// Makes sure that a PostgreSQL server is there if this may install it; without it the tests that need it say that they
/// are skipped.
pub(crate) fn postgresql() {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    if !versions.into_iter().any(|v| v.path().join("bin/postgres").is_file()) {
        packages(&POSTGRESQL);
    }
}

/// Makes sure that strace is there if this may install it; without it the tests that need it say that they are skipped.
pub(crate) fn strace() {
    if !quiet("strace", &["-V"]) {
        packages(&STRACE);
    }
}

/// Makes sure that OpenSSL, curl and testssl.sh are there if this may install them; without one the tests that need it say
/// that they are skipped.
pub(crate) fn tls() {
    for [program, version, package] in TLS {
        if !quiet(program, &[version]) {
            packages(&[package]);
        }
    }
}

/// Makes sure that SoftHSM is there if this may install it; without it the tests that need it say that they are skipped.
pub(crate) fn tokens() {
    let there = quiet("softhsm2-util", &["--version"])
        && quiet("pkcs11-tool", &["--module", SOFTHSM, "--show-info"]);
    if !there {
        packages(&TOKENS);
    }
}

/// Makes sure that a TPM in software is there if this may install it; without it the tests that need it say that they are skipped.
pub(crate) fn tpms() {
    if !quiet("swtpm", &["--version"]) || !quiet("tpm2_quote", &["--version"]) {
        packages(&TPMS);
    }
}

/// Makes sure that cvc5 is there if this may install it; without it the tests that need it say that they are skipped.
pub(crate) fn cvc5() {
    if !quiet("cvc5", &["--version"]) {
        packages(&CVC5);
    }
}

/// Makes sure that promtool is there if this may install it; without it the tests that need it say that they are skipped.
pub(crate) fn promtool() {
    if !quiet("promtool", &["--version"]) {
        packages(&PROMTOOL);
    }
}

/// Installs Debian's packages where this is root.
fn packages(names: &[&str]) {
    let root = Command::new("id").arg("-u").output().is_ok_and(|out| out.stdout == b"0\n");
    eprintln!("installing {}", names.join(", "));
    // Tests start servers of their own: a package's is not started on the machine.
    let apt = ["SYSTEMD_OFFLINE=1", "apt-get", "install", "-y", "--no-install-recommends"];
    let install = [&apt[..], names].concat();
    // A fresh machine may know no package yet.
    let installed = root
        && (quiet("env", &install) || (quiet("apt-get", &["update"]) && quiet("env", &install)));
    if !installed {
        eprintln!("skipped: `sudo apt-get install -y {}` mends that", names.join(" "));
    }
}

/// Makes sure that libtorch is there, and gives its folder.
pub(crate) fn setup() -> Result<PathBuf> {
    ensure!(
        tools::has("g++"),
        "there is no C++ compiler: `sudo apt-get install -y g++` mends that"
    );
    let link = tools::root().join(".libtorch");
    // Cargo itself sets the variable to the link; anything else the user has set.
    if let Some(own) = env::var_os("LIBTORCH").map(PathBuf::from)
        && own != link
    {
        return check(&own);
    }
    ensure!(
        cfg!(all(target_os = "linux", target_arch = "x86_64")),
        "libtorch is set up by itself on x86-64 Linux only: set LIBTORCH to a libtorch {VERSION}"
    );
    let cache = cache_dir()?;
    let home = cache.join(format!("libtorch-{VERSION}-cpu"));
    if !home.join("build-version").is_file() {
        install(&cache, &home)?;
    }
    if fs::read_link(&link).ok().as_deref() != Some(&home) {
        let _ = fs::remove_file(&link);
        symlink(&home, &link).with_context(|| format!("linking {}", link.display()))?;
    }
    Ok(home)
}

fn check(own: &Path) -> Result<PathBuf> {
    ensure!(
        own.join("lib").is_dir() && own.join("include").is_dir(),
        "LIBTORCH is {}, which has no `lib` and `include`: point it to a libtorch {VERSION}, or unset it",
        own.display()
    );
    let version = fs::read_to_string(own.join("build-version")).unwrap_or_default();
    if !version.is_empty() && !version.starts_with(VERSION) {
        bail!(
            "LIBTORCH is {}, version {}; {VERSION} is needed: unset LIBTORCH to have it set up",
            own.display(),
            version.trim()
        );
    }
    Ok(own.to_owned())
}

pub(crate) fn cache_dir() -> Result<PathBuf> {
    let base = match env::var_os("XDG_CACHE_HOME") {
        Some(dir) if !dir.is_empty() => PathBuf::from(dir),
        _ => PathBuf::from(env::var_os("HOME").context("HOME is not set")?).join(".cache"),
    };
    let dir = base.join("falaj");
    fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
    Ok(dir)
}

fn install(cache: &Path, home: &Path) -> Result<()> {
    ensure!(
        tools::has("python3"),
        "there is no Python 3: `sudo apt-get install -y python3 python3-pip` mends that"
    );
    let pip = Command::new("python3").args(["-m", "pip", "--version"]).output();
    ensure!(
        pip.is_ok_and(|o| o.status.success()),
        "Python has no pip: `sudo apt-get install -y python3-pip` mends that"
    );
    if let Some(free) = tools::free_bytes(cache)
        && free < BYTES_NEEDED
    {
        bail!(
            "{} MB are free in {}, {} MB are needed: make room, or set XDG_CACHE_HOME to another disk",
            free >> 20,
            cache.display(),
            BYTES_NEEDED >> 20
        );
    }
    // Everything happens beside its place; only a whole installation is renamed into it.
    let work = cache.join(format!("setup-{}", std::process::id()));
    fs::create_dir_all(&work)?;
    let done = install_in(&work, home);
    let _ = fs::remove_dir_all(&work);
    done
}

fn install_in(work: &Path, home: &Path) -> Result<()> {
    let fresh = work.join("libtorch");
    for wheel in &WHEELS {
        let file = download(work, wheel)?;
        let status =
            Command::new("python3").arg("-c").arg(UNPACK).arg(&file).arg(&fresh).status()?;
        ensure!(status.success(), "{} cannot be unpacked", wheel.file);
        fs::remove_file(&file)?;
    }
    // The linker wants `-ltorch`; without a CUDA library beside it this is a CPU build.
    symlink("libtorch_cpu.so", fresh.join("lib/libtorch.so"))?;
    fs::write(fresh.join("build-version"), format!("{VERSION}\n"))?;
    let _ = fs::remove_dir_all(home);
    fs::rename(&fresh, home).with_context(|| format!("installing {}", home.display()))
}

fn download(work: &Path, wheel: &Wheel) -> Result<PathBuf> {
    let mut pip = Command::new("python3")
        .args(["-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"])
        .args(["--python-version", "3.11", "--implementation", "cp", "--abi", "cp311"])
        .args(["--abi", "none", "--platform", "manylinux_2_28_x86_64"])
        .args(["--platform", "manylinux_2_25_x86_64", "--platform", "manylinux2014_x86_64"])
        .args(["--platform", "manylinux_2_17_x86_64", "--no-cache-dir", "--dest"])
        .arg(work)
        .arg(wheel.requirement)
        .env("TMPDIR", work)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .context("starting pip")?;
    let bar = if std::io::stderr().is_terminal() {
        let style = "{msg} {bar:40} {bytes}/{total_bytes} {eta}";
        ProgressBar::new(wheel.bytes)
            .with_style(ProgressStyle::with_template(style)?)
            .with_message(wheel.requirement)
    } else {
        eprintln!("getting {} ({} MB)", wheel.requirement, wheel.bytes >> 20);
        ProgressBar::hidden()
    };
    let status = loop {
        if let Some(status) = pip.try_wait()? {
            break status;
        }
        bar.set_position(growing(work).min(wheel.bytes));
        thread::sleep(Duration::from_millis(100));
    };
    bar.finish_and_clear();
    ensure!(status.success(), "pip cannot get {}: look at its message above", wheel.requirement);
    let file = work.join(wheel.file);
    let found = sha256(&file)?;
    ensure!(
        found == wheel.sha256,
        "{} has SHA-256 {found}, {} is pinned: it is not the file that was tried",
        wheel.file,
        wheel.sha256
    );
    Ok(file)
}

/// Size of the largest file under a folder: the one that pip is writing.
fn growing(dir: &Path) -> u64 {
    let Ok(files) = fs::read_dir(dir) else { return 0 };
    files
        .flatten()
        .map(|f| match f.metadata() {
            Ok(m) if m.is_dir() && f.file_name() != "libtorch" => growing(&f.path()),
            Ok(m) if m.is_file() => m.len(),
            _ => 0,
        })
        .max()
        .unwrap_or(0)
}

fn sha256(path: &Path) -> Result<String> {
    let mut file = File::open(path).with_context(|| format!("reading {}", path.display()))?;
    let mut hash = Sha256::new();
    let mut block = vec![0; 1 << 20];
    loop {
        match file.read(&mut block)? {
            0 => return Ok(hex::encode(hash.finalize())),
            n => hash.update(&block[..n]),
        }
    }
}
