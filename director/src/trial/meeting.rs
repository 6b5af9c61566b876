//! How the processes of a trial meet: in shared memory, over TCP on loopback, or over TCP between network namespaces of this
//! kernel, whose links can be cut.
//!
//! Such a network is a bridge with the host on it and one namespace for each director, `10.77.0.0/24`. It stands in a namespace of
//! its own that the calling thread enters for good, so nothing of it is seen outside, and it goes with the trial.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Command, Stdio};

use nix::sched::{CloneFlags, unshare};

use crate::config::{MatrixAddress, MatrixSecurity, Token};
use crate::layout::ArrayDir;
use crate::membership::DirectorId;

/// How they are to meet.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub enum Matrix {
    /// In shared memory.
    Shm,
    /// Over TCP on loopback.
    Tcp,
    /// Over TCP, encrypted, between network namespaces. Needs root, and `ip` (iproute2).
    Network,
}

/// Where they meet.
pub struct Meeting {
    directors: [MatrixAddress; 2],
    /// The host's end.
    pub host: MatrixAddress,
    /// The same for all.
    pub security: MatrixSecurity,
    network: Option<Network>,
}

/// For all members of a trial: a secret that nobody else has a reason to know.
const SECRET: &str = "the-secret-of-a-trial-that-guards-nothing";

impl Meeting {
    /// Makes what they need to meet.
    ///
    /// # Errors
    /// No free ports, or no network could be made.
    pub fn new(matrix: Matrix, array: &ArrayDir) -> io::Result<Self> {
        let both = [DirectorId::A, DirectorId::B];
        match matrix {
            Matrix::Shm => Ok(Self::in_shared_memory(array)),
            Matrix::Tcp => {
                // Both at once, so that they are two; whoever is given one of them in the next moment wins.
                let held = [(); 2].map(|()| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)));
                let [a, b] = held;
                let directors = [a?.local_addr()?, b?.local_addr()?].map(MatrixAddress::Tcp);
                let host = MatrixAddress::Tcp(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)));
                Ok(Self { directors, host, security: MatrixSecurity::Loopback, network: None })
            }
            Matrix::Network => {
                let network = Network::new()?;
                let directors = both.map(|me| MatrixAddress::Tcp(SocketAddr::from((address(me), 7700))));
                let host = MatrixAddress::Tcp(SocketAddr::from((HOST, 0)));
                let secret = Token::new(SECRET).expect("it is long enough");
                Ok(Self { directors, host, security: MatrixSecurity::Secret(secret), network: Some(network) })
            }
        }
    }

    /// Needs nothing to be made.
    #[must_use]
    pub fn in_shared_memory(array: &ArrayDir) -> Self {
        Self {
            directors: [DirectorId::A, DirectorId::B].map(|me| MatrixAddress::Socket(array.director(me))),
            host: MatrixAddress::Socket(array.host()),
            security: MatrixSecurity::Loopback,
            network: None,
        }
    }

    /// Where a director is met.
    #[must_use]
    pub fn director(&self, me: DirectorId) -> &MatrixAddress {
        &self.directors[usize::from(me.index())]
    }

    /// The configuration of an array whose directors meet so, from one whose directors meet in shared memory.
    #[must_use]
    pub fn configuration(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for (at, address) in self.directors.iter().enumerate() {
            if let MatrixAddress::Tcp(address) = address {
                text = text.replace(&format!("\"director{at}.sock\""), &format!("\"{address}\""));
            }
        }
        if let MatrixSecurity::Secret(secret) = &self.security {
            text.push_str(&format!("\n[matrix]\nsecret = \"{}\"\n", secret.as_str()));
        }
        text
    }

    /// A command that runs `program` where a director belongs.
    #[must_use]
    pub fn command(&self, me: DirectorId, program: &Path) -> Command {
        let Some(network) = &self.network else { return Command::new(program) };
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &network.namespace(me)]).arg(program);
        command
    }

    /// Cuts a director's link, or mends it.
    ///
    /// # Errors
    /// There is no network.
    pub fn cut(&self, me: DirectorId, cut: bool) -> io::Result<()> {
        if self.network.is_none() {
            return Err(io::Error::other("only links of a network can be cut"));
        }
        ip(&format!("link set {} {}", link(me), if cut { "down" } else { "up" }))
    }
}

const HOST: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);

fn address(me: DirectorId) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, 0, 2 + me.index())
}

/// The bridge's end of a director's link.
fn link(me: DirectorId) -> &'static str {
    if me == DirectorId::A { "to-a" } else { "to-b" }
}

/// Two namespaces on a bridge.
struct Network {
    name: String,
}

impl Network {
    fn new() -> io::Result<Self> {
        unshare(CloneFlags::CLONE_NEWNET)?;
        let network = Self { name: format!("dyad-{}", std::process::id()) };
        ip("link set lo up")?;
        ip("link add bridge type bridge")?;
        ip(&format!("address add {HOST}/24 dev bridge"))?;
        ip("link set bridge up")?;
        for me in [DirectorId::A, DirectorId::B] {
            let (namespace, link) = (network.namespace(me), link(me));
            ip(&format!("netns add {namespace}"))?;
            ip(&format!("link add {link} type veth peer name eth0 netns {namespace}"))?;
            ip(&format!("link set {link} master bridge up"))?;
            ip(&format!("-netns {namespace} address add {}/24 dev eth0", address(me)))?;
            ip(&format!("-netns {namespace} link set eth0 up"))?;
            ip(&format!("-netns {namespace} link set lo up"))?;
        }
        Ok(network)
    }

    fn namespace(&self, me: DirectorId) -> String {
        format!("{}-{}", self.name, if me == DirectorId::A { "a" } else { "b" })
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for me in [DirectorId::A, DirectorId::B] {
            // It may not have come to be.
            let _ = ip(&format!("netns delete {}", self.namespace(me)));
        }
    }
}

fn ip(arguments: &str) -> io::Result<()> {
    let mut ip = Command::new("ip");
    let output = ip.args(arguments.split(' ')).stdin(Stdio::null()).output()?;
    if output.status.success() {
        Ok(())
    } else {
        Err(io::Error::other(format!("ip {arguments}: {}", String::from_utf8_lossy(&output.stderr).trim())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::up::Plan;

    #[test]
    fn a_configuration_over_tcp_is_one() {
        let directory = tempfile::tempdir().unwrap();
        let array = ArrayDir::new(directory.path());
        let mut meeting = Meeting::new(Matrix::Tcp, &array).unwrap();
        let plan = Plan::new(2, SocketAddr::from(([127, 0, 0, 1], 0))).text([0xda; 16]);
        for security in [MatrixSecurity::Loopback, MatrixSecurity::Secret(Token::new(SECRET).unwrap())] {
            meeting.security = security.clone();
            std::fs::write(array.configuration(), meeting.configuration(&plan)).unwrap();
            let config = Config::read(&array.configuration()).unwrap();
            assert_eq!(config.security, security);
            let addresses: Vec<_> = config.directors.iter().map(|director| &director.matrix).collect();
            assert_eq!(addresses, [DirectorId::A, DirectorId::B].map(|me| meeting.director(me)));
        }
    }
}
