//! What a chain costs in `ringway-queue`, next to the crates `virtio-queue` (device's half) and `virtio-drivers`
//! (driver's half) at the same work, in the same run.
//!
//! ```text
//!             made available                          used                 reclaimed
//!   both      our driver, or virtio-drivers           our device, or virtio-queue
//!   device    raw stores, the same for all            our device, or virtio-queue
//!   driver    our driver, or virtio-drivers           raw stores, the same for all
//! ```
//!
//! A device takes the chains of a burst, translates each of their buffers to an address here, returns them, and asks
//! once whether to call. A driver adds a burst, asks once whether to kick, and reclaims it. `EVENT_IDX` is negotiated;
//! the device never sleeps, and the driver does not either. No data is touched: this is the cost of the rings alone.
//!
//! The other crates know the split ring only; it stands against each of our formats. The raw stores for a packed ring
//! are more than for a split one, for the device writes over what the driver wrote: 3 cycles a descriptor, which are
//! in our figures.

mod cell;
mod memory;
mod meter;
mod ours;
mod raw;
mod theirs;

use anyhow::{Result, bail};
use clap::Parser;

use cell::{Cell, Contestant, Half, Who};

/// Measures cycles per chain of ringway-queue, virtio-queue and virtio-drivers
#[derive(Parser)]
struct Options {
    /// Measure the cells only whose name contains this, as in `device/3-indirect/32`
    filter: Option<String>,
    /// Samples of each contestant
    #[arg(long, default_value_t = 201)]
    rounds: usize,
    /// Count instructions with valgrind in place of cycles
    #[arg(long)]
    instructions: bool,
    /// Run one contestant, as in `device/1/32:split`, and measure nothing: for profilers
    #[arg(long, value_name = "CELL:NAME")]
    run: Option<String>,
    /// How many bursts of it
    #[arg(long, default_value_t = 1_000_000)]
    bursts: u64,
    /// Given by `cargo bench`
    #[arg(long, hide = true)]
    bench: bool,
}

fn contestant(cell: Cell, who: Who) -> Option<Box<dyn Contestant>> {
    match who {
        Who::Theirs => theirs::contestant(cell),
        _ => Some(ours::contestant(cell, who)),
    }
}

fn main() -> Result<()> {
    let options = Options::parse();
    if let Some(name) = &options.run {
        let mut all = Cell::all().flat_map(|cell| Who::ALL.map(|who| (cell, who)));
        let found = all.find(|(cell, who)| format!("{cell}:{}", who.name()) == *name);
        let Some(mut contestant) = found.and_then(|(cell, who)| contestant(cell, who)) else {
            bail!("there is no {name}");
        };
        contestant.run(options.bursts);
        return Ok(());
    }
    let unit = if options.instructions { "Instructions" } else { meter::TICKS };
    println!(
        "{unit} per chain, and how many times as many theirs takes: virtio-queue, virtio-drivers, or both\n"
    );
    println!("| half | chain | burst | split | packed | packed, in order | theirs |");
    println!("|---|---|--:|--:|--:|--:|--:|");
    for cell in Cell::all() {
        if options.filter.as_ref().is_none_or(|filter| cell.to_string().contains(filter)) {
            let (who, mut contestants): (Vec<_>, Vec<_>) =
                Who::ALL.into_iter().filter_map(|who| Some((who, contestant(cell, who)?))).unzip();
            let costs = if options.instructions {
                who.iter().map(|who| meter::instructions(cell, *who)).collect::<Result<_>>()?
            } else {
                meter::clock(&mut contestants, cell, options.rounds)
            };
            report(cell, &costs);
        }
    }
    Ok(())
}

/// Prints what a chain costs each contestant, in the order of [`Who::ALL`]; theirs may be missing.
fn report(cell: Cell, costs: &[f64]) {
    let half = match cell.half {
        Half::Both => "both",
        Half::Device => "device",
        Half::Driver => "driver",
    };
    let chain = match (cell.segments, cell.indirect) {
        (1, _) => "1 segment",
        (_, false) => "3 segments",
        (_, true) => "3 in a table",
    };
    let (ours, theirs) = costs.split_at(Who::ALL.len() - 1);
    let (ours, theirs): (Vec<_>, _) = match theirs.first() {
        Some(theirs) => (
            ours.iter().map(|ours| format!("{ours:.0} ({:.1}×)", theirs / ours)).collect(),
            format!("{theirs:.0}"),
        ),
        None => (ours.iter().map(|ours| format!("{ours:.0}")).collect(), "–".to_owned()),
    };
    println!("| {half} | {chain} | {} | {} | {theirs} |", cell.burst, ours.join(" | "));
}
