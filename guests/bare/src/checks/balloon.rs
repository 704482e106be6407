//! A memory balloon: the host says how much memory the guest is to have.

use alloc::boxed::Box;
use alloc::format;
use alloc::sync::Arc;
use alloc::vec;

use ringway_driver::Error;
use ringway_driver::balloon::{Balloon, Options, Statistics};
use ringway_spec::balloon::{DEVICE_ID, S_MEMFREE, S_MEMTOT};

use super::{LIMIT, Tally, Variant, ask, device};
use crate::bus::Slot;
use crate::failure::{Result, ensure};
use crate::interrupts::wait_until;
use crate::memory::{Dma, Spare};

/// The machine's memory, in MiB, and how much of it the balloon takes.
const MACHINE: u32 = 256;
const TAKEN: u32 = 48;
const PAGES_OF_MIB: u32 = 256;

pub(super) fn run<S: Slot>(tally: &mut Tally, slots: &[S], variant: Variant) {
    tally.check("it is filled and emptied", || target(device(slots, DEVICE_ID)?, variant));
    tally.check("free pages are reported", || report(device(slots, DEVICE_ID)?, variant));
    tally.check("statistics are told", || statistics(device(slots, DEVICE_ID)?, variant));
}

fn options<S: Slot>(slot: &S, variant: Variant) -> Options {
    let interrupts = slot.interrupts();
    Options {
        without: variant.without,
        vector: interrupts.queues.entry,
        config_vector: interrupts.config.entry,
        ..Options::default()
    }
}

/// Polls until it is so.
fn poll_until<S: Slot>(
    balloon: &mut Balloon<S::Transport>,
    pages: &mut Spare,
    mut is_so: impl FnMut(&mut Balloon<S::Transport>) -> bool,
) -> Result<bool> {
    let mut polled: core::result::Result<(), Error> = Ok(());
    let is_there = wait_until(LIMIT, || {
        loop {
            polled = balloon.interrupt().and_then(|_| balloon.poll(pages));
            if polled.is_err() || is_so(balloon) {
                return true;
            }
            if !balloon.arm() {
                return false;
            }
        }
    });
    polled?;
    Ok(is_there)
}

fn target<S: Slot>(slot: &S, variant: Variant) -> Result<()> {
    let mut pages = Spare::default();
    let mut balloon = Balloon::new(slot.open()?, Arc::new(Dma), options(slot, variant))?;
    let config = slot.interrupts().config;
    for taken in [TAKEN / 4, TAKEN, TAKEN / 2, 0] {
        let seen = config.seen();
        ask(&format!("balloon {}", MACHINE - taken));
        ensure!(config.wait(seen, LIMIT), "no interrupt tells of the target");
        let wanted = taken * PAGES_OF_MIB;
        let is_there = poll_until::<S>(&mut balloon, &mut pages, |balloon| balloon.actual() == wanted)?;
        ensure!(is_there, "{} pages of {wanted} are in the balloon", balloon.actual());
        ensure!(pages.given_up == wanted as usize, "{} pages were given up", pages.given_up);
        ask(&format!("expect-balloon {}", MACHINE - taken));
    }
    Ok(())
}

fn report<S: Slot>(slot: &S, variant: Variant) -> Result<()> {
    let mut pages = Spare { to_lend: 3, ..Spare::default() };
    let options = Options { reporting: true, ..options(slot, variant) };
    let mut balloon = Balloon::new(slot.open()?, Arc::new(Dma), options)?;
    let reported = balloon.report(&mut pages)?;
    ensure!(reported == 3, "{reported} ranges of 3 are reported");
    let is_there = {
        let mut polled = Ok(());
        wait_until(LIMIT, || {
            polled = balloon.poll(&mut pages);
            let _ = balloon.arm();
            polled.is_err() || pages.returned == 3
        });
        polled?;
        pages.returned == 3
    };
    ensure!(is_there, "{} ranges of 3 came back", pages.returned);
    // The host has taken what was there.
    ensure!(pages.changed == 3, "{} ranges are without what they held", pages.changed);
    Ok(())
}

fn statistics<S: Slot>(slot: &S, variant: Variant) -> Result<()> {
    const FREE: u64 = 0x1234_5000;
    let value = |tag| if tag == S_MEMFREE { FREE } else { u64::from(MACHINE) << 20 };
    let statistics = Statistics { tags: vec![S_MEMFREE, S_MEMTOT], value: Box::new(value) };
    let options = Options { statistics: Some(statistics), ..options(slot, variant) };
    let mut pages = Spare::default();
    let mut balloon = Balloon::new(slot.open()?, Arc::new(Dma), options)?;
    ask(&format!("statistics {FREE}"));
    // The host does one thing after the other: when the balloon is to be filled, it has seen them.
    ask(&format!("balloon {}", MACHINE - TAKEN));
    let wanted = TAKEN * PAGES_OF_MIB;
    let is_there = poll_until::<S>(&mut balloon, &mut pages, |balloon| balloon.actual() == wanted)?;
    ensure!(is_there, "the host has not seen the statistics");
    drop(balloon.stop(&mut pages)?);
    ensure!(pages.given_up == 0, "{} pages did not come back", pages.given_up);
    Ok(())
}
