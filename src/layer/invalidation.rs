//! What makes entries of open caches unservable without naming them one by one, and the tokens that say so durably.
//!
//! A directive is carried out in memory at once, and again when the write that it belongs to has taken effect: so
//! neither what a load found before the write nor what it found until the write was confirmed is served afterwards.
//! Carrying it out once too often costs reloads and nothing else.
//!
//! A token is an ordinary record in a namespace that no cache can have. It goes through the journal to the store like
//! every other, so it survives what its durability survives, and its sequence number is the token.

use std::sync::Arc;

use crate::error::{Error, ErrorKind, Result};
use crate::ids::{Key, NamespaceName, Seq};
use crate::journal::frame::FrameBuilder;
use crate::layer::layer::Layer;
use crate::memory::scope::Scope;
use crate::memory::views::{AnyKey, Views};
use crate::options::WritePolicy;
use crate::queue::key_locks::KeyGuard;
use crate::queue::record::{Operation, push};
use crate::queue::ticket::{Effect, Effects};
use crate::safeguard::Safeguard;

/// Where tokens are kept; no cache can have this name.
const TOKENS: &str = "!tokens";
const NAMESPACE_TOKEN: u8 = 1;
const GROUP_TOKEN: u8 = 2;
const TAG_TOKEN: u8 = 3;
const SCHEMA_TOKEN: u8 = 4;
/// What a token's record holds: its format. Everything else is in its key and its sequence number.
const TOKEN: [u8; 1] = [1];

/// The longest group name, in bytes.
pub const GROUP_BYTES_MAX: usize = 255;

/// What is not to be served any more.
pub enum Directive {
    /// A key of a cache.
    Key(NamespaceName, Box<AnyKey>),
    /// A group, or what has a tag.
    Scope(Scope),
    /// Everything in a namespace and below it.
    Namespace(NamespaceName),
}

impl Directive {
    /// Carries it out in the memory of all open caches.
    pub fn carry_out(&self, views: &Views) {
        match self {
            Directive::Key(namespace, key) => {
                if let Some(view) = views.view(namespace.as_str()) {
                    view.invalidate_key(key.as_ref());
                }
            }
            Directive::Scope(scope) => views.scopes().invalidate(*scope),
            Directive::Namespace(name) => {
                let views_open = views.lock();
                // The tick under the lock: a cache that is opened later holds nothing older.
                let floor = views.scopes().advance();
                let within =
                    views_open.iter().filter(|(namespace, _)| match Safeguard::NamespaceBelow.holds() {
                        true => namespace.is_within(name),
                        false => *namespace == name,
                    });
                within.for_each(|(_, view)| view.invalidate_namespace(floor));
            }
        }
    }

    /// Whether it can be carried out: a key has to be of its cache's type, if that is open.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidOption`].
    pub fn check(&self, views: &Views) -> Result<()> {
        let Directive::Key(namespace, key) = self else { return Ok(()) };
        let fits = views.view(namespace.as_str()).is_none_or(|view| view.has_key_type(key.as_ref()));
        if fits {
            return Ok(());
        }
        let context = format!("a rule names a key of cache \"{namespace}\" that is not of that cache's type");
        Err(Error::new(ErrorKind::InvalidOption, context))
    }

    /// The key of the token that makes it durable; only namespaces have one among what rules name.
    pub(crate) fn token(&self) -> Option<Result<Key>> {
        match self {
            Directive::Namespace(name) => Some(namespace_token(name)),
            _ => None,
        }
    }
}

/// Directives that belong to a write. They are carried out again when this is dropped, which is when the write has
/// taken effect, or has ended otherwise.
pub(crate) struct Aftermath {
    views: Arc<Views>,
    directives: Vec<Directive>,
    _key_guard: KeyGuard,
}

impl Aftermath {
    /// Carries them out for the first time.
    ///
    /// # Errors
    /// As [`Directive::check`]; none of them is carried out then.
    pub(crate) fn begin(layer: &Layer, directives: Vec<Directive>, key_guard: KeyGuard) -> Result<Aftermath> {
        directives.iter().try_for_each(|directive| directive.check(layer.views()))?;
        layer.catch_up();
        let aftermath = Aftermath { views: Arc::clone(layer.views()), directives, _key_guard: key_guard };
        aftermath.carry_out();
        Ok(aftermath)
    }

    fn carry_out(&self) {
        self.directives.iter().for_each(|directive| directive.carry_out(&self.views));
    }

    /// Adds the tokens that make them durable.
    pub(crate) fn push_tokens(&self, frame: &mut FrameBuilder) -> Result<usize> {
        let mut count = 0;
        for key in self.directives.iter().filter_map(Directive::token) {
            push_token(frame, &key?)?;
            count += 1;
        }
        Ok(count)
    }
}

impl Drop for Aftermath {
    fn drop(&mut self) {
        if Safeguard::DirectivesAgain.holds() {
            self.carry_out();
        }
    }
}

impl Effect for Aftermath {
    fn publish(self: Box<Self>, _seq: Seq) {
        drop(self);
    }
}

impl Layer {
    /// Invalidates a namespace and everything below it, in memory at once and durably before it returns.
    ///
    /// # Errors
    /// As [`Layer::write`]; memory has forgotten everything all the same.
    pub async fn invalidate_namespace(&self, name: &NamespaceName) -> Result<Seq> {
        self.invalidate(Directive::Namespace(name.clone()), &namespace_token(name)?, &TOKEN).await
    }

