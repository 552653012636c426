//! The plan of a simulated run: drawn from a seed, cut down by a mask, and written as a short text.
//!
//! A plan is a list of atoms (a tenure's faults, its end, each operation of each client); shrinking takes atoms
//! away. The order of the threads is drawn from a second seed, so that a smaller plan can be tried in several orders.

use std::time::Duration;

use forebay::Backpressure;

pub const KEYS: u32 = 3;
pub const CACHES: usize = 2;

/// SplitMix64 (Steele, Lea, Flood 2014): small, and any seed will do.
#[derive(Clone, Debug)]
pub struct Draw(pub u64);

impl Draw {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    pub fn of<T: Clone>(&mut self, among: &[T]) -> T {
        among[usize::try_from(self.below(among.len() as u64)).unwrap()].clone()
    }
}

/// A cache and a key in it.
pub type Place = (usize, u32);

#[derive(Clone, Debug)]
pub enum Op {
    /// Writes (`true`) or removes; through the store or behind; with a large value or a small one.
    Write {
        at: Place,
        puts: bool,
        through: bool,
        large: bool,
    },
    /// A write whose caller goes away after so many polls.
    Cancelled {
        at: Place,
        through: bool,
        polls: u32,
    },
    Batch {
        changes: Vec<(Place, bool)>,
        through: bool,
    },
    Get(Place),
    GetMany(usize),
    Flush,
    Evict(Place),
    Invalidate(Place),
    InvalidateAll(usize),
    /// Somebody else changes the store past the layer, which is told so: of the key alone or of all.
    External {
        key: u32,
        all: bool,
    },
    GetExternal(u32),
    Sleep(Duration),
}

/// The options of a layer.
#[derive(Clone, Debug)]
pub struct Setting {
    pub buffered: bool,
    pub pending_memory_bytes_max: u64,
    pub batch_records_max: usize,
    pub capacity: usize,
    pub coalesce: bool,
    pub linger: Duration,
    pub drain_delay_max: Duration,
    pub queue_records_max: u64,
    pub backpressure: Backpressure,
    pub through_timeout: Duration,
    pub spares_max: usize,
    pub zero_fill: bool,
    pub recycle: bool,
    pub parks: bool,
    /// Write-throughs leave notices in the journal.
    pub changes: bool,
}

/// The behaviour of the store during a tenure.
#[derive(Clone, Debug, Default)]
pub struct Weather {
    /// Of a hundred applies, so many fail before they do anything, and so many after they did it.
    pub lost_percent: u64,
    pub ambiguous_percent: u64,
    pub load_percent: u64,
    /// Applies and loads take up to so long.
    pub slow: Option<Duration>,
    /// A key that is rejected so many times.
    pub rejects: Option<(Place, u32)>,
    /// The disk's n-th operation fails, and the disk with it.
    pub disk_fault: bool,
}

/// The end of a tenure that has something left to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Close,
    Drop,
    /// The process is killed, and the machine goes on.
    Killed,
    PowerCut,
    PowerCutRandom,
    PowerCutTorn,
    /// It loses its disk, and goes on beside the next owner.
    Zombie,
}

#[derive(Clone, Debug)]
pub struct Tenure {
    pub setting: Setting,
    pub weather: Weather,
    pub end: End,
    pub clients: Vec<Vec<Op>>,
}

#[derive(Clone, Debug)]
pub struct Plan {
    pub tenures: Vec<Tenure>,
}

impl Plan {
    pub fn draw(seed: u64) -> Plan {
        let mut draw = Draw(seed);
        let buffered = draw.one_in(4);
        let count = 1 + draw.below(4);
        Plan { tenures: (0..count).map(|_| Tenure::draw(&mut draw, buffered)).collect() }
    }

    /// Returns the number of atoms.
    pub fn atoms(&self) -> usize {
        self.tenures.iter().map(|tenure| 2 + tenure.clients.iter().map(Vec::len).sum::<usize>()).sum()
    }

    /// Returns the plan of these atoms alone: a tenure without atoms is gone.
    pub fn with(&self, kept: &Kept) -> Plan {
        let mut at = 0..;
        let mut keeps = || at.next().is_some_and(|atom| kept.holds(atom));
        let mut tenures = Vec::new();
        for tenure in &self.tenures {
            let (weather, end) = (keeps(), keeps());
            let clients: Vec<Vec<Op>> =
                tenure.clients.iter().map(|ops| ops.iter().filter(|_| keeps()).cloned().collect()).collect();
            if !(weather || end || clients.iter().any(|ops| !ops.is_empty())) {
                continue;
            }
            let weather = if weather { tenure.weather.clone() } else { Weather::default() };
            tenures.push(Tenure {
                setting: tenure.setting.clone(),
                // What a failed sync leaves in memory alone may be read until the power is cut.
                end: if weather.disk_fault {
                    End::PowerCut
                } else if end {
                    tenure.end
                } else {
                    End::Drop
                },
                weather,
                clients: clients.into_iter().filter(|ops| !ops.is_empty()).collect(),
            });
        }
        Plan { tenures }
    }
}

impl Tenure {
    fn draw(draw: &mut Draw, buffered: bool) -> Tenure {
        let setting = Setting::draw(draw, buffered);
        let weather = Weather::draw(draw);
        let end = draw.of(&[
            End::Close,
            End::Drop,
            End::Killed,
            End::PowerCut,
            End::PowerCutRandom,
            End::PowerCutTorn,
            End::Zombie,
        ]);
        let end = if weather.disk_fault { End::PowerCut } else { end };
        let clients = 1 + draw.below(4);
        let ops = 1 + draw.below(16);
        let large = draw.one_in(8);
        let clients = (0..clients).map(|_| (0..ops).map(|_| Op::draw(draw, large)).collect()).collect();
        Tenure { setting, weather, end, clients }
    }
}

