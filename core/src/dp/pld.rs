//! The tight accountant: privacy-loss distributions, composed through their moment functions.
//!
//! For outputs with densities P and Q on two neighbouring data sets, the privacy loss is `L = ln(P/Q)`
//! under P, and the curve that matters is (Sommer, Meiser, Mohammadi 2019, theorem 1; Zhu, Dong, Wang
//! 2022, "Optimal accounting of differential privacy via characteristic function")
//!
//! ```text
//! delta(epsilon) = E[(1 - e^(epsilon - L))+]
//!                = 1/(2 pi) ∫ M(z) e^(-z epsilon) / (z (z + 1)) dt,   z = theta + i t, any theta > 0
//! ```
//!
//! with `M(z) = E[e^(z L)]`. Losses of releases composed add, so their moment functions multiply: 10^5
//! steps cost as much as one. No grid of losses is involved, hence nothing grows with the number of steps,
//! and no delta is too small. The integrals are evaluated by the trapezoidal rule, which converges
//! geometrically for both (Trefethen, Weideman 2014):
//!
//! - over `t`, through the saddle point. By Poisson's summation formula the rule gives
//!   `Σ_k e^(theta y_k) delta(epsilon + y_k)` with `y_k = 2 pi k / spacing`: every term is positive, so the
//!   answer lies above the truth by construction, and by how much is bounded ([`Delta`]).
//! - over the mechanism's output `x`, where the integrand is a Gaussian times a function analytic in a
//!   known strip.
//!
//! What is cut off and what rounding can do is added to the answer. Neighbours and the unit of protection
//! are [`Adjacency`]; both directions are accounted, and the worse one counts.

use super::{
    lattice::Lattice,
    rdp::{AccountantError, Epsilon, RdpCurve, log_erfc},
    sampling::Poisson,
};
use num_complex::Complex64;
use std::f64::consts::PI;

/// Rounding allowed for in the logarithm of one release's moment.
const STEP_SLACK: f64 = 2e-14;
/// Rounding allowed for in one sum of sines and cosines, relative to the sum of their sizes.
const RATIO_SLACK: f64 = 2e-15;
/// Rounding allowed for in one sum over the contour, relative to its largest term.
const SUM_SLACK: f64 = 1e-13;
/// What is left out of a sum is below e to this power of its largest term.
const CUT: f64 = -46.0;
/// A contour ends where the integrand is below e to this power of its largest value; what is left out is
/// bounded and added.
const CONTOUR_END: f64 = -14.0;
/// Terms of a contour's sums at most: of the loss as it is, and censored. What would need more is put on a
/// lattice.
const TERMS_MAX: [usize; 2] = [400_000, 3_000_000];
/// Points over a mechanism's output at most.
const OUTPUTS_MAX: f64 = 5e4;
/// The edge beyond which outputs are given up is a Gaussian's, this wide in deviations of the noise.
const EDGE: f64 = 0.125;
/// The chance of what is given up, relative to the delta asked for.
const SPARE: f64 = 1e-6;
/// Bounds that lie this close together, relatively, need no better ones.
const CLOSE: f64 = 1e-4;
/// Orders searched: theta is between these.
const THETA: (f64, f64) = (1e-6, 1e5);

/// Which data sets are neighbours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Adjacency {
    /// One unit more or less.
    AddOrRemove,
    /// One unit is another. Its sampled Gaussian's worst neighbours move the answer by the clip norm in
    /// opposite directions. For orders above one, advanced joint convexity (Balle, Barthe, Gaboardi 2018,
    /// theorem 2) leaves one Gaussian against a mixture of the two others, seen from it at distances of at
    /// most 1 and 2; a mixture's hockey-stick divergence is the mean of a convex function of a sum of
    /// exponentials of Gaussians, which is largest where their covariances are (Kahane 1986), that is, where
    /// all lie on one line at those distances. Orders below one mirror these.
    Substitute,
}

/// One kind of release. Its noise multiplier is the noise's standard deviation over the clip norm, which
/// is how far one unit can move the answer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Release {
    /// A Gaussian release over all units.
    Gaussian { noise_multiplier: f64 },
    /// A Gaussian release over a Poisson sample of the units.
    PoissonGaussian { sample_rate: f64, noise_multiplier: f64 },
    /// A whole number with discrete Gaussian noise; one unit moves it by `sensitivity`.
    DiscreteGaussian { sigma: f64, sensitivity: f64 },
    /// A whole number with discrete Laplace noise of chances e^(-|k| / scale).
    DiscreteLaplace { scale: f64, sensitivity: f64 },
}

/// Releases of one schedule that was fixed before its first one, and their privacy loss together. Where
/// later settings depend on earlier answers, only a Rényi filter is valid (Feldman, Zrnic 2021).
#[derive(Clone, Debug, PartialEq)]
pub struct Schedule {
    adjacency: Adjacency,
    releases: Vec<(Release, f64)>,
}

/// Bounds on a delta, from below and from above.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Delta {
    /// It is at least this.
    pub lower: f64,
    /// It is at most this: the figure to claim.
    pub upper: f64,
}

impl Schedule {
    /// Nothing is released.
    #[must_use]
    pub const fn new(adjacency: Adjacency) -> Self {
        Self { adjacency, releases: Vec::new() }
    }

    /// Adds `steps` Gaussian releases, each over a Poisson sample of the units.
    ///
    /// # Errors
    /// [`AccountantError`] for settings without a guarantee.
    pub fn poisson_gaussian(
        mut self,
        sampling: Poisson,
        noise_multiplier: f64,
        steps: u64,
    ) -> Result<Self, AccountantError> {
        let sample_rate = sampling.rate();
        if !(noise_multiplier.is_finite() && noise_multiplier > 0.0) {
            return Err(AccountantError::NoiseMultiplier(noise_multiplier));
        }
        #[expect(clippy::float_cmp, reason = "exactly 1 when there is no sampling")]
        let release = if sample_rate == 1.0 {
            Release::Gaussian { noise_multiplier }
        } else {
            Release::PoissonGaussian { sample_rate, noise_multiplier }
        };
        if steps > 0 {
            #[expect(clippy::cast_precision_loss, reason = "steps are far below 2^53")]
            self.releases.push((release, steps as f64));
        }
        Ok(self)
    }

    /// Adds `count` Gaussian releases over all units.
    ///
    /// # Errors
    /// [`AccountantError::NoiseMultiplier`].
    pub fn gaussian(self, noise_multiplier: f64, count: u64) -> Result<Self, AccountantError> {
        self.poisson_gaussian(Poisson::ALL, noise_multiplier, count)
    }

    /// Adds `count` releases of a whole number with discrete Gaussian noise of the parameter `sigma` (Canonne,
    /// Kamath, Steinke 2020, definition 1), which one unit moves by at most `sensitivity`. Vectors are no such
    /// release: their worst neighbours are not known, and zCDP accounts for them.
    ///
    /// # Errors
    /// [`AccountantError`] for settings without a guarantee, or more than some thousand likely outputs.
    pub fn discrete_gaussian(
        self,
        sigma: f64,
        sensitivity: u32,
        count: u64,
    ) -> Result<Self, AccountantError> {
        if !(sigma.is_finite() && sigma > 0.0) {
            return Err(AccountantError::NoiseMultiplier(sigma));
        }
        self.whole(Release::DiscreteGaussian { sigma, sensitivity: f64::from(sensitivity) }, count)
    }

