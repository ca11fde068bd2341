//! The output, from the command's pipes to a client.

mod support;

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use support::protocol::Kind;
use support::{Options, Pod, bytes_of, eventually, helper, kinds, read_frame, send, sha256, value};

const LINES: &str =
    "i=0; while [ $i -lt 20000 ]; do echo out $i; echo err $i >&2; i=$((i+1)); done";

fn lines(name: &str) -> Vec<u8> {
    (0..20_000)
        .flat_map(|i| format!("{name} {i}\n").into_bytes())
        .collect()
}

#[test]
fn two_streams_are_exact() {
    let pod = Pod::sh(LINES);
    pod.release();
    let frames = pod.all();
    let (out, err) = (lines("out"), lines("err"));
    assert!(bytes_of(&frames, Kind::Stdout) == out);
    assert!(bytes_of(&frames, Kind::Stderr) == err);
    let end = frames.last().unwrap().text();
    let expected = format!(
        "stdout {} {}\nstderr {} {}\nexit 0\n",
        out.len(),
        sha256(&out),
        err.len(),
        sha256(&err)
    );
    assert_eq!(end, expected);
    assert_eq!(
        kinds(&frames)
            .iter()
            .filter(|kind| **kind == Kind::Exited)
            .count(),
        1
    );
    assert!(
        frames
            .iter()
            .all(|frame| frame.micros > 1_600_000_000_000_000)
    );
}

#[test]
fn a_tap_resumes_at_each_frame() {
    let pod = Pod::sh("for i in 1 2 3 4 5 6 7 8 9; do echo $i; echo $i >&2; done");
    pod.release();
    let frames = pod.all();
    let mut offset = 0;
    for (index, frame) in frames.iter().enumerate() {
        for request in [format!("tap {offset}"), format!("tap {offset} follow")] {
            let mut resumed = pod.request(&request);
            assert_eq!(resumed.remove(0).offset(), offset);
            if !request.ends_with("follow") {
                assert_eq!(resumed.pop().unwrap().kind, Kind::Pause);
            }
            let bytes = |frames: &[support::Frame]| -> Vec<u8> {
                frames
                    .iter()
                    .flat_map(|frame| frame.bytes.clone())
                    .collect()
            };
            assert_eq!(bytes(&resumed), bytes(&frames[index..]));
        }
        assert_eq!(pod.ask(&format!("tap {}", offset + 1)).kind, Kind::Refused);
        offset += frame.bytes.len() as u64;
    }
    assert_eq!(pod.state("end").unwrap(), offset.to_string());
    assert_eq!(
        kinds(&pod.request(&format!("tap {offset}"))),
        [Kind::Hello, Kind::Pause]
    );
    assert_eq!(
        kinds(&pod.request(&format!("tap {offset} follow"))),
        [Kind::Hello]
    );
    assert_eq!(kinds(&pod.request("tap end follow")), [Kind::Hello]);
    assert_eq!(pod.ask(&format!("tap {}", offset + 1)).kind, Kind::Refused);
}

#[test]
fn a_tap_resumes_far_from_the_start() {
    let pod = Pod::sh(LINES);
    pod.release();
    let frames = pod.all();
    let mut offsets = vec![0_u64];
    for frame in &frames {
        offsets.push(offsets.last().unwrap() + frame.bytes.len() as u64);
    }
    for index in (0..offsets.len()).step_by(offsets.len() / 20 + 1) {
        let resumed = pod.request(&format!("tap {}", offsets[index]));
        assert_eq!(resumed[0].offset(), offsets[index]);
        assert_eq!(resumed.len() - 2, frames.len() - index);
    }
}

#[test]
fn any_bytes_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("bytes");
    let mut bytes = vec![0; 300_000];
    fs::File::open("/dev/urandom")
        .unwrap()
        .read_exact(&mut bytes)
        .unwrap();
    bytes.extend_from_slice(b"\0\0\r\n\r\x1b[0m\n\xff\xfe no end of line");
    fs::write(&path, &bytes).unwrap();
    let pod = Pod::sh(&format!("cat {}", path.display()));
    pod.release();
    assert!(bytes_of(&pod.all(), Kind::Stdout) == bytes);
}

#[test]
fn a_tail_has_the_last_lines() {
    let pod = Pod::sh(LINES);
    pod.release();
    pod.all();
    for (count, least) in [(0, 0), (1, 1), (10, 10), (5000, 5000), (1_000_000, 40_000)] {
        let frames = pod.request(&format!("tail {count}"));
        assert_eq!(frames.first().unwrap().kind, Kind::Hello);
        assert_eq!(frames.last().unwrap().kind, Kind::Pause);
        let found = frames
            .iter()
            .filter(|frame| matches!(frame.kind, Kind::Stdout | Kind::Stderr));
        let found: usize = found
            .map(|frame| frame.payload.iter().filter(|byte| **byte == b'\n').count())
            .sum();
        assert!(found >= least, "{found} lines of {count}");
        assert!(count > 10 || found < 20_000, "{found} lines of {count}");
    }
}

