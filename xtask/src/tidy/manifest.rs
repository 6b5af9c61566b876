//! Rules for the packages: imports go down the floors only (DESIGN 2), and what the workspace decides once, versions and
//! lints above all, no package decides again.
//!
//! Manifests are read line by line, in the plain form that the rules demand: a section in brackets, then `key = value`.
//! A dependency in any other form than the workspace's is refused, so none escapes by being written differently.

use super::tree::{File, Tree};
use super::{Place, Violation};

/// Every package, from the ground up: it may import only those before it. DESIGN 2 gives the floors; on one floor,
/// wire types stand below what speaks them, and a host below the target that it talks to.
const FLOORS: &[&str] = &[
    "dyad-reactor",
    "dyad-matrix",
    "dyad-nvme",
    "dyad-backend",
    "dyad-cache",
    "dyad-host",
    "dyad-storage",
    "dyad-frontend",
    "dyad-director",
    "dyad-sim",
    "dyad-guest",
    "dyad",
    "xtask",
];

/// Packages that are used without the array, and all that they may import of it.
const ALONE: &[(&str, &[&str])] = &[
    ("xtask", &[]),
    ("dyad-nvme", &[]),
    ("dyad-host", &["dyad-reactor", "dyad-matrix", "dyad-nvme"]),
    ("dyad-storage", &["dyad-reactor", "dyad-matrix", "dyad-nvme", "dyad-host"]),
];

struct Entry<'a> {
    line: usize,
    section: &'a str,
    key: &'a str,
    value: &'a str,
}

/// The `key = value` lines of a manifest. Of a list over several lines, only the first is an entry.
fn entries(text: &str) -> impl Iterator<Item = Entry<'_>> {
    let mut section = "";
    text.lines().zip(1..).filter_map(move |(text, line)| {
        let text = text.trim_start();
        if text.starts_with('[') {
            section = text.trim_start_matches('[').split(']').next().unwrap_or("");
        }
        if text.starts_with(['[', '#']) {
            return None;
        }
        let (key, value) = text.split_once('=')?;
        Some(Entry { line, section, key: key.trim(), value: value.trim() })
    })
}

fn is_dependencies(section: &str) -> bool {
    let last = section.rsplit('.').next().unwrap_or(section);
    section != "workspace.dependencies" && last.ends_with("dependencies")
}

fn package_name(text: &str) -> Option<&str> {
    entries(text).find(|e| e.section == "package" && e.key == "name").map(|e| e.value.trim_matches('"'))
}

/// The workspace's packages, by name. A package below that is a workspace of its own (fuzz targets are, as cargo-fuzz
/// wants it) inherits nothing, and nothing here is built from it.
fn packages(tree: &Tree) -> impl Iterator<Item = (&str, &File)> {
    let of_its_own = |file: &File| file.text.lines().any(|line| line.trim() == "[workspace]");
    let ours = tree.manifests().filter(move |(directory, file)| directory.is_empty() || !of_its_own(file));
    ours.filter_map(|(_, file)| Some((package_name(&file.text)?, file)))
}

/// `name.workspace = true` and `name = { workspace = true, .. }` are dependencies named `name`.
fn dependency_name(key: &str) -> &str {
    key.split('.').next().unwrap_or(key)
}

pub(super) fn floors(tree: &Tree) -> Vec<Violation> {
    let mut found = Vec::new();
    for (package, file) in packages(tree) {
        let Some(floor) = FLOORS.iter().position(|name| *name == package) else {
            let place = Place { path: &file.path, line: 1 };
            found.push(place.breaks(format!("`{package}` has no floor in FLOORS in xtask/src/tidy/manifest.rs")));
            continue;
        };
        let alone = ALONE.iter().find(|(name, _)| *name == package).map(|(_, imports)| *imports);
        let may_import = |name: &str| FLOORS[..floor].contains(&name) && alone.is_none_or(|a| a.contains(&name));
        for entry in entries(&file.text).filter(|entry| is_dependencies(entry.section)) {
            let name = dependency_name(entry.key);
            if (FLOORS.contains(&name) || name.starts_with("dyad")) && !may_import(name) {
                let place = Place { path: &file.path, line: entry.line };
                found.push(place.breaks(format!("`{package}` imports `{name}`: imports go down the floors only")));
            }
        }
    }
    found
}

/// What every package says so that the workspace decides: (section, key).
const INHERITED: &[(&str, &str)] = &[
    ("package", "version.workspace"),
    ("package", "edition.workspace"),
    ("package", "license.workspace"),
    ("lints", "workspace"),
];

