//! The house rules that a program can check. Each rule is a function from the tree to what breaks it; this file is their
//! table, the rooms below hold them: [`text`] any written file, [`code`] Rust, [`manifest`] the packages,
//! [`layout`] which files there are.
//!
//! Rules read the tree's text, not what the compiler makes of it: they take part of a second and need nothing built.

mod code;
mod layout;
mod manifest;
mod source;
mod text;
mod tree;

use std::path::Path;
use tree::Tree;

/// A line of a file.
#[derive(Debug, Copy, Clone)]
struct Place<'a> {
    path: &'a str,
    /// From 1; 0 is the file as a whole.
    line: usize,
}

impl Place<'_> {
    fn breaks(self, what: impl Into<String>) -> Violation {
        Violation { path: self.path.into(), line: self.line, what: what.into() }
    }
}

/// Where the tree breaks a rule, and what about it does.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Violation {
    path: String,
    line: usize,
    what: String,
}

type Rule = fn(&Tree) -> Vec<Violation>;

const RULES: &[Rule] = &[
    text::trailing_whitespace,
    text::machine_paths,
    text::temporary_paths,
    text::line_length,
    text::file_length,
    code::unfinished,
    code::module_docs,
    code::glob_of_the_parent,
    code::ignored_tests,
    code::allow_without_reason,
    code::unsafe_rooms,
    code::uncounted_copies,
    manifest::floors,
    manifest::inheritance,
    layout::one_test_binary,
    layout::documents,
];

/// Checks the tree at `root` and prints what is wrong; false if anything is.
pub(crate) fn check(root: &Path) -> bool {
    let tree = match Tree::read(root) {
        Ok(tree) => tree,
        Err(error) => {
            println!("tidy: cannot read {}: {error}", root.display());
            return false;
        }
    };
    let mut violations: Vec<_> = RULES.iter().flat_map(|rule| rule(&tree)).collect();
    violations.sort();
    for Violation { path, line, what } in &violations {
        println!("{path}:{line}: {what}");
    }
    println!("tidy: {}; {} to mend", text::sizes(&tree), violations.len());
    violations.is_empty()
}
