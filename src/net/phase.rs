//! The life of a transport.

use std::sync::atomic::{AtomicU8, Ordering};

/// Where a transport is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Phase {
    /// It delivers datagrams as soon as the protocol knows of it.
    Starting,
    /// It is open, and does not deliver datagrams.
    Paused,
    /// It delivers datagrams.
    Delivering,
    /// It has stopped delivering datagrams, and still sends its backlog.
    Closing,
    /// It does not send either. The protocol learns of this next.
    Lost,
}

/// A change of the phase.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transition {
    /// The protocol knows of the transport.
    Start,
    /// The protocol wants no datagrams for now.
    Pause,
    /// The protocol wants datagrams again.
    Resume,
    /// The transport is to close once its backlog is sent.
    Close,
    /// The transport has sent its backlog, or drops it.
    Lose,
}

impl Phase {
    const ALL: [Self; 5] =
        [Self::Starting, Self::Paused, Self::Delivering, Self::Closing, Self::Lost];

    /// The next phase, or `None` if the transition changes nothing.
    pub fn after(self, transition: Transition) -> Option<Self> {
        match (transition, self) {
            (Transition::Start, Self::Starting) | (Transition::Resume, Self::Paused) => {
                Some(Self::Delivering)
            }
            (Transition::Pause, Self::Starting | Self::Delivering) => Some(Self::Paused),
            (Transition::Close, Self::Starting | Self::Paused | Self::Delivering) => {
                Some(Self::Closing)
            }
            (Transition::Lose, open_or_closing) => {
                (open_or_closing != Self::Lost).then_some(Self::Lost)
            }
            _ => None,
        }
    }
}

/// The phase of a transport, which any thread can read.
#[derive(Debug)]
pub struct AtomicPhase(AtomicU8);

impl AtomicPhase {
    /// Begins with a phase.
    pub const fn new(phase: Phase) -> Self {
        Self(AtomicU8::new(phase as u8))
    }

    /// The phase at the moment.
    pub fn get(&self) -> Phase {
        decode(self.0.load(Ordering::Relaxed))
    }

    /// Makes a transition. Returns whether it changed the phase.
    pub fn advance(&self, transition: Transition) -> bool {
        let next = |phase| decode(phase).after(transition).map(|next| next as u8);
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).is_ok()
    }
}

fn decode(phase: u8) -> Phase {
    Phase::ALL.get(usize::from(phase)).copied().unwrap_or(Phase::Lost)
}

#[cfg(test)]
mod tests {
    use super::Transition::{Close, Lose, Pause, Resume, Start};
    use super::*;

    fn after(transitions: &[Transition]) -> Phase {
        let phase = AtomicPhase::new(Phase::Starting);
        for transition in transitions {
            phase.advance(*transition);
        }
        phase.get()
    }

    #[test]
    fn a_phase_survives_being_stored() {
        for phase in Phase::ALL {
            assert_eq!(AtomicPhase::new(phase).get(), phase);
        }
    }

    #[test]
    fn a_transport_that_is_paused_before_it_starts_stays_paused() {
        assert_eq!(after(&[Pause, Start]), Phase::Paused);
        assert_eq!(after(&[Pause, Resume, Start]), Phase::Delivering);
        assert_eq!(after(&[Resume]), Phase::Starting);
    }

    #[test]
    fn nothing_reopens_a_transport() {
        for transition in [Start, Pause, Resume, Close, Lose] {
            for phase in [Phase::Closing, Phase::Lost] {
                let next = phase.after(transition);
                assert_eq!(
                    next,
                    (phase < Phase::Lost && transition == Lose).then_some(Phase::Lost)
                );
            }
        }
    }

    #[test]
    fn each_transition_happens_once() {
        for phase in Phase::ALL {
            for transition in [Start, Pause, Resume, Close, Lose] {
                let next = phase.after(transition);
                assert_ne!(next, Some(phase));
                assert_eq!(next.and_then(|next| next.after(transition)), None);
            }
        }
    }
}
