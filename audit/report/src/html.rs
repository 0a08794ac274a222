//! A view as one HTML page that needs nothing else: no script, no network, fonts and charts inside. Whatever stands
//! in an entry is text here; a content security policy in the page forbids the rest a second time.

use crate::{
    text::html as escape,
    view::{Bars, FactLine, Figure, Grid, Instrument, Line, Look, Part, Row, Shown, View},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use std::fmt::Write as _;

const CSS: &str = include_str!("../template/report.css");

/// A font that the page carries: family, weight, and its WOFF 2.
type Face = (&'static str, u16, &'static [u8]);
const LATIN: [Face; 3] = [
    ("Plex", 400, include_bytes!("../fonts/IBMPlexSans-Regular-Latin1.woff2")),
    ("Plex", 600, include_bytes!("../fonts/IBMPlexSans-SemiBold-Latin1.woff2")),
    ("Plex Mono", 400, include_bytes!("../fonts/IBMPlexMono-Regular-Latin1.woff2")),
];
const ARABIC: [Face; 2] = [
    ("Plex Arabic", 400, include_bytes!("../fonts/IBMPlexSansArabic-Regular.woff2")),
    ("Plex Arabic", 600, include_bytes!("../fonts/IBMPlexSansArabic-SemiBold.woff2")),
];

/// The page.
#[must_use]
pub fn page(view: &View) -> String {
    let mut page = Page { out: String::new(), view };
    page.head();
    page.title();
    page.contents();
    page.out.push_str("<main id=\"content\">\n");
    page.findings();
    page.charts();
    page.timeline();
    page.heading("sections", &view.labels.sections);
    for part in &view.sections {
        page.part(part);
    }
    page.out.push_str("</section>\n");
    page.clauses();
    page.reading();
    page.checking();
    page.out.push_str("</main>\n</body>\n</html>\n");
    page.out
}

struct Page<'a> {
    out: String,
    view: &'a View,
}

