//! How far each update of a round stands out from the others, by length and by direction.
//!
//! | figure | of an update `u` among `u₁ … uₙ` | who compares updates so |
//! |---|---|---|
//! | norm ratio | `‖u‖ / median(‖u₁‖ … ‖uₙ‖)` | FLAME clips at that median (Nguyen et al. 2022, arXiv 2101.02281, algorithm 1); Sun et al. 2019 (arXiv 1911.07963) at a norm that they choose |
//! | cosine | `⟨u, m⟩ / (‖u‖ ‖m‖)`, `m` the median of each coordinate (Yin et al. 2018, arXiv 1803.01498, definition 1) | FLTrust (Cao et al. 2021, arXiv 2012.13995) with an update that the server has learnt itself, and leaves out whatever is below 0; FoolsGold (Fung et al. 2018, arXiv 1808.04866) and FLAME between pairs |
//!
//! Both middles hold while fewer than half of the updates are bad: each coordinate of the one, and the other, lie between those
//! of good ones. A sign that is turned has another cosine and no other length, a factor another length and no other cosine.
//! Krum (Blanchard et al. 2017, arXiv 1703.02757, section 4) looks at distances, which both of them change.
//!
//! An update is a part of the middle that it is compared with. Of `n` updates that are nothing but noise each has a cosine of
//! about `√(2/(πn))` with their median, and not 0.
//!
//! Norms are the updates' own, and rotation changes none. The median of rotated updates is taken as they are, rotated: it is
//! another point, which is as near to the good ones.

use super::{RuleError, Shape, pairs::as_f64, rows::Rows};
use crate::{aggregate::AggregateError, id::SiteId, study::SITES_MAX};

/// Fewest updates of which one can stand out: of two, neither is in the minority.
pub const OUTLIERS_MIN: u32 = 3;
/// Most updates whose figures an entry of the log holds, however long their sites' names are.
pub const OUTLIERS_MAX: u32 = 512;

/// Digits after the point of whatever is judged.
const DIGITS: usize = 6;
/// What stands in the place of a cosine that there is none of.
const NO_DIRECTION: &str = "none";

/// How far an update stands out, for whoever judges.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Outlier {
    /// Its length, L2.
    pub norm: f64,
    /// The cosine of its angle with the median of each coordinate. `None` where either is zero and has no direction.
    pub cosine: Option<f64>,
}

/// Length and direction of each update, in one pass. What they are sums of is exact.
///
/// # Errors
/// [`AggregateError::Empty`], [`RuleError::TooMany`], and whatever reading gives.
pub fn outliers<E: From<AggregateError>>(
    shape: Shape,
    mut read: impl FnMut(usize, u64, &mut [u8]) -> Result<(), E>,
) -> Result<Vec<Outlier>, E> {
    if shape.updates == 0 {
        return Err(AggregateError::Empty.into());
    }
    let (updates, most) = (shape.updates as u64, u64::from(SITES_MAX));
    if updates > most {
        return Err(
            AggregateError::from(RuleError::TooMany { rule: "median", updates, most }).into()
        );
    }
    let found = Rows::new(&shape).against_median(&mut read)?;
    let length = |square: i128| as_f64(square).sqrt();
    let figures = found.squares.iter().zip(&found.products).map(|(&square, &product)| {
        let both = length(square) * length(found.centre);
        Outlier {
            norm: length(square) * shape.encoding.step(),
            cosine: (both > 0.0).then(|| (as_f64(product) / both).clamp(-1.0, 1.0)),
        }
    });
    Ok(figures.collect())
}

/// What a gate asks of each update.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Its length over the median of their lengths.
    NormRatio,
    /// The cosine of its angle with the median of each coordinate.
    Cosine,
}

impl Standing {
    /// Both.
    pub const ALL: [Self; 2] = [Self::NormRatio, Self::Cosine];

    /// The word that studies, gates and the log use.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NormRatio => "update_norm_ratio",
            Self::Cosine => "update_cosine",
        }
    }

    /// What has that name.
    #[must_use]
    pub fn find(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|s| s.as_str() == name)
    }

    /// Between which values it lies.
    #[must_use]
    pub const fn range(self) -> (f64, f64) {
        match self {
            Self::NormRatio => (0.0, f64::MAX),
            Self::Cosine => (-1.0, 1.0),
        }
    }
}

