//! The follower of another process: receives its directives over buses, carries them out in memory, and tracks its own
//! position.
//!
//! The store proves that memory is current, not the bus and not a clock. The follower reads the owner's progress from
//! the store. Once it has carried out everything up to that number, memory is as current as the store was at the time
//! of the read. Events are published only after the store holds their changes, so a load after an event reads nothing
//! older. If events are missing and cannot be recovered, memory is emptied at once, at a cost that does not depend on
//! its size, and the follower goes on from the store's number.

use std::collections::VecDeque;
use std::sync::{Arc, PoisonError};

use bytes::Bytes;

use crate::bus::contract::{Bus, Channel, Delivery, Identity, Message, StartPosition};
use crate::bus::event::{Directive, Event, Payload};
use crate::bus::tracker::{Continuity, Tracker};
use crate::error::{Error, Result};
use crate::feed::follow::{Follow, FollowFigures, FollowStatus, seen_channel};
use crate::feed::tasks::Tasks;
use crate::ids::{Epoch, Key, Seq, Tenure};
use crate::invalidation::Invalidation;
use crate::memory::freshness::Following;
use crate::memory::views::{ViewFinder, Views};
use crate::queue::lookup::Lookup;
use crate::queue::state::Core;
use crate::safeguard::Safeguard;
use crate::seam::backoff::RETRY;
use crate::seam::clock::{self, Moment, Ticker};
use crate::seam::sync::{Mutex, MutexGuard};
use crate::store::contract::Standing;

/// The most answers of the store that may wait until the events up to their number have arrived.
const PROOFS_MAX: usize = 64;
/// The count of probes after which a follower reports an unchanged position again.
const SEEN_EVERY: u32 = 10;

/// A follower, shared by its listeners, the probe of the store, and the layer.
pub(crate) struct Follower {
    follow: Follow,
    core: Arc<Core>,
    reads: Arc<Lookup>,
    views: Arc<Views>,
    ticker: Ticker,
    state: Mutex<FollowerState>,
    figures: FollowFigures,
    /// The number of channels.
    channels: usize,
}

#[derive(Default)]
struct FollowerState {
    /// The number of channels that are being listened to.
    begun: usize,
    tracker: Tracker,
    /// The numbers that the store returned, with the time of each read. Only those that are not reached yet.
    proofs: VecDeque<(Seq, Moment)>,
    /// The last number that the store returned.
    store_at: Seq,
    /// The tenure at which the store stood then.
    tenure: Tenure,
    heard_at: Option<Moment>,
    bus_error: Option<Error>,
    rule_error: Option<Error>,
    store_error: Option<Error>,
}

/// The next step of a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    /// Go on with the next message.
    On,
    /// Events are missing after this number: subscribe again from the last position.
    Gap(Seq),
}

/// The state of the store as a follower knew it before a probe.
struct Known {
    /// The newest epoch, from an event or from the store.
    epoch: Epoch,
    /// The tenure at which the store stood when it was read last.
    tenure: Tenure,
    position: Seq,
}

impl Known {
    /// True if the store is behind its earlier state, or another owner has an epoch that it had given before: it was
    /// restored from a copy, or is another store.
    fn is_of_another_history(&self, standing: &Standing) -> bool {
        let tenure = standing.tenure;
        tenure.epoch < self.epoch
            || (tenure.epoch == self.tenure.epoch && tenure.id != self.tenure.id)
            || standing.progress.applied < self.position
    }
}

impl Follower {
    /// Starts to follow. `standing` was read from the store before.
    pub(crate) fn start(
        follow: Follow,
        (core, reads, views): (&Arc<Core>, &Arc<Lookup>, &Arc<Views>),
        ticker: Ticker,
        standing: &Standing,
        tasks: &Tasks,
    ) -> Result<Arc<Follower>> {
        let channels = follow.channels()?;
        let tracker = Tracker::new(standing.tenure.epoch, standing.progress.applied);
        let (core, reads, views) = (Arc::clone(core), Arc::clone(reads), Arc::clone(views));
        let state = Mutex::new(FollowerState {
            tracker,
            store_at: standing.progress.applied,
            tenure: standing.tenure,
            ..FollowerState::default()
        });
        let (figures, count) = (FollowFigures::default(), channels.len());
        let follower =
            Arc::new(Follower { follow, core, reads, views, ticker, state, figures, channels: count });
        for (bus, channel) in &channels {
            let (follower, bus, channel) = (Arc::clone(&follower), Arc::clone(bus), channel.clone());
            tasks.spawn(async move { follower.listen(&*bus, &channel).await });
        }
        let probing = Arc::clone(&follower);
        let answers = channels.into_iter().map(|(bus, channel)| Ok((bus, seen_channel(&channel)?)));
        let answers = answers.collect::<Result<Vec<_>>>()?;
        tasks.spawn(async move { probing.keep_probing(&answers).await });
        Ok(follower)
    }

