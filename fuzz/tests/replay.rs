//! Replays the committed corpus through every target, on a stable compiler and without libFuzzer.
//!
//! `FOREBAY_WRITE_CORPUS=1` makes the seeds anew; what a fuzzer found lies beside them and stays.

use std::fs;
use std::path::{Path, PathBuf};

use forebay_fuzz::{TARGETS, seeds};

fn corpus(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target)
}

#[test]
fn every_input_of_the_corpus_keeps_the_promises() {
    if std::env::var_os("FOREBAY_WRITE_CORPUS").is_some() {
        for (target, _) in TARGETS {
            fs::create_dir_all(corpus(target)).unwrap();
            for (name, bytes) in seeds::of(target) {
                fs::write(corpus(target).join(name), bytes).unwrap();
            }
        }
    }
    for (target, run) in TARGETS {
        let mut inputs: Vec<PathBuf> =
            fs::read_dir(corpus(target)).unwrap().map(|entry| entry.unwrap().path()).collect();
        inputs.sort();
        let mut bytes = 0;
        for path in &inputs {
            let input = fs::read(path).unwrap();
            assert!(input.len() <= 32 << 10, "{}: the corpus is to stay small", path.display());
            bytes += input.len();
            println!("{}", path.display());
            run(&input);
        }
        println!("{target}: {} inputs, {bytes} bytes", inputs.len());
        assert!(inputs.len() >= 5, "{target} has a corpus");
    }
}