    /// Adds `count` releases of a whole number with discrete Laplace noise: `k` is added with a chance in
    /// proportion to `e^(-|k| / scale)` (Ghosh, Roughgarden, Sundararajan 2012). One unit moves the number by
    /// at most `sensitivity`.
    ///
    /// # Errors
    /// As [`Self::discrete_gaussian`].
    pub fn discrete_laplace(
        self,
        scale: f64,
        sensitivity: u32,
        count: u64,
    ) -> Result<Self, AccountantError> {
        if !(scale.is_finite() && scale > 0.0) {
            return Err(AccountantError::NoiseMultiplier(scale));
        }
        self.whole(Release::DiscreteLaplace { scale, sensitivity: f64::from(sensitivity) }, count)
    }

    /// Adds releases of whole numbers.
    fn whole(mut self, release: Release, count: u64) -> Result<Self, AccountantError> {
        let outputs = release.outputs();
        if outputs > OUTPUTS_MAX {
            return Err(AccountantError::TooFine(outputs));
        }
        if count > 0 {
            #[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
            self.releases.push((release, count as f64));
        }
        Ok(self)
    }

    /// The same by Rényi divergences, for a filter, and for what this cannot account for.
    ///
    /// # Errors
    /// [`AccountantError::Neighbours`] where one unit is exchanged.
    pub fn rdp(&self) -> Result<RdpCurve, AccountantError> {
        if self.adjacency == Adjacency::Substitute {
            return Err(AccountantError::Neighbours);
        }
        self.releases.iter().try_fold(RdpCurve::zero(), |total, (release, count)| {
            let one = match *release {
                Release::Gaussian { noise_multiplier } => {
                    RdpCurve::poisson_gaussian(Poisson::ALL, noise_multiplier, 1)?
                }
                Release::PoissonGaussian { sample_rate, noise_multiplier } => {
                    RdpCurve::poisson_gaussian(Poisson::new(sample_rate)?, noise_multiplier, 1)?
                }
                Release::DiscreteGaussian { sigma, sensitivity } => {
                    RdpCurve::zcdp(sensitivity * sensitivity / (2.0 * sigma * sigma))?
                }
                Release::DiscreteLaplace { scale, sensitivity } => {
                    RdpCurve::pure(sensitivity / scale)?
                }
            };
            Ok(total.compose(&one.times(*count)))
        })
    }

    /// The rho at which everything together is rho-zCDP (Bun, Steinke 2016, propositions 1.4, 1.6 and lemma 1.7).
    /// It holds at every order, and at large ones sampling earns nothing: it is not counted.
    #[must_use]
    pub fn zcdp(&self) -> f64 {
        let one = |release: &Release| self.moved(release).powi(2) / 2.0;
        self.releases.iter().map(|(release, count)| one(release) * count).sum::<f64>()
            * (1.0 + 1e-12)
    }

    /// The mu at which everything together is mu-GDP (Dong, Roth, Su 2022, theorem 2.7 and corollary 3.3), where
    /// all of it is Gaussian. Sampling earns nothing against the whole curve: it is not counted.
    #[must_use]
    pub fn gdp(&self) -> Option<f64> {
        let discrete = |(release, _): &(Release, f64)| {
            matches!(release, Release::DiscreteGaussian { .. } | Release::DiscreteLaplace { .. })
        };
        let all_gaussian = !self.releases.iter().any(discrete);
        all_gaussian.then(|| (2.0 * self.zcdp()).sqrt() * (1.0 + 1e-12))
    }

    /// How far neighbours move a release at most, over the noise: deviations of a Gaussian, scales of a Laplace.
    fn moved(&self, release: &Release) -> f64 {
        let far = match self.adjacency {
            Adjacency::AddOrRemove => 1.0,
            Adjacency::Substitute => 2.0,
        };
        far * match *release {
            Release::Gaussian { noise_multiplier }
            | Release::PoissonGaussian { noise_multiplier, .. } => 1.0 / noise_multiplier,
            Release::DiscreteGaussian { sigma, sensitivity } => sensitivity / sigma,
            Release::DiscreteLaplace { scale, sensitivity } => sensitivity / scale,
        }
    }

    /// Bounds on the least delta at which everything together is (epsilon, delta)-DP.
    ///
    /// # Errors
    /// [`AccountantError::Epsilon`] when `epsilon` is negative or not a number.
    pub fn delta(&self, epsilon: f64) -> Result<Delta, AccountantError> {
        if !(epsilon.is_finite() && epsilon >= 0.0) {
            return Err(AccountantError::Epsilon(epsilon));
        }
        if self.releases.is_empty() {
            return Ok(Delta { lower: 0.0, upper: 0.0 });
        }
        let mut worst = Delta { lower: 0.0, upper: 0.0 };
        for &direction in self.directions() {
            let found = delta(&self.releases, direction, epsilon);
            worst.lower = worst.lower.max(found.lower);
            worst.upper = worst.upper.max(found.upper);
        }
        Ok(worst)
    }

    /// Whether everything together is (epsilon, delta)-DP for certain.
    ///
    /// # Errors
    /// [`AccountantError::Epsilon`] or [`AccountantError::Delta`].
    pub fn is_within(&self, epsilon: f64, delta: f64) -> Result<bool, AccountantError> {
        if !(delta > 0.0 && delta < 1.0) {
            return Err(AccountantError::Delta(delta));
        }
        Ok(self.delta(epsilon)?.upper <= delta)
    }

    /// An upper bound on the epsilon at `delta`.
    ///
    /// # Errors
    /// [`AccountantError::Delta`].
    pub fn epsilon(&self, delta: f64) -> Result<Epsilon, AccountantError> {
        if !(delta > 0.0 && delta < 1.0) {
            return Err(AccountantError::Delta(delta));
        }
        if self.releases.is_empty() {
            return Ok(Epsilon::new(0.0));
        }
        let worst = self
            .directions()
            .iter()
            .map(|&direction| least_epsilon(&self.releases, direction, delta))
            .fold(0.0, f64::max);
        Ok(Epsilon::new(worst))
    }

    fn directions(&self) -> &'static [Direction] {
        match self.adjacency {
            Adjacency::AddOrRemove => &[Direction::Remove, Direction::Add],
            // Exchanging the two data sets mirrors the outputs, and nothing else.
            Adjacency::Substitute => &[Direction::Substitute],
        }
    }
}

/// Which data set the outputs come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    /// From the one with the unit, against the one without it.
    Remove,
    /// From the one without it, against the one with it.
    Add,
    /// From the one with a unit, against the one with its substitute, which moves the other way.
    Substitute,
}

/// The privacy loss of a schedule in one direction.
pub(super) struct Loss {
    releases: Vec<(Release, f64)>,
    pub(super) direction: Direction,
    /// Terms that a contour may cost.
    terms_max: usize,
    /// Outputs of each release beyond its end are given up as lost: infinite is none.
    ends: Vec<f64>,
    /// The chance of such an output, at most.
    pub(super) given_up: f64,
}