    /// Returns the rules for entries that are not proved to be current.
    pub(crate) fn following(&self) -> Following {
        self.follow.following()
    }

    /// Returns the status.
    pub(crate) fn status(&self) -> FollowStatus {
        let state = self.state();
        let now = self.ticker.now();
        let behind = state.store_at.0.saturating_sub(state.tracker.position().0);
        FollowStatus {
            listening: state.begun == self.channels,
            position: state.tracker.position(),
            epoch: state.tracker.epoch(),
            unverified_for: now.since(self.views.scopes().verified()),
            behind_records: behind,
            behind_bytes: self.figures.bytes_of(behind),
            silent_for: state.heard_at.map(|at| now.since(at)),
            error: {
                let errors = [&state.store_error, &state.bus_error, &state.rule_error];
                errors.into_iter().flatten().next().cloned()
            },
            has_gap: state.tracker.has_gap(),
            ..self.figures.told()
        }
    }

    /// Waits until the store holds everything up to `seq`. Returns true if memory may not show that yet.
    pub(crate) async fn reach(&self, seq: Seq) -> Result<bool> {
        loop {
            if self.core.status.borrow().watermark >= seq {
                return Ok(false);
            }
            // The store may hold the write though its event has not arrived. Then memory may hold an older value.
            if self.probe().await? >= seq {
                return Ok(Safeguard::ReceiptReadsPastMemory.holds());
            }
            // The event may be lost. Then the next probe of the store ends the wait.
            tokio::select! {
                biased;
                reached = self.core.wait_applied(seq) => return reached.map(|()| false),
                () = clock::sleep(self.follow.interval()) => {}
            }
        }
    }

    /// Listens to one channel until the layer ends.
    async fn listen(&self, bus: &dyn Bus, channel: &Channel) {
        let mut from = StartPosition::Now;
        let mut failures = 0;
        // The position at the last gap. A second gap there shows that the bus does not have the missing events.
        let mut gap_at = None;
        let mut begun = false;
        loop {
            let mut subscription = match bus.subscribe(channel, from.clone()).await {
                Ok(subscription) => subscription,
                Err(error) => {
                    self.bus_failed(error, &mut failures).await;
                    continue;
                }
            };
            if from == StartPosition::Now {
                // Events from before the subscription never arrive here, but their changes are in the store. So memory
                // is emptied, and the follower goes on from the store's number.
                self.begin_anew().await;
            }
            if !std::mem::replace(&mut begun, true) {
                self.state().begun += 1;
            }
            loop {
                let (at, next) = match subscription.next().await {
                    Ok(Delivery::Message(position, body)) => {
                        failures = 0;
                        (Some(position), self.receive(&body).await)
                    }
                    Ok(Delivery::PositionLost) => {
                        failures = 0;
                        self.lose_position().await;
                        continue;
                    }
                    Err(error) => {
                        self.bus_failed(error, &mut failures).await;
                        continue;
                    }
                };
                match (next, at) {
                    // Moves only past handled messages, so a new subscription repeats the others.
                    (Next::On, at) => from = at.map_or(from, StartPosition::After),
                    // The bus does not have the missing events, or there is no position yet to subscribe from.
                    (Next::Gap(position), at) if gap_at == Some(position) || from == StartPosition::Now => {
                        self.lose_place().await;
                        from = at.map_or(from, StartPosition::After);
                    }
                    (Next::Gap(position), _) => {
                        self.figures.gaps.add(1);
                        gap_at = Some(position);
                        break;
                    }
                }
            }
        }
    }

