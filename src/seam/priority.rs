//! How much of a busy processor a thread gets.

/// How much nicer the draining threads are than others: on a processor that is wanted by both they get about a quarter
/// of it (`sched(7)`: each step is worth a factor of 1.25).
#[cfg(all(target_os = "linux", not(forebay_simulation)))]
const NICENESS: i32 = 5;

/// Makes the calling thread give way to others, where the system can do that for a single thread. What drains may take
/// its time; who waits for an acknowledgement would else wait until the scheduler ends the drain's turn.
#[cfg(all(target_os = "linux", not(forebay_simulation)))]
pub(crate) fn give_way() {
    // Whoever may not change it drains at the usual priority, which costs speed and nothing else.
    let _unchanged = rustix::process::nice(NICENESS).is_err();
}

#[cfg(not(all(target_os = "linux", not(forebay_simulation))))]
pub(crate) fn give_way() {}