/// `ln M` and its first two derivatives at a real point.
#[derive(Clone, Copy, Default)]
struct Cumulants {
    value: f64,
    slope: f64,
    curvature: f64,
}

/// One release's loss, tilted by `e^(theta L)`: weights that add up to one.
struct Tilted {
    losses: Vec<f64>,
    weights: Vec<f64>,
    cumulants: Cumulants,
}

/// `ln M(theta + i t)` at the points of a contour.
struct Contour {
    theta: f64,
    spacing: f64,
    cumulants: Cumulants,
    /// What aliases from above, at most, at the epsilon that it was made for.
    above: f64,
    /// `ln M(theta + i t) - ln M(theta)` for t = 0, spacing, 2 spacing ..., each with what rounding can
    /// have done to it.
    ratios: Vec<(Complex64, f64)>,
    steps: f64,
}

impl Release {
    /// The loss at every output that matters, tilted; `t` is how far up the imaginary axis the weights
    /// will be used. Outputs beyond `end` are left out, by a smooth edge. `None` for what has a closed form,
    /// or what is too fine to be summed.
    fn tilted(self, direction: Direction, end: f64, theta: f64, t: f64) -> Option<Tilted> {
        let Self::PoissonGaussian { sample_rate: q, noise_multiplier: sigma } = self else {
            let atoms = self.atoms(direction)?;
            let logs = atoms.iter().map(|(loss, chance)| chance.ln() + theta * loss);
            return Some(Tilted::new(logs.zip(atoms.iter().map(|a| a.0)).collect(), 1.0));
        };
        let square = sigma * sigma;
        let width = EDGE * sigma;
        // Downwards only A^-theta weighs more, and it is steepest at 0; upwards see the edge.
        let bottom = if direction == Direction::Add { theta * q } else { 0.0 } + 11.0 * sigma;
        let top = (theta + 2.0 + 11.0 * sigma).min(end + 10.0 * width);
        // The integrand is a Gaussian, an edge, and powers of A(x) = 1 - q + q e^((2x-1)/2sigma^2). On the
        // line Im x = height, which turns A's last term by `turn`, at most a quarter:
        // - the Gaussian is larger than on the axis by e^(height^2/2sigma^2), the edge by e^(height^2/2width^2),
        // - |A| is at most what it is on the axis, and at least 1 - q,
        // - A's phase, which a power of i t turns into size, is what the last term at the top leaves of `turn`.
        // The rule's error is below e^CUT times all that.
        let quarter = PI * square / 2.0;
        let edge = if end.is_finite() { 1.0 / (EDGE * EDGE) } else { 0.0 };
        let height = if end.is_finite() { quarter.min(4.0 * width) } else { quarter };
        let turn = height / square;
        let share = q / (1.0 - q) * ((2.0 * top - 1.0) / (2.0 * square)).min(700.0).exp();
        let phase = (share * turn.sin()).atan2(1.0 + share * turn.cos());
        let inverse = if direction == Direction::Remove { 0.0 } else { -theta * (-q).ln_1p() };
        let growth = turn * turn * square * (1.0 + edge) / 2.0 + inverse + 1.02 * phase * t;
        let strip = 2.0 * PI * height / (4.0 - CUT + growth);
        // A wide Gaussian is resolved by half its deviation.
        let resolved = 2.0 * PI / (t * share / (1.0 + share) / square + 10.0 / sigma);
        let spacing = strip.min(resolved).min(sigma / 2.0);
        let outputs = (bottom + top) / spacing;
        if outputs.is_nan() || outputs > OUTPUTS_MAX {
            return None;
        }
        #[expect(clippy::cast_possible_truncation, reason = "bounded above")]
        let (first, last) = ((-bottom / spacing).floor() as i64, (top / spacing).ceil() as i64);
        let mut points = Vec::new();
        for j in first..=last {
            #[expect(clippy::cast_precision_loss, reason = "small whole numbers")]
            let x = j as f64 * spacing;
            let (base, loss) = match direction {
                Direction::Remove => {
                    let a = self.log_ratio(x);
                    (a, a)
                }
                Direction::Add => (0.0, -self.log_ratio(x)),
                Direction::Substitute => {
                    let a = self.log_ratio(x);
                    (a, a - self.log_ratio(-x))
                }
            };
            let kept = if end.is_finite() {
                log_erfc((x - end) / (width * std::f64::consts::SQRT_2)) - std::f64::consts::LN_2
            } else {
                0.0
            };
            let log_weight = -x * x / (2.0 * square) + base + kept + theta * loss;
            points.push((log_weight, loss));
        }
        Some(Tilted::new(points, spacing / (sigma * (2.0 * PI).sqrt())))
    }

    /// The outputs that matter, where they are whole numbers: about how many.
    fn outputs(self) -> f64 {
        match self {
            Self::DiscreteGaussian { sigma, sensitivity } => 2.0 * (14.0 * sigma + sensitivity),
            Self::DiscreteLaplace { sensitivity, .. } => sensitivity + 1.0,
            Self::Gaussian { .. } | Self::PoissonGaussian { .. } => f64::INFINITY,
        }
    }

    /// Every loss with its chance, where outputs are whole numbers. Both directions mirror each other.
    pub(super) fn atoms(self, direction: Direction) -> Option<Vec<(f64, f64)>> {
        let units = if direction == Direction::Substitute { 2.0 } else { 1.0 };
        match self {
            Self::Gaussian { .. } | Self::PoissonGaussian { .. } => None,
            Self::DiscreteGaussian { sigma, sensitivity } => {
                let (square, moved) = (2.0 * sigma * sigma, sensitivity * units);
                let reach = (14.0 * sigma).ceil() + 1.0;
                let steps = std::iter::successors(Some(-reach), |k| Some(k + 1.0));
                let all = || steps.clone().take_while(|k| *k <= reach);
                let total: f64 = all().map(|k| (-k * k / square).exp()).sum();
                // The output is k above the value with the unit.
                let atom =
                    |k: f64| ((2.0 * k + moved) * moved / square, (-k * k / square).exp() / total);
                Some(all().map(atom).collect())
            }
            Self::DiscreteLaplace { scale, sensitivity } => {
                let moved = sensitivity * units;
                let decay = (-1.0 / scale).exp();
                let mut atoms = Vec::new();
                // Beyond both values all losses are the same; between them each output has its own.
                let beside = 1.0 / (1.0 + decay);
                atoms.push((moved / scale, beside));
                let steps = std::iter::successors(Some(1.0), |k| Some(k + 1.0));
                for k in steps.take_while(|k| *k < moved) {
                    let chance = (1.0 - decay) / (1.0 + decay) * (-k / scale).exp();
                    atoms.push(((moved - 2.0 * k) / scale, chance));
                }
                atoms.push((-moved / scale, beside * (-moved / scale).exp()));
                Some(atoms)
            }
        }
    }

    /// The noise's deviation, in clip norms.
    pub(super) fn deviation(self) -> f64 {
        match self {
            Self::Gaussian { noise_multiplier }
            | Self::PoissonGaussian { noise_multiplier, .. } => noise_multiplier,
            Self::DiscreteGaussian { sigma, .. } => sigma,
            Self::DiscreteLaplace { scale, .. } => scale,
        }
    }

    fn sample_rate(self) -> f64 {
        match self {
            Self::PoissonGaussian { sample_rate, .. } => sample_rate,
            _ => 1.0,
        }
    }