    /// Handles a message of a bus.
    async fn receive(&self, body: &Bytes) -> Next {
        self.figures.events.add(1);
        // If this was an event of the owner, the next one shows the gap.
        let Ok(event) = Event::decode(body) else {
            self.figures.refused.add(1);
            return Next::On;
        };
        let Event { epoch, after, until, payload, .. } = event;
        let directives = match payload {
            Payload::Directives(directives) => directives,
            Payload::Heartbeat => Vec::new(),
            // Reports of followers have a channel of their own.
            Payload::Seen(_) => {
                self.figures.refused.add(1);
                return Next::On;
            }
        };
        let chained = until > Seq::ZERO;
        // Such directives have no number, so nobody could notice that one is missing. The user has to ask for them.
        if !chained {
            match self.follow.takes_outside_directives() {
                true => self.carry_out(&directives),
                false => self.figures.refused.add(1),
            }
            return Next::On;
        }
        if !self.knows_owner(epoch).await {
            self.figures.refused_owner.add(1);
            return Next::On;
        }
        // First the directives, then the position: a proof for this position may count at once in another task, and
        // would make entries current that these directives drop.
        if Safeguard::DirectivesBeforePosition.holds() {
            self.carry_out(&directives);
        }
        let continuity = {
            let mut state = self.state();
            (state.heard_at, state.bus_error) = (Some(self.ticker.now()), None);
            let before = state.tracker.position();
            let continuity = state.tracker.observe(epoch, after, until);
            // Duplicates and heartbeats add no numbers, and would distort the estimate of missing bytes.
            if continuity == Continuity::InOrder && until > before {
                self.figures.numbers_heard.add(until.0 - before.0);
                self.figures.bytes_heard.add(body.len() as u64);
            }
            self.settle(&mut state);
            (continuity, state.tracker.position())
        };
        match continuity {
            (Continuity::InOrder, _) => Next::On,
            (Continuity::Gap, position) => Next::Gap(position),
            (Continuity::OldEpoch, _) => {
                self.figures.refused_owner.add(1);
                Next::On
            }
        }
    }

    /// Returns true if the store's owner has this epoch.
    ///
    /// An epoch that is newer than the known one is checked at the store. Otherwise a forged epoch could make this
    /// layer refuse the real owner. While the store does not answer, this waits, and later messages wait on the bus.
    async fn knows_owner(&self, epoch: Epoch) -> bool {
        let mut failures = 0;
        loop {
            let known = self.state().tracker.epoch();
            if epoch <= known || !Safeguard::OldOwnerRefused.holds() {
                return epoch >= known || !Safeguard::OldOwnerRefused.holds();
            }
            match self.probe().await {
                Ok(_) => return self.state().tracker.epoch() == epoch,
                Err(error) => self.state().store_error = Some(error),
            }
            failures += 1;
            clock::sleep(RETRY.delay(failures)).await;
        }
    }

    fn carry_out(&self, directives: &[Directive]) {
        self.figures.directives.add(directives.len() as u64);
        // A cache that is opened from here on reads the store, which holds all that these directives report.
        let mut finder = self.views.finder();
        let mut changed = |key, version, value| self.changed(&mut finder, key, version, value);
        for directive in directives {
            match directive {
                Directive::Invalidate(Invalidation::Key(key), version) | Directive::Remove(key, version) => {
                    changed(key, *version, None);
                }
                Directive::Put(key, version, value) => changed(key, *version, Some(value.as_ref())),
                Directive::Invalidate(what, _) => self.views.carry_out(what),
            }
            self.derive(directive);
        }
    }

