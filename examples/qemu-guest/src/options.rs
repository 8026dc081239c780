//! The keys of the guest's command line.

use core::fmt;

use guest_rt::CommandLine;
use thiserror::Error;

/// A share in percent, 0 to 100.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct Percent(u8);

impl Percent {
    /// `None` above 100.
    #[must_use]
    pub const fn new(percent: u8) -> Option<Self> {
        if percent <= 100 {
            Some(Self(percent))
        } else {
            None
        }
    }

    /// The number.
    #[must_use]
    pub const fn get(self) -> u8 {
        self.0
    }
}

/// What to do with memory after boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fill {
    /// Leave it untouched.
    None,
    /// Write to every free frame, then free part of them.
    All,
}

/// What runs beside the balloon.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Services {
    /// Statistics, when the host asks.
    pub statistics: bool,
    /// Free page hints for a live migration.
    pub hints: bool,
    /// Free page reporting.
    pub reports: bool,
}

impl Services {
    /// `None` if a word is not known.
    fn read(words: &str) -> Option<Self> {
        let mut services = Self::default();
        for word in words.split(',') {
            match word {
                "statistics" => services.statistics = true,
                "hints" => services.hints = true,
                "reports" => services.reports = true,
                _ => return None,
            }
        }
        Some(services)
    }
}

/// How the device tells the guest that something happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interrupts {
    /// The best it has.
    Any,
    /// One line, shared by all causes: INTx on PCI.
    Line,
    /// A message for each of two causes: MSI-X.
    Messages,
    /// Not at all: the guest looks now and then.
    None,
}

impl Interrupts {
    fn read(word: &str) -> Option<Self> {
        Some(match word {
            "any" => Self::Any,
            "line" => Self::Line,
            "messages" => Self::Messages,
            "none" => Self::None,
            _ => return None,
        })
    }
}

/// As on the command line.
impl fmt::Display for Interrupts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Any => "any",
            Self::Line => "line",
            Self::Messages => "messages",
            Self::None => "none",
        })
    }
}

/// What the host wants of this run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options<'a> {
    /// Printed back by `@done`; empty if the host gave none.
    pub token: &'a str,
    /// Whether the bulk path may be used where the device offers it.
    pub bulk: bool,
    /// What to do after boot.
    pub fill: Fill,
    /// Share of the filled frames to keep and verify.
    pub keep: Percent,
    /// What runs beside the balloon.
    pub services: Services,
    /// Whether the balloon moves one request a millisecond only, so that there
    /// is time for something to happen meanwhile.
    pub slow: bool,
    /// Whether the balloon leaves what a kernel of this size needs, whatever the target.
    pub floor: bool,
    /// How the device is to interrupt.
    pub interrupts: Interrupts,
    /// What free frames hold, if this kernel is to rely on it.
    pub poison: Option<u32>,
    /// Whether the host backs this guest with pages of 2 MiB that it cannot
    /// split.
    pub superpages: bool,
}

/// A key has a value the guest does not know: better no run than another one
/// than was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum OptionError {
    /// `path=` something else.
    #[error("path is to be `auto` or `pfn`")]
    Path,
    /// `fill=` something else.
    #[error("fill is to be `all` or `none`")]
    Fill,
    /// `keep=` something else.
    #[error("keep is to be a percentage from 0 to 100")]
    Keep,
    /// `services=` something else.
    #[error("services is to be a list of `statistics`, `hints` and `reports`")]
    Services,
    /// `pace=` something else.
    #[error("pace is to be `fast` or `slow`")]
    Pace,
    /// `floor=` something else.
    #[error("floor is to be `default` or `none`")]
    Floor,
    /// `interrupts=` something else.
    #[error("interrupts is to be `any`, `line`, `messages` or `none`")]
    Interrupts,
    /// `poison=` something else.
    #[error("poison is to be up to 8 hexadecimal digits")]
    Poison,
    /// `host-pages=` something else.
    #[error("host-pages is to be `4K` or `2M`")]
    HostPages,
    /// The line was too long to be kept.
    #[error("the command line is longer than {} bytes", CommandLine::CAPACITY)]
    Cut,
}

impl<'a> Options<'a> {
    const KEEP: Percent = Percent(5);

