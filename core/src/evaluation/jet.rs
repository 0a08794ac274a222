//! Numbers that know how they move with four others: forward differentiation, for intervals by the delta method.

use std::ops::{Add, Div, Mul, Sub};

/// A value and its derivative by each of four variables.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Jet {
    pub(super) value: f64,
    pub(super) by: [f64; 4],
}

impl Jet {
    /// The variables themselves.
    pub(super) fn variables(values: [f64; 4]) -> [Self; 4] {
        std::array::from_fn(|i| {
            let by = std::array::from_fn(|j| f64::from(u8::from(i == j)));
            Self { value: values[i], by }
        })
    }

    fn join(self, other: Self, value: f64, (by_self, by_other): (f64, f64)) -> Self {
        let by = std::array::from_fn(|i| by_self * self.by[i] + by_other * other.by[i]);
        Self { value, by }
    }

    /// Its variance where the variables are independent and have these.
    pub(super) fn variance(&self, of: [f64; 4]) -> f64 {
        self.by.iter().zip(of).map(|(d, v)| d * d * v).sum()
    }
}

impl Add for Jet {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        self.join(other, self.value + other.value, (1.0, 1.0))
    }
}

impl Sub for Jet {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        self.join(other, self.value - other.value, (1.0, -1.0))
    }
}

impl Mul for Jet {
    type Output = Self;
    fn mul(self, other: Self) -> Self {
        self.join(other, self.value * other.value, (other.value, self.value))
    }
}

impl Div for Jet {
    type Output = Self;
    fn div(self, other: Self) -> Self {
        let value = self.value / other.value;
        self.join(other, value, (1.0 / other.value, -value / other.value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn derivatives_are_those_of_small_steps() {
        let f = |v: [f64; 4]| {
            let [a, b, c, d] = Jet::variables(v);
            (a * b - c) / (a + d + d)
        };
        let at = [3.0, 1.5, 0.25, 4.0];
        let jet = f(at);
        for i in 0..4 {
            let mut moved = at;
            moved[i] += 1e-6;
            let slope = (f(moved).value - jet.value) / 1e-6;
            assert!((slope - jet.by[i]).abs() < 1e-5, "{i}: {slope} {}", jet.by[i]);
        }
        let variance: f64 = jet.by.iter().map(|d| d * d * 2.0).sum();
        assert!((jet.variance([2.0; 4]) - variance).abs() < 1e-12);
    }
}
