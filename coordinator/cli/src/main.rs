//! `falaj`: operates a coordinator from the command line. It speaks only REST, and holds no rule of its own.

mod args;
mod client;
mod commands;
mod compare;
mod destination;
mod download;
mod export;
mod feed;
mod figures;
mod gates;
mod log;
mod login;
mod mirror;
mod plot;
mod policy;
mod privacy;
mod rounds;
mod settings;
mod show;
mod stamps;
mod versions;
mod watch;

use args::Cli;
use clap::Parser as _;
use client::ClientError;
use std::process::ExitCode;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    let json = cli.json;
    match commands::run(cli).await {
        Ok(code) => code,
        Err(e) => {
            eprintln!("{}", complaint(&e, json));
            ExitCode::FAILURE
        }
    }
}

/// One line for people, or one JSON object for machines. A study file's complaints are one line each.
fn complaint(error: &anyhow::Error, json: bool) -> String {
    if !json {
        return format!("falaj: {error:#}");
    }
    match error.downcast_ref::<ClientError>() {
        Some(ClientError::Refused(problem)) => serde_json::to_string(problem),
        _ => serde_json::to_string(&serde_json::json!({ "detail": format!("{error:#}") })),
    }
    .unwrap_or_else(|e| e.to_string())
}
