//! `falaj compare`: two runs side by side.

use crate::{
    client::{Client, ClientError},
    figures::number,
    gates::{bars, over_rounds, said},
    show,
};
use anyhow::Result;
use clap::Args;
use falaj_core::{
    id::{SiteId, StudyId},
    registry::{dsse::Envelope, provenance::Provenance, version::Alias},
};
use falaj_proto::{
    rest::{Figure, Figures, Gate, Study, Version},
    study::settings,
};
use serde::Serialize;
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    str::FromStr,
};

/// Settings that are another in every study, and say nothing about how it learns; gates are compared by themselves.
const APART: [&str; 3] = ["study", "purpose", "gates"];

/// Which runs.
#[derive(Debug, Args)]
pub(crate) struct CompareArgs {
    /// A study, by its newest candidate that was evaluated; STUDY@ROUND by a round's; STUDY:VERSION by a version's, or the one of an
    /// alias.
    #[arg(value_name = "RUN")]
    left: Run,
    /// The other.
    #[arg(value_name = "OTHER")]
    right: Run,
    /// Figures that begin with this alone, such as `roc_auc` or `recall of SEX`.
    #[arg(long, value_name = "NAME")]
    figure: Option<String>,
    /// With lines of bars: each figure over the rounds of both studies.
    #[arg(long)]
    history: bool,
    /// Figures of each site alone, too.
    #[arg(long)]
    sites: bool,
}

/// What is compared.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Run {
    study: StudyId,
    at: At,
}

/// Which candidate of it.
#[derive(Clone, Debug, PartialEq, Eq)]
enum At {
    Newest,
    Round(u32),
    Version(String),
}

impl FromStr for Run {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "`{text}` is none of STUDY, STUDY@ROUND and STUDY:VERSION, such as bank, bank@3, bank:2 and bank:champion"
            )
        };
        let (study, at) = if let Some((study, round)) = text.split_once('@') {
            (study, At::Round(round.parse().map_err(|_| wrong())?))
        } else if let Some((study, version)) = text.split_once(':') {
            let number = version.parse::<u32>().map(|number| number.to_string());
            let version = number.or_else(|_| version.parse::<Alias>().map(|a| a.to_string()));
            (study, At::Version(version.map_err(|_| wrong())?))
        } else {
            (text, At::Newest)
        };
        let study = study.parse().map_err(|e| format!("{}: {e}", wrong()))?;
        Ok(Self { study, at })
    }
}

impl fmt::Display for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.study)?;
        match &self.at {
            At::Newest => Ok(()),
            At::Round(round) => write!(f, "@{round}"),
            At::Version(version) => write!(f, ":{version}"),
        }
    }
}

impl CompareArgs {
    /// Compares them.
    ///
    /// # Errors
    /// When the coordinator does not know one of them.
    pub(crate) async fn run(&self, client: &Client, json: bool) -> Result<()> {
        let left = self.side(client, &self.left).await?;
        let right = self.side(client, &self.right).await?;
        show::answer(json, &Comparison::of(left, right), told)
    }

    async fn side(&self, client: &Client, run: &Run) -> Result<Side> {
        let study = client.study(&run.study).await?;
        let file = client.study_file(&run.study).await?;
        let name = format!("the file of {}", run.study);
        let version = match &run.at {
            At::Version(version) => Some(client.version(&run.study, version).await?),
            _ => None,
        };
        let round = match (&run.at, &version) {
            (At::Round(round), _) => Some(*round),
            (_, version) => version.as_ref().map(|version| version.round),
        };
        // That there is no such round is said here.
        let gates = client.gates(&run.study, round).await?.items;
        let mut filters = vec![("sites", self.sites.to_string()), ("limit", "1".to_owned())];
        filters.extend(self.figure.clone().map(|figure| ("figure", figure)));
        filters.extend(round.map(|round| ("round", round.to_string())));
        let figures = client.newest_figures(&run.study, &filters).await?.items.into_iter().next();
        let history = if self.history {
            over_rounds(client, &run.study, self.figure.as_deref()).await?
        } else {
            Vec::new()
        };
        let settings = settings(&file, &name)?;
        let epsilon = match &version {
            Some(version) => spent_on(client, run, version).await?,
            None => study.epsilon_by_site.clone(),
        };
        let run = run.to_string();
        Ok(Side { run, study, version, figures, gates, settings, history, epsilon })
    }
}

