//! `falaj gate`: what a study asks of its candidates, and what came of it.

use crate::{
    args::GateCommand,
    client::Client,
    figures::{between, number},
    show,
    watch::each_round,
};
use anyhow::{Result, ensure};
use falaj_core::id::StudyId;
use falaj_proto::rest::{Figures, Gate, GateFigure, StudyEvent};
use serde::Serialize;
use std::fmt::Write as _;

/// Does what the command line says about gates.
///
/// # Errors
/// What went wrong, and what to do.
pub(crate) async fn run(client: &Client, command: GateCommand, json: bool) -> Result<()> {
    match command {
        GateCommand::List { id, round, history, watch } => {
            let id: StudyId = id.parse()?;
            let list = async || Listed::of(client, &id, round, history).await?.show(json);
            if !watch {
                return list().await;
            }
            each_round(client, &id, async |event: &StudyEvent| {
                if !json {
                    show::line(&show::moment(event))?;
                }
                list().await
            })
            .await
        }
        GateCommand::Explain { id, gate, round } => {
            let id: StudyId = id.parse()?;
            let mut gates = client.gates(&id, round).await?.items;
            ensure!(!gates.is_empty(), "{id} declares no gates: `gates` in a study file does");
            if let Some(begin) = gate {
                let all: Vec<String> = gates.iter().map(|gate| gate.gate.clone()).collect();
                gates.retain(|gate| gate.gate.starts_with(&begin));
                ensure!(
                    !gates.is_empty(),
                    "{id} has no gate that begins with `{begin}`; there are {}",
                    all.join(", ")
                );
            }
            show::answer(json, &gates, |gates| {
                gates.iter().map(explained).collect::<Vec<_>>().join("\n")
            })
        }
    }
}

/// The gates of a study.
#[derive(Debug, Serialize)]
struct Listed {
    items: Vec<Gate>,
    /// Figures over the rounds, the oldest first.
    #[serde(skip_serializing_if = "Option::is_none")]
    history: Option<Vec<Figures>>,
}

impl Listed {
    async fn of(client: &Client, id: &StudyId, round: Option<u32>, history: bool) -> Result<Self> {
        let items = client.gates(id, round).await?.items;
        let history = if history { Some(over_rounds(client, id, None).await?) } else { None };
        Ok(Self { items, history })
    }

    fn show(&self, json: bool) -> Result<()> {
        show::answer(json, self, |of| {
            if of.items.is_empty() {
                return "no gates are declared: `gates` in a study file does that".to_owned();
            }
            table(&of.items, of.history.as_deref())
        })
    }
}

/// Figures of every candidate that was evaluated, the oldest first.
///
/// # Errors
/// When the coordinator gives none.
pub(crate) async fn over_rounds(
    client: &Client,
    id: &StudyId,
    figure: Option<&str>,
) -> Result<Vec<Figures>> {
    let mut filters = vec![("sites", "true".to_owned())];
    filters.extend(figure.map(|figure| ("figure", figure.to_owned())));
    let mut all = client.figures(id, &filters).await?.items;
    all.reverse();
    Ok(all)
}

/// A line of bars: a figure over the rounds.
pub(crate) fn bars(figure: &str, history: &[Figures]) -> String {
    let of = |round: &Figures| round.figures.iter().find(|f| f.figure == figure)?.value;
    show::sparkline(&history.iter().map(of).collect::<Vec<_>>())
}

