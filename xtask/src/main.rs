//! Chores of the project, run as `cargo xtask`.
#![forbid(unsafe_code)]

mod bench;
mod conformance;
mod demo;
mod peers;

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use clap::{Parser, Subcommand};
use signal_hook::consts::{SIGINT, SIGTERM};

/// Chores of the project.
#[derive(Parser)]
#[command(name = "xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    chore: Chore,
}

/// What to do.
#[derive(Subcommand)]
enum Chore {
    /// Measures ringway against what does the same, in turns on the same two cores
    Bench(Box<bench::Options>),
    /// Measures disks of ringway against what does the same, in turns on the same two cores
    BenchBlock(Box<bench::disks::Options>),
    /// Writes docs/CONFORMANCE.md: which statement of the specifications is proven by which test
    Conformance(conformance::Options),
    /// Shows two Linux guests that exchange traffic through ringway
    Demo(demo::Options),
    /// Writes docs/PEERS.md: what `ringway check` says of several projects' back-ends
    Peers(peers::Options),
}

fn main() -> anyhow::Result<ExitCode> {
    // A chore that is interrupted ends what it started; the second time it ends at once.
    let asked = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register_conditional_shutdown(signal, 130, Arc::clone(&asked))?;
        signal_hook::flag::register(signal, Arc::clone(&asked))?;
    }
    let mut signals = signal_hook::iterator::Signals::new([SIGINT, SIGTERM])?;
    std::thread::spawn(move || signals.forever().for_each(|_| ringway_testkit::process::interrupt()));
    match Cli::parse().chore {
        Chore::Bench(options) => bench::run(options).map(|()| ExitCode::SUCCESS),
        Chore::BenchBlock(options) => bench::disks::run(&options).map(|()| ExitCode::SUCCESS),
        Chore::Conformance(options) => conformance::run(&options),
        Chore::Demo(options) => Ok(demo::run(&options)),
        Chore::Peers(options) => peers::run(&options).map(|()| ExitCode::SUCCESS),
    }
}
