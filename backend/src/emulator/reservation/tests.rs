//! The table of access, and every command, against the rules of Base 8.19.

use super::*;

const A: Host = Host::Identified(HostId([0xa; 16]));
const B: Host = Host::Identified(HostId([0xb; 16]));
const C: Host = Host::Unidentified { port: 1 };
const KEY_A: u64 = 0xa;
const KEY_B: u64 = 0xb;
const WE: ReservationType = ReservationType::WriteExclusive;
const EA: ReservationType = ReservationType::ExclusiveAccess;
const WE_RO: ReservationType = ReservationType::WriteExclusiveRegistrantsOnly;
const EA_RO: ReservationType = ReservationType::ExclusiveAccessRegistrantsOnly;
const WE_AR: ReservationType = ReservationType::WriteExclusiveAllRegistrants;
const EA_AR: ReservationType = ReservationType::ExclusiveAccessAllRegistrants;
const CONFLICT: Status = Status::RESERVATION_CONFLICT;

fn join(r: &mut Reservations, host: Host, key: u64) {
    let keys = RegisterData { current: 0, new: key };
    r.register(host, RegisterAction::Replace, true, Some(true), keys).expect("registered");
}

fn acquire(
    r: &mut Reservations,
    host: Host,
    action: AcquireAction,
    rtype: ReservationType,
    keys: (u64, u64),
) -> Result<Effects, Status> {
    r.acquire(host, action, rtype, AcquireData { current: keys.0, preempt: keys.1 })
}

/// A and B registered, A holds.
fn held(rtype: ReservationType) -> Reservations {
    let mut r = Reservations::new();
    join(&mut r, A, KEY_A);
    join(&mut r, B, KEY_B);
    acquire(&mut r, A, AcquireAction::Acquire, rtype, (KEY_A, 0)).expect("acquired");
    r
}

#[test]
fn access_is_as_the_table_of_commands_says() {
    // (type, registrant reads, registrant writes, other reads, other writes)
    for (rtype, expected) in [
        (WE, [true, false, true, false]),
        (EA, [false, false, false, false]),
        (WE_RO, [true, true, true, false]),
        (EA_RO, [true, true, false, false]),
        (WE_AR, [true, true, true, false]),
        (EA_AR, [true, true, false, false]),
    ] {
        let r = held(rtype);
        let may = |host, opcode| r.permits(host, Access::of(opcode));
        assert_eq!(
            [may(B, nvm::READ), may(B, nvm::WRITE), may(C, nvm::COMPARE), may(C, nvm::FLUSH)],
            expected,
            "{rtype:?}"
        );
        assert!(may(A, nvm::READ) && may(A, nvm::WRITE_ZEROES) && may(C, nvm::RESERVATION_REPORT));
    }
    assert!(Reservations::new().permits(C, Access::Write));
}

#[test]
fn registering() {
    let mut r = Reservations::new();
    let keys = |current, new| RegisterData { current, new };
    let mut register = |action, ignore, k| r.register(A, action, ignore, None, k).map(|_| ());
    assert_eq!(register(RegisterAction::Register, false, keys(0, 0)), Err(Status::INVALID_FIELD));
    assert_eq!(register(RegisterAction::Replace, false, keys(0, 1)), Err(CONFLICT));
    assert_eq!(register(RegisterAction::Unregister, true, keys(0, 0)), Err(CONFLICT));
    assert_eq!(register(RegisterAction::Register, false, keys(0, 1)), Ok(()));
    assert_eq!(register(RegisterAction::Register, false, keys(0, 1)), Ok(()), "the same again");
    assert_eq!(register(RegisterAction::Register, false, keys(0, 2)), Err(CONFLICT));
    assert_eq!(register(RegisterAction::Replace, false, keys(9, 2)), Err(CONFLICT));
    assert_eq!(register(RegisterAction::Replace, false, keys(1, 2)), Ok(()));
    assert_eq!(register(RegisterAction::Replace, true, keys(9, 3)), Ok(()));
    assert_eq!(register(RegisterAction::Unregister, false, keys(2, 0)), Err(CONFLICT));
    assert_eq!(register(RegisterAction::Unregister, false, keys(3, 0)), Ok(()));
}

