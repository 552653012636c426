//! How long the searches of the fault programme may take: a little in CI, an hour and more when somebody asks for it.

use std::time::Duration;

/// This search's part of `FOREBAY_BUDGET` (seconds for the whole programme), or `default` where none is set.
///
/// # Panics
/// If the variable is not a number of seconds.
pub fn budget(share_percent: u32, default: Duration) -> Duration {
    match std::env::var("FOREBAY_BUDGET") {
        Ok(text) => {
            let whole: u64 = text.parse().expect("FOREBAY_BUDGET is a number of seconds");
            Duration::from_secs(whole) * share_percent / 100
        }
        Err(_) => default,
    }
}
