//! Chores of the project, run as `cargo xtask`.
#![forbid(unsafe_code)]

mod bench;
mod demo;

use clap::{Parser, Subcommand};

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
    /// Measures ringway against DPDK's own vhost-user back-end, interleaved on the same two cores
    Bench(bench::Options),
    /// Shows two Linux guests that exchange traffic through ringway
    Demo(demo::Options),
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().chore {
        Chore::Bench(options) => bench::run(&options),
        Chore::Demo(options) => demo::run(&options),
    }
}
