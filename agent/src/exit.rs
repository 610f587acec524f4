//! How the programs end. Service managers and scripts read these numbers, so they are an interface.

use std::process::ExitCode;

/// See the module. The first three are Patroni's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Ended as asked.
    Success,
    /// Could not start or go on; the reason is the last line of the log. Also: the configuration did
    /// not pass `--validate-config`.
    Failure,
    /// The command line is not understood.
    Usage,
    /// Ended as asked, but the last log records could not be written (`configuration.md` 5.4).
    LogLost,
}

impl Exit {
    /// The number.
    pub fn code(self) -> u8 {
        match self {
            Self::Success => 0,
            Self::Failure => 1,
            Self::Usage => 2,
            Self::LogLost => 5,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}
