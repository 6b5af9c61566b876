//! The guest's kernel: the newest package of one series that Debian offers, fetched once and kept outside the tree.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::{GuestError, at, need_programs, output, packages};

/// A kernel, unpacked.
#[derive(Debug, Clone)]
pub struct Kernel {
    package: String,
    image: PathBuf,
    modules: PathBuf,
}

impl Kernel {
    /// The newest kernel of `series`, like `6.1.0` for `linux-image-6.1.0-<n>-amd64`, from `cache` or from Debian.
    ///
    /// # Errors
    /// [`GuestError::Missing`] if neither has one.
    pub fn debian(series: &str, cache: &Path) -> Result<Self, GuestError> {
        at(cache, fs::create_dir_all(cache))?;
        let kept = newest(series, names(cache));
        let package = match kept {
            Some(package) => package,
            None => fetch(series, cache)?,
        };
        let directory = cache.join(&package);
        let release = package.trim_start_matches("linux-image-").to_owned();
        let modules = directory.join("lib/modules").join(&release);
        let packed = directory.join("boot").join(format!("vmlinuz-{release}"));
        let image = unpacked(&packed, &directory.join("vmlinux"))?;
        Ok(Self { package, image, modules })
    }

    /// The package it came in.
    #[must_use]
    pub fn package(&self) -> &str {
        &self.package
    }

    /// What QEMU starts.
    #[must_use]
    pub fn image(&self) -> &Path {
        &self.image
    }

    /// The directory of its modules, with `modules.builtin`.
    #[must_use]
    pub fn modules(&self) -> &Path {
        &self.modules
    }
}

fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten();
    entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect()
}

/// The highest number among `linux-image-<series>-<number>-amd64`.
fn newest(series: &str, names: Vec<String>) -> Option<String> {
    let number = |name: &str| -> Option<u32> {
        name.strip_prefix("linux-image-")?.strip_prefix(series)?.strip_prefix('-')?.strip_suffix("-amd64")?.parse().ok()
    };
    names.into_iter().filter(|name| number(name).is_some()).max_by_key(|name| number(name))
}

fn fetch(series: &str, cache: &Path) -> Result<String, GuestError> {
    need_programs(&[("apt-get", "apt"), ("apt-cache", "apt"), ("dpkg-deb", "dpkg")])?;
    let offered = || {
        let listed = output(Command::new("apt-cache").args(["pkgnames", &format!("linux-image-{series}-")]))?;
        Ok::<_, GuestError>(String::from_utf8_lossy(&listed).lines().map(str::to_owned).collect())
    };
    let package = match newest(series, offered()?) {
        Some(package) => package,
        None => {
            let _ = output(Command::new("apt-get").args(["update", "-qq"]));
            let none = || GuestError::Missing(format!("apt-cache offers no kernel {series}"));
            newest(series, offered()?).ok_or_else(none)?
        }
    };
    packages::fetch(&[&package], cache, &cache.join(&package))?;
    Ok(package)
}

/// The ELF kernel inside a bzImage, or the bzImage itself where it cannot be unpacked. QEMU starts an ELF kernel by its
/// PVH entry, which spares the guest ten seconds of decompression under TCG.
///
/// Linux, Documentation/arch/x86/boot.rst: byte 1F1h is the number of setup sectors but one (0 means 4); 248h and 24Ch are
/// offset and length of the payload behind them; its last four bytes are the unpacked length.
fn unpacked(packed: &Path, place: &Path) -> Result<PathBuf, GuestError> {
    if place.exists() {
        return Ok(place.to_owned());
    }
    let image = at(packed, fs::read(packed))?;
    let Some(elf) = payload(&image).and_then(decompress).filter(|bytes| bytes.starts_with(b"\x7fELF")) else {
        return Ok(packed.to_owned());
    };
    let directory = place.parent().unwrap_or(Path::new("."));
    let mut file = at(directory, tempfile::NamedTempFile::new_in(directory))?;
    at(place, file.write_all(&elf))?;
    file.persist(place).map_err(|error| GuestError::Io { path: place.to_owned(), source: error.error })?;
    Ok(place.to_owned())
}

fn payload(image: &[u8]) -> Option<&[u8]> {
    let number = |at: usize| image.get(at..at + 4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]));
    let sectors = match *image.get(0x1f1)? {
        0 => 4,
        sectors => usize::from(sectors),
    };
    let offset = usize::try_from(number(0x248)?).ok()?;
    let length = usize::try_from(number(0x24c)?).ok()?;
    let start = (sectors + 1) * 512 + offset;
    image.get(start..start + length.checked_sub(4)?)
}

fn decompress(payload: &[u8]) -> Option<Vec<u8>> {
    let program = match payload {
        [0xfd, b'7', b'z', b'X', b'Z', ..] => "xz",
        [0x1f, 0x8b, ..] => "gzip",
        [0x28, 0xb5, 0x2f, 0xfd, ..] => "zstd",
        _ => return None,
    };
    let mut child = Command::new(program)
        .arg("-dc")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    let mut input = child.stdin.take()?;
    let output = std::thread::scope(|scope| {
        scope.spawn(move || input.write_all(payload));
        child.wait_with_output()
    });
    output.ok().filter(|output| output.status.success()).map(|output| output.stdout)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_is_the_highest_number_of_the_plain_flavour() {
        let offered = ["47-amd64", "9-amd64", "56-amd64", "57-cloud-amd64", "58-amd64-dbg", "60-rt-amd64", "amd64"];
        let offered = offered.iter().map(|rest| format!("linux-image-6.1.0-{rest}")).collect();
        assert_eq!(newest("6.1.0", offered), Some("linux-image-6.1.0-56-amd64".to_owned()));
        assert_eq!(newest("6.1.0", vec!["linux-image-6.12.0-1-amd64".to_owned()]), None);
    }

    #[test]
    fn a_payload_is_where_the_header_says() {
        let mut image = vec![0; 4096];
        image[0x1f1] = 1;
        image[0x248..0x24c].copy_from_slice(&16_u32.to_le_bytes());
        image[0x24c..0x250].copy_from_slice(&8_u32.to_le_bytes());
        image[1040..1048].copy_from_slice(b"payload!");
        assert_eq!(payload(&image), Some(&b"payl"[..]));
        image[0x24c..0x250].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(payload(&image), None);
        assert_eq!(payload(&[0; 16]), None);
    }
}