impl Page<'_> {
    fn head(&mut self) {
        let view = self.view;
        let mut fonts = String::new();
        for (family, weight, bytes) in
            LATIN.iter().chain(ARABIC.iter().filter(|_| view.dir == "rtl"))
        {
            let _ = writeln!(
                fonts,
                "@font-face{{font-family:\"{family}\";font-weight:{weight};font-display:swap;\
                 src:url(data:font/woff2;base64,{}) format(\"woff2\")}}",
                STANDARD.encode(bytes)
            );
        }
        let (lang, dir) = (view.lang, view.dir);
        let title = format!("{} – {}", view.title, view.origin);
        let _ = write!(
            self.out,
            "<!doctype html>\n<html lang=\"{lang}\" dir=\"{dir}\">\n<head>\n<meta charset=\"utf-8\">\n\
             <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; \
             style-src 'unsafe-inline'; font-src data:\">\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
             <meta name=\"color-scheme\" content=\"light dark\">\n\
             <meta name=\"falaj-source-sha256\" content=\"{}\">\n\
             <title>{}</title>\n<style>\n{fonts}{CSS}</style>\n</head>\n<body>\n\
             <a class=\"skip\" href=\"#content\">{}</a>\n",
            escape(&view.digest),
            escape(&title),
            escape(&view.labels.skip),
        );
    }

    fn title(&mut self) {
        let view = self.view;
        let _ = write!(
            self.out,
            "<header>\n<p class=\"over\"><bdi dir=\"ltr\">{}</bdi></p>\n<h1>{}</h1>\n\
             <p class=\"period\">{}</p>\n<p class=\"muted\">{}</p>\n<dl class=\"counts\">\n",
            escape(&view.origin),
            escape(&view.title),
            escape(&view.period),
            escape(&view.zone),
        );
        for [name, count] in &view.summary {
            let (name, count) = (escape(name), escape(count));
            let _ = writeln!(self.out, "<div><dt>{name}</dt><dd>{count}</dd></div>");
        }
        let _ =
            writeln!(self.out, "</dl>\n<p class=\"disclaimer\">{}</p>", escape(&view.disclaimer));
        let _ = writeln!(self.out, "<h2 class=\"minor\">{}</h2>", escape(&view.labels.source));
        self.lines(&view.made_from);
        self.digest();
        self.out.push_str("</header>\n");
    }

    fn digest(&mut self) {
        let _ = writeln!(
            self.out,
            "<p class=\"digest\"><span>{}</span><bdi dir=\"ltr\" class=\"mono\">{}</bdi></p>",
            escape(&self.view.digest_about),
            escape(&self.view.digest),
        );
    }

    fn lines(&mut self, lines: &[Line]) {
        self.out.push_str("<dl class=\"lines\">\n");
        for line in lines {
            let _ = writeln!(
                self.out,
                "<div><dt>{}</dt><dd>{}</dd></div>",
                escape(&line.name),
                shown(&line.value)
            );
        }
        self.out.push_str("</dl>\n");
    }

    fn contents(&mut self) {
        let labels = &self.view.labels;
        let _ = writeln!(
            self.out,
            "<nav aria-label=\"{0}\">\n<h2 class=\"minor\">{0}</h2>\n<ol>",
            escape(&labels.contents)
        );
        let mut item = |id: &str, text: &str, below: &str| {
            let _ = writeln!(self.out, "<li><a href=\"#{id}\">{}</a>{below}</li>", escape(text));
        };
        item("findings", &labels.findings, "");
        item("charts", &labels.charts, "");
        item("timeline", &labels.timeline, "");
        let mut below = String::from("<ol>");
        for part in &self.view.sections {
            let (id, title) = (&part.id, escape(&part.title));
            let _ = write!(below, "<li><a href=\"#{id}\"><bdi>{id}</bdi> {title}</a></li>");
        }
        item("sections", &labels.sections, &(below + "</ol>"));
        item("clauses", &labels.clauses, "");
        item("reading", &labels.how_to_read, "");
        item("checking", &labels.how_to_check, "");
        self.out.push_str("</ol>\n</nav>\n");
    }

    /// Opens a section; whoever calls closes it.
    fn heading(&mut self, id: &str, title: &str) {
        let title = escape(title);
        let _ =
            writeln!(self.out, "<section aria-labelledby=\"{id}\">\n<h2 id=\"{id}\">{title}</h2>");
    }

    fn about(&mut self, text: &str) {
        if !text.is_empty() {
            let _ = writeln!(self.out, "<p class=\"about\">{}</p>", escape(text));
        }
    }

    fn findings(&mut self) {
        let view = self.view;
        self.heading("findings", &view.labels.findings);
        self.about(&view.findings_about);
        if view.findings_count == 0 {
            let _ = writeln!(self.out, "<p>{}</p>", escape(&view.no_findings));
        }
        for group in &view.findings {
            let _ = writeln!(self.out, "<h3 class=\"found\">{}</h3>", escape(&group.title));
            self.about(&group.about);
            self.grid(&group.grid, &group.title);
        }
        self.about(&view.findings_more);
        self.out.push_str("</section>\n");
    }

    fn timeline(&mut self) {
        self.heading("timeline", &self.view.labels.timeline);
        self.grid(&self.view.timeline, &self.view.labels.timeline);
        self.out.push_str("</section>\n");
    }

    fn charts(&mut self) {
        self.heading("charts", &self.view.labels.charts);
        for figure in &self.view.charts {
            self.figure(figure);
        }
        self.out.push_str("</section>\n");
    }

    fn part(&mut self, part: &Part) {
        let (id, title) = (escape(&part.id), escape(&part.title));
        let _ = writeln!(
            self.out,
            "<section aria-labelledby=\"{id}\">\n<h3 id=\"{id}\"><bdi class=\"no\">{id}</bdi> {title}</h3>"
        );
        self.about(&part.about);
        let labels = &self.view.labels;
        let _ = writeln!(
            self.out,
            "<div class=\"scroll\"><table class=\"facts\"><thead><tr><th scope=\"col\">{}</th>\
             <th scope=\"col\">{}</th><th scope=\"col\">{}</th></tr></thead><tbody>",
            escape(&labels.fact),
            escape(&labels.assurance),
            escape(&labels.entries)
        );
        for fact in &part.facts {
            let _ = writeln!(
                self.out,
                "<tr><th scope=\"row\">{} <bdi dir=\"ltr\" class=\"code\">{}</bdi></th><td>{}</td><td>{}</td></tr>",
                escape(&fact.name),
                escape(&fact.id),
                level(fact.level, &fact.level_text),
                escape(&fact.entries)
            );
        }
        self.out.push_str("</tbody></table></div>\n");
        for grid in &part.grids {
            let _ = writeln!(self.out, "<h4>{}</h4>", escape(&grid.title));
            self.grid(grid, &grid.title);
        }
        for [name, none] in &part.none {
            let (name, none) = (escape(name), escape(none));
            let _ = writeln!(self.out, "<p class=\"none\"><b>{name}</b> – {none}</p>");
        }
        self.out.push_str("</section>\n");
    }

    fn grid(&mut self, grid: &Grid, label: &str) {
        let _ = write!(
            self.out,
            "<div class=\"scroll\" role=\"region\" tabindex=\"0\" aria-label=\"{}\"><table><thead><tr>",
            escape(label)
        );
        for column in &grid.columns {
            let class = if column.look == Look::Number { " class=\"number\"" } else { "" };
            let _ = write!(self.out, "<th scope=\"col\"{class}>{}</th>", escape(&column.name));
        }
        self.out.push_str("</tr></thead><tbody>\n");
        for row in &grid.rows {
            self.out.push_str("<tr>");
            for (cell, column) in row.iter().zip(&grid.columns) {
                let class = if column.look == Look::Number { " class=\"number\"" } else { "" };
                let _ = write!(self.out, "<td{class}>{}</td>", shown(cell));
            }
            self.out.push_str("</tr>\n");
        }
        self.out.push_str("</tbody></table></div>\n");
        if !grid.more.is_empty() {
            let _ = writeln!(self.out, "<p class=\"more\">{}</p>", escape(&grid.more));
        }
    }

    fn clauses(&mut self) {
        let view = self.view;
        self.heading("clauses", &view.labels.clauses);
        self.about(&view.clauses_about);
        self.about(&view.clauses_rule);
        let _ = writeln!(self.out, "<ul class=\"jump\">");
        for instrument in &view.instruments {
            let (id, title) = (escape(&instrument.id), escape(&instrument.title));
            let _ = writeln!(self.out, "<li><a href=\"#{id}\">{title}</a></li>");
        }
        self.out.push_str("</ul>\n");
        for instrument in &view.instruments {
            self.instrument(instrument);
        }
        self.out.push_str("</section>\n");
    }

    fn instrument(&mut self, instrument: &Instrument) {
        let (id, title) = (escape(&instrument.id), escape(&instrument.title));
        let _ =
            writeln!(self.out, "<section aria-labelledby=\"{id}\">\n<h3 id=\"{id}\">{title}</h3>");
        self.about(&instrument.scope);
        self.lines(&instrument.lines);
        let labels = &self.view.labels;
        let heads = [&labels.article, &labels.duty, &labels.evidence, &labels.assurance];
        let _ = write!(
            self.out,
            "<div class=\"scroll\" role=\"region\" tabindex=\"0\" aria-label=\"{title}\"><table class=\"clauses\"><thead><tr>"
        );
        for head in heads {
            let _ = write!(self.out, "<th scope=\"col\">{}</th>", escape(head));
        }
        self.out.push_str("</tr></thead><tbody>\n");
        for row in &instrument.rows {
            self.row(row);
        }
        self.out.push_str("</tbody></table></div>\n</section>\n");
    }

    fn row(&mut self, row: &Row) {
        let (view, id) = (self.view, escape(&row.id));
        let meaning = view.verified.iter().find(|[letter, _]| letter == row.verified);
        let meaning = meaning.map(|[_, meaning]| escape(meaning)).unwrap_or_default();
        let _ = write!(
            self.out,
            "<tr id=\"{id}\"><th scope=\"row\">{} <abbr title=\"{meaning}\">{}</abbr>\
             <bdi dir=\"ltr\" class=\"code\">{id}</bdi></th><td>{}",
            escape(&row.article),
            row.verified,
            escape(&row.duty),
        );
        if !row.note.is_empty() {
            let _ = write!(self.out, "<p class=\"note\">{}</p>", escape(&row.note));
        }
        if !row.maps.is_empty() {
            self.out.push_str("<p class=\"maps\">");
            for (i, [standard, controls]) in row.maps.iter().enumerate() {
                let gap = if i > 0 { " · " } else { "" };
                let (standard, controls) = (escape(standard), escape(controls));
                let _ = write!(self.out, "{gap}<bdi dir=\"ltr\">{standard}: {controls}</bdi>");
            }
            self.out.push_str("</p>");
        }
        self.out.push_str("</td><td>");
        if row.evidence.is_empty() {
            self.out.push('–');
        } else {
            self.out.push_str("<ul class=\"evidence\">");
            for fact in &row.evidence {
                self.fact(fact);
            }
            self.out.push_str("</ul>");
        }
        let _ = write!(self.out, "</td><td>{}", level(row.level, &row.level_text));
        if !row.gap.is_empty() {
            let _ = write!(self.out, "<p class=\"note\">{}</p>", escape(&row.gap));
        }
        self.out.push_str("</td></tr>\n");
    }

    fn fact(&mut self, fact: &FactLine) {
        let section = fact.id.split('.').next().unwrap_or_default();
        let _ = write!(
            self.out,
            "<li><a href=\"#{}\">{}</a> {}</li>",
            escape(section),
            escape(&fact.name),
            level(fact.level, &fact.level_text)
        );
    }

    fn reading(&mut self) {
        let view = self.view;
        self.heading("reading", &view.labels.how_to_read);
        for text in &view.reading {
            let _ = writeln!(self.out, "<p>{}</p>", escape(text));
        }
        let _ =
            writeln!(self.out, "<h3>{}</h3>\n<dl class=\"lines\">", escape(&view.labels.levels));
        for [name, word, meaning] in &view.levels {
            let _ = writeln!(
                self.out,
                "<div><dt>{}</dt><dd>{}</dd></div>",
                level(name, word),
                escape(meaning)
            );
        }
        let _ = writeln!(
            self.out,
            "</dl>\n<h3>{}</h3>\n<dl class=\"lines\">",
            escape(&view.labels.verified)
        );
        for [letter, meaning] in &view.verified {
            let (letter, meaning) = (escape(letter), escape(meaning));
            let _ = writeln!(self.out, "<div><dt>{letter}</dt><dd>{meaning}</dd></div>");
        }
        self.out.push_str("</dl>\n</section>\n");
    }

    fn checking(&mut self) {
        let view = self.view;
        self.heading("checking", &view.labels.how_to_check);
        let _ = writeln!(self.out, "<p>{}</p>", escape(&view.checking));
        self.digest();
        let _ = writeln!(
            self.out,
            "<p class=\"disclaimer\">{}</p>\n</section>",
            escape(&view.disclaimer)
        );
    }

    fn figure(&mut self, figure: &Figure) {
        let _ = writeln!(
            self.out,
            "<figure>\n<figcaption>{} <span class=\"muted\">{}</span></figcaption>",
            escape(&figure.title),
            escape(&figure.unit)
        );
        let mirrored = self.view.dir == "rtl";
        self.out +=
            &if figure.lying { lying(figure, mirrored) } else { standing(figure, mirrored) };
        self.out.push_str("<ul class=\"legend\">");
        for (i, bars) in figure.series.iter().enumerate() {
            let _ = write!(self.out, "<li><i class=\"s{}\"></i>{}</li>", i % 4, escape(&bars.name));
        }
        if let Some(limit) = &figure.limit {
            let _ = write!(self.out, "<li><i class=\"limit\"></i>{}</li>", escape(&limit.name));
        }
        self.out.push_str("</ul>\n");
        if !figure.more.is_empty() {
            let _ = writeln!(self.out, "<p class=\"more\">{}</p>", escape(&figure.more));
        }
        self.out.push_str("</figure>\n");
    }
}

