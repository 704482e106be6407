//! Takes samples: the sides of a comparison in turn, round after round (A B C A B C …), so that a slow drift of the
//! machine meets all of them.
//!
//! A sample during which the machine changed or was disturbed is taken again, up to a limit. A side that fails is told,
//! and after a second failure left out of the rounds that follow; the others go on.

use std::fmt;

use anyhow::Result;
use ringway_testkit::process::is_interrupted;

use super::machine::{Distance, Load, round_trip};
use super::results::{Figure, Sample};

/// Tries for one sample before it is given up.
const ATTEMPTS: u32 = 3;
/// Failures of one side in one case before it is left out.
const FAILURES: u32 = 2;

/// One side in one case, and how to take a sample of it.
pub(super) struct Cell<'a> {
    pub(super) case: String,
    pub(super) side: String,
    pub(super) take: Box<dyn FnMut() -> Result<Figure> + 'a>,
}

impl<'a> Cell<'a> {
    pub(super) fn new(
        case: impl Into<String>,
        side: impl Into<String>,
        take: impl FnMut() -> Result<Figure> + 'a,
    ) -> Self {
        Self { case: case.into(), side: side.into(), take: Box::new(take) }
    }
}

/// What was kept of a topic, and what failed.
#[derive(Default)]
pub(super) struct Taken {
    pub(super) samples: Vec<Sample>,
    pub(super) failures: Vec<String>,
}

impl Taken {
    pub(super) fn extend(&mut self, more: Self) {
        self.samples.extend(more.samples);
        self.failures.extend(more.failures);
    }

    /// Notes what cannot be measured.
    pub(super) fn fail(&mut self, what: &str, why: &anyhow::Error) {
        eprintln!("failed: {why:#}");
        // Further lines are what a peer said, which has no end.
        let why: Vec<String> = error_lines(why).collect();
        self.failures.push(format!("{what}: {}", why.join(": ")));
    }
}

/// The first line of an error and of each of its causes.
fn error_lines(error: &anyhow::Error) -> impl Iterator<Item = String> {
    error.chain().filter_map(|cause| Some(cause.to_string().lines().next()?.to_owned()))
}

/// Takes `rounds` samples of each cell.
pub(super) fn take(topic: &str, mut cells: Vec<Cell<'_>>, rounds: u32) -> Taken {
    let mut taken = Taken::default();
    let mut failed = vec![0; cells.len()];
    for round in 1..=rounds {
        for (place, (cell, failed)) in cells.iter_mut().zip(&mut failed).enumerate() {
            if *failed == FAILURES {
                continue;
            }
            if is_interrupted() {
                return taken;
            }
            eprint!("{topic}: {}, {} {round}/{rounds}: ", cell.case, cell.side);
            match take_one(topic, cell, place) {
                Ok(sample) => taken.samples.extend(sample),
                Err(error) => {
                    *failed += 1;
                    taken.fail(&format!("{topic}: {}, {}", cell.case, cell.side), &error);
                }
            }
        }
    }
    taken
}

/// Takes one sample, again while it is disturbed.
fn take_one(topic: &str, cell: &mut Cell<'_>, place: usize) -> Result<Option<Sample>> {
    for _ in 0..ATTEMPTS {
        match (cell.take)() {
            Ok(Figure { value, distance, limit, details }) => {
                eprintln!("{value:.3}, {distance}");
                let (topic, case, side) = (topic.to_owned(), cell.case.clone(), cell.side.clone());
                return Ok(Some(Sample { topic, case, side, place, distance, value, limit, details }));
            }
            Err(error) if error.is::<Disturbed>() => eprint!("discarded ({error}); "),
            Err(error) => return Err(error),
        }
    }
    eprintln!("given up");
    Ok(None)
}

/// Why a sample does not count.
#[derive(Debug)]
pub(super) struct Disturbed(String);

impl Disturbed {
    pub(super) fn new(why: impl Into<String>) -> Self {
        Self(why.into())
    }
}

impl fmt::Display for Disturbed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Disturbed {}

/// Watches the machine while something is measured.
#[derive(Clone, Copy, Debug)]
pub(super) struct Watch {
    /// The two cores that matter.
    pub(super) cores: [usize; 2],
    /// How much of them others may take, in percent.
    pub(super) others: f64,
}

impl Watch {
    /// How far apart the cores are.
    pub(super) fn distance(&self) -> Result<Distance> {
        round_trip(self.cores).map(Distance::of)
    }

    /// Measures, and says how far apart the cores were; [`Disturbed`] if they moved or others worked.
    pub(super) fn during<T>(&self, measure: impl FnOnce() -> Result<T>) -> Result<(T, Distance)> {
        let before = self.distance()?;
        let load = Load::read(self.cores)?;
        let measured = measure()?;
        let others = Load::read(self.cores)?.others_since(&load);
        let after = self.distance()?;
        if before != after {
            return Err(Disturbed::new(format!("the cores moved: {before}, then {after}")).into());
        }
        if others > self.others {
            return Err(Disturbed::new(format!("others took {others:.0} % of the cores")).into());
        }
        Ok((measured, before))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use anyhow::anyhow;

    use super::*;

    fn figure(value: f64) -> Figure {
        Figure { value, distance: Distance::Near, limit: None, details: BTreeMap::new() }
    }

    #[test]
    fn sides_take_turns() {
        let cells = ["a", "b"].map(|side| Cell::new("case", side, || Ok(figure(1.0))));
        let taken = take("topic", cells.into(), 2);
        let sides: Vec<_> = taken.samples.iter().map(|s| s.side.as_str()).collect();
        assert_eq!(sides, ["a", "b", "a", "b"]);
    }

    #[test]
    fn a_disturbed_sample_is_taken_again() {
        let mut tries = 0;
        let cell = Cell::new("case", "side", || {
            tries += 1;
            if tries == 1 { Err(Disturbed::new("moved").into()) } else { Ok(figure(f64::from(tries))) }
        });
        assert_eq!(take("topic", vec![cell], 1).samples[0].value.to_bits(), 2.0_f64.to_bits());
    }

    #[test]
    fn a_side_that_fails_does_not_stop_the_others() {
        let mut tries = 0;
        let broken = Cell::new("case", "broken", || {
            tries += 1;
            Err(anyhow!("no such program\nand its log").context("cannot start"))
        });
        let fine = Cell::new("case", "fine", || Ok(figure(1.0)));
        let taken = take("topic", vec![broken, fine], 5);
        assert_eq!(taken.samples.len(), 5);
        assert_eq!(taken.failures, ["topic: case, broken: cannot start: no such program"; 2]);
        assert_eq!(tries, 2);
    }
}
