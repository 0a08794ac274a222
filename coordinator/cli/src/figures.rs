//! `falaj study figures`: what sites have counted about candidates, and how their updates compare.

use crate::{client::Client, show};
use anyhow::{Context as _, Result};
use clap::Args;
use falaj_core::id::StudyId;
use falaj_proto::rest::{Figure, Figures, Page};
use serde::Serialize;
use std::fmt::Write as _;

/// Which figures are shown.
#[derive(Debug, Args)]
pub(crate) struct FiguresArgs {
    /// Name of the study.
    id: String,
    /// The round; the newest that was evaluated, or whose updates were compared, when absent.
    #[arg(long, conflicts_with = "history")]
    round: Option<u32>,
    /// Another round to compare it with.
    #[arg(long, value_name = "ROUND", conflicts_with = "history")]
    against: Option<u32>,
    /// Figures that begin with this alone, such as `roc_auc`, `recall of SEX` or `update_cosine`.
    #[arg(long, value_name = "NAME")]
    figure: Option<String>,
    /// Each figure over all rounds.
    #[arg(long, requires = "figure")]
    history: bool,
    /// What each site has counted alone, too.
    #[arg(long)]
    sites: bool,
}

impl FiguresArgs {
    /// Shows them.
    ///
    /// # Errors
    /// When the coordinator gives none.
    pub(crate) async fn run(&self, client: &Client, json: bool) -> Result<()> {
        let id: StudyId = self.id.parse()?;
        let mut filters = vec![("sites", self.sites.to_string())];
        filters.extend(self.figure.clone().map(|figure| ("figure", figure)));
        if self.history {
            let mut all = client.figures(&id, &filters).await?;
            all.items.reverse();
            return show::answer(json, &all, history);
        }
        let of = self.of(client, &id, &filters, self.round).await?;
        match self.against {
            None => show::answer(json, &of, |of| heading(of) + &table(of)),
            Some(other) => {
                let against = self.of(client, &id, &filters, Some(other)).await?;
                let both = Compared { of, against };
                show::answer(json, &both, compared)
            }
        }
    }

    /// Those of one round: of its last try.
    async fn of(
        &self,
        client: &Client,
        id: &StudyId,
        filters: &[(&str, String)],
        round: Option<u32>,
    ) -> Result<Figures> {
        let mut filters = filters.to_vec();
        filters.push(("limit", "1".to_owned()));
        filters.extend(round.map(|round| ("round", round.to_string())));
        let page: Page<Figures> = client.newest_figures(id, &filters).await?;
        page.items.into_iter().next().with_context(|| match round {
            Some(round) => format!(
                "no site has counted anything about round {round} of {id}, and its updates were not compared"
            ),
            None => format!(
                "no candidate of {id} was evaluated: `evaluation` in a study file asks sites to do it, and a gate on `update_norm_ratio` or `update_cosine` has updates compared"
            ),
        })
    }
}

/// Two rounds side by side.
#[derive(Debug, Serialize)]
struct Compared {
    of: Figures,
    against: Figures,
}

fn heading(of: &Figures) -> String {
    let counted = match (of.confidence, &of.noise) {
        (Some(confidence), Some(noise)) => format!(
            "about {} records at {}; {:.0} % intervals, noise: {noise}",
            of.records,
            of.sites.join(", "),
            confidence * 100.0
        ),
        _ => "its updates, compared with each other".to_owned(),
    };
    let candidate = show::short(&of.candidate_sha256);
    format!(
        "round {} (try {}, {}), candidate {candidate}: {counted}\n",
        of.round, of.attempt, of.stage
    )
}

/// A value, or that there is none.
pub(crate) fn number(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.4}"))
}

fn interval(f: &Figure) -> String {
    between(f.missing.as_deref(), f.low, f.high)
}

/// An interval, or why there is none.
pub(crate) fn between(missing: Option<&str>, low: Option<f64>, high: Option<f64>) -> String {
    match (missing, low, high) {
        (Some(why), ..) => why.to_owned(),
        (None, Some(low), Some(high)) => format!("[{low:.4}, {high:.4}]"),
        _ => "-".to_owned(),
    }
}

fn gates(figure: &Figure) -> String {
    let each = figure.gates.iter().map(|gate| {
        let said = if gate.pass { "passes" } else { "FAILS" };
        format!("{said}: {}", gate.bound)
    });
    each.collect::<Vec<_>>().join("; ")
}

