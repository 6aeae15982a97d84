//! Runs each target on its corpus and on some random bytes.

use std::fs;
use std::path::Path;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use tomada_fuzz::TARGETS;

fn corpus(name: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name);
    let files = fs::read_dir(folder).expect("each target has a corpus");
    files.map(|file| fs::read(file.unwrap().path()).unwrap()).collect()
}

#[test]
fn the_corpus_passes() {
    for (name, target) in TARGETS {
        let corpus = corpus(name);
        assert!(!corpus.is_empty());
        for data in corpus {
            target(&data);
        }
    }
}

#[test]
fn changes_of_the_corpus_and_random_bytes_pass() {
    for (name, target) in TARGETS {
        let changed = (prop::sample::select(corpus(name)), any::<(usize, u8, usize)>()).prop_map(
            |(mut data, (place, byte, len))| {
                if !data.is_empty() {
                    let place = place % data.len();
                    data[place] = byte;
                    data.truncate(1 + len % data.len());
                }
                data
            },
        );
        let random = prop::collection::vec(any::<u8>(), 0..512);
        let any_data = prop_oneof![changed, random];
        let mut runner =
            TestRunner::new(Config { failure_persistence: None, ..Config::with_cases(2000) });
        runner
            .run(&any_data, |data| {
                target(&data);
                Ok(())
            })
            .unwrap_or_else(|error| panic!("{name}: {error}"));
    }
}
