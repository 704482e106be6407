//! The page: docs/BENCHMARKS.md, with a plot for each row in docs/benchmarks/.
//!
//! It has a part for each command that measures. A line `<!-- NAME -->` begins one; a part is written anew without the
//! others, which stay as they are.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use super::comparison::{Comparison, Part};
use super::disks::Row;
use super::machine::Machine;
use super::plot;
use super::results::{Detail, Line, Run, Sample, current, distinct, lines};
use super::table::{name, number};
use super::topics::Topic;

/// The page and its plots, from the repository's root.
const PAGE: &str = "docs/BENCHMARKS.md";
const PLOTS: &str = "docs/benchmarks";
/// The parts in their order.
const PARTS: [&str; 2] = [Topic::PART.name, Row::PART.name];

/// Writes a part and its plots.
pub(super) fn write<C: Comparison>(runs: &[Run]) -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("xtask has no parent directory")?;
    let samples = current(runs);
    fs::create_dir_all(root.join(PLOTS)).with_context(|| format!("cannot make {PLOTS}"))?;
    for &row in C::value_variants() {
        let lines = lines(&samples, row.name(), row.higher_is_better());
        if !lines.is_empty() {
            let path = root.join(PLOTS).join(plot_name(row));
            fs::write(&path, plot::render(row.title(), row.unit(), &lines))
                .with_context(|| format!("cannot write {}", path.display()))?;
        }
    }
    let before = fs::read_to_string(root.join(PAGE)).unwrap_or_default();
    let page = replace(&before, C::PART.name, &render::<C>(runs, &samples));
    fs::write(root.join(PAGE), page).with_context(|| format!("cannot write {PAGE}"))
}

fn plot_name<C: Comparison>(row: C) -> String {
    format!("{}{}.svg", C::PART.plots, row.name())
}

/// The page with one of its parts anew.
fn replace(page: &str, part: &str, text: &str) -> String {
    let mut result = String::from(HEAD);
    for name in PARTS {
        let text = if name == part { Some(text) } else { find(page, name) };
        if let Some(text) = text {
            let _ = write!(result, "\n{}{}\n", mark(name), text.trim_end());
        }
    }
    result
}

/// A part as it stands on the page.
fn find<'a>(page: &'a str, part: &str) -> Option<&'a str> {
    let (_, rest) = page.split_once(&mark(part))?;
    let end = PARTS.iter().filter_map(|name| rest.find(&mark(name))).min();
    Some(&rest[..end.unwrap_or(rest.len())])
}

/// The line that begins a part.
fn mark(part: &str) -> String {
    format!("<!-- {part} -->\n")
}

fn render<C: Comparison>(runs: &[Run], samples: &[Sample]) -> String {
    let Part { title, reading, .. } = C::PART;
    let mut page = format!("## {title}\n\n");
    for machine in distinct(runs.iter().map(|run| &run.machine)) {
        page.push_str(&describe(machine));
    }
    page.push_str(reading);
    for &row in C::value_variants() {
        let lines = lines(samples, row.name(), row.higher_is_better());
        if !lines.is_empty() {
            section(&mut page, row, &lines);
        }
    }
    let failures = distinct(runs.iter().flat_map(|run| &run.failures));
    if !failures.is_empty() {
        page.push_str("\n### Not measured\n\n");
        for failure in failures {
            let _ = writeln!(page, "- {failure}");
        }
    }
    page
}

fn describe(machine: &Machine) -> String {
    let Machine { date, processor, cores, memory, kernel, versions } = machine;
    let versions: Vec<_> = versions.iter().map(|(name, version)| format!("{name} {version}")).collect();
    format!("- {date}: {cores} × {processor}, {memory}, Linux {kernel}; {}\n", versions.join(", "))
}

