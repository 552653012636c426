//! What the server does in one piece: adding entries with their numbers, and saying what it holds.

use ::redis::aio::MultiplexedConnection;
use ::redis::{RedisResult, Script};

use crate::bus::contract::{Channel, Message};
use crate::bus::redis::entry::{EntryId, Mark, Place};

/// Adds entries. The number is written behind the entry: should the server refuse one halfway, none is counted that is
/// not there. Keys: the stream, the hash. Arguments: an incarnation for a numbering that begins now, how many to
/// retain, the bodies.
const ADD: &str = "
redis.call('HSETNX', KEYS[2], 'in', ARGV[1])
local incarnation = redis.call('HGET', KEYS[2], 'in')
local number = tonumber(redis.call('HGET', KEYS[2], 'no') or '0')
for i = 3, #ARGV do
  number = number + 1
  local text = string.format('%.0f', number)
  redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[2], '*', 'in', incarnation, 'no', text, 'body', ARGV[i])
  redis.call('HSET', KEYS[2], 'no', text)
end
return #ARGV - 2
";

/// Says what the server holds: the incarnation and the last number that was counted, and of the entry with a name, of
/// the first and of the last one its name, incarnation and number. What is not there is empty. Keys: as above.
/// Arguments: an incarnation for a numbering that begins now, the entry's name.
const LOOK: &str = "
local function what(found)
  local entry = found[1]
  if not entry then return '', '', '' end
  local said = {}
  for i = 1, #entry[2], 2 do said[entry[2][i]] = entry[2][i + 1] end
  return entry[1], said['in'] or '', said['no'] or ''
