//! A sink with faults that a test injects.

use std::future::Future;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::{fmt, io};

use async_trait::async_trait;
use tokio::sync::watch;

use crate::audit::{Batch, Start};
use crate::error::{Error, Result, SinkError};
use crate::outcome::Seal;
use crate::sink::{LogSink, RecordVisitor, Resumed, RunLog, RunPlace};

/// A sink that forwards each call to an inner sink, except for faults that a test injects.
///
/// A fault makes a call fail, stall, panic, or block its thread. The inner sink is then not called.
/// Without faults, `Faulty` fulfills the contract of [`LogSink`] as far as the inner sink does.
/// After an injected error, a log accepts no records, as the contract demands.
///
/// Clones share the faults.
///
/// ```
/// use moat::runtime::scripted::{Script, Scripted};
/// use moat::sink::{Faulty, Memory, SinkCall, SinkFault};
/// use moat::outcome::Stream;
/// use moat::{Error, Manager, RunSpec};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> moat::Result<()> {
/// # let directory = tempfile::tempdir().unwrap();
/// # let path = directory.path();
/// let memory = Memory::new();
/// let sink = Faulty::new(memory.clone());
/// let engine = Scripted::new();
/// let manager = Manager::builder(path, engine.clone()).sink(sink.clone()).open().await?;
///
/// // Without a log, no run starts.
/// sink.fault(SinkFault::error().on([SinkCall::Open]).times(1));
/// let refused = manager.start(RunSpec::new("any")).await;
/// assert!(matches!(refused, Err(Error::Sink { .. })));
///
/// // If a log fails later, moat resumes it and reads the output again.
/// sink.fault(SinkFault::error().on([SinkCall::Append]).times(3));
/// engine.next(Script::new().stdout("hello\n"));
/// let run = manager.start(RunSpec::new("any")).await?;
/// while run.wait().await?.sealed().is_none() {}
/// assert_eq!(memory.output(run.id(), Stream::Stdout), b"hello\n");
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Faulty {
    inner: Arc<dyn LogSink>,
    faults: Arc<Faults>,
}

impl Faulty {
    /// Wraps a sink, without faults.
    pub fn new(inner: impl LogSink) -> Self {
        Self {
            inner: Arc::new(inner),
            faults: Arc::new(Faults {
                pending: Mutex::default(),
                changes: watch::Sender::new(0),
                injected: watch::Sender::new(0),
            }),
        }
    }

    /// Adds a fault. If several faults match a call, the first one that was added applies.
    pub fn fault(&self, fault: SinkFault) {
        self.faults.pending().push(fault);
        self.faults.changes.send_modify(|changes| *changes += 1);
    }

    /// Removes all faults. Stalled calls continue with the inner sink.
    pub fn clear_faults(&self) {
        self.faults.pending().clear();
        self.faults.changes.send_modify(|changes| *changes += 1);
    }

    /// Waits until at least one fault has been injected since the sink was created.
    ///
    /// Cancel-safe.
    pub fn wait_fault(&self) -> impl Future<Output = ()> + Send + use<> {
        let faults = Arc::clone(&self.faults);
        async move {
            let mut injected = faults.injected.subscribe();
            // An error means that the sender is gone; `faults` owns it.
            let _ = injected.wait_for(|injected| *injected > 0).await;
        }
    }

    fn log(&self, place: &RunPlace, inner: Box<dyn RunLog>) -> Box<dyn RunLog> {
        Box::new(FaultyLog {
            inner,
            faults: Arc::clone(&self.faults),
            place: place.clone(),
            failed: false,
        })
    }
}

/// A call on a sink, or on a log of the sink.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum SinkCall {
    /// [`LogSink::open`].
    Open,
    /// [`LogSink::resume`].
    Resume,
    /// [`RunLog::append`].
    Append,
    /// [`RunLog::sync`].
    Sync,
    /// [`RunLog::seal`].
    Seal,
}

impl SinkCall {
    /// The verb for [`Error::Sink`].
    fn operation(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Resume => "resume",
            Self::Append => "append to",
            Self::Sync => "sync",
            Self::Seal => "seal",
        }
    }
}

type PlaceFilter = Arc<dyn Fn(&RunPlace) -> bool + Send + Sync>;

/// A fault for [`Faulty`]: an effect, and the calls that have it.
///
/// By default, the fault applies to all calls for all runs, until [`Faulty::clear_faults`].
#[derive(Clone)]
pub struct SinkFault {
    effect: Effect,
    /// The calls; `None` for all.
    calls: Option<Vec<SinkCall>>,
    /// The remaining number of faults; `None` for no limit.
    remaining: Option<u32>,
    /// The filter of logs; `None` for all.
    places: Option<PlaceFilter>,
}

#[derive(Debug, Clone, Copy)]
enum Effect {
    Error,
    Stall,
    Panic,
    Block,
}

impl SinkFault {
    fn new(effect: Effect) -> Self {
        Self {
            effect,
            calls: None,
            remaining: None,
            places: None,
        }
    }

    /// Creates a fault that returns [`Error::Sink`] with the cause `injected fault`.
    pub fn error() -> Self {
        Self::new(Effect::Error)
    }

