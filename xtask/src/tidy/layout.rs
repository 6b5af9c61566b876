//! Rules for which files there are.

use super::tree::Tree;
use super::{Place, Violation};

const DOCUMENTS: &[&str] =
    &["README.md", "ARCHITECTURE.md", "SPECIFICATION.md", "CHANGELOG.md", "LICENSE", "LICENSE-APACHE", "LICENSE-MIT"];

pub(super) fn documents(tree: &Tree) -> Vec<Violation> {
    let missing = DOCUMENTS.iter().filter(|path| !tree.files.iter().any(|file| file.path == **path));
    missing.map(|path| Place { path, line: 0 }.breaks("is missing")).collect()
}

/// Each integration-test binary links everything once more, so a package has one, with modules.
pub(super) fn one_test_binary(tree: &Tree) -> Vec<Violation> {
    let mut found = Vec::new();
    for (directory, manifest) in tree.manifests() {
        let declared = manifest.text.lines().filter(|line| line.trim() == "[[test]]").count();
        let by_place = tree.files.iter().filter(|file| {
            let own = tree.package_of(&file.path) == directory;
            own && file.path[directory.len()..].strip_prefix("tests/").is_some_and(is_binary)
        });
        let binaries = by_place.count().max(declared);
        if binaries > 1 {
            let what = format!("{binaries} integration-test binaries; make one of them, with modules");
            found.push(Place { path: &manifest.path, line: 0 }.breaks(what));
        }
    }
    found
}

/// Whether cargo makes a binary of this file below `tests/` (The Cargo Book, "Target auto-discovery").
fn is_binary(file: &str) -> bool {
    match file.split_once('/') {
        None => file.ends_with(".rs"),
        Some((_, rest)) => rest == "main.rs",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_documents_are_found() {
        let all: Vec<(&str, &str)> = DOCUMENTS.iter().map(|path| (*path, "")).collect();
        assert_eq!(documents(&Tree::of(&all)), []);
        assert_eq!(documents(&Tree::of(&all[1..])).len(), 1);
    }

    #[test]
    fn a_second_test_binary_is_found_but_modules_and_other_packages_are_not() {
        let mut files = vec![
            ("Cargo.toml", ""),
            ("tests/array/main.rs", ""),
            ("tests/array/crash.rs", ""),
            ("tests/sim/Cargo.toml", ""),
            ("tests/sim/tests/seeds.rs", ""),
        ];
        assert_eq!(one_test_binary(&Tree::of(&files)), []);
        files.push(("tests/more.rs", ""));
        assert_eq!(one_test_binary(&Tree::of(&files)).len(), 1);
        assert_eq!(one_test_binary(&Tree::of(&[("Cargo.toml", "[[test]]\n[[test]]\n")])).len(), 1);
    }
}
