//! Rules for Rust: nothing is left unfinished, every module says what it is for, exceptions give their reasons, `unsafe`
//! stays in its rooms, and payload is copied only where copies are counted (DESIGN 2 and 8).

use super::source::words;
use super::tree::Tree;
use super::{Place, Violation};

/// Macros and words that say that something is not done.
const UNFINISHED_MACROS: &[&str] = &["todo!", "unimplemented!", "dbg!"];
const UNFINISHED_WORDS: &[&str] = &["TODO", "FIXME", "XXX"];

pub(super) fn unfinished(tree: &Tree) -> Vec<Violation> {
    tree.code()
        .filter_map(|(place, line)| {
            let call = UNFINISHED_MACROS.iter().find(|name| contains(&line.code, name));
            let written = || words(&line.code).chain(words(&line.comment));
            let name = call.or_else(|| UNFINISHED_WORDS.iter().find(|name| written().any(|word| word == **name)))?;
            Some(place.breaks(format!("`{name}`: finish it")))
        })
        .collect()
}

/// Whether `code` has `name`, not merely a longer word that ends in it.
fn contains(code: &str, name: &str) -> bool {
    let continues = |c: char| c.is_alphanumeric() || c == '_';
    code.match_indices(name).any(|(at, _)| !code[..at].ends_with(continues))
}

pub(super) fn module_docs(tree: &Tree) -> Vec<Violation> {
    let silent = tree.rust().filter(|(file, _)| !file.text.starts_with("//!"));
    silent
        .map(|(file, _)| Place { path: &file.path, line: 1 }.breaks("starts without `//!`: what is this room for?"))
        .collect()
}

pub(super) fn glob_of_the_parent(tree: &Tree) -> Vec<Violation> {
    let globs = tree.code().filter(|(_, line)| !line.test && line.code.contains("use super::*"));
    globs.map(|(place, _)| place.breaks("`use super::*` outside tests: name what is used")).collect()
}

pub(super) fn ignored_tests(tree: &Tree) -> Vec<Violation> {
    let mut found = Vec::new();
    for (file, source) in tree.rust() {
        let ignored = source.attributes.iter().filter(|attribute| words(&attribute.text).next() == Some("ignore"));
        found.extend(ignored.map(|attribute| {
            Place { path: &file.path, line: attribute.first_line + 1 }.breaks("`#[ignore]`: who runs this test?")
        }));
    }
    found
}

/// A lint is switched off with `reason = ".."`, or with a comment on that line or right above.
pub(super) fn allow_without_reason(tree: &Tree) -> Vec<Violation> {
    let mut found = Vec::new();
    for (file, source) in tree.rust() {
        for attribute in &source.attributes {
            let switches_off = contains(&attribute.text, "allow(") || contains(&attribute.text, "expect(");
            let explained = attribute.text.contains("reason=")
                || source.reasons(attribute.first_line).any(|comment| !comment.trim().is_empty());
            if switches_off && !explained {
                let place = Place { path: &file.path, line: attribute.first_line + 1 };
                found.push(place.breaks(format!("`{}` without a reason", attribute.text)));
            }
        }
    }
    found
}

/// Where `unsafe` may stand, a file or every file whose path begins so, and what Rust cannot check there.
const UNSAFE_ROOMS: &[(&str, &str)] = &[
    ("reactor/src/executor/waker.rs", "a RawWaker without Arc"),
    ("reactor/tests/allocations/", "the global allocator of a test, which counts"),
    ("matrix/src/memory", "mapped memory that peers and devices write: raw pointers, never references"),
    ("matrix/src/shm/", "rings and regions shared with another process"),
    ("backend/src/vfio/", "system calls of VFIO, and registers behind a mapping"),
    ("backend/src/vfio_user/", "doorbells and DMA regions shared with another process"),
    ("backend/src/parity/", "vector loads and stores of blocks that devices may be writing"),
    ("matrix/src/socket.rs", "scatter/gather system calls on memory that is shared with devices and peers"),
    ("backend/src/block/", "memory that the kernel fills while a request is in flight"),
];

/// `unsafe` in other files; and rooms that no longer have any, so that the table stays true.
pub(super) fn unsafe_rooms(tree: &Tree) -> Vec<Violation> {
    check_rooms(tree, UNSAFE_ROOMS)
}

fn check_rooms(tree: &Tree, rooms: &[(&str, &str)]) -> Vec<Violation> {
    let mut found = Vec::new();
    let mut used = vec![false; rooms.len()];
    for (place, _) in tree.code().filter(|(_, line)| words(&line.code).any(|word| word == "unsafe")) {
        match rooms.iter().position(|(path, _)| place.path.starts_with(path)) {
            Some(room) => used[room] = true,
            None => found.push(place.breaks("`unsafe` outside UNSAFE_ROOMS in xtask/src/tidy/code.rs")),
        }
    }
    for ((path, why), _) in rooms.iter().zip(used).filter(|(_, used)| !used) {
        found.push(Place { path, line: 0 }.breaks(format!("has no `unsafe` ({why}): strike it from UNSAFE_ROOMS")));
    }
    found
}

