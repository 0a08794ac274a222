//! Groups against each other.

use super::{
    By, Estimate, Found, Group, Grouped, Metric, Missing, Pool, float, listed, rate::Rate,
};

impl Pool<'_> {
    fn rates(&self, metric: Metric, groups: &[Group]) -> Found<Vec<Rate>> {
        groups.iter().map(|g| self.rate(metric, &g.cells)).collect()
    }

    /// The quantile for a bound that holds for so many at once.
    pub(super) fn z_of(&self, many: usize) -> f64 {
        self.z(self.tail() / float(many.max(1)))
    }

    /// The largest difference within each of these lists, and the largest of those; none is larger than `at_most`.
    fn difference(&self, lists: &[Vec<Rate>], at_most: f64) -> Estimate {
        let many = lists.iter().map(Vec::len).sum();
        let (z, all) = (self.z(self.tail()), self.z_of(many));
        let mut found = Estimate { value: 0.0, low: 0.0, high: 0.0 };
        for rates in lists {
            let (low, high) = ends(rates, |r| r.value);
            found.value = found.value.max(high - low);
            let reaches: Vec<(f64, f64)> = rates.iter().map(|r| r.reach(z)).collect();
            for (i, a) in rates.iter().enumerate() {
                for (j, b) in rates.iter().enumerate().filter(|(j, _)| *j != i) {
                    let reach = reaches[i].1.hypot(reaches[j].0);
                    found.high = found.high.max(a.value - b.value + reach);
                }
            }
            let (_, least) = ends(rates, |r| r.ends(all).0);
            let (most, _) = ends(rates, |r| r.ends(all).1);
            found.low = found.low.max(least - most);
        }
        found.high = found.high.clamp(found.value, at_most.max(found.value));
        found
    }

    /// The smallest over the largest within each of these lists, and the smallest of those.
    fn ratio(&self, lists: &[Vec<Rate>]) -> Found<Estimate> {
        let all = self.z_of(2 * lists.iter().map(Vec::len).sum::<usize>());
        let mut found = Estimate { value: 1.0, low: 1.0, high: 1.0 };
        for rates in lists {
            let (low, high) = ends(rates, |r| r.value);
            if high <= 0.0 {
                return Err(Missing::Undefined);
            }
            let (low_down, high_down) = ends(rates, |r| r.ends(all).0.max(0.0));
            let (low_up, high_up) = ends(rates, |r| r.ends(all).1.min(1.0));
            found.value = found.value.min((low / high).max(0.0));
            found.low = found.low.min(low_down / high_up);
            found.high = found.high.min(if high_down > 0.0 { low_up / high_down } else { 1.0 });
        }
        Ok(found)
    }

    /// The smallest of these.
    pub(super) fn worst(&self, rates: &[Rate]) -> Estimate {
        let (z, all) = (self.z(self.tail()), self.z_of(rates.len()));
        let (value, _) = ends(rates, |r| r.value);
        let (low, _) = ends(rates, |r| r.ends(z).0);
        let (high, _) = ends(rates, |r| r.ends(all).1);
        Estimate {
            value: value.clamp(0.0, 1.0),
            low: low.clamp(0.0, 1.0),
            high: high.clamp(0.0, 1.0),
        }
    }

    /// The largest of these, of which none can be more than `most`.
    fn largest(&self, rates: &[Rate], most: f64) -> Estimate {
        let (z, all) = (self.z(self.tail()), self.z_of(rates.len()));
        let (_, value) = ends(rates, |r| r.value);
        let (_, low) = ends(rates, |r| r.ends(all).0);
        let (_, high) = ends(rates, |r| r.ends(z).1);
        let value = value.clamp(0.0, most);
        Estimate { value, low: low.clamp(0.0, value), high: high.clamp(value, most) }
    }

    /// A metric between groups.
    ///
    /// # Errors
    /// [`Missing`]: also when a group's part of it cannot be told from noise, or a declared group is too small to be looked at.
    pub fn between(&self, metric: Metric, by: By) -> Found<Estimate> {
        if !metric.is_for(self.layout.target) {
            return Err(Missing::Undefined);
        }
        let (Grouped { groups, small, .. }, least) = (self.groups(by), self.e.group_min);
        if groups.len() < 2 {
            return Err(Missing::Groups(least));
        }
        if !small.is_empty() {
            return Err(Missing::Small { least, groups: listed(small.iter().map(String::as_str)) });
        }
        let rates = |m: Metric| self.rates(m, &groups);
        let most = metric.most(self.layout.target);
        let false_positives = || -> Found<Vec<Rate>> {
            groups.iter().map(|g| self.false_positives(&g.cells)).collect()
        };
        Ok(match metric {
            Metric::DemographicParityDifference => {
                self.difference(&[rates(Metric::SelectionRate)?], most)
            }
            Metric::DemographicParityRatio => self.ratio(&[rates(Metric::SelectionRate)?])?,
            Metric::EqualOpportunityDifference => self.difference(&[rates(Metric::Recall)?], most),
            Metric::EqualizedOddsDifference => {
                self.difference(&[rates(Metric::Recall)?, false_positives()?], most)
            }
            Metric::EqualizedOddsRatio => {
                self.ratio(&[rates(Metric::Recall)?, false_positives()?])?
            }
            Metric::PredictiveParityDifference => {
                self.difference(&[rates(Metric::Precision)?], most)
            }
            Metric::AccuracyDifference => self.difference(&[rates(Metric::Accuracy)?], most),
            Metric::MaeDifference => self.difference(&[rates(Metric::Mae)?], most),
            Metric::WorstGroupMae => self.largest(&rates(Metric::Mae)?, most),
            Metric::WorstGroupRecall => self.worst(&rates(Metric::Recall)?),
            Metric::WorstGroupAccuracy => self.worst(&rates(Metric::Accuracy)?),
            Metric::WorstGroupEce => {
                let each = groups.iter().map(|g| self.ece(&g.cells)).collect::<Found<Vec<_>>>()?;
                // A maximum of convex figures: at most each one's own upper end; and at least each one's lower.
                let largest =
                    |of: &dyn Fn(&Estimate) -> f64| each.iter().map(of).fold(0.0, f64::max);
                Estimate {
                    value: largest(&|e| e.value),
                    low: largest(&|e| e.low),
                    high: largest(&|e| e.high),
                }
            }
            _ => return Err(Missing::Undefined),
        })
    }
}

/// The smallest and the largest of what rates come to.
fn ends(rates: &[Rate], of: impl Fn(&Rate) -> f64) -> (f64, f64) {
    let each = || rates.iter().map(&of);
    (each().fold(f64::INFINITY, f64::min), each().fold(f64::NEG_INFINITY, f64::max))
}
