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
    let last = each(client, id, async |event: &StudyEvent| screen.show(event)).await?;
    finish(client, id, &screen, &last).await
}

/// Shows something now, each time that a round has come to its end, and when the study is over.
///
/// # Errors
/// As [`watch`]; why it cannot be shown.
pub(crate) async fn each_round(
    client: &Client,
    id: &StudyId,
    mut show: impl AsyncFnMut(&StudyEvent) -> Result<()>,
) -> Result<()> {
    let mut news = News::default();
    each(
        client,
        id,
        async |event: &StudyEvent| {
            if news.is_due(event) { show(event).await } else { Ok(()) }
        },
    )
    .await?;
    Ok(())
}

/// Whether there is something to show about rounds that was not shown before.
#[derive(Debug, Default)]
struct News {
    shown: bool,
    /// The round that has ended, if nothing has happened since.
    ended: Option<u32>,
}

impl News {
    fn is_due(&mut self, event: &StudyEvent) -> bool {
        let ended = matches!(event.stage.as_str(), "promoted" | "rejected" | "failed")
            || event.state != "running";
        let ended = ended.then_some(event.round);
        let due = !self.shown || (ended.is_some() && ended != self.ended);
        (self.shown, self.ended) = (true, ended);
        due
    }
}

/// Hands out every event until the study is over, and gives the last one back. Outlives short absences of the coordinator.
///
/// # Errors
/// When the coordinator refuses, or stays away; what `show` says.
async fn each(
    client: &Client,
    id: &StudyId,
    mut show: impl AsyncFnMut(&StudyEvent) -> Result<()>,
) -> Result<StudyEvent> {
    let mut tries = 0;
    loop {
        match follow(client, id, &mut show, &mut tries).await {
            Ok(Some(last)) => return Ok(last),
            Ok(None) => {}
            Err(e) if is_away(&e) && tries < RETRIES => {}
            Err(e) => return Err(e),
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

fn is_away(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref::<ClientError>(), Some(ClientError::Unreachable { .. }))
}

/// Hands out events until the study is over, which gives its last event, or the stream has ended before.
async fn follow(
    client: &Client,
    id: &StudyId,
    show: &mut impl AsyncFnMut(&StudyEvent) -> Result<()>,
    tries: &mut u32,
) -> Result<Option<StudyEvent>> {
    let mut events = client.events(id).await?;
    while let Some(event) = events.next().await? {
        let event: StudyEvent = event.read()?;
        *tries = 0;
        show(&event).await?;
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
    let site = event.site.as_deref().map_or_else(String::new, |site| format!(" {site}"));
    format!(
        "{} updates {}/{}{site} {} | epsilon {}",
        show::moment(event),
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
    fn rounds_are_shown_at_once_and_then_each_time_that_one_has_ended() {
        let mut news = News::default();
        let stages =
            ["collecting", "gated", "rejected", "planned", "rejected", "rejected", "promoted"];
        let due: Vec<bool> = stages.iter().map(|stage| news.is_due(&event(stage))).collect();
        assert_eq!(due, [true, false, true, false, true, false, false]);
        let over = StudyEvent { state: "finished".into(), ..event("planned") };
        assert!(!news.is_due(&event("planned")) && news.is_due(&over));
    }

    #[test]
    fn a_round_counts_as_done_when_it_has_given_its_model() {
        assert_eq!(rounds_done(&event("collecting")), 2);
        assert_eq!(rounds_done(&event("promoted")), 3);
    }
}
