//! The safeguards that keep the promises, one by one. Each can be left out to see which test notices.
//!
//! In an ordinary build all of them hold, and the compiler knows it. Only under `--cfg forebay_mutation`, which the
//! repository's own cargo configuration sets, may the environment variable `FOREBAY_WITHOUT` name one that does not,
//! and only where debug assertions are checked: benchmarks, which are built with the same cfg, measure what users get.

/// The variable that names a safeguard to do without.
#[cfg(all(forebay_mutation, debug_assertions))]
const WITHOUT: &str = "FOREBAY_WITHOUT";

macro_rules! safeguards {
    ($($(#[doc = $what:literal])+ $name:ident,)+) => {
        /// Something without which a promise breaks.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[cfg_attr(not(forebay_mutation), allow(unreachable_pub, reason = "public only for the tests"))]
        pub enum Safeguard {
            $($(#[doc = $what])+ $name,)+
        }

        #[cfg(forebay_mutation)]
        impl Safeguard {
            /// All of them, with what each does.
            pub const ALL: &[(Safeguard, &str, &str)] =
                &[$((Safeguard::$name, stringify!($name), concat!($($what),+)),)+];
        }
    };
}

safeguards! {
    /// The directory is synced before a new segment in it is used.
    DirectorySync,
    /// A new segment's header is synced before the file gets its name.
    SegmentSync,
    /// A trimmed segment is durably gone before the next one goes.
    TrimSync,
    /// The numbers of a frame's records are part of its header's checksum.
    NumberInChecksum,
    /// A frame's body has a checksum, and it is looked at.
    BodyChecksum,
    /// A frame belongs to this use of its file.
    Nonce,
    /// A frame continues the one before it.
    Continuity,
    /// A segment ends where and how its successor says.
    Seal,
    /// An unsound frame below a promised offset is damage, not a torn tail.
    SyncedOffset,
    /// A journal of an unknown format is refused.
    FormatVersion,
    /// A journal tail that may be readable and not durable is written again and synced before it is served.
    TailWrittenAgain,
    /// A segment is synced before it gets a successor.
    SyncBeforeSuccessor,
    /// After a failed sync nothing is written any more.
    PoisonAfterFailedSync,
    /// A write is acknowledged, and seen, after its sync.
    AcknowledgeAfterSync,
    /// The journal is synced before the store gets what is in it.
    SyncBeforeApply,
    /// The journal keeps what the store lacks.
    TrimBehindWatermark,
    /// The journal keeps, for a while, what the store has applied.
    TailIsRetained,
    /// A journal that ends before the store's watermark is refused.
    JournalReachesWatermark,
    /// A store that is behind the journal's witness went back.
    WitnessIsCompared,
    /// The numbers of writes that the journal does not hold are not given again.
    NumbersNeverReused,
    /// An apply forgets the record it applied, not a newer one of its key.
    RetireByNumber,
    /// Memory is looked at when it shows everything that was acknowledged.
    MemoryCatchesUp,
    /// Once frames are left to the journal, later ones are, too, until the flusher has caught up.
    SpillInOrder,
    /// The store's value of a key is not trusted while a write-through of the key is in flight.
    UnsettledReads,
    /// A write-through is seen once the store holds it.
    ThroughUnseenUntilApplied,
    /// A key whose write is in doubt is dropped from memory.
    DropWhatIsInDoubt,
    /// Later writes of a parked key are parked behind it.
    ParkLaterWrites,
    /// A load that began before a change of its key is not kept.
    FenceOnFill,
    /// So for keys that are not in memory.
    FenceForAbsentKeys,
    /// A load that began before a bulk invalidation is not kept.
    GenerationOnFill,
    /// A read does not join a load that began before a change of its key.
    JoinNoOlderLoad,
    /// A load that began before a refresh is not kept after it, and who comes later does not join it.
    RefreshBarsOlderLoads,
    /// A value's age counts from the start of its load.
    AgeFromLoadStart,
    /// A load that failed is not tried again before its interval is over.
    LoadThrottle,
    /// A reader that accepts no staleness is not answered from memory.
    ZeroToleranceReadsTheStore,
    /// A key that is written around memory leaves it before the write, too.
    AroundDropsBefore,
    /// A key that is written around memory leaves it when the store has taken the write.
    AroundDropsAfter,
    /// An invalidation of a namespace covers the namespaces below it, too.
    NamespaceBelow,
    /// An invalidation of a namespace or a group is journaled, or in the store, before it is acknowledged.
    TokenIsDurable,
    /// The group of a key is among the tags of its entry.
    GroupTag,
    /// An entry below the floor of one of its tags is not served.
    TagFloor,
    /// A value's tags are stored with it.
    TagsAreStored,
    /// A value that was derived from something that has changed is neither kept nor served.
    ReadSetChecked,
    /// A read does not take what another one's load brought if what that hangs on was invalidated meanwhile.
    JoinNoBrokenLoad,
    /// The targets of a rule are dropped again when the write has taken effect.
    DirectivesAgain,
    /// Writers of a key take turns where one looks at what it replaces.
    WritersTakeTurns,
    /// A value of another schema version is not decoded as one of the cache's.
    SchemaIsCompared,
    /// Those of versions do so though one goes away before its write has ended.
    VersionsHeldToTheEnd,
    /// A late lower version does not become what a read returns.
    LateVersionStaysBehind,
    /// A change is told once the store holds it.
    ChangesBehindWatermark,
    /// The journal keeps what a named cursor has not passed.
    CursorHoldsJournal,
    /// Changes that the journal no longer holds are reported as lost.
    LostPlaceIsTold,
    /// A write-through leaves a notice in the journal, where changes are told.
    ThroughLeavesNotice,
    /// A cursor's place is durable before the journal is trimmed for it.
    CursorSync,
    /// Events after a gap in an owner's events do not count as received in order.
    GapIsNoticed,
    /// A listener believes no owner that another one has followed, and none that the store does not know.
    OldOwnerRefused,
    /// Entries whose changes a follower may have missed are not served from its memory.
    LostPlaceEmptiesMemory,
    /// Where a bus lost its position, directives of no chain may be missing.
    OutsideMayBeMissing,
    /// A follower carries out what it hears before it counts that as heard.
    DirectivesBeforePosition,
    /// A follower's proof counts for an entry if it was there before the entry was looked up.
    ProofBeforeLook,
    /// A follower does not take an entry for current that no proof covers any more.
    SilenceIsStaleness,
    /// A follower reads past memory what it has not heard of yet and is asked for.
    ReceiptReadsPastMemory,
    /// A publisher's cursor moves on when the bus has what lies before it.
    PublishBeforeAcknowledge,
    /// The store refuses an older owner.
    EpochFence,
    /// The store refuses an owner of its own epoch and another identity.
    TenureIdentity,
    /// The store refuses a batch that begins behind its watermark.
    NoHoleBeforeBatch,
    /// The store takes only its last batch for a repetition.
    RepeatByNumber,
    /// A batch accounts for every number up to the watermark that it sets.
    BatchIsDense,
    /// The store takes nothing at or below its watermark.
    ApplyOnce,
    /// The embedded stores write data and watermark in one transaction.
    WatermarkInTransaction,
    /// The embedded stores sync their files.
    StoreSync,
}

impl Safeguard {
    /// Returns true if the safeguard is in place.
    #[cfg(not(all(forebay_mutation, debug_assertions)))]
    pub(crate) const fn holds(self) -> bool {
        true
    }

    /// Returns true if the safeguard is in place.
    #[cfg(all(forebay_mutation, debug_assertions))]
    #[inline]
    pub(crate) fn holds(self) -> bool {
        *MISSING.get_or_init(missing) != Some(self)
    }
}

#[cfg(all(forebay_mutation, debug_assertions))]
static MISSING: std::sync::OnceLock<Option<Safeguard>> = std::sync::OnceLock::new();

#[cfg(all(forebay_mutation, debug_assertions))]
#[cold]
fn missing() -> Option<Safeguard> {
    let name = std::env::var(WITHOUT).ok()?;
    let found = Safeguard::ALL.iter().find(|(_, known, _)| *known == name);
    // An unknown name must not pass for a safeguard that nobody misses.
    Some(found.expect("FOREBAY_WITHOUT names a safeguard").0)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_tests_are_built_so_that_a_safeguard_can_be_left_out() {
        if !cfg!(forebay_mutation) {
            panic!(
                "without `--cfg forebay_mutation` no test of the safeguards is built: a RUSTFLAGS of the environment \
                 replaces the one in .cargo/config.toml, and has to repeat it"
            );
        }
    }
}