#[test]
fn output_stops_at_the_limit_until_acknowledged() {
    let pod = Pod::with(Options {
        serve: &["--limit", "1000000"],
        run: &[],
        command: &["sh", "-c", "head -c 10000000 /dev/zero; echo $? >&2"],
    });
    pod.release();
    let end = || pod.state("end").unwrap().parse::<u64>().unwrap();
    eventually("the limit", || (end() >= 1_000_000).then_some(()));
    // The command is blocked with a full pipe: the end moves no further.
    let stopped = end();
    assert_eq!(pod.request(&format!("tap {stopped}")).len(), 2);
    assert!(stopped < 1_200_000 && end() == stopped);
    assert_eq!(pod.state("phase").unwrap(), "running");

    let mut tap = pod.connect("tap 0 follow");
    read_frame(&mut tap).unwrap();
    let (mut offset, mut frames) = (0, Vec::new());
    while let Some(frame) = read_frame(&mut tap) {
        offset += frame.bytes.len() as u64;
        if frame.kind != Kind::End {
            send(&mut tap, Kind::Ack, &u64::to_le_bytes(offset));
        }
        frames.push(frame);
    }
    assert_eq!(bytes_of(&frames, Kind::Stdout).len(), 10_000_000);
    assert_eq!(bytes_of(&frames, Kind::Stderr), b"0\n");
}

#[test]
fn discarding_frees_the_disk() {
    let pod = Pod::with(Options {
        serve: &["--limit", "4000000", "--discard"],
        run: &[],
        command: &["head", "-c", "40000000", "/dev/zero"],
    });
    pod.release();
    let mut tap = pod.connect("tap 0 follow");
    read_frame(&mut tap).unwrap();
    let (mut offset, mut most, mut received) = (0, 0, 0);
    while let Some(frame) = read_frame(&mut tap) {
        offset += frame.bytes.len() as u64;
        received += frame.payload.len();
        send(&mut tap, Kind::Ack, &u64::to_le_bytes(offset));
        most = most.max(fs::metadata(pod.path("spool")).unwrap().blocks() * 512);
    }
    assert!(received > 40_000_000);
    assert!(most < 12_000_000, "{most} bytes on disk");
    eventually("the acknowledgment", || {
        (pod.state("acked")? == offset.to_string()).then_some(())
    });
    let start: u64 = pod.state("start").unwrap().parse().unwrap();
    assert!(start > 38_000_000, "{start}");
    // A client that asks for what is gone gets the rest.
    let frames = pod.request("tap 0");
    assert_eq!(frames[0].offset(), start);
    assert_eq!(frames[frames.len() - 2].kind, Kind::End);
}

#[test]
fn acknowledged_frames_make_room_at_the_limit() {
    let pod = Pod::with(Options {
        serve: &["--limit", "10000000"],
        run: &[],
        command: &["head", "-c", "100000000", "/dev/zero"],
    });
    pod.release();
    let mut tap = pod.connect("tap 0 follow");
    read_frame(&mut tap).unwrap();
    let mut offset = 0;
    while let Some(frame) = read_frame(&mut tap) {
        offset += frame.bytes.len() as u64;
        send(&mut tap, Kind::Ack, &u64::to_le_bytes(offset));
    }
    let start: u64 = pod.state("start").unwrap().parse().unwrap();
    assert!(
        start > 15_000_000 && start < offset - (64 << 20) + 1,
        "{start}"
    );
    let disk = fs::metadata(pod.path("spool")).unwrap().blocks() * 512;
    assert!(disk < 90_000_000, "{disk} bytes on disk");
}

#[test]
fn a_slow_client_does_not_block_others() {
    let pod = Pod::sh("head -c 20000000 /dev/zero");
    // It reads nothing.
    let _slow = pod.connect("tap 0 follow");
    pod.release();
    assert_eq!(bytes_of(&pod.all(), Kind::Stdout).len(), 20_000_000);
}

