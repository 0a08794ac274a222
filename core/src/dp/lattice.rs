//! Privacy losses on a lattice, composed by one tilted Fourier transform: the way for the few schedules whose
//! loss is almost an atom, as few steps over rare samples are, and whose contour ([`super::pld`]) hardly ends.
//!
//! Every loss is split between the lattice points beside it such that the probabilities under both data sets
//! are kept, which only makes the mechanism less private (Doroshenko, Ghazi, Kamath, Kumar, Manurangsi 2022,
//! "Connect the dots"). The shares are integrated by Gauss's rule instead of being taken from differences of
//! distribution functions, whose rounding grows as the lattice gets finer. The tilt (Gao, Wang 2021 in other
//! words) keeps the transform's rounding relative to the delta that is asked for; what it can be is added.

use super::pld::{Direction, Loss, Release};
use num_complex::Complex64;
use rustfft::FftPlanner;

/// Points of a transform at most.
const POINTS_MAX: usize = 1 << 21;
/// Cells between which one release's outputs are divided, at most.
const CELLS_MAX: f64 = 1e6;
/// What the lattice may add to epsilon, relative to it, where it is at least [`EPSILON_LEAST`].
const PRECISION: f64 = 5e-5;
/// Precision is relative to an epsilon of at least this.
const EPSILON_LEAST: f64 = 0.05;
/// What does not matter, relative to the delta asked for.
const SMALL: f64 = 1e-6;
/// Rounding that is borne, relative to the delta asked for.
const NOISE: f64 = 3e-3;
/// Outputs beyond this many deviations are given up: a chance of less than [`BEYOND`].
const REACH: f64 = 14.0;
/// The chance, in both tails, of outputs beyond [`REACH`].
const BEYOND: f64 = 2e-44;
/// The transform's rounding per binary digit of its length, relative to its largest value.
const ROUNDING: f64 = 4.5e-16;
/// Abscissae and weights of Gauss's rule with eight points on [-1, 1], the positive half (DLMF 3.5.17).
const GAUSS: [(f64, f64); 4] = [
    (0.183_434_642_495_649_8, 0.362_683_783_378_362),
    (0.525_532_409_916_329, 0.313_706_645_877_887_3),
    (0.796_666_477_413_626_7, 0.222_381_034_453_374_5),
    (0.960_289_856_497_536_2, 0.101_228_536_290_376_3),
];

/// One release's loss on the lattice: the probability of each point from `first` on.
struct Masses {
    first: i64,
    chances: Vec<f64>,
    count: f64,
}

/// A schedule's loss on the lattice.
pub(super) struct Lattice {
    /// Distance of its points.
    spacing: f64,
    /// The point of the first mass.
    first: i64,
    /// Probabilities, each tilted by `e^(theta loss - log_scale)`.
    tilted: Vec<f64>,
    /// What rounding can have done to a delta, where it is tilted by 1.
    noise: f64,
    theta: f64,
    log_scale: f64,
    /// The chance of everything that is not there, at most.
    missing: f64,
}