/// The updates of a round compared with each other, to the digits that the log keeps: whoever judges by the log judges by
/// the same numbers.
#[derive(Clone, Debug, PartialEq)]
pub struct Compared {
    by_site: Vec<(SiteId, Outlier)>,
    /// Of an even number, the mean of the two middle ones.
    median_norm: f64,
}

/// Why nothing is known of how updates compare.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotCompared {
    /// There are too few, or too many for an entry.
    #[error("{0} updates are not {OUTLIERS_MIN} to {OUTLIERS_MAX}, among which one can stand out")]
    Updates(usize),
    /// They are of others.
    #[error("there are figures of {figures} updates, and {updates} were counted")]
    Others {
        /// Updates of which there are figures.
        figures: usize,
        /// Updates that were counted.
        updates: usize,
    },
    /// What is said is not what the log says in such a place.
    #[error("`{line}` is no norm and cosine of the update of {site}, in the digits that are kept")]
    Line {
        /// What is said.
        line: String,
        /// Whose update is next.
        site: SiteId,
    },
}

impl Compared {
    /// Figures of the updates of these sites, who are in the order of their ids.
    ///
    /// # Errors
    /// [`NotCompared`] when there are too few or too many, or not one of each site.
    pub fn new(sites: Vec<SiteId>, figures: Vec<Outlier>) -> Result<Self, NotCompared> {
        let (updates, figured) = (sites.len(), figures.len());
        if figured != updates {
            return Err(NotCompared::Others { figures: figured, updates });
        }
        if updates < OUTLIERS_MIN as usize || updates > OUTLIERS_MAX as usize {
            return Err(NotCompared::Updates(updates));
        }
        let figures = figures.into_iter().map(|Outlier { norm, cosine }| Outlier {
            norm: number(&norm_text(norm)).unwrap_or(norm),
            cosine: cosine.map(rounded),
        });
        let by_site: Vec<_> = sites.into_iter().zip(figures).collect();
        let mut norms: Vec<f64> = by_site.iter().map(|(_, o)| o.norm).collect();
        norms.sort_by(f64::total_cmp);
        let median_norm = f64::midpoint(norms[(updates - 1) / 2], norms[updates / 2]);
        Ok(Self { by_site, median_norm })
    }

    /// As the log has them: norm, cosine and name of each site, in the order of their ids.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        let line = |(site, o): &(SiteId, Outlier)| {
            let cosine = o.cosine.map_or_else(|| NO_DIRECTION.to_owned(), cosine_text);
            format!("{} {cosine} {}", norm_text(o.norm), site.name())
        };
        self.by_site.iter().map(line).collect()
    }

    /// What [`Self::lines`] says of the updates of these sites, and nothing that says it in other words.
    ///
    /// # Errors
    /// [`NotCompared`].
    pub fn parse<'a>(
        lines: impl IntoIterator<Item = &'a str>,
        sites: &[SiteId],
    ) -> Result<Self, NotCompared> {
        let lines: Vec<&str> = lines.into_iter().collect();
        let wrong =
            |i: usize| NotCompared::Line { line: lines[i].to_owned(), site: sites[i].clone() };
        if lines.len() != sites.len() {
            return Err(NotCompared::Others { figures: lines.len(), updates: sites.len() });
        }
        let figures = lines.iter().enumerate().map(|(i, line)| {
            let mut words = line.split(' ');
            let mut word = || words.next().unwrap_or_default();
            let norm = number(word()).filter(|norm| norm.is_sign_positive());
            let cosine = match word() {
                NO_DIRECTION => Some(None),
                said => number(said).filter(|cosine| cosine.abs() <= 1.0).map(Some),
            };
            norm.zip(cosine).map(|(norm, cosine)| Outlier { norm, cosine }).ok_or_else(|| wrong(i))
        });
        let found = Self::new(sites.to_vec(), figures.collect::<Result<_, _>>()?)?;
        match found.lines().iter().zip(&lines).position(|(ours, theirs)| ours != theirs) {
            Some(i) => Err(wrong(i)),
            None => Ok(found),
        }
    }

    /// A figure of each update, or why there is none.
    pub fn each(
        &self,
        standing: Standing,
    ) -> impl Iterator<Item = (&SiteId, Result<f64, &'static str>)> {
        self.by_site.iter().map(move |(site, o)| {
            let found = match standing {
                Standing::NormRatio if self.median_norm > 0.0 => {
                    Ok(rounded(o.norm / self.median_norm))
                }
                Standing::NormRatio => Err("the median of the norms is 0"),
                Standing::Cosine => {
                    o.cosine.ok_or("it, or the median, is zero and has no direction")
                }
            };
            (site, found)
        })
    }
}