    /// Reads the keys; other keys are somebody else's.
    ///
    /// # Errors
    /// When a value is not understood.
    pub fn read(line: &'a CommandLine) -> Result<Self, OptionError> {
        if line.is_cut() {
            return Err(OptionError::Cut);
        }
        Ok(Self {
            token: line.get("token").unwrap_or_default(),
            bulk: match line.get("path") {
                None | Some("auto") => true,
                Some("pfn") => false,
                Some(_) => return Err(OptionError::Path),
            },
            fill: match line.get("fill") {
                None | Some("none") => Fill::None,
                Some("all") => Fill::All,
                Some(_) => return Err(OptionError::Fill),
            },
            keep: match line.get("keep").map(str::parse) {
                None => Self::KEEP,
                Some(Ok(percent)) => Percent::new(percent).ok_or(OptionError::Keep)?,
                Some(Err(_)) => return Err(OptionError::Keep),
            },
            services: match line.get("services") {
                None => Services::default(),
                Some(words) => Services::read(words).ok_or(OptionError::Services)?,
            },
            slow: match line.get("pace") {
                None | Some("fast") => false,
                Some("slow") => true,
                Some(_) => return Err(OptionError::Pace),
            },
            floor: match line.get("floor") {
                None | Some("default") => true,
                Some("none") => false,
                Some(_) => return Err(OptionError::Floor),
            },
            interrupts: match line.get("interrupts") {
                None => Interrupts::Any,
                Some(word) => Interrupts::read(word).ok_or(OptionError::Interrupts)?,
            },
            poison: match line
                .get("poison")
                .map(|digits| u32::from_str_radix(digits, 16))
            {
                None => None,
                Some(Ok(value)) => Some(value),
                Some(Err(_)) => return Err(OptionError::Poison),
            },
            superpages: match line.get("host-pages") {
                None | Some("4K") => false,
                Some("2M") => true,
                Some(_) => return Err(OptionError::HostPages),
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    fn line(text: &str) -> CommandLine {
        CommandLine::from_bytes(text.bytes())
    }

    #[test]
    fn defaults() {
        let line = line("console=ttyS0");
        let options = Options::read(&line).unwrap();
        assert_eq!((options.token, options.bulk), ("", true));
        assert_eq!((options.fill, options.keep), (Fill::None, Percent(5)));
        assert_eq!(
            (options.services, options.slow),
            (Services::default(), false)
        );
        assert_eq!(
            (options.interrupts, options.poison),
            (Interrupts::Any, None)
        );
        assert!(options.floor && !options.superpages);
    }

    #[test]
    fn every_key() {
        let line = line(
            "token=a-1 path=pfn fill=all keep=100 pace=slow floor=none services=hints,statistics",
        );
        let options = Options::read(&line).unwrap();
        assert!(!options.floor);
        assert_eq!((options.token, options.bulk), ("a-1", false));
        assert_eq!((options.fill, options.keep), (Fill::All, Percent(100)));
        let services = options.services;
        assert!(services.statistics && services.hints && !services.reports && options.slow);
    }

    #[test]
    fn keys_about_the_device() {
        let line = line("interrupts=messages poison=aa00ff01 host-pages=2M");
        let options = Options::read(&line).unwrap();
        assert_eq!(options.interrupts, Interrupts::Messages);
        assert_eq!(
            (options.poison, options.superpages),
            (Some(0xaa00_ff01), true)
        );
        for kind in ["any", "line", "messages", "none"] {
            assert_eq!(Interrupts::read(kind).unwrap().to_string(), kind);
        }
    }

    #[test]
    fn unknown_values_are_refused() {
        for (text, error) in [
            ("path=bulk", OptionError::Path),
            ("fill=", OptionError::Fill),
            ("keep=101", OptionError::Keep),
            ("keep=-1", OptionError::Keep),
            ("keep=many", OptionError::Keep),
            ("services=hints,", OptionError::Services),
            ("pace=", OptionError::Pace),
            ("floor=5", OptionError::Floor),
            ("interrupts=yes", OptionError::Interrupts),
            ("poison=0x1", OptionError::Poison),
            ("poison=123456789", OptionError::Poison),
            ("host-pages=1G", OptionError::HostPages),
        ] {
            assert_eq!(Options::read(&line(text)), Err(error), "{text}");
        }
        let long = CommandLine::from_bytes(core::iter::repeat_n(b'x', 2000));
        assert_eq!(Options::read(&long), Err(OptionError::Cut));
    }
}