/// What each site had spent by the model of a version, as is signed of it; nothing where the log was pruned before anything was.
async fn spent_on(client: &Client, run: &Run, version: &Version) -> Result<BTreeMap<String, f64>> {
    let number = version.version.to_string();
    let envelope = match client.provenance(&run.study, &number).await {
        Ok(envelope) => envelope,
        Err(ClientError::Refused(problem)) if problem.code == "pruned" => {
            return Ok(BTreeMap::new());
        }
        Err(e) => return Err(e.into()),
    };
    let said = Provenance::read(&Envelope::parse(envelope.as_bytes())?.payload)?.epsilon;
    let mut names = SiteId::told_apart(said.keys());
    let spent = said.iter().filter_map(|(site, epsilon)| Some((names.remove(site)?, epsilon)));
    Ok(spent.filter_map(|(name, epsilon)| Some((name, epsilon.parse().ok()?))).collect())
}

/// One of the two.
#[derive(Debug, Serialize)]
struct Side {
    run: String,
    study: Study,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<Version>,
    figures: Option<Figures>,
    gates: Vec<Gate>,
    #[serde(skip)]
    settings: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    history: Vec<Figures>,
    /// By site: of a version by its model, of all else on the study by now.
    #[serde(skip)]
    epsilon: BTreeMap<String, f64>,
}

/// Both, and what differs.
#[derive(Debug, Serialize)]
struct Comparison {
    left: Side,
    right: Side,
    /// Settings that only one of the files makes, or that each makes otherwise.
    settings: Vec<Setting>,
    figures: Vec<Pair>,
    epsilon_by_site: BTreeMap<String, Spent>,
}

/// What a site has spent on each of the two, if it takes part in it.
#[derive(Debug, Serialize)]
struct Spent {
    left: Option<f64>,
    right: Option<f64>,
}

/// A setting that differs; what a file leaves out has its default.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Setting {
    #[serde(rename = "setting")]
    name: String,
    left: Option<String>,
    right: Option<String>,
}

/// A figure that one of the two has, or both.
#[derive(Debug, Serialize)]
struct Pair {
    figure: String,
    left: Option<Figure>,
    right: Option<Figure>,
    /// How much more the right one is.
    change: Option<f64>,
    /// Whether their intervals have a figure in common.
    overlap: Option<bool>,
}

impl Comparison {
    fn of(left: Side, right: Side) -> Self {
        let settings = differing(&left.settings, &right.settings);
        let figures = pairs(left.figures.as_ref(), right.figures.as_ref());
        let (a, b) = (&left.epsilon, &right.epsilon);
        let sites: BTreeSet<&String> = a.keys().chain(b.keys()).collect();
        let of = |site: &String| {
            let (left, right) = (a.get(site).copied(), b.get(site).copied());
            (site.clone(), Spent { left, right })
        };
        let epsilon_by_site = sites.into_iter().map(of).collect();
        Self { left, right, settings, figures, epsilon_by_site }
    }
}

fn differing(left: &BTreeMap<String, String>, right: &BTreeMap<String, String>) -> Vec<Setting> {
    let names: BTreeSet<&String> = left.keys().chain(right.keys()).collect();
    let is_apart = |name: &str| APART.contains(&name.split(['.', '[']).next().unwrap_or(name));
    let differ =
        names.into_iter().filter(|name| !is_apart(name) && left.get(*name) != right.get(*name));
    let of = |name: &String| Setting {
        name: name.clone(),
        left: left.get(name).cloned(),
        right: right.get(name).cloned(),
    };
    differ.map(of).collect()
}

/// The figures of both, in the order of the left one; what only the right one has comes after.
fn pairs(left: Option<&Figures>, right: Option<&Figures>) -> Vec<Pair> {
    let of = |side: Option<&Figures>| side.map(|side| side.figures.clone()).unwrap_or_default();
    let (left, mut right) = (of(left), of(right));
    let mut pairs = Vec::new();
    for figure in left {
        let same = right.iter().position(|other| other.figure == figure.figure);
        pairs.push(Pair::of(Some(figure), same.map(|at| right.remove(at))));
    }
    pairs.extend(right.into_iter().map(|figure| Pair::of(None, Some(figure))));
    pairs
}

impl Pair {
    fn of(left: Option<Figure>, right: Option<Figure>) -> Self {
        let figure = left.as_ref().or(right.as_ref()).map(|f| f.figure.clone()).unwrap_or_default();
        let both = left.as_ref().zip(right.as_ref());
        let change = both.and_then(|(l, r)| Some(r.value? - l.value?));
        let overlap = both.and_then(|(l, r)| Some(l.low? <= r.high? && r.low? <= l.high?));
        Self { figure, left, right, change, overlap }
    }
}

