//! The status of a completed command (Base 3.3.3.2.1).

use std::fmt;

/// The 15-bit status field: code (7:0), code type (10:8), command retry delay (12:11), more (13), do not retry (14).
///
/// The constants have only code and code type; [`Status::code`] reduces any status to that, so `match status.code()` is how to tell them apart.
#[derive(Copy, Clone, PartialEq, Eq, Hash)]
pub struct Status(u16);

const CODE_MASK: u16 = 0x7ff;
const MORE: u16 = 1 << 13;
const DO_NOT_RETRY: u16 = 1 << 14;

/// Which table a code is of (Base figure "Status Code Type").
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub enum StatusType {
    /// 0h: the same meaning for all commands.
    Generic,
    /// 1h: of the command's own.
    CommandSpecific,
    /// 2h: the media or its integrity.
    Media,
    /// 3h: the way to the namespace (ANA and others).
    Path,
    /// 7h, or a value that the specification reserves.
    Vendor,
}

macro_rules! statuses {
    ($($(#[$doc:meta])* $name:ident = $value:literal, $text:literal;)*) => {
        impl Status {
            $($(#[$doc])* pub const $name: Self = Self($value);)*

            fn meaning(self) -> Option<&'static str> {
                match self.0 & CODE_MASK {
                    $($value => Some($text),)*
                    _ => None,
                }
            }
        }
    };
}

statuses! {
    /// Done.
    SUCCESS = 0x000, "success";
    /// The opcode is not known or not supported.
    INVALID_OPCODE = 0x001, "invalid opcode";
    /// A reserved or unsupported value in a defined field.
    INVALID_FIELD = 0x002, "invalid field in command";
    /// The command identifier is in use already.
    COMMAND_ID_CONFLICT = 0x003, "command id conflict";
    /// Data or metadata could not be transferred.
    DATA_TRANSFER_ERROR = 0x004, "data transfer error";
    /// Power was lost.
    ABORTED_POWER_LOSS = 0x005, "aborted by power loss";
    /// The device is at fault.
    INTERNAL_ERROR = 0x006, "internal error";
    /// An Abort command ended it.
    ABORT_REQUESTED = 0x007, "abort requested";
    /// Its submission queue was deleted.
    ABORTED_SQ_DELETION = 0x008, "aborted by deletion of the submission queue";
    /// The other half of a fused pair failed.
    ABORTED_FAILED_FUSED = 0x009, "aborted with its fused command";
    /// The other half of a fused pair is missing.
    ABORTED_MISSING_FUSED = 0x00a, "the fused command is missing";
    /// The namespace is not there, not active or its format does not fit.
    INVALID_NAMESPACE = 0x00b, "invalid namespace or format";
    /// Commands came in an order that the protocol forbids.
    COMMAND_SEQUENCE = 0x00c, "command sequence error";
    /// An SGL segment or last segment descriptor is bad.
    SGL_SEGMENT_INVALID = 0x00d, "invalid SGL segment descriptor";
    /// Too many, or misplaced, SGL descriptors.
    SGL_COUNT_INVALID = 0x00e, "invalid number of SGL descriptors";
    /// The SGL is shorter (or, if so stated, longer) than the data.
    SGL_LENGTH_INVALID = 0x00f, "data SGL length invalid";
    /// The descriptor type is not supported here.
    SGL_TYPE_INVALID = 0x011, "SGL descriptor type invalid";
    /// A PRP entry has an offset where none may be.
    PRP_OFFSET_INVALID = 0x013, "PRP offset invalid";
    /// Longer than the atomic write unit that was promised.
    ATOMIC_WRITE_UNIT_EXCEEDED = 0x014, "atomic write unit exceeded";
    /// Not allowed.
    OPERATION_DENIED = 0x015, "operation denied";
    /// An SGL offset is bad.
    SGL_OFFSET_INVALID = 0x016, "SGL offset invalid";
    /// Host Identifiers of different widths in one subsystem.
    HOST_ID_INCONSISTENT = 0x018, "host identifier inconsistent format";
    /// The keep alive timer ran out.
    KEEP_ALIVE_EXPIRED = 0x019, "keep alive timer expired";
    /// The keep alive time-out asked for is not supported.
    KEEP_ALIVE_INVALID = 0x01a, "keep alive timeout invalid";
    /// A Preempt and Abort ended it.
    ABORTED_PREEMPT = 0x01b, "aborted by preempt and abort";
    /// The namespace is write protected.
    WRITE_PROTECTED = 0x020, "namespace is write protected";
    /// The controller gave it up for a reason of its own; retry.
    COMMAND_INTERRUPTED = 0x021, "command interrupted";
    /// The transport had a passing fault; retry.
    TRANSIENT_TRANSPORT = 0x022, "transient transport error";
    /// Blocks beyond the end of the namespace.
    LBA_OUT_OF_RANGE = 0x080, "LBA out of range";
    /// The namespace has no room (thin provisioning).
    CAPACITY_EXCEEDED = 0x081, "capacity exceeded";
    /// The namespace is not ready; retry.
    NAMESPACE_NOT_READY = 0x082, "namespace not ready";
    /// Somebody else's reservation stands against it.
    RESERVATION_CONFLICT = 0x083, "reservation conflict";
    /// A format is in progress.
    FORMAT_IN_PROGRESS = 0x084, "format in progress";

    /// Create I/O Submission Queue: no such completion queue.
    COMPLETION_QUEUE_INVALID = 0x100, "completion queue invalid";
    /// Queue identifier in use, zero or too large.
    INVALID_QUEUE_ID = 0x101, "invalid queue identifier";
    /// Queue size zero or too large.
    INVALID_QUEUE_SIZE = 0x102, "invalid queue size";
    /// Too many Aborts outstanding.
    ABORT_LIMIT_EXCEEDED = 0x103, "abort command limit exceeded";
    /// Too many Asynchronous Event Requests outstanding.
    ASYNC_EVENT_LIMIT_EXCEEDED = 0x105, "asynchronous event request limit exceeded";
    /// Firmware slot not there or read-only.
    INVALID_FIRMWARE_SLOT = 0x106, "invalid firmware slot";
    /// Not a firmware image.
    INVALID_FIRMWARE_IMAGE = 0x107, "invalid firmware image";
    /// Interrupt vector not there.
    INVALID_INTERRUPT_VECTOR = 0x108, "invalid interrupt vector";
    /// Log page not there.
    INVALID_LOG_PAGE = 0x109, "invalid log page";
    /// LBA format or protection not supported.
    INVALID_FORMAT = 0x10a, "invalid format";
    /// The completion queue still has submission queues.
    INVALID_QUEUE_DELETION = 0x10c, "invalid queue deletion";
    /// The feature cannot be saved.
    FEATURE_NOT_SAVEABLE = 0x10d, "feature identifier not saveable";
    /// The feature cannot be changed.
    FEATURE_NOT_CHANGEABLE = 0x10e, "feature not changeable";
    /// The feature is of the controller, not of a namespace.
    FEATURE_NOT_NAMESPACE = 0x10f, "feature not namespace specific";
    /// NVM command set: attributes that exclude each other. Fabrics Connect: format not known.
    CONFLICTING_ATTRIBUTES = 0x180, "conflicting attributes, or Connect: incompatible format";
    /// NVM command set: PRINFO does not fit the format. Fabrics Connect: controller busy.
    INVALID_PROTECTION = 0x181, "invalid protection information, or Connect: controller busy";
    /// NVM command set: read-only range. Fabrics Connect: invalid parameters.
    CONNECT_INVALID_PARAMETERS = 0x182, "write to read only range, or Connect: invalid parameters";
    /// Fabrics Connect: ask the discovery service again.
    CONNECT_RESTART_DISCOVERY = 0x183, "Connect: restart discovery";
    /// Fabrics Connect: this host is not allowed.
    CONNECT_INVALID_HOST = 0x184, "Connect: invalid host";
    /// Discovery log changed while it was read.
    DISCOVERY_RESTART = 0x190, "discover restart";
    /// Authentication is needed first.
    AUTHENTICATION_REQUIRED = 0x191, "authentication required";

    /// The media did not take the write.
    WRITE_FAULT = 0x280, "write fault";
    /// The media does not give the data back.
    UNRECOVERED_READ = 0x281, "unrecovered read error";
    /// Guard (CRC) mismatch.
    GUARD_CHECK = 0x282, "end-to-end guard check error";
    /// Application tag mismatch.
    APPLICATION_TAG_CHECK = 0x283, "end-to-end application tag check error";
    /// Reference tag mismatch.
    REFERENCE_TAG_CHECK = 0x284, "end-to-end reference tag check error";
    /// Compare found a difference.
    COMPARE_FAILURE = 0x285, "compare failure";
    /// Locked.
    ACCESS_DENIED = 0x286, "access denied";
    /// Deallocated or never written, and the host asked to be told.
    DEALLOCATED = 0x287, "deallocated or unwritten logical block";

    /// The controller is at fault, not the namespace; another path may work.
    INTERNAL_PATH_ERROR = 0x300, "internal path error";
    /// The namespace is lost for good through this path.
    ANA_PERSISTENT_LOSS = 0x301, "asymmetric access persistent loss";
    /// Not through this controller; another path may work.
    ANA_INACCESSIBLE = 0x302, "asymmetric access inaccessible";
    /// Changing; retry within ANATT.
    ANA_TRANSITION = 0x303, "asymmetric access transition";
    /// The controller found a path error.
    CONTROLLER_PATHING_ERROR = 0x360, "controller pathing error";
    /// The host found a path error.
    HOST_PATHING_ERROR = 0x370, "host pathing error";
    /// The host gave the command up.
    ABORTED_BY_HOST = 0x371, "command aborted by host";
}

impl Status {
    /// From the field's 15 bits; a sixteenth is ignored.
    #[must_use]
    pub const fn from_bits(bits: u16) -> Self {
        Self(bits & 0x7fff)
    }

    /// The field's 15 bits.
    #[must_use]
    pub const fn bits(self) -> u16 {
        self.0
    }

    /// Only code type and code.
    #[must_use]
    pub const fn code(self) -> Self {
        Self(self.0 & CODE_MASK)
    }

    /// Which table the code is of.
    #[must_use]
    pub const fn kind(self) -> StatusType {
        match (self.0 >> 8) & 7 {
            0 => StatusType::Generic,
            1 => StatusType::CommandSpecific,
            2 => StatusType::Media,
            3 => StatusType::Path,
            _ => StatusType::Vendor,
        }
    }

    /// No error.
    #[must_use]
    pub const fn is_success(self) -> bool {
        self.0 & CODE_MASK == 0
    }

    /// The same command would fail again (DNR).
    #[must_use]
    pub const fn do_not_retry(self) -> bool {
        self.0 & DO_NOT_RETRY != 0
    }

    /// The same, with DNR set.
    #[must_use]
    pub const fn with_do_not_retry(self) -> Self {
        Self(self.0 | DO_NOT_RETRY)
    }

    /// The error log has more about it (M).
    #[must_use]
    pub const fn more(self) -> bool {
        self.0 & MORE != 0
    }

    /// The same, with M set.
    #[must_use]
    pub const fn with_more(self) -> Self {
        Self(self.0 | MORE)
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.meaning() {
            Some(text) => f.write_str(text),
            None => write!(f, "status {:#05x}", self.0 & CODE_MASK),
        }
    }
}

impl fmt::Debug for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self} ({:#06x})", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_is_told_apart_whatever_its_flags() {
        let status = Status::RESERVATION_CONFLICT.with_do_not_retry().with_more();
        assert_eq!(status.bits(), 0x6083);
        assert_eq!(status.code(), Status::RESERVATION_CONFLICT);
        assert!(status.do_not_retry() && status.more() && !status.is_success());
        assert_eq!(Status::ANA_TRANSITION.kind(), StatusType::Path);
    }

    #[test]
    fn an_unknown_code_prints_as_its_number() {
        assert_eq!(Status::from_bits(0x1_77).to_string(), "status 0x177");
    }
}
