//! The output of a command over connections that break.

use futures::StreamExt;
use moat::outcome::Stream;
use moat::runtime::{LogsRequest, OutputStream, Runtime, RuntimeError};
use testkit::deadline::{eventually, within};

use super::answers::{
    answered, ended, exec_status, frame, hello, not_found, ok, over, page, pod, replacement,
    report, running, status, stderr, stdout,
};
use super::protocol::Kind;
use super::server::{Answer, Step};
use super::{Recorded, assert_inconclusive, container};

testkit::trials! {
    super::recorded:
        the_last_frame_ends_the_output,
        a_close_without_a_status_is_no_end,
        a_status_without_the_last_frame_is_no_end,
        a_frame_that_is_cut_arrives_once,
        an_outage_does_not_end_the_output,
        error_text_in_place_of_frames_is_an_error,
        error_text_between_frames_is_no_output,
        a_pod_that_is_not_found_breaks_the_output,
        a_replaced_pod_breaks_the_output,
        a_collector_that_has_ended_breaks_the_output,
        output_whose_start_was_freed_is_an_error,
        the_log_of_a_broken_exec_is_whole,
}

/// Frames of a spool.
struct Spool {
    frames: Vec<Vec<u8>>,
}

impl Spool {
    fn new() -> Self {
        let lines = [
            (Kind::Started, "".to_owned()),
            (Kind::Stdout, "first\n".to_owned()),
            (Kind::Stderr, "\r\nsecond".to_owned()),
            (Kind::Stdout, "third\n".repeat(100)),
            (Kind::Stdout, "fourth".to_owned()),
            (Kind::Exited, "\x07\0\0\0".to_owned()),
            (Kind::End, "eof".to_owned()),
        ];
        let frames = lines
            .iter()
            .map(|(kind, text)| frame(*kind, text.as_bytes()));
        Self {
            frames: frames.collect(),
        }
    }

    /// The offset of a frame.
    fn offset(&self, frame: usize) -> usize {
        self.frames[..frame].iter().map(Vec::len).sum()
    }

    /// The bytes of these frames.
    fn bytes(&self, frames: std::ops::Range<usize>) -> Vec<u8> {
        self.frames[frames].concat()
    }

    /// The steps of a connection that sends these frames after its greeting.
    fn steps(&self, frames: std::ops::Range<usize>) -> Vec<Step> {
        let offset = self.offset(frames.start);
        vec![hello(offset), stdout(&self.bytes(frames))]
    }

    /// The last connection, from this frame on.
    fn rest(&self, first: usize) -> Answer {
        let mut steps = self.steps(first..self.frames.len());
        steps.extend([exec_status(0), Step::Close]);
        Answer::Exec(steps)
    }
}

/// Reads a stream to its end, and returns its output and its error.
async fn read(mut stream: OutputStream) -> (String, String, Option<RuntimeError>) {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let failed = within(30, "the end of the output", async {
        while let Some(chunk) = stream.next().await {
            match chunk {
                Ok(chunk) if chunk.stream == Stream::Stdout => out.extend_from_slice(&chunk.bytes),
                Ok(chunk) => err.extend_from_slice(&chunk.bytes),
                Err(error) => return Some(error),
            }
        }
        None
    });
    let failed = failed.await;
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (text(out), text(err), failed)
}

/// Attaches while the exec has these answers, and checks that the output is whole.
async fn assert_whole(recorded: &Recorded, taps: Vec<Answer>) {
    let cluster = recorded.connect().await;
    recorded
        .server
        .answer("get pods", [ok(&pod(12, running()))]);
    let connections = taps.len();
    recorded.server.answer("exec tap", taps);
    let attached = cluster.attach(&container(), false).await.unwrap();
    assert!(attached.end_marker);
    let (out, err, failed) = read(attached.stream).await;
    assert!(failed.is_none(), "{failed:?}");
    let expected = format!("first\n{}fourth", "third\n".repeat(100));
    assert_eq!(out, expected);
    assert_eq!(err, "\r\nsecond");
    assert_eq!(recorded.server.count("exec tap"), connections);
}

/// The offsets that the connections have asked for.
fn offsets(recorded: &Recorded) -> Vec<usize> {
    let requests = recorded.server.requests("exec tap");
    let words = requests.iter().map(|request| {
        assert_eq!(request.query("container"), Some("moat"));
        let words = request.words();
        assert_eq!(words[2], "follow");
        words[1].parse().unwrap()
    });
    words.collect()
}

