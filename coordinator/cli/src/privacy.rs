//! Reckoning with privacy before anything runs: what a plan costs, and which plan meets a target. Nothing is
//! asked of a coordinator.

use crate::{
    args::{Accountant, How, Neighbours, Plan, PrivacyCommand, Target},
    plot, show,
};
use anyhow::{Context as _, Result, bail, ensure};
use falaj_core::dp::{
    Poisson, calibrate,
    pld::{Adjacency, Delta, Schedule},
};
use serde::{Deserialize, Serialize};
use std::{
    env, fmt,
    fs::File,
    io::{BufRead, BufReader, stdin},
    path::Path,
    process::{Command, ExitCode},
};

/// The program at the sites.
const AGENT: &str = "falaj-agent";

/// A line of a batch is at most this long, in bytes.
const LINE_BYTES_MAX: u64 = 64 << 10;
/// Deltas of a curve: powers of ten from 10^-1 down to this.
const CURVE_DELTAS: i32 = 12;

/// Releases and what is asked about them, as a line of a batch states it: either one plan of sampled Gaussian
/// steps, or a list of releases.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Question {
    #[serde(skip_serializing_if = "Option::is_none")]
    sample_rate: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    noise_multiplier: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    steps: Option<u64>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    releases: Vec<Release>,
    /// Asks for epsilon, and `deltas` for several.
    #[serde(skip_serializing_if = "Option::is_none")]
    delta: Option<f64>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    deltas: Vec<f64>,
    /// Asks for delta.
    #[serde(rename = "at_epsilon", skip_serializing_if = "Option::is_none")]
    epsilon: Option<f64>,
    /// Records that are protected: a delta above one over their number draws a warning.
    #[serde(skip_serializing_if = "Option::is_none")]
    records: Option<u64>,
    #[serde(default)]
    accountant: Accountant,
    #[serde(default)]
    neighbours: Neighbours,
}

/// Releases of one kind.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
enum Release {
    PoissonGaussian { sample_rate: f64, noise_multiplier: f64, steps: u64 },
    Gaussian { noise_multiplier: f64, count: u64 },
    DiscreteGaussian { sigma: f64, sensitivity: u32, count: u64 },
    DiscreteLaplace { scale: f64, sensitivity: u32, count: u64 },
}

/// Epsilon at one delta; absent when there is no guarantee.
#[derive(Debug, Serialize)]
struct Point {
    delta: f64,
    epsilon: Option<f64>,
}

/// What was asked for.
#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Found {
    /// At one delta; null when there is no guarantee.
    Epsilon { epsilon: Option<f64> },
    /// At several.
    Points { points: Vec<Point> },
    /// At one epsilon.
    Delta { delta_at_least: f64, delta_at_most: f64 },
}

/// A question with its answer.
#[derive(Debug, Serialize)]
struct Answer {
    #[serde(flatten)]
    question: Question,
    #[serde(flatten)]
    found: Found,
    /// Views that do not count sampling.
    zcdp_rho: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    gdp_mu: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    warning: Option<String>,
}

/// What one line of a batch came to.
#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Line {
    Answered(Answer),
    Refused { line: u64, detail: String },
}

