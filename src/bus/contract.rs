//! What the layer asks of a bus: channels of messages, kept for a while, in one order each.
//!
//! A bus may lose, double, delay and reorder what it carries. Whoever listens finds that out by what the messages say
//! of themselves ([`crate::bus::tracker`]), so a bus need not be trusted. What it must not do is hide what it knows:
//! if it cannot deliver what comes after a position, because that was trimmed, or belongs to a server that has lost
//! its data, it says [`Delivery::PositionLost`]. The testkit tests an implementation.

use std::fmt;
use std::future::Future;
use std::pin::Pin;

use bytes::Bytes;

use crate::error::{Error, ErrorKind, Result};

/// The future of a bus's call.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// The longest channel name, in bytes.
pub const CHANNEL_BYTES_MAX: usize = 64;
/// The longest identity of a message, in bytes.
pub const IDENTITY_BYTES_MAX: usize = 128;
/// The largest body of a message, in bytes. What is larger is refused by whoever publishes and by whoever listens.
pub const BODY_BYTES_MAX: usize = 512 << 10;

/// The name of a channel: 1 to 64 of `a-z A-Z 0-9 _ -`, which no bus has to escape.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Channel(Box<str>);

impl Channel {
    /// Checks `name` and wraps it.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidName`].
    pub fn parse(name: &str) -> Result<Channel> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
        if name.is_empty() || name.len() > CHANNEL_BYTES_MAX || !name.chars().all(allowed) {
            let shown: String = name.chars().take(CHANNEL_BYTES_MAX).flat_map(char::escape_default).collect();
            let context = format!("channel name \"{shown}\": 1 to 64 of a-z A-Z 0-9 _ - are allowed");
            return Err(Error::new(ErrorKind::InvalidName, context));
        }
        Ok(Channel(name.into()))
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a message is known by, so that publishing it twice does no harm: 1 to 128 of `a-z A-Z 0-9 _ . -`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Identity(Box<str>);

impl Identity {
    /// Checks `name` and wraps it.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidName`].
    pub fn parse(name: &str) -> Result<Identity> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
        if name.is_empty() || name.len() > IDENTITY_BYTES_MAX || !name.chars().all(allowed) {
            let context =
                format!("an identity of {} bytes: 1 to 128 of a-z A-Z 0-9 _ . - are allowed", name.len());
            return Err(Error::new(ErrorKind::InvalidName, context));
        }
        Ok(Identity(name.into()))
    }

    /// The identity as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A message on its way to a bus.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// What it is known by.
    pub identity: Identity,
    /// What it says; up to [`BODY_BYTES_MAX`].
    pub body: Bytes,
}

impl Message {
    /// Checks the body's length; for a bus, before it takes the message.
    ///
    /// # Errors
    /// [`ErrorKind::TooLarge`].
    pub fn check(&self) -> Result<()> {
        if self.body.len() <= BODY_BYTES_MAX {
            return Ok(());
        }
        let context =
            format!("a message of {} bytes for a bus; the limit is {BODY_BYTES_MAX}", self.body.len());
        Err(Error::new(ErrorKind::TooLarge, context))
    }
}

/// A place in a channel, in the bus's own terms.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Position(Box<str>);

impl Position {
    /// A place that this bus calls so.
    #[must_use]
    pub fn new(text: impl Into<Box<str>>) -> Position {
        Position(text.into())
    }

    /// What the bus calls it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Where a subscription begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StartPosition {
    /// With the first message that is published after [`Bus::subscribe`] has returned, or one that was shortly before.
    Now,
    /// With the oldest message that the bus still holds.
    Oldest,
    /// With the first message after this one.
    After(Position),
}

/// What a subscription delivers. Both have to be dealt with.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub enum Delivery {
    /// A message, and its place. It may come more than once.
    Message(Position, Bytes),
    /// What followed the last delivered message, or the place where the subscription began, cannot be delivered any
    /// more, or nobody can tell. The subscription goes on with what comes next.
    PositionLost,
}

/// A bus: channels that many may publish to and many may listen to.
///
/// Every error names the bus and what was being done, and never holds credentials.
/// [`ErrorKind::Transient`] may pass, whether after a reconnect or without one: the same call can be made again.
/// [`ErrorKind::BusFailed`] does not pass by itself (refused credentials, a channel that is something else).
pub trait Bus: Send + Sync + 'static {
    /// Publishes messages to a channel, in their order. On return the bus holds them, as durably as it holds anything.
    ///
    /// A message whose identity was published to the channel lately may be left out; it does no harm if it is not.
    /// After an error, and when the future is dropped, any of them may have been published, the first ones first.
    fn publish<'a>(&'a self, channel: &'a Channel, messages: &'a [Message]) -> BoxFuture<'a, Result<()>>;

    /// Listens to a channel, from some place on. A channel need not exist before.
    ///
    /// A place that the bus does not hold any more is no error: the first delivery is [`Delivery::PositionLost`].
    fn subscribe<'a>(
        &'a self,
        channel: &'a Channel,
        from: StartPosition,
    ) -> BoxFuture<'a, Result<Box<dyn Subscription>>>;
}

/// One listener of one channel.
pub trait Subscription: Send {
    /// The next delivery; waits for it. Dropping the future loses nothing.
    ///
    /// After an error the next call goes on behind what was delivered last, with a new connection if it takes one, and
    /// says so if that cannot be had any more.
    fn next(&mut self) -> BoxFuture<'_, Result<Delivery>>;
}

/// A bus that was chosen at run time.
impl<B: Bus + ?Sized> Bus for Box<B> {
    fn publish<'a>(&'a self, channel: &'a Channel, messages: &'a [Message]) -> BoxFuture<'a, Result<()>> {
        (**self).publish(channel, messages)
    }

    fn subscribe<'a>(
        &'a self,
        channel: &'a Channel,
        from: StartPosition,
    ) -> BoxFuture<'a, Result<Box<dyn Subscription>>> {
        (**self).subscribe(channel, from)
    }
}

/// A bus that several share.
impl<B: Bus + ?Sized> Bus for std::sync::Arc<B> {
    fn publish<'a>(&'a self, channel: &'a Channel, messages: &'a [Message]) -> BoxFuture<'a, Result<()>> {
        (**self).publish(channel, messages)
    }

    fn subscribe<'a>(
        &'a self,
        channel: &'a Channel,
        from: StartPosition,
    ) -> BoxFuture<'a, Result<Box<dyn Subscription>>> {
        (**self).subscribe(channel, from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked() {
        for bad in ["", "a b", "a.b", "a/b", "ä", &"c".repeat(65)] {
            assert_eq!(Channel::parse(bad).expect_err(bad).kind(), ErrorKind::InvalidName);
        }
        assert_eq!(Channel::parse("products-EU_1").unwrap().as_str(), "products-EU_1");
        assert!(Identity::parse("").is_err() && Identity::parse(&"i".repeat(129)).is_err());
        assert!(Identity::parse("a b").is_err() && Identity::parse("3.17.19").is_ok());
        let message =
            |length| Message { identity: Identity::parse("1").unwrap(), body: Bytes::from(vec![0; length]) };
        assert!(message(BODY_BYTES_MAX).check().is_ok());
        assert_eq!(message(BODY_BYTES_MAX + 1).check().expect_err("large").kind(), ErrorKind::TooLarge);
    }
}
