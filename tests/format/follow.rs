//! Following and reading an audit file while it changes.

use moat::audit::{Event, LogState, Reader, Record};
use moat::sink::Jsonl;

use crate::golden::{Place, batch, open};
use crate::resume::{golden, reopened};

#[tokio::test]
async fn a_log_can_be_followed_to_its_seal() {
    let place = Place::new();
    let golden = golden("lossy");
    let mut log = open(&Jsonl::new(), &place, &golden.start).await;
    let mut reader = Reader::open(place.log()).unwrap();
    assert!(matches!(
        reader.next(),
        Some(Ok(Record::Event(Event::Start(_))))
    ));
    let (first, rest) = golden.records.split_at(2);
    for record in first {
        assert!(reader.next().is_none() && reader.next().is_none());
        log.append(batch([record])).await.unwrap();
        assert_eq!(&reader.next().unwrap().unwrap(), record);
        let length = place.log().metadata().unwrap().len();
        assert_eq!(reader.offset(), length);
    }
    drop(log);

    // A writer dies in the middle of a line. The next writer cuts the line off and continues.
    let mut bytes = std::fs::read(place.log()).unwrap();
    let whole = bytes.len() as u64;
    bytes.extend_from_slice(b"{\"ts\":\"torn");
    std::fs::write(place.log(), &bytes).unwrap();
    assert!(reader.next().is_none());
    assert_eq!(reader.state(), &LogState::Unsealed { torn: 11 });
    assert_eq!(reader.offset(), whole);
    let (mut log, torn, _) = reopened(&place).await;
    assert_eq!(torn.unwrap().bytes, 11);
    for record in rest {
        assert!(reader.next().is_none());
        log.append(batch([record])).await.unwrap();
        assert_eq!(&reader.next().unwrap().unwrap(), record);
    }
    let seal = log.seal(golden.seal.unwrap()).await.unwrap();
    let end = reader.next().unwrap().unwrap();
    assert_eq!(end, Record::Event(Event::End(Box::new(seal.clone()))));
    assert!(reader.next().is_none() && reader.next().is_none());
    assert_eq!(reader.state(), &LogState::Sealed(Box::new(seal)));
}

#[tokio::test]
async fn a_reader_reports_a_file_that_shrank() {
    let golden = golden("unsealed-torn");
    let place = Place::holding(&golden.bytes());
    let mut reader = Reader::open(place.log()).unwrap();
    assert_eq!(reader.by_ref().count(), golden.records.len() + 1);
    std::fs::write(place.log(), &golden.bytes()[..100]).unwrap();
    assert!(reader.next().is_none());
    let LogState::Damaged(damage) = reader.state() else {
        panic!();
    };
    assert!(damage.reason.contains("cut short"), "{damage}");
}
