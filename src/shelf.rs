//! `dyad shelf`: emulated dual-ported NVMe devices, for directors and tests on a machine that has none.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use dyad_backend::emulator::{BlockFormat, Latency};
use dyad_backend::shelf::{ShelfConfig, ShelfDevice, ShelfMedia, control_path, run_shelf, socket_path};
use dyad_director::config::{ByteSize, Config, Shelf};
use dyad_reactor::reactor::max_spin_for;

use crate::fail;

/// What the shelf holds.
#[derive(Args)]
pub(crate) struct Arguments {
    /// The array's configuration, which says what the shelf holds
    #[arg(long, required_unless_present = "dir", conflicts_with_all = ["dir", "devices", "size", "files", "cache_blocks"])]
    config: Option<PathBuf>,
    /// Without a configuration: where its sockets are made
    #[arg(long)]
    dir: Option<PathBuf>,
    /// How many devices: disk0, disk1, ...
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=64))]
    devices: u8,
    /// Size of each, like 64MiB or 4GiB
    #[arg(long, default_value = "64MiB")]
    size: ByteSize,
    /// Keep the blocks in sparse files in the directory; otherwise they are gone with the shelf
    #[arg(long)]
    files: bool,
    /// Blocks that each device's volatile write cache holds; 0 is write-through
    #[arg(long, default_value_t = 1024)]
    cache_blocks: u32,
    /// Reactors that share this machine's cores, this one included: with more than cores, nobody spins
    #[arg(long, default_value_t = 4)]
    reactors: usize,
    /// End with the process that started this one
    #[arg(long, hide = true)]
    with_parent: bool,
}

/// Serves until the process is ended.
pub(crate) fn run(arguments: &Arguments) -> ExitCode {
    if arguments.with_parent {
        crate::end_with_parent();
    }
    match (shelf(arguments), &arguments.config) {
        (Ok(Some(shelf)), _) => serve(&shelf, arguments.reactors),
        (Ok(None), config) => {
            let config = config.as_ref().map_or(String::new(), |path| path.display().to_string());
            fail(&format!("shelf: {config} has no [shelf]: say what it holds, or use --dir"))
        }
        (Err(error), _) => fail(&error),
    }
}

fn shelf(arguments: &Arguments) -> Result<Option<Shelf>, String> {
    if let Some(path) = &arguments.config {
        return Config::read(path).map(|config| config.shelf).map_err(|error| error.to_string());
    }
    let Arguments { dir, devices, size, files, cache_blocks, .. } = arguments;
    let (size, devices, files, cache_blocks) = (*size, *devices, *files, *cache_blocks);
    Ok(dir.clone().map(|directory| Shelf { directory, devices, size, files, cache_blocks }))
}

fn serve(shelf: &Shelf, reactors: usize) -> ExitCode {
    let Shelf { directory, devices, size, files, cache_blocks } = shelf;
    if let Err(error) = std::fs::create_dir_all(directory) {
        return fail(&format!("shelf: cannot make {}: {error}", directory.display()));
    }
    let device = |number: u8| {
        let name = format!("disk{number}");
        let media =
            if *files { ShelfMedia::File(directory.join(format!("{name}.blocks"))) } else { ShelfMedia::Memory };
        ShelfDevice {
            name,
            uuid: [number + 1; 16],
            blocks: size.blocks(),
            media,
            cache_blocks: usize::try_from(*cache_blocks).ok().filter(|blocks| *blocks > 0),
            format: BlockFormat::Bare,
            latency: Latency::default(),
        }
    };
    let config = ShelfConfig {
        directory: directory.clone(),
        devices: (0..*devices).map(device).collect(),
        max_spin: max_spin_for(reactors),
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
