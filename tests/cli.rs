//! The command as a user types it: what it says to good and to bad arguments.

use std::process::{Command, Output};

fn dyad(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_dyad")).args(arguments).output().expect("the command starts")
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn help_names_the_commands_and_nothing_is_an_error() {
    let help = dyad(&["--help"]);
    assert!(help.status.success());
    for command in ["demo", "sim"] {
        assert!(stdout(&help).contains(command), "{}", stdout(&help));
    }
    let nothing = dyad(&[]);
    assert_eq!(nothing.status.code(), Some(2));
    assert!(stderr(&nothing).contains("Usage"), "{}", stderr(&nothing));
}

#[test]
fn bad_arguments_say_what_would_be_good() {
    for (arguments, word) in [
        (&["dmo"][..], "demo"),
        (&["sim", "--seeds", "0"], "--seeds"),
        (&["sim", "--seed", "x"], "--seed"),
        (&["sim", "--faults", "flood"], "crash"),
    ] {
        let output = dyad(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(stderr(&output).contains(word), "{arguments:?}: {}", stderr(&output));
    }
}

#[test]
fn a_director_without_its_shelf_says_what_is_missing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_str().unwrap();
    let output = dyad(&["director", "--dir", path, "a"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("is the shelf running?"), "{}", stderr(&output));
}

#[test]
fn a_seed_gives_the_same_trace_twice() {
    let runs = [0, 0].map(|_| dyad(&["sim", "--seed", "3", "--operations", "200"]));
    assert!(runs[0].status.success(), "{}", stdout(&runs[0]));
    assert!(stdout(&runs[0]).contains("trace "));
    assert_eq!(stdout(&runs[0]), stdout(&runs[1]));
}