fn table(of: &Figures) -> String {
    let rows =
        of.figures.iter().map(|f| [f.figure.clone(), number(f.value), interval(f), gates(f)]);
    show::table(["FIGURE", "VALUE", "INTERVAL", "GATE"], rows)
}

fn compared(both: &Compared) -> String {
    let rows = both.of.figures.iter().map(|f| {
        let other = both.against.figures.iter().find(|o| o.figure == f.figure);
        let was = other.and_then(|o| o.value);
        let change =
            f.value.zip(was).map_or_else(|| "-".to_owned(), |(a, b)| format!("{:+.4}", a - b));
        [f.figure.clone(), number(f.value), number(was), change, interval(f), gates(f)]
    });
    let against = format!("ROUND {}", both.against.round);
    let headings = ["FIGURE", "VALUE", &against, "CHANGE", "INTERVAL", "GATE"];
    heading(&both.of) + &show::table(headings, rows)
}

/// Each figure over the rounds, with a line of bars.
fn history(page: &Page<Figures>) -> String {
    let mut names: Vec<&str> = Vec::new();
    for figure in page.items.iter().flat_map(|of| &of.figures) {
        if !names.contains(&figure.figure.as_str()) {
            names.push(&figure.figure);
        }
    }
    if names.is_empty() {
        return "no round has such a figure\n".to_owned();
    }
    let mut out = String::new();
    for name in names {
        let of = |of: &Figures| of.figures.iter().find(|f| f.figure == name).cloned();
        let found: Vec<(&Figures, Figure)> =
            page.items.iter().filter_map(|r| of(r).map(|f| (r, f))).collect();
        let values: Vec<Option<f64>> = found.iter().map(|(_, f)| f.value).collect();
        let _ = writeln!(out, "{name}  {}", show::sparkline(&values));
        let rows = found.iter().map(|(r, f)| {
            let (round, attempt) = (r.round.to_string(), r.attempt.to_string());
            [round, attempt, r.stage.clone(), number(f.value), interval(f), gates(f)]
        });
        out += &show::table(["ROUND", "TRY", "STAGE", "VALUE", "INTERVAL", "GATE"], rows);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures(round: u32, value: f64) -> Figures {
        let figure = |figure: &str, value| Figure {
            figure: figure.into(),
            value: Some(value),
            low: Some(value - 0.05),
            high: Some(value + 0.05),
            missing: None,
            gates: vec![falaj_proto::rest::FigureGate {
                bound: "at least 0.7".into(),
                pass: value - 0.05 >= 0.7,
            }],
        };
        Figures {
            round,
            attempt: 0,
            stage: "promoted".into(),
            candidate_sha256: "ab".repeat(32),
            sites: vec!["dubai".into(), "mafraq".into()],
            records: 800,
            confidence: Some(0.95),
            noise: Some("laplace".into()),
            figures: vec![figure("roc_auc", value)],
        }
    }

    #[test]
    fn a_round_that_no_site_has_counted_says_what_its_figures_are_of() {
        let counted = heading(&figures(5, 0.8));
        assert!(
            counted.contains(": about 800 records at dubai, mafraq; 95 % intervals"),
            "{counted}"
        );
        let compared = Figures {
            sites: Vec::new(),
            records: 0,
            confidence: None,
            noise: None,
            ..figures(5, 0.8)
        };
        let text = heading(&compared);
        assert!(text.ends_with(": its updates, compared with each other\n"), "{text}");
    }

    #[test]
    fn two_rounds_are_shown_side_by_side() {
        let both = Compared { of: figures(5, 0.8), against: figures(3, 0.7) };
        let text = compared(&both);
        assert!(text.contains("roc_auc  0.8000  0.7000   +0.1000  [0.7500, 0.8500]"), "{text}");
        assert!(text.contains("passes: at least 0.7") && text.contains("ROUND 3"), "{text}");
        let text = table(&both.against);
        assert!(text.contains("FAILS: at least 0.7"), "{text}");
    }

    #[test]
    fn a_figures_history_has_a_row_for_each_round() {
        let page = Page { items: vec![figures(1, 0.6), figures(2, 0.8)], next: None };
        let text = history(&page);
        assert!(text.starts_with("roc_auc  ▁█\n") && text.lines().count() == 4, "{text}");
    }
}
