//! Early stopping: when a study has learned what it can, and which of its models is the best.
//!
//! Patience stands among a study's gates and looks at a figure as they do, at the worse end of its interval. It keeps no
//! candidate out: it weighs those that became the study's model, and ends the study once several of them in a row are no better
//! than one before.

use super::{Facts, Figure, Found, Judged, told};
use crate::{
    evaluation::{
        Evaluation,
        figures::{Better, Estimate, Metric},
    },
    id::Digest,
};

/// What a study has to become better by, and for how long it is tried.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Patience {
    /// By which figure models are compared.
    pub figure: Figure,
    /// What is better by less counts as equally good.
    pub improve_by: f64,
    /// So many evaluated rounds in a row without a better model end the study.
    pub rounds: u32,
}

/// The best model so far.
#[derive(Clone, Debug, PartialEq)]
pub struct Best {
    /// SHA-256 of its parameters.
    pub model: Digest,
    /// The round that gave it.
    pub round: u32,
    /// The worse end of its figure's interval: a finite number.
    pub end: f64,
}

/// How far a study has come.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Progress {
    /// None before there is a figure.
    pub best: Option<Best>,
    /// Evaluated rounds since then whose models were no better.
    pub without: u32,
}

// `end` is a finite number, and equal to itself.
impl Eq for Progress {}

/// A model held against the best before it.
#[derive(Clone, Debug, PartialEq)]
pub struct Weighed {
    /// How far the study has come with it.
    pub progress: Progress,
    /// As the log has it.
    pub line: String,
}

impl Patience {
    /// What is compared, and in which direction it is better. None of what is no single figure of how good a model is.
    #[must_use]
    pub const fn compares(&self) -> Option<(Metric, Better)> {
        let metric = match self.figure {
            Figure::Overall(metric) | Figure::Between(metric, _) => metric,
            Figure::Drop(_) => Metric::AccuracyDrop,
            _ => return None,
        };
        match metric.better() {
            Some(better) => Some((metric, better)),
            None => None,
        }
    }

    /// Holds a model that was just judged, and passed, against the best before it. None where it was not evaluated.
    #[must_use]
    pub fn weigh(
        &self,
        before: &Progress,
        facts: &Facts<'_>,
        (round, model): (u32, Digest),
    ) -> Option<Weighed> {
        let evaluated = facts.evaluated.as_ref()?;
        let (_, better) = self.compares()?;
        let Found { figure, found } = self.figure.of(evaluated).into_iter().next()?;
        let end = found.as_ref().ok().map(|e| worse_end(e, better)).filter(|end| end.is_finite());
        let best = before.best.as_ref();
        let improved =
            end.is_some_and(|end| best.is_none_or(|best| self.better(end, best, better)));
        let shown = told(&found);
        let against = best.map(|best| {
            let bound = format!("{} {:.4}", better.bound(), self.needed(best, better));
            let judged = Judged { figure: figure.clone(), found, bound, pass: improved };
            format!("{judged} to be better than round {}", best.round)
        });
        let line = against.unwrap_or_else(|| format!("{figure}: {shown}, no figure before it"));
        let progress = match end.filter(|_| improved) {
            Some(end) => Progress { best: Some(Best { model, round, end }), without: 0 },
            None => Progress { best: best.cloned(), without: before.without.saturating_add(1) },
        };
        let line = if improved {
            format!("better: {line}")
        } else {
            format!("no better: {line}; {} of {} such rounds", progress.without, self.rounds)
        };
        Some(Weighed { progress, line })
    }

    /// Whether it has run out.
    #[must_use]
    pub const fn is_over(&self, progress: &Progress) -> bool {
        progress.without >= self.rounds
    }

    /// Why a study ends by it.
    #[must_use]
    pub fn reason(&self, progress: &Progress, e: Option<&Evaluation>) -> String {
        let figure = self.figure.name(e);
        let why = if self.is_over(progress) {
            let (by, rounds) = (self.improve_by, progress.without);
            format!("{figure} was not better by {by} in {rounds} evaluated rounds")
        } else {
            "all rounds have run".to_owned()
        };
        match &progress.best {
            Some(best) => {
                format!("{why}; the best model by {figure} is that of round {}", best.round)
            }
            None => why,
        }
    }

    /// What the worse end has to reach.
    fn needed(&self, best: &Best, better: Better) -> f64 {
        match better {
            Better::Higher => best.end + self.improve_by,
            Better::Lower => best.end - self.improve_by,
        }
    }

    /// Whether an end is better than the best one by enough, and better at all.
    fn better(&self, end: f64, best: &Best, better: Better) -> bool {
        let needed = self.needed(best, better);
        match better {
            Better::Higher => end >= needed && end > best.end,
            Better::Lower => end <= needed && end < best.end,
        }
    }
}

