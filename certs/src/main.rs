//! `falaj-certs`: a development certificate authority on the command line.

use anyhow::{Result, ensure};
use clap::{Parser, Subcommand, ValueEnum};
use falaj_certs::{
    ca::{Authority, CRL_DAYS, LEAF_DAYS, Request, first_certificate},
    identity::Identity,
    keys::open_token,
    token::TokenKey,
    trust::spki_sha256,
};
use falaj_core::id::{Place, Role};
use std::{path::PathBuf, process::ExitCode};

/// A development certificate authority for Falaj: one root, one issuer per place, one SPIFFE identity per
/// certificate. For production, bind your own authority's issuers in `trust.toml`.
#[derive(Parser)]
#[command(
    version,
    after_help = "Examples:\n  falaj-certs init ca --trust-domain falaj.demo\n  falaj-certs issuer ca ae-on/ae-az\n  falaj-certs issue ca coordinator main --place ae-on/ae-az\n  falaj-certs issue ca site hospital-1 --place ae-on/ae-az --days 7\n  falaj-certs issue ca operator sara --place ae-on/ae-az --group auditor\n  falaj-certs revoke ca ca/site/hospital-1/cert.pem\n  falaj-certs show ca/site/hospital-1/cert.pem"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Print JSON.
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Subcommand)]
#[expect(clippy::large_enum_variant, reason = "it is parsed once")]
enum Command {
    /// Make a new authority in a folder.
    Init {
        /// The folder.
        dir: PathBuf,
        /// The federation's trust domain.
        #[arg(long)]
        trust_domain: String,
    },
    /// Make an issuer that vouches for a place.
    Issuer {
        /// The authority's folder.
        dir: PathBuf,
        /// `<jurisdiction>/<region>`, for example `ae-on/ae-az`.
        place: Place,
        /// Make the one that follows the newest issuer of the place; both are trusted until `retire`.
        #[arg(long)]
        next: bool,
    },
    /// Trust only the newest issuer of a place from now on.
    Retire {
        /// The authority's folder.
        dir: PathBuf,
        /// `<jurisdiction>/<region>`, for example `ae-on/ae-az`.
        place: Place,
    },
    /// Put a certificate on its issuer's revocation list.
    Revoke {
        /// The authority's folder.
        dir: PathBuf,
        /// The certificate, PEM.
        cert: PathBuf,
        /// How many days the list is valid.
        #[arg(long, default_value_t = CRL_DAYS, value_parser = clap::value_parser!(u32).range(1..=825))]
        days: u32,
    },
    /// Write the revocation list of a place's newest issuer anew.
    Crl {
        /// The authority's folder.
        dir: PathBuf,
        /// `<jurisdiction>/<region>`, for example `ae-on/ae-az`.
        place: Place,
        /// How many days the list is valid.
        #[arg(long, default_value_t = CRL_DAYS, value_parser = clap::value_parser!(u32).range(1..=825))]
        days: u32,
    },
    /// Issue a certificate and its key into `<DIR>/<ROLE>/<NAME>/`.
    Issue {
        /// The authority's folder.
        dir: PathBuf,
        /// What the holder is.
        role: RoleArg,
        /// Its short name: lower-case letters, digits and `-`.
        name: String,
        /// Where it is.
        #[arg(long)]
        place: Place,
        /// How many days the certificate is valid.
        #[arg(long, default_value_t = LEAF_DAYS, value_parser = clap::value_parser!(u32).range(1..=825))]
        days: u32,
        /// A DNS name to add, for tools that look at it.
        #[arg(long)]
        dns: Vec<String>,
        /// The key in a token that the certificate is for: `pkcs11:…`. Without it a key file is made.
        #[arg(long)]
        key: Option<TokenKey>,
        /// An operator's group: the name of a role, such as `auditor`, or a group that `[roles]` in the coordinator's
        /// configuration speaks of. What whoever is in none may do stands there too.
        #[arg(long)]
        group: Option<String>,
    },
    /// Show whom a certificate names.
    Show {
        /// A PEM file.
        file: PathBuf,
    },
}

#[derive(Clone, Copy, ValueEnum)]
enum RoleArg {
    Coordinator,
    Site,
    Operator,
    Witness,
}

impl From<RoleArg> for Role {
    fn from(role: RoleArg) -> Self {
        match role {
            RoleArg::Coordinator => Self::Coordinator,
            RoleArg::Site => Self::Site,
            RoleArg::Operator => Self::Operator,
            RoleArg::Witness => Self::Witness,
        }
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(&cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("falaj-certs: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> Result<()> {
    let made = |path: PathBuf| {
        if cli.json {
            println!("{}", serde_json::json!({ "path": path }));
        } else {
            println!("{}", path.display());
        }
    };
    match &cli.command {
        Command::Init { dir, trust_domain } => {
            made(Authority::init(dir, trust_domain)?.trust_path());
        }
        Command::Issuer { dir, place, next } => {
            let authority = Authority::open(dir)?;
            made(if *next { authority.next_issuer(place) } else { authority.add_issuer(place) }?);
        }
        Command::Retire { dir, place } => {
            let retired = Authority::open(dir)?.retire_issuers(place)?;
            if cli.json {
                println!("{}", serde_json::json!({ "retired": retired }));
            } else {
                println!("{retired} retired");
            }
        }
        Command::Revoke { dir, cert, days } => {
            made(Authority::open(dir)?.revoke(&first_certificate(cert)?, *days)?);
        }
        Command::Crl { dir, place, days } => made(Authority::open(dir)?.crl(place, *days)?),
        Command::Issue { dir, role, name, place, days, dns, key, group } => {
            let group = group.as_deref();
            ensure!(
                group.is_none() || matches!(role, RoleArg::Operator),
                "only an operator is in a group: leave out --group"
            );
            let request = Request {
                role: (*role).into(),
                name: name.clone(),
                place: place.clone(),
                days: *days,
                dns: dns.clone(),
            };
            let authority = Authority::open(dir)?;
            made(match key {
                None => authority.issue_in(&request, group)?,
                // It signs once when it is opened: whoever asks for the certificate has the key.
                Some(key) => {
                    authority.issue_for(&request, group, open_token(key)?.verifying_key())?
                }
            });
        }
        Command::Show { file } => {
            let cert = first_certificate(file)?;
            let identity = Identity::parse(&cert)?;
            let time = |s: i64| jiff::Timestamp::from_second(s).map(|t| t.to_string());
            let shown = serde_json::json!({
                "identity": identity.spiffe.to_string(),
                "place": identity.spiffe.place().to_string(),
                "role": identity.spiffe.role().as_str(),
                "groups": identity.groups.join(", "),
                "cert_sha256": identity.cert_sha256.to_string(),
                "spki_sha256": spki_sha256(&cert).map_err(anyhow::Error::msg)?.to_string(),
                "not_before": time(identity.not_before)?,
                "not_after": time(identity.not_after)?,
            });
            if cli.json {
                println!("{shown}");
            } else if let Some(members) = shown.as_object() {
                for (key, value) in members {
                    println!("{key:12} {}", value.as_str().unwrap_or_default());
                }
            }
        }
    }
    Ok(())
}