    /// The loss of most outputs where samples are rare, but for its sign.
    pub(super) fn atom(self) -> f64 {
        match self {
            Self::PoissonGaussian { sample_rate, .. } => -(-sample_rate).ln_1p(),
            _ => 0.0,
        }
    }

    /// `ln A(x)` of the output's density with the unit over that without it.
    fn log_ratio(self, x: f64) -> f64 {
        let (q, square) = (self.sample_rate(), self.deviation() * self.deviation());
        let u = (2.0 * x - 1.0) / (2.0 * square);
        if q >= 1.0 {
            return u;
        }
        // Both forms keep the digits that the other one loses.
        if u > 0.0 {
            u + q.ln() + ((-u).exp() * (1.0 - q) / q).ln_1p()
        } else {
            (q * u.exp_m1()).ln_1p()
        }
    }

    /// The loss at output `x`, a monotone function.
    pub(super) fn loss(self, direction: Direction, x: f64) -> f64 {
        match direction {
            Direction::Remove => self.log_ratio(x),
            Direction::Add => -self.log_ratio(x),
            Direction::Substitute => self.log_ratio(x) - self.log_ratio(-x),
        }
    }

    /// The output at which the loss is `loss`: infinite, or not a number, where it never is.
    pub(super) fn output(self, direction: Direction, loss: f64) -> f64 {
        let (q, square) = (self.sample_rate(), self.deviation() * self.deviation());
        let one = |loss: f64| square * ((loss.exp_m1() + q) / q).ln() + 0.5;
        match direction {
            Direction::Remove => one(loss),
            Direction::Add => one(-loss),
            Direction::Substitute => {
                // A(x) = e^loss A(-x) is quadratic in e^(x / sigma^2); its other root is negative.
                let c = q * (-0.5 / square).exp();
                let half = (1.0 - q) * loss.abs().exp_m1() / 2.0;
                let root = (half + half.hypot(c * (loss.abs() / 2.0).exp())) / c;
                (square * root.ln()).copysign(loss)
            }
        }
    }

    /// The density of output `x` where the loss is taken.
    pub(super) fn density(self, direction: Direction, x: f64) -> f64 {
        let (q, sigma) = (self.sample_rate(), self.deviation());
        let normal = |x: f64| (-x * x / (2.0 * sigma * sigma)).exp() / (sigma * (2.0 * PI).sqrt());
        match direction {
            Direction::Add => normal(x),
            Direction::Remove | Direction::Substitute => {
                (1.0 - q) * normal(x) + q * normal(x - 1.0)
            }
        }
    }

    /// How far one unit moves a Gaussian release, in deviations.
    fn shift(self, direction: Direction) -> Option<f64> {
        let Self::Gaussian { noise_multiplier } = self else { return None };
        let units = if direction == Direction::Substitute { 2.0 } else { 1.0 };
        Some(units / noise_multiplier)
    }

    /// Where outputs are given up, so that one is with a chance of at most `spare`; and that chance.
    fn end(self, spare: f64) -> (f64, f64) {
        let Self::PoissonGaussian { sample_rate: q, noise_multiplier: sigma } = self else {
            return (f64::INFINITY, 0.0);
        };
        // The edge is a Gaussian that is added to the output. The unit's presence makes it the likelier.
        let deviation = sigma * (1.0 + EDGE * EDGE).sqrt();
        let above = |x: f64| libm::erfc(x / (deviation * std::f64::consts::SQRT_2)) / 2.0;
        let chance = |x: f64| ((1.0 - q) * above(x) + q * above(x - 1.0)) * (1.0 + 1e-12);
        let (mut too_low, mut end) = (0.0, 1.0 + 36.0 * deviation);
        while end - too_low > 1e-3 * deviation {
            let middle = f64::midpoint(too_low, end);
            if chance(middle) <= spare { end = middle } else { too_low = middle }
        }
        (end, chance(end))
    }

    fn cumulants(self, direction: Direction, end: f64, theta: f64) -> Option<Cumulants> {
        if let Some(mu) = self.shift(direction) {
            let square = mu * mu;
            return Some(Cumulants {
                value: theta * (theta + 1.0) / 2.0 * square,
                slope: (theta + 0.5) * square,
                curvature: square,
            });
        }
        self.tilted(direction, end, theta, 0.0).map(|t| t.cumulants)
    }
}

impl Tilted {
    /// From losses with the logarithms of their tilted weights, each of which stands for `unit`.
    fn new(mut points: Vec<(f64, f64)>, unit: f64) -> Self {
        let largest = points.iter().map(|p| p.0).fold(f64::NEG_INFINITY, f64::max);
        points.retain(|(log_weight, _)| *log_weight > largest + CUT);
        let mut total = 0.0;
        let (mut losses, mut weights) = (Vec::new(), Vec::new());
        for (log_weight, loss) in points {
            let weight = (log_weight - largest).exp();
            total += weight;
            losses.push(loss);
            weights.push(weight);
        }
        let value = largest + (total * unit).ln();
        let (mut slope, mut second) = (0.0, 0.0);
        for (weight, loss) in weights.iter_mut().zip(&losses) {
            *weight /= total;
            slope += *weight * loss;
        }
        for (weight, loss) in weights.iter().zip(&losses) {
            second += weight * (loss - slope) * (loss - slope);
        }
        let cumulants = Cumulants { value, slope, curvature: second };
        Self { losses, weights, cumulants }
    }

    /// `ln(M(theta + i t) / M(theta))`, and what rounding can have done to it.
    fn ratio(&self, t: f64) -> (Complex64, f64) {
        // 1 - cos and sin of t L, so that nothing is lost where the ratio is almost one.
        let (mut real, mut imaginary, mut size) = (0.0, 0.0, 0.0);
        for (weight, loss) in self.weights.iter().zip(&self.losses) {
            let (sin, cos) = (t * loss / 2.0).sin_cos();
            real -= 2.0 * weight * sin * sin;
            imaginary += 2.0 * weight * sin * cos;
            size += weight * sin.abs();
        }
        let whole = 1.0 + real;
        let norm = whole.hypot(imaginary).max(f64::MIN_POSITIVE);
        let log_norm = if norm > 0.5 {
            (2.0 * real + real * real + imaginary * imaginary).ln_1p() / 2.0
        } else {
            norm.ln()
        };
        (Complex64::new(log_norm, imaginary.atan2(whole)), RATIO_SLACK * size / norm)
    }
}

impl Loss {
    /// Every output counts.
    fn whole(releases: &[(Release, f64)], direction: Direction) -> Self {
        let ends = vec![f64::INFINITY; releases.len()];
        let (releases, terms_max) = (releases.to_vec(), TERMS_MAX[0]);
        Self { releases, direction, terms_max, ends, given_up: 0.0 }
    }

    /// Outputs so large that their chance, over all releases, is at most `spare` are given up: delta is
    /// larger than without them by at most that. Where units are sampled rarely, they are what makes the
    /// moments large and delta hardly.
    pub(super) fn censored(releases: &[(Release, f64)], direction: Direction, spare: f64) -> Self {
        #[expect(clippy::cast_precision_loss, reason = "a small whole number")]
        let each = spare / releases.len() as f64;
        let found = releases.iter().map(|(release, count)| (release.end(each / count), count));
        let (ends, chances): (Vec<_>, Vec<_>) =
            found.map(|((end, chance), count)| (end, chance * count)).unzip();
        let (releases, terms_max) = (releases.to_vec(), TERMS_MAX[1]);
        Self { releases, direction, terms_max, ends, given_up: chances.iter().sum() }
    }

