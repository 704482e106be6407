//! What was measured, and the file that keeps it: `target/bench/results.json`, from which the page can be made anew.
//!
//! The file is a list of runs. A case that a later run has measured is that run's; the rest is from before, so a row
//! can be measured again, or later, without the others.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::machine::{Distance, Machine};

/// Which side a row of traffic waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Limit {
    /// The driver's: the back-end could do more.
    FrontEnd,
    /// The one that is measured.
    BackEnd,
    /// Both wait, for what is behind the back-end or for each other.
    Neither,
}

/// What is known about a sample besides its value. Each is a column of the page where a topic has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) enum Detail {
    /// Megabytes a second.
    Megabytes,
    /// Percent of the time that the driver's core had frames to move.
    FrontBusy,
    /// Percent of the driver's frames that found the ring full.
    RingFull,
    /// Percent of the time that the back-end had frames to move.
    Busy,
    /// Nanoseconds of processor time that the back-end took for a frame.
    NanosPerFrame,
    /// Kicks for a million frames.
    Kicks,
    /// Calls for a million frames.
    Calls,
    /// System calls for a thousand frames.
    SystemCalls,
    /// Processor seconds for a gigabit: of all that take part, the guest included.
    AllCpu,
    /// Processor seconds for a gigabit: of the back-end alone.
    BackendCpu,
    /// Half of them were not slower, in microseconds.
    P50,
    /// 99 of 100 were not slower, in microseconds.
    P99,
    /// 999 of 1000 were not slower, in microseconds.
    P999,
    /// Percent of one processor.
    Cpu,
    /// Processor seconds of the back-end for a million requests.
    BackendSeconds,
    /// Processor seconds of the driver for a million requests.
    DriverSeconds,
    /// Kicks for a thousand requests.
    KicksPerThousand,
}

impl Detail {
    /// The heading of its column.
    pub(super) fn heading(self) -> &'static str {
        match self {
            Self::Megabytes => "MB/s",
            Self::FrontBusy => "front-end busy %",
            Self::RingFull => "ring full %",
            Self::Busy => "back-end busy %",
            Self::NanosPerFrame => "CPU ns/frame",
            Self::Kicks => "kicks/10⁶ frames",
            Self::Calls => "calls/10⁶ frames",
            Self::SystemCalls => "syscalls/10³ frames",
            Self::AllCpu => "CPU s/Gbit, all",
            Self::BackendCpu => "CPU s/Gbit, back-end",
            Self::P50 => "p50 µs",
            Self::P99 => "p99 µs",
            Self::P999 => "p99.9 µs",
            Self::Cpu => "CPU %",
            Self::BackendSeconds => "CPU s/10⁶, back-end",
            Self::DriverSeconds => "CPU s/10⁶, driver",
            Self::KicksPerThousand => "kicks/10³",
        }
    }
}

/// What one measurement came to.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Figure {
    /// In the topic's unit.
    pub(super) value: f64,
    pub(super) distance: Distance,
    pub(super) limit: Option<Limit>,
    pub(super) details: BTreeMap<Detail, f64>,
}

/// A figure, and of what.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Sample {
    /// The topic's name.
    pub(super) topic: String,
    /// What the sides were compared at.
    pub(super) case: String,
    /// Who was measured.
    pub(super) side: String,
    /// Its place among the sides. The others are compared with the one at 0.
    pub(super) place: usize,
    pub(super) distance: Distance,
    pub(super) value: f64,
    pub(super) limit: Option<Limit>,
    pub(super) details: BTreeMap<Detail, f64>,
}

/// A run of the program: when and where, and its samples in the order in which they were taken.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Run {
    pub(super) machine: Machine,
    pub(super) samples: Vec<Sample>,
    /// What could not be measured, and why.
    pub(super) failures: Vec<String>,
}

