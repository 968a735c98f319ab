//! A guest's memory in the document of its device. Its contents stay where they are.

use std::io::ErrorKind;

use serde::{Deserialize, Serialize};

use super::{MAX_REGIONS, Ram, RegionSpec};
use crate::handover::{Exports, FdIndex, HandoverError, Imports};

/// A guest's memory as the VMM has shared it.
#[derive(Debug, Serialize, Deserialize)]
pub(in super::super) struct RamState {
    regions: Vec<RegionState>,
    /// The VMM has taken some of it away.
    #[serde(default)]
    lost: bool,
}

#[derive(Debug, Serialize, Deserialize)]
struct RegionState {
    base: u64,
    vmm_base: u64,
    len: u64,
    offset: u64,
    file: FdIndex,
}

impl Ram {
    pub(in super::super) fn hand_over(
        &self,
        exports: &mut Exports,
    ) -> Result<RamState, HandoverError> {
        let regions = self.regions.iter().map(|region| {
            Ok(RegionState {
                base: region.base,
                vmm_base: region.vmm_base,
                len: region.mapping.len() as u64,
                offset: region.offset,
                file: exports.fd(&region.file)?,
            })
        });
        Ok(RamState {
            regions: regions.collect::<Result<_, HandoverError>>()?,
            lost: self.is_lost(),
        })
    }

    /// Maps the memory again. Memory of which the VMM has taken a part away is [lost](Self::is_lost): that is no
    /// fault of the document.
    pub(in super::super) fn resume(
        state: RamState,
        imports: &mut Imports,
        may_shrink: bool,
    ) -> Result<Self, HandoverError> {
        let RamState { regions, lost } = state;
        if regions.len() > MAX_REGIONS {
            return Err(HandoverError::inconsistent(
                "a guest's memory has too many regions",
            ));
        }
        let mut ram = Self::default();
        for region in regions {
            let RegionState {
                base,
                vmm_base,
                len,
                offset,
                file,
            } = region;
            let file = imports.fd(file)?;
            let spec = RegionSpec {
                base,
                vmm_base,
                len,
                offset,
            };
            match ram.with(spec, file, may_shrink) {
                Ok(more) => ram = more,
                Err(error) if error.kind() == ErrorKind::InvalidData => ram.is_lost = true,
                Err(error) => return Err(HandoverError::io("map the guest's memory")(error)),
            }
        }
        ram.is_lost |= lost;
        Ok(ram)
    }
}
