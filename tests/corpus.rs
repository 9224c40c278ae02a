//! Every committed input of the fuzz targets through its parser. `scripts/fuzz` makes them.

use std::fs;
use std::path::PathBuf;

#[path = "../fuzz/checks.rs"]
mod checks;

#[test]
fn every_committed_input_holds_what_is_promised() {
    let corpus = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    for (name, check) in checks::ALL {
        let directory = corpus.join(name);
        let files = fs::read_dir(&directory)
            .unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
        let mut count = 0;
        for file in files {
            let path = file.expect("a directory entry").path();
            let bytes = fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            eprintln!("{}", path.display());
            check(&bytes);
            count += 1;
        }
        assert!(count >= 5, "{}: {count} inputs", directory.display());
    }
}