/// Does what the command line says.
///
/// # Errors
/// What is wrong with the plan, and what to do.
pub(crate) fn run(command: PrivacyCommand, json: bool) -> Result<ExitCode> {
    match command {
        PrivacyCommand::Epsilon { plan, delta, records, how, batch: None } => {
            let mut question = Question { records, ..Question::new(plan, how)? };
            match delta[..] {
                [delta] => question.delta = Some(delta),
                _ => question.deltas = delta,
            }
            let answer = question.answer()?;
            if let Some(warning) = &answer.warning {
                eprintln!("warning: {warning}");
            }
            show::answer(json, &answer, sentence)?;
        }
        PrivacyCommand::Epsilon { batch: Some(file), .. } => return batch(&file),
        PrivacyCommand::Delta { plan, epsilon, how } => {
            let question = Question { epsilon: Some(epsilon), ..Question::new(plan, how)? };
            show::answer(json, &question.answer()?, sentence)?;
        }
        PrivacyCommand::Curve { plan, neighbours, plot } => {
            let how = How { accountant: Accountant::Pld, neighbours };
            let deltas = (1..=CURVE_DELTAS).map(|power| 10_f64.powi(-power)).collect();
            let question = Question { deltas, ..Question::new(plan, how)? };
            let answer = question.answer()?;
            if let Some(file) = plot {
                plot::curve(&file, &question.schedule()?, &question.to_string())?;
            }
            show::answer(json, &answer, |answer| {
                let row = |p: &Point| [format!("{:e}", p.delta), shown(p.epsilon)];
                show::table(["DELTA", "EPSILON"], answer.points().iter().map(row))
            })?;
        }
        PrivacyCommand::Audit { study, trials } => return audit(&study, trials, json),
        PrivacyCommand::Calibrate { target, plan, how } => calibrate(target, plan, how, json)?,
    }
    Ok(ExitCode::SUCCESS)
}

impl Question {
    fn new(plan: Plan, how: How) -> Result<Self> {
        let Plan { sample_rate, noise_multiplier, steps } = plan;
        let How { accountant, neighbours } = how;
        let this = Self {
            sample_rate,
            noise_multiplier,
            steps,
            accountant,
            neighbours,
            ..Self::default()
        };
        this.releases()?;
        Ok(this)
    }

    /// What is released, however it was stated.
    fn releases(&self) -> Result<Vec<Release>> {
        let plan = (self.sample_rate, self.noise_multiplier, self.steps);
        if !self.releases.is_empty() {
            ensure!(
                plan == (None, None, None),
                "give either `releases`, or sample_rate, noise_multiplier and steps"
            );
            return Ok(self.releases.clone());
        }
        let missing = |name: &str| {
            format!("{name} is missing: on the command line it is --{}", name.replace('_', "-"))
        };
        Ok(vec![Release::PoissonGaussian {
            sample_rate: plan.0.with_context(|| missing("sample_rate"))?,
            noise_multiplier: plan.1.with_context(|| missing("noise_multiplier"))?,
            steps: plan.2.with_context(|| missing("steps"))?,
        }])
    }

    fn schedule(&self) -> Result<Schedule> {
        let nothing = Schedule::new(self.neighbours.into());
        self.releases()?.into_iter().try_fold(nothing, |schedule, release| {
            Ok(match release {
                Release::PoissonGaussian { sample_rate, noise_multiplier, steps } => schedule
                    .poisson_gaussian(Poisson::new(sample_rate)?, noise_multiplier, steps)?,
                Release::Gaussian { noise_multiplier, count } => {
                    schedule.gaussian(noise_multiplier, count)?
                }
                Release::DiscreteGaussian { sigma, sensitivity, count } => {
                    schedule.discrete_gaussian(sigma, sensitivity, count)?
                }
                Release::DiscreteLaplace { scale, sensitivity, count } => {
                    schedule.discrete_laplace(scale, sensitivity, count)?
                }
            })
        })
    }

    fn answer(&self) -> Result<Answer> {
        let schedule = self.schedule()?;
        let curve = match self.accountant {
            Accountant::Pld => None,
            Accountant::Rdp => {
                check(self.neighbours)?;
                ensure!(
                    self.epsilon.is_none(),
                    "delta at an epsilon is asked of the accountant pld"
                );
                Some(schedule.rdp()?)
            }
        };
        let epsilon = |delta: f64| -> Result<Option<f64>> {
            let epsilon = match &curve {
                Some(curve) => curve.epsilon(delta)?,
                None => schedule.epsilon(delta)?,
            };
            Ok(Some(epsilon.value()).filter(|e| e.is_finite()))
        };
        let point = |&delta: &f64| Ok(Point { delta, epsilon: epsilon(delta)? });
        let found = match (self.delta, &self.deltas[..], self.epsilon) {
            (Some(delta), [], None) => Found::Epsilon { epsilon: epsilon(delta)? },
            (None, deltas @ [_, ..], None) => {
                Found::Points { points: deltas.iter().map(point).collect::<Result<_>>()? }
            }
            (None, [], Some(epsilon)) => {
                let Delta { lower, upper } = schedule.delta(epsilon)?;
                Found::Delta { delta_at_least: lower, delta_at_most: upper }
            }
            _ => bail!("give one of `delta`, `deltas` and `at_epsilon`: what the answer is for"),
        };
        Ok(Answer {
            question: self.clone(),
            found,
            zcdp_rho: schedule.zcdp(),
            gdp_mu: schedule.gdp(),
            warning: self.warning(),
        })
    }

