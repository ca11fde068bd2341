//! Kills of a process that embeds moat, from before the creation of a pod until after the seal. In
//! the end, each run is sealed, each line once and in order, and no pod or file too many.
//!
//! `MOAT_KILLS` and `MOAT_SEED` set the length and the course of the long form, `soak`, which runs
//! with `--include-ignored`:
//!
//! ```sh
//! tests/engines/kubernetes cargo test --all-features --test kubernetes -- crash::soak --include-ignored
//! ```

use std::sync::PoisonError;

use testkit::crash::{Tally, campaign, number};
use testkit::harness::{Failed, Trial};

pub mod child;
mod plan;
pub mod round;

use plan::Plan;
use round::Round;

/// A fixed seed, so that the kills in CI have the same course each time.
const SEED: u64 = 20_261_127;
const KILLS: u32 = 10;
const SOAK_KILLS: u32 = 100;
/// The number of rounds at a time.
const AT_ONCE: usize = 4;

pub fn trials() -> Vec<Trial> {
    let short = on_cluster("kills_at_any_moment_lose_nothing", || {
        kill(SEED, KILLS).clean()
    });
    let soak = on_cluster("soak", || {
        let seed = number("MOAT_SEED", SEED)?;
        let kills = number("MOAT_KILLS", u64::from(SOAK_KILLS))?;
        kill(seed, kills.try_into()?).clean()
    });
    let needs = Err("the long form runs with `--include-ignored`".into());
    vec![short, soak.needs(&needs)]
}

fn on_cluster(name: &str, run: impl FnOnce() -> Result<(), Failed> + Send + 'static) -> Trial {
    let run = move || {
        let _shared = crate::CLUSTER
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        run()
    };
    Trial::new(&format!("crash::{name}"), run)
        .needs(crate::cluster::need())
        .needs(crate::cluster::local())
}

/// Plays rounds until `kills` processes were killed, and prints where.
fn kill(seed: u64, kills: u32) -> Tally {
    let tally = campaign(seed, kills, AT_ONCE, play);
    println!("runs when their process was killed: {:?}", round::killed());
    tally
}

/// Plays the plan of a seed.
fn play(seed: u64) -> Tally {
    let plan = Plan::random(seed);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let mut tally = runtime.block_on(async { Round::new().await.play(&plan).await });
    for problem in &mut tally.problems {
        *problem = format!("{problem}\n  {plan:?}");
    }
    tally
}
