//! Helpers for the tests of buses: publishing and listening, each within a time.

#![allow(clippy::panic, clippy::unwrap_used, clippy::indexing_slicing, reason = "these are tests")]

use std::time::{Duration, Instant};

use bytes::Bytes;
use forebay::bus::{Bus, Delivery, Identity, Message, Position, StartPosition, Subscription};
use forebay::{Channel, Error, ErrorKind};

/// Longer than anything here takes on the slowest machine, shorter than people wait.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub fn channel(name: &str) -> Channel {
    Channel::parse(name).unwrap()
}

pub fn message(text: &str) -> Message {
    Message { identity: Identity::parse(text).unwrap(), body: Bytes::copy_from_slice(text.as_bytes()) }
}

pub async fn within<T>(what: &str, work: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, work).await {
        Ok(done) => done,
        Err(_) => panic!("{what}: nothing has come for {PATIENCE:?}"),
    }
}

/// The texts `m0`, `m1` and so on.
pub fn numbered(count: usize) -> Vec<String> {
    (0..count).map(|number| format!("m{number}")).collect()
}

pub async fn publish(bus: &impl Bus, channel: &Channel, texts: &[impl AsRef<str>]) {
    let messages: Vec<Message> = texts.iter().map(|text| message(text.as_ref())).collect();
    within("publishing", bus.publish(channel, &messages)).await.unwrap();
}

/// Publishes to a server that has only just come back.
pub async fn publish_at_last(bus: &impl Bus, channel: &Channel, texts: &[&str]) {
    let messages: Vec<Message> = texts.iter().map(|text| message(text)).collect();
    within("publishing", async {
        while let Err(error) = bus.publish(channel, &messages).await {
            assert_eq!(error.kind(), ErrorKind::Transient, "{error}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
}

pub async fn subscribe(bus: &impl Bus, channel: &Channel, from: StartPosition) -> Box<dyn Subscription> {
    within("subscribing", bus.subscribe(channel, from)).await.unwrap()
}

pub async fn next(subscription: &mut Box<dyn Subscription>) -> Result<Delivery, Error> {
    within("the next delivery", subscription.next()).await
}

/// The next delivery of a server that has only just come back.
pub async fn next_at_last(subscription: &mut Box<dyn Subscription>) -> Delivery {
    within("the next delivery", async {
        loop {
            match subscription.next().await {
                Ok(delivery) => return delivery,
                Err(error) => assert_eq!(error.kind(), ErrorKind::Transient, "{error}"),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
}

fn taken(delivery: Delivery, text: &str) -> Position {
    match delivery {
        Delivery::Message(position, body) => {
            assert_eq!(String::from_utf8_lossy(&body), text);
            position
        }
        Delivery::PositionLost => panic!("the position was lost before {text}"),
    }
}

/// Takes these messages, and nothing else, and returns the last one's position.
pub async fn take(subscription: &mut Box<dyn Subscription>, texts: &[impl AsRef<str>]) -> Position {
    let mut position = Position::new("");
    for text in texts {
        position = taken(next(subscription).await.unwrap(), text.as_ref());
    }
    position
}

/// Takes these messages of a server that has only just come back.
pub async fn take_at_last(subscription: &mut Box<dyn Subscription>, texts: &[&str]) -> Position {
    let mut position = Position::new("");
    for text in texts {
        position = taken(next_at_last(subscription).await, text);
    }
    position
}

pub async fn expect_lost(subscription: &mut Box<dyn Subscription>) {
    let delivery = next_at_last(subscription).await;
    assert_eq!(delivery, Delivery::PositionLost);
}

/// Nothing comes for a while, in which the subscription looks whether all is well several times.
pub async fn expect_nothing(subscription: &mut Box<dyn Subscription>, time: Duration) {
    if let Ok(delivery) = tokio::time::timeout(time, subscription.next()).await {
        panic!("nothing was to come, and there is {delivery:?}");
    }
}

/// The error that has to come, and within this time.
pub async fn expect_error(subscription: &mut Box<dyn Subscription>, time: Duration) -> Error {
    let begun = Instant::now();
    let error = next(subscription).await.expect_err("the server is away");
    assert!(begun.elapsed() < time, "it took {:?}", begun.elapsed());
    error
}