    /// Says when a delta allows publishing a record whole.
    fn warning(&self) -> Option<String> {
        #[expect(clippy::cast_precision_loss, reason = "compared, not counted")]
        let least = 1.0 / self.records? as f64;
        let delta = self.delta.iter().chain(&self.deltas).find(|delta| **delta > least)?;
        Some(format!(
            "a delta of {delta:e} is above one over the number of records, {least:e}: it permits to publish one of them whole. Choose it well below."
        ))
    }
}

impl fmt::Display for Question {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.sample_rate, self.noise_multiplier, self.steps) {
            (Some(rate), Some(noise), Some(steps)) => {
                write!(f, "{steps} steps, sample rate {rate:?}, noise multiplier {noise:?}")?;
            }
            _ => write!(f, "{} kinds of releases", self.releases.len())?,
        }
        let unit = match self.neighbours {
            Neighbours::AddOrRemove => "one record more or less",
            Neighbours::Substitute => "one record exchanged",
        };
        write!(f, ", for {unit}")
    }
}

impl Answer {
    fn points(&self) -> &[Point] {
        if let Found::Points { points } = &self.found { points } else { &[] }
    }
}

/// Whether the Rényi accountant knows these neighbours.
fn check(neighbours: Neighbours) -> Result<()> {
    ensure!(
        neighbours == Neighbours::AddOrRemove,
        "Renyi accounting is for neighbours by adding or removing: use the accountant pld"
    );
    Ok(())
}

fn shown(epsilon: Option<f64>) -> String {
    epsilon.map_or_else(|| "no guarantee".into(), show::epsilon)
}

fn sentence(answer: &Answer) -> String {
    let by = match answer.question.accountant {
        Accountant::Pld => "privacy-loss distributions",
        Accountant::Rdp => "Renyi divergences",
    };
    let at = |epsilon: String, delta: f64| format!("epsilon {epsilon} at delta {delta:e}");
    let mut lines = match (&answer.found, &answer.question) {
        (Found::Epsilon { epsilon }, Question { delta, .. }) => {
            vec![at(shown(*epsilon), delta.unwrap_or_default())]
        }
        (Found::Points { points }, _) => {
            points.iter().map(|p| at(shown(p.epsilon), p.delta)).collect()
        }
        (Found::Delta { delta_at_most, .. }, Question { epsilon, .. }) => {
            vec![at(epsilon.unwrap_or_default().to_string(), *delta_at_most)]
        }
    };
    lines.push(format!("after {}, by {by}", answer.question));
    let mu = answer.gdp_mu.map_or_else(String::new, |mu| format!(", {}-GDP", show::epsilon(mu)));
    let rho = show::epsilon(answer.zcdp_rho);
    lines.push(format!("without counting any sampling: {rho}-zCDP{mu}"));
    lines.join("\n")
}

