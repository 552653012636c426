//! One sled store for several processes: a server in the parent, and a [`Store`] for the children that calls it.
//!
//! sled lets one process at a time open a database, so two owners that both live need somebody between them and the
//! store, as they would with a database server. A call is one connection to a Unix socket: the request until its end,
//! then the answer. What a frozen client has sent wholly may be applied; what it had not waits in its memory and
//! arrives late, which is what fencing is about.

use std::io::{Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};

use anyhow::{Context as _, Result, anyhow};
use bytes::Bytes;
use forebay::SledStore;
use forebay::store::{Batch, BoxFuture, Claim, Op, Standing, Store, StoreError, Tenure, Versioned};
use forebay::{Epoch, Error, ErrorKind, Key, Seq};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize)]
enum Request {
    Standing,
    Claim(Claim),
    Load { keys: Vec<Vec<u8>> },
    Apply { tenure: Tenure, number: u64, after: Seq, until: Seq, journaled: Seq, ops: Vec<PlainOp> },
}

/// The number, the key and the value of a change.
type PlainOp = (Seq, Vec<u8>, Option<Vec<u8>>);

#[derive(Serialize, Deserialize)]
enum Answer {
    Standing(Standing),
    Loaded(Vec<Option<(Vec<u8>, Seq)>>),
    Applied,
    Fenced { current: Epoch },
    WentBack { tenure: Tenure, watermark: Seq },
    Failed(String),
}

/// Serves a store until it is stopped.
pub(crate) struct Server {
    path: PathBuf,
    stopping: Arc<AtomicBool>,
    fenced: Arc<AtomicU64>,
    thread: JoinHandle<()>,
}

impl Server {
    /// Opens the store in `store` and listens on the socket `path`.
    pub(crate) fn start(store: &Path, path: &Path) -> Result<Server> {
        let store = SledStore::open(store)?;
        if path.exists() {
            std::fs::remove_file(path)?;
        }
        let listener =
            UnixListener::bind(path).with_context(|| format!("listening on {}", path.display()))?;
        let stopping = Arc::new(AtomicBool::new(false));
        let fenced = Arc::new(AtomicU64::new(0));
        let (stop, count) = (Arc::clone(&stopping), Arc::clone(&fenced));
        let thread = thread::spawn(move || {
            thread::scope(|scope| {
                for stream in listener.incoming() {
                    if stop.load(Ordering::SeqCst) {
                        return;
                    }
                    let (store, count) = (&store, &count);
                    // A client that died in the middle of a call is what this program is for.
                    scope
                        .spawn(move || drop(stream.map_err(Into::into).and_then(|s| serve(store, s, count))));
                }
            });
        });
        Ok(Server { path: path.to_owned(), stopping, fenced, thread })
    }

    /// Applies and claims of an older epoch that the store has refused.
    pub(crate) fn fenced(&self) -> u64 {
        self.fenced.load(Ordering::SeqCst)
    }

    /// Ends the server and closes the store. The clients have to be dead.
    pub(crate) fn stop(self) -> Result<()> {
        self.stopping.store(true, Ordering::SeqCst);
        // The listener looks at the flag when somebody comes.
        drop(UnixStream::connect(&self.path)?);
        self.thread.join().map_err(|_| anyhow!("the store's server panicked"))
    }
}

fn serve(store: &SledStore, mut stream: UnixStream, fenced: &AtomicU64) -> Result<()> {
    let mut request = Vec::new();
    stream.read_to_end(&mut request)?;
    // A client that was killed halfway has sent half a request.
    let Ok(request) = bincode::deserialize::<Request>(&request) else { return Ok(()) };
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    let answer = runtime.block_on(answer(store, request)).unwrap_or_else(|error| match error {
        StoreError::Fenced { current } => {
            fenced.fetch_add(1, Ordering::SeqCst);
            Answer::Fenced { current }
        }
        StoreError::WentBack { tenure, watermark } => Answer::WentBack { tenure, watermark },
        error => Answer::Failed(format!("{:#}", error.into_error())),
    });
    stream.write_all(&bincode::serialize(&answer)?)?;
    Ok(())
}