/// Gates, a row for each figure that one looked at.
pub(crate) fn table(gates: &[Gate], history: Option<&[Figures]>) -> String {
    let mut rows = Vec::new();
    for gate in gates {
        let round = gate.round.map_or_else(|| "-".to_owned(), |round| round.to_string());
        let row = |figure: String, value, interval, said: &str, bars| {
            let (bound, when) = (gate.bound.clone(), gate.when.clone());
            // No round is asked, and so none is answered for.
            let on_failure = if when == "promotion" { "-" } else { &gate.on_failure };
            let (round, on_failure) = (round.clone(), on_failure.to_owned());
            [figure, value, interval, bound, said.to_owned(), round, when, on_failure, bars]
        };
        if gate.figures.is_empty() {
            let why = unknown(gate).unwrap_or_else(|| "-".to_owned());
            rows.push(row(gate.gate.clone(), "-".into(), why, "-", String::new()));
        }
        rows.extend(gate.figures.iter().map(|figure| {
            let bars = history.map(|history| bars(&figure.figure, history)).unwrap_or_default();
            let said = said(gate.asked, figure.pass);
            row(figure.figure.clone(), value(figure), interval(figure), said, bars)
        }));
    }
    let bars = if history.is_some() { "OVER ROUNDS" } else { "" };
    let headings =
        ["FIGURE", "VALUE", "INTERVAL", "BOUND", "SAYS", "ROUND", "WHEN", "ON FAILURE", bars];
    show::table(headings, rows)
}

/// Why nothing is known of what a gate says, where the log says why.
fn unknown(gate: &Gate) -> Option<String> {
    let digest = gate.gates_sha256.as_ref()?;
    Some(format!("too many gates for the log's entry, which has their SHA-256: {digest}"))
}

/// What a gate says of a figure, in one word where it counts.
pub(crate) const fn said(asked: bool, pass: bool) -> &'static str {
    match (asked, pass) {
        (true, true) => "passes",
        (true, false) => "FAILS",
        (false, true) => "would pass",
        (false, false) => "would fail",
    }
}

/// Whether a figure is known to a point.
fn is_exact(figure: &GateFigure) -> bool {
    figure.low.zip(figure.high).is_some_and(|(low, high)| low.total_cmp(&high).is_eq())
}

fn value(figure: &GateFigure) -> String {
    match figure.value {
        Some(value) if is_exact(figure) => value.to_string(),
        value => number(value),
    }
}

fn interval(figure: &GateFigure) -> String {
    if is_exact(figure) {
        return "-".to_owned();
    }
    between(figure.missing.as_deref(), figure.low, figure.high)
}

/// A gate in sentences.
fn explained(gate: &Gate) -> String {
    let when = match gate.when.as_str() {
        "each_round" => "It is asked of each candidate that is evaluated".to_owned(),
        "end" => "It is asked of the last round's candidate".to_owned(),
        "promotion" => "It is asked when a version is promoted".to_owned(),
        other => format!("It is asked at: {other}"),
    };
    let then = match gate.on_failure.as_str() {
        _ if gate.when == "promotion" => "a version that fails stays where it stands",
        "reject" => "a candidate that fails is not taken, and the round is tried again",
        "roll_back" => "when one fails, the study goes on from the last model that passed",
        "stop" => "when one fails, the study ends with the model that it has",
        "ask" => "when one fails, people are asked whether it is taken all the same",
        other => other,
    };
    let mut text = format!("{}: {} is needed.\n  {when}; {then}.\n", gate.gate, gate.bound);
    let Some(round) = gate.round else {
        return text + "  There is no candidate yet.\n";
    };
    if gate.figures.is_empty() {
        let why = unknown(gate).map(|why| format!(": {why}")).unwrap_or_default();
        let _ = writeln!(text, "  Nothing is known of the candidate of round {round}{why}.");
    }
    for figure in &gate.figures {
        let said = said(gate.asked, figure.pass);
        let _ = writeln!(text, "  Round {round}: {} {said}: {}.", figure.figure, why(gate, figure));
    }
    text
}