async fn the_last_frame_ends_the_output(recorded: &Recorded) {
    for protocol in ["v4.channel.k8s.io", "v5.channel.k8s.io"] {
        recorded.server.speak(protocol);
        let cluster = recorded.connect().await;
        recorded.server.answer("exec tap", [Spool::new().rest(0)]);
        let attached = cluster.attach(&container(), false).await.unwrap();
        let (out, err, failed) = read(attached.stream).await;
        assert!(failed.is_none(), "{failed:?}");
        assert_eq!((out.len(), err.len()), (612, 8));
    }
    // The collector frees what was acknowledged.
    let spool = Spool::new();
    let end = spool.offset(spool.frames.len()) as u64;
    let ack = super::protocol::frame(Kind::Ack, 0, &end.to_le_bytes());
    for request in recorded.server.requests("exec tap") {
        let acknowledged = async || (request.input() == ack).then_some(());
        eventually(10, "the acknowledgment", acknowledged).await;
    }
}

async fn a_close_without_a_status_is_no_end(recorded: &Recorded) {
    let spool = Spool::new();
    let mut first = spool.steps(0..3);
    first.push(Step::Close);
    let mut second = spool.steps(3..4);
    second.push(Step::Close);
    // Nothing at all arrives.
    let third = vec![hello(spool.offset(4)), Step::Close];
    let taps = vec![
        Answer::Exec(first),
        Answer::Exec(second),
        Answer::Exec(third),
        Answer::Exec(vec![Step::Close]),
        spool.rest(4),
    ];
    assert_whole(recorded, taps).await;
    let [third, fourth] = [spool.offset(3), spool.offset(4)];
    assert_eq!(offsets(recorded), [0, third, fourth, fourth, fourth]);
}

async fn a_status_without_the_last_frame_is_no_end(recorded: &Recorded) {
    let spool = Spool::new();
    let mut taps = Vec::new();
    for (frame, code) in [(0, 0), (1, 137)] {
        let mut steps = spool.steps(frame..frame + 1);
        steps.extend([stderr("Terminated"), exec_status(code), Step::Close]);
        taps.push(Answer::Exec(steps));
    }
    taps.push(spool.rest(2));
    assert_whole(recorded, taps).await;
}

async fn a_frame_that_is_cut_arrives_once(recorded: &Recorded) {
    let spool = Spool::new();
    let frame = &spool.frames[3];
    let mut taps = Vec::new();
    // In the header, and in the payload.
    for (at, end) in [(7, Step::Cut), (16, Step::Close), (300, Step::Cut)] {
        let mut steps = match taps.len() {
            0 => spool.steps(0..3),
            _ => vec![hello(spool.offset(3))],
        };
        steps.extend([stdout(&frame[..at]), end]);
        taps.push(Answer::Exec(steps));
    }
    // Each byte is a message.
    let mut bytes: Vec<_> = spool.bytes(3..7).chunks(1).map(stdout).collect();
    bytes.insert(0, hello(spool.offset(3)));
    taps.push(Answer::Exec(bytes));
    assert_whole(recorded, taps).await;
    let third = spool.offset(3);
    assert_eq!(offsets(recorded), [0, third, third, third]);
}

async fn an_outage_does_not_end_the_output(recorded: &Recorded) {
    let spool = Spool::new();
    let mut first = spool.steps(0..2);
    first.extend([Step::Await("attached"), Step::Cut]);
    let unavailable = status(503, "ServiceUnavailable", "the server is shutting down");
    let bad_gateway = page(404, "404 page not found");
    recorded.server.answer(
        "exec tap",
        [
            Answer::Exec(first),
            unavailable.clone(),
            bad_gateway.clone(),
            Answer::Cut,
            page(404, "pod does not exist"),
            spool.rest(2),
        ],
    );
    recorded.server.answer(
        "get pods",
        [
            unavailable,
            bad_gateway,
            Answer::Cut,
            status(401, "Unauthorized", "Unauthorized"),
        ],
    );
    let cluster = recorded.connect().await;
    let attached = cluster.attach(&container(), false).await.unwrap();
    recorded.server.open("attached");
    let (out, err, failed) = read(attached.stream).await;
    assert!(failed.is_none(), "{failed:?}");
    assert_eq!((out.len(), err.len()), (612, 8));
    let second = spool.offset(2);
    assert_eq!(
        offsets(recorded),
        [0, second, second, second, second, second]
    );
}

const ERROR_TEXTS: [&str; 4] = [
    "unable to retrieve container logs for docker://2ab7c1",
    "failed to try resolving symlinks in path \"/var/log/pods/x/0.log\": no such file\n",
    "exec failed\n",
    "OCI runtime exec failed: exec failed: unable to start container process: exec: \"/x\": stat /x: \
     no such file or directory: unknown\r\n",
];

async fn error_text_in_place_of_frames_is_an_error(recorded: &Recorded) {
    let cluster = recorded.connect().await;
    recorded
        .server
        .answer("get pods", [ok(&pod(12, running()))]);
    recorded.server.answer(
        "exec state",
        [report("phase running\nstarted_micros 1764000000000000\n")],
    );
    for text in ERROR_TEXTS {
        let as_output = vec![stdout(text.as_bytes()), exec_status(0), Step::Close];
        for answer in [page(200, text), Answer::Exec(as_output)] {
            recorded.server.answer("exec tap", [answer.clone()]);
            recorded.server.answer("exec release", [answer]);
            let attached = cluster.attach(&container(), false).await;
            assert_inconclusive(attached.map(|_| ()));
            let log = cluster.logs(&container(), LogsRequest::all(true)).await;
            assert_inconclusive(log.map(|_| ()));
            assert_inconclusive(cluster.start(&container()).await);
        }
    }
}

