//! Sites and other parties.

use super::seconds;
use clap::Subcommand;
use falaj_core::id::Place;

/// See which sites are connected, have sites enrol, and revoke sites and other parties.
#[derive(Debug, Subcommand)]
pub(crate) enum SiteCommand {
    /// List the sites that are connected.
    #[command(after_help = "Example:\n  falaj site list")]
    List,
    /// Revoke a certificate, or an identity whatever its certificate: whoever is connected by it is ended within seconds.
    #[command(
        after_help = "Examples:\n  falaj site revoke spiffe://health.example/ae-on/ae-az/site/hospital-1 --reason \"left the federation\"\n  falaj site revoke 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08 --reason \"key lost\""
    )]
    Revoke {
        /// A SPIFFE ID, or the SHA-256 of a certificate, as `falaj-certs show` prints it.
        subject: String,
        /// Why, in one line. It stays in the log: write nothing about a person.
        #[arg(long)]
        reason: String,
    },
    /// Take a revocation back.
    #[command(
        after_help = "Example:\n  falaj site reinstate spiffe://health.example/ae-on/ae-az/site/hospital-1 --reason \"a new agreement\""
    )]
    Reinstate {
        /// As it was revoked.
        subject: String,
        /// Why, in one line. It stays in the log: write nothing about a person.
        #[arg(long)]
        reason: String,
    },
    /// Make a token by which a site gets its first certificate, once: `falaj-agent enroll` uses it.
    ///
    /// It is a secret: give it to the site's operator in a way that nobody else reads, and by no other channel than you would
    /// a password. Who made it, for whom and until when is in the log.
    #[command(
        after_help = "Examples:\n  falaj site enroll-token hospital-1 --at-place ae-on/ae-az\n  falaj site enroll-token hospital-1 --at-place ae-on/ae-az --ttl 20m > hospital-1.token"
    )]
    EnrollToken {
        /// The site's short name: lower-case letters, digits and `-`.
        name: String,
        /// Where it is: jurisdiction and region. An issuer has to be bound to it.
        #[arg(long, value_name = "PLACE")]
        at_place: Place,
        /// How long it can be used: a number and `s`, `m`, `h` or `d`.
        #[arg(long, default_value = "1h", value_parser = seconds)]
        ttl: u64,
    },
    /// List enrolment tokens: those that can be used, and what became of the others of the last thirty days.
    #[command(after_help = "Example:\n  falaj site tokens")]
    Tokens,
    /// Take an enrolment token back that nobody has used. `falaj site revoke` is for a site that has enrolled.
    #[command(
        after_help = "Example:\n  falaj site withdraw-token 3f6c5a9b0d1e4f72a8c3b5d7e9f10234"
    )]
    WithdrawToken {
        /// Its number: `falaj site tokens` shows it.
        token: String,
    },
    /// List the revocations that stand. Issuers' lists and the coordinator's deny file are not among them.
    #[command(after_help = "Example:\n  falaj site revocations")]
    Revocations,
}
