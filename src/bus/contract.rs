//! The contract of a bus: the traits [`Bus`] and [`Subscription`] and the types of their calls.
//!
//! A bus has channels, and each channel keeps its messages in one order for a limited time. A bus may lose, duplicate,
//! delay and reorder messages: the events inside them are numbered, and a listener notices all of this by their numbers
//! ([`crate::bus::tracker`]). But a bus must not hide what it knows. If it cannot deliver the messages after a
//! position, because they were trimmed or the server has lost its data, it delivers [`Delivery::PositionLost`].
//!
//! `testkit::bus_conformance` tests an implementation.

use std::fmt;

use bytes::Bytes;

use crate::error::{Error, ErrorKind, Result};
pub use crate::seam::future::BoxFuture;

/// The longest name of a channel, in bytes.
pub const CHANNEL_BYTES_MAX: usize = 64;
/// The longest identity of a message, in bytes.
pub const IDENTITY_BYTES_MAX: usize = 128;
/// The largest body of a message, in bytes. Publishers and listeners refuse larger ones.
pub const BODY_BYTES_MAX: usize = 512 << 10;

/// The name of a channel: 1 to 64 of `a-z A-Z 0-9 _ -`, so that no bus has to escape it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Channel(Box<str>);

impl Channel {
    /// Parses a name.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidName`].
    pub fn parse(name: &str) -> Result<Channel> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
        if name.is_empty() || name.len() > CHANNEL_BYTES_MAX || !name.chars().all(allowed) {
            // The name may come from outside, so it is cut and escaped before it gets into a log.
            let shown: String = name.chars().take(CHANNEL_BYTES_MAX).flat_map(char::escape_default).collect();
            let context = format!("channel name \"{shown}\": 1 to 64 of a-z A-Z 0-9 _ - are allowed");
            return Err(Error::new(ErrorKind::InvalidName, context));
        }
        Ok(Channel(name.into()))
    }

    /// Returns the name.
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

/// The identity of a message, by which a bus recognises one that is published twice: 1 to 128 of `a-z A-Z 0-9 _ . -`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Identity(Box<str>);

impl Identity {
    /// Parses a name.
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

    /// Returns the identity as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A message to be published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// The identity.
    pub identity: Identity,
    /// The contents, of at most [`BODY_BYTES_MAX`] bytes.
    pub body: Bytes,
}

impl Message {
    /// Checks the length of the body. A bus calls this for each message before it publishes any of them.
    ///
    /// # Errors
    /// [`ErrorKind::TooLarge`].
    pub fn check(&self) -> Result<()> {
        // Before anything is sent: a server with a lower limit of its own would fail in the middle of a call.
        if self.body.len() <= BODY_BYTES_MAX {
            return Ok(());
        }
        let context =
            format!("a message of {} bytes for a bus; the limit is {BODY_BYTES_MAX}", self.body.len());
        Err(Error::new(ErrorKind::TooLarge, context))
    }
}

/// The position of a message in a channel. Only the bus that made it knows the format.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Position(Box<str>);

impl Position {
    /// Makes a position from the text of a bus.
    #[must_use]
    pub fn new(text: impl Into<Box<str>>) -> Position {
        Position(text.into())
    }

    /// Returns the text of the bus.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The position at which a subscription starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StartPosition {
    /// At the end of the channel: delivers all messages published after [`Bus::subscribe`] has returned, and possibly
    /// some published shortly before.
    Now,
    /// At the oldest message that the bus still has.
    Oldest,
    /// Behind this message.
    After(Position),
}

/// A delivery of a subscription.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub enum Delivery {
    /// A message and its position. A message may be delivered more than once.
    Message(Position, Bytes),
    /// Messages are missing here, or the bus cannot exclude it: the next message after the last delivered one, or after
    /// the start of the subscription, is gone. The subscription goes on with the next message that the bus has.
    PositionLost,
}

/// A bus: named channels with any number of publishers and listeners.
///
/// Implement it to carry events over a message system of your own; `testkit::bus_conformance` tests it.
///
/// # Errors
/// Every error names the bus and the operation, and never contains credentials. [`ErrorKind::Transient`] may pass by
/// itself: the caller repeats the same call, and the bus reconnects if it has to. [`ErrorKind::BusFailed`] does not
/// pass by itself, such as refused credentials, or an object on the server that is not a channel of this bus.
pub trait Bus: Send + Sync + 'static {
    /// Publishes messages to a channel, in their order. On return the bus has them, as durably as it has any message.
    ///
    /// A message whose identity was published to the channel recently may be left out. Publishing it again is harmless.
    ///
    /// # Errors
    /// [`ErrorKind::TooLarge`] if a body is too large; nothing was published. After any other error the first messages
    /// may have been published, in their order, and the later ones not.
    ///
    /// # Cancellation
    /// As after an error.
    fn publish<'a>(&'a self, channel: &'a Channel, messages: &'a [Message]) -> BoxFuture<'a, Result<()>>;

    /// Subscribes to a channel. The channel need not exist before.
    ///
    /// A position that the bus no longer has is not an error: the first delivery is then [`Delivery::PositionLost`].
    ///
    /// # Errors
    /// [`ErrorKind::BusFailed`] for a position that is not of this bus.
    fn subscribe<'a>(
        &'a self,
        channel: &'a Channel,
        from: StartPosition,
    ) -> BoxFuture<'a, Result<Box<dyn Subscription>>>;
}

/// A subscription of one listener to one channel.
pub trait Subscription: Send {
    /// Waits for the next delivery and returns it.
    ///
    /// # Errors
    /// After an error the subscription can still be used. The next call goes on behind the last delivered message,
    /// reconnects if it has to, and returns [`Delivery::PositionLost`] if messages are missing meanwhile.
    ///
    /// # Cancellation
    /// Dropping the future loses no delivery.
    fn next(&mut self) -> BoxFuture<'_, Result<Delivery>>;
}

/// Forwards to a bus that was chosen at run time.
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

/// Forwards to a shared bus.
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