    fn changed<'a>(&self, finder: &mut ViewFinder<'a>, key: &'a Key, version: Seq, value: Option<&[u8]>) {
        match finder.view(key.namespace()) {
            Some(view) => view.changed_elsewhere(key.key(), version, value),
            None => self.figures.directives_elsewhere.add(1),
        }
    }

    /// Carries out the targets that the user's rule derives from a directive. If the rule fails, memory is emptied,
    /// since anything may be stale.
    fn derive(&self, directive: &Directive) {
        let Some(derive) = self.follow.derive() else { return };
        match derive(directive, &self.views) {
            Ok(derived) => {
                derived.iter().for_each(|derived| derived.carry_out(&self.views));
            }
            Err(error) => {
                self.figures.rules_failed.add(1);
                self.state().rule_error = Some(error);
                self.views.invalidate_everything();
            }
        }
    }

    /// Applies the proofs that the position has reached, and publishes the position to waiting readers.
    fn settle(&self, state: &mut FollowerState) {
        let position = state.tracker.position();
        while let Some((proved, at)) = state.proofs.front().copied()
            && proved <= position
        {
            state.proofs.pop_front();
            self.views.scopes().verify(at);
        }
        // Duplicates and heartbeats do not move the position, and must not wake every waiting reader.
        self.core.status.send_if_modified(|status| {
            let moved = status.watermark != position;
            status.watermark = position;
            moved
        });
    }

    /// Reads the owner's progress from the store, and keeps it as a proof.
    async fn probe(&self) -> Result<Seq> {
        let (at, known) = (self.ticker.now(), self.known());
        let standing = self.reads.standing().await?;
        let (tenure, applied) = (standing.tenure, standing.progress.applied);
        let mut state = self.state();
        // Its numbers do not continue the known ones, so a gap would not be noticed and no entry can be trusted.
        if known.is_of_another_history(&standing) {
            self.views.invalidate_everything();
            state.tracker = Tracker::new(tenure.epoch, applied);
            state.proofs.clear();
            self.figures.places_lost.add(1);
        }
        state.tracker.learn_epoch(tenure.epoch);
        (state.store_at, state.tenure, state.store_error) = (applied, tenure, None);
        // A full list keeps its oldest proofs: they show how long the follower has been stalled.
        if state.proofs.len() < PROOFS_MAX {
            state.proofs.push_back((applied, at));
        }
        self.settle(&mut state);
        Ok(applied)
    }

    /// Returns the known state of the store. Call it before the store is read: events that arrive during the read may
    /// raise the position above the answer, which would look like another history.
    fn known(&self) -> Known {
        let state = self.state();
        Known { epoch: state.tracker.epoch(), tenure: state.tenure, position: state.tracker.position() }
    }

    /// Probes the store at each interval, and reports this layer's position to the owner.
    async fn keep_probing(&self, answers: &[(Arc<dyn Bus>, Channel)]) {
        let (mut reported, mut quiet) = (Seq::ZERO, SEEN_EVERY);
        loop {
            match self.probe().await {
                // Only after an answer: an unreachable store could not say where to go on.
                Ok(_) => self.lose_place_if_stalled().await,
                Err(error) => self.state().store_error = Some(error),
            }
            let position = self.state().tracker.position();
            if position != reported || quiet >= SEEN_EVERY {
                self.report_position(answers, position).await;
                (reported, quiet) = (position, 0);
            }
            quiet += 1;
            clock::sleep(self.follow.interval()).await;
        }
    }

    async fn report_position(&self, answers: &[(Arc<dyn Bus>, Channel)], position: Seq) {
        let Some(name) = self.follow.known_as() else { return };
        let epoch = self.state().tracker.epoch();
        let payload = Payload::Seen(name.to_owned());
        let event = Event { epoch, after: Seq::ZERO, until: position, as_of_us: 0, payload };
        for (bus, channel) in answers {
            let told = async {
                let identity =
                    Identity::parse(&format!("{}.{position}.{}", epoch.0, crc32c::crc32c(name.as_bytes())))?;
                bus.publish(channel, &[Message { identity, body: event.encode()? }]).await
            };
            // Not retried here: the position is reported again soon, and the owner sees the silence.
            if let Err(error) = told.await {
                self.state().bus_error = Some(error);
            }
        }
    }

    /// Gives up on missing events if a number of the store was not reached within `lag_max`.
    async fn lose_place_if_stalled(&self) {
        let lag_max = self.follow.following().lag_max;
        let oldest = self.state().proofs.front().map(|(_, at)| *at);
        if oldest.is_some_and(|at| self.ticker.now().since(at) >= lag_max) {
            self.lose_place().await;
        }
    }

    /// Handles a position from which the bus cannot go on.
    ///
    /// If the owner published anything meanwhile, its next event or heartbeat shows the gap. Until then no proof of the
    /// store counts for events that did not arrive. Only directives outside of the chain can be missing unnoticed.
    async fn lose_position(&self) {
        self.figures.positions_lost.add(1);
        if self.follow.takes_outside_directives() && Safeguard::OutsideMayBeMissing.holds() {
            self.lose_place().await;
        }
    }

    async fn lose_place(&self) {
        self.figures.places_lost.add(1);
        self.begin_anew().await;
    }

    /// Empties memory and goes on from the store's number. Tries until the store answers; until then nothing in memory
    /// gets a new proof.
    async fn begin_anew(&self) {
        let mut failures = 0;
        loop {
            let (at, known) = (self.ticker.now(), self.known());
            match self.reads.standing().await {
                Ok(standing) => {
                    // After the read: a load that began before it may hold a value older than the store's number.
                    if Safeguard::LostPlaceEmptiesMemory.holds() {
                        self.views.invalidate_everything();
                    }
                    let (tenure, applied) = (standing.tenure, standing.progress.applied);
                    let mut state = self.state();
                    if known.is_of_another_history(&standing) {
                        state.tracker = Tracker::new(tenure.epoch, applied);
                    }
                    state.tracker.learn_epoch(tenure.epoch);
                    // Memory is empty, so no event up to this number is missing any more.
                    state.tracker.raise(applied);
                    (state.store_at, state.tenure, state.store_error) = (applied, tenure, None);
                    state.proofs.clear();
                    state.proofs.push_back((applied, at));
                    return self.settle(&mut state);
                }
                Err(error) => {
                    self.state().store_error = Some(error);
                    failures += 1;
                    clock::sleep(RETRY.delay(failures)).await;
                }
            }
        }
    }

    async fn bus_failed(&self, error: Error, failures: &mut u64) {
        self.state().bus_error = Some(error);
        *failures = failures.saturating_add(1);
        clock::sleep(RETRY.delay(*failures)).await;
    }

    fn state(&self) -> MutexGuard<'_, FollowerState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