    /// The releases, how many, and where their outputs end.
    pub(super) fn parts(&self) -> impl Iterator<Item = (Release, f64, f64)> {
        self.releases.iter().zip(&self.ends).map(|((release, count), end)| (*release, *count, *end))
    }

    /// `ln M` of all releases together. `None` where the sums would be too long.
    fn cumulants(&self, theta: f64) -> Option<Cumulants> {
        let mut all = Cumulants::default();
        for ((release, count), end) in self.releases.iter().zip(&self.ends) {
            let one = release.cumulants(self.direction, *end, theta)?;
            all.value += count * one.value;
            all.slope += count * one.slope;
            all.curvature += count * one.curvature;
        }
        Some(all)
    }

    pub(super) fn steps(&self) -> f64 {
        self.releases.iter().map(|(_, count)| count).sum()
    }

    /// The largest loss that can be.
    fn largest(&self) -> f64 {
        let one = |(release, count): &(Release, f64)| match (self.direction, release) {
            (Direction::Add, Release::PoissonGaussian { sample_rate, .. }) => {
                -count * (-sample_rate).ln_1p()
            }
            (_, Release::DiscreteLaplace { scale, sensitivity }) => {
                let units = if self.direction == Direction::Substitute { 2.0 } else { 1.0 };
                count * units * sensitivity / scale
            }
            _ => f64::INFINITY,
        };
        self.releases.iter().map(one).sum()
    }

    /// The Rényi bound on epsilon at its best order, which may be any real one, and `theta` = that order
    /// less one (Canonne, Kamath, Steinke 2020, proposition 12).
    fn renyi(&self, delta: f64) -> (f64, f64) {
        let bound = |log_theta: f64| {
            let theta = log_theta.exp();
            let Some(c) = self.cumulants(theta) else { return f64::INFINITY };
            let value = c.value + self.steps() * STEP_SLACK;
            (value - delta.ln() + theta * theta.ln() - (theta + 1.0) * (theta + 1.0).ln()) / theta
        };
        let log_theta = least(THETA.0.ln(), THETA.1.ln(), bound);
        (bound(log_theta).min(self.largest()), log_theta.exp())
    }

    /// The saddle point of the integrand at `epsilon`.
    pub(super) fn saddle(&self, epsilon: f64) -> f64 {
        let exponent = |log_theta: f64| {
            let theta = log_theta.exp();
            let Some(c) = self.cumulants(theta) else { return f64::INFINITY };
            c.value - theta * epsilon - theta.ln() - theta.ln_1p()
        };
        least(THETA.0.ln(), THETA.1.ln(), exponent).exp()
    }

    /// The contour through `theta`, fine enough for a delta of about `delta` at `epsilon`. `None` when it
    /// would need too many points.
    fn contour(&self, theta: f64, epsilon: f64, delta: f64) -> Option<Contour> {
        if self.releases.iter().any(|(release, _)| release.outputs().is_finite()) {
            // The moments of whole numbers come back with every period.
            return None;
        }
        let mut theta = theta;
        let mut cumulants = self.cumulants(theta)?;
        // Where delta is almost one the saddle point comes close to the pole at zero. Keep away from it,
        // if the integrand does not grow much.
        let away = 0.25 / cumulants.curvature.sqrt();
        if theta < away {
            let there = self.cumulants(away)?;
            if there.value - away * epsilon < cumulants.value - theta * epsilon + 8.0 {
                (theta, cumulants) = (away, there);
            }
        }
        let spread = cumulants.curvature.sqrt().recip();
        // Two things alias: what lies below, damped by e^(-theta y), and what lies above.
        let mut spacing = (2.0 * PI * theta / (20.0 - delta.ln())).min(spread / 1.5);
        let beyond = self.beyond(theta);
        for _ in 0..12 {
            if above(&beyond, theta, spacing, epsilon) <= 1e-6 * delta {
                break;
            }
            spacing /= 1.4;
        }
        let above = above(&beyond, theta, spacing, epsilon);
        // Beyond this the integrand of a Gaussian loss is at its end.
        let mut terms = 0;
        let mut reach = 1.1 * spread * (-2.0 * CONTOUR_END).sqrt();
        'finer: loop {
            let tilted: Vec<(Option<Tilted>, f64, f64)> = self
                .releases
                .iter()
                .zip(&self.ends)
                .map(|((release, count), &end)| {
                    let shift = release.shift(self.direction).unwrap_or(0.0);
                    (release.tilted(self.direction, end, theta, reach), shift, *count)
                })
                .collect();
            let fine = self.releases.iter().zip(&tilted).all(|((release, _), (tilted, ..))| {
                tilted.is_some() || matches!(release, Release::Gaussian { .. })
            });
            if !fine {
                return None;
            }
            let outputs: usize =
                tilted.iter().map(|(t, ..)| t.as_ref().map_or(1, |t| t.weights.len())).sum();
            let mut ratios = vec![(Complex64::new(0.0, 0.0), 0.0)];
            loop {
                terms += outputs;
                if terms > self.terms_max {
                    return None;
                }
                #[expect(clippy::cast_precision_loss, reason = "small whole numbers")]
                let t = ratios.len() as f64 * spacing;
                if t > reach {
                    reach *= 2.0;
                    continue 'finer;
                }
                let (mut ratio, mut rounding) = (Complex64::new(0.0, 0.0), 0.0);
                for (tilted, mu, count) in &tilted {
                    let (one, slack) = tilted.as_ref().map_or_else(
                        || {
                            let i = Complex64::new(0.0, t);
                            ((i * (2.0 * theta + 1.0) - t * t) / 2.0 * (mu * mu), 0.0)
                        },
                        |tilted| tilted.ratio(t),
                    );
                    ratio += *count * one;
                    rounding += count * slack;
                }
                rounding += f64::EPSILON * ratio.norm();
                ratios.push((ratio, rounding));
                if ratio.re - 2.0 * (t / theta).ln().max(0.0) < CONTOUR_END {
                    let steps = self.steps();
                    return Some(Contour { theta, spacing, cumulants, above, ratios, steps });
                }
            }
        }
    }

    /// Bounds on delta when there is but one sampled step: both likelihood ratios are monotone in the
    /// output, so the best event is a half line (Balle, Barthe, Gaboardi 2018, section 3).
    fn one_step(&self, epsilon: f64) -> Option<Delta> {
        let [(Release::PoissonGaussian { sample_rate: q, noise_multiplier: sigma }, 1.0)] =
            *self.releases
        else {
            return None;
        };
        // The output at which the ratio of the mixture to the plain Gaussian is `a`.
        let output = |a: f64| sigma * sigma * ((a - (1.0 - q)) / q).ln() + 0.5;
        let above = |x: f64| libm::erfc(x / (sigma * std::f64::consts::SQRT_2)) / 2.0;
        let (won, lost) = match self.direction {
            Direction::Remove => {
                let x = output(epsilon.exp());
                ((1.0 - q) * above(x) + q * above(x - 1.0), epsilon.exp() * above(x))
            }
            Direction::Add if (-epsilon).exp() > 1.0 - q => {
                let x = output((-epsilon).exp());
                let mixture = (1.0 - q) * above(-x) + q * above(1.0 - x);
                (above(-x), epsilon.exp() * mixture)
            }
            Direction::Add => (0.0, 0.0),
            Direction::Substitute => return None,
        };
        let slack = 1e-14 * (won + lost);
        let value = won - lost;
        Some(Delta { lower: (value - slack).max(0.0), upper: (value + slack).max(0.0) })
    }

    /// Bounds on delta, found through the saddle point.
    fn delta(&self, epsilon: f64) -> Delta {
        let theta = self.saddle(epsilon);
        let renyi = self.renyi_delta(epsilon);
        self.contour(theta, epsilon, renyi.clamp(1e-300, 1.0)).map_or(
            Delta { lower: 0.0, upper: renyi + self.given_up },
            |contour| {
                let found = contour.delta(epsilon);
                let lower = (found.lower - contour.above).max(0.0);
                Delta { lower, upper: found.upper.clamp(0.0, renyi) + self.given_up }
            },
        )
    }

    /// `ln M` at some points beyond `theta`, for Chernoff's bounds.
    fn beyond(&self, theta: f64) -> Vec<(f64, f64)> {
        [1.05, 1.15, 1.3, 1.6, 2.0, 3.0, 5.0, 8.0]
            .iter()
            .filter_map(|factor| Some((theta * factor, self.cumulants(theta * factor)?.value)))
            .collect()
    }

    /// The Rényi bound on delta.
    fn renyi_delta(&self, epsilon: f64) -> f64 {
        let bound = |log_theta: f64| {
            let theta = log_theta.exp();
            let Some(c) = self.cumulants(theta) else { return f64::INFINITY };
            let value = c.value + self.steps() * STEP_SLACK;
            value - theta * epsilon + theta * theta.ln() - (theta + 1.0) * (theta + 1.0).ln()
        };
        bound(least(THETA.0.ln(), THETA.1.ln(), bound)).exp().min(1.0)
    }

    /// An epsilon that suffices, and whether it is hardly more than necessary. `enough` is known to suffice.
    fn epsilon(&self, delta: f64, enough: f64) -> (f64, bool) {
        let target = delta - self.given_up;
        let (mut epsilon, mut theta) = self.renyi(target);
        epsilon = epsilon.min(enough);
        if !epsilon.is_finite() {
            return (f64::INFINITY, false);
        }
        // The next contour goes through the saddle point of what the last one found.
        for _ in 0..6 {
            let Some(contour) = self.contour(theta, epsilon, target) else { break };
            let fits = crossing(epsilon, |e| contour.delta(e).upper > target);
            let settled = fits > epsilon * (1.0 - CLOSE);
            epsilon = fits;
            if settled {
                let lower = contour.delta(epsilon).lower - contour.above;
                return (epsilon * (1.0 + 1e-9), lower > target * (1.0 - 10.0 * CLOSE));
            }
            theta = self.saddle(epsilon);
        }
        (epsilon * (1.0 + 1e-9), false)
    }
}

