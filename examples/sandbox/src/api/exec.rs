//! Commands: start, list, kill.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::extract::rejection::JsonRejection;
use axum::http::StatusCode;
use axum::response::sse::{Event, KeepAlive, Sse};
use futures::{Stream, StreamExt, stream};
use moat::Verdict;
use moat::outcome::{StopCause, Stream as Source};
use moat::run::{AttachOptions, Attached, Attachment, Input};
use moat::tokio_util::sync::CancellationToken;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::sleep;
use utoipa::ToSchema;

use super::audit::{ExecFile, exec_files};
use super::auth::{Caller, Segments};
use super::output::{Decoder, End};
use super::sessions::within;
use crate::clients::Client;
use crate::command::{Command, CommandSpec};
use crate::problem::Problem;
use crate::sandbox::{Sandbox, on_disk};
use crate::session::{InUse, Session};

/// Events that wait for the client.
const WAITING_EVENTS: usize = 16;
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// The time for which a command may outlive its kill. A command that clears its environment does.
const KILL_TIMEOUT: Duration = Duration::from_secs(10);

/// A command in a session.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewExec {
    /// The program and its arguments.
    cmd: Vec<String>,
    /// Additional environment. Its values are in no file of the server.
    #[serde(default)]
    env: BTreeMap<String, String>,
    /// The working directory. Default: that of the session.
    workdir: Option<String>,
    /// The user. Default: that of the session.
    user: Option<String>,
    /// The standard input. Default: none.
    stdin: Option<String>,
    /// Seconds after which it is killed. Default and maximum: the client's quota.
    time_limit_seconds: Option<u64>,
    /// Seconds without output after which it is killed. Default: no limit.
    silence_limit_seconds: Option<u64>,
    /// Bytes of output after which it is killed. Default and maximum: the client's quota.
    output_limit_bytes: Option<u64>,
}

/// A command of a session.
#[derive(Serialize, ToSchema)]
pub struct Exec {
    id: String,
    cmd: Vec<String>,
    state: ExecState,
    /// The exit code.
    code: Option<i64>,
    /// Why the server killed it.
    #[schema(value_type = Option<String>)]
    stopped: Option<StopCause>,
    /// The verdict of its audit file.
    #[schema(value_type = Option<String>)]
    verdict: Option<Verdict>,
    /// The problem with its audit file.
    problem: Option<String>,
}

#[derive(Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum ExecState {
    Running,
    Ended,
}

/// The commands of a session.
#[derive(Serialize, ToSchema)]
pub struct Execs {
    execs: Vec<Exec>,
}

/// Runs a command, and sends its output as it is printed.
///
/// Server-sent events: `started` with the id of the command, `stdout` and `stderr` with `text` or
/// `base64`, and last `exit`, or `error` if the end is not known. If the client disconnects, the
/// command is killed.
#[utoipa::path(post, path = "/sessions/{id}/exec", params(("id" = String, Path)), request_body = NewExec, responses(
    (status = 200, body = String, content_type = "text/event-stream"),
    (status = 400, body = Problem, content_type = "application/problem+json"),
    (status = 404, body = Problem, content_type = "application/problem+json"),
    (status = 409, body = Problem, content_type = "application/problem+json", description = "the session has ended"),
    (status = 429, body = Problem, content_type = "application/problem+json", description = "the quota of commands"),
))]
pub async fn start(
    State(sandbox): State<Arc<Sandbox>>,
    Caller(client): Caller,
    Segments(id): Segments<String>,
    body: Result<Json<NewExec>, JsonRejection>,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, Problem> {
    let session = sandbox.live_session(&client, &id).await?;
    let Json(new) = body?;
    if sandbox.is_local() && new.stdin.is_some() {
        return Err(Problem::unsupported("stdin: local processes have no input"));
    }
    if new.cmd.is_empty() {
        return Err(Problem::field("cmd", "it is empty"));
    }
    let stdin = new.stdin.clone();
    let spec = new.spec(&client, &session)?;
    let (sender, receiver) = mpsc::channel(WAITING_EVENTS);
    let running = Running::start(&sandbox, session, spec).await?;
    let mut options = AttachOptions::new().lossless();
    if stdin.is_some() {
        options = options.with_input();
    }
    let mut attachment = running.command.attach(options).await?;
    if let Some((text, input)) = stdin.zip(attachment.input()) {
        tokio::spawn(write_all(input, text));
    }
    let mut supervised = running.supervise();
    tokio::spawn(async move {
        tokio::select! {
            () = sender.closed() => {}
            _ = relay(&mut supervised, attachment, &sender) => {}
        }
        // If the command has ended, this has no effect.
        supervised.kill();
    });
    let events = stream::unfold(receiver, async |mut receiver| {
        let event = receiver.recv().await?;
        Some((Ok(event), receiver))
    });
    Ok(Sse::new(events.boxed()).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)))
}

