//! One run of QEMU: start it, listen to its serial line, and end it in time.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use dyad_reactor::{BootClock, Clock};

use crate::{GuestError, Kernel, Qmp, at};

/// What a guest is made of.
#[derive(Debug)]
pub struct Guest<'a> {
    /// What its lines begin with on the terminal.
    pub name: &'a str,
    /// Its kernel.
    pub kernel: &'a Kernel,
    /// Its initial RAM file system.
    pub initramfs: Vec<u8>,
    /// Its memory in MiB.
    pub memory_mib: u32,
    /// What its kernel is told besides, like `intel_iommu=on`.
    pub kernel_arguments: &'a str,
    /// What QEMU is told besides: its devices and drives.
    pub qemu_arguments: Vec<String>,
    /// The longest that it may take.
    pub limit: Duration,
}

/// How a guest ended.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub enum Ended {
    /// What ran in it ended with this status.
    Status(u8),
    /// It did not come to an end: it crashed.
    Crashed,
    /// It did not come to an end in time.
    Late,
}

/// Begins a line with which the guest asks the host for something.
pub const ASK: &str = "@@host ";
/// Begins the line with which the guest says how it ended.
pub const STATUS: &str = "@@status ";

/// Leaves QEMU with an exit status; the guest writes to this port (QEMU, hw/misc/debugexit.c).
pub const EXIT_PORT: u16 = 0x501;

impl Guest<'_> {
    /// Runs the guest to its end, with files in `directory`. `asked` does what it asks for.
    ///
    /// # Errors
    /// QEMU cannot be started, or what was asked for cannot be done.
    pub fn run(
        self,
        directory: &Path,
        mut asked: impl FnMut(&str, &mut Qmp) -> Result<(), GuestError>,
    ) -> Result<Ended, GuestError> {
        let initramfs = directory.join("initramfs.cpio");
        at(&initramfs, fs::write(&initramfs, &self.initramfs))?;
        let control = directory.join("qmp.sock");
        let mut child = self.start(&initramfs, &control)?;
        let output = child.stdout.take().expect("it was asked for");
        let start = BootClock.now();
        let (lines, inbox) = mpsc::channel();
        std::thread::spawn(move || {
            // The serial line need not be text.
            for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
                if lines.send(String::from_utf8_lossy(&line).trim_end().to_owned()).is_err() {
                    return;
                }
            }
        });
        let mut qmp = None;
        let mut ended = Ended::Crashed;
        let outcome = loop {
            let left = self.limit.saturating_sub(BootClock.now().since(start));
            let line = match inbox.recv_timeout(left) {
                Ok(line) => line,
                Err(RecvTimeoutError::Timeout) => break Ok(Ended::Late),
                Err(RecvTimeoutError::Disconnected) => break Ok(ended),
            };
            println!("[{} {:6.2}] {line}", self.name, BootClock.now().since(start).as_secs_f64());
            // The kernel may have written to the same line before.
            if let Some((_, status)) = line.split_once(STATUS) {
                ended = status.trim().parse().map_or(Ended::Crashed, Ended::Status);
            }
            if let Some((_, words)) = line.split_once(ASK) {
                let done = match &mut qmp {
                    Some(qmp) => asked(words, qmp),
                    None => Qmp::connect(&control).and_then(|connected| asked(words, qmp.insert(connected))),
                };
                if let Err(error) = done {
                    break Err(error);
                }
            }
        };
        // Ended already is ended.
        let _ = child.kill();
        let _ = child.wait();
        outcome
    }

    fn start(&self, initramfs: &Path, control: &Path) -> Result<Child, GuestError> {
        // It ends with us, however we end (setpriv(1), prctl(2)).
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "qemu-system-x86_64"]);
        command.args(["-accel", "tcg,thread=multi", "-machine", "q35", "-cpu", "max", "-smp", "2"]);
        command.args(["-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio", "-no-reboot"]);
        command.args(["-m", &self.memory_mib.to_string()]);
        command.args(["-device", &format!("isa-debug-exit,iobase={EXIT_PORT:#x},iosize=2")]);
        command.arg("-qmp").arg(format!("unix:{},server=on,wait=off", control.display()));
        command.arg("-kernel").arg(self.kernel.image()).arg("-initrd").arg(initramfs);
        let arguments = self.kernel_arguments;
        // Speculation is nothing that TCG does, and its timers are late when this machine is busy.
        let always = "console=ttyS0 quiet panic=-1 mitigations=off no_timer_check";
        command.arg("-append").arg(format!("{always} {arguments}"));
        command.args(&self.qemu_arguments);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        command.spawn().map_err(|error| GuestError::Program { program: "qemu".to_owned(), said: error.to_string() })
    }
}
