//! A script's decision about one datagram.

use std::str::FromStr;
use std::time::Duration;

use super::counts::DropReason;

/// The decision of a script about a datagram. It replaces the random impairments; the direction's delay
/// applies unless the verdict has one, and its rate, queue and MTU always apply.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Why the datagram is dropped, if it is.
    pub drop: Option<DropReason>,
    /// Its delay, without jitter.
    pub delay: Option<Duration>,
    /// How many copies arrive in addition.
    pub duplicates: u32,
    /// Whether a bit is flipped.
    pub corrupt: bool,
    /// The length that it is cut to, if it is longer.
    pub truncate: Option<usize>,
    /// Whether the next datagram overtakes it.
    pub reorder: bool,
}

/// A step makes at most this many copies of a datagram.
const MOST_DUPLICATES: u32 = 1000;

impl Verdict {
    /// Drops the datagram.
    pub fn drop(reason: DropReason) -> Self {
        Self { drop: Some(reason), ..Self::default() }
    }
}

/// Parses a comma-separated list of `pass`, `drop`, `delay 50ms`, `duplicate`, `duplicate 3`,
/// `corrupt`, `truncate 10` and `reorder`.
impl FromStr for Verdict {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut verdict = Self::default();
        for step in text.split(',') {
            let mut words = step.split_whitespace();
            let (name, value) = (words.next().unwrap_or_default(), words.next());
            let count = || value.and_then(|value| value.parse::<u32>().ok());
            let is_known = match (name, value) {
                ("pass", None) => Some(()),
                ("drop", None) => {
                    verdict.drop = Some(DropReason::Scripted);
                    Some(())
                }
                ("delay", Some(value)) => {
                    verdict.delay = parse_duration(value);
                    verdict.delay.map(drop)
                }
                ("duplicate", None) => {
                    verdict.duplicates = 1;
                    Some(())
                }
                ("duplicate", Some(_)) => {
                    let count = count().filter(|count| *count <= MOST_DUPLICATES);
                    count.map(|count| verdict.duplicates = count)
                }
                ("truncate", Some(_)) => count().map(|len| verdict.truncate = Some(len as usize)),
                ("corrupt", None) => {
                    verdict.corrupt = true;
                    Some(())
                }
                ("reorder", None) => {
                    verdict.reorder = true;
                    Some(())
                }
                _ => None,
            };
            if is_known.is_none() || words.next().is_some() {
                return Err(format!(
                    "a script's step must be pass, drop, delay 50ms, duplicate, duplicate 3 \
                     (at most 1000), corrupt, truncate 10 or reorder, or several with commas \
                     between them, not {:?}",
                    step.trim()
                ));
            }
        }
        Ok(verdict)
    }
}

/// Parses `50ms`, `0.05s`, `300us` or `300µs`.
pub fn parse_duration(text: &str) -> Option<Duration> {
    let digits = text.trim_end_matches(|char: char| char.is_alphabetic());
    let unit = match &text[digits.len()..] {
        "s" => 1.0,
        "ms" => 1e-3,
        "us" | "µs" | "μs" => 1e-6,
        _ => return None,
    };
    let value: f64 = digits.parse().ok()?;
    Duration::try_from_secs_f64(value * unit).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_combine() {
        let read = |text: &str| text.parse::<Verdict>().unwrap();
        assert_eq!(read("pass"), Verdict::default());
        assert_eq!(read("drop"), Verdict::drop(DropReason::Scripted));
        let both = read("duplicate 3, delay 1.5ms");
        assert_eq!((both.duplicates, both.delay), (3, Some(Duration::from_micros(1500))));
        let all = read("corrupt,truncate 0,reorder,duplicate");
        assert_eq!(
            (all.corrupt, all.truncate, all.reorder, all.duplicates),
            (true, Some(0), true, 1)
        );
    }

    #[test]
    fn wrong_steps_are_named() {
        for text in [
            "",
            "lose",
            "delay",
            "delay 50",
            "delay -1s",
            "drop now",
            "truncate -1",
            "duplicate 1001",
        ] {
            let error = format!("pass, {text}").parse::<Verdict>().unwrap_err();
            assert!(error.ends_with(&format!("not {text:?}")), "{error}");
        }
    }

    #[test]
    fn durations_have_units() {
        assert_eq!(parse_duration("2s"), Some(Duration::from_secs(2)));
        assert_eq!(parse_duration("300µs"), parse_duration("0.3ms"));
        assert_eq!((parse_duration("5"), parse_duration("1e99s")), (None, None));
    }
}