/// A cell. What is Latin in both languages runs from left to right; all else as its own letters do.
fn shown(cell: &Shown) -> String {
    let text = escape(&cell.text);
    match cell.look {
        Look::Id if cell.text.chars().count() <= WHOLE_MAX => {
            format!("<bdi dir=\"ltr\" class=\"mono whole\">{text}</bdi>")
        }
        Look::Id => {
            format!("<bdi dir=\"ltr\" class=\"mono\">{}</bdi>", text.replace('/', "/<wbr>"))
        }
        Look::Hash => format!("<bdi dir=\"ltr\" class=\"mono hash\" title=\"{text}\">{text}</bdi>"),
        Look::Time => {
            let second = escape(&cell.second);
            format!("<span class=\"time\">{text} <span class=\"muted\">{second}</span></span>")
        }
        Look::Word if !cell.second.is_empty() => {
            let second = escape(&cell.second);
            format!("{text} <bdi dir=\"ltr\" class=\"code\">{second}</bdi>")
        }
        Look::Word => text,
        Look::Number | Look::Text => format!("<bdi>{text}</bdi>"),
    }
}

fn level(name: &str, text: &str) -> String {
    format!("<span class=\"level {}\">{}</span>", escape(name), escape(text))
}

/// A name of at most this many characters is not broken over lines.
const WHOLE_MAX: usize = 20;
/// Width of a chart, in its own units.
const WIDTH: f64 = 720.0;
/// Room beside the bars for their names or for the marks of the axis.
const BESIDE: f64 = 210.0;

