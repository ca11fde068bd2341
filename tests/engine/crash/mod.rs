//! Kills of a process that embeds moat, at every step and at any moment. In the end, each run is
//! sealed, each line once and in order, and no container or file too many.
//!
//! `MOAT_KILLS` and `MOAT_SEED` set the length and the course of the long form, `soak`, which runs
//! with `--include-ignored`.

use testkit::crash::{Planned, Tally, campaign, number};
use testkit::engine;
use testkit::harness::{Failed, Trial};

pub mod child;
mod plan;
mod round;
mod saboteur;

use plan::{Deadly, Plan};
use round::Round;

/// A fixed seed, so that the kills in CI have the same course each time.
const SEED: u64 = 20_261_124;
const KILLS: u32 = 60;
const SOAK_KILLS: u32 = 1_000;
/// The number of rounds at a time.
const AT_ONCE: usize = 4;

pub fn trials() -> Vec<Trial> {
    let mut trials = Vec::new();
    for point in plan::START {
        trials.push(killed(
            "a_run_is_sealed_after_a_kill",
            point,
            vec![Deadly::at(point)],
        ));
    }
    for &(start, point, times) in plan::RECOVERY {
        let mut deaths = vec![Deadly::at(start)];
        deaths.resize(1 + times, Deadly::at(point));
        let run = match point.ends_with("follow") || point == "after wait" {
            true => Planned::lasting(),
            false => Planned::plain(),
        };
        let runs = vec![run];
        let point = format!("{point}, started until {start}");
        trials.push(trial(
            "a_run_is_sealed_after_kills_in_recovery",
            &point,
            Plan { runs, deaths },
        ));
    }
    for point in ["during start", "before remove", "after remove"] {
        let plan = Plan {
            runs: vec![Planned {
                missing: true,
                ..Planned::plain()
            }],
            deaths: vec![Deadly::at(point)],
        };
        trials.push(trial(
            "a_run_is_sealed_after_a_kill",
            &format!("{point} that fails"),
            plan,
        ));
    }
    for &bytes in plan::TORN {
        let point = format!("in_a_write_at_byte_{bytes}");
        trials.push(killed(
            "a_run_is_sealed_after_a_kill",
            &point,
            vec![Deadly::Torn(bytes)],
        ));
    }
    trials.push(on_engine(
        "a_create_of_a_killed_sender_leaves_no_container",
        || block_on(Round::killed_while_under_way("create")).clean(),
    ));
    trials.push(on_engine("a_start_of_a_killed_sender_is_captured", || {
        block_on(Round::killed_while_under_way("start")).clean()
    }));
    trials.push(on_engine("kills_at_any_moment_lose_nothing", || {
        campaign(SEED, KILLS, AT_ONCE, play).clean()
    }));
    let soak = on_engine("soak", || {
        let seed = number("MOAT_SEED", SEED)?;
        let kills = number("MOAT_KILLS", u64::from(SOAK_KILLS))?;
        campaign(seed, kills.try_into()?, AT_ONCE, play).clean()
    });
    trials.push(soak.needs(&Err("the long form runs with `--include-ignored`".into())));
    trials
}

fn on_engine(name: &str, run: impl FnOnce() -> Result<(), Failed> + Send + 'static) -> Trial {
    Trial::new(&format!("crash::{name}"), run).needs(engine::need())
}

/// A trial in which each process is killed at its point, which it must reach.
fn killed(sentence: &str, point: &str, deaths: Vec<Deadly>) -> Trial {
    let runs = vec![Planned::plain()];
    trial(sentence, point, Plan { runs, deaths })
}

fn trial(sentence: &str, point: &str, plan: Plan) -> Trial {
    let point = point.replace(", ", " ").replace(' ', "_");
    on_engine(&format!("{sentence}::{point}"), move || {
        let play = || block_on(async { Round::new().await.play(&plan).await });
        let (mut tally, mut tries) = (play(), 1);
        // If the question for evidence gets no answer, the whole log is read instead.
        while tally.kills == 0 && plan.dies_at("after evidence") && tries < 5 {
            (tally, tries) = (play(), tries + 1);
        }
        // Podman refuses such a container before its start.
        let is_refused = engine::is_podman() && point == "during_start_that_fails";
        if tally.kills as usize != plan.deaths.len() && !is_refused {
            return Err(format!("{} of {} were killed", tally.kills, plan.deaths.len()).into());
        }
        tally.clean()
    })
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(future)
}

/// Plays the plan of a seed.
fn play(seed: u64) -> Tally {
    let plan = Plan::random(seed);
    let mut tally = block_on(async { Round::new().await.play(&plan).await });
    for problem in &mut tally.problems {
        *problem = format!("{problem}\n  {plan:?}");
    }
    tally
}
