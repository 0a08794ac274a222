//! A figure before it has an interval: a value, and what its two ends are made of.
//!
//! **A part of a whole** has the interval that Fieller (1954) gives for a ratio whose two counts carry noise, with the spread
//! of a binomial proportion where Wilson (1927) puts it, at the proportion that is tried and not at the one that was seen:
//! all `p` with `(part - p·whole)² ≤ z²·(var(noise of part - p·whole) + whole·p·(1 - p))`. It is one quadratic in `p`. Where
//! everything or nothing was right, it is as wide as it has to be, where the delta method has no width at all. Noise that puts
//! a part beyond its whole makes nobody surer than that.
//!
//! **Other figures** have the delta method's (Oehlert 1992), in which one more record, where one moves the figure most, is
//! counted `z²` times: at the edge this is Wilson's again.

/// A value, and what its interval is made of.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rate {
    pub(super) value: f64,
    form: Form,
}

#[derive(Clone, Copy, Debug)]
enum Form {
    Part(Ratio),
    /// Twice a part over one more than it: F1 of Jaccard's index.
    Harmonic(Ratio),
    /// The mean of two that have no count in common.
    Mean(Ratio, Ratio),
    /// The root of a mean.
    Root(Ratio),
    /// One less a ratio.
    Rest(Ratio),
    Delta {
        variance: f64,
        steepest: f64,
    },
}

/// One quantity over another.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ratio {
    pub(super) part: f64,
    pub(super) whole: f64,
    /// The variance of the part that does not depend on what the ratio is: of its noise, or of a sum.
    pub(super) of_part: f64,
    /// What the noise of both has in common.
    pub(super) of_both: f64,
    /// The variance of the whole's noise.
    pub(super) of_whole: f64,
    /// Records of which each is in the part or not; none where they are not a sample.
    pub(super) trials: f64,
}

impl Ratio {
    fn value(self) -> f64 {
        self.part / self.whole
    }

    pub(super) fn ends(self, z: f64) -> (f64, f64) {
        let z2 = z * z;
        let a = self.whole * self.whole - z2 * self.of_whole + z2 * self.trials;
        let b = self.part * self.whole - z2 * self.of_both + z2 * self.trials / 2.0;
        let c = self.part * self.part - z2 * self.of_part;
        if a <= 0.0 {
            // The whole cannot be told from nothing: it can be any part.
            return (f64::NEG_INFINITY, f64::INFINITY);
        }
        // Noise can put a part beyond its whole, where no proportion lies within reach: the nearest is both ends.
        let reach = (b * b - a * c).max(0.0).sqrt();
        let (low, high) = ((b - reach) / a, (b + reach) / a);
        if self.trials <= 0.0 {
            return (low, high);
        }
        // Wilson's where all or none of as many are in the part.
        let edge = z2 / (self.trials + z2);
        if self.part >= self.whole {
            (low.min(1.0 - edge), high.max(1.0))
        } else if self.part <= 0.0 {
            (low.min(0.0), high.max(edge))
        } else {
            (low, high)
        }
    }

    /// How far its two ends are from its value.
    fn reach(self, z: f64) -> (f64, f64) {
        let (low, high) = self.ends(z);
        (self.value() - low, high - self.value())
    }
}

impl From<Ratio> for Rate {
    fn from(part: Ratio) -> Self {
        Self { value: part.value(), form: Form::Part(part) }
    }
}

impl Rate {
    /// `2p / (1 + p)`.
    pub(super) fn harmonic(part: Ratio) -> Self {
        Self { value: harmonic(part.value()), form: Form::Harmonic(part) }
    }

    /// The mean of two that have no count in common.
    pub(super) fn mean(a: Ratio, b: Ratio) -> Self {
        Self { value: f64::midpoint(a.value(), b.value()), form: Form::Mean(a, b) }
    }

    /// The root of a mean.
    pub(super) fn root(mean: Ratio) -> Self {
        Self { value: mean.value().max(0.0).sqrt(), form: Form::Root(mean) }
    }

    /// One less a ratio.
    pub(super) fn rest(ratio: Ratio) -> Self {
        Self { value: 1.0 - ratio.value(), form: Form::Rest(ratio) }
    }

    /// Its variance by the delta method, and how much one record moves it at most; nothing where records are not a sample.
    pub(super) const fn delta(value: f64, variance: f64, steepest: f64) -> Self {
        Self { value, form: Form::Delta { variance, steepest } }
    }

    /// Variance and steepest slope of a figure that has no other form.
    pub(super) const fn slopes(self) -> (f64, f64) {
        match self.form {
            Form::Delta { variance, steepest } => (variance, steepest),
            Form::Part(_) | Form::Harmonic(_) | Form::Mean(..) | Form::Root(_) | Form::Rest(_) => {
                (f64::INFINITY, 0.0)
            }
        }
    }

    /// The ends of its interval, `z` standard deviations away. What has no quadratic of its own lies between 0 and 1, wherever noise
    /// has put it.
    pub(super) fn ends(&self, z: f64) -> (f64, f64) {
        match self.form {
            Form::Part(part) => part.ends(z),
            Form::Harmonic(part) => {
                let (low, high) = part.ends(z);
                (harmonic(low.max(0.0)), harmonic(high.clamp(0.0, 1.0)))
            }
            Form::Mean(a, b) => {
                // Each end from those of both (Newcombe 1998, method 10; Zou and Donner 2008).
                let ((a_down, a_up), (b_down, b_up)) = (a.reach(z), b.reach(z));
                let value = self.value.clamp(0.0, 1.0);
                (value - a_down.hypot(b_down) / 2.0, value + a_up.hypot(b_up) / 2.0)
            }
            Form::Root(mean) => {
                let (low, high) = mean.ends(z);
                (low.max(0.0).sqrt(), high.max(0.0).sqrt())
            }
            Form::Rest(ratio) => {
                let (low, high) = ratio.ends(z);
                (1.0 - high, 1.0 - low)
            }
            Form::Delta { variance, steepest } => {
                let reach = z * variance.sqrt().hypot(z * steepest);
                let value = self.value.clamp(0.0, 1.0);
                (value - reach, value + reach)
            }
        }
    }

