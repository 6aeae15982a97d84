//! The command line, and the options that all commands share.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::sys::{self, Counter};

/// An error of any kind, as text.
pub(crate) type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// A command and its options: `--name value`, or `--name` alone.
pub(crate) struct Args {
    command: String,
    options: BTreeMap<String, Option<String>>,
}

impl Args {
    pub(crate) fn parse(words: impl Iterator<Item = String>) -> Result<Self> {
        let mut words = words.peekable();
        let command = words.next().ok_or("no command")?;
        let mut options = BTreeMap::new();
        while let Some(word) = words.next() {
            let name = word.strip_prefix("--").ok_or_else(|| format!("unexpected {word:?}"))?;
            let value = words.next_if(|word| !word.starts_with("--"));
            options.insert(name.to_owned(), value);
        }
        Ok(Self { command, options })
    }

    pub(crate) fn command(&self) -> &str {
        &self.command
    }

    /// Takes an option without a value.
    pub(crate) fn flag(&mut self, name: &str) -> bool {
        self.options.remove(name).is_some()
    }

    /// Takes an option with a value.
    pub(crate) fn optional<T: FromStr>(&mut self, name: &str) -> Result<Option<T>> {
        let Some(value) = self.options.remove(name) else { return Ok(None) };
        let value = value.ok_or_else(|| format!("--{name} needs a value"))?;
        let value =
            value.parse().map_err(|_| format!("--{name} {value:?} is not a valid value"))?;
        Ok(Some(value))
    }

    pub(crate) fn required<T: FromStr>(&mut self, name: &str) -> Result<T> {
        Ok(self.optional(name)?.ok_or_else(|| format!("--{name} is missing"))?)
    }

    /// Takes the common options, rejects unknown ones, pins the process and starts its timer.
    pub(crate) fn start(&mut self) -> Result<Common> {
        let core = self.required("core")?;
        let seconds = self.required("seconds")?;
        let size = self.optional("size")?.unwrap_or(64);
        let counter = match self.optional("counter")? {
            Some(fd) => Counter::map(fd)?,
            None => Counter::unshared(),
        };
        if let Some(name) = self.options.keys().next() {
            return Err(format!("{} has no option --{name}", self.command).into());
        }
        if !(1..=sys::LONGEST_DATAGRAM).contains(&size) {
            return Err(format!("--size {size} is not a valid datagram length").into());
        }
        sys::pin(core)?;
        Ok(Common { size, counter, stop: Stop::after(Duration::try_from_secs_f64(seconds)?) })
    }

    /// Takes `--port`, and `--host` if that is not the loopback address.
    pub(crate) fn peer(&mut self) -> Result<SocketAddrV4> {
        let host = self.optional("host")?.unwrap_or(Ipv4Addr::LOCALHOST);
        Ok(SocketAddrV4::new(host, self.required("port")?))
    }
}

/// The options that all commands share.
pub(crate) struct Common {
    /// The length of a payload.
    pub(crate) size: usize,
    pub(crate) counter: Counter,
    pub(crate) stop: Stop,
}

/// When to end.
pub(crate) struct Stop {
    started: Instant,
    limit: Duration,
    is_input_closed: Arc<AtomicBool>,
}

impl Stop {
    fn after(limit: Duration) -> Self {
        let is_input_closed = Arc::new(AtomicBool::new(false));
        let is_closed = Arc::clone(&is_input_closed);
        // It sleeps until the end, so it takes no time from the measured thread.
        std::thread::spawn(move || {
            while std::io::stdin().read_line(&mut String::new()).is_ok_and(|len| len > 0) {}
            is_closed.store(true, Ordering::Relaxed);
        });
        Self { started: Instant::now(), limit, is_input_closed }
    }

    /// Whether to stop now. A receive loop checks this every [`sys::PATIENCE`].
    pub(crate) fn is_due(&self) -> bool {
        self.is_input_closed.load(Ordering::Relaxed) || self.is_time_over()
    }

    /// Whether to stop even if there is work left.
    pub(crate) fn is_time_over(&self) -> bool {
        self.elapsed() >= self.limit
    }

    pub(crate) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }
}
