//! What the benchmarks of the network and of disks have in common: rows that are measured one after the other, kept in a
//! file, and shown as a part of the page.

use std::path::Path;
use std::time::Instant;

use anyhow::{Result, bail};
use clap::ValueEnum;
use ringway_testkit::process::{is_interrupted, target_dir};

use super::machine::Machine;
use super::results::{self, Run, current};
use super::sampling::Taken;
use super::{Common, page, table};

/// A row: one question, and who answers it.
pub(super) trait Comparison: ValueEnum + Copy + 'static {
    /// Where it is shown, with all of its kind.
    const PART: Part;

    /// As on the command line and in the file of results.
    fn name(self) -> &'static str;
    fn title(self) -> &'static str;
    /// What its values are.
    fn unit(self) -> &'static str;
    fn higher_is_better(self) -> bool;
    /// How it is measured, and how to read it.
    fn about(self) -> &'static str;
}

/// A part of the page, made by a command of its own.
pub(super) struct Part {
    pub(super) name: &'static str,
    pub(super) title: &'static str,
    /// What its tables need said before them, in Markdown.
    pub(super) reading: &'static str,
    /// What its plots' names begin with.
    pub(super) plots: &'static str,
    /// The file of its results, in `target/bench`.
    pub(super) results: &'static str,
    /// Whom ringway is compared with, and in which version.
    pub(super) peers: fn() -> Vec<(&'static str, String)>,
}

/// Measures rows, or shows what was measured before.
pub(super) fn run<C: Comparison>(
    common: &Common,
    rows: &[C],
    measure: impl FnMut(C) -> Result<Taken>,
) -> Result<()> {
    let path = common.results.clone().unwrap_or_else(|| target_dir().join("bench").join(C::PART.results));
    let mut runs = if common.append || common.saved { results::load(&path)? } else { Vec::new() };
    if !common.saved {
        let rows = if rows.is_empty() { C::value_variants() } else { rows };
        measure_rows(rows, measure, &path, &mut runs)?;
    }
    println!("{}", table::render::<C>(&current(&runs)));
    if common.page {
        page::write::<C>(&runs)?;
    }
    Ok(())
}

/// Measures row by row; what there is so far is kept after each.
fn measure_rows<C: Comparison>(
    rows: &[C],
    mut measure: impl FnMut(C) -> Result<Taken>,
    path: &Path,
    runs: &mut Vec<Run>,
) -> Result<()> {
    let machine = Machine::here((C::PART.peers)());
    runs.push(Run { machine, samples: Vec::new(), failures: Vec::new() });
    let this = runs.len() - 1;
    let start = Instant::now();
    for &row in rows {
        eprintln!("--- {} ({:.0} s so far)", row.title(), start.elapsed().as_secs_f64());
        let taken = measure(row).unwrap_or_else(|error| {
            let mut taken = Taken::default();
            taken.fail(row.name(), &error);
            taken
        });
        if is_interrupted() {
            bail!("interrupted; {} has what came before", path.display());
        }
        runs[this].samples.extend(taken.samples);
        runs[this].failures.extend(taken.failures);
        results::save(path, runs)?;
    }
    Ok(())
}
