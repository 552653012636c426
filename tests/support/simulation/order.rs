//! Who runs next: a scheduler for shuttle that draws the order of the threads, and takes the next plan when a run ends.
//!
//! Some runs change threads at every step, some stay with one for long, and some follow priorities that change a few
//! times (Burckhardt et al., "A Randomized Scheduler with Probabilistic Guarantees of Finding Bugs", ASPLOS 2010).

use std::collections::BTreeMap;

use shuttle::scheduler::{Schedule, Scheduler, Task, TaskId};

use crate::simulation::plan::Draw;

/// The first thread of a run drives the clock.
const CLOCK: usize = 0;

#[derive(Clone, Copy, Debug)]
enum Style {
    /// Stays with a thread with this chance, in 16ths.
    Staying(u64),
    Priorities,
}

/// Says which order the next run takes; `None` if there is none.
pub type Orders = Box<dyn FnMut() -> Option<u64>>;

pub struct Drawn {
    orders: Orders,
    draw: Draw,
    style: Style,
    /// Time passes at one step in so many; `None`: only when there is nothing else to do.
    clock_in: Option<u64>,
    patient: bool,
    priorities: BTreeMap<usize, u64>,
}

impl Drawn {
    pub fn new(orders: Orders) -> Drawn {
        let style = Style::Priorities;
        Drawn { orders, draw: Draw(0), style, clock_in: None, patient: false, priorities: BTreeMap::new() }
    }

    /// No wait ends before everything else has been done.
    pub fn patient(orders: Orders) -> Drawn {
        Drawn { patient: true, ..Drawn::new(orders) }
    }

    fn choose(&mut self, among: &[usize], current: Option<usize>, yields: bool) -> usize {
        let current = current.filter(|current| among.contains(current));
        let others: Vec<usize> = among.iter().copied().filter(|one| Some(*one) != current).collect();
        match self.style {
            Style::Staying(chance) => match current {
                Some(current) if others.is_empty() || !yields && self.draw.below(16) < chance => current,
                _ => self.draw.of(&others),
            },
            Style::Priorities => {
                for one in among {
                    if !self.priorities.contains_key(one) {
                        self.priorities.insert(*one, (1 << 32) + self.draw.below(1 << 32));
                    }
                }
                if let Some(current) = current
                    && (yields || self.draw.one_in(300))
                {
                    let lowest = self.priorities.values().min().map_or(0, |lowest| lowest.saturating_sub(1));
                    self.priorities.insert(current, lowest);
                }
                among.iter().copied().max_by_key(|one| self.priorities[one]).unwrap()
            }
        }
    }
}

impl Scheduler for Drawn {
    fn new_execution(&mut self) -> Option<Schedule> {
        let order = (self.orders)()?;
        self.draw = Draw(order);
        self.style =
            self.draw.of(&[Style::Staying(0), Style::Staying(8), Style::Staying(14), Style::Priorities]);
        let clock_in = self.draw.of(&[20, 100, 400]);
        self.clock_in = (!self.patient).then_some(clock_in);
        self.priorities.clear();
        Some(Schedule::new(order))
    }

    fn next_task(&mut self, runnable: &[&Task], current: Option<TaskId>, yields: bool) -> Option<TaskId> {
        let id = |task: TaskId| usize::from(task);
        let mut among: Vec<usize> = runnable.iter().map(|task| id(task.id())).collect();
        // Time passes seldom while there is something to do.
        if among.len() > 1 && among.contains(&CLOCK) {
            if self.clock_in.is_some_and(|steps| self.draw.one_in(steps)) {
                return Some(TaskId::from(CLOCK));
            }
            among.retain(|one| *one != CLOCK);
        }
        let chosen = self.choose(&among, current.map(id), yields);
        Some(TaskId::from(chosen))
    }

    fn next_u64(&mut self) -> u64 {
        self.draw.next()
    }
}