/// Lists the commands of a session, the first one first.
#[utoipa::path(get, path = "/sessions/{id}/execs", params(("id" = String, Path)), responses(
    (status = 200, body = Execs),
    (status = 404, body = Problem, content_type = "application/problem+json"),
))]
pub async fn list(
    State(sandbox): State<Arc<Sandbox>>,
    Caller(client): Caller,
    Segments(id): Segments<String>,
) -> Result<Json<Execs>, Problem> {
    let session = sandbox.find(&client, &id).await?.run;
    let files = on_disk(move || exec_files(&sandbox, &session)).await?;
    let execs = files.into_iter().map(Exec::from).collect();
    Ok(Json(Execs { execs }))
}

/// Kills a command, and all that it has started. Success also if it has ended.
#[utoipa::path(delete, path = "/sessions/{id}/execs/{exec}",
    params(("id" = String, Path), ("exec" = String, Path)),
    responses((status = 204), (status = 404, body = Problem, content_type = "application/problem+json")))]
pub async fn kill(
    State(sandbox): State<Arc<Sandbox>>,
    Caller(client): Caller,
    Segments((id, exec)): Segments<(String, String)>,
) -> Result<StatusCode, Problem> {
    if let Ok(live) = sandbox.live_session(&client, &id).await
        && live.kill_command(&exec)
    {
        return Ok(StatusCode::NO_CONTENT);
    }
    let session = sandbox.find(&client, &id).await?.run;
    let files = on_disk(move || exec_files(&sandbox, &session)).await?;
    match files.iter().any(|file| file.id == exec) {
        true => Ok(StatusCode::NO_CONTENT),
        false => Err(Problem::no_exec(&exec)),
    }
}

impl NewExec {
    fn spec(self, client: &Client, session: &Session) -> Result<CommandSpec, Problem> {
        let quota = &client.quota;
        let time_limit = within(
            "time_limit_seconds",
            self.time_limit_seconds,
            quota.exec_seconds,
        )?;
        let output_limit_bytes = within(
            "output_limit_bytes",
            self.output_limit_bytes,
            quota.output_bytes,
        )?;
        Ok(CommandSpec {
            cmd: self.cmd,
            env: self.env,
            workdir: self.workdir,
            user: self.user,
            stdin: self.stdin.is_some(),
            terminal: None,
            time_limit: Duration::from_secs(time_limit),
            silence_limit: self.silence_limit_seconds.map(Duration::from_secs),
            output_limit_bytes,
            cancel: session.command_token(),
        })
    }
}

impl From<ExecFile> for Exec {
    fn from(file: ExecFile) -> Self {
        let seal = file.seal.as_ref();
        let cmd = file.record.map(|record| record.settings.cmd);
        Self {
            id: file.id,
            cmd: cmd.unwrap_or_default(),
            state: match (seal, &file.problem) {
                (None, None) => ExecState::Running,
                _ => ExecState::Ended,
            },
            code: seal.and_then(|seal| seal.exit.code()),
            stopped: seal.and_then(|seal| seal.stopped),
            verdict: seal.map(|seal| seal.verdict),
            problem: file.problem,
        }
    }
}

/// A command that runs. Its session is not idle, and its place in the quota is taken.
pub struct Running {
    pub command: Command,
    session: Arc<Session>,
    time_limit: Duration,
    cancel: CancellationToken,
    _held: (OwnedSemaphorePermit, InUse),
}

