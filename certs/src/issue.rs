//! Who signs certificates that are granted: our own authority's issuer for a place, or somebody else's authority.
//!
//! Both are asked through one trait, and what either gives is looked at in the same way before anybody gets it
//! ([`granted`]): it is about the key that was asked for, names what was granted and nothing else, lives no longer than that,
//! and an issuer bound to its place signed it.

use crate::{
    ca::Authority,
    identity::{Identity, IdentityError},
    request::SigningRequest,
    trust::TrustStore,
};
use falaj_core::id::{Digest, SpiffeId};
use rustls_pki_types::{CertificateDer, UnixTime, pem::PemObject as _};
use std::{
    io::{Read as _, Write as _},
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};
use x509_parser::{certificate::X509Certificate, prelude::FromDer as _};

/// The shortest life that is granted.
pub const LIFETIME_MIN: Duration = Duration::from_secs(5);
/// The longest life that is granted.
pub const LIFETIME_MAX: Duration = Duration::from_hours(24 * 90);
/// How far the end of a certificate may lie behind what was granted: clocks of two machines differ.
const SLACK_S: u64 = 5;
/// Certificates that an issuer gives at most.
const CHAIN_MAX: usize = 4;
/// The longest answer of a program.
const ANSWER_BYTES_MAX: u64 = 64 << 10;
/// How long a program gets.
const ANSWER: Duration = Duration::from_secs(30);
/// How often it is looked whether one that has answered has ended.
const GLANCE: Duration = Duration::from_millis(5);

/// What is granted to whoever asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// The one identity.
    pub spiffe: SpiffeId,
    /// How long the certificate lives from now on.
    pub lifetime: Duration,
    /// A group of the holder's: the organisational unit in the certificate's subject.
    pub group: Option<String>,
}

/// Signs certificates.
pub trait Issuer: Send + Sync {
    /// A certificate about the request's key that says what is granted, and the issuers that follow it. Blocks.
    ///
    /// # Errors
    /// [`IssueError`].
    fn issue(
        &self,
        request: &SigningRequest,
        grant: &Grant,
    ) -> Result<Vec<CertificateDer<'static>>, IssueError>;
}

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum IssueError {
    /// Our own authority cannot sign.
    #[error("the authority cannot sign: {0}")]
    Authority(String),
    /// The program cannot be run, or failed.
    #[error("`{program}` gave no certificate: {what}")]
    Program {
        /// Which.
        program: String,
        /// What went wrong.
        what: String,
    },
    /// What was given is not what was granted.
    #[error("what the authority gave is not what was granted: {0}")]
    Other(String),
}

/// A certificate that may be given out.
#[derive(Clone, Debug)]
pub struct Granted {
    /// It, and the issuers that follow it.
    pub chain: Vec<CertificateDer<'static>>,
    /// What it says.
    pub identity: Identity,
    /// SHA-256 of the key of the issuer that vouches for it.
    pub issuer: Digest,
}

/// Has an issuer sign, and looks at what it gives, at the time that it is then. Blocks.
///
/// # Errors
/// [`IssueError`].
pub fn granted(
    issuer: &dyn Issuer,
    request: &SigningRequest,
    grant: &Grant,
    trust: &TrustStore,
    now: impl Fn() -> UnixTime,
) -> Result<Granted, IssueError> {
    let chain = issuer.issue(request, grant)?;
    // An outside authority takes its time, and its clock may be a little ahead.
    let now = now();
    let soon = UnixTime::since_unix_epoch(Duration::from_secs(now.as_secs() + SLACK_S));
    let other = |what: String| Err(IssueError::Other(what));
    let Some(leaf) = chain.first().filter(|_| chain.len() <= CHAIN_MAX) else {
        return other(format!("{} certificates instead of 1 to {CHAIN_MAX}", chain.len()));
    };
    let known = trust.identify_at(leaf, now).or_else(|_| trust.identify_at(leaf, soon));
    let (identity, issuer) = match known {
        Ok(known) => known,
        Err(e @ (IdentityError::NotBound(_) | IdentityError::UnknownPlace(_))) => {
            return other(format!("{e}; bind the authority's issuer in the trust configuration"));
        }
        Err(e) => return other(e.to_string()),
    };
    if identity.spiffe != grant.spiffe {
        return other(format!("it names {} instead of {}", identity.spiffe, grant.spiffe));
    }
    if grant.group.as_ref().is_some_and(|group| identity.groups != [group.as_str()]) {
        return other("it names other groups than the one that was granted".into());
    }
    if identity.public_key != *request.public_key() {
        return other("it is about another key than the one that was asked for".into());
    }
    let ends = i64::try_from(now.as_secs() + grant.lifetime.as_secs() + SLACK_S);
    if ends.is_ok_and(|ends| identity.not_after > ends) {
        let most = grant.lifetime.as_secs();
        return other(format!("it lives for longer than the {most} seconds that were granted"));
    }
    let names = {
        let (_, x509) =
            X509Certificate::from_der(leaf).map_err(|e| IssueError::Other(e.to_string()))?;
        let names = x509.subject_alternative_name();
        let names = names.map_err(|e| IssueError::Other(e.to_string()))?;
        names.map_or(0, |names| names.value.general_names.len())
    };
    if names != 1 {
        return other(format!("it carries {names} names, and one was granted"));
    }
    Ok(Granted { chain, identity, issuer })
}

