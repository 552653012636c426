//! A bus that delivers what the test hands it, and says what was asked of it.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use forebay::bus::{
    BoxFuture, Bus, Channel, Delivery, Event, Message, Position, StartPosition, Subscription,
};
use forebay::{Error, Result};
use tokio::sync::watch;

/// Clones are one bus.
#[derive(Clone)]
pub struct ScriptedBus(Arc<Inner>);

struct Inner {
    state: Mutex<State>,
    changed: watch::Sender<u64>,
}

#[derive(Default)]
struct State {
    to_deliver: VecDeque<Result<Delivery>>,
    subscribed: Vec<StartPosition>,
    taken: u64,
    handed: u64,
    published: Vec<(Channel, Message)>,
}

impl Default for ScriptedBus {
    fn default() -> Self {
        ScriptedBus(Arc::new(Inner { state: Mutex::default(), changed: watch::Sender::new(0) }))
    }
}

impl ScriptedBus {
    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let changed = change(&mut self.0.state.lock().unwrap());
        self.0.changed.send_modify(|count| *count += 1);
        changed
    }

    async fn wait(&self, holds: impl Fn(&State) -> bool) {
        let mut changed = self.0.changed.subscribe();
        let reached = changed.wait_for(|_| holds(&self.0.state.lock().unwrap()));
        tokio::time::timeout(super::PATIENCE, reached).await.expect("in time").unwrap();
    }

    /// Delivers this to the one who listens; its position is its number, from one.
    pub fn deliver(&self, event: &Event) {
        self.deliver_bytes(event.encode().unwrap());
    }

    pub fn deliver_bytes(&self, bytes: impl Into<bytes::Bytes>) {
        self.change(|state| {
            state.handed += 1;
            let position = Position::new(state.handed.to_string());
            state.to_deliver.push_back(Ok(Delivery::Message(position, bytes.into())));
        });
    }

    pub fn lose_position(&self) {
        self.change(|state| state.to_deliver.push_back(Ok(Delivery::PositionLost)));
    }

    pub fn fail(&self, error: Error) {
        self.change(|state| state.to_deliver.push_back(Err(error)));
    }

    /// Waits until all that was handed over was taken and dealt with: until the listener asks for more.
    pub async fn heard(&self) {
        self.wait(|state| state.to_deliver.is_empty() && state.taken == u64::MAX).await;
    }

    /// Waits until somebody listens.
    pub async fn subscribed(&self) {
        self.wait(|state| !state.subscribed.is_empty() && state.taken == u64::MAX).await;
    }

    /// From where the subscriptions so far began.
    pub fn subscriptions(&self) -> Vec<StartPosition> {
        self.0.state.lock().unwrap().subscribed.clone()
    }

    pub fn published(&self) -> Vec<(Channel, Message)> {
        self.0.state.lock().unwrap().published.clone()
    }
}

struct Listener(ScriptedBus);

impl Subscription for Listener {
    fn next(&mut self) -> BoxFuture<'_, Result<Delivery>> {
        Box::pin(async move {
            loop {
                let next = self.0.change(|state| {
                    let next = state.to_deliver.pop_front();
                    // Asking for more means that what was delivered has been dealt with.
                    state.taken = if next.is_some() { 0 } else { u64::MAX };
                    next
                });
                if let Some(next) = next {
                    return next;
                }
                self.0.wait(|state| !state.to_deliver.is_empty()).await;
            }
        })
    }
}

impl Bus for ScriptedBus {
    fn publish<'a>(&'a self, channel: &'a Channel, messages: &'a [Message]) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            self.change(|state| {
                state.published.extend(messages.iter().map(|message| (channel.clone(), message.clone())));
            });
            Ok(())
        })
    }

    fn subscribe<'a>(
        &'a self,
        _channel: &'a Channel,
        from: StartPosition,
    ) -> BoxFuture<'a, Result<Box<dyn Subscription>>> {
        Box::pin(async move {
            self.change(|state| state.subscribed.push(from));
            Ok(Box::new(Listener(self.clone())) as Box<dyn Subscription>)
        })
    }
}
