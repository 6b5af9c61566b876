//! `cargo bench -p dyad-backend`: the figures of `dyad bench nvme`, without the command.

use std::process::Command;

use dyad_backend::bench;

fn main() {
    let mut arguments = std::env::args().skip(1);
    match arguments.next().as_deref() {
        Some("serve") => {
            let directory = arguments.next().expect("the directory of the sockets");
            return bench::serve(directory.as_ref()).expect("the shelf serves");
        }
        // For callgrind: so many commands without data, in one thread.
        Some("count") => {
            let commands = arguments.next().and_then(|n| n.parse().ok()).expect("a number of commands");
            let outcome = bench::Emulated::null().and_then(|mut null| null.run(commands)).expect("commands");
            return println!("{} commands", outcome.commands);
        }
        _ => {}
    }
    let directory = tempfile::tempdir().expect("a temporary directory");
    let mut shelf = Command::new(std::env::current_exe().expect("this program has a name"));
    shelf.arg("serve").arg(directory.path());
    let rows = bench::run(&mut shelf, directory.path(), |line| eprintln!("{line}")).expect("figures");
    for row in rows {
        println!("{:44} {:>14.3} {:5} ({:.3} to {:.3})", row.name, row.value, row.unit, row.min, row.max);
    }
}
