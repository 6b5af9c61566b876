//! What loopback itself costs: a command's bytes there and a block's bytes back, by two threads that do nothing else.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use dyad_reactor::figures::Figures;
use dyad_reactor::{BootClock, Clock};

/// A read command, and its answer: data with its header, and the response.
const COMMAND: usize = 72;
const ANSWER: usize = 24 + 4096 + 24;

/// Adds the time that one round trip takes.
pub(super) fn round_trips(span: Duration, figures: &mut Figures) -> std::io::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let mut client = TcpStream::connect(listener.local_addr()?)?;
    let (mut server, _) = listener.accept()?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let echo = std::thread::spawn(move || {
        let (mut command, answer) = ([0; COMMAND], [0; ANSWER]);
        while server.read_exact(&mut command).is_ok() && server.write_all(&answer).is_ok() {}
    });
    let (command, mut answer) = ([0; COMMAND], [0; ANSWER]);
    let start = BootClock.now();
    let mut samples = Vec::new();
    while BootClock.now().since(start) < span {
        let before = BootClock.now();
        client.write_all(&command)?;
        client.read_exact(&mut answer)?;
        samples.push(BootClock.now().since(before).as_nanos());
    }
    drop(client);
    let _ = echo.join();
    samples.sort_unstable();
    if let Some(median) = samples.get(samples.len() / 2) {
        figures.add_micros("socket.round_trip.4096.p50_us", u64::try_from(*median).unwrap_or(u64::MAX));
    }
    Ok(())
}