fn norm_text(norm: f64) -> String {
    format!("{norm:.DIGITS$e}")
}

fn cosine_text(cosine: f64) -> String {
    format!("{cosine:.DIGITS$}")
}

/// A finite number.
fn number(text: &str) -> Option<f64> {
    text.parse().ok().filter(|v: &f64| v.is_finite())
}

/// To the digits that are judged. There is one zero.
fn rounded(v: f64) -> f64 {
    number(&format!("{v:.DIGITS$}")).unwrap_or(v) + 0.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn site(n: usize) -> SiteId {
        format!("spiffe://t/ae-on/ae-az/site/h-{n}").parse().expect("valid")
    }

    fn compared(figures: &[(f64, Option<f64>)]) -> Result<Compared, NotCompared> {
        let sites = (0..figures.len()).map(site).collect();
        let outlier = |&(norm, cosine): &(f64, Option<f64>)| Outlier { norm, cosine };
        Compared::new(sites, figures.iter().map(outlier).collect())
    }

    #[test]
    fn what_the_log_says_is_what_was_judged() {
        let figures = [
            (0.123_456_789, Some(0.987_654_321)),
            (0.2, Some(-1e-9)),
            (0.0, None),
            (12_345.678_9, Some(-0.5)),
        ];
        let found = compared(&figures).expect("four");
        let lines = found.lines();
        assert_eq!(
            lines,
            [
                "1.234568e-1 0.987654 h-0",
                "2.000000e-1 0.000000 h-1",
                "0.000000e0 none h-2",
                "1.234568e4 -0.500000 h-3",
            ]
        );
        let sites: Vec<SiteId> = (0..4).map(site).collect();
        let read = |lines: &[String]| Compared::parse(lines.iter().map(String::as_str), &sites);
        assert_eq!(read(&lines), Ok(found.clone()));
        // The median is (0.1234568 + 0.2) / 2.
        let ratios: Vec<_> = found.each(Standing::NormRatio).map(|(_, found)| found).collect();
        assert_eq!(ratios[2], Ok(0.0));
        assert_eq!(ratios[1], Ok(1.236_641));
        let directions: Vec<_> = found.each(Standing::Cosine).map(|(_, found)| found).collect();
        assert_eq!(directions[3], Ok(-0.5));
        assert!(directions[2].is_err());
        for (i, other) in [
            "1.2345680e-1 0.987654 h-0",
            "1.234568e-1 0.98765 h-0",
            "1.234568e-1 0.987654 h-1",
            "1.234568e-1 0.987654 h-0 ",
            "-1.234568e-1 0.987654 h-0",
            "1.234568e-1 1.987654 h-0",
            "1.234568e-1 -0.000000 h-0",
            "NaN 0.987654 h-0",
            "inf 0.987654 h-0",
            "1.234568e-1",
            "",
        ]
        .into_iter()
        .enumerate()
        {
            let mut lines = lines.clone();
            other.clone_into(&mut lines[0]);
            assert!(matches!(read(&lines), Err(NotCompared::Line { .. })), "{i}: {other}");
        }
        let few = Err(NotCompared::Others { figures: 3, updates: 4 });
        assert_eq!(read(&lines[..3]), few);
    }

    #[test]
    fn of_too_few_or_too_many_nobody_stands_out() {
        assert_eq!(compared(&[(1.0, None); 2]), Err(NotCompared::Updates(2)));
        assert_eq!(compared(&[(1.0, None); 513]), Err(NotCompared::Updates(513)));
        let zeros = compared(&[(0.0, None); 3]).expect("three");
        assert!(zeros.each(Standing::NormRatio).all(|(_, found)| found.is_err()));
    }
}
