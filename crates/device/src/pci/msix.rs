//! Messages in place of an interrupt line (PCI Local Bus 3.0, 6.8.2).
//!
//! ```text
//!   raise(vector) ──► pending ──► Message     as soon as MSI-X is enabled, and neither it nor the vector masked
//! ```

use alloc::vec;
use alloc::vec::Vec;

use ringway_spec::pci::msix::{
    ENTRY_ADDRESS_HIGH, ENTRY_ADDRESS_LOW, ENTRY_CONTROL, ENTRY_DATA, ENTRY_MASKED, ENTRY_SIZE,
};

use crate::registers::Action;

/// The table of vectors, and which are pending.
#[derive(Debug, Clone)]
pub(super) struct MsiX {
    /// Address, its upper half, data, control.
    table: Vec<[u32; 4]>,
    pending: Vec<u64>,
    /// How many are.
    count: usize,
}

impl MsiX {
    /// `vectors` vectors, all masked.
    pub(super) fn new(vectors: u16) -> Self {
        let table = vec![[0, 0, 0, ENTRY_MASKED]; vectors.into()];
        Self { table, pending: vec![0; usize::from(vectors).div_ceil(64)], count: 0 }
    }

    /// Whether there is such a vector.
    pub(super) fn has(&self, vector: u16) -> bool {
        usize::from(vector) < self.table.len()
    }

    /// The guest reads 4 bytes of the table, at a multiple of 4.
    pub(super) fn read_table(&self, offset: usize) -> u32 {
        self.table.get(offset / ENTRY_SIZE).map_or(0, |entry| entry[offset % ENTRY_SIZE / 4])
    }

    /// The guest writes 4 bytes of the table, at a multiple of 4.
    pub(super) fn write_table(&mut self, offset: usize, value: u32) {
        let Some(entry) = self.table.get_mut(offset / ENTRY_SIZE) else {
            return;
        };
        entry[offset % ENTRY_SIZE / 4] = match offset % ENTRY_SIZE {
            ENTRY_ADDRESS_LOW => value & !3,
            ENTRY_CONTROL => value & ENTRY_MASKED,
            _ => value,
        };
    }

    /// The guest reads 4 bytes of the pending bits, at a multiple of 4.
    pub(super) fn read_pending(&self, offset: usize) -> u32 {
        self.pending.get(offset / 8).map_or(0, |bits| (bits >> (offset % 8 * 8)) as u32)
    }

    /// A message of this vector is due; none if there is no such vector.
    pub(super) fn raise(&mut self, vector: u16) {
        if self.has(vector) {
            let (word, bit) = place(vector.into());
            self.count += usize::from(self.pending[word] & bit == 0);
            self.pending[word] |= bit;
        }
    }

    /// The next message that can be sent, if the function may send any.
    pub(super) fn next_message(&mut self) -> Option<Action> {
        if self.count == 0 {
            return None;
        }
        let is_due = |vector: &usize| {
            let (word, bit) = place(*vector);
            self.pending[word] & bit != 0 && self.table[*vector][ENTRY_CONTROL / 4] & ENTRY_MASKED == 0
        };
        let vector = (0..self.table.len()).find(is_due)?;
        let (word, bit) = place(vector);
        self.pending[word] &= !bit;
        self.count -= 1;
        let [low, high, data] =
            [ENTRY_ADDRESS_LOW, ENTRY_ADDRESS_HIGH, ENTRY_DATA].map(|field| self.table[vector][field / 4]);
        Some(Action::Message { address: u64::from(high) << 32 | u64::from(low), data })
    }

    /// No message is due any more.
    pub(super) fn forget(&mut self) {
        self.pending.fill(0);
        self.count = 0;
    }
}

/// Which word a vector's pending bit is in, and which bit of it.
fn place(vector: usize) -> (usize, u64) {
    (vector / 64, 1 << (vector % 64))
}