/// Bounds on delta in one direction.
fn delta(releases: &[(Release, f64)], direction: Direction, epsilon: f64) -> Delta {
    let whole = Loss::whole(releases, direction);
    if let Some(exact) = whole.one_step(epsilon) {
        return exact;
    }
    if epsilon >= whole.largest() {
        return Delta { lower: 0.0, upper: 0.0 };
    }
    let mut best = whole.delta(epsilon);
    // What is given up is relative to what is found.
    for _ in 0..4 {
        if best.upper <= best.lower * (1.0 + CLOSE) {
            break;
        }
        let spare = SPARE * best.upper.max(1e-250);
        let censored = Loss::censored(releases, direction, spare);
        let mut found = censored.delta(epsilon);
        if found.upper > found.lower * (1.0 + 10.0 * CLOSE) {
            let theta = censored.saddle(epsilon);
            let near = best.upper.min(found.upper);
            let lattice = Lattice::new(&censored, theta, epsilon, near);
            let upper = lattice.map_or(1.0, |lattice| lattice.delta(epsilon));
            found.upper = found.upper.min(upper);
        }
        let settled = found.upper > best.upper * 0.5;
        best.lower = best.lower.max(found.lower);
        best.upper = best.upper.min(found.upper);
        if settled {
            break;
        }
    }
    best
}

/// The least epsilon at `delta` in one direction, from above.
fn least_epsilon(releases: &[(Release, f64)], direction: Direction, delta: f64) -> f64 {
    let whole = Loss::whole(releases, direction);
    let exact = |epsilon: f64| whole.one_step(epsilon).map(|found| found.upper);
    if exact(0.0).is_some() {
        let (enough, _) = whole.renyi(delta);
        return crossing(enough, |e| exact(e).is_none_or(|found| found > delta));
    }
    let (epsilon, tight) = whole.epsilon(delta, f64::INFINITY);
    if tight || epsilon == 0.0 || delta < 1e-250 {
        return epsilon;
    }
    let censored = Loss::censored(releases, direction, SPARE * delta);
    let (epsilon, tight) = censored.epsilon(delta, epsilon);
    if tight || epsilon == 0.0 {
        return epsilon;
    }
    let mut best = epsilon;
    for _ in 0..4 {
        let lattice = Lattice::new(&censored, censored.saddle(best), best, delta);
        let found = lattice.map_or(f64::INFINITY, |lattice| lattice.epsilon(delta));
        let settled = found > best * 0.9;
        best = best.min(found * (1.0 + 1e-9));
        if settled {
            break;
        }
    }
    best
}

impl Contour {
    /// The rule's value, with everything that was left out or rounded away added above, and taken off
    /// below together with what aliases from below.
    fn delta(&self, epsilon: f64) -> Delta {
        let theta = self.theta;
        let (mut sum, mut slack, mut last) = (0.0, 0.0, 0.0);
        for (k, (ratio, rounding)) in self.ratios.iter().enumerate() {
            #[expect(clippy::cast_precision_loss, reason = "small whole numbers")]
            let t = k as f64 * self.spacing;
            let z = Complex64::new(theta, t);
            let turned = *ratio - Complex64::new(0.0, t * epsilon);
            let term = turned.exp() / (z * (z + 1.0));
            let weight = if k == 0 { 0.5 } else { 1.0 };
            sum += weight * term.re;
            let rounding = rounding + f64::EPSILON * t * epsilon + SUM_SLACK;
            slack += weight * term.norm() * rounding;
            last = term.norm() * t.max(theta);
        }
        let unit = (self.cumulants.value - theta * epsilon).exp() / PI;
        let value = sum * self.spacing * unit;
        // Beyond the last point the integrand falls at least as 1/t^2.
        let slack = unit * (slack * self.spacing + last);
        let rounding = self.steps * STEP_SLACK;
        let below = (-theta * 2.0 * PI / self.spacing).exp();
        Delta { lower: value - slack - 2.0 * below, upper: (value + slack) * (1.0 + rounding) }
    }
}

