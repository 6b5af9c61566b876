//! Debian packages, fetched once and unpacked outside the tree: the guest's kernel, and programs that this machine has not
//! installed, with the libraries that they need.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{GuestError, at, need_programs, output};

/// Where fetched packages are kept: `DYAD_GUEST_CACHE`, else in the user's cache.
#[must_use]
pub fn cache() -> PathBuf {
    let variable = |name| std::env::var_os(name).map(PathBuf::from);
    let home = || variable("HOME").map(|home| home.join(".cache"));
    variable("DYAD_GUEST_CACHE").unwrap_or_else(|| {
        variable("XDG_CACHE_HOME").or_else(home).unwrap_or_else(std::env::temp_dir).join("dyad-guest")
    })
}

/// Where programs are in a package.
const PROGRAMS: [&str; 4] = ["usr/bin", "usr/sbin", "bin", "sbin"];
/// Where libraries are.
const LIBRARIES: [&str; 2] = ["usr/lib", "lib"];

/// Packages, unpacked into one directory.
#[derive(Debug, Clone)]
pub struct Packages(PathBuf);

impl Packages {
    /// These packages and what they need that is not installed, from `cache` or from Debian.
    ///
    /// # Errors
    /// [`GuestError::Missing`] if they cannot be had.
    pub fn debian(names: &[&str], cache: &Path) -> Result<Self, GuestError> {
        at(cache, fs::create_dir_all(cache))?;
        let place = cache.join(names.join("+"));
        if !place.exists() {
            need_programs(&[("apt-get", "apt"), ("dpkg-deb", "dpkg")])?;
            let wanted = match wanted(names) {
                Ok(wanted) => wanted,
                Err(_) => {
                    let _ = output(Command::new("apt-get").args(["update", "-qq"]));
                    let missing = |error| GuestError::Missing(format!("cannot fetch {}: {error}", names.join(", ")));
                    wanted(names).map_err(missing)?
                }
            };
            let wanted: Vec<&str> = wanted.iter().map(String::as_str).collect();
            fetch(&wanted, cache, &place)?;
        }
        Ok(Self(place))
    }

    /// Where a program of theirs is.
    #[must_use]
    pub fn program(&self, name: &str) -> Option<PathBuf> {
        PROGRAMS.map(|directory| self.0.join(directory).join(name)).into_iter().find(|file| file.is_file())
    }

    /// The directory that stands for `/`.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.0
    }

    /// Directories with libraries.
    ///
    /// # Errors
    /// What cannot be read.
    pub fn libraries(&self) -> Result<BTreeSet<PathBuf>, GuestError> {
        let mut found = BTreeSet::new();
        for directory in LIBRARIES.map(|directory| self.0.join(directory)) {
            if directory.is_dir() {
                with_libraries(&directory, &mut found)?;
            }
        }
        Ok(found)
    }
}

fn with_libraries(directory: &Path, found: &mut BTreeSet<PathBuf>) -> Result<(), GuestError> {
    for entry in at(directory, fs::read_dir(directory))? {
        let entry = at(directory, entry)?;
        if at(&entry.path(), entry.file_type())?.is_dir() {
            with_libraries(&entry.path(), found)?;
        } else if entry.file_name().to_string_lossy().contains(".so") {
            found.insert(directory.to_owned());
        }
    }
    Ok(())
}

/// The packages, of these and what they need, that are not installed here: apt says where it would get them from (apt-get(8),
/// `--print-uris`): the URI, the file, its size, its hash.
fn wanted(names: &[&str]) -> Result<Vec<String>, GuestError> {
    let options = ["-qq", "install", "--print-uris", "--no-install-recommends", "--yes"];
    let listed = output(Command::new("apt-get").args(options).args(names))?;
    let listed = String::from_utf8_lossy(&listed);
    let files = listed.lines().filter(|line| line.starts_with('\'')).filter_map(|line| line.split_whitespace().nth(1));
    Ok(files.filter_map(package_of).collect())
}

/// `nvme-cli` of `nvme-cli_2.3-3_amd64.deb`.
fn package_of(file: &str) -> Option<String> {
    let (name, _) = file.strip_suffix(".deb")?.split_once('_')?;
    Some(name.to_owned())
}

/// Fetches packages and unpacks them into one new directory.
pub(crate) fn fetch(packages: &[&str], cache: &Path, place: &Path) -> Result<(), GuestError> {
    let names = packages.join(" ");
    println!("guest: fetching {names}");
    let at_work = tempfile::tempdir_in(cache).map_err(|source| GuestError::Io { path: cache.to_owned(), source })?;
    let missing = |error| GuestError::Missing(format!("cannot fetch {names}: {error}"));
    if !packages.is_empty() {
        let mut download = Command::new("apt-get");
        output(download.args(["download", "-qq"]).args(packages).current_dir(at_work.path())).map_err(missing)?;
    }
    let directory = at_work.path().join("unpacked");
    at(&directory, fs::create_dir(&directory))?;
    let mut unpacked = 0;
    for entry in at(at_work.path(), fs::read_dir(at_work.path()))? {
        let file = at(at_work.path(), entry)?.path();
        if file.extension().is_some_and(|extension| extension == "deb") {
            output(Command::new("dpkg-deb").arg("-x").arg(&file).arg(&directory))?;
            unpacked += 1;
        }
    }
    if unpacked != packages.len() {
        return Err(GuestError::Missing(format!("apt-get brought {unpacked} packages instead of {names}")));
    }
    // Whole, or not there; somebody else may have been faster.
    if let Err(error) = fs::rename(&directory, place)
        && !place.exists()
    {
        return Err(GuestError::Io { path: place.to_owned(), source: error });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_named_after_their_packages() {
        assert_eq!(package_of("nvme-cli_2.4+really2.3-3_amd64.deb").as_deref(), Some("nvme-cli"));
        assert_eq!(
            package_of("libboost-thread1.74.0_1.74.0+ds1-21_amd64.deb").as_deref(),
            Some("libboost-thread1.74.0")
        );
        assert_eq!(package_of("README"), None);
    }

    #[test]
    fn programs_and_libraries_are_where_packages_put_them() {
        let directory = tempfile::tempdir().unwrap();
        let file = |path: &str| {
            let path = directory.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        };
        file("usr/sbin/nvme");
        file("usr/lib/x86_64-linux-gnu/libnvme.so.1");
        file("usr/lib/x86_64-linux-gnu/ceph/libceph-common.so.2");
        file("usr/lib/udev/rules.d/70-nvmf.rules");
        let packages = Packages(directory.path().to_owned());
        assert_eq!(packages.program("nvme"), Some(directory.path().join("usr/sbin/nvme")));
        assert_eq!(packages.program("fio"), None);
        let libraries: Vec<_> = packages.libraries().unwrap().into_iter().collect();
        let expected = ["usr/lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu/ceph"];
        assert_eq!(libraries, expected.map(|path| directory.path().join(path)));
    }
}
