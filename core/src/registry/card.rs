//! A model card, made from a version's provenance alone: whatever stands in it is signed, and nothing is typed by hand.
//!
//! Two forms of the same: Markdown and HTML. Text comes from studies and from elsewhere, and is escaped.

use super::provenance::Provenance;
use std::fmt::Write as _;

/// A part of a card.
struct Part {
    title: &'static str,
    body: Body,
}

enum Body {
    /// Names and what they are.
    Facts(Vec<(&'static str, String)>),
    /// Column names, and rows.
    Table(Vec<&'static str>, Vec<Vec<String>>),
    /// Sentences.
    Says(Vec<&'static str>),
}

/// What stands where there is nothing to say.
const NONE: &str = "—";

fn said(text: &str) -> String {
    if text.is_empty() { NONE.to_owned() } else { text.to_owned() }
}

fn parts(of: &Provenance) -> Vec<Part> {
    let about = &of.about;
    let facts =
        |title, facts: Vec<(&'static str, String)>| Part { title, body: Body::Facts(facts) };
    let table = |title, columns, rows| Part { title, body: Body::Table(columns, rows) };
    let rounds = of.rounds.iter().map(|round| {
        vec![
            round.number.to_string(),
            round.updates.len().to_string(),
            round.weight.to_string(),
            round.model.to_string(),
            round.index.to_string(),
        ]
    });
    let epsilon = of.epsilon.iter().map(|(site, epsilon)| {
        let updates = of.rounds.iter().flat_map(|round| &round.updates);
        let updates = updates.filter(|update| update.site == *site).count();
        let place = site.spiffe().place().to_string();
        vec![site.name().to_owned(), place, updates.to_string(), epsilon.clone()]
    });
    let gates = of.gates.iter().map(|gate| {
        let word = if gate.pass { "passed" } else { "failed" };
        let texts = [&gate.name, &gate.scope, &gate.figure, &gate.interval, &gate.bound];
        let texts = texts.into_iter().map(|text| said(text));
        [gate.round.to_string()].into_iter().chain(texts).chain([word.to_owned()]).collect()
    });
    vec![
        facts(
            "What it is",
            vec![
                ("Study", of.study.to_string()),
                ("Version", of.version.to_string()),
                ("Round", of.round.to_string()),
                ("Architecture", about.architecture.clone()),
                ("File (SHA-256)", of.file.to_string()),
                ("Parameters (SHA-256)", of.model.to_string()),
                ("Tensors (SHA-256)", of.manifest.to_string()),
                ("Submitted", of.started.clone()),
                ("Published", of.finished.clone()),
                ("Coordinator", of.coordinator.clone()),
                ("Software", of.software.clone()),
            ],
        ),
        facts(
            "What it is for",
            vec![
                ("Purpose", said(&about.purpose)),
                ("Predicts", about.label.clone()),
                ("Classes", said(&about.classes.join(", "))),
                ("Sees", about.features.join(", ")),
                ("Data set", about.dataset.clone()),
            ],
        ),
        facts(
            "On what ground",
            vec![
                ("Study file (SHA-256)", of.study_sha256.to_string()),
                ("Places", about.places.join(", ")),
                ("Legal basis", said(&about.legal_basis)),
                ("Impact assessment", said(&about.dpia)),
                ("Consent", said(&about.consent)),
            ],
        ),
        facts(
            "How records are protected",
            vec![
                ("Mechanism", about.mechanism.clone()),
                ("Delta", about.delta.clone()),
                ("Epsilon at a site, at most", about.epsilon_limit.clone()),
            ],
        ),
        table("Sites", vec!["Site", "Place", "Updates", "Epsilon"], epsilon.collect()),
        table(
            "Gates",
            vec!["Round", "Gate", "Scope", "Figure", "Interval", "Bound", "Verdict"],
            gates.collect(),
        ),
        table(
            "Rounds",
            vec!["Round", "Updates", "Weight", "Model (SHA-256)", "Entry"],
            rounds.collect(),
        ),
        facts(
            "Where it is in the log",
            vec![
                ("Log", of.log.origin.clone()),
                ("Entry", of.log.index.to_string()),
                ("Leaf hash", of.log.leaf.to_string()),
            ],
        ),
        Part {
            title: "How to check it",
            body: Body::Says(vec![
                "Everything here was made from the signed provenance of this version; nothing was typed by hand.",
                "Updates, weights and epsilon are as the sites signed and stated them. Of what was measured the figures are here that gates asked for, and no others.",
            ]),
        },
    ]
}

/// Text as Markdown shows it, on one line: what could be a mark is escaped.
fn markdown_text(text: &str) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut out, c| {
        match c {
            '\\' | '`' | '*' | '_' | '{' | '}' | '[' | ']' | '(' | ')' | '#' | '+' | '!' | '|'
            | '~' => out.extend(['\\', c]),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '&' => out.push_str("&amp;"),
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
        out
    })
}

/// Text as HTML shows it.
fn html_text(text: &str) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut out, c| {
        match c {
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '&' => out.push_str("&amp;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
        out
    })
}

/// The card in Markdown.
#[must_use]
pub fn markdown(of: &Provenance) -> String {
    let mut out = format!("# {}, version {}\n", markdown_text(of.study.as_str()), of.version);
    let row = |cells: &[String]| {
        let cells: Vec<String> = cells.iter().map(|cell| markdown_text(cell)).collect();
        format!("| {} |", cells.join(" | "))
    };
    // Writing to a string cannot fail.
    for Part { title, body } in parts(of) {
        let _ = writeln!(out, "\n## {title}\n");
        match body {
            Body::Facts(facts) => {
                for (name, value) in facts {
                    let _ = writeln!(out, "- **{name}:** {}", markdown_text(&value));
                }
            }
            Body::Table(_, rows) if rows.is_empty() => {
                let _ = writeln!(out, "{NONE}");
            }
            Body::Table(columns, rows) => {
                let _ = writeln!(out, "| {} |", columns.join(" | "));
                let _ = writeln!(out, "|{}", " --- |".repeat(columns.len()));
                for cells in rows {
                    let _ = writeln!(out, "{}", row(&cells));
                }
            }
            Body::Says(sentences) => {
                let _ = writeln!(out, "{}", sentences.join("\n\n"));
            }
        }
    }
    out
}

/// The card as one HTML page: no scripts, and nothing from elsewhere.
#[must_use]
pub fn html(of: &Provenance) -> String {
    let title = format!("{}, version {}", html_text(of.study.as_str()), of.version);
    let mut out = format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n<title>{title}</title>\n<style>body{{font-family:sans-serif;max-width:60em;margin:2em auto;padding:0 1em}}table{{border-collapse:collapse}}th,td{{border:1px solid #bbb;padding:.3em .6em;text-align:left;overflow-wrap:anywhere}}</style>\n</head>\n<body>\n<h1>{title}</h1>\n"
    );
    // Writing to a string cannot fail.
    for Part { title, body } in parts(of) {
        let _ = writeln!(out, "<h2>{title}</h2>");
        match body {
            Body::Facts(facts) => {
                let _ = writeln!(out, "<table>");
                for (name, value) in facts {
                    let value = html_text(&value);
                    let _ = writeln!(out, "<tr><th scope=\"row\">{name}</th><td>{value}</td></tr>");
                }
                let _ = writeln!(out, "</table>");
            }
            Body::Table(_, rows) if rows.is_empty() => {
                let _ = writeln!(out, "<p>{NONE}</p>");
            }
            Body::Table(columns, rows) => {
                out.push_str("<table>\n<tr>");
                for column in columns {
                    let _ = write!(out, "<th scope=\"col\">{column}</th>");
                }
                out.push_str("</tr>\n");
                for cells in rows {
                    out.push_str("<tr>");
                    for cell in cells {
                        let _ = write!(out, "<td>{}</td>", html_text(&cell));
                    }
                    out.push_str("</tr>\n");
                }
                let _ = writeln!(out, "</table>");
            }
            Body::Says(sentences) => {
                for sentence in sentences {
                    let _ = writeln!(out, "<p>{sentence}</p>");
                }
            }
        }
    }
    out.push_str("</body>\n</html>\n");
    out
}

#[cfg(test)]
mod tests {
    use super::{super::provenance::tests::example, *};

    #[test]
    fn a_card_says_what_the_provenance_says_in_both_forms() {
        let of = example();
        for card in [markdown(&of), html(&of)] {
            for text in [
                "heart, version 1",
                &of.model.to_string(),
                &of.file.to_string(),
                &of.rounds[0].model.to_string(),
                "2026-03-02T00:00:00.000Z",
                "0.73..0.77",
                "passed",
                "falaj.test/log",
            ] {
                assert!(card.contains(text), "{text} in {card}");
            }
        }
        let bare = Provenance { gates: Vec::new(), ..of };
        assert!(markdown(&bare).contains("## Gates\n\n—\n"), "{}", markdown(&bare));
    }

    #[test]
    fn foreign_text_is_no_mark_in_either_form() {
        let mut of = example();
        of.about.purpose = "<script>alert(1)</script> | [x](y)\n# \"quoted\" & 'so'".into();
        of.about.features = vec!["`a`".into(), "b_c".into()];
        let html = html(&of);
        assert!(!html.contains("<script"), "{html}");
        assert!(html.contains(
            "&lt;script&gt;alert(1)&lt;/script&gt; | [x](y) # &quot;quoted&quot; &amp; &#39;so&#39;"
        ));
        let markdown = markdown(&of);
        let wanted = "&lt;script&gt;alert\\(1\\)&lt;/script&gt; \\| \\[x\\]\\(y\\) \\# \"quoted\" &amp; 'so'";
        assert!(markdown.contains(wanted), "{markdown}");
        assert!(markdown.contains("\\`a\\`, b\\_c"), "{markdown}");
    }
}
