//! Memory, as a table or in slots.

use crate::frontend::{Frontend, FrontendError, Memory};
use crate::message::{MAX_TABLE_REGIONS, Request, protocol_feature as pf};

impl Frontend {
    /// Gives the back-end memory in addition to what it has.
    ///
    /// # Errors
    /// [`FrontendError::TooManyRegions`], [`FrontendError::Refused`], and those of a connection.
    pub fn add_memory<'a>(
        &mut self,
        memory: impl IntoIterator<Item = &'a Memory>,
    ) -> Result<(), FrontendError> {
        let added: Vec<_> = memory
            .into_iter()
            .map(|memory| Ok((memory.description(), memory.share()?)))
            .collect::<Result<_, FrontendError>>()?;
        let max = self.max_regions()?;
        if (self.memory.len() + added.len()) as u64 > max {
            return Err(FrontendError::TooManyRegions { max });
        }
        if self.has(pf::CONFIGURE_MEM_SLOTS) {
            for (region, file) in added {
                self.call(Request::AddMemReg(region, file.try_clone()?))?;
                self.memory.push((region, file));
            }
            return Ok(());
        }
        let before = self.memory.len();
        self.memory.extend(added);
        // A table that was refused is not there.
        self.set_mem_table().inspect_err(|_| self.memory.truncate(before))
    }

    /// Takes memory back. Nothing in it may be in use.
    ///
    /// # Errors
    /// [`FrontendError::NotShared`], [`FrontendError::Refused`], and those of a connection.
    pub fn remove_memory(&mut self, memory: &Memory) -> Result<(), FrontendError> {
        let region = memory.description();
        let Some(at) = self.memory.iter().position(|(r, _)| *r == region) else {
            return Err(FrontendError::NotShared { gpa: region.gpa });
        };
        if self.has(pf::CONFIGURE_MEM_SLOTS) {
            self.call(Request::RemMemReg(region))?;
            self.memory.remove(at);
            return Ok(());
        }
        let removed = self.memory.remove(at);
        let result = self.set_mem_table();
        if result.is_err() {
            self.memory.insert(at, removed);
        }
        result
    }

    fn set_mem_table(&mut self) -> Result<(), FrontendError> {
        let shared = self.memory.iter().map(|(region, file)| Ok((*region, file.try_clone()?)));
        let table = shared.collect::<Result<_, FrontendError>>()?;
        self.call(Request::SetMemTable(table))
    }

    fn max_regions(&mut self) -> Result<u64, FrontendError> {
        if !self.has(pf::CONFIGURE_MEM_SLOTS) {
            return Ok(MAX_TABLE_REGIONS as u64);
        }
        if let Some(max) = self.max_regions {
            return Ok(max);
        }
        let max = self.ask_number(Request::GetMaxMemSlots)?;
        Ok(*self.max_regions.insert(max))
    }
}