/// Where payload passes: every copy goes through `dyad_matrix::memory`, which counts it.
const IO_PATH: &[&str] = &["matrix/src/shm", "cache/src/", "frontend/src/", "backend/src/driver", "backend/src/raid"];
const COPIES: &[&str] = &[
    "copy_from_slice",
    "clone_from_slice",
    "copy_within",
    "ptr::copy",
    "copy_nonoverlapping",
    "copy_to_nonoverlapping",
    "copy_from_nonoverlapping",
];

/// What is no payload says so: `// copy: <what it is>` on that line or right above.
pub(super) fn uncounted_copies(tree: &Tree) -> Vec<Violation> {
    let mut found = Vec::new();
    for (file, source) in tree.rust().filter(|(file, _)| IO_PATH.iter().any(|path| file.path.starts_with(path))) {
        for (at, line) in source.lines.iter().enumerate().filter(|(_, line)| !line.test) {
            let excuse = |comment: &str| comment.trim().strip_prefix("copy:").is_some_and(|why| !why.trim().is_empty());
            if let Some(name) = COPIES.iter().find(|name| contains(&line.code, name))
                && !source.reasons(at).any(excuse)
            {
                found.push(Place { path: &file.path, line: at + 1 }.breaks(format!(
                    "`{name}` on the I/O path: use dyad_matrix::memory, or say `// copy: <why this is no payload>`"
                )));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The lines of the one file `path` that break `rule`.
    fn broken(rule: impl Fn(&Tree) -> Vec<Violation>, path: &str, text: &str) -> Vec<usize> {
        rule(&Tree::of(&[(path, text)])).iter().map(|violation| violation.line).collect()
    }

    #[test]
    fn unfinished_work_is_found_in_code_and_comments_only() {
        let text = "todo!()\n// TODO: x\nlet s = \"TODO dbg!\";\nmy_dbg!(x);\n/* FIXME */ f(); // XXX\ndbg!(x);\nXXXX";
        assert_eq!(broken(unfinished, "a.rs", text), [1, 2, 5, 6]);
        assert_eq!(broken(unfinished, "a.md", "TODO"), [0; 0]);
    }

    #[test]
    fn modules_begin_with_their_documentation() {
        assert_eq!(broken(module_docs, "a.rs", "//! A room.\n"), [0; 0]);
        assert_eq!(broken(module_docs, "a.rs", "\n//! A room.\n"), [1]);
        assert_eq!(broken(module_docs, "a.rs", "use b;\n"), [1]);
    }

    #[test]
    fn the_parent_is_imported_whole_by_tests_only() {
        let text = "use super::*;\n#[cfg(test)]\nmod tests {\n    use super::*;\n}\npub use super::*;\n";
        assert_eq!(broken(glob_of_the_parent, "a.rs", text), [1, 6]);
    }

    #[test]
    fn ignored_tests_are_found() {
        let text = "#[test]\n#[ignore]\nfn a() {}\n#[test]\n#[ignore = \"slow\"]\nfn b() {}\n#[test]\nfn ignore() {}\n";
        assert_eq!(broken(ignored_tests, "a.rs", text), [2, 5]);
    }

    #[test]
    fn lints_are_switched_off_with_a_reason() {
        let text = "#![allow(a)]\n#[allow(b, reason = \"c\")]\n#[expect(d)] // because\n// because\n#[allow(e)]\n\
                    /// documentation\n#[cfg_attr(f, allow(g))]\nfn h() { i.expect(\"j\") }\n#[expect(k)]\n";
        assert_eq!(broken(allow_without_reason, "a.rs", text), [1, 7, 9]);
    }

    #[test]
    fn unsafe_stays_in_its_rooms_and_rooms_without_it_are_struck() {
        let check = |tree: &Tree| check_rooms(tree, &[("room/", "why")]);
        assert_eq!(broken(check, "room/a.rs", "unsafe { a() }\n"), [0; 0]);
        assert_eq!(broken(check, "hall.rs", "// unsafe\n#![deny(unsafe_code)]\nunsafe { a() }\n"), [3, 0]);
    }

    #[test]
    fn copies_on_the_io_path_are_found_unless_excused_or_in_tests() {
        let text = "a.copy_from_slice(b);\n// copy: a capsule's header\na.copy_from_slice(b);\n\
                    a.clone_from_slice(b); // copy:\nptr::copy_nonoverlapping(a, b, c); // copy: a name\n\
                    #[test]\nfn t() { a.copy_from_slice(b) }\nunsafe { ptr::copy(a, b, c) }\n";
        assert_eq!(broken(uncounted_copies, "cache/src/slots.rs", text), [1, 4, 8]);
        assert_eq!(broken(uncounted_copies, "director/src/lib.rs", text), [0; 0]);
    }
}
