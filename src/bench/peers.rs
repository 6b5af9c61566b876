//! What others do on this machine, beside our own figures: nbdkit's memory plugin through fio, where both are installed.

use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use dyad_reactor::figures::{Figures, ROUNDS};
use dyad_reactor::{BootClock, Clock};
use serde_json::Value;
use std::time::Duration;

/// How long a server may take until it listens.
const PATIENCE: Duration = Duration::from_secs(20);
/// Bytes that are served.
const BYTES: &str = "256M";

/// Ends with this.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Random reads and writes of 4 KiB through `nbdkit memory`, by fio; nothing, and a word about it, where these are not installed.
///
/// # Errors
/// What one of them said.
pub(super) fn nbdkit(directory: &Path, figures: &mut Figures, mut progress: impl FnMut(&str)) -> Result<(), String> {
    for (program, argument) in [("nbdkit", "--version"), ("fio", "--version")] {
        let found = Command::new(program).arg(argument).stdout(Stdio::null()).stderr(Stdio::null()).status();
        if !found.is_ok_and(|status| status.success()) {
            progress(&format!("{program} is not installed: nothing of nbdkit is measured"));
            return Ok(());
        }
    }
    let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|listener| listener.local_addr());
    let port = port.map_err(|error| error.to_string())?.port();
    let mut server = Command::new("nbdkit");
    server.args([
        "--foreground",
        "--exit-with-parent",
        "--ipaddr=127.0.0.1",
        &format!("--port={port}"),
        "memory",
        BYTES,
    ]);
    let server = server.stdout(Stdio::null()).spawn().map_err(|error| format!("nbdkit: {error}"))?;
    let _server = Server(server);
    let start = BootClock.now();
    while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
        if BootClock.now().since(start) > PATIENCE {
            return Err("nbdkit does not listen".to_owned());
        }
        std::thread::yield_now();
    }
    for round in 1..=ROUNDS {
        progress(&format!("nbdkit, round {round} of {ROUNDS}"));
        for (direction, mode) in [("read", "randread"), ("write", "randwrite")] {
            for depth in [1, 32, 128] {
                let result = fio(directory, port, mode, depth)?;
                let job = &result["jobs"][0];
                let name = format!("nbdkit.{direction}.4096.qd{depth}");
                let iops = job[direction]["iops"].as_f64().ok_or("fio says nothing of operations per second")?;
                figures.add(format!("{name}.iops"), "1/s", iops);
                if let Some(median) = job[direction]["clat_ns"]["percentile"]["50.000000"].as_u64() {
                    figures.add_micros(format!("{name}.p50_us"), median);
                }
            }
        }
    }
    Ok(())
}

fn fio(directory: &Path, port: u16, mode: &str, depth: u32) -> Result<Value, String> {
    let report = directory.join("fio.json");
    let mut command = Command::new("fio");
    command.args(["--name=peer", "--ioengine=nbd", &format!("--uri=nbd://127.0.0.1:{port}/")]);
    command.args([&format!("--rw={mode}"), &format!("--iodepth={depth}"), "--bs=4k", &format!("--size={BYTES}")]);
    command.args(["--time_based", "--ramp_time=50ms", "--runtime=400ms", "--output-format=json"]);
    let status =
        command.arg(format!("--output={}", report.display())).stdout(Stdio::null()).current_dir(directory).status();
    if !status.as_ref().is_ok_and(std::process::ExitStatus::success) {
        return Err(format!("fio: {status:?}"));
    }
    let text = std::fs::read_to_string(&report).map_err(|error| format!("fio: {error}"))?;
    serde_json::from_str(&text).map_err(|error| format!("fio: {error}"))
}
