//! The priority of threads on busy processors.

/// The nice value that the draining threads add to theirs. On a processor that others want, too, they get about a
/// quarter of it (`sched(7)`: each step is worth a factor of 1.25).
#[cfg(all(target_os = "linux", not(forebay_simulation)))]
const NICENESS: i32 = 5;

/// Lowers the priority of the calling thread, where the system can do that for a single thread. The drain may take its
/// time; a writer who waits for an acknowledgement would otherwise wait until the scheduler ends the drain's slice.
#[cfg(all(target_os = "linux", not(forebay_simulation)))]
pub(crate) fn give_way() {
    // Without the permission the thread drains at the usual priority, which costs writers time and nothing else.
    let _unchanged = rustix::process::nice(NICENESS).is_err();
}

#[cfg(not(all(target_os = "linux", not(forebay_simulation))))]
pub(crate) fn give_way() {}
