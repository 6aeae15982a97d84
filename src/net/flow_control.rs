//! When a protocol must pause sending, and when the loop watches for room in a socket's buffer.

use super::phase::Phase;

/// The sizes in bytes at which a protocol is told to pause and to resume sending.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct WaterMarks {
    low: f64,
    high: f64,
}

impl WaterMarks {
    /// Those of asyncio's transports.
    pub const DEFAULT: Self = Self { low: 16.0 * 1024.0, high: 64.0 * 1024.0 };

    /// From the arguments of `set_write_buffer_limits`. `Err` has marks that contradict each other.
    pub fn new(high: Option<f64>, low: Option<f64>) -> Result<Self, Self> {
        let high = high.or(low.map(|low| 4.0 * low)).unwrap_or(Self::DEFAULT.high);
        let marks = Self { low: low.unwrap_or((high / 4.0).floor()), high };
        if marks.high >= marks.low && marks.low >= 0.0 { Ok(marks) } else { Err(marks) }
    }

    /// The protocol resumes when at most this many bytes are left.
    pub fn low(self) -> f64 {
        self.low
    }

    /// The protocol pauses when more bytes than this wait.
    pub fn high(self) -> f64 {
        self.high
    }
}

/// The next thing for a transport to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Have the loop watch for room in the socket's buffer.
    Watch,
    /// Tell the protocol to pause sending.
    Pause,
    /// Tell the protocol to resume sending.
    Resume,
    /// Have the loop stop watching for room.
    Unwatch,
    /// Report that the connection is lost: the transport is closing, and all is sent.
    Lose,
}

/// The size of a send backlog.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BacklogSize {
    /// The number of datagrams.
    pub datagrams: usize,
    /// The number of bytes in them.
    pub bytes: usize,
}

/// Tracks what the protocol and the loop were told about a send backlog.
///
/// Each step tells one of them about one change. A step may run code that sends, closes or sets other
/// marks, so the next step is decided after it.
#[derive(Clone, Copy, Debug)]
pub struct FlowControl {
    marks: WaterMarks,
    is_full: bool,
    is_watched: bool,
    is_paused: bool,
}

impl Default for FlowControl {
    fn default() -> Self {
        Self { marks: WaterMarks::DEFAULT, is_full: false, is_watched: false, is_paused: false }
    }
}

impl FlowControl {
    /// The marks.
    pub fn marks(&self) -> WaterMarks {
        self.marks
    }

    /// Sets the marks.
    pub fn set_marks(&mut self, marks: WaterMarks) {
        self.marks = marks;
    }

    /// Whether the socket's buffer is full, so that the backlog waits for room.
    pub fn is_full(&self) -> bool {
        self.is_full
    }

    /// Records whether the socket's buffer is full.
    pub fn set_full(&mut self, is_full: bool) {
        self.is_full = is_full;
    }

    /// Whether more bytes wait than the protocol should have accepted.
    pub fn is_above(&self, bytes: usize) -> bool {
        number(bytes) > self.marks.high
    }

    /// The next step, if any.
    pub fn step(&self, phase: Phase, size: BacklogSize) -> Option<Step> {
        let is_over = phase == Phase::Lost;
        if self.is_full && !self.is_watched {
            Some(Step::Watch)
        } else if !is_over && !self.is_paused && self.is_above(size.bytes) {
            Some(Step::Pause)
        } else if !is_over && self.is_paused && number(size.bytes) <= self.marks.low {
            // Before the loop stops watching: the protocol may fill the buffer again.
            Some(Step::Resume)
        } else if !self.is_full && self.is_watched {
            Some(Step::Unwatch)
        } else if phase == Phase::Closing && size.datagrams == 0 {
            Some(Step::Lose)
        } else {
            None
        }
    }

    /// As [`step`](Self::step), for a transport that does it now.
    pub fn take_step(&mut self, phase: Phase, size: BacklogSize) -> Option<Step> {
        let step = self.step(phase, size);
        match step {
            Some(Step::Watch) => self.is_watched = true,
            Some(Step::Unwatch) => self.is_watched = false,
            Some(Step::Pause) => self.is_paused = true,
            Some(Step::Resume) => self.is_paused = false,
            Some(Step::Lose) | None => {}
        }
        step
    }
}