/// Where a thing of width `w` begins, counted from the side where reading begins.
fn from_start(mirrored: bool, x: f64, w: f64) -> f64 {
    if mirrored { WIDTH - x - w } else { x }
}

fn open(figure: &Figure, height: f64) -> String {
    let alt = escape(&figure.alt);
    format!(
        "<svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-label=\"{alt}\"><title>{alt}</title>\n"
    )
}

fn label(out: &mut String, x: f64, y: f64, anchor: &str, text: &str) {
    let _ = writeln!(
        out,
        "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{}</text>",
        escape(text)
    );
}

/// Bars that lie, one below the other, each with its name.
fn lying(figure: &Figure, mirrored: bool) -> String {
    const BAR: f64 = 18.0;
    const STEP: f64 = 30.0;
    let (n, room) = (length(figure.labels.len()), WIDTH - BESIDE - 60.0);
    let height = n.mul_add(STEP, 34.0);
    let mut out = open(figure, height);
    let scale = |v: f64| if figure.top > 0.0 { v / figure.top * room } else { 0.0 };
    for tick in &figure.ticks {
        let x = from_start(mirrored, BESIDE + scale(tick.at), 0.0);
        let _ = writeln!(
            out,
            "<line class=\"grid\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"0\" y2=\"{:.1}\"/>",
            n * STEP
        );
        label(&mut out, x, n.mul_add(STEP, 18.0), "middle", &tick.text);
    }
    for (i, name) in figure.labels.iter().enumerate() {
        let y = length(i).mul_add(STEP, (STEP - BAR) / 2.0);
        let anchor = if mirrored { "start" } else { "end" };
        label(&mut out, from_start(mirrored, BESIDE - 10.0, 0.0), y + 13.0, anchor, name);
        let mut x = BESIDE;
        for (s, bars) in figure.series.iter().enumerate() {
            let w = scale(value(bars, i));
            let left = from_start(mirrored, x, w);
            let _ = writeln!(
                out,
                "<rect class=\"s{}\" x=\"{left:.1}\" y=\"{y:.1}\" width=\"{w:.1}\" height=\"{BAR}\"/>",
                s % 4
            );
            x += w;
        }
        if let [bars] = figure.series.as_slice() {
            let anchor = if mirrored { "end" } else { "start" };
            let text = bars.texts.get(i).map_or("", String::as_str);
            label(&mut out, from_start(mirrored, x + 6.0, 0.0), y + 13.0, anchor, text);
        }
        if let Some(limit) = &figure.limit {
            let x = from_start(mirrored, BESIDE + scale(value(limit, i)), 0.0);
            let _ = writeln!(
                out,
                "<line class=\"limit\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{:.1}\" y2=\"{:.1}\"/>",
                y - 3.0,
                y + BAR + 3.0
            );
        }
    }
    out + "</svg>\n"
}