    /// How far down and up its interval reaches.
    pub(super) fn reach(&self, z: f64) -> (f64, f64) {
        let (low, high) = self.ends(z);
        (self.value - low, high - self.value)
    }
}

fn harmonic(part: f64) -> f64 {
    2.0 * part / (1.0 + part)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(part: u32, whole: u32) -> Ratio {
        let (part, whole) = (f64::from(part), f64::from(whole));
        Ratio { part, whole, of_part: 0.0, of_both: 0.0, of_whole: 0.0, trials: whole }
    }

    /// By `SciPy` 1.17.1: `binomtest(k, n).proportion_ci(0.95, method="wilson")`.
    #[test]
    fn a_sampled_proportion_has_wilsons_interval() {
        let z = 1.959_963_984_540_054;
        for (k, n, low, high) in [
            (0, 20, 0.0, 0.161_125_158_052_819_35),
            (20, 20, 0.838_874_841_947_180_8, 1.0),
            (59, 60, 0.911_448_702_724_099_4, 0.997_051_840_205_213_8),
            (130, 200, 0.581_634_643_360_400_8, 0.712_711_758_726_419_2),
        ] {
            let (l, h) = of(k, n).ends(z);
            assert!((l - low).abs() < 1e-9 && (h - high).abs() < 1e-9, "{k} of {n}: {l} {h}");
        }
    }

    /// The chance that what is claimed at least is claimed too high, added up over everything that can be seen.
    #[test]
    fn the_lower_end_is_too_high_in_at_most_the_tail_also_where_nearly_all_is_right() {
        let z = 1.959_963_984_540_054;
        for n in [20_u32, 60, 200] {
            for p in [0.9_f64, 0.95, 0.99, 0.999] {
                let (mut chance, mut too_high) = (p.powi(n.cast_signed()), 0.0);
                for wrong in 0..=n {
                    if of(n - wrong, n).ends(z).0 > p {
                        too_high += chance;
                    }
                    chance *= f64::from(n - wrong) / f64::from(wrong + 1) * (1.0 - p) / p;
                }
                assert!(too_high < 0.026, "{too_high} of {n} at {p}");
            }
        }
    }

    #[test]
    fn noise_on_both_counts_is_fiellers() {
        // Without a spread of sampling, the ends are where the part less so much of the whole is z deviations from nothing.
        let part = Ratio {
            part: 80.0,
            whole: 100.0,
            of_part: 9.0,
            of_both: 9.0,
            of_whole: 18.0,
            trials: 0.0,
        };
        let z = 2.0;
        for end in <[f64; 2]>::from(part.ends(z)) {
            let variance = 9.0 - 2.0 * end * 9.0 + end * end * 18.0;
            let off = (80.0 - end * 100.0) / variance.sqrt();
            assert!((off.abs() - z).abs() < 1e-9, "{end}: {off}");
        }
        let nothing = Ratio { of_whole: 10_000.0, ..part };
        assert_eq!(nothing.ends(z), (f64::NEG_INFINITY, f64::INFINITY));
    }

    /// So that no gate holds that asks for all, or for none, whatever the noise.
    #[test]
    fn noise_makes_nobody_surer_than_all_or_none_of_a_sample() {
        let z = 2.0;
        for noise in [0.0, 1.0, 9.0, 400.0] {
            for beyond in [0.0, 1.0, 5.0, 60.0] {
                let noised = |part| Ratio {
                    part,
                    whole: 100.0,
                    of_part: noise,
                    of_both: noise,
                    of_whole: 2.0 * noise,
                    trials: 100.0,
                };
                let (all, none) = (noised(100.0 + beyond), noised(-beyond));
                let ((low, high), (least, most)) = (all.ends(z), none.ends(z));
                assert!(low <= 100.0 / 104.0 + 1e-12 && high >= 1.0, "{all:?}: {low} {high}");
                assert!(least <= 0.0 && most >= 4.0 / 104.0 - 1e-12, "{none:?}: {least} {most}");
                let mean = Rate::mean(all, all).ends(z);
                assert!(mean.0 < 1.0 && mean.1 >= 1.0, "{all:?}: {mean:?}");
                let f1 = Rate::harmonic(all).ends(z);
                assert!(f1.0 < 1.0, "{all:?}: {f1:?}");
            }
        }
        let beyond = Rate::delta(1.3, 0.01, 0.0).ends(z);
        assert!((beyond.0 - 0.8).abs() < 1e-12 && beyond.1 > 1.0, "{beyond:?}");
        let below = Rate::delta(-0.3, 0.01, 0.0).ends(z);
        assert!(below.0 < 0.0 && (below.1 - 0.2).abs() < 1e-12, "{below:?}");
    }

    #[test]
    fn where_everything_is_right_the_delta_method_has_wilsons_width() {
        let rate = Rate::delta(1.0, 0.0, 1.0 / 50.0);
        let (low, _) = rate.ends(2.0);
        assert!((low - (1.0 - 4.0 / 50.0)).abs() < 1e-12, "{low}");
    }
}
