//! Programs that some steps use and a machine may lack: installed where that can be done (as root, by apt), otherwise missed, loudly.

use std::os::unix::fs::MetadataExt;
use std::process::{Command, Stdio};

/// A program, and the Debian package that it comes in.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub(crate) struct Tool {
    pub(crate) program: &'static str,
    package: &'static str,
}

/// Counts instructions.
pub(crate) const VALGRIND: Tool = Tool { program: "valgrind", package: "valgrind" };

/// Has an NVMe controller that we did not write.
pub(crate) const QEMU: Tool = Tool { program: "qemu-system-x86_64", package: "qemu-system-x86" };

/// Keeps the registry of an array on several hosts.
pub(crate) const ETCD: Tool = Tool { program: "etcd", package: "etcd-server" };

impl Tool {
    /// It is there, or is now.
    pub(crate) fn available(self) -> bool {
        self.found() || self.install() && self.found()
    }

    /// What a person would type.
    pub(crate) fn advice(self) -> String {
        format!("apt-get install {}", self.package)
    }

    fn found(self) -> bool {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path).any(|directory| directory.join(self.program).is_file())
    }

    fn install(self) -> bool {
        // The owner of this process.
        if !std::fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0) {
            return false;
        }
        println!("{} is missing: {}", self.program, self.advice());
        let apt = |arguments: &[&str]| {
            let mut apt = Command::new("apt-get");
            apt.args(["--quiet", "--yes", "--no-install-recommends"]).args(arguments);
            apt.env("DEBIAN_FRONTEND", "noninteractive").stdin(Stdio::null()).stdout(Stdio::null());
            apt.status().is_ok_and(|status| status.success())
        };
        // The lists may be missing, or too old to be of use.
        apt(&["install", self.package]) || apt(&["update"]) && apt(&["install", self.package])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_looked_for_where_the_shell_would() {
        assert!(Tool { program: "sh", package: "dash" }.found());
        assert!(!Tool { program: "no-such-program", package: "none" }.found());
    }
}
