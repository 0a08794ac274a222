//! People in the log, and holds on them.

use clap::Subcommand;

/// See who the people in the log are, and erase them.
#[derive(Debug, Subcommand)]
pub(crate) enum PersonCommand {
    /// List the people in the log: pseudonyms, and who they are.
    #[command(after_help = "Example:\n  falaj person list")]
    List,
    /// Erase a person: afterwards nobody can tell whom the pseudonym in the log named. It cannot be undone.
    ///
    /// The log stays whole, and says that it was done, by which article and who asked. Refused while a legal hold stands, or
    /// while records of a study in which they acted must be kept; the log has the refusal, the article and the day.
    #[command(
        after_help = "Examples:\n  falaj person erase spiffe://health.example/ae-on/ae-az/operator/sara --article \"Federal Decree-Law 45/2021, Article 15\"\n  falaj --json person erase person:00112233445566778899aabbccddeeff --article \"Federal Decree-Law 45/2021, Article 15\""
    )]
    Erase {
        /// Who: a SPIFFE ID, or `person:` and the pseudonym.
        person: String,
        /// The article of law by which they ask. It stays in the log: write nothing about the person.
        #[arg(long)]
        article: String,
    },
}

/// Work with legal holds, which keep people from being erased.
#[derive(Debug, Subcommand)]
pub(crate) enum HoldCommand {
    /// Place a hold on a person, or on everybody who acted in a study.
    #[command(
        after_help = "Examples:\n  falaj hold place --study heart --article \"Court order 12/2026\"\n  falaj hold place --person spiffe://health.example/ae-on/ae-az/operator/sara --article \"Court order 12/2026\""
    )]
    Place {
        /// Who: a SPIFFE ID, or `person:` and the pseudonym.
        #[arg(
            long,
            value_name = "WHO",
            required_unless_present = "study",
            conflicts_with = "study"
        )]
        person: Option<String>,
        /// The study.
        #[arg(long)]
        study: Option<String>,
        /// The article of law or the order by which it is placed. It stays in the log: write nothing about the person.
        #[arg(long)]
        article: String,
    },
    /// Release a hold.
    #[command(after_help = "Example:\n  falaj hold release 0123456789abcdef")]
    Release {
        /// Its name, as `falaj hold list` shows it.
        hold: String,
    },
    /// List the holds that stand.
    #[command(after_help = "Example:\n  falaj hold list")]
    List,
}
