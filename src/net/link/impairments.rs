//! The impairments of one direction of a link.

use std::fmt;
use std::time::Duration;

/// The impairments of one direction. The default passes everything unchanged.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Impairments {
    /// Which datagrams are lost.
    pub loss: Loss,
    /// How long each datagram takes.
    pub delay: Duration,
    /// By how much that varies, uniformly, up and down.
    pub jitter: Duration,
    /// The share of datagrams that the next one overtakes.
    pub reorder: f64,
    /// The share that arrives twice.
    pub duplicate: f64,
    /// The share in which a bit is flipped.
    pub corrupt: f64,
    /// The share that loses its end.
    pub truncate: f64,
    /// Payload bits per second.
    pub rate: Option<f64>,
    /// How many datagrams may wait for the rate.
    pub queue: Option<usize>,
    /// The longest IP packet in bytes, headers included.
    pub mtu: Option<usize>,
}

/// Which datagrams are lost.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Loss {
    /// Each on its own, with this probability.
    Independent(f64),
    /// In bursts: the model of Gilbert and Elliott, a chain with two states.
    Bursts {
        /// The probability that a burst begins with a datagram.
        p: f64,
        /// The probability that a burst ends with a datagram.
        r: f64,
        /// The share that is lost within a burst.
        bad: f64,
        /// The share that is lost between bursts.
        good: f64,
    },
}

impl Default for Loss {
    fn default() -> Self {
        Self::Independent(0.0)
    }
}

/// A value that an impairment cannot have.
#[derive(Clone, Debug, PartialEq)]
pub struct WrongImpairment {
    name: &'static str,
    must_be: &'static str,
    value: f64,
}

impl fmt::Display for WrongImpairment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} must be {}, not {}", self.name, self.must_be, self.value)
    }
}

const SHARE: &str = "a share from 0 to 1";

impl Impairments {
    /// Checks the values.
    pub fn check(&self) -> Result<(), WrongImpairment> {
        let shares = [
            ("reorder", self.reorder),
            ("duplicate", self.duplicate),
            ("corrupt", self.corrupt),
            ("truncate", self.truncate),
        ];
        let losses = match self.loss {
            Loss::Independent(share) => vec![("loss", share)],
            Loss::Bursts { p, r, bad, good } => {
                vec![("p", p), ("r", r), ("bad", bad), ("good", good)]
            }
        };
        for (name, value) in losses.into_iter().chain(shares) {
            if !(0.0..=1.0).contains(&value) {
                return Err(WrongImpairment { name, must_be: SHARE, value });
            }
        }
        match self.rate {
            Some(value) if !(value > 0.0 && value.is_finite()) => {
                let must_be = "a number of bits per second greater than 0";
                Err(WrongImpairment { name: "rate", must_be, value })
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_out_of_range_are_refused_by_name() {
        let of = |change: fn(&mut Impairments)| {
            let mut impairments = Impairments::default();
            change(&mut impairments);
            impairments.check().map_err(|wrong| wrong.to_string())
        };
        assert_eq!(of(|_| ()), Ok(()));
        assert_eq!(
            of(|it| it.loss = Loss::Independent(1.5)),
            Err("loss must be a share from 0 to 1, not 1.5".into())
        );
        assert!(of(|it| it.truncate = f64::NAN).unwrap_err().starts_with("truncate"));
        assert!(of(|it| it.rate = Some(0.0)).unwrap_err().starts_with("rate"));
        assert!(of(|it| it.rate = Some(f64::INFINITY)).is_err());
        let bursts = |it: &mut Impairments| {
            it.loss = Loss::Bursts { p: 0.1, r: -0.1, bad: 1.0, good: 0.0 };
        };
        assert!(of(bursts).unwrap_err().starts_with("r must be"));
    }
}
