//! Reckoning with privacy before anything runs: what a plan costs, and which plan meets a target. Nothing is
//! asked of a coordinator.

use crate::{
    args::{Accountant, How, Neighbours, Plan, PrivacyCommand, Target},
    show,
};
use anyhow::{Context as _, Result, bail, ensure};
use falaj_core::dp::{
    calibrate,
    pld::{Adjacency, Schedule},
    rdp::RdpCurve,
};
use serde::{Deserialize, Serialize};
use std::{
    env,
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

/// A plan and the delta at which its epsilon is asked for, as a line of a batch states them.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Question {
    sample_rate: f64,
    noise_multiplier: f64,
    steps: u64,
    delta: f64,
    #[serde(default)]
    accountant: Accountant,
    #[serde(default)]
    neighbours: Neighbours,
}

/// A question with its answer; epsilon is absent when there is no guarantee.
#[derive(Debug, Serialize)]
struct Answer {
    #[serde(flatten)]
    question: Question,
    epsilon: Option<f64>,
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
        PrivacyCommand::Epsilon { plan, delta, how, batch: None } => {
            let question =
                Question::new(plan, delta.unwrap_or_default(), how.accountant, how.neighbours)?;
            let answer = question.answer()?;
            show::answer(json, &answer, sentence)?;
        }
        PrivacyCommand::Epsilon { batch: Some(file), .. } => return batch(&file),
        PrivacyCommand::Curve { plan, neighbours } => {
            let answers = (1..=CURVE_DELTAS)
                .map(|power| {
                    let delta = 10_f64.powi(-power);
                    Question::new(plan, delta, Accountant::Pld, neighbours)?.answer()
                })
                .collect::<Result<Vec<_>>>()?;
            show::answer(json, &answers, |answers| {
                let row = |a: &Answer| [format!("{:e}", a.question.delta), shown(a.epsilon)];
                show::table(["DELTA", "EPSILON"], answers.iter().map(row))
            })?;
        }
        PrivacyCommand::Audit { study, trials } => return audit(&study, trials, json),
        PrivacyCommand::Calibrate { target, plan, how } => calibrate(target, plan, how, json)?,
    }
    Ok(ExitCode::SUCCESS)
}

impl Question {
    fn new(plan: Plan, delta: f64, accountant: Accountant, neighbours: Neighbours) -> Result<Self> {
        let missing = |name: &str| format!("--{name} is missing");
        Ok(Self {
            sample_rate: plan.sample_rate.with_context(|| missing("sample-rate"))?,
            noise_multiplier: plan.noise_multiplier.with_context(|| missing("noise-multiplier"))?,
            steps: plan.steps.with_context(|| missing("steps"))?,
            delta,
            accountant,
            neighbours,
        })
    }

    fn answer(self) -> Result<Answer> {
        let Self { sample_rate, noise_multiplier, steps, delta, .. } = self;
        let epsilon = match self.accountant {
            Accountant::Pld => Schedule::new(self.neighbours.into())
                .poisson_gaussian(sample_rate, noise_multiplier, steps)?
                .epsilon(delta)?,
            Accountant::Rdp => {
                check(self.neighbours)?;
                RdpCurve::poisson_gaussian(sample_rate, noise_multiplier, steps)?.epsilon(delta)?
            }
        };
        let epsilon = Some(epsilon.value()).filter(|e| e.is_finite());
        Ok(Answer { question: self, epsilon })
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
    let Question { delta, steps, neighbours, accountant, .. } = answer.question;
    let unit = match neighbours {
        Neighbours::AddOrRemove => "one record more or less",
        Neighbours::Substitute => "one record exchanged",
    };
    let by = match accountant {
        Accountant::Pld => "privacy-loss distributions",
        Accountant::Rdp => "Renyi divergences",
    };
    format!(
        "epsilon {} at delta {delta:e} after {steps} steps, for {unit}, by {by}",
        shown(answer.epsilon)
    )
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
            .and_then(Question::answer);
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

    #[test]
    fn a_batch_line_is_answered_by_the_accountant_that_it_names() {
        let line = r#"{"sample_rate":0.02,"noise_multiplier":1.0,"steps":2500,"delta":1e-6"#;
        let tight = question(&format!("{line}}}")).expect("a plan").epsilon.expect("finite");
        let renyi = question(&format!("{line},\"accountant\":\"rdp\"}}")).expect("a plan");
        assert!(tight < renyi.epsilon.expect("finite"));
        let exchanged = question(&format!("{line},\"neighbours\":\"substitute\"}}"));
        assert!(exchanged.expect("a plan").epsilon.expect("finite") > tight);
        let both = format!("{line},\"neighbours\":\"substitute\",\"accountant\":\"rdp\"}}");
        assert!(question(&both).is_err());
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