    /// Creates a fault that delays the call until no fault matches it.
    ///
    /// The call then goes to the inner sink.
    pub fn stall() -> Self {
        Self::new(Effect::Stall)
    }

    /// Creates a fault that panics.
    pub fn panic() -> Self {
        Self::new(Effect::Panic)
    }

    /// Creates a fault that blocks the thread of the call until the process exits.
    pub fn block() -> Self {
        Self::new(Effect::Block)
    }

    /// Limits the fault to these calls.
    pub fn on(mut self, calls: impl IntoIterator<Item = SinkCall>) -> Self {
        self.calls = Some(calls.into_iter().collect());
        self
    }

    /// Limits the number of calls that have the fault. The default is no limit.
    pub fn times(mut self, times: u32) -> Self {
        self.remaining = Some(times);
        self
    }

    /// Limits the fault to the logs for which `matches` returns true.
    pub fn at(mut self, matches: impl Fn(&RunPlace) -> bool + Send + Sync + 'static) -> Self {
        self.places = Some(Arc::new(matches));
        self
    }

    fn matches(&self, call: SinkCall, place: &RunPlace) -> bool {
        let calls = self.calls.as_ref();
        let places = self.places.as_ref();
        self.remaining != Some(0)
            && calls.is_none_or(|calls| calls.contains(&call))
            && places.is_none_or(|matches| matches(place))
    }
}

impl fmt::Debug for SinkFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SinkFault")
            .field("effect", &self.effect)
            .field("calls", &self.calls)
            .field("remaining", &self.remaining)
            .finish_non_exhaustive()
    }
}

#[derive(Debug)]
struct Faults {
    pending: Mutex<Vec<SinkFault>>,
    /// The number of external changes to `pending`.
    changes: watch::Sender<u64>,
    /// The number of injected faults.
    injected: watch::Sender<u64>,
}

impl Faults {
    fn pending(&self) -> MutexGuard<'_, Vec<SinkFault>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the first fault that matches a call.
    fn take(&self, call: SinkCall, place: &RunPlace) -> Option<Effect> {
        let mut pending = self.pending();
        let fault = pending
            .iter_mut()
            .find(|fault| fault.matches(call, place))?;
        fault.remaining = fault.remaining.map(|remaining| remaining - 1);
        let effect = fault.effect;
        pending.retain(|fault| fault.remaining != Some(0));
        drop(pending);
        self.injected.send_modify(|injected| *injected += 1);
        Some(effect)
    }

    /// Injects the faults that match a call, and returns once the inner sink may be called.
    async fn pass(&self, call: SinkCall, place: &RunPlace) -> Result<()> {
        loop {
            // Subscribed before the faults are checked, so that no change is missed.
            let mut changes = self.changes.subscribe();
            match self.take(call, place) {
                None => return Ok(()),
                Some(Effect::Error) => return Err(injected(call, place)),
                Some(Effect::Stall) => {
                    // An error means that the sender is gone; `self` owns it.
                    let _ = changes.changed().await;
                }
                Some(Effect::Panic) => panic!("injected fault"),
                Some(Effect::Block) => loop {
                    std::thread::park();
                },
            }
        }
    }
}

fn injected(call: SinkCall, place: &RunPlace) -> Error {
    let cause = io::Error::other("injected fault");
    SinkError::new(cause)
        .operation(call.operation())
        .run(&place.run)
        .into()
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl LogSink for Faulty {
    async fn open(&self, place: &RunPlace, start: &Start) -> Result<Box<dyn RunLog>> {
        self.faults.pass(SinkCall::Open, place).await?;
        let log = self.inner.open(place, start).await?;
        Ok(self.log(place, log))
    }

    async fn resume(&self, place: &RunPlace, visit: RecordVisitor) -> Result<Resumed> {
        self.faults.pass(SinkCall::Resume, place).await?;
        Ok(match self.inner.resume(place, visit).await? {
            Resumed::Open { log, torn } => Resumed::Open {
                log: self.log(place, log),
                torn,
            },
            resumed => resumed,
        })
    }

    fn path(&self, place: &RunPlace) -> Option<PathBuf> {
        self.inner.path(place)
    }

    #[cfg(feature = "sign")]
    fn signing_key(&self) -> Option<crate::sign::SigningKey> {
        self.inner.signing_key()
    }
}

#[derive(Debug)]
struct FaultyLog {
    inner: Box<dyn RunLog>,
    faults: Arc<Faults>,
    place: RunPlace,
    /// Set after an injected error.
    failed: bool,
}

impl FaultyLog {
    async fn pass(&mut self, call: SinkCall) -> Result<()> {
        if self.failed {
            return Err(injected(call, &self.place));
        }
        let passed = self.faults.pass(call, &self.place).await;
        self.failed = passed.is_err();
        passed
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl RunLog for FaultyLog {
    async fn append(&mut self, batch: Batch) -> Result<()> {
        self.pass(SinkCall::Append).await?;
        self.inner.append(batch).await
    }

    async fn sync(&mut self) -> Result<()> {
        self.pass(SinkCall::Sync).await?;
        self.inner.sync().await
    }

    async fn seal(&mut self, seal: Seal) -> Result<Seal> {
        self.pass(SinkCall::Seal).await?;
        self.inner.seal(seal).await
    }
}