/// A row: what it is, its plot, its table.
fn section<C: Comparison>(page: &mut String, row: C, lines: &[Line<'_>]) {
    let _ = write!(
        page,
        "\n### {title}\n\n{}\n\n![{title}: {}](benchmarks/{})\n\n",
        row.about(),
        row.unit(),
        plot_name(row),
        title = row.title()
    );
    let mut details: Vec<Detail> = lines.iter().flat_map(Line::details).collect();
    details.sort_unstable();
    details.dedup();
    let compared = lines.iter().any(|line| line.ratio.is_some());
    let limited = lines.iter().any(|line| line.limit().is_some());

    let mut head = vec!["case".to_owned(), "cores".into(), "side".into(), "n".into(), "min".into()];
    head.extend([format!("median {}", row.unit()), "max".into()]);
    let first = lines.iter().find(|line| line.place == 0).map(|line| line.side);
    head.extend(compared.then(|| format!("{} is", first.unwrap_or_default())));
    head.extend(details.iter().map(|detail| detail.heading().to_owned()));
    head.extend(limited.then(|| "limit".to_owned()));
    let rule: Vec<_> = (0..head.len()).map(|i| if i < 3 { "---" } else { "--:" }).collect();
    let _ = writeln!(page, "| {} |\n|{}|", head.join(" | "), rule.join("|"));
    for line in lines {
        let mut cells = vec![line.case.to_owned(), line.distance.to_string(), line.side.to_owned()];
        cells.extend([line.count().to_string(), number(line.min())]);
        cells.extend([format!("**{}**", number(line.median())), number(line.max())]);
        cells.extend(compared.then(|| line.ratio.map_or(String::new(), |ratio| format!("**{ratio:.2}×**"))));
        cells.extend(details.iter().map(|d| line.detail(*d).map_or("–".to_owned(), number)));
        cells.extend(limited.then(|| line.limit().map_or("–", name).to_owned()));
        let _ = writeln!(page, "| {} |", cells.join(" | "));
    }
}

const HEAD: &str = "# Benchmarks

`make bench` and `make bench-block` each make their part of this page: all sides of a table are measured in one go, and
[benchmark.md](benchmark.md) says how. How to read the tables:

- Sides take turns, sample by sample. A line has the least, the middle and the greatest of its samples; the ratio is between
  the medians, and over 1 where the first side is the better one.
- *near* and *far* is whether the two cores shared a cache while a sample was taken. A virtual machine is moved, and every
  figure with it, so only samples of one kind are compared. A ratio is missing where the first side has none of that kind.
";

#[cfg(test)]
mod tests {
    use super::super::machine::Distance;
    use super::super::results::Limit;
    use super::super::results::tests::sample;
    use super::*;

    #[test]
    fn a_page() {
        let mut ours = sample("64 B, split", "ringway", Distance::Near, 6.0);
        ours.limit = Some(Limit::FrontEnd);
        ours.details.insert(Detail::Busy, 87.5);
        let samples = vec![ours, sample("64 B, split", "OVS-DPDK", Distance::Near, 3.0)];
        let machine = Machine {
            date: "2026-01-02".into(),
            processor: "P".into(),
            cores: 2,
            memory: "8 GB".into(),
            kernel: "6.1".into(),
            versions: vec![("DPDK".into(), "22.11".into())],
        };
        let runs = [Run { machine, samples: samples.clone(), failures: vec!["sink: no luck".into()] }];
        let page = render::<Topic>(&runs, &samples);
        for expected in [
            "- 2026-01-02: 2 × P, 8 GB, Linux 6.1; DPDK 22.11\n",
            "![Guest to guest: million frames/s](benchmarks/switch.svg)",
            "| 64 B, split | near | ringway | 1 | 6.00 | **6.00** | 6.00 |  | 87.5 | front-end |\n",
            "| 64 B, split | near | OVS-DPDK | 1 | 3.00 | **3.00** | 3.00 | **2.00×** | – | – |\n",
            "- sink: no luck\n",
        ] {
            assert!(page.contains(expected), "{expected}\nis not in\n{page}");
        }
        assert!(page.starts_with("## Network\n") && page.contains("### Guest to guest"));
        assert!(!page.contains("### Echo"));
    }

    #[test]
    fn a_part_is_replaced_alone() {
        let page = replace("", "disks", "## Disks\nold\n");
        let page = replace(&page, "network", "## Network\nframes\n");
        let page = replace(&page, "disks", "## Disks\nnew\n");
        let expected = "\n<!-- network -->\n## Network\nframes\n\n<!-- disks -->\n## Disks\nnew\n";
        assert_eq!(page.strip_prefix(HEAD), Some(expected));
        assert_eq!(replace(&page, "disks", "## Disks\nnew\n"), page);
    }
}
