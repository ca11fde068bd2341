//! Kills of a process that embeds moat, at every step and at any moment. In the end, each run is
//! sealed, each line once and in order, and no container or file too many.
//!
//! `MOAT_KILLS` and `MOAT_SEED` set the length and the course of the long form, `soak`, which runs
//! with `--include-ignored`.

use testkit::engine;
use testkit::harness::{Failed, Trial};

mod campaign;
mod check;
pub mod child;
mod plan;
mod round;
mod saboteur;

use check::Tally;
use plan::{Deadly, Plan, Planned};
use round::Round;

/// A fixed seed, so that the kills in CI have the same course each time.
const SEED: u64 = 20_261_124;
const KILLS: u32 = 60;
const SOAK_KILLS: u32 = 1_000;

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
        || clean(&block_on(Round::killed_while_under_way("create"))),
    ));
    trials.push(on_engine("a_start_of_a_killed_sender_is_captured", || {
        clean(&block_on(Round::killed_while_under_way("start")))
    }));
    trials.push(on_engine("kills_at_any_moment_lose_nothing", || {
        clean(&campaign::play(SEED, KILLS))
    }));
    let soak = on_engine("soak", || {
        let seed = number("MOAT_SEED", SEED)?;
        let kills = number("MOAT_KILLS", u64::from(SOAK_KILLS))?;
        clean(&campaign::play(seed, kills.try_into()?))
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
        clean(&tally)
    })
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(future)
}

/// Asserts that nothing is lost, repeated, unsealed, wrong or left over.
fn clean(tally: &Tally) -> Result<(), Failed> {
    match tally.problems.as_slice() {
        [] => Ok(()),
        problems => Err(format!("{tally}\n{}", problems.join("\n")).into()),
    }
}

fn number(variable: &str, default: u64) -> Result<u64, Failed> {
    match std::env::var(variable) {
        Ok(text) => Ok(text
            .parse()
            .map_err(|error| format!("{variable}={text}: {error}"))?),
        Err(_) => Ok(default),
    }
}
