//! Which control planes a command asks: those that it is told, or those of a configuration, or the first of `dyad up`.

use std::path::PathBuf;

use clap::Args;
use dyad_director::config::Config;
use dyad_director::control::client::Client;
use dyad_director::control::view::Director;

/// Where the array is.
#[derive(Args, Debug, Clone)]
pub(crate) struct Connection {
    /// Control planes of directors, HOST:PORT, with commas between them [default: $DYAD_CONTROL, or 127.0.0.1:7600]
    #[arg(long, value_delimiter = ',', conflicts_with = "config")]
    control: Vec<String>,
    /// The array's configuration, which says where the control planes are, and the token
    #[arg(long)]
    config: Option<PathBuf>,
}

/// Where the first director of `dyad up` listens.
const DEFAULT: &str = "127.0.0.1:7600";

impl Connection {
    /// The control planes that are known from here. The token for other machines is the configuration's, or $DYAD_TOKEN.
    pub(crate) fn known(&self) -> Result<Vec<Client>, String> {
        if let Some(path) = &self.config {
            let config = Config::read(path).map_err(|error| error.to_string())?;
            let token = config.token.as_ref().map(|token| token.as_str().to_owned());
            let client = |director: &dyad_director::config::Director| {
                Client::new(&director.control.to_string(), token.as_deref())
            };
            return Ok(config.directors.iter().map(client).collect());
        }
        let token = std::env::var("DYAD_TOKEN").ok();
        let said = std::env::var("DYAD_CONTROL").unwrap_or_else(|_| DEFAULT.to_owned());
        let addresses: Vec<&str> = match &self.control[..] {
            [] => said.split(',').collect(),
            told => told.iter().map(String::as_str).collect(),
        };
        Ok(addresses.into_iter().map(|address| Client::new(address, token.as_deref())).collect())
    }

    /// The control planes of all directors: those that are known, and those that the first that answers knows.
    pub(crate) fn all(&self) -> Result<Vec<Client>, String> {
        let mut known = self.known()?;
        let directors: Vec<Director> =
            known.iter().find_map(|client| client.get("/v1/directors").ok()).unwrap_or_default();
        if known.len() < directors.len() && directors.iter().all(|director| !director.control.ends_with(":0")) {
            for director in directors {
                if known.iter().all(|client| client.address() != director.control) {
                    known.push(known[0].at(&director.control));
                }
            }
        }
        Ok(known)
    }
}