async fn error_text_between_frames_is_no_output(recorded: &Recorded) {
    let spool = Spool::new();
    let mut first = spool.steps(0..3);
    first.extend([
        stdout(ERROR_TEXTS[0].as_bytes()),
        exec_status(0),
        Step::Close,
    ]);
    let mut taps = vec![Answer::Exec(first), page(200, ERROR_TEXTS[1])];
    taps.push(Answer::Exec(vec![
        stdout(ERROR_TEXTS[2].as_bytes()),
        Step::Close,
    ]));
    taps.push(spool.rest(3));
    assert_whole(recorded, taps).await;
    let third = spool.offset(3);
    assert_eq!(offsets(recorded), [0, third, third, third]);
}

/// Attaches to an exec that is cut after its first output, and returns that and the error.
async fn broken(recorded: &Recorded, pods: impl IntoIterator<Item = Answer>) -> RuntimeError {
    let spool = Spool::new();
    let mut first = spool.steps(0..2);
    first.extend([Step::Await("attached"), Step::Cut]);
    recorded
        .server
        .answer("exec tap", [Answer::Exec(first), not_found()]);
    recorded.server.answer("get pods", pods);
    let cluster = recorded.connect().await;
    let attached = cluster.attach(&container(), false).await.unwrap();
    recorded.server.open("attached");
    let (out, _, failed) = read(attached.stream).await;
    assert_eq!(out, "first\n");
    let error = failed.expect("the output is broken");
    assert!(!error.is_definitive(), "{error:?}");
    error
}

async fn a_pod_that_is_not_found_breaks_the_output(recorded: &Recorded) {
    let unavailable = status(503, "ServiceUnavailable", "the server is shutting down");
    let error = broken(recorded, [unavailable, not_found()]).await;
    assert!(error.to_string().contains("not found"), "{error}");
    assert_eq!(recorded.server.count("get pods"), 2);
}

async fn a_replaced_pod_breaks_the_output(recorded: &Recorded) {
    let error = broken(recorded, [ok(&replacement(20, running()))]).await;
    assert!(error.to_string().contains("removed"), "{error}");
}

async fn a_collector_that_has_ended_breaks_the_output(recorded: &Recorded) {
    let pods = [ok(&pod(12, ended(7))), ok(&pod(13, over(7)))];
    let error = broken(recorded, pods).await;
    assert!(error.to_string().contains("the collector ended"), "{error}");
}

async fn output_whose_start_was_freed_is_an_error(recorded: &Recorded) {
    let cluster = recorded.connect().await;
    recorded
        .server
        .answer("get pods", [ok(&pod(12, running()))]);
    let freed = Answer::Exec(vec![hello(4096), stdout(&Spool::new().bytes(3..7))]);
    recorded.server.answer("exec tap", [freed]);
    let error = cluster.attach(&container(), false).await.map(|_| ());
    let error = error.unwrap_err();
    assert!(error.is_definitive(), "{error:?}");
    assert!(error.to_string().contains("byte 4096"), "{error}");
    // A tap from now on begins anywhere.
    let output = cluster.attach_running(&container(), false).await.unwrap();
    let (out, ..) = read(output).await;
    assert_eq!(out.len(), 606);
}

async fn the_log_of_a_broken_exec_is_whole(recorded: &Recorded) {
    let cluster = recorded.connect().await;
    let spool = Spool::new();
    recorded.server.answer("get pods", [ok(&pod(12, ended(7)))]);
    let mut first = spool.steps(0..4);
    first.push(Step::Close);
    let mut second = spool.steps(4..5);
    second.push(stdout(&frame(Kind::Pause, &[])));
    recorded
        .server
        .answer("exec tap", [Answer::Exec(first), Answer::Exec(second)]);
    let log = cluster
        .logs(&container(), LogsRequest::all(false))
        .await
        .unwrap();
    let (out, err, failed) = read(log).await;
    assert!(failed.is_none(), "{failed:?}");
    assert_eq!((out.len(), err.len()), (612, 8));
    let requests = recorded.server.requests("exec tap");
    assert_eq!(requests[1].words(), ["tap", &spool.offset(4).to_string()]);
    // An answer that is no frame of output.
    recorded
        .server
        .answer("exec tap", [answered(Kind::Refused, b"the spool is full")]);
    let log = cluster.logs(&container(), LogsRequest::all(false)).await;
    assert_inconclusive(log.map(|_| ()));
}
