//! Watching a study until it is over: bars on a terminal, plain lines elsewhere, JSON Lines for machines.

use crate::{
    client::{Client, ClientError},
    show,
};
use anyhow::{Result, bail};
use falaj_core::id::StudyId;
use falaj_proto::rest::StudyEvent;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use std::{io::IsTerminal as _, process::ExitCode, time::Duration};

/// How often a coordinator that is away is tried again before the watcher gives up.
const RETRIES: u32 = 30;
/// How long to wait in between.
const PAUSE: Duration = Duration::from_secs(1);

/// Watches until the study is over; the exit code says how it ended.
///
/// # Errors
/// When the coordinator refuses, or stays away.
pub(crate) async fn watch(client: &Client, id: &StudyId, json: bool) -> Result<ExitCode> {
    let screen = Screen::new(json);
    let mut tries = 0;
    loop {
        match follow(client, id, &screen, &mut tries).await {
            Ok(Some(last)) => return finish(client, id, &screen, &last).await,
            Ok(None) => {}
            Err(Broken::Client(ClientError::Unreachable { .. })) if tries < RETRIES => {}
            Err(Broken::Client(e)) => return Err(e.into()),
            Err(Broken::Output(e)) => return Err(e),
        }
        tries += 1;
        if tries > RETRIES {
            bail!(
                "the coordinator has been away for {RETRIES} tries; study `{id}` may still be running"
            );
        }
        tokio::time::sleep(PAUSE).await;
    }
}

enum Broken {
    Client(ClientError),
    Output(anyhow::Error),
}

/// Shows events until the study is over, which gives its last event, or the stream has ended before.
async fn follow(
    client: &Client,
    id: &StudyId,
    screen: &Screen,
    tries: &mut u32,
) -> Result<Option<StudyEvent>, Broken> {
    let mut events = client.events(id).await.map_err(Broken::Client)?;
    while let Some(event) = events.next().await.map_err(Broken::Client)? {
        let event: StudyEvent = event.read().map_err(Broken::Client)?;
        *tries = 0;
        screen.show(&event).map_err(Broken::Output)?;
        if event.state != "running" {
            return Ok(Some(event));
        }
    }
    Ok(None)
}

async fn finish(
    client: &Client,
    id: &StudyId,
    screen: &Screen,
    last: &StudyEvent,
) -> Result<ExitCode> {
    screen.clear();
    let code = if last.state == "finished" { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    if !matches!(screen, Screen::Json) {
        let study = client.study(id).await?;
        let reason = study.reason.map_or_else(String::new, |why| format!(": {why}"));
        show::line(&format!(
            "{id} {}{reason}; {} of {} rounds gave a model; epsilon {}",
            study.state,
            study.rounds_promoted,
            study.rounds,
            show::epsilons(&study.epsilon_by_site)
        ))?;
    }
    Ok(code)
}

/// Where events are shown.
enum Screen {
    Json,
    Lines,
    Bars(Bars),
}

struct Bars {
    all: MultiProgress,
    rounds: ProgressBar,
    updates: ProgressBar,
    epsilon: ProgressBar,
}

impl Screen {
    fn new(json: bool) -> Self {
        if json {
            Self::Json
        } else if std::io::stderr().is_terminal() {
            Self::Bars(Bars::new())
        } else {
            Self::Lines
        }
    }

    fn show(&self, event: &StudyEvent) -> Result<()> {
        match self {
            Self::Json => show::line(&serde_json::to_string(event)?),
            Self::Lines => show::line(&in_one_line(event)),
            Self::Bars(bars) => {
                bars.show(event);
                Ok(())
            }
        }
    }

    fn clear(&self) {
        if let Self::Bars(bars) = self {
            // A terminal that cannot be cleared only looks worse.
            let _ = bars.all.clear();
        }
    }
}

impl Bars {
    fn new() -> Self {
        let style = |template| {
            ProgressStyle::with_template(template).expect("invariant: the template is valid")
        };
        let all = MultiProgress::new();
        let add = |template| all.add(ProgressBar::new(0).with_style(style(template)));
        let rounds = add("rounds   {bar:40} {pos}/{len}  {msg}");
        let updates = add("updates  {bar:40} {pos}/{len}  {msg}");
        let epsilon = add("epsilon  {msg}");
        Self { all, rounds, updates, epsilon }
    }

    fn show(&self, event: &StudyEvent) {
        self.rounds.set_length(u64::from(event.rounds));
        self.rounds.set_position(u64::from(rounds_done(event)));
        self.rounds.set_message(event.stage.clone());
        self.updates.set_length(u64::from(event.cohort));
        self.updates.set_position(u64::from(event.updates_in));
        self.updates.set_message(event.message.clone());
        self.epsilon.set_message(show::epsilons(&event.epsilon_by_site));
    }
}

/// Rounds that need no more work.
fn rounds_done(event: &StudyEvent) -> u32 {
    let over = matches!(event.stage.as_str(), "promoted" | "rejected");
    if over { event.round } else { event.round.saturating_sub(1) }
}

fn in_one_line(event: &StudyEvent) -> String {
    // The time of day is enough for people; JSON has all of it.
    let time = event.at.get(11..19).unwrap_or(&event.at);
    let site = event.site.as_deref().map_or_else(String::new, |site| format!(" {site}"));
    format!(
        "{time} round {}/{} {} updates {}/{}{site} {} | epsilon {}",
        event.round,
        event.rounds,
        event.stage,
        event.updates_in,
        event.cohort,
        event.message,
        show::epsilons(&event.epsilon_by_site)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(stage: &str) -> StudyEvent {
        StudyEvent {
            seq: 1,
            at: "2026-01-02T03:04:05.678Z".into(),
            study: "s".into(),
            state: "running".into(),
            round: 3,
            rounds: 20,
            stage: stage.into(),
            cohort: 3,
            updates_in: 2,
            site: Some("hospital-2".into()),
            message: "sent its update".into(),
            epsilon_by_site: [("hospital-2".to_owned(), 1.25)].into(),
            model_sha256: None,
        }
    }

    #[test]
    fn a_line_says_round_stage_updates_and_epsilon() {
        assert_eq!(
            in_one_line(&event("collecting")),
            "03:04:05 round 3/20 collecting updates 2/3 hospital-2 sent its update | epsilon hospital-2 1.250"
        );
    }

    #[test]
    fn a_round_counts_as_done_when_it_has_given_its_model() {
        assert_eq!(rounds_done(&event("collecting")), 2);
        assert_eq!(rounds_done(&event("promoted")), 3);
    }
}