impl Lattice {
    /// The loss of a schedule, fine enough around `epsilon`, tilted by `theta`, good for a delta of about
    /// `delta`. `None` where that takes too many points.
    pub(super) fn new(loss: &Loss, theta: f64, epsilon: f64, delta: f64) -> Option<Self> {
        let steps = loss.steps();
        let precision = PRECISION * epsilon.max(EPSILON_LEAST);
        // Splitting a loss between points adds a variance of spacing^2 / 6 on the average; one that hardly
        // differs from a point by what rare samples leave, the product of both distances.
        let rare = loss.parts().map(|(release, count, _)| release.atom() * count).sum::<f64>();
        let spacing = (12.0 * precision / (theta * steps)).sqrt();
        let spacing = spacing.min(2.0 * precision / (theta * rare).max(f64::MIN_POSITIVE));
        let masses = loss
            .parts()
            .map(|(release, count, end)| masses(release, loss.direction, end, spacing, count))
            .collect::<Option<Vec<_>>>()?;
        let log_moment =
            |theta: f64| masses.iter().map(|m| m.count * m.log_moment(theta, spacing)).sum::<f64>();
        #[expect(clippy::cast_precision_loss, reason = "indices are far below 2^53")]
        let (least, most) = masses.iter().fold((0.0, 0.0), |(least, most), m| {
            let last = m.first as f64 + m.chances.len() as f64;
            (least + m.count * m.first as f64 * spacing, most + m.count * last * spacing)
        });
        // Near the saddle point rounding matters least, further down the window may be shorter.
        let windows = [1.0, 0.8, 0.6, 0.4, 0.2].map(|factor| {
            let theta = theta * factor;
            let at_theta = log_moment(theta);
            let noise = steps * ROUNDING * 24.0 / (2.0 * theta * spacing).sqrt();
            let noisy = at_theta - theta * epsilon + noise.ln() > (NOISE * delta).ln();
            // What lies above the window is bounded by Chernoff and added. What lies a window's length above
            // epsilon comes back in untilted where it should not be, and is kept small.
            let (mut top, mut length) = (most, most - least);
            for factor in [1.1, 1.3, 1.6, 2.0, 3.0, 5.0, 10.0, 30.0] {
                let further = theta * factor;
                let value = log_moment(further) - (SMALL * delta).ln();
                top = top.min(value / further);
                length = length.min((value - further * epsilon) / (further - theta));
            }
            let top = top.max(epsilon + 4.0 * spacing);
            // What lies below comes back in at its top, which is safe, and is made to weigh nothing.
            let bottom = [0.0, 0.3, 0.6, 0.8, 0.95].map(|factor| {
                (at_theta - log_moment(theta * factor) - 25.0) / (theta * (1.0 - factor))
            });
            let bottom = bottom.into_iter().fold(least, f64::max).min(0.0);
            (theta, at_theta, bottom, if noisy { f64::INFINITY } else { length.max(top - bottom) })
        });
        let (theta, log_scale, bottom, length) =
            windows.into_iter().reduce(|a, b| if b.3 < a.3 { b } else { a })?;
        let needed = length / spacing + 4.0;
        #[expect(clippy::cast_precision_loss, reason = "a small whole number")]
        if needed.is_nan() || needed > POINTS_MAX as f64 {
            return None;
        }
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "bounded above, and positive"
        )]
        let points = (needed as usize).next_power_of_two();
        #[expect(clippy::cast_possible_truncation, reason = "bounded by the points")]
        let first = (bottom / spacing).floor() as i64;
        let (tilted, noise) = composed(&masses, spacing, theta, first, points);
        // Over the points above one, each tilted back, by Cauchy and Schwarz.
        let noise = noise / (-(-2.0 * theta * spacing).exp_m1()).sqrt();
        let missing = loss.given_up + steps * BEYOND + SMALL * delta;
        Some(Self { spacing, first, tilted, noise, theta, log_scale, missing })
    }

    /// Lattice points from above, each with the delta there, from above.
    fn deltas(&self) -> impl Iterator<Item = (f64, f64)> {
        let (mut above, mut delta) = (0.0, 0.0);
        let decay = (-self.spacing).exp();
        self.tilted.iter().enumerate().rev().map(move |(i, tilted)| {
            #[expect(clippy::cast_possible_wrap, reason = "bounded by the points")]
            let i = self.first + i as i64;
            #[expect(clippy::cast_precision_loss, reason = "indices are far below 2^53")]
            let (at, below) = (i as f64 * self.spacing, (i - 1) as f64 * self.spacing);
            above += tilted * (self.log_scale - self.theta * at).exp();
            // One point further down, all that lies above loses a little more.
            delta = (1.0 - decay) * above + decay * delta;
            let noise = self.noise * (self.log_scale - self.theta * below).exp();
            (below, delta + noise + self.missing)
        })
    }

    /// An upper bound on delta at `epsilon`.
    pub(super) fn delta(&self, epsilon: f64) -> f64 {
        let mut upper = (f64::INFINITY, self.missing);
        for (at, delta) in self.deltas() {
            if at <= epsilon {
                // Between points delta is linear in e^epsilon.
                let share = (epsilon - at).exp_m1() / (upper.0 - at).exp_m1();
                return (delta + share * (upper.1 - delta)).min(1.0);
            }
            upper = (at, delta);
        }
        1.0
    }

    /// An epsilon that suffices for `delta`.
    pub(super) fn epsilon(&self, delta: f64) -> f64 {
        if self.missing >= delta {
            return f64::INFINITY;
        }
        let mut upper = (f64::INFINITY, self.missing);
        for (at, found) in self.deltas() {
            if at <= 0.0 && found <= delta {
                return 0.0;
            }
            if found > delta {
                if upper.0.is_infinite() {
                    return f64::INFINITY;
                }
                let share = (delta - upper.1) / (found - upper.1);
                let less = (share * -(at - upper.0).exp_m1()).min(1.0);
                return (upper.0 + (-less).ln_1p()).max(0.0);
            }
            upper = (at, found);
        }
        0.0
    }
}