fn told(of: &Comparison) -> String {
    let (left, right) = (&of.left, &of.right);
    let names = ["", &left.run, &right.run];
    let mut parts = vec![show::table(
        names,
        [
            ["state".into(), left.study.state.clone(), right.study.state.clone()],
            ["rounds with a model".into(), rounds(&left.study), rounds(&right.study)],
            ["candidate".into(), candidate(left), candidate(right)],
            ["version".into(), version(left), version(right)],
        ],
    )];
    let or_none = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
    if of.settings.is_empty() {
        parts.push("both files make the same settings\n".to_owned());
    } else {
        let row = |s: &Setting| [s.name.clone(), or_none(&s.left), or_none(&s.right)];
        let headings = ["SETTING", &left.run, &right.run];
        parts.push(show::table(headings, of.settings.iter().map(row)));
    }
    parts.push(if of.figures.is_empty() {
        "neither was evaluated\n".to_owned()
    } else {
        figures(of)
    });
    if !(left.gates.is_empty() && right.gates.is_empty()) {
        parts.push(gates(left, right));
    }
    if !of.epsilon_by_site.is_empty() {
        let epsilon = |e: Option<f64>| e.map_or_else(|| "-".to_owned(), show::epsilon);
        let row = |(site, spent): (&String, &Spent)| {
            [site.clone(), epsilon(spent.left), epsilon(spent.right)]
        };
        let headings = ["EPSILON OF", &left.run, &right.run];
        parts.push(show::table(headings, of.epsilon_by_site.iter().map(row)));
    }
    parts.join("\n")
}

fn rounds(study: &Study) -> String {
    format!("{} of {}", study.rounds_promoted, study.rounds)
}

fn candidate(side: &Side) -> String {
    side.figures.as_ref().map_or_else(
        || "not evaluated".to_owned(),
        |f| format!("{} of round {} ({})", show::short(&f.candidate_sha256), f.round, f.stage),
    )
}

fn version(side: &Side) -> String {
    let of = |v: &Version| format!("{} ({})", v.version, v.stage);
    side.version.as_ref().map_or_else(|| "-".to_owned(), of)
}

fn figures(of: &Comparison) -> String {
    let figure = |f: Option<&Figure>| match f {
        None => "-".to_owned(),
        Some(Figure { missing: Some(why), .. }) => why.clone(),
        Some(f) => {
            let ends = f.low.zip(f.high).map(|(low, high)| format!(" [{low:.4}, {high:.4}]"));
            number(f.value) + &ends.unwrap_or_default()
        }
    };
    let bars = |side: &Side, name: &str| bars(name, &side.history);
    let row = |p: &Pair| {
        [
            p.figure.clone(),
            figure(p.left.as_ref()),
            figure(p.right.as_ref()),
            p.change.map_or_else(|| "-".to_owned(), |change| format!("{change:+.4}")),
            match p.overlap {
                None => "-",
                Some(true) => "overlap",
                Some(false) => "APART",
            }
            .to_owned(),
            bars(&of.left, &p.figure),
            bars(&of.right, &p.figure),
        ]
    };
    let with = |side: &Side| if side.history.is_empty() { "" } else { "OVER ROUNDS" };
    let headings = [
        "FIGURE",
        &of.left.run,
        &of.right.run,
        "CHANGE",
        "INTERVALS",
        with(&of.left),
        with(&of.right),
    ];
    show::table(headings, of.figures.iter().map(row))
}

