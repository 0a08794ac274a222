//! Which records a figure is of.

use super::{Estimate, Found, Pool, as_f64, float};
use crate::evaluation::Evaluation;
use std::collections::BTreeSet;

/// How long a list of groups' names may be, in bytes.
const LISTED_MAX: usize = 200;

/// Attributes by which records are grouped: one, the other, or both at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct By {
    first: bool,
    second: bool,
}

impl By {
    /// The attribute of this number, from 0.
    #[must_use]
    pub const fn attribute(number: usize) -> Self {
        Self { first: number == 0, second: number != 0 }
    }

    /// The intersection of both.
    pub const BOTH: Self = Self { first: true, second: true };

    /// Whether the attribute of this number counts.
    const fn has(self, number: usize) -> bool {
        if number == 0 { self.first } else { self.second }
    }

    /// Every grouping that so many attributes have.
    #[must_use]
    pub fn every(attributes: usize) -> Vec<Self> {
        let each = (0..attributes).map(Self::attribute);
        each.chain((attributes == 2).then_some(Self::BOTH)).collect()
    }

    /// Its name: the attributes' columns.
    #[must_use]
    pub fn name(self, e: &Evaluation) -> String {
        let columns = e.attributes.iter().enumerate().filter(|(i, _)| self.has(*i));
        columns.map(|(_, a)| a.column.as_str()).collect::<Vec<_>>().join(" x ")
    }
}

/// A group of records: cells of the finest grouping.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// What its records have in common.
    pub name: String,
    pub(super) cells: Vec<usize>,
}

/// Groups that can be compared, and those that are too small.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grouped {
    /// With enough records; smaller ones are merged into a last one, if that has enough.
    pub groups: Vec<Group>,
    /// Names of those that were merged.
    pub merged: Vec<String>,
    /// Names of those that nothing is said about.
    pub withheld: Vec<String>,
    /// Which of them the study declares: all but *other*. Those that hold nobody for certain are not among them: only without noise
    /// is that certain.
    pub small: Vec<String>,
}

impl Grouped {
    /// Whether this group is of several that are too small each.
    #[must_use]
    pub fn is_merged(&self, group: &Group) -> bool {
        !self.merged.is_empty() && self.groups.last() == Some(group)
    }
}

/// Names of groups in one line: as many as it is not too long for, and how many more there are. What the log has of a verdict must
/// not end before its figure.
#[must_use]
pub(crate) fn listed<'a>(names: impl ExactSizeIterator<Item = &'a str>) -> String {
    let (all, mut list, mut told) = (names.len(), String::new(), 0);
    for name in names {
        if list.len() + name.len() > LISTED_MAX {
            break;
        }
        let between = if told == 0 { "" } else { "; " };
        list.extend([between, name]);
        told += 1;
    }
    match (told, all - told) {
        (_, 0) => list,
        (0, more) => format!("{more} groups"),
        (_, more) => format!("{list}; and {more} more"),
    }
}

impl Pool<'_> {
    /// The groups by these attributes.
    #[must_use]
    pub fn groups(&self, by: By) -> Grouped {
        let attributes = &self.e.attributes;
        let (mut all, mut declared) = (Vec::<Group>::new(), BTreeSet::new());
        for cell in 0..self.layout.groups {
            // The first attribute changes slowest.
            let mut rest = cell;
            let (mut names, mut is_other) = (Vec::new(), false);
            for (i, attribute) in attributes.iter().enumerate().rev() {
                if by.has(i) {
                    let group = rest % attribute.len();
                    names.push(attribute.name_of(group));
                    is_other |= group + 1 == attribute.len();
                }
                rest /= attribute.len();
            }
            names.reverse();
            let name = names.join(", ");
            if !is_other {
                declared.insert(name.clone());
            }
            match all.iter_mut().find(|g| g.name == name) {
                Some(group) => group.cells.push(cell),
                None => all.push(Group { name, cells: vec![cell] }),
            }
        }
        let size = |cells: &[usize]| self.size(cells);
        let least = f64::from(self.e.group_min);
        let (groups, small): (Vec<_>, Vec<_>) =
            all.into_iter().partition(|g| size(&g.cells) >= least);
        let names: Vec<String> = small.iter().map(|g| g.name.clone()).collect();
        let is_exact = self.noise(self.main()) <= 0.0;
        let is_nobody = |g: &Group| is_exact && size(&g.cells) < 1.0;
        let asked = small.iter().filter(|g| declared.contains(&g.name) && !is_nobody(g));
        let asked: Vec<String> = asked.map(|g| g.name.clone()).collect();
        let cells: Vec<usize> = small.into_iter().flat_map(|g| g.cells).collect();
        let mut grouped =
            Grouped { groups, merged: Vec::new(), withheld: Vec::new(), small: Vec::new() };
        if size(&cells) >= least && !cells.is_empty() {
            grouped.groups.push(Group { name: "smaller groups".into(), cells });
            grouped.merged = names;
        } else {
            (grouped.withheld, grouped.small) = (names, asked);
        }
        grouped
    }

    pub(super) fn size(&self, cells: &[usize]) -> f64 {
        let (start, each) = self.of_main();
        let of = |cell: usize| {
            let from = start + cell * each;
            self.counts[from..from + each].iter().map(|c| as_f64(*c)).sum::<f64>()
        };
        cells.iter().map(|cell| of(*cell)).sum()
    }

    /// The variance of the noise on a group's size.
    pub(super) fn noise_of_size(&self, cells: &[usize]) -> f64 {
        let (_, each) = self.of_main();
        self.noise(self.main()) * float(cells.len() * each)
    }

    /// How many records these groups have. These are not a sample of anything: the interval is that of the noise.
    pub(super) fn counted(&self, cells: &[usize]) -> Found<Estimate> {
        let (value, noise) = (self.size(cells), self.noise_of_size(cells));
        self.distinct(value, noise)?;
        let reach = self.z(self.tail()) * noise.sqrt();
        Ok(Estimate { value, low: (value - reach).max(0.0), high: value + reach })
    }

    /// Where the main block begins, and how many of its cells belong to one group.
    pub(super) fn of_main(&self) -> (usize, usize) {
        let range = self.layout.range(self.main());
        (range.start, range.len() / self.layout.groups.max(1))
    }

    pub(super) fn everybody(&self) -> Vec<usize> {
        (0..self.layout.groups).collect()
    }
}
