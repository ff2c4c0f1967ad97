//! Operations on a whole filesystem on simulated devices, with power cuts and failing devices between them: what is found
//! afterwards is judged by the simulator of `tests/powercut`, of which this is a part.
#![no_main]
#![expect(dead_code, unused_imports, reason = "the tests use the rest")]

#[path = "../../tests/powercut/campaign.rs"]
mod campaign;
#[path = "../../tests/powercut/change.rs"]
mod change;
#[path = "../../tests/powercut/content.rs"]
mod content;
#[path = "../../tests/powercut/history.rs"]
mod history;
#[path = "../../tests/powercut/process.rs"]
mod process;
#[path = "../../tests/powercut/recovery.rs"]
mod recovery;
#[path = "../../tests/powercut/simulator/mod.rs"]
mod simulator;
#[path = "../../tests/powercut/stack.rs"]
mod stack;
#[path = "../../tests/powercut/upkeep.rs"]
mod upkeep;

thread_local! {
    static BASE: simulator::Base = simulator::small_base();
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    BASE.with(|base| {
        if let Err(why) = simulator::fuzzed::run(base, data, &mut simulator::Tally::default()) {
            panic!("{why}");
        }
    });
});
