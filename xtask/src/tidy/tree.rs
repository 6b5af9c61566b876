//! The files of the repository as the rules see them: paths relative to the root, with `/`, and their text.

use super::Place;
use super::source::{Line, Source};
use std::path::Path;
use std::{fs, io};

/// Whose text is read; of all other files only the path counts.
const READ: &[&str] = &[".rs", ".toml", ".md", ".sh", ".py", ".ci/run"];

pub(super) struct File {
    pub(super) path: String,
    pub(super) text: String,
    /// Of Rust files.
    pub(super) source: Option<Source>,
}

pub(super) struct Tree {
    pub(super) files: Vec<File>,
}

impl Tree {
    pub(super) fn read(root: &Path) -> io::Result<Self> {
        let mut found = Vec::new();
        walk(root, "", &mut found)?;
        Ok(Self::new(found))
    }

    fn new(mut found: Vec<(String, String)>) -> Self {
        found.sort();
        let files = found
            .into_iter()
            .map(|(path, text)| {
                let source = path.ends_with(".rs").then(|| Source::parse(&text));
                File { path, text, source }
            })
            .collect();
        let mut tree = Self { files };
        tree.mark_test_files();
        tree
    }

    /// Of samples, for the rules' tests: (path, text).
    #[cfg(test)]
    pub(super) fn of(files: &[(&str, &str)]) -> Self {
        Self::new(files.iter().map(|(path, text)| ((*path).into(), (*text).into())).collect())
    }

    pub(super) fn rust(&self) -> impl Iterator<Item = (&File, &Source)> {
        self.files.iter().filter_map(|file| file.source.as_ref().map(|source| (file, source)))
    }

    /// Every line as written.
    pub(super) fn lines(&self) -> impl Iterator<Item = (Place<'_>, &str)> {
        self.files.iter().flat_map(|file| places(file).zip(file.text.lines()))
    }

    /// Every line of Rust, taken apart.
    pub(super) fn code(&self) -> impl Iterator<Item = (Place<'_>, &Line)> {
        self.rust().flat_map(|(file, source)| places(file).zip(&source.lines))
    }

    /// Every package's manifest, with the directory it stands in: empty, or ending in `/`.
    pub(super) fn manifests(&self) -> impl Iterator<Item = (&str, &File)> {
        let directories = self.files.iter().filter_map(|file| Some((file.path.strip_suffix("Cargo.toml")?, file)));
        directories.filter(|(directory, _)| directory.is_empty() || directory.ends_with('/'))
    }

    /// The directory of the package that owns `path`.
    pub(super) fn package_of(&self, path: &str) -> &str {
        self.manifests().map(|(d, _)| d).filter(|d| path.starts_with(d)).max_by_key(|d| d.len()).unwrap_or("")
    }

    /// Integration tests, benches and modules declared under `#[cfg(test)]` in another file are test code as a whole.
    fn mark_test_files(&mut self) {
        let declared: Vec<String> = self.rust().flat_map(|(file, source)| test_modules(&file.path, source)).collect();
        let is_test = |tree: &Self, path: &str| {
            let inside = &path[tree.package_of(path).len()..];
            inside.starts_with("tests/")
                || inside.starts_with("benches/")
                || declared
                    .iter()
                    .any(|m| path.strip_prefix(m.as_str()).is_some_and(|r| r == ".rs" || r.starts_with('/')))
        };
        let tests: Vec<bool> = self.files.iter().map(|file| is_test(self, &file.path)).collect();
        for (file, test) in self.files.iter_mut().zip(tests) {
            if let (Some(source), true) = (&mut file.source, test) {
                source.lines.iter_mut().for_each(|line| line.test = true);
            }
        }
    }
}

fn places(file: &File) -> impl Iterator<Item = Place<'_>> {
    (1..).map(|line| Place { path: &file.path, line })
}

/// The test modules that `path` declares but keeps in files of their own, as paths without `.rs`.
fn test_modules(path: &str, source: &Source) -> Vec<String> {
    let (directory, name) = path.rsplit_once('/').unwrap_or(("", path));
    let stem = name.trim_end_matches(".rs");
    let home = if ["lib", "main", "mod"].contains(&stem) { directory.into() } else { format!("{directory}/{stem}") };
    let name = |line: &Line| {
        let module = line.code.trim().strip_suffix(';')?.rsplit_once("mod ")?.1;
        line.test.then(|| format!("{home}/{module}"))
    };
    source.lines.iter().filter_map(name).collect()
}

fn walk(directory: &Path, prefix: &str, found: &mut Vec<(String, String)>) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        let path = format!("{prefix}{name}");
        let kind = entry.file_type()?;
        if kind.is_dir() {
            let ours = name != "target" && (!name.starts_with('.') || name == ".ci" || name == ".cargo");
            if ours {
                walk(&entry.path(), &format!("{path}/"), found)?;
            }
        } else if kind.is_file() {
            let text = if READ.iter().any(|end| path.ends_with(end)) {
                fs::read_to_string(entry.path())?
            } else {
                String::new()
            };
            found.push((path, text));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_test(tree: &Tree, path: &str) -> bool {
        tree.rust().any(|(file, source)| file.path == path && source.lines.iter().all(|line| line.test))
    }

    #[test]
    fn test_files_are_known_by_place_or_declaration() {
        let tree = Tree::of(&[
            ("Cargo.toml", ""),
            ("tests/array.rs", "fn main() {}\n"),
            ("tests/sim/Cargo.toml", ""),
            ("tests/sim/src/lib.rs", "#[cfg(test)]\nmod checks;\nmod world;\n"),
            ("tests/sim/src/checks.rs", "fn check() {}\n"),
            ("tests/sim/src/checks/deep.rs", "fn check() {}\n"),
            ("tests/sim/src/world.rs", "fn world() {}\n"),
        ]);
        assert!(is_test(&tree, "tests/array.rs"));
        assert!(is_test(&tree, "tests/sim/src/checks.rs"));
        assert!(is_test(&tree, "tests/sim/src/checks/deep.rs"));
        assert!(!is_test(&tree, "tests/sim/src/world.rs"), "a library package under tests/ is not test code");
    }

    #[test]
    fn the_deepest_manifest_owns_a_file() {
        let tree = Tree::of(&[("Cargo.toml", ""), ("backend/Cargo.toml", ""), ("backend/nvme/Cargo.toml", "")]);
        assert_eq!(tree.package_of("backend/nvme/src/lib.rs"), "backend/nvme/");
        assert_eq!(tree.package_of("backend/src/lib.rs"), "backend/");
        assert_eq!(tree.package_of("src/main.rs"), "");
    }
}