/// The end of an interval that is worse.
const fn worse_end(e: &Estimate, better: Better) -> f64 {
    match better {
        Better::Higher => e.low,
        Better::Lower => e.high,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        evaluation::{
            Noise, Target,
            cells::{Tally, tests::settings},
            figures::By,
        },
        gate::Evaluated,
        id::SiteId,
    };

    const ACCURACY: Figure = Figure::Overall(Metric::Accuracy);

    fn patience(figure: Figure, improve_by: f64) -> Patience {
        Patience { figure, improve_by, rounds: 2 }
    }

    /// 400 records of one site, of which so many are said right.
    fn counted(e: &Evaluation, right: usize) -> Evaluated<'_> {
        let mut tally = Tally::new(e.layout(2));
        for i in 0..400_usize {
            let class = i % 2;
            let p = if (i < right) == (class == 1) { 0.8 } else { 0.2 };
            tally.record(i / 2 % 2, class, &[1.0 - p, p]);
        }
        let site: SiteId = "spiffe://t/ae-on/ae-az/site/h-1".parse().expect("valid");
        let mut evaluated = Evaluated::new(e, 2, [site.clone()], 1);
        evaluated.add(site, 2, &tally.into_counts()).expect("counts");
        evaluated
    }

    /// Weighs one model after the other; gives how far the study is after each, and what is said of it.
    fn run(patience: Patience, rights: &[Option<usize>]) -> Vec<Weighed> {
        let e = Evaluation { noise: Noise::None, ..settings() };
        let (mut before, mut all) = (Progress::default(), Vec::new());
        for (i, right) in rights.iter().enumerate() {
            let evaluated = match right {
                Some(right) => counted(&e, *right),
                None => Evaluated::new(&e, 2, [], 1),
            };
            let facts = Facts { evaluated: Some(evaluated), ..Facts::of([].iter(), true, 0) };
            let round = u32::try_from(i).expect("few") + 1;
            let model = Digest::of(&round.to_be_bytes());
            let weighed = patience.weigh(&before, &facts, (round, model)).expect("evaluated");
            before = weighed.progress.clone();
            all.push(weighed);
        }
        all
    }

    fn rounds(weighed: &[Weighed]) -> Vec<(u32, u32)> {
        let of =
            |w: &Weighed| (w.progress.best.as_ref().map_or(0, |b| b.round), w.progress.without);
        weighed.iter().map(of).collect()
    }

    #[test]
    fn it_runs_out_when_enough_rounds_in_a_row_are_no_better() {
        let p = patience(ACCURACY, 0.01);
        let all = run(p, &[Some(300), Some(340), Some(338), Some(360), Some(350), Some(361)]);
        assert_eq!(rounds(&all), [(1, 0), (2, 0), (2, 1), (4, 0), (4, 1), (4, 2)]);
        assert!(
            all.iter()
                .map(|w| p.is_over(&w.progress))
                .eq([false, false, false, false, false, true])
        );
        // The best is the model of the round in which it was reached.
        let best = all[5].progress.best.as_ref().expect("there is one");
        assert_eq!(best.model, Digest::of(&4_u32.to_be_bytes()));
        let first = &all[0].line;
        assert!(first.starts_with("better: accuracy: 0.7500 [0.7"), "{first}");
        assert!(first.ends_with("], no figure before it"), "{first}");
        let last = &all[5].line;
        assert!(last.starts_with("no better: accuracy: 0.9025 [0.8"), "{last}");
        assert!(last.contains("], at least 0.8"), "{last}");
        assert!(last.ends_with(" needed to be better than round 4; 2 of 2 such rounds"), "{last}");
        assert_eq!(
            p.reason(&all[5].progress, None),
            "accuracy was not better by 0.01 in 2 evaluated rounds; the best model by accuracy is that of round 4"
        );
        assert_eq!(
            p.reason(&all[4].progress, None),
            "all rounds have run; the best model by accuracy is that of round 4"
        );
    }

    #[test]
    fn small_steps_add_up_and_the_same_again_is_no_better() {
        // Each is better than the one before by a quarter of what is asked for, and the fifth than the first by all of it.
        let slow = run(patience(ACCURACY, 0.01), &[300, 301, 302, 303, 304].map(Some));
        assert_eq!(rounds(&slow), [(1, 0), (1, 1), (1, 2), (1, 3), (5, 0)]);
        let same = run(patience(ACCURACY, 0.0), &[300, 300, 301].map(Some));
        assert_eq!(rounds(&same), [(1, 0), (1, 1), (3, 0)]);
    }

    #[test]
    fn a_figure_that_is_missing_is_no_better() {
        let p = patience(ACCURACY, 0.01);
        let all = run(p, &[None, Some(300), None, None]);
        assert_eq!(rounds(&all), [(0, 1), (2, 0), (2, 1), (2, 2)]);
        let line =
            "no better: accuracy: no site has sent counts, no figure before it; 1 of 2 such rounds";
        assert_eq!(all[0].line, line);
        let silent = run(p, &[None, None]);
        assert!(p.is_over(&silent[1].progress) && silent[1].progress.best.is_none());
        assert_eq!(
            p.reason(&silent[1].progress, None),
            "accuracy was not better by 0.01 in 2 evaluated rounds"
        );
        // A round that is not evaluated is not weighed.
        let facts = Facts::of([].iter(), true, 0);
        assert_eq!(p.weigh(&Progress::default(), &facts, (1, Digest::of(b"m"))), None);
    }

    #[test]
    fn less_of_a_loss_is_better_and_by_its_upper_end() {
        let all = run(patience(Figure::Overall(Metric::Brier), 0.01), &[300, 360, 340].map(Some));
        assert_eq!(rounds(&all), [(1, 0), (2, 0), (2, 1)]);
        assert!(all[2].line.contains(", at most 0."), "{}", all[2].line);
    }

    #[test]
    fn fewer_units_off_is_better_by_the_upper_end_and_more_explained_by_the_lower_one() {
        let e = Evaluation { noise: Noise::None, perturbations: Vec::new(), ..settings() };
        let target = Target::Number { width: 80.0 };
        let site: SiteId = "spiffe://t/ae-on/ae-az/site/h-1".parse().expect("valid");
        let run = |metric, improve_by| {
            let p = patience(Figure::Overall(metric), improve_by);
            let (mut before, mut all) = (Progress::default(), Vec::new());
            // Models that are off by these parts of 80 on average, half of the records by a third of what the others are.
            for (round, off) in (1_u32..).zip([0.2, 0.1, 0.099, 0.15, 0.05]) {
                let mut tally = Tally::new(e.layout(target));
                for i in 0..400 {
                    let place = f64::from(i % 5) / 5.0;
                    tally.number(0, place, place + off * (0.5 + f64::from(i % 2)));
                }
                let mut evaluated = Evaluated::new(&e, target, [site.clone()], 1);
                evaluated.add(site.clone(), target, &tally.into_counts()).expect("counts");
                let facts = Facts { evaluated: Some(evaluated), ..Facts::of([].iter(), true, 0) };
                let model = Digest::of(&round.to_be_bytes());
                let weighed = p.weigh(&before, &facts, (round, model)).expect("evaluated");
                before = weighed.progress.clone();
                all.push(weighed);
            }
            all
        };
        for (metric, improve_by, bound) in [
            (Metric::Mae, 1.0, "], at most "),
            (Metric::Rmse, 1.0, "], at most "),
            (Metric::R2, 0.01, "], at least "),
        ] {
            let all = run(metric, improve_by);
            assert_eq!(rounds(&all), [(1, 0), (2, 0), (2, 1), (2, 2), (5, 0)], "{metric:?}");
            assert!(all[1].line.contains(bound), "{}", all[1].line);
        }
        // In the label's own unit, and by the worse end.
        let mae = run(Metric::Mae, 1.0);
        let end = mae[4].progress.best.as_ref().expect("there is one").end;
        assert!(end > 4.0 && end < 4.5, "{end}");
    }

    #[test]
    fn every_metric_says_in_which_direction_it_is_better_but_those_that_judge_no_model() {
        for metric in Metric::ALL {
            let says_nothing = matches!(
                metric,
                Metric::Records
                    | Metric::SelectionRate
                    | Metric::Psi
                    | Metric::Ks
                    | Metric::JensenShannon
            );
            assert_eq!(metric.better().is_none(), says_nothing, "{metric:?}");
        }
    }

    #[test]
    fn what_is_no_single_figure_of_how_good_a_model_is_compares_nothing() {
        let compares = |figure| patience(figure, 0.1).compares().map(|(metric, _)| metric);
        assert_eq!(compares(ACCURACY), Some(Metric::Accuracy));
        assert_eq!(compares(Figure::Drop(0)), Some(Metric::AccuracyDrop));
        let gap = Figure::Between(Metric::AccuracyDifference, By::attribute(0));
        assert_eq!(
            patience(gap, 0.1).compares(),
            Some((Metric::AccuracyDifference, Better::Lower))
        );
        for figure in [
            Figure::Epsilon,
            Figure::EachSite(Metric::Accuracy),
            Figure::EachGroup(Metric::Accuracy, By::attribute(0)),
            Figure::Column(Metric::Psi, 0),
            Figure::Overall(Metric::SelectionRate),
        ] {
            assert_eq!(compares(figure), None, "{figure:?}");
        }
    }
}
