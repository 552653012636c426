//! The plan of an owner, its followers and those around them: drawn from a seed, and cut down by a mask as the
//! plans of one layer are.

use std::time::Duration;

use forebay::testkit::faulty_bus::BusFaults;
use forebay::{OnUnverified, WritePolicy};

use crate::harness::plan::{CACHES, Draw, End, Kept, Place, Setting, Weather, place};

pub const FOLLOWERS: usize = 3;
pub const BUSES: usize = 2;
/// The largest number of writes that a burst hands over at once.
const BURST_MAX: u64 = 24;

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// A step of a client of the owner.
#[derive(Clone, Debug)]
pub enum Write {
    One {
        at: Place,
        puts: bool,
        policy: WritePolicy,
    },
    /// Writes behind, handed over without waiting for one another.
    Burst(Vec<(Place, bool)>),
    Batch {
        changes: Vec<(Place, bool)>,
        through: bool,
    },
    Namespace(usize),
    Flush,
    Sleep(Duration),
}

/// A step of a reader of a follower.
#[derive(Clone, Debug)]
pub enum Read {
    Get(Place),
    /// With a bound of its own, and with another wish for what is unverified.
    Entry {
        at: Place,
        most: Option<Duration>,
        wanted: Option<OnUnverified>,
    },
    Many {
        cache: usize,
        most: Option<Duration>,
    },
    /// At least what was acknowledged last.
    AtLeast(Place),
    Evict(Place),
    Sleep(Duration),
    /// Closes the follower, or drops it, and opens it again.
    Reopen {
        closes: bool,
    },
}

/// Whose part of the network it is.
#[derive(Clone, Copy, Debug)]
pub enum Party {
    /// The present owner's.
    Owner,
    Follower(usize),
}

/// A fault around the layers.
#[derive(Clone, Debug)]
pub enum Upset {
    Cut(Party),
    Mend(Party),
    /// The store does not tell this follower how far the owner has come.
    Mute(usize, bool),
    /// A bus forgets what it holds.
    Trim(usize),
    Sleep(Duration),
}

#[derive(Clone, Debug)]
pub struct FollowerSetting {
    pub lag_max: Duration,
    pub on_unverified: OnUnverified,
    pub probe_interval: Duration,
    /// The buses that it listens to: the first, the second, both.
    pub listens: [bool; BUSES],
    pub capacity: usize,
    /// True if it remembers that a key has no value.
    pub remembers_absence: bool,
    pub faults: BusFaults,
    pub load_percent: u64,
    /// Its store takes up to so long.
    pub slow: Option<Duration>,
}

/// The end of an owner's tenure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    Of(End),
    /// Another one takes the store over, with a journal of its own, and this one lives on with all it has.
    TakenOver,
}

#[derive(Clone, Debug)]
pub struct Tenure {
    pub setting: Setting,
    pub changes_bytes_max: u64,
    pub weather: Weather,
    pub faults: BusFaults,
    pub ending: Ending,
    pub clients: Vec<Vec<Write>>,
    /// Readers of each follower.
    pub readers: Vec<(usize, Vec<Read>)>,
    pub upsets: Vec<Upset>,
}

#[derive(Clone, Debug)]
pub struct Plan {
    /// The number of buses that the owner publishes to.
    pub buses: usize,
    /// True if values travel.
    pub values: bool,
    pub heartbeat: Duration,
    pub followers: Vec<FollowerSetting>,
    pub tenures: Vec<Tenure>,
}

impl Plan {
    pub fn draw(seed: u64) -> Plan {
        let mut draw = Draw(seed);
        let buses = draw.of(&[1, 1, BUSES]);
        let buffered = draw.one_in(4);
        let values = draw.one_in(2);
        let heartbeat = ms(draw.of(&[10, 50]));
        let followers = (0..FOLLOWERS).map(|_| FollowerSetting::draw(&mut draw, buses)).collect();
        let count = 1 + draw.below(4);
        let tenures = (0..count).map(|_| Tenure::draw(&mut draw, buses, buffered)).collect();
        Plan { buses, values, heartbeat, followers, tenures }
    }