/// Why a figure is within its bound, or not.
fn why(gate: &Gate, figure: &GateFigure) -> String {
    if let Some(why) = &figure.missing {
        return format!("{why}, and a figure that is missing fails");
    }
    let bound = gate.bound.rsplit(' ').next().and_then(|bound| bound.parse::<f64>().ok());
    let (end, held) = if gate.bound.starts_with("at most") {
        ("upper", figure.high)
    } else {
        ("lower", figure.low)
    };
    let (Some(bound), Some(held)) = (bound, held) else {
        return format!("it is {}", value(figure));
    };
    let margin = (held - bound).abs();
    let side = if held < bound { "below" } else { "above" };
    if is_exact(figure) {
        return format!("it is {held}, {margin:.4} {side} the bound");
    }
    format!(
        "it is {}, and the {end} end of its interval, {held:.4}, is {margin:.4} {side} the bound",
        value(figure)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gate(gate: &str, bound: &str, figures: Vec<GateFigure>) -> Gate {
        Gate {
            gate: gate.into(),
            bound: bound.into(),
            when: "each_round".into(),
            on_failure: "reject".into(),
            round: Some(3),
            attempt: Some(0),
            asked: true,
            pass: (!figures.is_empty()).then(|| figures.iter().all(|figure| figure.pass)),
            figures,
            gates_sha256: None,
        }
    }

    fn figure(name: &str, ends: Option<(f64, f64)>, pass: bool) -> GateFigure {
        GateFigure {
            figure: name.into(),
            value: ends.map(|(low, high)| f64::midpoint(low, high)),
            low: ends.map(|(low, _)| low),
            high: ends.map(|(_, high)| high),
            missing: ends.is_none().then(|| "no site has sent counts".into()),
            pass,
        }
    }

    #[test]
    fn each_figure_of_a_gate_has_a_row_with_its_interval_and_bound() {
        let gates = [
            gate("roc_auc", "at least 0.72", vec![figure("roc_auc", Some((0.75, 0.85)), true)]),
            gate(
                "recall of each group by SEX",
                "at least 0.3",
                vec![
                    figure("recall of SEX=1", Some((0.25, 0.45)), false),
                    figure("recall of SEX=2", None, false),
                ],
            ),
            gate("sites", "at least 2", vec![figure("sites", Some((3.0, 3.0)), true)]),
            Gate { round: None, ..gate("ece", "at most 0.1", Vec::new()) },
            Gate {
                asked: false,
                ..gate("f1", "at least 0.1", vec![figure("f1", Some((0.5, 0.7)), true)])
            },
        ];
        let text = table(&gates, None);
        let rows: Vec<String> =
            text.lines().map(|l| l.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        let wanted = [
            "FIGURE VALUE INTERVAL BOUND SAYS ROUND WHEN ON FAILURE",
            "roc_auc 0.8000 [0.7500, 0.8500] at least 0.72 passes 3 each_round reject",
            "recall of SEX=1 0.3500 [0.2500, 0.4500] at least 0.3 FAILS 3 each_round reject",
            "recall of SEX=2 - no site has sent counts at least 0.3 FAILS 3 each_round reject",
            "sites 3 - at least 2 passes 3 each_round reject",
            "ece - - at most 0.1 - - each_round reject",
            "f1 0.6000 [0.5000, 0.7000] at least 0.1 would pass 3 each_round reject",
        ];
        assert_eq!(rows, wanted);
    }

    #[test]
    fn a_gate_is_explained_by_the_end_that_it_is_held_against() {
        let text = explained(&gate(
            "equal_opportunity_difference by SEX",
            "at most 0.05",
            vec![figure("equal_opportunity_difference by SEX", Some((0.0, 0.08)), false)],
        ));
        assert!(text.contains("at most 0.05 is needed"), "{text}");
        let why =
            "it is 0.0400, and the upper end of its interval, 0.0800, is 0.0300 above the bound";
        assert!(text.contains("FAILS") && text.contains(why), "{text}");
        let sites = gate("sites", "at least 2", vec![figure("sites", Some((3.0, 3.0)), true)]);
        assert!(explained(&sites).contains("it is 3, 1.0000 above the bound"));
        let unlisted =
            Gate { gates_sha256: Some("ab12".into()), ..gate("sites", "at least 2", Vec::new()) };
        let why = "too many gates for the log's entry, which has their SHA-256: ab12";
        assert!(explained(&unlisted).contains(why), "{}", explained(&unlisted));
        assert!(table(&[unlisted], None).contains(why));
        let missing = gate("f1", "at least 0.5", vec![figure("f1", None, false)]);
        assert!(explained(&missing).contains("a figure that is missing fails"));
    }
}
