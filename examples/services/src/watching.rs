//! The consistency monitor's eyes: it asks the followers through the lines that they answer.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use forebay::monitor::{Served, Trouble};
use forebay::store::BoxFuture;
use forebay::{Bincode, Codec as _, Error, ErrorKind, Key, Observation, Observer, Seq};

use crate::Role;
use crate::driver::{Shared, name};
use crate::world::Inputs;

/// The interval between two looks for an answer.
const LOOK: Duration = Duration::from_millis(5);

/// The number of the next question.
static NUMBER: AtomicU64 = AtomicU64::new(0);

/// One follower.
pub(crate) struct Watched {
    pub(crate) role: Role,
    pub(crate) inputs: Inputs,
    pub(crate) heard: Shared,
}

impl Observer for Watched {
    fn name(&self) -> &str {
        name(self.role)
    }

    fn observe<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, forebay::Result<Observation>> {
        Box::pin(async move {
            let unreachable = |why: String| Error::new(ErrorKind::Transient, why);
            let product =
                Bincode::decode::<u64>(key.key()).map_err(|error| unreachable(error.to_string()))?;
            let question = format!("ask {{}} {product}");
            let answer = ask(&self.inputs, &self.heard, self.role, &question).await;
            let answer = answer.map_err(|error| unreachable(format!("{error:#}")))?;
            observation(&answer).ok_or_else(|| unreachable(format!("\"{answer}\" is no answer")))
        })
    }
}

fn observation(answer: &str) -> Option<Observation> {
    let words: Vec<&str> = answer.split(' ').collect();
    let [state, version, heard_until, trouble] = words.as_slice() else { return None };
    let state = match *state {
        "fresh" => Served::Fresh,
        "unverified" => Served::Unverified,
        "absent" => Served::Absent,
        "store" => Served::Store,
        _ => return None,
    };
    let version = Some(Seq::new(version.parse().ok()?)).filter(|version| *version > Seq::ZERO);
    let trouble = (*trouble == "gap").then_some(Trouble::Gap);
    let heard_until = Some(Seq::new(heard_until.parse().ok()?));
    Some(Observation { version, state, heard_until, trouble })
}

/// Asks with a number in the place of the braces, and waits for the answer.
pub(crate) async fn ask(
    inputs: &Inputs,
    heard: &Shared,
    role: Role,
    question: &str,
) -> anyhow::Result<String> {
    let number = NUMBER.fetch_add(1, Ordering::SeqCst);
    inputs.ask(role, &question.replace("{}", &number.to_string()))?;
    loop {
        if let Some(answer) =
            heard.lock().map_err(|_| anyhow::anyhow!("the listener panicked"))?.answer(number)
        {
            return Ok(answer);
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// All of them.
pub(crate) fn followers(inputs: &Inputs, heard: &Shared, roles: [Role; 2]) -> Vec<Arc<dyn Observer>> {
    let watched = |role| Watched { role, inputs: inputs.clone(), heard: Arc::clone(heard) };
    roles.into_iter().map(|role| Arc::new(watched(role)) as Arc<dyn Observer>).collect()
}
