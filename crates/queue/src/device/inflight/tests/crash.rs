//! A device that is killed at each of its stores, and the one that starts in its place.
//!
//! ```text
//!   driver (lives on)     add, publish, reclaim      what it lent and has not back: outstanding
//!   device, process 1     …… store ── store ── ✗     killed before its n-th store, for every n
//!   device, process 2     starts on what is there (killed in this as well), takes exactly what is outstanding
//! ```
//!
//! Our driver's half is the witness: it keeps what it lent, and takes a chain that is used twice, or was never lent,
//! for an error.

use super::*;

impl World {
    /// One step of either side. Only the device's stores count; once they are used up it is killed, and gone.
    fn step(&mut self, process: &mut Option<Process>, stores: &mut usize) {
        let n = self.dice.below(1 << 16);
        let is_in_order = self.setup.has(IN_ORDER);
        let Some(Process { mut queue, mut burst, mut in_flight }) = process.take() else { return };
        let survived = match self.dice.below(16) {
            0..5 => {
                self.add();
                Some(())
            }
            5 | 6 => {
                self.reclaim();
                Some(())
            }
            7 | 8 => until_killed(stores, || _ = queue.take(&mut burst, 1 + n % 5).expect("a good ring")),
            9 | 10 => {
                in_flight.extend(next(&mut burst));
                Some(())
            }
            11 | 12 => {
                let which = if is_in_order { 0 } else { n % in_flight.len().max(1) };
                let complete = |(_, has_room, chain)| queue.complete(chain, u32::from(has_room) * 8);
                until_killed(stores, || in_flight.remove(which).map_or((), complete))
            }
            13 => until_killed(stores, || _ = queue.publish()),
            14 => until_killed(stores, || queue.rewind(&mut burst)),
            _ if n.is_multiple_of(2) => until_killed(stores, || _ = queue.arm()),
            // It stops, and leaves what is in flight to the next one.
            _ => {
                let restart = || {
                    let _ = queue.stop();
                    self.start()
                };
                *process = until_killed(stores, restart);
                return;
            }
        };
        *process = survived.map(|()| Process { queue, burst, in_flight });
    }

    /// Starts a process in the place of one that was killed, which is killed too, at every store there is when it
    /// starts. It takes all that is outstanding, nothing else, and in the order in which it was made available.
    fn recover(&mut self) -> Process {
        let mut process = None;
        for stores in 0.. {
            // The driver sees what it sees, and goes on, also while there is no device.
            self.reclaim();
            if self.dice.below(3) == 0 {
                self.add();
            }
            process = until_killed(&mut { stores }, || self.start());
            if process.is_some() {
                break;
            }
        }
        let mut process = process.expect("a process");
        self.reclaim();
        assert_eq!(process.queue.has_available(), !self.outstanding.is_empty());
        let mut taken = Vec::new();
        while process.queue.take(&mut process.burst, 1 + self.dice.below(4)).expect("a good ring") > 0 {
            if self.dice.below(4) == 0 {
                process.queue.rewind(&mut process.burst);
            }
            while let Some(chain) = next(&mut process.burst) {
                taken.push(chain.0);
                process.in_flight.push_back(chain);
            }
        }
        assert!(taken.iter().eq(&self.outstanding), "taken {taken:?}, outstanding {:?}", self.outstanding);
        process
    }

    /// Brings all chains home.
    fn finish(&mut self, mut process: Process) {
        let is_in_order = self.setup.has(IN_ORDER);
        while !self.outstanding.is_empty() {
            process.queue.take(&mut process.burst, 3).expect("a good ring");
            process.in_flight.extend(std::iter::from_fn(|| next(&mut process.burst)));
            // What is outstanding is in flight, or was completed before.
            let which = if is_in_order { 0 } else { self.dice.below(process.in_flight.len().max(1)) };
            if let Some((_, has_room, chain)) = process.in_flight.remove(which) {
                process.queue.complete(chain, u32::from(has_room));
            }
            let _ = process.queue.publish();
            self.reclaim();
        }
        assert_eq!((self.driver.in_flight(), self.driver.free()), (0, self.setup.size));
    }
}

/// A load whose device is killed before its store number `stores`, and again and again after. Whether it was killed.
fn run(setup: Setup, stores: usize, steps: usize) -> bool {
    let mut world = World::new(setup);
    let (mut left, mut was_killed) = (stores, false);
    let mut process = until_killed(&mut left, || world.start());
    for _ in 0..steps {
        if process.is_none() {
            was_killed = true;
            process = Some(world.recover());
            left = world.dice.below(100);
        }
        world.step(&mut process, &mut left);
    }
    let process = process.unwrap_or_else(|| world.recover());
    world.finish(process);
    was_killed
}

/// Kills the device at every store of the same load, until there is none left.
fn kill_at_every_store(setup: Setup, steps: usize) {
    for stores in 0.. {
        match catch_unwind(AssertUnwindSafe(|| run(setup, stores, steps))) {
            Ok(true) => {}
            Ok(false) => {
                assert!(stores > 50, "the load is too small to tell anything");
                return;
            }
            Err(panic) => {
                std::eprintln!("killed before store {stores} of {setup:#x?}");
                resume_unwind(panic);
            }
        }
    }
}

/// Every set of the features that change a ring, at sizes that make it wrap often, before the indices wrap.
fn kill_each(format: u64, sizes: &[u16]) {
    for bits in 0..8 {
        let all = [RING_EVENT_IDX, RING_INDIRECT_DESC, IN_ORDER];
        let features = (0..3).filter(|i| bits >> i & 1 != 0).fold(format, |features, i| features | all[i]);
        for (&size, seed) in sizes.iter().zip(1..) {
            let start = if format == 0 { 0u16.wrapping_sub(size) } else { size - 1 };
            let setup = Setup { size, features, start, seed: seed * 0x100 + bits };
            kill_at_every_store(setup, 400);
        }
    }
}

#[test]
fn a_split_queue_loses_nothing_and_repeats_nothing_when_it_is_killed() {
    kill_each(0, &[1, 2, 8, 16]);
}

#[test]
fn a_packed_queue_loses_nothing_and_repeats_nothing_when_it_is_killed() {
    kill_each(RING_PACKED, &[1, 3, 8, 13]);
}
