//! Features (Base 5.15, 5.27) and asynchronous events (Base 5.2).

/// Arbitration.
pub const ARBITRATION: u8 = 0x01;
/// Power Management.
pub const POWER_MANAGEMENT: u8 = 0x02;
/// Temperature Threshold.
pub const TEMPERATURE_THRESHOLD: u8 = 0x04;
/// Error Recovery (NVM 4.1.3.1): TLER (15:0), DULBE (16).
pub const ERROR_RECOVERY: u8 = 0x05;
/// Volatile Write Cache: WCE (0).
pub const VOLATILE_WRITE_CACHE: u8 = 0x06;
/// Number of Queues, both zero-based: submission (15:0), completion (31:16).
pub const NUMBER_OF_QUEUES: u8 = 0x07;
/// Interrupt Coalescing.
pub const INTERRUPT_COALESCING: u8 = 0x08;
/// Interrupt Vector Configuration.
pub const INTERRUPT_VECTOR: u8 = 0x09;
/// Write Atomicity Normal.
pub const WRITE_ATOMICITY: u8 = 0x0a;
/// Asynchronous Event Configuration; see [`event_config`].
pub const ASYNC_EVENT_CONFIG: u8 = 0x0b;
/// Timestamp.
pub const TIMESTAMP: u8 = 0x0e;
/// Keep Alive Timer, in milliseconds.
pub const KEEP_ALIVE_TIMER: u8 = 0x0f;
/// Host Behavior Support.
pub const HOST_BEHAVIOR: u8 = 0x16;
/// Host Identifier: EXHID (0) says 128 bits; the identifier is the data.
pub const HOST_IDENTIFIER: u8 = 0x81;
/// Reservation Notification Mask.
pub const RESERVATION_MASK: u8 = 0x82;
/// Reservation Persistence: PTPL (0).
pub const RESERVATION_PERSISTENCE: u8 = 0x83;

/// The Select field of Get Features: dword 10, bits 10:8.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub enum Select {
    /// What is in force.
    Current,
    /// What is in force after a reset.
    Default,
    /// What was saved.
    Saved,
    /// Saveable (0), namespace specific (1), changeable (2).
    Capabilities,
}

impl Select {
    /// The value of the three bits, if it is not reserved.
    #[must_use]
    pub const fn from_bits(bits: u8) -> Option<Self> {
        Some(match bits {
            0 => Self::Current,
            1 => Self::Default,
            2 => Self::Saved,
            3 => Self::Capabilities,
            _ => return None,
        })
    }
}

/// Bits of the Asynchronous Event Configuration, and of OAES for notices.
pub mod event_config {
    /// Critical warnings of the SMART log, one bit each.
    pub const SMART_WARNINGS: u32 = 0xff;
    /// Namespace attributes changed.
    pub const NAMESPACE_ATTRIBUTE: u32 = 1 << 8;
    /// Firmware activation.
    pub const FIRMWARE_ACTIVATION: u32 = 1 << 9;
    /// ANA state changed.
    pub const ANA_CHANGE: u32 = 1 << 11;
}

/// Dword 0 of a completed Asynchronous Event Request.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub struct AsyncEvent {
    /// Bits 2:0: 0 error, 1 SMART, 2 notice, 6 I/O command specific, 7 vendor specific.
    pub kind: u8,
    /// Bits 15:8: which one of its kind.
    pub info: u8,
    /// Bits 23:16: the log page that says more; reading it (with RAE 0) re-arms the event.
    pub log_page: u8,
}

impl AsyncEvent {
    /// The namespace list changed: Changed Namespace List log page.
    pub const NAMESPACE_CHANGED: Self = Self { kind: 2, info: 0x00, log_page: super::log::CHANGED_NAMESPACES };
    /// ANA states changed.
    pub const ANA_CHANGED: Self = Self { kind: 2, info: 0x03, log_page: super::log::ANA };
    /// NVM subsystem reliability degraded.
    pub const RELIABILITY: Self = Self { kind: 1, info: 0x00, log_page: super::log::SMART };
    /// A diagnostic failure or persistent internal error.
    pub const PERSISTENT_INTERNAL_ERROR: Self = Self { kind: 0, info: 0x03, log_page: super::log::ERROR };
    /// What lies behind a namespace changed (vendor specific): log page C0h.
    pub const GEOMETRY_CHANGED: Self = Self { kind: 7, info: 0x00, log_page: super::geometry::GEOMETRY };
    /// A reservation notification is to be read.
    pub const RESERVATION: Self = Self { kind: 6, info: 0x00, log_page: super::log::RESERVATION_NOTIFICATION };

    /// From dword 0.
    #[must_use]
    pub const fn from_result(result: u32) -> Self {
        let [kind, info, log_page, _] = result.to_le_bytes();
        Self { kind: kind & 7, info, log_page }
    }

    /// As dword 0.
    #[must_use]
    pub const fn to_result(self) -> u32 {
        u32::from_le_bytes([self.kind, self.info, self.log_page, 0])
    }
}