async fn answer(store: &SledStore, request: Request) -> Result<Answer, StoreError> {
    let key = |bytes: Vec<u8>| Key::from_bytes(Bytes::from(bytes)).map_err(StoreError::Fatal);
    Ok(match request {
        Request::Standing => Answer::Standing(store.standing().await?),
        Request::Claim(claim) => Answer::Standing(store.claim(&claim).await?),
        Request::Load { keys } => {
            let keys = keys.into_iter().map(key).collect::<Result<Vec<Key>, StoreError>>()?;
            let found = store.load_many(&keys).await?;
            let plain = |found: Versioned| (found.value.to_vec(), found.version);
            Answer::Loaded(found.into_iter().map(|found| found.map(plain)).collect())
        }
        Request::Apply { tenure, number, after, until, journaled, ops } => {
            let op = |(seq, of, value): PlainOp| Ok(Op { seq, key: key(of)?, value: value.map(Bytes::from) });
            let ops = ops.into_iter().map(op).collect::<Result<Vec<Op>, StoreError>>()?;
            store.apply(&Batch { tenure, number, after, until, journaled, ops }).await?;
            Answer::Applied
        }
    })
}

/// The store that a [`Server`] serves.
#[derive(Clone)]
pub(crate) struct ServedStore(PathBuf);

impl ServedStore {
    pub(crate) fn new(socket: PathBuf) -> ServedStore {
        ServedStore(socket)
    }

    fn call(&self, request: &Request) -> Result<Answer, StoreError> {
        let exchanged = || -> std::io::Result<Vec<u8>> {
            let request = bincode::serialize(request).map_err(std::io::Error::other)?;
            let mut stream = UnixStream::connect(&self.0)?;
            stream.write_all(&request)?;
            stream.shutdown(Shutdown::Write)?;
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer)?;
            Ok(answer)
        };
        let failed = |error| StoreError::Transient(Error::io(format!("calling {}", self.0.display()), error));
        let answer = exchanged().map_err(failed)?;
        match bincode::deserialize(&answer) {
            Ok(Answer::Fenced { current }) => Err(StoreError::Fenced { current }),
            Ok(Answer::WentBack { tenure, watermark }) => Err(StoreError::WentBack { tenure, watermark }),
            Ok(Answer::Failed(why)) => Err(StoreError::Fatal(Error::new(ErrorKind::StoreFailed, why))),
            Ok(answer) => Ok(answer),
            Err(error) => Err(failed(std::io::Error::other(error))),
        }
    }

    fn standing_of(&self, request: &Request) -> Result<Standing, StoreError> {
        match self.call(request)? {
            Answer::Standing(standing) => Ok(standing),
            _ => Err(unexpected()),
        }
    }

    fn found(&self, keys: &[Key]) -> Result<Vec<Option<Versioned>>, StoreError> {
        let keys = keys.iter().map(|key| key.as_bytes().to_vec()).collect();
        match self.call(&Request::Load { keys })? {
            Answer::Loaded(found) => Ok(found
                .into_iter()
                .map(|found| found.map(|(value, version)| Versioned { value: value.into(), version }))
                .collect()),
            _ => Err(unexpected()),
        }
    }
}

fn unexpected() -> StoreError {
    StoreError::Fatal(Error::new(ErrorKind::StoreFailed, "the store's server answered something else"))
}

/// Blocks where it waits: a child's callers are plain threads, and its flusher has nothing else to do.
impl Store for ServedStore {
    fn standing(&self) -> BoxFuture<'_, Result<Standing, StoreError>> {
        Box::pin(async { self.standing_of(&Request::Standing) })
    }

    fn claim<'a>(&'a self, claim: &'a Claim) -> BoxFuture<'a, Result<Standing, StoreError>> {
        Box::pin(async move { self.standing_of(&Request::Claim(*claim)) })
    }

    fn load<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Option<Versioned>, StoreError>> {
        Box::pin(async { Ok(self.found(std::slice::from_ref(key))?.pop().flatten()) })
    }

    fn load_many<'a>(&'a self, keys: &'a [Key]) -> BoxFuture<'a, Result<Vec<Option<Versioned>>, StoreError>> {
        Box::pin(async { self.found(keys) })
    }

    fn apply<'a>(&'a self, batch: &'a Batch) -> BoxFuture<'a, Result<(), StoreError>> {
        let plain =
            |op: &Op| (op.seq, op.key.as_bytes().to_vec(), op.value.as_ref().map(|value| value.to_vec()));
        let request = Request::Apply {
            tenure: batch.tenure,
            number: batch.number,
            after: batch.after,
            until: batch.until,
            journaled: batch.journaled,
            ops: batch.ops.iter().map(plain).collect(),
        };
        Box::pin(async move {
            match self.call(&request)? {
                Answer::Applied => Ok(()),
                _ => Err(unexpected()),
            }
        })
    }
}
