//! `/dev/watchdog`: the machine itself as the last fence, on top of the guardian.
//!
//! A watchdog that is not pinged in time resets the machine. The member loop pings it after each
//! renewal of the lease and never from another thread, so that an agent that is stopped stops pinging.
//! Options and rules are Patroni's (`ha-behaviour.md` 22): `required` means no leadership without it,
//! `automatic` means go on without it and say so.
//!
//! The driver `testing` writes to a FIFO what the real one tells the device: `Ctimeout=N` and a newline,
//! `1` for a ping, `V` before closing.
#![expect(
    unsafe_code,
    reason = "the three ioctls of the kernel's watchdog interface"
)]

use crate::config::{WatchdogConfig, WatchdogMode};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::libc;
use nix::sys::stat::Mode;
use nix::unistd::{AccessFlags, access, write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

/// The magic character that allows a device to be closed without a reset (kernel documentation,
/// "The Linux Watchdog driver API").
const MAGIC_CLOSE: &[u8] = b"V";

/// Anything but the magic character.
const PING: &[u8] = b"1";

/// The device stops when it was closed in order.
const WDIOF_MAGICCLOSE: u32 = 0x0100;

/// The device's timeout can be set.
const WDIOF_SETTIMEOUT: u32 = 0x0080;

/// Why a watchdog cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum WatchdogError {
    /// The timings leave no room: a ping per loop would come too late.
    #[error("watchdog timeout of {timeout:?} is below loop_wait of {loop_wait:?}")]
    TooTight {
        /// `ttl - safety_margin`.
        timeout: Duration,
        /// `loop_wait`.
        loop_wait: Duration,
    },
    /// The device cannot be opened.
    #[error("open watchdog {0}")]
    Open(PathBuf, #[source] Errno),
    /// It does not do as it is told.
    #[error("watchdog {0}: {1}")]
    Device(PathBuf, &'static str, #[source] Errno),
    /// It fires later than the lease ends.
    #[error("watchdog fires after {actual:?}, later than the {wanted:?} that are safe")]
    TooSlow {
        /// What the device does.
        actual: Duration,
        /// `ttl - safety_margin`.
        wanted: Duration,
    },
    /// It would fire between two pings.
    #[error("watchdog fires after {actual:?}, within one loop_wait of {loop_wait:?}")]
    TooFast {
        /// What the device does.
        actual: Duration,
        /// `loop_wait`.
        loop_wait: Duration,
    },
    /// `driver` names one that does not exist.
    #[error("there is no watchdog driver {0}")]
    NoDriver(String),
}

/// `ttl` and `loop_wait`, in the form that the rules need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Timing {
    timeout: Duration,
    loop_wait: Duration,
}

impl Timing {
    fn new(config: &WatchdogConfig, ttl: Duration, loop_wait: Duration) -> Self {
        let timeout = match u64::try_from(config.safety_margin) {
            Ok(margin) => ttl.saturating_sub(Duration::from_secs(margin)),
            // -1: half, whole seconds.
            Err(_) => Duration::from_secs(ttl.as_secs() / 2),
        };
        Self { timeout, loop_wait }
    }

    /// Whether a ping per loop comes in time.
    fn check(self) -> Result<Self, WatchdogError> {
        if self.timeout < self.loop_wait || self.timeout.is_zero() {
            let Self { timeout, loop_wait } = self;
            return Err(WatchdogError::TooTight { timeout, loop_wait });
        }
        Ok(self)
    }
}

/// The watchdog of this member. One owner: the member loop.
#[derive(Debug)]
pub struct Watchdog {
    config: WatchdogConfig,
    timing: Option<Timing>,
    device: Option<Device>,
}

impl Watchdog {
    /// A watchdog that is not active.
    pub fn new(config: WatchdogConfig) -> Self {
        Self {
            config,
            timing: None,
            device: None,
        }
    }

    /// Takes a changed configuration. `off` takes effect at once, the rest with the next activation.
    pub fn reconfigure(&mut self, config: WatchdogConfig) {
        if config == self.config {
            return;
        }
        let another = config.device != self.config.device || config.driver != self.config.driver;
        self.config = config;
        if another || self.config.mode == WatchdogMode::Off {
            self.disable();
        }
        self.timing = None;
    }

    /// Starts it before this member becomes leader, and adjusts it when the timings have changed.
    /// Idempotent.
    ///
    /// # Errors
    /// Only in mode `required`: then this member must not lead. Otherwise a failure is logged once, and
    /// leadership goes on with the guardian alone.
    pub fn activate(&mut self, ttl: Duration, loop_wait: Duration) -> Result<(), WatchdogError> {
        let timing = Timing::new(&self.config, ttl, loop_wait);
        let unchanged = self.timing == Some(timing);
        self.timing = Some(timing);
        let required = match self.config.mode {
            WatchdogMode::Off => return Ok(()),
            WatchdogMode::Automatic => false,
            WatchdogMode::Required => true,
        };
        if unchanged && (self.device.is_some() || !required) {
            return Ok(());
        }
        match self.start(timing) {
            Ok(()) => {
                tracing::info!(
                    "watchdog active, timeout {} seconds",
                    timing.timeout.as_secs()
                );
                Ok(())
            }
            Err(error) if required => Err(error),
            Err(error) => {
                tracing::debug!(
                    "watchdog not used: {}",
                    crate::guardian::note::chain(&error)
                );
                Ok(())
            }
        }
    }

    fn start(&mut self, timing: Timing) -> Result<(), WatchdogError> {
        let result = timing.check().and_then(|timing| {
            let mut device = match self.device.take() {
                Some(device) => device,
                None => Device::open(&self.config)?,
            };
            let result = device.set(timing, self.config.mode);
            self.device = Some(device);
            result
        });
        if result.is_err()
            && let Some(device) = self.device.take()
        {
            device.close();
        }
        result
    }

    /// Tells the device that the lease was renewed. A device that no longer listens will fire, which is
    /// what it is there for.
    pub fn ping(&mut self) {
        if let Some(device) = &self.device
            && let Err(error) = device.write(PING)
        {
            tracing::error!("{}", crate::guardian::note::chain(&error));
        }
    }

    /// Stops it: in pause, and where PostgreSQL is known to write no more. A device that cannot be
    /// stopped stays armed and is pinged once more, so that as much time as possible is left.
    pub fn disable(&mut self) {
        if let Some(device) = self.device.take() {
            device.close();
            tracing::info!("watchdog stopped");
        }
        self.timing = None;
    }

    /// Whether it is counting.
    pub fn is_active(&self) -> bool {
        self.device.is_some()
    }

    /// Whether this member may lead as far as the watchdog is concerned; what `watchdog_failed` denies.
    pub fn is_healthy(&self, ttl: Duration, loop_wait: Duration) -> bool {
        if self.config.mode != WatchdogMode::Required || self.is_active() {
            return true;
        }
        let known = matches!(self.config.driver.as_str(), "default" | "testing");
        known
            && Timing::new(&self.config, ttl, loop_wait).check().is_ok()
            && access(&self.config.device, AccessFlags::W_OK).is_ok()
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.disable();
    }
}

/// An open device.
#[derive(Debug)]
struct Device {
    path: PathBuf,
    fd: OwnedFd,
    /// The kernel's interface, or a FIFO.
    real: bool,
    /// `WDIOF_…`.
    options: u32,
}

/// `struct watchdog_info` of `linux/watchdog.h`.
#[repr(C)]
struct Support {
    options: u32,
    firmware: u32,
    identity: [u8; 32],
}

impl Device {
    fn open(config: &WatchdogConfig) -> Result<Self, WatchdogError> {
        let real = match config.driver.as_str() {
            "default" => true,
            "testing" => false,
            other => return Err(WatchdogError::NoDriver(other.to_owned())),
        };
        // Non-blocking: a FIFO that nobody reads must not stop the loop.
        let flags = OFlag::O_WRONLY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let fd = open(&config.device, flags, Mode::empty())
            .map_err(|error| WatchdogError::Open(config.device.clone(), error))?;
        let options = if real {
            support(&fd)
        } else {
            WDIOF_MAGICCLOSE | WDIOF_SETTIMEOUT
        };
        Ok(Self {
            path: config.device.clone(),
            fd,
            real,
            options,
        })
    }

    /// Sets the timeout and checks what the device made of it.
    fn set(&mut self, timing: Timing, mode: WatchdogMode) -> Result<(), WatchdogError> {
        let actual = if self.options & WDIOF_SETTIMEOUT != 0 {
            self.set_timeout(timing.timeout)?
        } else {
            self.timeout()?
        };
        if actual > timing.timeout && mode == WatchdogMode::Required {
            return Err(WatchdogError::TooSlow {
                actual,
                wanted: timing.timeout,
            });
        }
        if actual > timing.timeout {
            tracing::warn!(
                "watchdog fires after {actual:?} only, the lease ends {:?} after its last renewal",
                timing.timeout
            );
        }
        if actual < timing.loop_wait && self.options & WDIOF_MAGICCLOSE != 0 {
            return Err(WatchdogError::TooFast {
                actual,
                loop_wait: timing.loop_wait,
            });
        }
        self.write(PING)
    }

    fn set_timeout(&self, timeout: Duration) -> Result<Duration, WatchdogError> {
        let seconds = timeout.as_secs();
        if !self.real {
            self.write(format!("Ctimeout={seconds}\n").as_bytes())?;
            return Ok(timeout);
        }
        let mut value = libc::c_int::try_from(seconds).unwrap_or(libc::c_int::MAX);
        // SAFETY: WDIOC_SETTIMEOUT reads and writes one int.
        let result = unsafe {
            libc::ioctl(
                self.fd.as_raw_fd(),
                libc::_IOWR::<libc::c_int>(u32::from(b'W'), 6),
                &raw mut value,
            )
        };
        self.check(result, "set its timeout")?;
        Ok(Duration::from_secs(u64::try_from(value).unwrap_or(0)))
    }

    fn timeout(&self) -> Result<Duration, WatchdogError> {
        let mut value: libc::c_int = 0;
        // SAFETY: WDIOC_GETTIMEOUT writes one int.
        let result = unsafe {
            libc::ioctl(
                self.fd.as_raw_fd(),
                libc::_IOR::<libc::c_int>(u32::from(b'W'), 7),
                &raw mut value,
            )
        };
        self.check(result, "ask for its timeout")?;
        Ok(Duration::from_secs(u64::try_from(value).unwrap_or(0)))
    }

    fn check(&self, result: libc::c_int, what: &'static str) -> Result<(), WatchdogError> {
        let error = |errno| WatchdogError::Device(self.path.clone(), what, errno);
        Errno::result(result).map(drop).map_err(error)
    }

    fn write(&self, bytes: &[u8]) -> Result<(), WatchdogError> {
        let error = |errno| WatchdogError::Device(self.path.clone(), "write", errno);
        write(&self.fd, bytes).map(drop).map_err(error)
    }

    /// Closes it so that it does not fire, as far as the device can do that.
    fn close(self) {
        let last = if self.options & WDIOF_MAGICCLOSE != 0 {
            MAGIC_CLOSE
        } else {
            PING
        };
        if let Err(error) = self.write(last) {
            tracing::error!("{}", crate::guardian::note::chain(&error));
        }
        if last == PING {
            tracing::warn!(
                "watchdog {} cannot be stopped and stays armed",
                self.path.display()
            );
        }
    }
}

/// What a device can do; nothing, when it does not say.
fn support(fd: &OwnedFd) -> u32 {
    let mut support = Support {
        options: 0,
        firmware: 0,
        identity: [0; 32],
    };
    // SAFETY: WDIOC_GETSUPPORT writes one `struct watchdog_info`.
    let result = unsafe {
        libc::ioctl(
            fd.as_raw_fd(),
            libc::_IOR::<Support>(u32::from(b'W'), 0),
            &raw mut support,
        )
    };
    if result == 0 { support.options } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::path::Path;

    const TTL: Duration = Duration::from_secs(21);
    const LOOP: Duration = Duration::from_secs(10);

    fn config(mode: WatchdogMode, device: &Path) -> WatchdogConfig {
        WatchdogConfig {
            mode,
            device: device.into(),
            driver: "testing".into(),
            safety_margin: 5,
        }
    }

    /// A FIFO and an open reading end.
    fn fifo(name: &str) -> (PathBuf, std::fs::File) {
        let path =
            std::env::temp_dir().join(format!("garden-watchdog-{name}-{}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        nix::unistd::mkfifo(&path, Mode::S_IRWXU).unwrap();
        let fd = open(&path, OFlag::O_RDONLY | OFlag::O_NONBLOCK, Mode::empty()).unwrap();
        (path, std::fs::File::from(fd))
    }

    fn read(file: &mut std::fs::File) -> String {
        let mut text = String::new();
        let mut buffer = [0u8; 256];
        while let Ok(n) = file.read(&mut buffer) {
            if n == 0 {
                break;
            }
            text.push_str(std::str::from_utf8(&buffer[..n]).unwrap());
        }
        text
    }

    #[test]
    fn testing_driver_writes_timeout_pings_and_magic_close() {
        let (path, mut reader) = fifo("life");
        let mut watchdog = Watchdog::new(config(WatchdogMode::Required, &path));
        assert!(watchdog.is_healthy(TTL, LOOP));
        watchdog.activate(TTL, LOOP).unwrap();
        assert_eq!(read(&mut reader), "Ctimeout=16\n1");
        watchdog.activate(TTL, LOOP).unwrap();
        assert_eq!(read(&mut reader), "", "activation is idempotent");
        watchdog.ping();
        watchdog.ping();
        assert_eq!(read(&mut reader), "11");
        watchdog.activate(Duration::from_secs(20), LOOP).unwrap();
        assert_eq!(read(&mut reader), "Ctimeout=15\n1", "a changed ttl is told");
        watchdog.disable();
        assert_eq!(read(&mut reader), "V");
        assert!(!watchdog.is_active());
        watchdog.ping();
        assert_eq!(read(&mut reader), "");
        let _ = std::fs::remove_file(path);
    }

    #[test]
    fn only_required_refuses_when_there_is_no_device() {
        let nowhere = Path::new("/nowhere/watchdog");
        let mut watchdog = Watchdog::new(config(WatchdogMode::Required, nowhere));
        assert!(!watchdog.is_healthy(TTL, LOOP));
        assert!(matches!(
            watchdog.activate(TTL, LOOP),
            Err(WatchdogError::Open(..))
        ));
        for mode in [WatchdogMode::Automatic, WatchdogMode::Off] {
            let mut watchdog = Watchdog::new(config(mode, nowhere));
            assert!(watchdog.is_healthy(TTL, LOOP));
            assert!(watchdog.activate(TTL, LOOP).is_ok());
            assert!(!watchdog.is_active());
        }
    }

    #[test]
    fn a_fifo_that_nobody_reads_does_not_block() {
        let (path, reader) = fifo("unread");
        drop(reader);
        let mut watchdog = Watchdog::new(config(WatchdogMode::Required, &path));
        assert!(matches!(
            watchdog.activate(TTL, LOOP),
            Err(WatchdogError::Open(..))
        ));
        let _ = std::fs::remove_file(path);
    }

    #[test]
    fn timings_that_leave_no_room_are_refused() {
        let (path, _reader) = fifo("tight");
        let mut watchdog = Watchdog::new(config(WatchdogMode::Required, &path));
        let slow = Duration::from_secs(17);
        assert!(!watchdog.is_healthy(TTL, slow));
        assert!(matches!(
            watchdog.activate(TTL, slow),
            Err(WatchdogError::TooTight { .. })
        ));
        let half = WatchdogConfig {
            safety_margin: -1,
            ..config(WatchdogMode::Required, &path)
        };
        assert_eq!(
            Timing::new(&half, TTL, LOOP).timeout,
            Duration::from_secs(10)
        );
        let _ = std::fs::remove_file(path);
    }

    #[test]
    fn switching_it_off_closes_it_at_once() {
        let (path, mut reader) = fifo("off");
        let mut watchdog = Watchdog::new(config(WatchdogMode::Automatic, &path));
        watchdog.activate(TTL, LOOP).unwrap();
        read(&mut reader);
        watchdog.reconfigure(config(WatchdogMode::Off, &path));
        assert_eq!(read(&mut reader), "V");
        let _ = std::fs::remove_file(path);
    }
}
