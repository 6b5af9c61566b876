//! `cargo bench -p dyad-matrix`: the figures of `dyad bench matrix`, without the command.

use std::process::Command;

use dyad_matrix::bench;

fn main() {
    let mut arguments = std::env::args().skip(1);
    if arguments.next().as_deref() == Some("serve") {
        let directory = arguments.next().expect("the directory of the sockets");
        bench::serve(directory.as_ref()).expect("the server serves");
        return;
    }
    let directory = tempfile::tempdir().expect("a temporary directory");
    let mut server = Command::new(std::env::current_exe().expect("this program has a name"));
    server.arg("serve").arg(directory.path());
    let rows = bench::run(&mut server, directory.path(), |line| eprintln!("{line}")).expect("figures");
    for row in rows {
        println!("{:36} {:>14.3} {:5} ({:.3} to {:.3})", row.name, row.value, row.unit, row.min, row.max);
    }
}
