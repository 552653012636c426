//! Carries out invalidations: in memory before the write that they belong to, durably by a token, and in memory again
//! after the write.
//!
//! The second time is needed because a load may read the old value from the store until the write is applied there. One
//! invalidation too many costs reloads and nothing else.

use std::sync::Arc;

use crate::error::{Error, ErrorKind, Result};
use crate::ids::{NamespaceName, Seq};
use crate::invalidation::{Invalidation, is_token_value};
use crate::journal::frame::FrameBuilder;
use crate::layer::layer::Layer;
use crate::memory::views::{RuleTarget, Views};
use crate::options::WritePolicy;
use crate::queue::key_locks::KeyGuard;
use crate::queue::record::{Operation, push};
use crate::queue::ticket::{Effect, Effects};
use crate::safeguard::Safeguard;

/// The invalidations that belong to a write. Dropping this carries them out again.
///
/// It is dropped when the write has taken effect or has failed. It holds the locks of the write's keys until then.
pub(crate) struct PostCommitInvalidation {
    views: Arc<Views>,
    targets: Vec<RuleTarget>,
    _key_guard: KeyGuard,
}

impl PostCommitInvalidation {
    /// Carries them out for the first time.
    ///
    /// # Errors
    /// As [`RuleTarget::check`]; none of them is carried out then.
    pub(crate) fn begin(
        layer: &Layer,
        targets: Vec<RuleTarget>,
        key_guard: KeyGuard,
    ) -> Result<PostCommitInvalidation> {
        // Checked before any of them is carried out, so that a bad target does not leave the others half done.
        targets.iter().try_for_each(|target| target.check(layer.views()))?;
        // A write that is acknowledged and not yet in memory would put its value there after the invalidation.
        layer.catch_up();
        let begun =
            PostCommitInvalidation { views: Arc::clone(layer.views()), targets, _key_guard: key_guard };
        begun.carry_out();
        Ok(begun)
    }

    fn carry_out(&self) {
        self.targets.iter().for_each(|target| target.carry_out(&self.views));
    }

    /// Adds the tokens of the invalidated namespaces to the frame of the write, and returns their count.
    ///
    /// Keys and tags that a rule names get no token: a follower derives them from the write itself.
    pub(crate) fn push_tokens(&self, frame: &mut FrameBuilder) -> Result<usize> {
        let mut count = 0;
        for target in &self.targets {
            if let RuleTarget::Invalidation(what @ Invalidation::Namespace(_)) = target
                && let Some((key, value)) = what.token()?
            {
                push(frame, Operation::Put, true, key.as_bytes(), &value)?;
                count += 1;
            }
        }
        Ok(count)
    }
}

impl Drop for PostCommitInvalidation {
    fn drop(&mut self) {
        if Safeguard::DirectivesAgain.holds() {
            self.carry_out();
        }
    }
}

impl Effect for PostCommitInvalidation {
    fn publish(self: Box<Self>, _seq: Seq) {
        drop(self);
    }
}

impl Layer {
    /// Invalidates in memory at once, and writes a durable token before it returns. Returns the token's number.
    ///
    /// # Errors
    /// As [`Layer::write`]. The invalidation in memory has been carried out even then.
    pub async fn invalidate(&self, what: Invalidation) -> Result<Seq> {
        let token = what.token()?;
        let targets = vec![RuleTarget::Invalidation(what)];
        let begun = PostCommitInvalidation::begin(self, targets, KeyGuard::default())?;
        let Some((key, value)) = token.filter(|_| Safeguard::TokenIsDurable.holds()) else {
            return Ok(self.last_committed());
        };
        let mut frame = FrameBuilder::new();
        push(&mut frame, Operation::Put, true, key.as_bytes(), &value)?;
        // A token needs no write-through to be durable. Without a journal only the store can hold it.
        let policy = if self.has_journal() { WritePolicy::Behind } else { WritePolicy::Through };
        self.write(frame.finish(), policy, Effects::One(Box::new(begun))).await
    }

    /// Returns the number of the last invalidation of a namespace or of one of its ancestors; zero if there was none.
    ///
    /// # Errors
    /// As a read. A token that cannot be read is an error, never a missing token.
    pub async fn namespace_token(&self, name: &NamespaceName) -> Result<Seq> {
        self.newest_token(name.path().map(Invalidation::Namespace)).await
    }

    /// Returns the number of the last invalidation of a group, of its namespace or of an ancestor of that.
    ///
    /// # Errors
    /// As [`Layer::namespace_token`].
    pub async fn group_token(&self, namespace: &NamespaceName, group: &str) -> Result<Seq> {
        let group = Invalidation::group(namespace, group);
        self.newest_token(namespace.path().map(Invalidation::Namespace).chain([group])).await
    }

    async fn newest_token(&self, of: impl Iterator<Item = Invalidation>) -> Result<Seq> {
        let tokens = of.map(|what| what.token()).collect::<Result<Vec<_>>>()?;
        let keys: Vec<_> = tokens.into_iter().flatten().map(|(key, _)| key).collect();
        let mut newest = Seq::ZERO;
        for token in self.reads().load_many(&keys).await?.into_iter().filter_map(|answer| answer.value) {
            // A newer version of the crate may have written it. Skipping it would lose an invalidation.
            if !is_token_value(&token.value) {
                let context = format!("a token of {} bytes is of an unknown format", token.value.len());
                return Err(Error::new(ErrorKind::UnknownFormat, context));
            }
            newest = newest.max(token.version);
        }
        Ok(newest)
    }
}
