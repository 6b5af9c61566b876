//! `dyad director`: one director of an array, in this process.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use dyad_director::config::{Config, DirectorNumber};
use dyad_director::process::{EXIT_FRESH, Ended, run_director};

use crate::fail;

/// Which director, of which array.
#[derive(Args)]
pub(crate) struct Arguments {
    /// The array's configuration
    #[arg(long)]
    config: PathBuf,
    /// The director's number
    #[arg(long)]
    id: u8,
    /// Listen here for NVMe/TCP, whatever the configuration says
    #[arg(long)]
    nvme_tcp: Option<SocketAddr>,
    /// Where hosts find that port, if not there
    #[arg(long, requires = "nvme_tcp")]
    advertise: Option<SocketAddr>,
    /// End with the process that started this one
    #[arg(long, hide = true)]
    with_parent: bool,
}

/// Serves until the process is ended, or the director has to begin anew: then it ends with status 75.
pub(crate) fn run(arguments: &Arguments) -> ExitCode {
    if arguments.with_parent {
        crate::end_with_parent();
    }
    let mut config = match Config::read(&arguments.config) {
        Ok(config) => config,
        Err(error) => return fail(&error.to_string()),
    };
    if let Some(director) = config.directors.iter_mut().find(|director| director.id.0 == arguments.id)
        && arguments.nvme_tcp.is_some()
    {
        (director.nvme_tcp, director.advertise) = (arguments.nvme_tcp, arguments.advertise);
    }
    match run_director(&config, DirectorNumber(arguments.id)) {
        Ok(Ended::Fresh) => ExitCode::from(EXIT_FRESH),
        Ok(Ended::Stopped) => ExitCode::SUCCESS,
        Err(error) => fail(&format!("director {}: {error}", arguments.id)),
    }
}