/// What aliases from above, at most: Chernoff's bound on delta at `epsilon + y`, from `ln M` at points beyond
/// the contour through `theta`.
fn above(beyond: &[(f64, f64)], theta: f64, spacing: f64, epsilon: f64) -> f64 {
    let y = 2.0 * PI / spacing;
    let bound = |&(further, value): &(f64, f64)| {
        let decay = (further - theta) * y;
        (value - further * epsilon - decay).exp() / -(-decay).exp_m1()
    };
    beyond.iter().map(bound).fold(1.0, f64::min)
}

/// The least epsilon, from above, that is not too little; `enough` is known not to be.
fn crossing(mut enough: f64, too_little: impl Fn(f64) -> bool) -> f64 {
    if !too_little(0.0) {
        return 0.0;
    }
    let mut below = 0.0;
    while enough - below > 1e-10 * enough {
        let middle = f64::midpoint(below, enough);
        if too_little(middle) { below = middle } else { enough = middle }
    }
    enough
}

/// About where a function with one valley is least: any point is valid here, and a near one as good.
fn least(mut left: f64, mut right: f64, f: impl Fn(f64) -> f64) -> f64 {
    const GOLDEN: f64 = 0.618_033_988_749_894_9;
    let (mut a, mut b) = (right - GOLDEN * (right - left), left + GOLDEN * (right - left));
    let (mut at_a, mut at_b) = (f(a), f(b));
    while right - left > 1e-2 {
        // Where both are infinite the valley lies to the left: sums only grow too long to the right.
        if at_a < at_b || !at_b.is_finite() {
            (right, b, at_b) = (b, a, at_a);
            a = right - GOLDEN * (right - left);
            at_a = f(a);
        } else {
            (left, a, at_a) = (a, b, at_b);
            b = left + GOLDEN * (right - left);
            at_b = f(b);
        }
    }
    if at_a < at_b { a } else { b }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dp::sampling::rate;
    use serde_json::Value;

    fn sampled(q: f64, sigma: f64, steps: u64) -> Schedule {
        Schedule::new(Adjacency::AddOrRemove)
            .poisson_gaussian(rate(q), sigma, steps)
            .expect("valid")
    }

    /// The upper tail of the standard normal distribution.
    fn tail(x: f64) -> f64 {
        libm::erfc(x / std::f64::consts::SQRT_2) / 2.0
    }

    #[test]
    fn views_by_zcdp_and_gdp_are_the_references_and_never_below_the_curve() {
        // dp_accounting 0.6.0, case SG1.
        let plain = Schedule::new(Adjacency::AddOrRemove).gaussian(3.0, 20).expect("valid");
        assert!((plain.zcdp() - 1.111_111_111_111_111).abs() < 1e-9);
        assert!((plain.gdp().expect("Gaussian") - 1.490_711_985).abs() < 1e-9);
        let both = sampled(0.2, 1.5, 4).gaussian(9.0, 3).expect("valid");
        let mu = both.gdp().expect("Gaussian");
        for epsilon in [0.0, 0.5, 2.0, 6.0] {
            let (a, b) = (epsilon / mu - mu / 2.0, epsilon / mu + mu / 2.0);
            let curve = tail(a) - f64::exp(epsilon) * tail(b);
            assert!(both.delta(epsilon).expect("valid").lower <= curve, "{epsilon}");
        }
        let swapped = Schedule::new(Adjacency::Substitute).gaussian(3.0, 20).expect("valid");
        assert!((swapped.zcdp() / plain.zcdp() - 4.0).abs() < 1e-9);
        let counts = plain.discrete_laplace(2.0, 1, 3).expect("valid");
        assert!((counts.zcdp() - 1.111_111_111_111_111 - 3.0 / 8.0).abs() < 1e-9);
        assert_eq!(counts.gdp(), None);
    }

    #[test]
    fn one_sampled_step_in_closed_form_agrees_with_its_contour() {
        for (q, sigma) in [(0.9, 1.5), (0.95, 0.6)] {
            let schedule = sampled(q, sigma, 1);
            for scale in [0.5, 2.0, 4.0] {
                let epsilon = scale * q / sigma;
                for direction in [Direction::Remove, Direction::Add] {
                    let loss = Loss::whole(&schedule.releases, direction);
                    let exact = loss.one_step(epsilon).expect("one step");
                    if exact.upper < 1e-12 {
                        continue;
                    }
                    let theta = loss.saddle(epsilon);
                    let contour = loss.contour(theta, epsilon, exact.upper).expect("fine enough");
                    let found = contour.delta(epsilon).upper;
                    assert!(found >= exact.lower, "{q} {sigma} {epsilon}: {found} {exact:?}");
                    assert!(
                        found <= exact.upper * 1.001,
                        "{q} {sigma} {epsilon}: {found} {exact:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn composed_gaussians_agree_with_their_closed_form_at_every_delta() {
        for (sigma, count) in [(3.0, 20), (300.0, 100_000), (0.5, 1), (2.0, 100)] {
            #[expect(clippy::cast_precision_loss, reason = "small whole numbers")]
            let mu = (count as f64).sqrt() / sigma;
            let schedule =
                Schedule::new(Adjacency::AddOrRemove).gaussian(sigma, count).expect("valid");
            for delta in [1e-3, 1e-6, 1e-9, 1e-15, 1e-20] {
                let epsilon = schedule.epsilon(delta).expect("valid").value();
                // Balle, Wang 2018, theorem 8.
                let at = |e: f64| tail(e / mu - mu / 2.0) - e.exp() * tail(e / mu + mu / 2.0);
                assert!(at(epsilon) <= delta, "{sigma} {count} {delta}: {epsilon} too small");
                let less = epsilon * (1.0 - 1e-6) - 1e-9;
                assert!(at(less) > delta, "{sigma} {count} {delta}: {epsilon} too large");
            }
        }
    }

    #[test]
    fn epsilon_is_never_below_the_reference_and_hardly_above() {
        let file: Value =
            serde_json::from_str(include_str!("../../testdata/dp_accounting.json")).expect("JSON");
        let cases = file["cases"].as_array().expect("a list");
        let mut compared = 0;
        for case in cases.iter().filter(|c| c["kind"] == "dpsgd_poisson_gaussian") {
            let number = |k: &str| case[k].as_f64().expect("a number");
            let schedule =
                sampled(number("q"), number("sigma"), case["steps"].as_u64().expect("steps"));
            let found = schedule.epsilon(number("delta")).expect("valid").value();
            let (truth, tolerance) = (number("eps_ref"), number("eps_ref_tol"));
            assert!(found >= truth - tolerance, "{}: {found} < {truth}", case["id"]);
            assert!(found <= truth * 1.001 + 1e-3, "{}: {found} > {truth}", case["id"]);
            compared += 1;
        }
        assert_eq!(compared, 6);
    }

    #[test]
    fn long_runs_agree_with_quadrature_on_a_fine_grid() {
        // Computed for this project by Gauss-Legendre buckets and an exponentially tilted transform.
        for (q, sigma, steps, delta, truth) in [
            (0.001, 0.8, 100_000, 1e-6, 2.914_48),
            (0.01, 1.0, 100_000, 1e-6, 27.672_6),
            (0.1, 4.0, 100_000, 1e-6, 69.494_1),
            (0.05, 50.0, 100_000, 1e-9, 1.788_51),
            (0.02, 1.0, 2_500, 1e-12, 10.915_7),
        ] {
            let found = sampled(q, sigma, steps).epsilon(delta).expect("valid").value();
            assert!((found - truth).abs() < 2e-5 + truth * 2e-5, "{q} {sigma}: {found}, {truth}");
        }
    }

    #[test]
    fn the_gap_between_the_bounds_is_small() {
        for (q, sigma, steps, epsilon) in [(0.01, 1.0, 1_000, 2.0), (0.001, 0.8, 10_000, 0.5)] {
            let found = sampled(q, sigma, steps).delta(epsilon).expect("valid");
            assert!(found.lower > 0.0 && found.upper > found.lower, "{found:?}");
            assert!(found.upper < found.lower * (1.0 + 1e-4), "{found:?}");
        }
    }

    #[test]
    fn settings_compose_whatever_their_order_and_substitution_costs_more() {
        let mixed = |adjacency| {
            Schedule::new(adjacency)
                .poisson_gaussian(rate(0.01), 1.1, 500)
                .and_then(|s| s.gaussian(20.0, 3))
                .and_then(|s| s.poisson_gaussian(rate(0.05), 2.0, 200))
                .expect("valid")
        };
        let other = Schedule::new(Adjacency::AddOrRemove)
            .poisson_gaussian(rate(0.05), 2.0, 200)
            .and_then(|s| s.poisson_gaussian(rate(0.01), 1.1, 500))
            .and_then(|s| s.gaussian(20.0, 3))
            .expect("valid");
        let epsilon = |s: &Schedule| s.epsilon(1e-6).expect("valid").value();
        let one = epsilon(&mixed(Adjacency::AddOrRemove));
        assert!((one / epsilon(&other) - 1.0).abs() < 1e-6, "{one}");
        let parts = epsilon(&sampled(0.01, 1.1, 500)).max(epsilon(&sampled(0.05, 2.0, 200)));
        assert!(one > parts, "{one} {parts}");
        assert!(epsilon(&mixed(Adjacency::Substitute)) > one);
    }

    #[test]
    fn it_never_says_more_than_the_renyi_accountant_and_grows_the_right_way() {
        use super::super::rdp::RdpCurve;
        let epsilon = |q, s, t, d| sampled(q, s, t).epsilon(d).expect("valid").value();
        for (q, sigma, steps, delta) in
            [(0.02, 0.7, 300, 1e-5), (0.3, 2.0, 50, 1e-8), (1e-4, 0.5, 20_000, 1e-6)]
        {
            let tight = epsilon(q, sigma, steps, delta);
            let renyi = RdpCurve::poisson_gaussian(rate(q), sigma, steps)
                .and_then(|c| c.epsilon(delta))
                .expect("valid")
                .value();
            assert!(tight <= renyi, "{q} {sigma} {steps}: {tight} > {renyi}");
            assert!(epsilon(q * 1.1, sigma, steps, delta) > tight);
            assert!(epsilon(q, sigma * 0.9, steps, delta) > tight);
            assert!(epsilon(q, sigma, steps * 2, delta) > tight);
            assert!(epsilon(q, sigma, steps, delta / 10.0) > tight);
        }
    }

    #[test]
    fn discrete_laplace_releases_agree_with_the_binomial_closed_form() {
        let count = 20_u32;
        let scale = 5.0;
        let schedule = Schedule::new(Adjacency::AddOrRemove)
            .discrete_laplace(scale, 1, u64::from(count))
            .expect("valid");
        // One release is randomised response: its loss is 1/scale with chance p, -1/scale otherwise.
        let p = 1.0 / (1.0 + (-1.0_f64 / scale).exp());
        for epsilon in [0.0, 0.5, 1.3, 3.0] {
            let mut exact = 0.0;
            let mut chance = (1.0 - p).powi(20);
            for k in 0..=count {
                let loss = (2.0 * f64::from(k) - f64::from(count)) / scale;
                if loss > epsilon {
                    exact += chance * -(epsilon - loss).exp_m1();
                }
                chance *= f64::from(count - k) / f64::from(k + 1) * p / (1.0 - p);
            }
            let found = schedule.delta(epsilon).expect("valid").upper;
            assert!(found >= exact * (1.0 - 1e-9), "{epsilon}: {found} {exact}");
            assert!(found <= exact * 1.001 + 1e-12, "{epsilon}: {found} {exact}");
        }
        assert!(schedule.delta(4.0).expect("valid").upper <= 0.0);
        let epsilon = schedule.epsilon(1e-5).expect("valid").value();
        let renyi = schedule.rdp().and_then(|c| c.epsilon(1e-5)).expect("valid").value();
        assert!(epsilon < renyi && renyi < 4.1, "{epsilon} {renyi}");
    }

    #[test]
    fn discrete_gaussian_releases_come_close_to_gaussian_ones() {
        let epsilon = |s: Schedule| s.epsilon(1e-6).expect("valid").value();
        let new = || Schedule::new(Adjacency::AddOrRemove);
        for (sigma, sensitivity, count) in [(20.0, 1, 400), (40.0, 8, 30), (3.0, 1, 10)] {
            let multiplier = sigma / f64::from(sensitivity);
            let plain = epsilon(new().gaussian(multiplier, count).expect("valid"));
            let whole = new().discrete_gaussian(sigma, sensitivity, count).expect("valid");
            let whole = epsilon(whole);
            assert!((whole / plain - 1.0).abs() < 2e-3, "{sigma} {sensitivity}: {whole} {plain}");
        }
        let far = new().discrete_gaussian(1e6, 1, 1);
        assert!(matches!(far, Err(AccountantError::TooFine(_))));
        assert!(new().discrete_gaussian(0.0, 1, 1).is_err());
        assert!(new().discrete_laplace(f64::NAN, 1, 1).is_err());
        let both = new()
            .discrete_laplace(8.0, 2, 5)
            .and_then(|s| s.poisson_gaussian(rate(0.02), 1.2, 300))
            .expect("valid");
        let alone = epsilon(sampled(0.02, 1.2, 300));
        let both = epsilon(both);
        assert!(both > alone && both < alone + 5.0 * 2.0 / 8.0, "{alone} {both}");
    }

    #[test]
    fn settings_without_a_guarantee_never_give_a_number() {
        let new = || Schedule::new(Adjacency::AddOrRemove);
        for (q, s) in [(0.0, 1.0), (1.1, 1.0), (f64::NAN, 1.0), (0.1, 0.0), (0.1, f64::NAN)] {
            assert!(
                Poisson::new(q).and_then(|q| new().poisson_gaussian(q, s, 1)).is_err(),
                "q {q} sigma {s}"
            );
        }
        let schedule = sampled(0.1, 1.0, 10);
        for delta in [0.0, 1.0, -1.0, f64::NAN] {
            assert!(schedule.epsilon(delta).is_err());
        }
        assert!(schedule.delta(-0.1).is_err() && schedule.delta(f64::INFINITY).is_err());
        assert_eq!(new().epsilon(1e-5).map(Epsilon::value), Ok(0.0));
        assert_eq!(schedule.epsilon(0.999).map(Epsilon::value), Ok(0.0));
    }
}
