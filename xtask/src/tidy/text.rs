//! Rules for any written file: white space, lengths, and paths of the machine it was written on.

use super::Violation;
use super::tree::Tree;

const LINE_MAX: usize = 160;
/// More lines than this are refused; a file is one idea and usually stays under [`FILE_USUAL`].
const FILE_MAX: usize = 800;
const FILE_USUAL: usize = 250;

/// Directories that mean something on one machine only. The file that names them is this one.
const MACHINE_PATHS: &[&str] = &["/work/", "/root/"];
const THIS_FILE: &str = "xtask/src/tidy/text.rs";

pub(super) fn trailing_whitespace(tree: &Tree) -> Vec<Violation> {
    let blank = tree.lines().filter(|(_, line)| line.ends_with([' ', '\t', '\r']));
    blank.map(|(place, _)| place.breaks("white space at the end of the line")).collect()
}

pub(super) fn line_length(tree: &Tree) -> Vec<Violation> {
    let rust = tree.lines().filter(|(place, _)| place.path.ends_with(".rs"));
    let lengths = rust.map(|(place, line)| (place, line.chars().count()));
    lengths
        .filter(|&(_, length)| length > LINE_MAX)
        .map(|(place, length)| place.breaks(format!("{length} characters; at most {LINE_MAX}")))
        .collect()
}

pub(super) fn file_length(tree: &Tree) -> Vec<Violation> {
    let last_lines = tree.code().filter(|(place, _)| place.line == FILE_MAX + 1);
    last_lines.map(|(place, _)| place.breaks(format!("more than {FILE_MAX} lines: which ideas are these?"))).collect()
}

pub(super) fn machine_paths(tree: &Tree) -> Vec<Violation> {
    let written = tree.lines().filter(|(place, _)| place.path != THIS_FILE);
    written
        .filter_map(|(place, line)| {
            let path = MACHINE_PATHS.iter().find(|path| names(line, path))?;
            Some(place.breaks(format!("`{path}` is a path of one machine")))
        })
        .collect()
}

/// Outside tests a directory for temporary files comes from the caller or from the system.
pub(super) fn temporary_paths(tree: &Tree) -> Vec<Violation> {
    let product = tree.code().filter(|(place, line)| !line.test && place.path != THIS_FILE);
    product
        .filter(|(_, line)| line.literals.contains("/tmp/"))
        .map(|(place, _)| place.breaks("`/tmp/` by name: take a directory from the caller, or std::env::temp_dir"))
        .collect()
}

/// Whether `line` holds the absolute path `path`, not merely a longer path with that in its middle.
fn names(line: &str, path: &str) -> bool {
    let continues = |c: char| c.is_alphanumeric() || "_.-}*>".contains(c);
    line.match_indices(path).any(|(at, _)| !line[..at].ends_with(continues))
}

/// How large the tree is, in words.
pub(super) fn sizes(tree: &Tree) -> String {
    let lengths: Vec<usize> = tree.rust().map(|(_, source)| source.lines.len()).collect();
    let long = lengths.iter().filter(|&&length| length > FILE_USUAL).count();
    let total: usize = lengths.iter().sum();
    format!("{} Rust files, {total} lines, {long} files over {FILE_USUAL} lines", lengths.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(found: &[Violation]) -> Vec<usize> {
        found.iter().map(|violation| violation.line).collect()
    }

    #[test]
    fn white_space_at_the_end_is_found() {
        let tree = Tree::of(&[("README.md", "a\nb \n\nc\t\n")]);
        assert_eq!(lines(&trailing_whitespace(&tree)), [2, 4]);
    }

    #[test]
    fn long_lines_of_rust_are_found_counting_characters() {
        let line = |length| "é".repeat(length) + "\n";
        let text = line(LINE_MAX) + &line(LINE_MAX + 1);
        assert_eq!(lines(&line_length(&Tree::of(&[("a.rs", &text), ("a.md", &text)]))), [2]);
    }

    #[test]
    fn long_files_are_found() {
        assert!(file_length(&Tree::of(&[("a.rs", &"\n".repeat(FILE_MAX))])).is_empty());
        assert_eq!(file_length(&Tree::of(&[("a.rs", &"\n".repeat(FILE_MAX + 1))])).len(), 1);
    }

    #[test]
    fn machine_paths_are_found_anywhere() {
        let text = "run it in /tmp/x or net/work/x\ncd /work/x\n`/root/x`\n";
        assert_eq!(lines(&machine_paths(&Tree::of(&[("a.md", text)]))), [2, 3]);
    }

    #[test]
    fn temporary_paths_are_found_in_strings_outside_tests() {
        let text = "// not /tmp/a\nf(\"/tmp/a\");\n#[cfg(test)]\nmod tests {\n    f(\"/tmp/a\");\n}\n";
        assert_eq!(lines(&temporary_paths(&Tree::of(&[("a.rs", text)]))), [2]);
    }

    #[test]
    fn sizes_count_the_files_that_are_longer_than_usual() {
        let tree = Tree::of(&[("a.rs", "\n"), ("b.rs", &"\n".repeat(FILE_USUAL + 1)), ("c.md", "\n")]);
        assert_eq!(sizes(&tree), "2 Rust files, 252 lines, 1 files over 250 lines");
    }
}
