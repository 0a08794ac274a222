//! End-to-end harness: real processes, certificates, sockets and records.
//!
//! [`federation`] makes a certificate authority and configurations in a temporary folder and starts the
//! very binaries that a deployment runs; [`rogue`] is a site that holds a real certificate and breaks the
//! protocol in one chosen way; [`wiretap`] reads what a site sends. Everything waits on conditions with a bound, never on the clock alone.

pub mod enrolled;
pub mod federation;
pub mod python;
pub mod regulator;
pub mod rogue;
pub mod wiretap;

/// Says aloud that a test was skipped, and why: past the capture of what a test prints.
pub fn skipped(why: &str) {
    use std::io::Write as _;
    // Without standard error there is nobody to tell.
    let _ = writeln!(std::io::stderr(), "SKIPPED: {why}");
}
