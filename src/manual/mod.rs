//! The manual: what the crate promises, how it keeps it, and what that costs.

#[doc = include_str!("promises.md")]
pub mod promises {}
#[doc = include_str!("writing.md")]
pub mod writing {}
#[doc = include_str!("reading.md")]
pub mod reading {}
#[doc = include_str!("invalidation.md")]
pub mod invalidation {}
#[doc = include_str!("changes.md")]
pub mod changes {}
#[doc = include_str!("coordination.md")]
pub mod coordination {}
#[doc = include_str!("events.md")]
pub mod events {}
#[cfg(feature = "postgres")]
#[doc = include_str!("bus_postgres.md")]
pub mod bus_postgres {}
#[doc = include_str!("figures.md")]
pub mod figures {}
#[doc = include_str!("monitor.md")]
pub mod monitor {}
#[doc = include_str!("durability.md")]
pub mod durability {}
#[doc = include_str!("stores.md")]
pub mod stores {}
#[doc = include_str!("faults.md")]
pub mod faults {}
#[doc = include_str!("operating.md")]
pub mod operating {}
#[doc = include_str!("testing.md")]
pub mod testing {}
#[doc = include_str!("measuring.md")]
pub mod measuring {}
#[doc = include_str!("design.md")]
pub mod design {}
#[doc = include_str!("speed.md")]
pub mod speed {}
#[doc = include_str!("fuzzing.md")]
pub mod fuzzing {}
