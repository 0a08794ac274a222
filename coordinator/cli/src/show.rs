//! How answers look: JSON for machines, tables for people.

use anyhow::Result;
use falaj_proto::rest::StudyEvent;
use serde::Serialize;
use std::{collections::BTreeMap, fmt::Write as _, io::Write as _};

/// Heights of a sparkline, from the least to the most.
const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// Prints to standard output. A reader that has gone away, as `head` does, is no failure.
///
/// # Errors
/// When standard output cannot be written for any other reason.
pub(crate) fn line(text: &str) -> Result<()> {
    match writeln!(std::io::stdout(), "{text}") {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => Err(e.into()),
        _ => Ok(()),
    }
}

/// Prints a JSON document for machines, or what `text` makes for people.
///
/// # Errors
/// As [`line()`].
pub(crate) fn answer<T: Serialize>(
    json: bool,
    value: &T,
    text: impl FnOnce(&T) -> String,
) -> Result<()> {
    if json { line(&serde_json::to_string(value)?) } else { line(text(value).trim_end()) }
}

/// Rows under headings, each column as wide as its widest cell.
pub(crate) fn table<const N: usize>(
    headings: [&str; N],
    rows: impl IntoIterator<Item = [String; N]>,
) -> String {
    let mut lines = vec![headings.map(str::to_owned)];
    lines.extend(rows);
    let wide: [usize; N] = std::array::from_fn(|i| {
        lines.iter().map(|cells| cells[i].chars().count()).max().unwrap_or(0)
    });
    let mut out = String::new();
    for cells in &lines {
        let mut row = String::new();
        for (cell, wide) in cells.iter().zip(wide) {
            let _ = write!(row, "{cell:wide$}  ");
        }
        out.push_str(row.trim_end());
        out.push('\n');
    }
    out
}

/// Names and values, one a line.
pub(crate) fn facts(facts: &[(&str, String)]) -> String {
    let wide = facts.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    let lines = facts.iter().map(|(name, value)| format!("{name:wide$}  {value}\n"));
    lines.collect()
}

/// A bar for each value, between the least and the most of them; a blank where there is none.
pub(crate) fn sparkline(values: &[Option<f64>]) -> String {
    let some = || values.iter().flatten().copied();
    let (least, most) =
        (some().fold(f64::INFINITY, f64::min), some().fold(f64::NEG_INFINITY, f64::max));
    let bar = |value: &Option<f64>| {
        let Some(value) = value else { return ' ' };
        let part = if most > least { (value - least) / (most - least) } else { 0.5 };
        // The first bar whose upper end is not below the value.
        let ends = BARS.into_iter().zip([0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0]);
        ends.into_iter().find(|(_, end)| part <= *end).map_or(BARS[7], |(bar, _)| bar)
    };
    values.iter().map(bar).collect()
}

/// Epsilon with three digits behind the point, rounded up: privacy is never shown better than it is.
pub(crate) fn epsilon(value: f64) -> String {
    format!("{:.3}", (value * 1e3).ceil() / 1e3)
}

/// Epsilon by site in one line.
pub(crate) fn epsilons(by_site: &BTreeMap<String, f64>) -> String {
    let each: Vec<String> = by_site.iter().map(|(s, e)| format!("{s} {}", epsilon(*e))).collect();
    if each.is_empty() { "-".to_owned() } else { each.join(", ") }
}

/// Where a study stands when something is shown of it again.
pub(crate) fn moment(event: &StudyEvent) -> String {
    // The time of day is enough for people; JSON has all of it.
    let time = event.at.get(11..19).unwrap_or(&event.at);
    format!("{time} round {}/{} {}", event.round, event.rounds, event.stage)
}

/// The first digits of a digest, as many as people compare.
pub(crate) fn short(digest: &str) -> &str {
    digest.get(..12).unwrap_or(digest)
}

/// Bytes for people.
#[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
pub(crate) fn bytes(n: u64) -> String {
    match n {
        0..1_000 => format!("{n} B"),
        1_000..1_000_000 => format!("{:.1} kB", n as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", n as f64 / 1e6),
        _ => format!("{:.1} GB", n as f64 / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let text = table(["a", "bb"], [["xxx".into(), "y".into()], ["z".into(), String::new()]]);
        assert_eq!(text, "a    bb\nxxx  y\nz\n");
    }

    #[test]
    fn a_sparkline_goes_from_the_least_to_the_most() {
        assert_eq!(sparkline(&[Some(0.5), None, Some(1.0), Some(0.75)]), "▁ █▄");
        assert_eq!(sparkline(&[Some(0.5)]), "▄");
        assert_eq!(sparkline(&[]), "");
    }

    #[test]
    fn epsilon_is_rounded_up() {
        assert_eq!(epsilon(1.000_1), "1.001");
        assert_eq!(epsilon(2.5), "2.500");
    }
}
