//! Following an audit file while it grows.

use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use moat::Error;
use moat::audit::{Follow, Record};
use moat::outcome::Stream;
use moat::runtime::scripted::Script;

use crate::bench::{Bench, spec};

fn texts(records: &[Record]) -> Vec<String> {
    let text = |record: &Record| match record {
        Record::Output(output) => Some(String::from_utf8(output.bytes.clone()).unwrap()),
        _ => None,
    };
    records.iter().filter_map(text).collect()
}

async fn followed(follow: Follow) -> Vec<Record> {
    follow.into_stream().try_collect().await.unwrap()
}

#[tokio::test]
async fn a_run_can_be_followed_to_its_seal() {
    let bench = Bench::new();
    let manager = bench.open().await;
    let pause = Duration::from_millis(50);
    let script = Script::new()
        .stdout("a\n")
        .pause(pause)
        .stderr("b\n")
        .pause(pause)
        .stdout("c\n")
        .until_stopped();
    let run = bench.start(&manager, script, spec()).await;
    let mut live = run.follow().unwrap().into_stream();
    let mut records = Vec::new();
    while texts(&records).len() < 3 {
        records.push(live.next().await.unwrap().unwrap());
    }
    run.stop(None).await.unwrap();
    while let Some(record) = live.next().await {
        records.push(record.unwrap());
    }
    assert!(matches!(
        records.last(),
        Some(Record::Event(moat::audit::Event::End(_)))
    ));
    let again = followed(manager.root().follow(run.id()).unwrap()).await;
    assert_eq!(again, records);
    let blocking: Vec<_> = run.follow().unwrap().records().unwrap().collect();
    let blocking: Vec<_> = blocking.into_iter().map(Result::unwrap).collect();
    assert_eq!(blocking, records);
    let rest = followed(run.follow().unwrap().from_record(3)).await;
    assert_eq!(rest, records[3..]);
    let stderr = followed(run.follow().unwrap().stream(Stream::Stderr)).await;
    assert_eq!(texts(&stderr), ["b"]);
    assert_eq!(stderr.len(), records.len() - 2);
    let last = followed(run.follow().unwrap().last(2)).await;
    assert_eq!(texts(&last), ["b", "c"]);
    let last = followed(run.follow().unwrap().last(1).stream(Stream::Stderr)).await;
    assert_eq!(texts(&last), ["b"]);
    let none = followed(run.follow().unwrap().last(0)).await;
    assert_eq!(none, records[records.len() - 1..]);
}

#[tokio::test]
async fn a_replaced_file_ends_the_follower() {
    let bench = Bench::new();
    let manager = bench.open().await;
    let script = Script::new().stdout("a\n").until_stopped();
    let run = bench.start(&manager, script, spec()).await;
    let path = bench.directory.path().join("copy.jsonl");
    std::fs::copy(run.audit().unwrap(), &path).unwrap();
    for replace in [false, true] {
        let mut live = Follow::new(&path).into_stream();
        live.next().await.unwrap().unwrap();
        let aside = bench.directory.path().join(format!("aside-{replace}"));
        std::fs::rename(&path, &aside).unwrap();
        if replace {
            std::fs::copy(&aside, &path).unwrap();
        }
        let mut last = Ok(());
        while let Some(record) = live.next().await {
            last = record.map(drop);
        }
        match (last.unwrap_err(), replace) {
            (Error::Storage { .. }, false) => std::fs::rename(&aside, &path).unwrap(),
            (Error::Damaged { .. }, true) => {}
            (error, _) => panic!("{}", error.chain()),
        }
    }
    let now = followed(Follow::new(&path).wait(false)).await;
    assert!(!now.is_empty(), "what is there");
    run.kill().await.unwrap();
}
