//! Lines as text, for a terminal.

use std::fmt::Write;

use super::comparison::Comparison;
use super::results::{Limit, Sample, lines};

/// All rows that have samples.
pub(super) fn render<C: Comparison>(samples: &[Sample]) -> String {
    let mut text = String::new();
    for &topic in C::value_variants() {
        let lines = lines(samples, topic.name(), topic.higher_is_better());
        if lines.is_empty() {
            continue;
        }
        let _ = writeln!(
            text,
            "\n{} ({})\n{:<26} {:<24} {:<5} {:>9} {:>9} {:>9} {:>7} {:>3}  notes",
            topic.title(),
            topic.unit(),
            "case",
            "side",
            "cores",
            "min",
            "median",
            "max",
            "ratio",
            "n"
        );
        for line in &lines {
            let ratio = line.ratio.map_or(String::new(), |ratio| format!("{ratio:.2}"));
            let mut notes: Vec<String> =
                line.limit().map(|limit| format!("limit {}", name(limit))).into_iter().collect();
            notes.extend(line.all_details().map(|(d, value)| format!("{} {}", d.heading(), number(value))));
            let _ = writeln!(
                text,
                "{:<26} {:<24} {:<5} {:>9} {:>9} {:>9} {ratio:>7} {:>3}  {}",
                line.case,
                line.side,
                line.distance,
                number(line.min()),
                number(line.median()),
                number(line.max()),
                line.count(),
                notes.join(", ")
            );
        }
    }
    text
}

pub(super) fn name(limit: Limit) -> &'static str {
    match limit {
        Limit::FrontEnd => "front-end",
        Limit::BackEnd => "back-end",
        Limit::Neither => "neither",
    }
}

/// Three digits that say something.
pub(super) fn number(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 1.0 => format!("{value:.2}"),
        size if size >= 0.001 => format!("{value:.3}"),
        _ => format!("{value:.1e}"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::machine::Distance;
    use super::super::results::tests::sample;
    use super::super::topics::Topic;
    use super::*;

    #[test]
    fn numbers_have_three_digits() {
        let numbers = [0.0, 0.000_012, 0.0123, 1.234, 12.34, 123.4].map(number);
        assert_eq!(numbers, ["0", "1.2e-5", "0.012", "1.23", "12.3", "123"]);
    }

    #[test]
    fn a_line_of_the_table() {
        let samples =
            [sample("64 B", "ringway", Distance::Near, 6.0), sample("64 B", "DPDK", Distance::Near, 3.0)];
        let text = render::<Topic>(&samples);
        let last: Vec<_> = text.lines().last().unwrap().split_whitespace().collect();
        assert_eq!(last, ["64", "B", "DPDK", "near", "3.00", "3.00", "3.00", "2.00", "1"]);
        assert!(!text.contains("Echo"), "a topic without samples is not there");
    }
}
