//! The loaders that readers bring: any function to a value or an error, behind one type.

use std::error::Error as StdError;
use std::future::Future;
use std::pin::Pin;

use crate::cache::derive::LoadContext;
use crate::cache::entry::Loaded;
use crate::error::{Error, ErrorKind, Result};

/// What a loader's failure may be.
pub trait LoadError: Into<Box<dyn StdError + Send + Sync>> + Send + 'static {}
impl<E: Into<Box<dyn StdError + Send + Sync>> + Send + 'static> LoadError for E {}

type Loading<T> = Pin<Box<dyn Future<Output = Result<T>> + Send>>;

/// Loads one key.
pub(crate) struct Loader<K, V> {
    /// Whether it records what it reads.
    pub(crate) derives: bool,
    pub(crate) load: Box<dyn FnOnce(K) -> Loading<Loaded<V>> + Send>,
}

/// Loads several keys, in their order.
pub(crate) type ManyLoader<K, V> = Box<dyn FnOnce(Vec<K>) -> Loading<Vec<Loaded<V>>> + Send>;

pub(crate) fn loader<K, V, T, E, F>(load: impl FnOnce(K) -> F + Send + 'static) -> Loader<K, V>
where
    K: Send + 'static,
    F: Future<Output = Result<T, E>> + Send + 'static,
    T: Into<Loaded<V>>,
    E: LoadError,
{
    let load = Box::new(move |key| -> Loading<Loaded<V>> {
        Box::pin(async move { load(key).await.map(Into::into).map_err(failed) })
    });
    Loader { derives: false, load }
}

/// One that is given `context` to read through.
pub(crate) fn deriver<K, V, T, E, F>(
    context: LoadContext,
    load: impl FnOnce(K, LoadContext) -> F + Send + 'static,
) -> Loader<K, V>
where
    K: Send + 'static,
    F: Future<Output = Result<T, E>> + Send + 'static,
    T: Into<Loaded<V>>,
    E: LoadError,
{
    let load = Box::new(move |key| -> Loading<Loaded<V>> {
        Box::pin(async move {
            let loaded = load(key, context.clone()).await.map_err(failed)?;
            Ok(Loaded { read: context.take(), ..loaded.into() })
        })
    });
    Loader { derives: true, load }
}

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
            let loaded = load(keys).await.map_err(failed)?;
            if loaded.len() != asked {
                let context = format!("the loader answered {} keys out of {asked}", loaded.len());
                return Err(Error::new(ErrorKind::LoadFailed, context));
            }
            Ok(loaded.into_iter().map(Into::into).collect())
        })
    })
}

fn failed(error: impl LoadError) -> Error {
    Error::with_source(ErrorKind::LoadFailed, "the loader failed", error)
}

/// What everybody learns who waited for a load that panicked.
pub(crate) fn panicked() -> Error {
    Error::new(ErrorKind::LoadFailed, "the load panicked")
}