impl Running {
    /// Starts a command.
    ///
    /// A separate task does so. If the client disconnects meanwhile, the task kills the command.
    pub async fn start(
        sandbox: &Arc<Sandbox>,
        session: Arc<Session>,
        spec: CommandSpec,
    ) -> Result<Self, Problem> {
        let held = (session.client.take_exec()?, session.begin_use()?);
        let sandbox = Arc::clone(sandbox);
        let (sender, receiver) = oneshot::channel();
        tokio::spawn(async move {
            let (time_limit, cancel) = (spec.time_limit, spec.cancel.clone());
            let started = session.start(&sandbox.manager, spec).await;
            let running = started.map(|command| Self {
                command,
                session,
                time_limit,
                cancel,
                _held: held,
            });
            if let Err(Ok(unwanted)) = sender.send(running) {
                unwanted.supervise().kill();
            }
        });
        match receiver.await {
            Ok(started) => started,
            Err(_) => Err(Problem::internal("the start of the command has failed")),
        }
    }

    /// Holds the places until the command has ended, however slowly its output is read.
    pub fn supervise(self) -> Supervised {
        Supervised {
            command: self.command.clone(),
            cancel: self.cancel.clone(),
            ended: tokio::spawn(self.end()),
        }
    }

    /// Waits for the end of the command. Ends the session if the command cannot be killed.
    async fn end(self) {
        let overdue = async {
            tokio::select! {
                () = self.cancel.cancelled() => {}
                () = sleep(self.time_limit) => {}
            }
            sleep(KILL_TIMEOUT).await;
        };
        tokio::select! {
            _ = self.command.wait() => {}
            () = overdue => {
                self.session.begin_end();
                let _ = self.session.run.kill().await;
            }
        }
    }
}

impl Drop for Running {
    /// Kills the command, if it has not ended.
    fn drop(&mut self) {
        self.cancel.cancel();
        self.session.end_command(&self.command.id());
    }
}

/// A command whose places a task holds until it has ended.
pub struct Supervised {
    command: Command,
    cancel: CancellationToken,
    ended: JoinHandle<()>,
}

impl Supervised {
    pub fn kill(&self) {
        self.cancel.cancel();
    }

    /// Waits for the end. After it, the places are free: a client that learns of it may use them.
    pub async fn end(&mut self) -> moat::Result<End> {
        let _ = (&mut self.ended).await;
        let outcome = self.command.wait().await?;
        Ok(End::new(self.command.id(), &outcome))
    }
}

async fn write_all(mut input: Input, text: String) {
    // A command may end without having read its input.
    let _ = input.write_all(text.as_bytes()).await;
    let _ = input.shutdown().await;
}

/// Sends the events of a command. Ends early if the client has disconnected.
async fn relay(
    supervised: &mut Supervised,
    mut attachment: Attachment,
    events: &mpsc::Sender<Event>,
) -> Result<(), mpsc::error::SendError<Event>> {
    let exec = supervised.command.id();
    events
        .send(event("started", &json!({"exec": exec})))
        .await?;
    let mut decoders = (Decoder::default(), Decoder::default());
    while let Some(item) = attachment.next().await {
        let chunk = match item {
            Ok(Attached::Chunk(chunk)) => chunk,
            Ok(_) => continue,
            Err(error) => return events.send(failure(&error)).await,
        };
        let decoder = match chunk.stream {
            Source::Stderr => &mut decoders.1,
            _ => &mut decoders.0,
        };
        if let Some(output) = decoder.decode(&chunk.bytes) {
            events.send(event(name(chunk.stream), &output)).await?;
        }
    }
    for (stream, decoder) in [
        (Source::Stdout, &mut decoders.0),
        (Source::Stderr, &mut decoders.1),
    ] {
        if let Some(output) = decoder.finish() {
            events.send(event(name(stream), &output)).await?;
        }
    }
    let end = match supervised.end().await {
        Ok(end) => event("exit", &end),
        Err(error) => failure(&error),
    };
    events.send(end).await
}

fn name(stream: Source) -> &'static str {
    match stream {
        Source::Stderr => "stderr",
        _ => "stdout",
    }
}

fn event(name: &str, data: &impl Serialize) -> Event {
    let event = Event::default().event(name);
    event
        .json_data(data)
        .unwrap_or_else(|_| Event::default().event(name))
}

fn failure(error: &moat::Error) -> Event {
    event("error", &json!({"detail": error.chain()}))
}
