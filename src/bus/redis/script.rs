//! The scripts that the server runs atomically: adding entries with their numbers, and reading the state of a channel.

use ::redis::aio::MultiplexedConnection;
use ::redis::{RedisResult, Script};

use crate::bus::contract::{Channel, Message};
use crate::bus::redis::entry::{EntryId, EntryNumber, EntryPosition};

/// Adds entries. The number is written after its entry: if the server refuses an entry halfway, no missing entry is
/// counted. Keys: the stream, the hash. Arguments: an incarnation in case the numbering begins now, the retention, the
/// bodies.
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

/// Returns the state of a channel: the incarnation, the last counted number, and ID, incarnation and number of three
/// entries: the one with the given ID, the first and the last. A missing entry gives empty strings. Keys: as above.
/// Arguments: an incarnation in case the numbering begins now, the ID.
const READ_STATE: &str = "
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
const STATE_FIELDS: usize = 11;

/// The keys of a channel. The braces keep both on one node of a cluster behind a proxy.
#[derive(Clone, Debug)]
pub(super) struct ChannelKeys {
    pub(super) stream: String,
    pub(super) place: String,
}

impl ChannelKeys {
    pub(super) fn new(prefix: &str, channel: &Channel) -> ChannelKeys {
        let stream = format!("{{{prefix}:{channel}}}");
        ChannelKeys { place: format!("{stream}:place"), stream }
    }
}

/// The scripts. They are sent to a server once and called by their digest.
pub(super) struct Scripts {
    add: Script,
    read_state: Script,
}

/// The state of a channel on the server.
#[derive(Debug)]
pub(super) struct ChannelState {
    /// The number of the last counted entry.
    counted: EntryNumber,
    /// The entry with the requested ID.
    asked: Option<EntryPosition>,
    first: Option<EntryPosition>,
    last: Option<EntryPosition>,
}

impl Scripts {
    pub(super) fn new() -> Scripts {
        Scripts { add: Script::new(ADD), read_state: Script::new(READ_STATE) }
    }

    pub(super) async fn add(
        &self,
        connection: &mut MultiplexedConnection,
        keys: &ChannelKeys,
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
        // A proxy or another program may have answered in place of the script.
        if added == messages.len() {
            return Ok(());
        }
        Err((::redis::ErrorKind::Client, "the script has added another number of entries").into())
    }

    /// Reads the state of a channel, with the entry of this ID.
    pub(super) async fn read_state(
        &self,
        connection: &mut MultiplexedConnection,
        keys: &ChannelKeys,
        incarnation: &str,
        id: EntryId,
    ) -> RedisResult<ChannelState> {
        let mut call = self.read_state.key(&keys.stream);
        call.key(&keys.place).arg(incarnation).arg(id.to_string());
        let answer: Vec<String> = call.invoke_async(connection).await?;
        holding(&answer).ok_or_else(|| {
            (::redis::ErrorKind::Client, "the keys hold something that is not of this bus").into()
        })
    }
}

fn holding(answer: &[String]) -> Option<ChannelState> {
    // Another program or a proxy may answer in place of the script.
    if answer.len() != STATE_FIELDS {
        return None;
    }
    let (counted, entries) = answer.split_at_checked(2)?;
    let counted =
        EntryNumber { incarnation: counted.first()?.clone(), number: counted.get(1)?.parse().ok()? };
    let mut places = entries.chunks(3).map(|entry| match entry {
        [id, ..] if id.is_empty() => Some(None),
        [id, incarnation, number] if !incarnation.is_empty() => {
            let mark = EntryNumber { incarnation: incarnation.clone(), number: number.parse().ok()? };
            Some(Some(EntryPosition { mark, id: EntryId::parse(id)? }))
        }
        _ => None,
    });
    Some(ChannelState { counted, asked: places.next()??, first: places.next()??, last: places.next()?? })
}

impl ChannelState {
    /// Returns the position before the first entry.
    pub(super) fn start(&self) -> EntryPosition {
        let mark = self.first.as_ref().map_or_else(|| self.counted.clone(), |first| first.mark.before());
        EntryPosition { mark, id: EntryId::default() }
    }

    /// Returns the position behind the last entry.
    pub(super) fn end(&self) -> EntryPosition {
        let empty = || EntryPosition { mark: self.counted.clone(), id: EntryId::default() };
        self.last.clone().unwrap_or_else(empty)
    }

    /// Returns true if the stream has all entries behind `place`, whose entry was requested. Streams are trimmed from
    /// their start, so if the entry itself is there, all entries behind it are.
    pub(super) fn follows(&self, place: &EntryPosition) -> bool {
        // The same ID with another number is of a stream that was deleted and filled again.
        if let Some(asked) = &self.asked {
            return asked.mark == place.mark;
        }
        match &self.first {
            // The entry itself is trimmed and the next one is the oldest that is left, so nothing between the two
            // is missing.
            Some(first) => first.mark == place.mark.next() && first.id > place.id,
            // An empty stream has lost nothing if no entry was counted behind this one.
            None => self.counted == place.mark,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(text: &str) -> ChannelState {
        holding(&text.split(' ').map(|part| part.replace('.', "")).collect::<Vec<_>>()).unwrap()
    }

    fn place(incarnation: &str, number: u64, id: &str) -> EntryPosition {
        EntryPosition {
            mark: EntryNumber { incarnation: incarnation.into(), number },
            id: EntryId::parse(id).unwrap(),
        }
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