impl Masses {
    /// `ln E[e^(theta L)]`.
    fn log_moment(&self, theta: f64, spacing: f64) -> f64 {
        let logs = || {
            self.chances.iter().enumerate().filter(|(_, chance)| **chance > 0.0).map(
                move |(i, chance)| {
                    #[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
                    let at = (self.first + i64::try_from(i).unwrap_or(0)) as f64 * spacing;
                    chance.ln() + theta * at
                },
            )
        };
        let largest = logs().fold(f64::NEG_INFINITY, f64::max);
        largest + logs().map(|log| (log - largest).exp()).sum::<f64>().ln()
    }
}

/// One release's loss, split between the lattice points beside each. `None` where there are too many.
fn masses(
    release: Release,
    direction: Direction,
    end: f64,
    spacing: f64,
    count: f64,
) -> Option<Masses> {
    if let Some(atoms) = release.atoms(direction) {
        return split(&atoms, spacing, count);
    }
    let sigma = release.deviation();
    let bottom = -REACH * sigma;
    let top = end.min(1.0 + REACH * sigma);
    let (a, b) = (release.loss(direction, bottom), release.loss(direction, top));
    let (least, most) = (a.min(b), a.max(b));
    if (most - least) / spacing > CELLS_MAX || 4.0 * (top - bottom) / sigma > CELLS_MAX {
        return None;
    }
    #[expect(clippy::cast_possible_truncation, reason = "bounded by what was just checked")]
    let (first, last) = ((least / spacing).floor() as i64, (most / spacing).ceil() as i64);
    // Cells end where the loss passes a lattice point, and are narrow beside the Gaussian.
    #[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
    let mut edges: Vec<f64> = (first..=last)
        .map(|i| release.output(direction, i as f64 * spacing))
        .filter(|x| *x > bottom && *x < top)
        .collect();
    let mut x = bottom;
    while x < top {
        edges.push(x);
        x += sigma / 4.0;
    }
    edges.push(top);
    edges.sort_by(f64::total_cmp);
    let whole = -(-spacing).exp_m1();
    let mut chances = vec![0.0; usize::try_from(last - first + 2).ok()?];
    for cell in edges.windows(2) {
        let (middle, half) = (f64::midpoint(cell[0], cell[1]), (cell[1] - cell[0]) / 2.0);
        // All of the cell lies between the same two points.
        #[expect(clippy::cast_possible_truncation, reason = "within first..=last")]
        let below = ((release.loss(direction, middle) / spacing).floor() as i64).clamp(first, last);
        #[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
        let at = below as f64 * spacing;
        let (mut lower, mut upper) = (0.0, 0.0);
        for (node, weight) in GAUSS {
            for x in [middle - half * node, middle + half * node] {
                let chance = weight * half * release.density(direction, x);
                let over = (release.loss(direction, x) - at).clamp(0.0, spacing);
                let share = -(-over).exp_m1() / whole;
                upper += chance * share;
                lower += chance * (1.0 - share);
            }
        }
        let i = usize::try_from(below - first).ok()?;
        chances[i] += lower;
        chances[i + 1] += upper;
    }
    Some(Masses { first, chances, count })
}