    /// Invalidates a group of a namespace likewise.
    ///
    /// # Errors
    /// As [`Layer::invalidate_namespace`].
    pub async fn invalidate_group(&self, namespace: &NamespaceName, group: &str) -> Result<Seq> {
        let scope = self.views().scopes().group(namespace.as_str(), group);
        self.invalidate(Directive::Scope(scope), &group_token(namespace, group)?, &TOKEN).await
    }

    /// Invalidates what has a tag likewise.
    ///
    /// # Errors
    /// As [`Layer::invalidate_namespace`].
    pub async fn invalidate_tag(&self, tag: &str) -> Result<Seq> {
        let scope = self.views().scopes().tag(tag);
        self.invalidate(Directive::Scope(scope), &token(&[&[TAG_TOKEN], tag.as_bytes()])?, &TOKEN).await
    }

    /// Tells others that a namespace's values have this schema version now. For the namespace as it is here, it is an
    /// invalidation of what is in memory.
    ///
    /// # Errors
    /// As [`Layer::invalidate_namespace`].
    pub async fn announce_schema(&self, name: &NamespaceName, schema: u8) -> Result<Seq> {
        let key = token(&[&[SCHEMA_TOKEN], name.as_str().as_bytes()])?;
        let [format] = TOKEN;
        self.invalidate(Directive::Namespace(name.clone()), &key, &[format, schema]).await
    }

    async fn invalidate(&self, directive: Directive, token: &Key, value: &[u8]) -> Result<Seq> {
        let aftermath = Aftermath::begin(self, vec![directive], KeyGuard::default())?;
        if !Safeguard::TokenIsDurable.holds() {
            return Ok(self.last_committed());
        }
        let mut frame = FrameBuilder::new();
        push(&mut frame, Operation::Put, true, token.as_bytes(), value)?;
        let policy = if self.has_journal() { WritePolicy::Behind } else { WritePolicy::Through };
        self.write(frame.finish(), policy, Effects::One(Box::new(aftermath))).await
    }

    /// When a namespace, or one that it lies below, was invalidated last; zero if never.
    ///
    /// # Errors
    /// As a read's; a token that cannot be read is never taken for one that is not there.
    pub async fn namespace_token(&self, name: &NamespaceName) -> Result<Seq> {
        let keys = name.path().map(|name| namespace_token(&name)).collect::<Result<Vec<_>>>()?;
        self.newest_token(&keys).await
    }

    /// The same for a group of a namespace.
    ///
    /// # Errors
    /// As [`Layer::namespace_token`].
    pub async fn group_token(&self, namespace: &NamespaceName, group: &str) -> Result<Seq> {
        let mut keys = namespace.path().map(|name| namespace_token(&name)).collect::<Result<Vec<_>>>()?;
        keys.push(group_token(namespace, group)?);
        self.newest_token(&keys).await
    }

    async fn newest_token(&self, keys: &[Key]) -> Result<Seq> {
        let mut newest = Seq::ZERO;
        for token in self.reads().load_many(keys).await?.into_iter().filter_map(|answer| answer.value) {
            if token.value.as_ref() != TOKEN.as_slice() {
                let context = format!("a token of {} bytes is of an unknown format", token.value.len());
                return Err(Error::new(ErrorKind::UnknownFormat, context));
            }
            newest = newest.max(token.version);
        }
        Ok(newest)
    }
}

/// What a token says.
pub(crate) enum Token {
    Namespace(NamespaceName),
    Group(NamespaceName, String),
    Tag(String),
    /// Which one it is, its value says.
    Schema(NamespaceName),
}

/// What the token under this key says, if it is one.
pub(crate) fn token_of(key: &Key) -> Option<Token> {
    let (&kind, name) = (key.namespace() == TOKENS).then(|| key.key().split_first()).flatten()?;
    let name = std::str::from_utf8(name).ok()?;
    match kind {
        NAMESPACE_TOKEN => NamespaceName::parse(name).ok().map(Token::Namespace),
        TAG_TOKEN => Some(Token::Tag(name.to_owned())),
        SCHEMA_TOKEN => NamespaceName::parse(name).ok().map(Token::Schema),
        GROUP_TOKEN => {
            let (namespace, group) = name.split_once('\0')?;
            Some(Token::Group(NamespaceName::parse(namespace).ok()?, group.to_owned()))
        }
        _ => None,
    }
}

fn push_token(frame: &mut FrameBuilder, key: &Key) -> Result<()> {
    push(frame, Operation::Put, true, key.as_bytes(), &TOKEN)
}

fn namespace_token(name: &NamespaceName) -> Result<Key> {
    token(&[&[NAMESPACE_TOKEN], name.as_str().as_bytes()])
}

/// A namespace's name holds no zero byte, so the two names cannot run into each other.
fn group_token(namespace: &NamespaceName, group: &str) -> Result<Key> {
    token(&[&[GROUP_TOKEN], namespace.as_str().as_bytes(), &[0], group.as_bytes()])
}

fn token(parts: &[&[u8]]) -> Result<Key> {
    Key::new(&NamespaceName::reserved(TOKENS), &parts.concat())
}
