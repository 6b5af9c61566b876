//! `dyad shelf`: emulated dual-ported NVMe devices, for directors and tests on a machine that has none.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use dyad_backend::emulator::{BlockFormat, Latency};
use dyad_backend::shelf::{ShelfConfig, ShelfDevice, ShelfMedia, control_path, run_shelf, socket_path};
use dyad_nvme::types::{BLOCK_BYTES, BlockCount};
use dyad_reactor::reactor::max_spin_for;

use crate::fail;

/// What the shelf holds.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Where its sockets are made
    #[arg(long)]
    dir: PathBuf,
    /// How many devices: disk0, disk1, ...
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=64))]
    devices: u8,
    /// Size of each, like 64MiB or 4GiB
    #[arg(long, default_value = "64MiB", value_parser = parse_size)]
    size: u64,
    /// Keep the blocks in sparse files in the directory; otherwise they are gone with the shelf
    #[arg(long)]
    files: bool,
    /// Blocks that each device's volatile write cache holds; 0 is write-through
    #[arg(long, default_value_t = 1024)]
    cache_blocks: usize,
    /// Reactors that share this machine's cores, this one included: with more than cores, nobody spins
    #[arg(long, default_value_t = 4)]
    reactors: usize,
}

/// Parses a size in bytes, a multiple of 4 KiB.
fn parse_size(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let unit = match &text[digits.len()..] {
        "MiB" => 1 << 20,
        "GiB" => 1_u64 << 30,
        "KiB" => 1 << 10,
        _ => return Err("a size is a number with KiB, MiB or GiB behind it".to_owned()),
    };
    let bytes = digits
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(unit))
        .filter(|bytes| *bytes > 0 && bytes % BLOCK_BYTES as u64 == 0);
    bytes.ok_or_else(|| "a size is a whole number of 4 KiB blocks, at least one".to_owned())
}

/// Serves until the process is ended.
pub(crate) fn run(arguments: &Arguments) -> ExitCode {
    if let Err(error) = std::fs::create_dir_all(&arguments.dir) {
        return fail(&format!("shelf: cannot make {}: {error}", arguments.dir.display()));
    }
    let device = |number: u8| {
        let name = format!("disk{number}");
        let media = if arguments.files {
            ShelfMedia::File(arguments.dir.join(format!("{name}.blocks")))
        } else {
            ShelfMedia::Memory
        };
        ShelfDevice {
            name,
            uuid: [number + 1; 16],
            blocks: BlockCount(arguments.size / BLOCK_BYTES as u64),
            media,
            cache_blocks: Some(arguments.cache_blocks).filter(|blocks| *blocks > 0),
            format: BlockFormat::Bare,
            latency: Latency::default(),
        }
    };
    let config = ShelfConfig {
        directory: arguments.dir.clone(),
        devices: (0..arguments.devices).map(device).collect(),
        max_spin: max_spin_for(arguments.reactors),
        core: None,
        seed: 1,
    };
    let ready = |_stopper| {
        for device in &config.devices {
            for port in 0..2 {
                println!("{}", socket_path(&config.directory, &device.name, port).display());
            }
        }
        println!("faults: {}", control_path(&config.directory).display());
        println!("ready");
    };
    match run_shelf(&config, ready) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&format!("shelf: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::parse_size;

    #[test]
    fn sizes_have_units_and_whole_blocks() {
        assert_eq!(parse_size("64MiB"), Ok(64 << 20));
        assert_eq!(parse_size("8KiB"), Ok(8192));
        for bad in ["", "64", "6KiB", "0MiB", "-1GiB", "99999999999GiB", "MiB", "1 MiB"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }
}
