//! The page: docs/BENCHMARKS.md, with a plot for each topic in docs/benchmarks/.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use clap::ValueEnum;

use super::machine::Machine;
use super::plot;
use super::results::{Detail, Line, Run, Sample, current, distinct, lines};
use super::table::{name, number};
use super::topics::Topic;

/// The page and its plots, from the repository's root.
const PAGE: &str = "docs/BENCHMARKS.md";
const PLOTS: &str = "docs/benchmarks";

/// Writes both.
pub(super) fn write(runs: &[Run]) -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("xtask has no parent directory")?;
    let samples = current(runs);
    fs::create_dir_all(root.join(PLOTS)).with_context(|| format!("cannot make {PLOTS}"))?;
    for &topic in Topic::value_variants() {
        let lines = lines(&samples, topic.name(), topic.higher_is_better());
        if !lines.is_empty() {
            let path = root.join(PLOTS).join(format!("{}.svg", topic.name()));
            fs::write(&path, plot::render(topic.title(), topic.unit(), &lines))
                .with_context(|| format!("cannot write {}", path.display()))?;
        }
    }
    fs::write(root.join(PAGE), render(runs, &samples)).with_context(|| format!("cannot write {PAGE}"))
}

fn render(runs: &[Run], samples: &[Sample]) -> String {
    let mut page = String::from(HEAD);
    for machine in distinct(runs.iter().map(|run| &run.machine)) {
        page.push_str(&describe(machine));
    }
    page.push_str(READING);
    for &topic in Topic::value_variants() {
        let lines = lines(samples, topic.name(), topic.higher_is_better());
        if !lines.is_empty() {
            section(&mut page, topic, &lines);
        }
    }
    let failures = distinct(runs.iter().flat_map(|run| &run.failures));
    if !failures.is_empty() {
        page.push_str("\n## Not measured\n\n");
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

/// A topic: what it is, its plot, its table.
fn section(page: &mut String, topic: Topic, lines: &[Line<'_>]) {
    let _ = write!(
        page,
        "\n## {title}\n\n{}\n\n![{title}: {}](benchmarks/{}.svg)\n\n",
        topic.about(),
        topic.unit(),
        topic.name(),
        title = topic.title()
    );
    let mut details: Vec<Detail> = lines.iter().flat_map(Line::details).collect();
    details.sort_unstable();
    details.dedup();
    let compared = lines.iter().any(|line| line.ratio.is_some());
    let limited = lines.iter().any(|line| line.limit().is_some());

    let mut head = vec!["case".to_owned(), "cores".into(), "side".into(), "n".into(), "min".into()];
    head.extend([format!("median {}", topic.unit()), "max".into()]);
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

`make bench` makes this page: it measures everything that is here in one go, and [benchmark.md](benchmark.md) says how.

";

const READING: &str = "
How to read the tables:

- Sides take turns, sample by sample. A line has the least, the middle and the greatest of its samples; the ratio is between
  the medians, and over 1 where the first side is the better one.
- *near* and *far* is whether the two cores shared a cache while a sample was taken. A virtual machine is moved, and every
  figure with it, so only samples of one kind are compared. A ratio is missing where the first side has none of that kind.
- Busy shares are what the programs count as spent on bursts that had frames. *CPU ns/frame* is all processor time that
  a back-end took: polling ones take their whole core always, Ringway sleeps when there has been nothing to do for a while
  (`--busy-poll`).
- *limit* is the side that a row waits for: the one that was busy more than 90 % of the time, the driver first. Where the
  driver sends by itself it is the back-end if the driver often found the ring full. Where the driver is the limit, the
  back-end could do more than the figure says.
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
        let page = render(&runs, &samples);
        for expected in [
            "- 2026-01-02: 2 × P, 8 GB, Linux 6.1; DPDK 22.11\n",
            "![Guest to guest: million frames/s](benchmarks/switch.svg)",
            "| 64 B, split | near | ringway | 1 | 6.00 | **6.00** | 6.00 |  | 87.5 | front-end |\n",
            "| 64 B, split | near | OVS-DPDK | 1 | 3.00 | **3.00** | 3.00 | **2.00×** | – | – |\n",
            "- sink: no luck\n",
        ] {
            assert!(page.contains(expected), "{expected}\nis not in\n{page}");
        }
        assert!(!page.contains("## Echo"));
    }
}