/// The same for losses that are known one by one.
fn split(atoms: &[(f64, f64)], spacing: f64, count: f64) -> Option<Masses> {
    let (least, most) = atoms
        .iter()
        .fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), (loss, _)| (a.min(*loss), b.max(*loss)));
    if (most - least) / spacing > CELLS_MAX {
        return None;
    }
    #[expect(clippy::cast_possible_truncation, reason = "bounded by what was just checked")]
    let (first, last) = ((least / spacing).floor() as i64, (most / spacing).ceil() as i64);
    let mut chances = vec![0.0; usize::try_from(last - first + 2).ok()?];
    for (loss, chance) in atoms {
        #[expect(clippy::cast_possible_truncation, reason = "within first..=last")]
        let below = (loss / spacing).floor() as i64;
        #[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
        let over = (loss - below as f64 * spacing).clamp(0.0, spacing);
        let share = (-over).exp_m1() / (-spacing).exp_m1();
        let i = usize::try_from(below - first).ok()?;
        chances[i] += chance * (1.0 - share);
        chances[i + 1] += chance * share;
    }
    Some(Masses { first, chances, count })
}

/// The tilted probabilities of the sum on `points` points from `first` on, and the root of the sum of squares
/// of what rounding can have done to them.
fn composed(
    masses: &[Masses],
    spacing: f64,
    theta: f64,
    first: i64,
    points: usize,
) -> (Vec<f64>, f64) {
    let mut planner = FftPlanner::new();
    let forward = planner.plan_fft_forward(points);
    let digits = f64::from(points.ilog2()) + 1.0;
    #[expect(clippy::cast_precision_loss, reason = "a small whole number")]
    let length = points as f64;
    let mut product = vec![Complex64::new(1.0, 0.0); points];
    let mut noise = vec![ROUNDING * digits; points];
    let period = i64::try_from(points).unwrap_or(i64::MAX);
    for m in masses {
        let scale = m.log_moment(theta, spacing);
        let mut one = vec![Complex64::new(0.0, 0.0); points];
        for (i, chance) in (m.first..).zip(&m.chances) {
            #[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
            let tilt = (theta * spacing * i as f64 - scale).exp();
            // Whole steps are counted from 0, so that no phase is lost; the sum is known up to the period.
            let place = usize::try_from(i.rem_euclid(period)).unwrap_or(0);
            one[place] += chance * tilt;
        }
        forward.process(&mut one);
        for ((product, noise), one) in product.iter_mut().zip(&mut noise).zip(&one) {
            let size = one.norm().max(1e-200);
            let power = size.powf(m.count);
            *product *= Complex64::from_polar(power, m.count * one.arg());
            *noise += ROUNDING * m.count * (digits / size + 4.0);
        }
    }
    // The root mean square over frequencies is the root of the sum of squares over points.
    let squares = product.iter().zip(&noise).map(|(p, noise)| (p.norm() * noise).powi(2));
    let noise = (squares.sum::<f64>() / length).sqrt();
    planner.plan_fft_inverse(points).process(&mut product);
    let place = |i: i64| usize::try_from(i.rem_euclid(period)).unwrap_or(0);
    let tilted = (first..first + period).map(|i| (product[place(i)].re / length).max(0.0));
    (tilted.collect(), noise)
}

#[cfg(test)]
mod tests {
    use super::super::pld::{Adjacency, Schedule};
    use super::*;
    use crate::dp::sampling::rate;

    fn sampled(sample_rate: f64, noise_multiplier: f64) -> Release {
        Release::PoissonGaussian { sample_rate, noise_multiplier }
    }

