//! Bars with whiskers, as SVG: a bar is a median, its whisker goes from the least sample to the greatest.
//!
//! Bars lie, so that their names can be read, and those of one case stand together.

use std::fmt::Write;

use super::results::{Line, distinct};
use super::table::number;

const WIDTH: f64 = 760.0;
/// Where bars begin: their names are to the left.
const LEFT: f64 = 200.0;
/// Room for a value behind the longest whisker.
const RIGHT: f64 = 70.0;
const BAR: f64 = 16.0;
const GAP: f64 = 3.0;
/// Between two cases, with room for the name of one.
const CASE: f64 = 26.0;
const TOP: f64 = 44.0;
const BOTTOM: f64 = 10.0;
/// A color for each side of a case.
const COLORS: [&str; 5] = ["#0b6e99", "#c46a1b", "#7a7a7a", "#5b8c3e", "#8a5a9e"];

/// The plot of a topic's lines.
pub(super) fn render(title: &str, unit: &str, lines: &[Line<'_>]) -> String {
    let most = lines.iter().map(Line::max).fold(0.0, f64::max);
    let scale = if most > 0.0 { (WIDTH - LEFT - RIGHT) / most } else { 0.0 };
    let sides = distinct(lines.iter().map(|line| line.side));
    let mut body = String::new();
    let mut y = TOP;
    let mut group = None;
    for line in lines {
        let this = (line.case, line.distance);
        if group != Some(this) {
            group = Some(this);
            y += CASE;
            let name = escape(&format!("{} ({})", line.case, line.distance));
            let _ = writeln!(body, r#"<text x="8" y="{:.1}" class="case">{name}</text>"#, y - 6.0);
        }
        let color = sides.iter().position(|side| *side == line.side).map_or("", |i| COLORS[i % COLORS.len()]);
        bar(&mut body, line, y, scale, color);
        y += BAR + GAP;
    }
    let height = y + BOTTOM;
    format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH:.0} {height:.0}" font-family="sans-serif" font-size="12">
<style>.case {{ font-weight: bold }} .title {{ font-size: 16px; font-weight: bold }} .value {{ fill: #333 }}</style>
<rect width="100%" height="100%" fill="#fff"/>
<text x="8" y="22" class="title">{}</text>
<text x="8" y="40">{}</text>
<line x1="{LEFT}" y1="{TOP}" x2="{LEFT}" y2="{:.1}" stroke="#333"/>
{body}</svg>
"##,
        escape(title),
        escape(unit),
        height - BOTTOM
    )
}

/// One bar: its name, itself, the whisker, and its value.
fn bar(body: &mut String, line: &Line<'_>, y: f64, scale: f64, color: &str) {
    let (from, to, width) = (LEFT + scale * line.min(), LEFT + scale * line.max(), scale * line.median());
    let (middle, text) = (y + BAR / 2.0, y + BAR - 4.0);
    let side = escape(line.side);
    let value = number(line.median());
    let _ = write!(
        body,
        r##"<text x="{:.1}" y="{text:.1}" text-anchor="end">{side}</text>
<rect x="{LEFT}" y="{y:.1}" width="{width:.1}" height="{BAR}" fill="{color}"/>
<path d="M{from:.1} {middle:.1}H{to:.1}M{from:.1} {:.1}v6M{to:.1} {:.1}v6" stroke="#000" fill="none"/>
<text x="{:.1}" y="{text:.1}" class="value">{value}</text>
"##,
        LEFT - 6.0,
        middle - 3.0,
        middle - 3.0,
        to + 6.0
    );
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::super::machine::Distance;
    use super::super::results::lines;
    use super::super::results::tests::sample;
    use super::*;

    #[test]
    fn bars_and_whiskers() {
        let near = Distance::Near;
        let samples = [
            sample("64 B", "ringway", near, 8.0),
            sample("64 B", "ringway", near, 10.0),
            sample("64 B", "ringway", near, 9.0),
            sample("64 B", "A<B", near, 4.5),
        ];
        let text = render("Echo", "frames", &lines(&samples, "switch", true));
        // 490 pixels are the greatest sample, 10.
        assert!(text.contains(r#"width="441.0""#), "the median, 9\n{text}");
        assert!(text.contains("M592.0 ") && text.contains("H690.0"), "from 8 to 10\n{text}");
        assert!(text.contains("A&lt;B") && text.contains("64 B (near)"));
        assert_eq!(text.matches("<rect").count(), 1 + 2);
    }

    #[test]
    fn nothing_but_zeros() {
        let samples = [sample("idle", "ringway", Distance::Near, 0.0)];
        let text = render("Calls", "calls", &lines(&samples, "switch", false));
        assert!(!text.contains("NaN") && text.contains(">0</text>"), "{text}");
    }
}