/// Our own authority: the issuer of the place in it signs. A new issuer begins to sign once everybody has had a
/// certificate's life to hear of it, or once it is the only one that is trusted.
#[derive(Clone, Debug)]
pub struct Regional(pub Authority);

impl Issuer for Regional {
    fn issue(
        &self,
        request: &SigningRequest,
        grant: &Grant,
    ) -> Result<Vec<CertificateDer<'static>>, IssueError> {
        self.0.sign(request, grant).map_err(|e| IssueError::Authority(format!("{e:#}")))
    }
}

/// Somebody else's authority, through a program: it reads the request in PEM form and writes the certificate, and the issuers
/// that follow it, in PEM form.
#[derive(Clone, Debug)]
pub struct Outside {
    /// The program and its arguments; `{spiffe}`, `{place}` and `{lifetime_s}` in these stand for what is granted.
    pub command: Vec<String>,
}

impl Outside {
    fn start(&self, grant: &Grant) -> Result<Child, String> {
        let (program, arguments) = self.command.split_first().ok_or("no program is named")?;
        let filled = |argument: &String| {
            argument
                .replace("{spiffe}", &grant.spiffe.to_string())
                .replace("{place}", &grant.spiffe.place().to_string())
                .replace("{lifetime_s}", &grant.lifetime.as_secs().to_string())
        };
        let mut command = Command::new(program);
        command.args(arguments.iter().map(filled));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        command.spawn().map_err(|e| format!("it cannot be run ({e})"))
    }

    fn ask(&self, request: &SigningRequest, grant: &Grant) -> Result<Vec<u8>, String> {
        let mut child = self.start(grant)?;
        let (mut asked, mut told) = (child.stdin.take(), child.stdout.take());
        let pem = request.pem();
        let (done, answer) = mpsc::channel();
        // A program that never ends is killed, and then these two come to an end as well.
        thread::spawn(move || {
            if let Some(asked) = &mut asked {
                // A program that does not read it all may answer all the same.
                let _ = asked.write_all(pem.as_bytes());
            }
            drop(asked);
            let mut bytes = Vec::new();
            let read =
                told.as_mut().map(|told| told.take(ANSWER_BYTES_MAX + 1).read_to_end(&mut bytes));
            let _ = done.send(read.transpose().map(|_| bytes));
        });
        let began = Instant::now();
        let answered = answer.recv_timeout(ANSWER);
        if !matches!(&answered, Ok(Ok(bytes)) if bytes.len() as u64 <= ANSWER_BYTES_MAX) {
            let _ = child.kill();
        }
        // One that has answered and does not end is killed, too.
        let status = loop {
            match child.try_wait().map_err(|e| e.to_string())? {
                Some(status) => break status,
                None if began.elapsed() < ANSWER => thread::sleep(GLANCE),
                None => {
                    let _ = child.kill();
                    break child.wait().map_err(|e| e.to_string())?;
                }
            }
        };
        let bytes = answered
            .map_err(|_| format!("it did not answer within {} seconds", ANSWER.as_secs()))?
            .map_err(|e| e.to_string())?;
        if bytes.len() as u64 > ANSWER_BYTES_MAX {
            return Err(format!("it answered with more than {ANSWER_BYTES_MAX} bytes"));
        }
        if !status.success() {
            return Err(format!("it ended with {status}"));
        }
        Ok(bytes)
    }
}

impl Issuer for Outside {
    fn issue(
        &self,
        request: &SigningRequest,
        grant: &Grant,
    ) -> Result<Vec<CertificateDer<'static>>, IssueError> {
        let failed = |what| IssueError::Program {
            program: self.command.first().cloned().unwrap_or_default(),
            what,
        };
        let answer = self.ask(request, grant).map_err(failed)?;
        CertificateDer::pem_slice_iter(&answer)
            .collect::<Result<_, _>>()
            .map_err(|e| failed(format!("it answered with something else than PEM ({e})")))
    }
}
