//! The loaders that readers bring: any async function to a value or an error, boxed behind one type.

use std::error::Error as StdError;
use std::future::Future;
use std::pin::Pin;

use crate::cache::entry::Loaded;
use crate::error::{Error, ErrorKind, Result};
use crate::seam::clock::Handle;

/// The error type of a loader: any error, or a text. It is kept, and found again by the error's `source()`.
pub trait LoadError: Into<Box<dyn StdError + Send + Sync>> + Send + 'static {}
impl<E: Into<Box<dyn StdError + Send + Sync>> + Send + 'static> LoadError for E {}

/// The future of a loader that has been called.
pub(crate) type Loading<T> = Pin<Box<dyn Future<Output = Result<T>> + Send>>;

/// A loader of one key.
pub(crate) struct Loader<K, V> {
    /// True if it records the keys that it reads.
    pub(crate) derives: bool,
    pub(crate) load: Box<dyn FnOnce(K) -> Loading<Loaded<V>> + Send>,
}

/// A loader of several keys, which answers in their order.
pub(crate) type ManyLoader<K, V> = Box<dyn FnOnce(Vec<K>) -> Loading<Vec<Loaded<V>>> + Send>;

/// Boxes a loader of one key.
pub(crate) fn loader<K, V, T, E, F>(load: impl FnOnce(K) -> F + Send + 'static) -> Loader<K, V>
where
    K: Send + 'static,
    F: Future<Output = Result<T, E>> + Send + 'static,
    T: Into<Loaded<V>>,
    E: LoadError,
{
    let load = Box::new(move |key| -> Loading<Loaded<V>> {
        Box::pin(async move { load(key).await.map(Into::into).map_err(loader_failed) })
    });
    Loader { derives: false, load }
}

/// Boxes a loader of several keys, and checks that it answers for each.
pub(crate) fn many_loader<K, V, T, E, F>(load: impl FnOnce(Vec<K>) -> F + Send + 'static) -> ManyLoader<K, V>
where
    K: Send + 'static,
    F: Future<Output = Result<Vec<T>, E>> + Send + 'static,
    T: Into<Loaded<V>>,
    E: LoadError,
{
    Box::new(move |keys| {
        let asked = keys.len();
        Box::pin(async move {
            let loaded = load(keys).await.map_err(loader_failed)?;
            // With another number of answers nobody could tell which value belongs to which key.
            if loaded.len() != asked {
                let context = format!("the loader answered {} keys out of {asked}", loaded.len());
                return Err(Error::new(ErrorKind::LoadFailed, context));
            }
            Ok(loaded.into_iter().map(Into::into).collect())
        })
    })
}

/// The future of a blocking loader.
pub(crate) type BlockingLoad<T> =
    Pin<Box<dyn Future<Output = Result<T, Box<dyn StdError + Send + Sync>>> + Send>>;

/// Makes an async loader of one that blocks: it runs on a thread of the layer's runtime that may be blocked.
pub(crate) fn on_blocking_thread<A, T, E>(
    runtime: &Handle,
    load: impl FnOnce(A) -> Result<T, E> + Send + 'static,
) -> impl FnOnce(A) -> BlockingLoad<T> + Send + 'static
where
    A: Send + 'static,
    T: Send + 'static,
    E: LoadError,
{
    let runtime = runtime.clone();
    move |asked| {
        Box::pin(async move {
            // Not on the runtime's only worker: a loader that sleeps would stop the layer's timers.
            let loaded = runtime.spawn_blocking(move || load(asked).map_err(Into::into)).await;
            // The join fails after a panic, or when the runtime shuts down: an error, so that no reader waits for ever.
            loaded.unwrap_or_else(|_| Err("the loader panicked, or the layer closed".into()))
        })
    }
}

/// Wraps the error of a user's loader, which stays the source.
pub(crate) fn loader_failed(error: impl LoadError) -> Error {
    Error::with_source(ErrorKind::LoadFailed, "the loader failed", error)
}

/// The error that everyone gets who waited for a load that panicked.
pub(crate) fn load_panicked() -> Error {
    Error::new(ErrorKind::LoadFailed, "the load panicked")
}