impl Setting {
    /// Nothing out of the ordinary.
    pub fn plain() -> Setting {
        Setting {
            buffered: false,
            pending_memory_bytes_max: 1 << 20,
            batch_records_max: 1000,
            capacity: 100,
            coalesce: true,
            linger: Duration::ZERO,
            drain_delay_max: Duration::ZERO,
            queue_records_max: 1000,
            backpressure: Backpressure::Wait,
            through_timeout: Duration::from_secs(30),
            spares_max: 0,
            zero_fill: false,
            recycle: true,
            parks: false,
            changes: false,
        }
    }

    pub fn draw(draw: &mut Draw, buffered: bool) -> Setting {
        let wait = Backpressure::WaitFor(Duration::from_millis(20));
        let mut setting = Setting {
            buffered,
            pending_memory_bytes_max: draw.of(&[0, 300, 1 << 20]),
            batch_records_max: draw.of(&[1, 3, 1000]),
            capacity: draw.of(&[1, 2, 100]),
            coalesce: draw.one_in(2),
            linger: Duration::from_millis(draw.of(&[0, 0, 5])),
            queue_records_max: draw.of(&[4, 8, 1000]),
            backpressure: draw.of(&[Backpressure::Wait, wait, Backpressure::Refuse]),
            through_timeout: draw.of(&[Duration::from_millis(50), Duration::from_secs(30)]),
            spares_max: draw.of(&[0, 0, 1]),
            zero_fill: draw.one_in(4),
            recycle: !draw.one_in(4),
            parks: draw.one_in(3),
            ..Setting::plain()
        };
        // Drawn aside, so that a seed goes on as it did.
        let mut aside = draw.clone();
        setting.changes = aside.one_in(3);
        setting.drain_delay_max = Duration::from_millis(aside.of(&[0, 20, 1000]));
        setting
    }
}

impl Weather {
    pub fn draw(draw: &mut Draw) -> Weather {
        if draw.one_in(3) {
            return Weather::default();
        }
        Weather {
            lost_percent: draw.of(&[0, 0, 10, 40]),
            ambiguous_percent: draw.of(&[0, 0, 10, 40]),
            load_percent: draw.of(&[0, 0, 0, 20]),
            slow: draw.one_in(3).then(|| Duration::from_millis(30)),
            rejects: draw.one_in(4).then(|| (place(draw), 1 + draw.below(3) as u32)),
            disk_fault: draw.one_in(8),
        }
    }
}

pub fn place(draw: &mut Draw) -> Place {
    (draw.below(CACHES as u64) as usize, draw.below(u64::from(KEYS)) as u32)
}

impl Op {
    fn draw(draw: &mut Draw, large: bool) -> Op {
        match draw.below(36) {
            0..=9 => {
                let through = draw.one_in(4);
                let large = large && draw.one_in(2);
                Op::Write { at: place(draw), puts: !draw.one_in(4), through, large }
            }
            10 => Op::Cancelled { at: place(draw), through: draw.one_in(3), polls: draw.below(3) as u32 },
            11..=13 => {
                let changes = 1 + draw.below(3);
                let changes = (0..changes).map(|_| (place(draw), !draw.one_in(4))).collect();
                Op::Batch { changes, through: draw.one_in(4) }
            }
            14..=20 => Op::Get(place(draw)),
            21 => Op::GetMany(draw.below(CACHES as u64) as usize),
            22 => Op::Flush,
            23..=24 => Op::Evict(place(draw)),
            25 => Op::Invalidate(place(draw)),
            26 => Op::InvalidateAll(draw.below(CACHES as u64) as usize),
            27..=29 => Op::External { key: draw.below(2) as u32, all: draw.one_in(2) },
            30..=34 => Op::GetExternal(draw.below(2) as u32),
            _ => Op::Sleep(Duration::from_millis(draw.below(40))),
        }
    }
}

/// The atoms of a plan that are kept; all, unless it says otherwise.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Kept(pub Option<Vec<usize>>);

impl Kept {
    pub fn holds(&self, atom: usize) -> bool {
        self.0.as_ref().is_none_or(|kept| kept.binary_search(&atom).is_ok())
    }
}

/// All that fixes a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seed {
    pub plan: u64,
    /// The order of the threads, and where a tenure is cut.
    pub order: u64,
    pub kept: Kept,
}

impl Seed {
    pub fn of(seed: u64) -> Seed {
        Seed { plan: seed, order: seed, kept: Kept::default() }
    }

    /// Reads what [`Seed`]'s Display writes: `plan`, or `plan:order`, or `plan:order:atom,atom,..`.
    pub fn parse(text: &str) -> Seed {
        let mut parts = text.split(':');
        let number = |part: &str| part.parse().expect("FOREBAY_SEED is plan:order:atom,atom,..");
        let plan = parts.next().map(number).expect("split yields one part at least");
        let order = parts.next().map_or(plan, number);
        let kept = parts.next().map(|atoms| {
            let atoms = atoms.split(',').filter(|atom| !atom.is_empty());
            atoms.map(|atom| atom.parse().expect("atoms are numbers")).collect()
        });
        Seed { plan, order, kept: Kept(kept) }
    }
}

impl std::fmt::Display for Seed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.plan)?;
        if self.order != self.plan || self.kept.0.is_some() {
            write!(f, ":{}", self.order)?;
        }
        if let Some(kept) = &self.kept.0 {
            let atoms: Vec<String> = kept.iter().map(usize::to_string).collect();
            write!(f, ":{}", atoms.join(","))?;
        }
        Ok(())
    }
}