pub(super) fn inheritance(tree: &Tree) -> Vec<Violation> {
    let mut found = Vec::new();
    for (_, file) in packages(tree) {
        let place = |line| Place { path: &file.path, line };
        for (section, key) in INHERITED {
            let says = |e: Entry<'_>| (e.section, e.key, e.value) == (section, key, "true");
            if !entries(&file.text).any(says) {
                found.push(place(1).breaks(format!("`[{section}]` without `{key} = true`")));
            }
        }
        let own = |entry: &Entry<'_>| {
            let short = entry.key.ends_with(".workspace") && entry.value == "true";
            let long = entry.value.starts_with("{ workspace = true");
            is_dependencies(entry.section) && !short && !long
        };
        for entry in entries(&file.text).filter(own) {
            let what = format!("`{}` is not `{{ workspace = true }}`: versions live in the root manifest", entry.key);
            found.push(place(entry.line).breaks(what));
        }
        for (text, line) in file.text.lines().zip(1..) {
            // `[dependencies.name]` would hide the name in a section.
            if text.starts_with('[') && !text.starts_with("[workspace.") && text.contains("dependencies.") {
                found.push(place(line).breaks("one line per dependency, please"));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "[package]\nname = \"dyad-cache\"\nversion.workspace = true\nedition.workspace = true\n\
        license.workspace = true\n\n[dependencies]\ndyad-reactor.workspace = true\n\
        libc = { workspace = true, features = [\"x\"] }\n\n[lints]\nworkspace = true\n";

    fn broken(rule: fn(&Tree) -> Vec<Violation>, text: &str) -> Vec<usize> {
        rule(&Tree::of(&[("cache/Cargo.toml", text)])).iter().map(|violation| violation.line).collect()
    }

    #[test]
    fn a_good_manifest_holds() {
        assert_eq!(broken(floors, GOOD), [0; 0]);
        assert_eq!(broken(inheritance, GOOD), [0; 0]);
    }

    #[test]
    fn imports_up_the_floors_are_found_in_every_kind_of_dependency() {
        let up = |section: &str, line: &str| format!("[package]\nname = \"dyad-cache\"\n[{section}]\n{line}\n");
        assert_eq!(broken(floors, &up("dependencies", "dyad-director.workspace = true")), [4]);
        assert_eq!(broken(floors, &up("dev-dependencies", "dyad-sim = { workspace = true }")), [4]);
        assert_eq!(broken(floors, &up("target.'cfg(unix)'.dependencies", "xtask.workspace = true")), [4]);
        assert_eq!(broken(floors, &up("dependencies", "dyad-cache.workspace = true")), [4]);
        assert_eq!(broken(floors, &up("dependencies", "dyad-unknown.workspace = true")), [4]);
    }

    #[test]
    fn packages_that_stand_alone_import_only_their_list() {
        let host = |name: &str| format!("[package]\nname = \"dyad-host\"\n[dependencies]\n{name}.workspace = true\n");
        assert_eq!(broken(floors, &host("dyad-nvme")), [0; 0]);
        assert_eq!(broken(floors, &host("dyad-backend")), [4]);
    }

    #[test]
    fn a_package_without_a_floor_is_found() {
        assert_eq!(broken(floors, "[package]\nname = \"dyad-engine\"\n"), [1]);
    }

    #[test]
    fn a_workspace_of_its_own_inherits_nothing() {
        let fuzz = "[package]\nname = \"fuzz\"\n[dependencies]\nlibfuzzer-sys = \"0.4\"\n[workspace]\n";
        assert_eq!(broken(floors, fuzz), [0; 0]);
        assert_eq!(broken(inheritance, fuzz), [0; 0]);
        let root = Tree::of(&[("Cargo.toml", fuzz)]);
        assert_eq!(floors(&root).len(), 1, "the root's is the workspace");
    }

    #[test]
    fn what_is_not_inherited_is_found() {
        for line in ["version.workspace", "edition.workspace", "license.workspace", "\nworkspace"] {
            assert_eq!(broken(inheritance, &GOOD.replace(&format!("{line} = true"), "")), [1], "{line}");
        }
        assert_eq!(broken(inheritance, &GOOD.replace("dyad-reactor.workspace = true", "libc = \"0.2\"")), [8]);
        assert_eq!(broken(inheritance, &GOOD.replace("[dependencies]", "[dependencies.libc]\nversion = \"1\"")), [7]);
    }
}