    /// Returns the number of atoms.
    pub fn atoms(&self) -> usize {
        let of_tenure = |tenure: &Tenure| {
            let writes: usize = tenure.clients.iter().map(Vec::len).sum();
            let reads: usize = tenure.readers.iter().map(|(_, reads)| reads.len()).sum();
            3 + writes + reads + tenure.upsets.len()
        };
        1 + 2 * FOLLOWERS + self.tenures.iter().map(of_tenure).sum::<usize>()
    }

    /// Returns the plan of these atoms alone: a tenure without atoms is gone.
    pub fn with(&self, kept: &Kept) -> Plan {
        let mut at = 0..;
        let mut keeps = || at.next().is_some_and(|atom| kept.holds(atom));
        let values = keeps() && self.values;
        let followers = self.followers.iter().map(|setting| {
            let faults = if keeps() { setting.faults } else { BusFaults::default() };
            let trouble = keeps();
            let (load_percent, slow) = if trouble { (setting.load_percent, setting.slow) } else { (0, None) };
            FollowerSetting { faults, load_percent, slow, ..setting.clone() }
        });
        let followers = followers.collect();
        let mut tenures = Vec::new();
        for tenure in &self.tenures {
            let (weather, faults, ends) = (keeps(), keeps(), keeps());
            let clients = tenure.clients.iter().map(|ops| some(ops, &mut keeps)).collect::<Vec<_>>();
            let readers = tenure.readers.iter().map(|(of, ops)| (*of, some(ops, &mut keeps)));
            let readers = readers.collect::<Vec<_>>();
            let upsets = some(&tenure.upsets, &mut keeps);
            let works = clients.iter().any(|ops| !ops.is_empty()) || !upsets.is_empty();
            if !(weather || faults || ends || works || readers.iter().any(|(_, ops)| !ops.is_empty())) {
                continue;
            }
            let weather = if weather { tenure.weather.clone() } else { Weather::default() };
            tenures.push(Tenure {
                setting: tenure.setting.clone(),
                changes_bytes_max: tenure.changes_bytes_max,
                // What a failed sync leaves in memory alone may be read until the power is cut.
                ending: match (weather.disk_fault, ends) {
                    (true, _) => Ending::Of(End::PowerCut),
                    (false, true) => tenure.ending,
                    (false, false) => Ending::Of(End::Drop),
                },
                weather,
                faults: if faults { tenure.faults } else { BusFaults::default() },
                clients: clients.into_iter().filter(|ops| !ops.is_empty()).collect(),
                readers: readers.into_iter().filter(|(_, ops)| !ops.is_empty()).collect(),
                upsets,
            });
        }
        Plan { buses: self.buses, values, heartbeat: self.heartbeat, followers, tenures }
    }
}

fn some<T: Clone>(ops: &[T], mut keeps: impl FnMut() -> bool) -> Vec<T> {
    ops.iter().filter(|_| keeps()).cloned().collect()
}

impl FollowerSetting {
    fn draw(draw: &mut Draw, buses: usize) -> FollowerSetting {
        let listens = match buses {
            1 => [true, false],
            _ => draw.of(&[[true, false], [false, true], [true, true]]),
        };
        let wanted = [OnUnverified::Revalidate, OnUnverified::Fail, OnUnverified::Serve];
        FollowerSetting {
            lag_max: ms(draw.of(&[15, 60, 250])),
            on_unverified: draw.of(&wanted),
            probe_interval: ms(draw.of(&[5, 20])),
            listens,
            capacity: draw.of(&[2, 100, 100]),
            remembers_absence: draw.one_in(2),
            faults: listening(draw),
            load_percent: draw.of(&[0, 0, 10]),
            slow: draw.one_in(3).then(|| ms(20)),
        }
    }
}

/// Draws the faults of a follower's part of the network.
fn listening(draw: &mut Draw) -> BusFaults {
    if draw.one_in(4) {
        return BusFaults::default();
    }
    BusFaults {
        drop_percent: draw.of(&[0, 5, 20]),
        double_percent: draw.of(&[0, 10, 30]),
        delay_percent: draw.of(&[0, 10]),
        reorder_percent: draw.of(&[0, 10, 30]),
        messages_max: draw.of(&[2, 8]),
        lose_percent: draw.of(&[0, 0, 3]),
        ..BusFaults::default()
    }
}

