//! Charts as they are drawn, and in words for whoever does not see them.

use super::{Bars, Figure, Tick, Writer, cut};
use crate::{
    source::Chart,
    text::{is_decimal, visible},
    when::Local,
    words::Lang,
};
use std::fmt::Write as _;

/// Labels in charts are cut to this many characters.
const LABEL_CHARS_MAX: usize = 34;
/// A number of more digits than this is none that a chart can draw.
const CHARTED_DIGITS_MAX: usize = 15;
/// A chart has at most this many bars with names.
const BARS_MAX: usize = 24;
/// A chart has at most this many bars along time.
const COLUMNS_MAX: usize = 366;

impl Writer<'_> {
    pub(super) fn chart(&self, chart: &Chart) -> Figure {
        let lying = chart.unit == "name";
        let max = if lying { BARS_MAX } else { COLUMNS_MAX };
        let shown = chart.labels.len().min(max);
        let labels: Vec<String> = if lying {
            chart.labels[..shown].iter().map(|l| cut(&visible(l), LABEL_CHARS_MAX)).collect()
        } else {
            chart.labels[..shown].iter().map(|l| self.point(l)).collect()
        };
        let bars = |series: &crate::source::Series| {
            let values = series.values[..shown].iter();
            let drawn = |v: &&String| is_decimal(v) && v.len() <= CHARTED_DIGITS_MAX;
            let value = |v: &String| {
                Some(v).filter(drawn).and_then(|v| v.parse().ok()).map_or(0.0, |n: f64| n.max(0.0))
            };
            let text = |v: &String| {
                if drawn(&v) { self.words.digits(v) } else { cut(&visible(v), LABEL_CHARS_MAX) }
            };
            Bars {
                name: self.series(&series.name),
                values: values.clone().map(value).collect(),
                texts: values.map(text).collect(),
            }
        };
        let is_limit = |s: &&crate::source::Series| s.name == "limit";
        let limit = chart.series.iter().find(is_limit).map(bars);
        let series: Vec<Bars> = chart.series.iter().filter(|s| !is_limit(s)).map(bars).collect();
        let height = |i: usize| {
            let sum: f64 = series.iter().filter_map(|s| s.values.get(i)).sum();
            sum.max(limit.as_ref().and_then(|l| l.values.get(i)).copied().unwrap_or_default())
        };
        let highest = (0..shown).map(height).fold(0.0, f64::max);
        let drawn = || series.iter().chain(&limit);
        let whole = chart.series.iter().flat_map(|s| &s.values).all(|v| !v.contains('.'));
        let (top, ticks) = self.axis(highest, whole);
        let unit = if lying { String::new() } else { self.say(&format!("unit_{}", chart.unit)) };
        let title = self.say(&chart.name);
        let alt = self.alt(&title, &labels, drawn());
        let hidden = i64::try_from(chart.labels.len() - shown).unwrap_or(i64::MAX);
        let more = if hidden > 0 {
            self.words.fill("not_shown", &[("n", &self.words.count(hidden))])
        } else {
            String::new()
        };
        let id = chart.name.clone();
        Figure {
            id: visible(&id),
            title,
            unit,
            lying,
            labels,
            series,
            limit,
            top,
            ticks,
            alt,
            more,
        }
    }

    fn series(&self, name: &str) -> String {
        visible(self.words.find(name).unwrap_or(name))
    }

    /// A point on the axis of time. Hours and minutes are moved to Gulf time; longer spans were counted in UTC.
    fn point(&self, label: &str) -> String {
        Local::from_cut(label).map_or_else(
            || self.words.digits(&visible(label).replace('-', "/")),
            |at| format!("{} {}", at.day_month(self.words), at.minute(self.words)),
        )
    }

    /// Round marks from zero to the first that is not below `highest`.
    fn axis(&self, highest: f64, whole: bool) -> (f64, Vec<Tick>) {
        const TICKS: f64 = 4.0;
        let rough = if highest > 0.0 { highest / TICKS } else { 1.0 / TICKS };
        let power = 10_f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 2.5, 5.0, 10.0].map(|m| m * power).into_iter();
        let step = step.clone().find(|s| *s >= rough * 0.999_999).unwrap_or(power * 10.0);
        // Counts have no half marks.
        let step = if whole { step.ceil() } else { step };
        let decimals = (0..9).find(|d| {
            let scaled = step * 10_f64.powi(*d);
            (scaled - scaled.round()).abs() < 1e-6
        });
        let decimals = usize::try_from(decimals.unwrap_or(9)).unwrap_or(9);
        let mut ticks = Vec::new();
        let mut at = 0.0;
        loop {
            let text = self.words.digits(&format!("{at:.decimals$}"));
            ticks.push(Tick { at, text });
            if at >= highest * 0.999_999 && at > 0.0 {
                return (at, ticks);
            }
            at += step;
        }
    }

    fn alt<'a>(
        &self,
        title: &str,
        labels: &[String],
        series: impl Iterator<Item = &'a Bars>,
    ) -> String {
        /// What is read out is bounded; the tables have the rest.
        const READ_MAX: usize = 40;
        let comma = match self.words.lang() {
            Lang::En => ", ",
            Lang::Ar => "، ",
        };
        let mut out = format!("{title}.");
        for bars in series {
            let values = labels.iter().zip(&bars.texts).take(READ_MAX);
            let values: Vec<_> = values.map(|(label, text)| format!("{label}: {text}")).collect();
            let _ = write!(out, " {}: {}.", bars.name, values.join(comma));
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{source::Source, words::Words};

    #[test]
    fn an_axis_ends_at_or_above_the_highest_bar_and_counts_have_whole_marks() {
        let words = Words::of(Lang::En).expect("words");
        let source = include_bytes!("../../tests/data/report.json");
        let source = Source::join(source, None).expect("the fixture");
        let writer = Writer { words: &words, report: source.report() };
        for (highest, whole, want) in [
            (0.0, true, "0 1"),
            (1.0, true, "0 1"),
            (3.0, true, "0 1 2 3"),
            (210.0, true, "0 100 200 300"),
            (5.61, false, "0 2 4 6"),
            (0.0003, false, "0.0000 0.0001 0.0002 0.0003"),
        ] {
            let (top, ticks) = writer.axis(highest, whole);
            let texts: Vec<_> = ticks.iter().map(|t| t.text.as_str()).collect();
            assert_eq!(texts.join(" "), want, "{highest}");
            assert!(top >= highest * 0.999_999, "{top} is below {highest}");
        }
    }
}