/// What the gates of both say, by what each looks at.
fn gates(left: &Side, right: &Side) -> String {
    let mut names: Vec<&str> = Vec::new();
    for gate in left.gates.iter().chain(&right.gates) {
        if !names.contains(&gate.gate.as_str()) {
            names.push(&gate.gate);
        }
    }
    let of = |side: &Side, name: &str| {
        let each = side.gates.iter().filter(|gate| gate.gate == name).map(|gate| match gate.pass {
            Some(pass) => format!("{}: {}", said(gate.asked, pass), gate.bound),
            None => gate.bound.clone(),
        });
        let all = each.collect::<Vec<_>>().join("; ");
        if all.is_empty() { "-".to_owned() } else { all }
    };
    let rows = names.into_iter().map(|name| [name.to_owned(), of(left, name), of(right, name)]);
    show::table(["GATE", &left.run, &right.run], rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(text: &str) -> Result<Run, String> {
        text.parse()
    }

    #[test]
    fn a_run_is_a_study_a_round_of_it_or_a_version() {
        let bank: StudyId = "bank".parse().expect("a name");
        let of = |at| Ok(Run { study: bank.clone(), at });
        assert_eq!(run("bank"), of(At::Newest));
        assert_eq!(run("bank@3"), of(At::Round(3)));
        assert_eq!(run("bank:2"), of(At::Version("2".into())));
        assert_eq!(run("bank:champion"), of(At::Version("champion".into())));
        for text in ["bank", "bank@3", "bank:2", "bank:champion"] {
            assert_eq!(run(text).expect("a run").to_string(), text);
        }
        for wrong in ["", "bank@", "bank@x", "bank:best", "Bank!", "@3", "bank@3:2"] {
            let why = run(wrong).expect_err(wrong);
            assert!(why.contains("STUDY@ROUND"), "{why}");
        }
    }

    fn settings_of(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn only_settings_that_differ_are_shown_and_names_are_none() {
        let left = settings_of(&[
            ("study", "a"),
            ("gates[0].at_least", "1"),
            ("training.momentum", "0.8"),
            ("rounds.count", "3"),
        ]);
        let right = settings_of(&[("study", "b"), ("rounds.count", "3"), ("sealing.bits", "8")]);
        let of = |name: &str, left: Option<&str>, right: Option<&str>| Setting {
            name: name.into(),
            left: left.map(str::to_owned),
            right: right.map(str::to_owned),
        };
        let wanted =
            [of("sealing.bits", None, Some("8")), of("training.momentum", Some("0.8"), None)];
        assert_eq!(differing(&left, &right), wanted);
    }

    fn figure(name: &str, value: f64) -> Figure {
        Figure {
            figure: name.into(),
            value: Some(value),
            low: Some(value - 0.05),
            high: Some(value + 0.05),
            missing: None,
            gates: Vec::new(),
        }
    }

    fn side(name: &str, figures: Vec<Figure>, pass: bool) -> Side {
        Side {
            run: name.into(),
            study: Study {
                id: name.into(),
                study_sha256: "ab".repeat(32),
                state: "finished".into(),
                reason: None,
                submitted: "2026-01-02T03:04:05.678Z".into(),
                submitted_by: "omar".into(),
                round: 3,
                rounds: 3,
                rounds_promoted: 2,
                patience: None,
                model_sha256: "cd".repeat(32),
                epsilon_by_site: [("mafraq".to_owned(), 1.25)].into(),
                bytes_by_site: BTreeMap::new(),
            },
            version: None,
            figures: Some(Figures {
                round: 3,
                attempt: 0,
                stage: "promoted".into(),
                candidate_sha256: "ef".repeat(32),
                sites: vec!["mafraq".into()],
                records: 800,
                confidence: Some(0.95),
                noise: Some("laplace".into()),
                figures,
            }),
            gates: vec![Gate {
                gate: "roc_auc".into(),
                bound: "at least 0.7".into(),
                when: "end".into(),
                on_failure: "reject".into(),
                round: Some(3),
                attempt: Some(0),
                asked: true,
                pass: Some(pass),
                figures: Vec::new(),
                gates_sha256: None,
            }],
            settings: settings_of(&[("rounds.count", name)]),
            history: Vec::new(),
            epsilon: [("mafraq".to_owned(), 1.25)].into(),
        }
    }

    #[test]
    fn two_runs_stand_side_by_side_and_say_whether_their_intervals_overlap() {
        let left = side("a", vec![figure("roc_auc", 0.8), figure("f1", 0.5)], true);
        let right =
            side("b", vec![figure("roc_auc", 0.65), figure("f1", 0.55), figure("ece", 0.1)], false);
        let of = Comparison::of(left, right);
        let overlap: Vec<Option<bool>> = of.figures.iter().map(|pair| pair.overlap).collect();
        assert_eq!(overlap, [Some(false), Some(true), None]);
        let text = told(&of);
        let text: Vec<String> =
            text.lines().map(|l| l.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        for line in [
            "rounds.count a b",
            "roc_auc 0.8000 [0.7500, 0.8500] 0.6500 [0.6000, 0.7000] -0.1500 APART",
            "f1 0.5000 [0.4500, 0.5500] 0.5500 [0.5000, 0.6000] +0.0500 overlap",
            "ece - 0.1000 [0.0500, 0.1500] - -",
            "roc_auc passes: at least 0.7 FAILS: at least 0.7",
            "mafraq 1.250 1.250",
        ] {
            assert!(text.contains(&line.to_owned()), "{line} is not in {text:#?}");
        }
    }
}
