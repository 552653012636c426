//! The time of the searches of the fault programme (a little in CI, an hour and more when somebody asks for
//! it), and what they tell of what they tried.

use std::fmt::Arguments;
use std::io::Write as _;
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

/// Tells what was tried, of a test that passes too: what `println!` prints the test harness would keep to itself.
///
/// # Panics
/// If standard error cannot be written to.
pub fn say(what: Arguments<'_>) {
    writeln!(std::io::stderr(), "{what}").expect("standard error takes a line");
}
