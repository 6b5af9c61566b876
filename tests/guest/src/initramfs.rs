//! The guest's initial RAM file system: a cpio archive (Linux, Documentation/driver-api/early-userspace/buffer-format.rst).

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{GuestError, Kernel, Packages, at, output};

/// What a guest carries.
#[derive(Debug, Clone, Default)]
pub struct Contents {
    /// Kernel modules by name, loaded in this order before anything runs; what they depend on comes with them.
    pub modules: Vec<String>,
    /// Programs and where they are in the guest; their libraries come with them.
    pub programs: Vec<(PathBuf, String)>,
    /// Packages that some of the programs, and libraries of theirs, are from.
    pub packages: Option<Packages>,
    /// Other files and where they are in the guest.
    pub files: Vec<(PathBuf, String)>,
}

impl Contents {
    /// The archive for a guest with this kernel. Its `/init` is the running program.
    ///
    /// # Errors
    /// What cannot be read, or is not there.
    pub fn archive(&self, kernel: &Kernel) -> Result<Vec<u8>, GuestError> {
        let mut archive = Archive::default();
        // Standard input and output of `/init`.
        archive.entry("dev/console", 0o020_600, &[], (5, 1));
        for directory in ["proc", "sys", "dev", "tmp", "run"] {
            archive.directory(directory);
        }
        let own = std::env::current_exe();
        let own = at(Path::new("/proc/self/exe"), own)?;
        let programs = self.programs.iter().map(|(from, to)| (from.as_path(), to.as_str()));
        let mut libraries = BTreeSet::new();
        for (from, to) in programs.chain([(own.as_path(), "init")]) {
            archive.file(to, 0o755, &at(from, fs::read(from))?);
            libraries.extend(libraries_of(from, self.packages.as_ref())?);
        }
        for library in libraries {
            // A package's library is where the package puts it.
            let root = self.packages.as_ref().map_or(Path::new("/"), Packages::root);
            let place = library.strip_prefix(root).unwrap_or(&library);
            archive.file(&place.to_string_lossy(), 0o755, &at(&library, fs::read(&library))?);
        }
        for (from, to) in &self.files {
            archive.file(to, 0o644, &at(from, fs::read(from))?);
        }
        for (index, (name, bytes)) in with_dependencies(kernel.modules(), &self.modules)?.into_iter().enumerate() {
            archive.file(&format!("modules/{index:03}-{name}.ko"), 0o644, &bytes);
        }
        Ok(archive.finish())
    }
}