#[test]
fn a_takeover_from_all_registrants_leaves_one_writer() {
    let mut r = held(WE_AR);
    let effects = acquire(&mut r, B, AcquireAction::PreemptAndAbort, WE, (KEY_B, 0)).expect("preempted");
    assert_eq!(effects.unregistered, [A]);
    assert!(!r.permits(A, Access::Write) && r.permits(B, Access::Write));
    join(&mut r, A, KEY_A);
    assert!(!r.permits(A, Access::Write), "a later registration gives no write access");
    // The holder changes back.
    let effects = acquire(&mut r, B, AcquireAction::Preempt, WE_AR, (KEY_B, KEY_B)).expect("changed");
    assert_eq!(effects, Effects::default(), "nobody lost anything");
    assert!(r.permits(A, Access::Write) && r.permits(B, Access::Write));
}

#[test]
fn preempting_by_key() {
    let mut r = held(WE);
    assert_eq!(acquire(&mut r, B, AcquireAction::Preempt, WE, (KEY_B, 77)), Err(CONFLICT));
    assert_eq!(acquire(&mut r, B, AcquireAction::Preempt, WE, (KEY_B, 0)), Err(Status::INVALID_FIELD));
    assert_eq!(acquire(&mut r, B, AcquireAction::Preempt, WE, (KEY_A, KEY_A)), Err(CONFLICT));
    acquire(&mut r, B, AcquireAction::Preempt, EA, (KEY_B, KEY_A)).expect("the holder is preempted");
    assert!(!r.permits(A, Access::Read));
    let mut r = held(WE_AR);
    acquire(&mut r, B, AcquireAction::Preempt, WE, (KEY_B, KEY_A)).expect("one of all is preempted");
    assert!(r.permits(B, Access::Write) && !r.permits(A, Access::Write));
    join(&mut r, A, KEY_A);
    assert!(r.permits(A, Access::Write), "the type stayed All Registrants");
}

#[test]
fn releasing() {
    for (rtype, told) in [(WE, vec![]), (WE_RO, vec![B]), (EA_AR, vec![B])] {
        let mut r = held(rtype);
        assert_eq!(r.release(A, ReleaseAction::Release, Some(EA), KEY_A), Err(Status::INVALID_FIELD));
        assert_eq!(r.release(A, ReleaseAction::Release, Some(rtype), KEY_B), Err(CONFLICT));
        assert_eq!(r.release(A, ReleaseAction::Release, Some(rtype), KEY_A).expect("released").released, told);
        assert!(r.permits(C, Access::Write));
    }
    let mut r = held(WE);
    r.release(B, ReleaseAction::Release, Some(WE), KEY_B).expect("nothing for others");
    assert!(!r.permits(B, Access::Write));
    assert_eq!(r.release(B, ReleaseAction::Clear, None, KEY_B).expect("cleared").unregistered, [A]);
    assert!(r.permits(C, Access::Write));
}

#[test]
fn what_survives_what() {
    let mut r = held(WE);
    join(&mut r, C, 0xc);
    let kept = Reservations::from_bytes(&r.to_bytes()).expect("whole");
    r.power_loss();
    assert_eq!(r.registrants, kept.registrants);
    assert_eq!(r.held, kept.held);
    assert!(!r.permits(B, Access::Write) && r.permits(A, Access::Write));
    r.set_persistent(false);
    assert!(r.to_bytes().is_empty());
    r.power_loss();
    assert_eq!(r, Reservations::new());
    join(&mut r, C, 0xc);
    acquire(&mut r, C, AcquireAction::Acquire, WE, (0xc, 0)).expect("acquired");
    r.forget_unidentified(1);
    assert!(r.permits(A, Access::Write));
    assert_eq!(Reservations::from_bytes(&[1; 17]), None);
}

#[test]
fn reports_have_both_shapes() {
    let r = held(WE_AR);
    let report = r.report(true, |host| (host == B).then_some(2));
    assert_eq!(report.len(), 64 * 3);
    let header = ReportHeader::from_bytes(report[..64].try_into().expect("64 bytes"));
    assert_eq!((header.rtype, header.registrants, header.persistent, header.generation), (5, 2, true, 2));
    let second = ReportRegistrant::from_bytes(report[128..].try_into().expect("64 bytes"));
    assert_eq!(second, ReportRegistrant { controller: 2, holder: true, key: KEY_B, host: HostId([0xb; 16]) });
    assert_eq!(r.report(false, |_| None).len(), 24 * 3);
}
