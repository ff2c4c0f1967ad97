use super::*;
use crate::fs::model::{ByteChoices, Choices, Mix, Model, read_tree};
use crate::fs::op::{Driver, Op};

/// Runs `count` operations on a filesystem and on the model, comparing every outcome and, now and then, everything.
fn run(choices: &mut impl Choices, mix: &Mix, count: usize, hint: &str) {
    let Rig { clock, fs } = Rig::new();
    let mut model = Model::new(clock.now());
    let mut driver = Driver::new(fs, clock.clone());
    let mut history = Vec::new();
    for step in 0..count {
        let op = model.random_op(choices, mix);
        let (now, outcome) = driver.apply(&op);
        history.push(op);
        let tell = |why: String, driver: &Driver| -> ! {
            let last: Vec<String> = history.iter().rev().take(12).rev().map(|op| format!("  {op:?}")).collect();
            panic!("{hint}, operation {step}: {why}\nlast error: {:?}\n{}", driver.error(), last.join("\n"));
        };
        if let Err(why) = model.check(&op, now, &outcome) {
            tell(why, &driver);
        }
        if step % 100 == 99 || matches!(op, Op::Remount) {
            let found = read_tree(driver.fs()).unwrap_or_else(|error| tell(format!("reading all: {error}"), &driver));
            if let Some(difference) = found.difference(&model.tree(clock.now())) {
                tell(difference, &driver);
            }
            driver.fs().reclaim_all().unwrap();
            let statfs = driver.fs().statfs().unwrap();
            assert_eq!(statfs.files - statfs.files_free, model.inodes(), "{hint}: inodes");
        }
    }
    let rig = Rig { clock, fs: driver.into_fs() };
    rig.journal();
    rig.check();
    rig.fs.forget_all();
    rig.reclaim_all().unwrap();
    rig.check();
    assert_eq!(rig.rows()[3], 0, "{hint}: orphans are left");
}

const WITHOUT_DATA: Mix = Mix { data: 0, ..MIX };
const MIX: Mix = Mix { names: 40, attributes: 12, xattrs: 12, data: 30, sync: 5, remount: 1 };

#[test]
fn names_and_attributes_behave_as_the_model_says() {
    for seed in 0..6 {
        run(&mut Prng::new(seed), &WITHOUT_DATA, 1500, &format!("seed {seed}"));
    }
}

#[test]
fn everything_behaves_as_the_model_says() {
    for seed in 100..106 {
        run(&mut Prng::new(seed), &Mix::default(), 1500, &format!("seed {seed}"));
    }
}

/// As many seeds as `ARGOSFS_SEEDS` says, from `ARGOSFS_FIRST_SEED` on.
#[test]
#[ignore = "runs as long as it is told to"]
fn many_seeds_behave_as_the_model_says() {
    let number = |name, default| std::env::var(name).map_or(default, |text| text.parse().expect("a number"));
    let first = number("ARGOSFS_FIRST_SEED", 1000);
    for seed in first..first + number("ARGOSFS_SEEDS", 200) {
        run(&mut Prng::new(seed), &Mix::default(), 2000, &format!("seed {seed}"));
    }
}

#[test]
fn operations_from_a_fuzzers_bytes_behave_as_the_model_says() {
    let mut bytes = vec![0; 20_000];
    crate::base::Entropy::fill(&mut Prng::new(77), &mut bytes);
    let mut choices = ByteChoices(&bytes);
    run(&mut choices, &Mix::default(), 1000, "bytes");
    assert!(!choices.is_empty());
}
