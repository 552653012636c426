//! The file-system seam: a contract, the operating system's files, and a simulated disk for tests.

pub(crate) mod contract;
pub(crate) mod os;
#[cfg(any(test, feature = "testkit"))]
pub(crate) mod simulated;

pub use contract::{Disk, DiskFile};
pub use os::OsDisk;
#[cfg(feature = "testkit")]
pub use simulated::{CrashPolicy, DiskOp, Fault, SECTOR_BYTES, SimDisk, SyncGate};