/// What the loader says a program needs; nothing if it is static.
fn libraries_of(program: &Path, packages: Option<&Packages>) -> Result<Vec<PathBuf>, GuestError> {
    let mut ldd = Command::new("ldd");
    if let Some(packages) = packages {
        let path = std::env::join_paths(packages.libraries()?);
        ldd.env("LD_LIBRARY_PATH", path.map_err(|error| GuestError::Missing(error.to_string()))?);
    }
    match output(ldd.arg(program)) {
        Ok(text) => Ok(libraries(&String::from_utf8_lossy(&text))),
        Err(GuestError::Program { said, .. }) if said.contains("not a dynamic executable") => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// Of each line `name => /path (address)` or `/path (address)` the path (ldd(1)).
fn libraries(text: &str) -> Vec<PathBuf> {
    let paths = text.lines().filter_map(|line| {
        let (before, _) = line.rsplit_once(" (0x")?;
        let path = before.rsplit_once("=> ").map_or(before, |(_, path)| path).trim();
        path.starts_with('/').then(|| PathBuf::from(path))
    });
    paths.collect()
}

/// The files of these modules, each behind what it depends on.
fn with_dependencies(directory: &Path, modules: &[String]) -> Result<Vec<(String, Vec<u8>)>, GuestError> {
    let list = directory.join("modules.builtin");
    let builtin: BTreeSet<String> = at(&list, fs::read_to_string(&list))?.lines().filter_map(module_name).collect();
    let mut files = BTreeMap::new();
    find_modules(directory, &mut files)?;
    let (mut ordered, mut seen) = (Vec::new(), BTreeSet::new());
    // What is to be loaded, the next one last; `true`: everything that it depends on is.
    let mut stack: Vec<(String, bool)> = modules.iter().rev().map(|name| (name.replace('-', "_"), false)).collect();
    while let Some((name, ready)) = stack.pop() {
        let file = match files.get(&name) {
            Some(file) => file,
            None if builtin.contains(&name) => continue,
            None => return Err(GuestError::NoModule(name)),
        };
        if !ready && !seen.insert(name.clone()) {
            continue;
        }
        let bytes = at(file, fs::read(file))?;
        if ready {
            ordered.push((name, bytes));
        } else {
            let needs = dependencies(&bytes);
            stack.push((name, true));
            stack.extend(needs.into_iter().map(|name| (name, false)));
        }
    }
    Ok(ordered)
}

fn find_modules(directory: &Path, files: &mut BTreeMap<String, PathBuf>) -> Result<(), GuestError> {
    for entry in at(directory, fs::read_dir(directory))? {
        let entry = at(directory, entry)?;
        let path = entry.path();
        if at(&path, entry.file_type())?.is_dir() {
            find_modules(&path, files)?;
        } else if let Some(name) = path.to_str().and_then(module_name) {
            files.insert(name, path);
        }
    }
    Ok(())
}

/// `nvme_core` of `kernel/drivers/nvme/host/nvme-core.ko`.
fn module_name(path: &str) -> Option<String> {
    Some(path.rsplit('/').next()?.strip_suffix(".ko")?.replace('-', "_"))
}

/// `depends=a,b` among the strings of section `.modinfo`, each of which ends in a zero.
fn dependencies(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let start = module.windows(KEY.len()).position(|window| window == KEY).map(|at| at + KEY.len());
    let value = start.and_then(|start| module[start..].split(|byte| *byte == 0).next()).unwrap_or(&[]);
    let names = value.split(|byte| *byte == b',').filter(|name| !name.is_empty());
    names.map(|name| String::from_utf8_lossy(name).replace('-', "_")).collect()
}

/// A cpio archive in format `newc`.
#[derive(Debug, Default)]
struct Archive {
    bytes: Vec<u8>,
    entries: u32,
    directories: BTreeSet<String>,
}

impl Archive {
    fn directory(&mut self, name: &str) {
        if name.is_empty() || !self.directories.insert(name.to_owned()) {
            return;
        }
        if let Some((parent, _)) = name.rsplit_once('/') {
            self.directory(parent);
        }
        self.entry(name, 0o040_755, &[], (0, 0));
    }

    fn file(&mut self, name: &str, mode: u32, data: &[u8]) {
        self.entry(name, 0o100_000 | mode, data, (0, 0));
    }

    /// Thirteen numbers of eight hexadecimal digits behind the magic: inode, mode, user, group, links, time, length, device
    /// (2), device of a special file (2), length of the name with its zero, checksum (not used). Name and data end at
    /// multiples of four.
    fn entry(&mut self, name: &str, mode: u32, data: &[u8], device: (u32, u32)) {
        let name = name.trim_start_matches('/');
        if let Some((parent, _)) = name.rsplit_once('/') {
            self.directory(parent);
        }
        self.entries += 1;
        let length = |bytes: &[u8]| u32::try_from(bytes.len()).expect("files of a guest are small");
        let (major, minor) = device;
        let fields = [self.entries, mode, 0, 0, 1, 0, length(data), 0, 0, major, minor, length(name.as_bytes()) + 1, 0];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(data);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[], (0, 0));
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_come_before_what_is_in_them_once() {
        let mut archive = Archive::default();
        archive.file("/a/b/c", 0o644, b"hello");
        archive.file("a/d", 0o755, b"");
        let text = String::from_utf8(archive.finish()).unwrap();
        let names: Vec<_> = text.split("070701").skip(1).map(|e| e[104..].split('\0').next().unwrap()).collect();
        assert_eq!(names, ["a", "a/b", "a/b/c", "a/d", "TRAILER!!!"]);
        assert!(text.contains(&["hello", "070701"].join("\0\0\0")), "data ends at a multiple of four");
        assert_eq!(text.len() % 4, 0);
    }

    #[test]
    fn libraries_are_read_from_what_the_loader_says() {
        let text =
            "\tlinux-vdso.so.1 (0x00007ffc)\n\tlibc.so.6 => /lib/libc.so.6 (0x00007f)\n\t/lib64/ld.so.2 (0x00007f)\n";
        assert_eq!(libraries(text), [PathBuf::from("/lib/libc.so.6"), PathBuf::from("/lib64/ld.so.2")]);
        assert!(libraries("\tstatically linked\n").is_empty());
    }

    #[test]
    fn modules_come_behind_what_they_depend_on() {
        let directory = tempfile::tempdir().unwrap();
        let module = |name: &str, depends: &str| {
            fs::write(directory.path().join(name), format!("ELF\0license=GPL\0depends={depends}\0name=x\0")).unwrap();
        };
        module("vfio-pci.ko", "vfio-pci-core,vfio");
        module("vfio-pci-core.ko", "vfio,irqbypass");
        module("vfio.ko", "");
        module("irqbypass.ko", "");
        fs::write(directory.path().join("modules.builtin"), "kernel/drivers/iommu/iova.ko\n").unwrap();
        let load = |names: &[&str]| {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            let found = with_dependencies(directory.path(), &names);
            found.map(|found| found.into_iter().map(|(name, _)| name).collect::<Vec<_>>())
        };
        let order = load(&["iova", "vfio-pci", "vfio"]).unwrap();
        let place = |name: &str| order.iter().position(|n| n == name).unwrap();
        assert_eq!(order.len(), 4);
        assert!(place("vfio") < place("vfio_pci_core") && place("vfio_pci_core") < place("vfio_pci"));
        assert!(place("irqbypass") < place("vfio_pci_core"));
        assert!(matches!(load(&["nothing"]), Err(GuestError::NoModule(name)) if name == "nothing"));
    }
}
