//! `dyad-guest`: judges what only a kernel can judge, in virtual machines (see the library).
//!
//! On the host it runs the cases that are named, or all. Exit status: 0 all held, 1 one did not, 77 this machine lacks what
//! guests need, and standard output says what.

mod cases;
#[path = "../../../backend/tests/nvme/conformance.rs"]
mod conformance;

use std::process::ExitCode;
use std::time::Duration;

use dyad_guest::inside::{self, RUN};
use dyad_guest::{Contents, Ended, Guest, GuestError, Kernel, Packages, find_program, need_programs, packages};
use dyad_reactor::{BootClock, Clock};

use cases::{CASES, Case};

/// The longest that one guest may take: ten times what it takes on an idle machine, or nearly.
const LIMIT: Duration = Duration::from_secs(240);

/// Debian's kernel series; not its cloud flavour, which lacks drivers.
const SERIES: &str = "6.1.0";

/// Says that nothing was judged (automake's convention for tests).
const EXIT_SKIPPED: u8 = 77;

fn main() -> ExitCode {
    if inside::is_init() {
        inside::init();
        return ExitCode::FAILURE;
    }
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [first, what] = &*arguments
        && first == "inside"
    {
        return cases::run_inside(what);
    }
    let chosen = |case: &&Case| arguments.is_empty() || arguments.iter().any(|name| name == case.name);
    let chosen: Vec<&Case> = CASES.iter().filter(chosen).collect();
    if let Some(unknown) = arguments.iter().find(|name| !CASES.iter().any(|case| case.name == **name)) {
        let names: Vec<_> = CASES.iter().map(|case| case.name).collect();
        eprintln!("dyad-guest: no case {unknown}; there are {}", names.join(", "));
        return ExitCode::from(2);
    }
    match run_all(&chosen) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(GuestError::Missing(what)) => {
            println!("\n*** SKIPPED: nothing was judged in a guest, because this machine lacks something: {what}\n");
            ExitCode::from(EXIT_SKIPPED)
        }
        Err(error) => {
            eprintln!("dyad-guest: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run_all(cases: &[&Case]) -> Result<bool, GuestError> {
    need_programs(&[
        ("qemu-system-x86_64", "qemu-system-x86"),
        ("setpriv", "util-linux"),
        ("ldd", "libc-bin"),
        ("ip", "iproute2"),
    ])?;
    let kernel = Kernel::debian(SERIES, &packages::cache())?;
    println!("guest: {}", kernel.package());
    let (mut held, mut judged) = (true, 0);
    let mut summary = String::new();
    for case in cases {
        let start = BootClock.now();
        let verdict = match run(case, &kernel) {
            Ok(Ended::Status(0)) => "held".to_owned(),
            Ok(Ended::Status(status)) => format!("FAILED with status {status}"),
            Ok(Ended::Crashed) => "FAILED: the guest crashed".to_owned(),
            Ok(Ended::Late) => format!("FAILED: not done within {} s", LIMIT.as_secs()),
            Err(GuestError::Missing(what)) => {
                println!("\n*** SKIPPED: case {}, because this machine lacks something: {what}\n", case.name);
                format!("SKIPPED: {what}")
            }
            Err(error) => return Err(error),
        };
        let took = BootClock.now().since(start).as_secs_f64();
        held &= !verdict.starts_with("FAILED");
        judged += usize::from(!verdict.starts_with("SKIPPED"));
        summary += &format!("{:<10} {took:>6.1} s  {verdict} ({})\n", case.name, case.what);
    }
    print!("\n{summary}");
    if judged == 0 {
        return Err(GuestError::Missing("see above".to_owned()));
    }
    Ok(held)
}

fn run(case: &Case, kernel: &Kernel) -> Result<Ended, GuestError> {
    let directory = tempfile::Builder::new().prefix("dyad-guest-").tempdir();
    let directory = directory.map_err(|source| GuestError::Io { path: std::env::temp_dir(), source })?;
    let beside = |name: &str| {
        let own = std::env::current_exe().ok().map(|own| own.with_file_name(name));
        own.filter(|program| program.exists()).or_else(|| find_program(name))
    };
    // Packages are fetched for what is not here already.
    let here = case.programs.iter().all(|name| beside(name).is_some());
    let packages = match case.packages {
        [] => None,
        _ if here => None,
        names => Some(Packages::debian(names, &packages::cache())?),
    };
    let mut programs = Vec::new();
    for name in case.programs {
        let packaged = || packages.as_ref().and_then(|packages| packages.program(name));
        let Some(program) = beside(name).or_else(packaged) else {
            return Err(GuestError::Missing(format!(
                "{name} is neither on this machine nor built (`cargo build --bins`)"
            )));
        };
        programs.push((program, format!("bin/{name}")));
    }
    let modules = case.modules.iter().map(|name| (*name).to_owned()).collect();
    let contents = Contents { modules, programs, packages, files: Vec::new() };
    let kernel_arguments = format!("{} {RUN}{}", case.kernel_arguments, case.name);
    let guest = Guest {
        name: case.name,
        kernel,
        initramfs: contents.archive(kernel)?,
        memory_mib: case.memory_mib,
        kernel_arguments: &kernel_arguments,
        qemu_arguments: (case.qemu_arguments)(directory.path())?,
        limit: LIMIT,
    };
    guest.run(directory.path(), case.asked)
}
