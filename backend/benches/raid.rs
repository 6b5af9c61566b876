//! `cargo bench -p dyad-backend --bench raid`: the speeds of parity that `dyad bench raid` reports, without the rest of it.

use dyad_reactor::figures::Figures;

fn main() {
    let mut figures = Figures::default();
    dyad_backend::bench::raid::parity(&mut figures);
    for row in figures.rows() {
        println!("{:16} {:>8.2} {} ({:.2} to {:.2})", row.name, row.value, row.unit, row.min, row.max);
    }
}
