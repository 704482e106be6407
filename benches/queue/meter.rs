//! Two ways to measure: by the clock, and by counting instructions, which no other program disturbs.

#![allow(unsafe_code, reason = "the time-stamp counter is read here")]
#![allow(clippy::cast_precision_loss, reason = "counts are far smaller than 2⁵²")]

use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::cell::{Cell, Contestant, Who};

/// Ticks in a sample: short, so that few samples are interrupted.
const SAMPLE: u64 = 300_000;

/// What [`ticks`] counts.
#[cfg(target_arch = "x86_64")]
pub(crate) const TICKS: &str = "Cycles of the time-stamp counter";
#[cfg(not(target_arch = "x86_64"))]
pub(crate) const TICKS: &str = "Nanoseconds";

#[cfg(target_arch = "x86_64")]
fn ticks() -> u64 {
    // SAFETY: every x86-64 processor has the instruction.
    unsafe { core::arch::x86_64::_rdtsc() }
}

#[cfg(not(target_arch = "x86_64"))]
fn ticks() -> u64 {
    use std::sync::LazyLock;
    use std::time::Instant;
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    START.elapsed().as_nanos() as u64
}

fn time(contestant: &mut dyn Contestant, bursts: u64) -> u64 {
    let start = ticks();
    contestant.run(bursts);
    ticks() - start
}

/// Ticks per chain: medians of `rounds` samples, the contestants taking turns.
pub(crate) fn clock(contestants: &mut [Box<dyn Contestant>], cell: Cell, rounds: usize) -> Vec<f64> {
    let bursts: Vec<u64> = contestants
        .iter_mut()
        .map(|contestant| {
            let (mut bursts, mut took) = (1, 0);
            while took < SAMPLE {
                bursts *= 2;
                took = time(&mut **contestant, bursts);
            }
            bursts
        })
        .collect();
    let mut samples = vec![Vec::with_capacity(rounds); contestants.len()];
    for _ in 0..rounds {
        for (i, contestant) in contestants.iter_mut().enumerate() {
            samples[i].push(time(&mut **contestant, bursts[i]));
        }
    }
    let median = |mut samples: Vec<u64>| {
        samples.sort_unstable();
        samples[samples.len() / 2] as f64
    };
    let chains = |bursts: u64| (bursts * u64::from(cell.burst)) as f64;
    samples.into_iter().map(median).zip(bursts).map(|(ticks, bursts)| ticks / chains(bursts)).collect()
}

/// Instructions per chain of one contestant, which this program runs under valgrind: twice, so that what is not of
/// the chains falls away.
pub(crate) fn instructions(cell: Cell, who: Who) -> Result<f64> {
    const CHAINS: u64 = 1 << 14;
    let bursts = CHAINS / u64::from(cell.burst);
    let more = counted(cell, who, 2 * bursts)?.saturating_sub(counted(cell, who, bursts)?);
    Ok(more as f64 / CHAINS as f64)
}

fn counted(cell: Cell, who: Who, bursts: u64) -> Result<u64> {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(std::env::current_exe()?)
        .args(["--run", &format!("{cell}:{}", who.name()), "--bursts", &bursts.to_string()])
        .stdin(Stdio::null())
        .output()
        .context("cannot run valgrind")?;
    let log = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "valgrind failed: {log}");
    let count = log.lines().find_map(|line| line.split_once("Collected :")).context("no count")?;
    count.1.trim().parse().context("no count")
}
