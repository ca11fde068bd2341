//! Rounds of a seed, until enough processes were killed.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use super::block_on;
use super::check::Tally;
use super::plan::Plan;
use super::round::Round;

/// The number of rounds at a time.
const AT_ONCE: usize = 4;

/// Plays rounds until `kills` processes were killed, and prints the figures.
pub fn play(seed: u64, kills: u32) -> Tally {
    let begin = Instant::now();
    let (total, rounds) = (Mutex::new(Tally::default()), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while total.lock().unwrap().kills < kills {
                    let number = rounds.fetch_add(1, Ordering::Relaxed);
                    let tally = play_one(seed.wrapping_add(number));
                    total.lock().unwrap().add(tally);
                }
            });
        }
    });
    let tally = total.into_inner().unwrap();
    println!(
        "{tally}; seed {seed}, {} rounds, {} s",
        rounds.into_inner(),
        begin.elapsed().as_secs()
    );
    tally
}

fn play_one(seed: u64) -> Tally {
    let plan = Plan::random(seed);
    let mut tally = block_on(async { Round::new().await.play(&plan).await });
    for problem in &mut tally.problems {
        *problem = format!("seed {seed}: {problem}\n  {plan:?}");
    }
    tally
}
