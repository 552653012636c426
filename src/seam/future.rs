//! The type of a future behind a trait that is used as an object.

use std::future::Future;
use std::pin::Pin;

/// The future of a call of a store, a bus or an observer.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;