#[allow(clippy::cast_precision_loss)] // no backlog has 2^53 bytes
fn number(bytes: usize) -> f64 {
    bytes as f64
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::net::phase::{AtomicPhase, Transition};

    fn steps(flow: &mut FlowControl, phase: Phase, datagrams: usize, bytes: usize) -> Vec<Step> {
        let size = BacklogSize { datagrams, bytes };
        std::iter::from_fn(|| flow.take_step(phase, size)).take(10).collect()
    }

    #[test]
    fn marks_as_asyncio_sets_them() {
        let marks = |high, low| WaterMarks::new(high, low).map(|marks| (marks.low, marks.high));
        assert_eq!(marks(None, None), Ok((16384.0, 65536.0)));
        assert_eq!(WaterMarks::new(None, None), Ok(WaterMarks::DEFAULT));
        assert_eq!(marks(Some(103.0), None), Ok((25.0, 103.0)));
        assert_eq!(marks(None, Some(100.0)), Ok((100.0, 400.0)));
        assert_eq!(marks(Some(0.0), None), Ok((0.0, 0.0)));
        assert_eq!(marks(Some(7.0), Some(7.0)), Ok((7.0, 7.0)));
        assert_eq!(marks(Some(f64::INFINITY), None), Ok((f64::INFINITY, f64::INFINITY)));
        for (high, low) in [(1.0, 2.0), (1.0, -1.0), (f64::NAN, 1.0), (1.0, f64::NAN)] {
            assert!(WaterMarks::new(Some(high), Some(low)).is_err());
        }
        let refused = WaterMarks::new(None, Some(-1.0)).unwrap_err();
        assert_eq!((refused.high(), refused.low()), (-4.0, -1.0));
    }

    #[test]
    fn a_protocol_pauses_above_high_and_resumes_at_low() {
        let mut flow = FlowControl::default();
        flow.set_marks(WaterMarks::new(Some(100.0), Some(30.0)).unwrap());
        flow.set_full(true);
        let open = Phase::Delivering;
        assert_eq!(steps(&mut flow, open, 1, 100), [Step::Watch]);
        assert_eq!(steps(&mut flow, open, 2, 101), [Step::Pause]);
        assert_eq!(steps(&mut flow, open, 2, 31), []);
        assert_eq!(steps(&mut flow, open, 1, 30), [Step::Resume]);
        flow.set_full(false);
        assert_eq!(steps(&mut flow, open, 0, 0), [Step::Unwatch]);
    }

    #[test]
    fn a_protocol_resumes_although_the_buffer_was_never_full() {
        let mut flow = FlowControl::default();
        flow.set_marks(WaterMarks::new(Some(0.0), None).unwrap());
        assert_eq!(steps(&mut flow, Phase::Delivering, 1, 1), [Step::Pause]);
        assert_eq!(steps(&mut flow, Phase::Delivering, 0, 0), [Step::Resume]);
    }

    #[test]
    fn a_closing_transport_is_lost_once_even_empty_datagrams_are_sent() {
        let mut flow = FlowControl::default();
        flow.set_full(true);
        assert_eq!(steps(&mut flow, Phase::Closing, 1, 0), [Step::Watch]);
        flow.set_full(false);
        let size = BacklogSize::default();
        assert_eq!(flow.take_step(Phase::Closing, size), Some(Step::Unwatch));
        assert_eq!(flow.take_step(Phase::Closing, size), Some(Step::Lose));
        assert_eq!(flow.take_step(Phase::Lost, size), None);
    }

    #[test]
    fn a_protocol_that_pauses_hears_only_of_the_loss_after_an_abort() {
        let mut flow = FlowControl::default();
        flow.set_full(true);
        let steps_before = steps(&mut flow, Phase::Closing, 9, 1 << 20);
        assert_eq!(steps_before, [Step::Watch, Step::Pause]);
        flow.set_full(false);
        assert_eq!(steps(&mut flow, Phase::Lost, 0, 0), [Step::Unwatch]);
    }

    #[derive(Clone, Debug)]
    enum Happening {
        Queue(usize),
        Flush(usize),
        Marks(Option<f64>, Option<f64>),
        Phase(Transition),
        Settle,
    }

    fn happenings() -> impl Strategy<Value = Happening> {
        let mark = || prop::option::of((-5..60_i8).prop_map(f64::from));
        prop_oneof![
            6 => (0..20_usize).prop_map(Happening::Queue),
            4 => (0..9_usize).prop_map(Happening::Flush),
            2 => (mark(), mark()).prop_map(|(high, low)| Happening::Marks(high, low)),
            1 => prop_oneof![
                12 => Just(Transition::Start),
                12 => Just(Transition::Pause),
                12 => Just(Transition::Resume),
                2 => Just(Transition::Close),
                1 => Just(Transition::Lose),
            ].prop_map(Happening::Phase),
            6 => Just(Happening::Settle),
        ]
    }

    proptest! {
        #[test]
        fn the_protocol_and_the_loop_know_the_state_of_the_backlog(script in vec(happenings(), 1..100)) {
            let (mut flow, phase) = (FlowControl::default(), AtomicPhase::new(Phase::Starting));
            let mut backlog: Vec<usize> = Vec::new();
            let (mut paused, mut watched, mut lost) = (false, false, false);
            for happening in script {
                match happening {
                    Happening::Queue(_) if phase.get() == Phase::Lost => {}
                    Happening::Queue(len) => backlog.push(len),
                    Happening::Flush(room) => {
                        backlog.drain(..room.min(backlog.len()));
                        flow.set_full(!backlog.is_empty());
                    }
                    Happening::Marks(high, low) => {
                        let before = flow.marks();
                        flow.set_marks(WaterMarks::new(high, low).unwrap_or(before));
                    }
                    Happening::Phase(Transition::Lose) => {
                        lost |= phase.advance(Transition::Lose);
                        backlog.clear();
                        flow.set_full(false);
                    }
                    Happening::Phase(transition) => {
                        phase.advance(transition);
                    }
                    Happening::Settle => {}
                }
                let is_to_settle = matches!(happening, Happening::Settle | Happening::Flush(_));
                if !is_to_settle {
                    continue;
                }
                let mut count = 0;
                loop {
                    let (datagrams, bytes) = (backlog.len(), backlog.iter().sum());
                    let size = BacklogSize { datagrams, bytes };
                    let next = flow.step(phase.get(), size);
                    prop_assert_eq!(flow.take_step(phase.get(), size), next);
                    let Some(step) = next else { break };
                    count += 1;
                    prop_assert!(count <= 5);
                    match step {
                        Step::Pause => {
                            prop_assert!(!paused && !lost && number(bytes) > flow.marks().high());
                            paused = true;
                        }
                        Step::Resume => {
                            prop_assert!(paused && !lost && number(bytes) <= flow.marks().low());
                            paused = false;
                        }
                        Step::Watch | Step::Unwatch => {
                            prop_assert_eq!(watched, step == Step::Unwatch);
                            watched = !watched;
                        }
                        Step::Lose => {
                            prop_assert!(!lost && backlog.is_empty());
                            lost = phase.advance(Transition::Lose);
                            prop_assert!(lost);
                        }
                    }
                }
                let bytes = number(backlog.iter().sum());
                let marks = flow.marks();
                prop_assert_eq!(watched, flow.is_full());
                prop_assert_eq!(lost, phase.get() == Phase::Lost);
                let (is_long, is_short) = (bytes > marks.high(), bytes <= marks.low());
                let is_told = if paused { !is_short } else { !is_long };
                prop_assert!(lost || is_told);
                prop_assert!(phase.get() != Phase::Closing || !backlog.is_empty());
            }
        }
    }
}