    #[test]
    fn few_steps_over_rare_samples_agree_with_quadrature() {
        // Computed for this project by Gauss-Legendre buckets and an exponentially tilted transform in Python,
        // extrapolated from two grids.
        for (q, sigma, steps, delta, truth) in [
            (4.748_386_165_368_113e-5, 0.513_107_804_406_101, 184, 1e-6, 0.214_224),
            (0.003_174_239_356_876_164_6, 0.462_852_350_982_352_06, 3, 1e-6, 4.031_818),
            (0.001_356_954_149_133_708_5, 1.402_475_106_845_072_7, 9, 1e-15, 0.235_048_9),
            (0.000_363_966_720_361_279_4, 0.599_504_241_408_579_3, 71, 1e-8, 1.504_646),
        ] {
            let schedule = Schedule::new(Adjacency::AddOrRemove)
                .poisson_gaussian(rate(q), sigma, steps)
                .expect("valid");
            let found = schedule.epsilon(delta).expect("valid").value();
            assert!(found > truth * (1.0 - 1e-5), "{q} {sigma}: {found} is below {truth}");
            assert!(found < truth * 1.001, "{q} {sigma}: {found} is far above {truth}");
            // What delta says at that epsilon is the same.
            let back = schedule.delta(found).expect("valid").upper;
            assert!((back / delta - 1.0).abs() < 0.05, "{q} {sigma}: {back} for {delta}");
        }
    }

    #[test]
    fn on_the_lattice_a_gaussian_is_hardly_worse_than_its_closed_form() {
        let tail = |x: f64| libm::erfc(x / std::f64::consts::SQRT_2) / 2.0;
        for (sigma, count) in [(2.0, 1.0_f64), (5.0, 30.0), (40.0, 2000.0)] {
            let releases = [(Release::Gaussian { noise_multiplier: sigma }, count)];
            for direction in [Direction::Remove, Direction::Add, Direction::Substitute] {
                let units = if direction == Direction::Substitute { 2.0 } else { 1.0 };
                let mu = units * count.sqrt() / sigma;
                let loss = Loss::censored(&releases, direction, 0.0);
                for epsilon in [0.5 * mu, 3.0 * mu, 6.0 * mu] {
                    // Balle, Wang 2018, theorem 8.
                    let (a, b) = (tail(epsilon / mu - mu / 2.0), tail(epsilon / mu + mu / 2.0));
                    let exact = a - epsilon.exp() * b;
                    let theta = loss.saddle(epsilon);
                    let lattice = Lattice::new(&loss, theta, epsilon, exact).expect("short");
                    let found = lattice.delta(epsilon);
                    assert!(found >= exact * (1.0 - 1e-9), "{sigma} {epsilon}: {found} {exact}");
                    assert!(found < exact * 1.02, "{sigma} {epsilon}: {found} {exact}");
                    let back = lattice.epsilon(found);
                    assert!((back / epsilon - 1.0).abs() < 1e-6, "{sigma} {epsilon}: {back}");
                }
            }
        }
    }

    #[test]
    fn an_output_has_the_loss_that_it_was_asked_for() {
        for release in [sampled(0.01, 0.8), sampled(0.6, 3.0), sampled(1.0, 1.5)] {
            for direction in [Direction::Remove, Direction::Add, Direction::Substitute] {
                for x in [-1.5, -0.2, 0.3, 2.0] {
                    let loss = release.loss(direction, x);
                    let found = release.output(direction, loss);
                    assert!((found - x).abs() < 1e-6, "{release:?} {direction:?}: {found} for {x}");
                }
            }
        }
    }

    #[test]
    fn a_loss_split_between_points_keeps_both_probabilities() {
        let masses = masses(sampled(0.05, 0.9), Direction::Remove, f64::INFINITY, 1e-3, 1.0);
        let masses = masses.expect("few cells");
        let total: f64 = masses.chances.iter().sum();
        assert!((total - 1.0).abs() < 1e-12, "{total}");
        // E[e^-L] is the probability under the other data set.
        assert!(masses.log_moment(-1.0, 1e-3).abs() < 1e-12);
    }
}