/// Reads what was kept; nothing, if there is no file.
pub(super) fn load(path: &Path) -> Result<Vec<Run>> {
    if !path.exists() {
        return Ok(Vec::new());
    }
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_str(&text).with_context(|| format!("{} is not of this version", path.display()))
}

/// Keeps all runs.
pub(super) fn save(path: &Path, runs: &[Run]) -> Result<()> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
    }
    fs::write(path, serde_json::to_string(runs)?).with_context(|| format!("cannot write {}", path.display()))
}

/// The samples that count: of each case those of the last run that has it.
pub(super) fn current(runs: &[Run]) -> Vec<Sample> {
    let later = |index: usize, sample: &Sample| {
        runs[index + 1..]
            .iter()
            .any(|run| run.samples.iter().any(|s| s.topic == sample.topic && s.case == sample.case))
    };
    let counted = runs.iter().enumerate().flat_map(|(index, run)| {
        run.samples.iter().filter(move |sample| !later(index, sample)).cloned().collect::<Vec<_>>()
    });
    counted.collect()
}

/// The samples of one side of one case, between cores at one distance.
#[derive(Clone, Debug)]
pub(super) struct Line<'a> {
    pub(super) case: &'a str,
    pub(super) side: &'a str,
    pub(super) distance: Distance,
    samples: Vec<&'a Sample>,
    /// The side's place among the sides.
    pub(super) place: usize,
    /// How many times as good the first side is.
    pub(super) ratio: Option<f64>,
}

/// What is compared: all lines of a topic, the sides of a case together.
pub(super) fn lines<'a>(samples: &'a [Sample], topic: &str, higher_is_better: bool) -> Vec<Line<'a>> {
    let of_topic: Vec<_> = samples.iter().filter(|s| s.topic == topic).collect();
    let mut all = Vec::new();
    for case in distinct(of_topic.iter().map(|s| s.case.as_str())) {
        let of_case: Vec<_> = of_topic.iter().filter(|s| s.case == case).copied().collect();
        let mut sides = distinct(of_case.iter().map(|s| (s.place, s.side.as_str())));
        sides.sort_unstable();
        for distance in Distance::ALL {
            let mut ours = None;
            for &(place, side) in &sides {
                let samples: Vec<_> =
                    of_case.iter().filter(|s| s.side == side && s.distance == distance).copied().collect();
                let Some(middle) = median(samples.iter().map(|s| s.value)) else { continue };
                if place == 0 {
                    ours = Some(middle);
                }
                let ratio = ours
                    .filter(|_| place > 0)
                    .map(|ours| if higher_is_better { ours / middle } else { middle / ours });
                let ratio = ratio.filter(|ratio| ratio.is_finite());
                all.push(Line { case, side, distance, samples, place, ratio });
            }
        }
    }
    all
}

impl Line<'_> {
    pub(super) fn count(&self) -> usize {
        self.samples.len()
    }

    pub(super) fn min(&self) -> f64 {
        self.values().fold(f64::INFINITY, f64::min)
    }

    pub(super) fn max(&self) -> f64 {
        self.values().fold(f64::NEG_INFINITY, f64::max)
    }

    /// A line has samples.
    pub(super) fn median(&self) -> f64 {
        median(self.values()).unwrap_or(f64::NAN)
    }

    /// The middle value of a detail.
    pub(super) fn detail(&self, detail: Detail) -> Option<f64> {
        median(self.samples.iter().filter_map(|s| s.details.get(&detail).copied()))
    }

    /// Which details some sample has.
    pub(super) fn details(&self) -> impl Iterator<Item = Detail> {
        self.samples.iter().flat_map(|s| s.details.keys().copied())
    }

    /// All of them with their middle values, in the order of their columns.
    pub(super) fn all_details(&self) -> impl Iterator<Item = (Detail, f64)> {
        let mut details: Vec<_> = self.details().collect();
        details.sort_unstable();
        details.dedup();
        details.into_iter().filter_map(|detail| Some((detail, self.detail(detail)?)))
    }

    /// Who was the limit in most samples.
    pub(super) fn limit(&self) -> Option<Limit> {
        let count = |limit: &Limit| self.samples.iter().filter(|s| s.limit == Some(*limit)).count();
        let most = [Limit::Neither, Limit::FrontEnd, Limit::BackEnd].into_iter().max_by_key(count)?;
        (count(&most) > 0).then_some(most)
    }

    fn values(&self) -> impl Iterator<Item = f64> {
        self.samples.iter().map(|s| s.value)
    }
}