impl Tenure {
    fn draw(draw: &mut Draw, buses: usize, buffered: bool) -> Tenure {
        let setting = Setting { changes: true, ..Setting::draw(draw, buffered) };
        let mut weather = Weather::draw(draw);
        // Whoever looks at parked and halted writes is the simulation of the layer alone.
        weather.rejects = None;
        let ending = draw.of(&[
            Ending::Of(End::Close),
            Ending::Of(End::Drop),
            Ending::Of(End::Killed),
            Ending::Of(End::PowerCut),
            Ending::Of(End::PowerCutRandom),
            Ending::Of(End::Zombie),
            Ending::TakenOver,
            Ending::TakenOver,
        ]);
        let ending = if weather.disk_fault { Ending::Of(End::PowerCut) } else { ending };
        let (clients, writes) = (1 + draw.below(3), 2 + draw.below(12));
        let clients = (0..clients).map(|_| (0..writes).map(|_| Write::draw(draw)).collect()).collect();
        let reads = 2 + draw.below(20);
        let readers = (0..FOLLOWERS + 1)
            .map(|reader| (reader % FOLLOWERS, (0..reads).map(|_| Read::draw(draw)).collect()));
        let readers = readers.collect();
        let upsets = draw.below(6);
        let upsets = (0..upsets).map(|_| Upset::draw(draw, buses)).collect();
        let faults = BusFaults {
            publish_before_percent: draw.of(&[0, 0, 20]),
            publish_after_percent: draw.of(&[0, 0, 20]),
            ..BusFaults::default()
        };
        let changes_bytes_max = draw.of(&[0, 1 << 30, 1 << 30]);
        Tenure { setting, changes_bytes_max, weather, faults, ending, clients, readers, upsets }
    }
}

fn changes(draw: &mut Draw, most: u64) -> Vec<(Place, bool)> {
    let count = 1 + draw.below(most);
    (0..count).map(|_| (place(draw), !draw.one_in(5))).collect()
}

impl Write {
    fn draw(draw: &mut Draw) -> Write {
        match draw.below(20) {
            0..=4 => {
                let behind = WritePolicy::Behind;
                let policy = draw.of(&[behind, behind, WritePolicy::Through, WritePolicy::Around]);
                Write::One { at: place(draw), puts: !draw.one_in(4), policy }
            }
            5..=13 => Write::Burst(changes(draw, BURST_MAX)),
            14..=15 => Write::Batch { changes: changes(draw, 4), through: draw.one_in(4) },
            16 => Write::Namespace(draw.below(CACHES as u64) as usize),
            17 => Write::Flush,
            _ => Write::Sleep(ms(draw.below(30))),
        }
    }
}

impl Read {
    fn draw(draw: &mut Draw) -> Read {
        let most = [None, None, Some(Duration::ZERO), Some(ms(5)), Some(ms(40))];
        let wanted = [None, None, Some(OnUnverified::Serve), Some(OnUnverified::Fail)];
        match draw.below(40) {
            0..=11 => Read::Get(place(draw)),
            12..=23 => Read::Entry { at: place(draw), most: draw.of(&most), wanted: draw.of(&wanted) },
            24..=26 => Read::Many { cache: draw.below(CACHES as u64) as usize, most: draw.of(&most) },
            27..=31 => Read::AtLeast(place(draw)),
            32 => Read::Evict(place(draw)),
            33 => Read::Reopen { closes: draw.one_in(2) },
            _ => Read::Sleep(ms(draw.below(40))),
        }
    }
}

impl Upset {
    fn draw(draw: &mut Draw, buses: usize) -> Upset {
        let follower = draw.below(FOLLOWERS as u64) as usize;
        let party = if draw.one_in(4) { Party::Owner } else { Party::Follower(follower) };
        match draw.below(12) {
            0..=1 => Upset::Cut(party),
            2..=3 => Upset::Mend(party),
            4..=5 => Upset::Mute(follower, true),
            6..=7 => Upset::Mute(follower, false),
            8 => Upset::Trim(draw.below(buses as u64) as usize),
            _ => Upset::Sleep(ms(draw.below(120))),
        }
    }
}
