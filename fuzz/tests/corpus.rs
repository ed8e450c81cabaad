//! The corpus, replayed on a stable compiler, and each input damaged a little.
#![expect(clippy::unwrap_used, reason = "helpers of tests may fail the test")]

use std::path::{Path, PathBuf};

use collective_fuzz::TARGETS;

/// Inputs of one target and bytes of one input, at most: the corpus is read by people too.
const INPUTS: usize = 64;
const INPUT_BYTES: usize = 4096;

fn corpus(target: &str) -> Vec<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
    let items = std::fs::read_dir(path).unwrap();
    let mut inputs: Vec<PathBuf> = items.map(|item| item.unwrap().path()).collect();
    inputs.sort();
    inputs
}

#[test]
fn every_input_of_the_corpus_keeps_every_promise_and_so_does_what_is_near_it() {
    for (target, run) in TARGETS {
        let inputs = corpus(target);
        assert!((5..=INPUTS).contains(&inputs.len()), "{target} has {} inputs", inputs.len());
        for path in inputs {
            println!("{}", path.display());
            let input = std::fs::read(&path).unwrap();
            assert!(input.len() <= INPUT_BYTES, "{} bytes", input.len());
            run(&input);
            for at in 0..input.len().min(64) {
                let mut damaged = input.clone();
                damaged[at] ^= 1 << (at % 8);
                run(&damaged);
                run(&input[..at]);
            }
        }
    }
}

#[test]
fn no_corpus_is_without_a_target() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    let mut names: Vec<_> = path
        .read_dir()
        .unwrap()
        .map(|item| item.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, TARGETS.map(|(target, _)| target));
}