/// Each value once, in the order of its first occurrence.
pub(super) fn distinct<T: PartialEq>(values: impl Iterator<Item = T>) -> Vec<T> {
    values.fold(Vec::new(), |mut seen, value| {
        if !seen.contains(&value) {
            seen.push(value);
        }
        seen
    })
}

/// The middle value, or the mean of the two in the middle.
pub(super) fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let upper = *values.get(values.len() / 2)?;
    Some(if values.len() % 2 == 1 { upper } else { f64::midpoint(values[values.len() / 2 - 1], upper) })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(crate) fn sample(case: &str, side: &str, distance: Distance, value: f64) -> Sample {
        Sample {
            topic: "switch".into(),
            case: case.into(),
            side: side.into(),
            place: usize::from(side != "ringway"),
            distance,
            value,
            limit: None,
            details: BTreeMap::new(),
        }
    }

    #[test]
    fn medians() {
        let median = |values: &[f64]| median(values.iter().copied());
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
    }

    #[test]
    fn only_like_samples_are_compared() {
        let samples = [
            sample("64 B", "DPDK", Distance::Near, 3.0),
            sample("64 B", "ringway", Distance::Near, 6.0),
            sample("64 B", "DPDK", Distance::Far, 1.0),
            sample("64 B", "ringway", Distance::Near, 8.0),
        ];
        let lines = lines(&samples, "switch", true);
        let seen: Vec<_> =
            lines.iter().map(|l| (l.side, l.distance, l.count(), l.median(), l.ratio)).collect();
        assert_eq!(
            seen,
            [
                ("ringway", Distance::Near, 2, 7.0, None),
                ("DPDK", Distance::Near, 1, 3.0, Some(7.0 / 3.0)),
                ("DPDK", Distance::Far, 1, 1.0, None),
            ]
        );
        assert_eq!((lines[0].min(), lines[0].max()), (6.0, 8.0));
    }

    #[test]
    fn the_lesser_is_the_better_where_it_is_so() {
        let samples =
            [sample("ping", "ringway", Distance::Near, 20.0), sample("ping", "tap", Distance::Near, 30.0)];
        assert_eq!(lines(&samples, "switch", false)[1].ratio, Some(1.5));
    }

    #[test]
    fn a_later_run_replaces_the_cases_that_it_has() {
        let run = |samples: &[Sample]| Run {
            machine: Machine::default(),
            samples: samples.to_vec(),
            failures: Vec::new(),
        };
        let near = Distance::Near;
        let runs = [
            run(&[sample("64 B", "ringway", near, 1.0), sample("1500 B", "ringway", near, 2.0)]),
            run(&[sample("64 B", "ringway", near, 3.0)]),
        ];
        let values: Vec<_> = current(&runs).iter().map(|s| s.value).collect();
        assert_eq!(values, [2.0, 3.0]);
    }

    #[test]
    fn runs_are_kept() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("deep/results.json");
        assert_eq!(load(&path).unwrap(), []);
        let mut sample = sample("64 B", "ringway", Distance::Far, 1.5);
        sample.limit = Some(Limit::FrontEnd);
        sample.details.insert(Detail::Busy, 99.0);
        let runs = [Run { machine: Machine::default(), samples: vec![sample], failures: vec!["why".into()] }];
        save(&path, &runs).unwrap();
        assert_eq!(load(&path).unwrap(), runs);
    }
}