/// Answers JSON Lines with JSON Lines. A line that cannot be answered says why in its place, and the exit
/// status tells.
fn batch(file: &Path) -> Result<ExitCode> {
    let lines: Box<dyn BufRead> = if file == Path::new("-") {
        Box::new(stdin().lock())
    } else {
        let open = File::open(file).with_context(|| format!("reading {}", file.display()))?;
        Box::new(BufReader::new(open))
    };
    let mut refused = 0_u64;
    for_each_line(lines, |line, text| {
        let answered = serde_json::from_str::<Question>(text)
            .map_err(anyhow::Error::from)
            .and_then(|question| question.answer());
        let answer = answered.map_or_else(
            |e| {
                refused += 1;
                Line::Refused { line, detail: format!("{e:#}") }
            },
            Line::Answered,
        );
        show::line(&serde_json::to_string(&answer)?)
    })?;
    Ok(if refused == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Lines that are not empty, with their numbers from one.
fn for_each_line(
    mut lines: impl BufRead,
    mut each: impl FnMut(u64, &str) -> Result<()>,
) -> Result<()> {
    use std::io::Read as _;
    let mut text = String::new();
    for line in 1.. {
        text.clear();
        let read = lines.by_ref().take(LINE_BYTES_MAX).read_line(&mut text)? as u64;
        if read == 0 {
            break;
        }
        if read == LINE_BYTES_MAX {
            bail!("line {line} is longer than {LINE_BYTES_MAX} bytes");
        }
        if !text.trim().is_empty() {
            each(line, &text)?;
        }
    }
    Ok(())
}

/// Finds the one setting that the plan leaves open.
fn calibrate(target: Target, plan: Plan, how: How, json: bool) -> Result<()> {
    let (epsilon, delta) = (target.target_epsilon, target.delta);
    let accountant = match how.accountant {
        Accountant::Pld => calibrate::Accountant::Pld(how.neighbours.into()),
        Accountant::Rdp => {
            check(how.neighbours)?;
            calibrate::Accountant::Rdp
        }
    };
    let target = calibrate::Target { epsilon, delta, accountant };
    let (name, found) = match (plan.sample_rate, plan.noise_multiplier, plan.steps) {
        (Some(rate), None, Some(steps)) => {
            ("noise_multiplier", serde_json::json!(target.noise_multiplier(rate, steps)?))
        }
        (Some(rate), Some(noise), None) => ("steps", serde_json::json!(target.steps(rate, noise)?)),
        (None, Some(noise), Some(steps)) => {
            ("sample_rate", serde_json::json!(target.sample_rate(noise, steps)?))
        }
        _ => bail!(
            "give two of --sample-rate, --noise-multiplier and --steps: the third is what is looked for"
        ),
    };
    let answer = serde_json::json!({ name: found, "target_epsilon": epsilon, "delta": delta });
    show::answer(json, &answer, |_| {
        format!("{name} {found} keeps epsilon within {epsilon} at delta {delta:e}")
    })
}

/// Has the agent attack a study's steps; its words and its exit status are this command's.
fn audit(study: &Path, trials: u32, json: bool) -> Result<ExitCode> {
    let beside = env::current_exe().ok().map(|this| this.with_file_name(AGENT));
    let agent = beside.filter(|path| path.is_file()).unwrap_or_else(|| AGENT.into());
    let mut command = Command::new(&agent);
    command.arg("audit").arg(study).arg("--trials").arg(trials.to_string());
    if json {
        command.arg("--json");
    }
    let status = command.status().with_context(|| {
        format!("running {}: put {AGENT} beside this program or on the path", agent.display())
    })?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

impl From<Neighbours> for Adjacency {
    fn from(neighbours: Neighbours) -> Self {
        match neighbours {
            Neighbours::AddOrRemove => Self::AddOrRemove,
            Neighbours::Substitute => Self::Substitute,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question(text: &str) -> Result<Answer> {
        serde_json::from_str::<Question>(text)?.answer()
    }

    fn epsilon(answer: Result<Answer>) -> f64 {
        match answer.expect("an answer").found {
            Found::Epsilon { epsilon } => epsilon.expect("finite"),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_batch_line_is_answered_by_the_accountant_that_it_names() {
        let line = r#"{"sample_rate":0.02,"noise_multiplier":1.0,"steps":2500,"delta":1e-6"#;
        let tight = epsilon(question(&format!("{line}}}")));
        assert!(tight < epsilon(question(&format!("{line},\"accountant\":\"rdp\"}}"))));
        let exchanged = question(&format!("{line},\"neighbours\":\"substitute\"}}"));
        assert!(epsilon(exchanged) > tight);
        let both = format!("{line},\"neighbours\":\"substitute\",\"accountant\":\"rdp\"}}");
        assert!(question(&both).is_err());
    }

    #[test]
    fn releases_of_different_kinds_are_composed_and_asked_about_in_three_ways() {
        let releases = r#"{"releases":[{"kind":"poisson_gaussian","sample_rate":0.01,"noise_multiplier":1.2,"steps":800},{"kind":"gaussian","noise_multiplier":20,"count":5}]"#;
        // dp_accounting 0.6.0, case SX1.
        let one = epsilon(question(&format!("{releases},\"delta\":1e-5}}")));
        assert!((one - 1.236_452_935).abs() < 1e-3, "{one}");
        let two = question(&format!("{releases},\"deltas\":[1e-5,1e-9]}}")).expect("an answer");
        assert_eq!(two.points()[0].epsilon, Some(one));
        assert!(two.points()[1].epsilon > two.points()[0].epsilon);
        let back = question(&format!("{releases},\"at_epsilon\":{one}}}")).expect("an answer");
        let Found::Delta { delta_at_least, delta_at_most } = back.found else { panic!("{back:?}") };
        assert!((delta_at_most / 1e-5 - 1.0).abs() < 1e-3 && delta_at_least <= delta_at_most);
        let counts = r#"{"releases":[{"kind":"discrete_laplace","scale":2.0,"sensitivity":1,"count":2}],"delta":1e-5}"#;
        let counts = question(counts).expect("an answer");
        assert_eq!(counts.gdp_mu, None);
        assert!(epsilon(Ok(counts)) <= 1.0 + 1e-9);
        let both = format!("{releases},\"steps\":1,\"delta\":1e-5}}");
        assert!(question(&both).expect_err("two plans").to_string().contains("either"));
        let neither = format!("{releases}}}");
        assert!(question(&neither).expect_err("no question").to_string().contains("deltas"));
    }

    #[test]
    fn a_delta_above_one_over_the_records_draws_a_warning_in_its_line() {
        let line = r#"{"sample_rate":0.02,"noise_multiplier":1.0,"steps":25,"deltas":[1e-9,1e-4]"#;
        let warning = |records: &str| question(&format!("{line}{records}}}")).map(|a| a.warning);
        assert_eq!(warning("").expect("an answer"), None);
        assert_eq!(warning(",\"records\":10000").expect("an answer"), None);
        let said = warning(",\"records\":10001").expect("an answer").expect("a warning");
        assert!(said.contains("a delta of 1e-4 is above"), "{said}");
    }

    #[test]
    fn a_line_that_is_no_plan_says_what_is_wrong() {
        let refused = |text: &str| question(text).expect_err("no plan").to_string();
        assert!(refused("{}").contains("sample_rate"));
        let rate = r#"{"sample_rate":1.5,"noise_multiplier":1,"steps":1,"delta":1e-5}"#;
        assert!(refused(rate).contains("sample rate of 1.5"));
        let unknown = r#"{"sample_rate":0.1,"noise_multiplier":1,"steps":1,"delta":1e-5,"eps":1}"#;
        assert!(refused(unknown).contains("unknown field"));
    }

    #[test]
    fn lines_are_bounded_and_counted() {
        let mut seen = Vec::new();
        let each = |line, text: &str| {
            seen.push((line, text.trim().to_owned()));
            Ok(())
        };
        for_each_line("a\n\nb".as_bytes(), each).expect("short lines");
        assert_eq!(seen, [(1, "a".to_owned()), (3, "b".to_owned())]);
        let long = vec![b'x'; usize::try_from(LINE_BYTES_MAX).expect("small")];
        let refused = for_each_line(&long[..], |_, _| Ok(())).expect_err("too long");
        assert!(refused.to_string().contains("line 1 is longer"));
    }
}
