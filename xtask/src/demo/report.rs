//! The demo's short report: the table and the learning curve, as one HTML file. Other demos' are in words.

use serde_json::Value;
use std::fmt::Write as _;

/// One model's scores on the held-out rows.
pub(crate) struct Row {
    pub(crate) model: String,
    pub(crate) accuracy: f64,
    pub(crate) auc: f64,
    pub(crate) epsilon: String,
    pub(crate) bytes: Option<u64>,
    pub(crate) seconds: f64,
}

const HEAD: [&str; 6] = ["model", "accuracy", "AUC", "epsilon", "bytes sent", "wall time"];

impl Row {
    fn cells(&self) -> [String; 6] {
        [
            self.model.clone(),
            format!("{:.1} %", 100.0 * self.accuracy),
            format!("{:.3}", self.auc),
            self.epsilon.clone(),
            self.bytes.map_or_else(|| "-".to_owned(), |b| b.to_string()),
            format!("{:.1} s", self.seconds),
        ]
    }
}

/// The table as text.
pub(crate) fn table(rows: &[Row]) -> String {
    columns(HEAD, rows.iter().map(Row::cells))
}

/// Rows under a heading, as text in columns.
pub(crate) fn columns<const N: usize>(
    head: [&str; N],
    rows: impl Iterator<Item = [String; N]>,
) -> String {
    let all: Vec<[String; N]> = [head.map(str::to_owned)].into_iter().chain(rows).collect();
    let width = |c: usize| all.iter().map(|r| r[c].chars().count()).max().unwrap_or(0);
    let mut out = String::new();
    for row in &all {
        let cells: Vec<String> =
            row.iter().enumerate().map(|(c, cell)| format!("{cell:w$}", w = width(c))).collect();
        let _ = writeln!(out, "  {}", cells.join("  ").trim_end());
    }
    out
}

/// Prints a part of a report in words, and keeps it.
pub(crate) fn say(report: &mut String, part: &str) {
    println!("{part}");
    report.push_str(part);
    report.push('\n');
}

/// A text in an answer.
pub(crate) fn text(value: &Value) -> &str {
    value.as_str().unwrap_or("?")
}

/// The report as HTML with an inline picture of the curve: accuracy on held-out rows by round.
pub(crate) fn html(rows: &[Row], curve: &[(u32, f64)], notes: &[String]) -> String {
    let mut body = String::new();
    let _ = writeln!(body, "<table><tr>{}</tr>", HEAD.map(|h| format!("<th>{h}</th>")).join(""));
    for row in rows {
        let cells = row.cells().map(|c| format!("<td>{}</td>", escape(&c))).join("");
        let _ = writeln!(body, "<tr>{cells}</tr>");
    }
    let _ = writeln!(body, "</table>\n<h2>Learning curve</h2>\n{}", svg(curve));
    let _ = writeln!(body, "<h2>What else was shown</h2>\n<ul>");
    for note in notes {
        let _ = writeln!(body, "<li>{}</li>", escape(note));
    }
    format!(
        "<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\"><title>Falaj demo</title>\n\
         <style>body{{font:16px system-ui;max-width:52rem;margin:2rem auto;padding:0 1rem}}\
         table{{border-collapse:collapse}}td,th{{padding:.3rem .8rem;border-bottom:1px solid #ccc;text-align:left}}</style>\n\
         <h1>Three emirates, one model</h1>\n\
         <p>Records: Breast Cancer Wisconsin (Diagnostic), Wolberg, Street, Mangasarian 1993, UCI ML Repository, CC BY 4.0.</p>\n{body}</ul></html>\n"
    )
}

fn svg(curve: &[(u32, f64)]) -> String {
    let last = curve.last().map_or(1, |(round, _)| (*round).max(1));
    let x = |round: u32| 50.0 + 600.0 * f64::from(round) / f64::from(last);
    let y = |accuracy: f64| 230.0 - 400.0 * (accuracy - 0.5).max(0.0);
    let points: Vec<String> =
        curve.iter().map(|(r, a)| format!("{:.1},{:.1}", x(*r), y(*a))).collect();
    let mut grid = String::new();
    for percent in [50, 60, 70, 80, 90, 100] {
        let at = y(f64::from(percent) / 100.0);
        let _ = write!(
            grid,
            "<line x1=\"50\" x2=\"650\" y1=\"{at:.1}\" y2=\"{at:.1}\" stroke=\"#ddd\"/><text x=\"8\" y=\"{:.1}\" font-size=\"12\">{percent} %</text>",
            at + 4.0
        );
    }
    format!(
        "<svg viewBox=\"0 0 680 260\" role=\"img\" aria-label=\"accuracy by round\">{grid}\
         <polyline fill=\"none\" stroke=\"#0a6\" stroke-width=\"2.5\" points=\"{}\"/>\
         <text x=\"50\" y=\"252\" font-size=\"12\">round 0</text><text x=\"610\" y=\"252\" font-size=\"12\">round {last}</text></svg>",
        points.join(" ")
    )
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