/// Bars that stand, along time.
fn standing(figure: &Figure, mirrored: bool) -> String {
    const HEIGHT: f64 = 200.0;
    const AXIS: f64 = 56.0;
    /// At most this many labels below the bars.
    const LABELS: usize = 8;
    let n = figure.labels.len().max(1);
    let mut out = open(figure, HEIGHT + 40.0);
    let room = WIDTH - AXIS - 10.0;
    let step = room / length(n);
    let bar = (step * 0.7).min(56.0);
    let scale = |v: f64| if figure.top > 0.0 { v / figure.top * (HEIGHT - 14.0) } else { 0.0 };
    for tick in &figure.ticks {
        let y = HEIGHT - scale(tick.at);
        let (a, b) = (from_start(mirrored, AXIS, 0.0), from_start(mirrored, WIDTH, 0.0));
        let _ = writeln!(
            out,
            "<line class=\"grid\" x1=\"{a:.1}\" x2=\"{b:.1}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>"
        );
        let anchor = if mirrored { "start" } else { "end" };
        label(&mut out, from_start(mirrored, AXIS - 8.0, 0.0), y + 4.0, anchor, &tick.text);
    }
    let every = n.div_ceil(LABELS);
    for (i, name) in figure.labels.iter().enumerate() {
        let middle = (length(i) + 0.5).mul_add(step, AXIS);
        let mut y = HEIGHT;
        for (s, bars) in figure.series.iter().enumerate() {
            let h = scale(value(bars, i));
            y -= h;
            let left = from_start(mirrored, middle - bar / 2.0, bar);
            let _ = writeln!(
                out,
                "<rect class=\"s{}\" x=\"{left:.1}\" y=\"{y:.1}\" width=\"{bar:.1}\" height=\"{h:.1}\"/>",
                s % 4
            );
        }
        if let Some(limit) = &figure.limit {
            let y = HEIGHT - scale(value(limit, i));
            let (a, b) = (middle - step / 2.0, middle + step / 2.0);
            let (a, b) = (from_start(mirrored, a, 0.0), from_start(mirrored, b, 0.0));
            let _ = writeln!(
                out,
                "<line class=\"limit\" x1=\"{a:.1}\" x2=\"{b:.1}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>"
            );
        }
        if i % every == 0 {
            label(&mut out, from_start(mirrored, middle, 0.0), HEIGHT + 20.0, "middle", name);
        }
    }
    out + "</svg>\n"
}

fn value(bars: &Bars, i: usize) -> f64 {
    bars.values.get(i).copied().unwrap_or_default()
}

/// A count as a length. Charts have few bars, so nothing is lost.
fn length(n: usize) -> f64 {
    u32::try_from(n).unwrap_or(u32::MAX).into()
}
