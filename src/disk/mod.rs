//! The file-system seam: a contract, the operating system's files, and a simulated disk for tests.

pub mod contract;
pub mod os;
#[cfg(any(test, feature = "testkit"))]
pub mod simulated;