/// Reads the output from its start through `ctl`.
fn ctl_tap(pod: &Pod) -> Child {
    helper()
        .arg("ctl")
        .arg(pod.path("control"))
        .args(["tap", "0", "follow"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

#[test]
fn ctl_copies_both_directions() {
    let pod = Pod::sh(LINES);
    pod.release();
    let mut ctl = ctl_tap(&pod);
    let frames = support::read_frames(ctl.stdout.as_mut().unwrap());
    assert!(ctl.wait().unwrap().success());
    assert!(bytes_of(&frames, Kind::Stdout) == lines("out"));

    let end = pod.state("end").unwrap().parse::<u64>().unwrap();
    let mut ctl = ctl_tap(&pod);
    send(ctl.stdin.as_mut().unwrap(), Kind::Ack, &end.to_le_bytes());
    eventually("the acknowledgment", || {
        (pod.state("acked")? == end.to_string()).then_some(())
    });
    // Its output breaks.
    drop(ctl.stdout.take());
    eventually("the end of ctl", || ctl.try_wait().unwrap());
}

/// The kubelet ends the input of an exec whose client is gone.
#[test]
fn the_end_of_its_input_ends_ctl() {
    let pod = Pod::with(Options {
        serve: &["--stdin", "open"],
        run: &["--stdin"],
        command: &["cat"],
    });
    pod.release();
    let mut ctl = ctl_tap(&pod);
    read_frame(ctl.stdout.as_mut().unwrap()).unwrap();
    drop(ctl.stdin.take());
    eventually("the end of ctl", || ctl.try_wait().unwrap());
}

#[test]
fn ctl_reports_a_missing_collector() {
    let output = helper()
        .args(["ctl", "/nonexistent/control", "state"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let frame = read_frame(&mut output.stdout.as_slice()).unwrap();
    assert_eq!(
        frame.failure(),
        (
            2,
            "connect /nonexistent/control: No such file or directory".to_owned()
        )
    );
}

/// Sends zeros through all programs. Returns the peak memory of the collector, in kB.
fn pump(megabytes: u64) -> u64 {
    let pod = Pod::with(Options {
        serve: &["--limit", "30000000", "--discard"],
        run: &[],
        command: &["sh", "-c", &format!("head -c {megabytes}000000 /dev/zero")],
    });
    let started = Instant::now();
    let mut ctl = ctl_tap(&pod);
    pod.release();
    let (mut input, mut output) = (ctl.stdin.take().unwrap(), ctl.stdout.take().unwrap());
    read_frame(&mut output).unwrap();
    let (mut offset, mut acked, mut received) = (0, 0, 0);
    while let Some(frame) = read_frame(&mut output) {
        offset += frame.bytes.len() as u64;
        received += if frame.kind == Kind::Stdout {
            frame.payload.len() as u64
        } else {
            0
        };
        if offset - acked > 1_000_000 {
            acked = offset;
            send(&mut input, Kind::Ack, &u64::to_le_bytes(offset));
        }
    }
    assert_eq!(received, megabytes * 1_000_000);
    println!("{megabytes} MB in {:?}", started.elapsed());
    let status = fs::read_to_string(format!("/proc/{}/status", pod.serve.id())).unwrap();
    let peak = value(&status.replace(":\t", " "), "VmHWM").unwrap();
    drop(input);
    ctl.wait().unwrap();
    peak.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn memory_is_bounded() {
    assert!(pump(100) < 30_000);
}

#[test]
#[ignore = "takes a while"]
fn memory_is_bounded_for_a_gigabyte() {
    assert!(pump(1000) < 30_000);
}

/// A small file system, unmounted on drop.
struct Mount(std::path::PathBuf);

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
#[ignore = "mounts a file system, which needs root"]
fn a_full_disk_delays_the_output() {
    let dir = tempfile::tempdir().unwrap();
    let mount = Mount(dir.path().join("small"));
    fs::create_dir(&mount.0).unwrap();
    let mut command = Command::new("mount");
    command
        .args(["-t", "tmpfs", "-o", "size=5m", "none"])
        .arg(&mount.0);
    assert!(command.status().unwrap().success());
    let filler = mount.0.join("filler");
    let pod = Pod::with(Options {
        serve: &["--spool", mount.0.join("spool").to_str().unwrap()],
        run: &[],
        command: &[
            "sh",
            "-c",
            "head -c 4000000 /dev/urandom | tee $MARK; echo done >&2",
        ],
    });
    fs::File::create(&filler)
        .unwrap()
        .write_all(&vec![0; 4_000_000])
        .unwrap();
    pod.release();
    eventually("the full disk", || pod.state("spool_errno"));
    assert_eq!(pod.state("phase").unwrap(), "running");
    // The collector still answers.
    let mut tap = pod.connect("tap 0 follow");
    read_frame(&mut tap).unwrap();
    fs::remove_file(&filler).unwrap();
    let frames = support::read_frames(&mut tap);
    assert!(bytes_of(&frames, Kind::Stdout) == fs::read(pod.path("mark")).unwrap());
    assert_eq!(bytes_of(&frames, Kind::Stderr), b"done\n");
    assert_eq!(pod.state("spool_errno"), None);
}
