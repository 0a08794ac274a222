//! Following a study live: bars on a terminal, plain lines elsewhere, JSON Lines when asked for.

use crate::client::Client;
use anyhow::{Context as _, Result, bail};
use falaj_proto::rest::StudyEvent;
use indicatif::{ProgressBar, ProgressStyle};
use std::{io::IsTerminal as _, process::ExitCode};

/// The longest event that is read; a longer one is not ours.
const EVENT_BYTES_MAX: usize = 1 << 20;

/// Follows a study until it is over.
pub(crate) async fn watch(client: &Client, id: &str, json: bool) -> Result<ExitCode> {
    let mut response = client.open(&format!("studies/{id}/events")).await?;
    let mut show = Show::new(json)?;
    let mut buffer = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        buffer.extend_from_slice(&chunk);
        // Server-sent events end with an empty line.
        while let Some(end) = buffer.windows(2).position(|w| w == b"\n\n") {
            let event: Vec<u8> = buffer.drain(..end + 2).collect();
            let text = String::from_utf8_lossy(&event);
            let Some(data) = text.lines().find_map(|l| l.strip_prefix("data: ")) else { continue };
            let event: StudyEvent =
                serde_json::from_str(data).context("an event that cannot be read")?;
            show.event(&event, data);
            match event.state.as_str() {
                "running" => {}
                "finished" => return Ok(ExitCode::SUCCESS),
                _ => return Ok(ExitCode::FAILURE),
            }
        }
        if buffer.len() > EVENT_BYTES_MAX {
            bail!("an event without end");
        }
    }
    bail!("the coordinator closed the stream before the study was over; watch it again")
}

enum Show {
    Json,
    Lines,
    Bar(ProgressBar),
}

impl Show {
    fn new(json: bool) -> Result<Self> {
        Ok(if json {
            Self::Json
        } else if std::io::stderr().is_terminal() {
            let style = ProgressStyle::with_template("{prefix} {bar:30} round {pos}/{len}  {msg}")?;
            Self::Bar(ProgressBar::new(0).with_style(style))
        } else {
            Self::Lines
        })
    }

    fn event(&mut self, e: &StudyEvent, data: &str) {
        let epsilon: Vec<String> =
            e.epsilon_by_site.iter().map(|(site, eps)| format!("{site} {eps:.2}")).collect();
        match self {
            Self::Json => println!("{data}"),
            Self::Lines => println!(
                "{} round {}/{} {} {}/{} updates  {}",
                e.at, e.round, e.rounds, e.stage, e.updates_in, e.cohort, e.message
            ),
            Self::Bar(bar) => {
                bar.set_length(u64::from(e.rounds));
                bar.set_position(u64::from(e.round));
                bar.set_prefix(e.study.clone());
                bar.set_message(format!(
                    "{} {}/{} updates  epsilon {}",
                    e.stage,
                    e.updates_in,
                    e.cohort,
                    epsilon.join(", ")
                ));
                if e.state != "running" {
                    bar.finish();
                    eprintln!("{}", e.message);
                }
            }
        }
    }
}