end
redis.call('HSETNX', KEYS[2], 'in', ARGV[1])
local answer = {redis.call('HGET', KEYS[2], 'in'), redis.call('HGET', KEYS[2], 'no') or '0'}
local asked = {
  redis.call('XRANGE', KEYS[1], ARGV[2], ARGV[2]),
  redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1),
  redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1),
}
for i = 1, 3 do
  local id, incarnation, number = what(asked[i])
  answer[#answer + 1] = id
  answer[#answer + 1] = incarnation
  answer[#answer + 1] = number
end
return answer
";
const LOOK_ANSWERS: usize = 11;

/// Where a channel lies on the server. The braces keep both keys on one node of what is a cluster behind a proxy.
#[derive(Clone, Debug)]
pub(super) struct Keys {
    pub(super) stream: String,
    pub(super) place: String,
}

impl Keys {
    pub(super) fn of(prefix: &str, channel: &Channel) -> Keys {
        let stream = format!("{{{prefix}:{channel}}}");
        Keys { place: format!("{stream}:place"), stream }
    }
}

/// The scripts, which are sent to a server once and called by their digest.
pub(super) struct Scripts {
    add: Script,
    look: Script,
}

/// What a server holds of a channel.
#[derive(Debug)]
pub(super) struct Holding {
    /// The last entry that was counted.
    counted: Mark,
    /// The entry that was asked for.
    asked: Option<Place>,
    first: Option<Place>,
    last: Option<Place>,
}

impl Scripts {
    pub(super) fn new() -> Scripts {
        Scripts { add: Script::new(ADD), look: Script::new(LOOK) }
    }

    pub(super) async fn add(
        &self,
        connection: &mut MultiplexedConnection,
        keys: &Keys,
        incarnation: &str,
        retained: u64,
        messages: &[Message],
    ) -> RedisResult<()> {
        let mut call = self.add.key(&keys.stream);
        call.key(&keys.place).arg(incarnation).arg(retained);
        for message in messages {
            call.arg(&*message.body);
        }
        let added: usize = call.invoke_async(connection).await?;
        if added == messages.len() {
            return Ok(());
        }
        Err((::redis::ErrorKind::UnexpectedReturnType, "the script has added another number of entries")
            .into())
    }

    /// What the server holds, of the entry with this name among others.
    pub(super) async fn look(
        &self,
        connection: &mut MultiplexedConnection,
        keys: &Keys,
        incarnation: &str,
        id: EntryId,
    ) -> RedisResult<Holding> {
        let mut call = self.look.key(&keys.stream);
        call.key(&keys.place).arg(incarnation).arg(id.to_string());
        let answer: Vec<String> = call.invoke_async(connection).await?;
        holding(&answer).ok_or_else(|| {
            (::redis::ErrorKind::UnexpectedReturnType, "the keys hold something that is not of this bus")
                .into()
        })
    }
}

fn holding(answer: &[String]) -> Option<Holding> {
    if answer.len() != LOOK_ANSWERS {
        return None;
    }
    let (counted, entries) = answer.split_at_checked(2)?;
    let counted = Mark { incarnation: counted.first()?.clone(), number: counted.get(1)?.parse().ok()? };
    let mut places = entries.chunks(3).map(|entry| match entry {
        [id, ..] if id.is_empty() => Some(None),
        [id, incarnation, number] if !incarnation.is_empty() => {
            let mark = Mark { incarnation: incarnation.clone(), number: number.parse().ok()? };
            Some(Some(Place { mark, id: EntryId::parse(id)? }))
        }
        _ => None,
    });
    Some(Holding { counted, asked: places.next()??, first: places.next()??, last: places.next()?? })
}

impl Holding {
    /// The place before all that is held.
    pub(super) fn start(&self) -> Place {
        let mark = self.first.as_ref().map_or_else(|| self.counted.clone(), |first| first.mark.before());
        Place { mark, id: EntryId::default() }
    }

    /// The place behind all that is held.
    pub(super) fn end(&self) -> Place {
        let empty = || Place { mark: self.counted.clone(), id: EntryId::default() };
        self.last.clone().unwrap_or_else(empty)
    }

    /// Whether a listener at `place`, for whose entry was asked, can be given all that came behind it. Streams are
    /// trimmed from their beginning, so where its own entry is, all behind it are.
    pub(super) fn follows(&self, place: &Place) -> bool {
        if let Some(asked) = &self.asked {
            return asked.mark == place.mark;
        }
        match &self.first {
            Some(first) => first.mark == place.mark.next() && first.id > place.id,
            None => self.counted == place.mark,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(text: &str) -> Holding {
        holding(&text.split(' ').map(|part| part.replace('.', "")).collect::<Vec<_>>()).unwrap()
    }

    fn place(incarnation: &str, number: u64, id: &str) -> Place {
        Place { mark: Mark { incarnation: incarnation.into(), number }, id: EntryId::parse(id).unwrap() }
    }

    #[test]
    fn what_is_missing_behind_a_place_is_noticed() {
        let held = answer("a 9 . . . 5-0 a 7 6-1 a 9");
        assert_eq!((held.start(), held.end()), (place("a", 6, "0-0"), place("a", 9, "6-1")));
        assert!(held.follows(&place("a", 6, "4-0")), "the next one is the first that is held");
        assert!(!held.follows(&place("a", 5, "4-0")), "number 6 was trimmed");
        assert!(!held.follows(&place("b", 6, "4-0")), "of another incarnation");
        assert!(!held.follows(&place("a", 9, "6-0")), "there is none of this name");
        assert!(!held.follows(&place("a", 6, "5-1")), "number 7 would not be read");
        let held = answer("a 9 5-1 a 8 5-0 a 7 6-1 a 9");
        assert!(held.follows(&place("a", 8, "5-1")));
        assert!(!held.follows(&place("a", 6, "5-1")), "the server lost data, and counted these anew");
        let trimmed = answer("a 9 . . . . . . . . .");
        assert!(trimmed.follows(&place("a", 9, "6-1")) && !trimmed.follows(&place("a", 8, "6-0")));
        assert!(!trimmed.follows(&place("a", 10, "6-2")), "the server lost number 10");
        assert_eq!(trimmed.start(), place("a", 9, "0-0"));
    }

    #[test]
    fn the_hash_alone_was_lost() {
        // The numbering begins anew: what is held can be read, and what comes next is noticed as another incarnation.
        let held = answer("b 0 6-1 a 9 5-0 a 7 6-1 a 9");
        assert!(held.follows(&place("a", 9, "6-1")));
        assert_eq!(held.end(), place("a", 9, "6-1"));
    }

    #[test]
    fn what_is_not_of_this_bus_is_refused() {
        let parts = |text: &str| text.split(' ').map(|part| part.replace('.', "")).collect::<Vec<_>>();
        for bad in ["a 9", "a x . . . . . . . . .", "a 9 . . . 5-0 . . 5-0 . .", "a 9 . . . 5 a 7 5 a 7"] {
            assert!(holding(&parts(bad)).is_none(), "{bad}");
        }
    }
}
