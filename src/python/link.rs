//! Links that impair datagrams, for tests: [`LinkCore`] between sockets, and [`PathCore`] on a
//! clock of the caller's.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use pyo3::exceptions::{PyOSError, PyOverflowError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyString};

use super::address::{Mapping, parse, to_python};
use super::buffer::Readable;
use super::error::{Error, Result};
use crate::net::link::{
    Decide, Departure, Direction, DropReason, FateRecord, Impairments, LinkCounts, LinkPath, Loss,
    Pending, Relay, RelayOptions, Scope, Script, Scripts, Steps, Verdict,
};
use crate::net::{Address, ForkTryMutex, ForkTryMutexGuard, Inherit, leave_to_parent};

/// The fields of `tomada.testing.Fate` after the direction; times are in seconds.
type Record =
    (u32, u64, usize, Option<&'static str>, u32, f64, Option<usize>, Option<usize>, bool, f64);

fn record(record: &FateRecord) -> Record {
    (
        record.flow,
        record.index,
        record.size,
        record.dropped.map(DropReason::name),
        record.copies,
        Duration::from_nanos(record.delay).as_secs_f64(),
        record.corrupted,
        record.truncated,
        record.is_reordered,
        Duration::from_nanos(record.at).as_secs_f64(),
    )
}

fn counts<'py>(py: Python<'py>, counts: &LinkCounts) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    let LinkCounts { received, received_bytes, sent, sent_bytes, duplicated, .. } = *counts;
    let LinkCounts { corrupted, truncated, reordered, delayed, .. } = *counts;
    for (name, count) in [
        ("received", received),
        ("received_bytes", received_bytes),
        ("sent", sent),
        ("sent_bytes", sent_bytes),
        ("duplicated", duplicated),
        ("corrupted", corrupted),
        ("truncated", truncated),
        ("reordered", reordered),
        ("delayed", delayed),
        ("queued", counts.queued()),
    ] {
        dict.set_item(name, count)?;
    }
    for (reason, count) in DropReason::ALL.iter().zip(counts.dropped) {
        dict.set_item(reason.name(), count)?;
    }
    Ok(dict)
}

/// Reads the attributes of an object like `tomada.testing.Impairments`.
fn impairments(object: &Bound<'_, PyAny>) -> Result<Impairments> {
    let share = |name| field(object, name);
    let loss = object.getattr("loss")?;
    let loss = if loss.hasattr("p")? {
        let share = |name| field(&loss, name);
        Loss::Bursts { p: share("p")?, r: share("r")?, bad: share("bad")?, good: share("good")? }
    } else {
        Loss::Independent(share("loss")?)
    };
    let impairments = Impairments {
        loss,
        delay: seconds(object, "delay")?,
        jitter: seconds(object, "jitter")?,
        reorder: share("reorder")?,
        duplicate: share("duplicate")?,
        corrupt: share("corrupt")?,
        truncate: share("truncate")?,
        rate: field(object, "rate")?,
        queue: field(object, "queue")?,
        mtu: field(object, "mtu")?,
    };
    match impairments.check() {
        Ok(()) => Ok(impairments),
        Err(wrong) => Err(PyValueError::new_err(wrong.to_string()).into()),
    }
}

/// Reads an attribute that is a number.
fn field<'py, T: FromPyObjectOwned<'py>>(object: &Bound<'py, PyAny>, name: &str) -> Result<T> {
    let value = object.getattr(name)?;
    value.extract().map_err(|error| not_a_number(name, &value, &Into::into(error)))
}

/// Says which argument is wrong.
fn not_a_number(name: &str, value: &Bound<'_, PyAny>, error: &PyErr) -> Error {
    let py = value.py();
    let value = value.repr().map_or_else(|_| "another object".into(), |text| text.to_string());
    if error.is_instance_of::<PyOverflowError>(py) {
        let text = format!("{name} must be a number from 0 to 2**64 - 1, not {value}");
        return PyValueError::new_err(text).into();
    }
    let why = error.value(py);
    PyTypeError::new_err(format!("{name} must be a number, not {value} ({why})")).into()
}

fn seconds(object: &Bound<'_, PyAny>, name: &str) -> Result<Duration> {
    let value: f64 = field(object, name)?;
    Duration::try_from_secs_f64(value).map_err(|_| {
        let text = format!("{name} must be a number of seconds from 0 up, not {value}");
        PyValueError::new_err(text).into()
    })
}

/// Reads a step of a script; `None` and `"default"` leave the decision to the impairments.
fn verdict(step: &Bound<'_, PyAny>) -> Result<Option<Verdict>> {
    if step.is_none() {
        return Ok(None);
    }
    let Ok(text) = step.cast::<PyString>() else {
        let text = format!("a script's step must be a str or None, not {}", step.repr()?);
        return Err(PyTypeError::new_err(text).into());
    };
    match text.to_str()? {
        "default" => Ok(None),
        text => text.parse().map(Some).map_err(|wrong| PyValueError::new_err(wrong).into()),
    }
}

fn steps(script: &Bound<'_, PyAny>) -> Result<Vec<Option<Verdict>>> {
    script.try_iter()?.map(|step| verdict(&step?)).collect()
}

/// The first exception of a link's functions.
type FirstError = Arc<Mutex<Option<PyErr>>>;

/// Calls a Python function for each datagram.
struct Function {
    function: Py<PyAny>,
    error: FirstError,
}

impl Decide for Function {
    fn decide(
        &mut self,
        direction: Direction,
        flow: u32,
        index: u64,
        payload: &[u8],
    ) -> Option<Verdict> {
        // While the interpreter ends, nothing is left to decide.
        Python::try_attach(|py| {
            let arguments = (direction as u8, flow, index, PyBytes::new(py, payload));
            let step = self.function.bind(py).call1(arguments).map_err(Error::from);
            match step.and_then(|step| verdict(&step)) {
                Ok(verdict) => verdict,
                Err(error) => {
                    let mut first = self.error.lock().unwrap_or_else(PoisonError::into_inner);
                    let later = match *first {
                        None => first.replace(error.into()),
                        Some(_) => Some(error.into()),
                    };
                    drop(first); // before the exception, whose end may run Python code
                    drop(later);
                    None
                }
            }
        })
        .flatten()
    }
}

/// Reads a script: steps, a function, or `None` for none.
fn script(object: &Bound<'_, PyAny>, error: &FirstError) -> Result<Script> {
    if object.is_none() {
        return Ok(None);
    }
    if object.is_callable() {
        let (function, error) = (object.clone().unbind(), Arc::clone(error));
        return Ok(Some(Box::new(Function { function, error })));
    }
    Ok(Steps::script(steps(object)?))
}

/// Scripts with the numbers of the directions that they are for: 2 is both.
type NumberedScripts<'py> = Vec<(usize, Bound<'py, PyAny>)>;

fn scripts(given: &NumberedScripts<'_>, error: &FirstError) -> Result<Vec<(Scope, Script)>> {
    let scope = |number| match number {
        2 => Ok(Scope::Both),
        number => direction(number).map(Scope::One),
    };
    given.iter().map(|(number, object)| Ok((scope(*number)?, script(object, error)?))).collect()
}

/// How long a wait for the link lasts before signal handlers run.
const PATIENCE: Duration = Duration::from_millis(100);

/// Waits until the link has carried out a command. A signal handler may end the wait.
fn wait(py: Python<'_>, mut pending: Pending) -> Result<()> {
    loop {
        if let Some(result) = py.detach(|| pending.wait(PATIENCE)) {
            return Ok(result?);
        }
        py.check_signals()?;
    }
}

fn direction(number: usize) -> Result<Direction> {
    let direction = Direction::BOTH.get(number).copied();
    direction.ok_or_else(|| PyValueError::new_err("there are two directions: 0 and 1").into())
}

/// A running link.
#[pyclass(frozen, module = "tomada._core")]
pub(crate) struct LinkCore {
    relay: Relay,
    error: FirstError,
}

#[pymethods]
impl LinkCore {
    /// Start a link.
    #[new]
    #[pyo3(signature = (family, listen, upstream, seed, log_size, impairments, scripts, captures))]
    #[allow(clippy::too_many_arguments)] // the options of a link
    #[allow(clippy::needless_pass_by_value)] // arguments of Python
    fn new(
        py: Python<'_>,
        family: i32,
        listen: &Bound<'_, PyAny>,
        upstream: &Bound<'_, PyAny>,
        seed: u64,
        log_size: usize,
        impairments: [Bound<'_, PyAny>; 2],
        scripts: NumberedScripts<'_>,
        captures: bool,
    ) -> Result<Self> {
        let ip = |address| -> Result<SocketAddr> {
            let address = parse(family, address, "impaired", Mapping::Strict)?;
            let wrong = || PyOSError::new_err("a link needs AF_INET or AF_INET6").into();
            address.ip().ok_or_else(wrong)
        };
        let mut options = RelayOptions::new(ip(listen)?, ip(upstream)?, seed, log_size);
        options.captures = captures;
        for (path, impaired) in options.paths.iter_mut().zip(&impairments) {
            path.set(self::impairments(impaired)?);
        }
        let (error, mut all) = (FirstError::default(), Scripts::default());
        for (scope, script) in self::scripts(&scripts, &error)? {
            all.set(scope, script);
        }
        let relay = py.detach(|| Relay::start(options, all))?;
        Ok(Self { relay, error })
    }

    /// The address that clients send to.
    #[getter]
    fn address<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        ip_to_python(py, self.relay.address())
    }

    /// Stop the link, and raise the first exception of its functions.
    fn stop(&self, py: Python<'_>) -> Result<()> {
        wait(py, self.relay.stop())?;
        py.detach(|| self.relay.close())?;
        if !self.relay.is_own() {
            return Ok(()); // the parent's thread may have held the lock
        }
        let error = self.error.lock().unwrap_or_else(PoisonError::into_inner).take();
        error.map_or(Ok(()), |error| Err(error.into()))
    }

    /// Set the impairments of both directions, and replace scripts.
    #[allow(clippy::needless_pass_by_value)] // arguments of Python
    fn change(
        &self,
        py: Python<'_>,
        impairments: [Bound<'_, PyAny>; 2],
        scripts: NumberedScripts<'_>,
    ) -> Result<()> {
        let [to_server, to_client] = &impairments;
        let impairments = [self::impairments(to_server)?, self::impairments(to_client)?];
        let scripts = self::scripts(&scripts, &self.error)?;
        wait(py, self.relay.change(impairments, scripts))
    }

    /// Cut directions.
    fn cut(&self, py: Python<'_>, directions: [bool; 2]) -> Result<()> {
        wait(py, self.relay.cut(directions))
    }

    /// End the cut of directions.
    fn heal(&self, py: Python<'_>, directions: [bool; 2]) -> Result<()> {
        wait(py, self.relay.heal(directions))
    }

    /// Give each client another port.
    fn rebind(&self, py: Python<'_>) -> Result<()> {
        wait(py, self.relay.rebind())
    }

    /// Return the counters of a direction by name.
    fn stats<'py>(&self, py: Python<'py>, number: usize) -> Result<Bound<'py, PyDict>> {
        let direction = direction(number)?;
        let read = || self.relay.with_path(direction, |path| path.counts().clone());
        Ok(counts(py, &py.detach(read))?)
    }

    /// Return the records of a direction, the oldest first.
    fn log(&self, py: Python<'_>, number: usize) -> Result<Vec<Record>> {
        let direction = direction(number)?;
        let read = |path: &mut LinkPath| path.records().map(record).collect();
        Ok(py.detach(|| self.relay.with_path(direction, read)))
    }

    /// Return the clients: the number, the own address, and the one that the server sees.
    #[allow(clippy::type_complexity)] // a list of records
    fn clients<'py>(
        &self,
        py: Python<'py>,
    ) -> PyResult<Vec<(u32, Bound<'py, PyAny>, Bound<'py, PyAny>)>> {
        let clients = py.detach(|| self.relay.clients());
        let convert = |ip| ip_to_python(py, ip);
        clients.iter().map(|it| Ok((it.flow, convert(it.client)?, convert(it.outside)?))).collect()
    }

    /// Return how many datagrams the kernel dropped at the link's sockets.
    fn kernel_drops(&self, py: Python<'_>) -> u64 {
        py.detach(|| self.relay.kernel_drops())
    }

    /// Return how many ICMP errors came back for datagrams to the server, and to clients.
    fn icmp_errors(&self, py: Python<'_>) -> (u64, u64) {
        py.detach(|| self.relay.icmp_errors()).into()
    }

    /// Take the captured datagrams, and how many were not captured.
    #[allow(clippy::type_complexity)] // a list of records
    fn take_captured<'py>(
        &self,
        py: Python<'py>,
    ) -> PyResult<(Vec<(u64, Bound<'py, PyAny>, Bound<'py, PyAny>, Bound<'py, PyBytes>)>, u64)>
    {
        let (captured, missing) = py.detach(|| self.relay.take_captured());
        let convert = |ip| ip_to_python(py, ip);
        let list = captured.iter().map(|it| {
            let payload = PyBytes::new(py, &it.payload);
            Ok((it.time_ns, convert(it.from)?, convert(it.to)?, payload))
        });
        Ok((list.collect::<PyResult<_>>()?, missing))
    }
}

fn ip_to_python(py: Python<'_>, ip: SocketAddr) -> PyResult<Bound<'_, PyAny>> {
    to_python(py, Address::from(ip).as_bytes())
}

/// A direction of a link whose datagrams and clock are the caller's.
#[pyclass(frozen, module = "tomada._core")]
pub(crate) struct PathCore(ForkTryMutex<PathState>);

struct PathState {
    path: LinkPath,
    /// The datagram that was popped last.
    last: Option<Departure>,
}

/// A thread of the parent may have been changing it.
impl Inherit for PathState {
    fn inherit(&mut self) {
        self.path.inherit();
        leave_to_parent(&mut self.last);
    }
}

impl PathCore {
    fn state(&self) -> Result<ForkTryMutexGuard<'_, PathState>> {
        let busy = || PyOSError::new_err((libc::EBUSY, "another thread uses the path"));
        Ok(self.0.try_lock().ok_or_else(busy)?)
    }
}

#[pymethods]
impl PathCore {
    /// Create a direction without impairments.
    #[new]
    #[pyo3(signature = (seed, log_size))]
    fn new(seed: u64, log_size: usize) -> Self {
        let path = LinkPath::new(seed, log_size);
        Self(ForkTryMutex::new(PathState { path, last: None }))
    }

    /// Set the impairments.
    fn set(&self, impaired: &Bound<'_, PyAny>) -> Result<()> {
        let impairments = impairments(impaired)?;
        self.state()?.path.set(impairments);
        Ok(())
    }

    /// Check the steps of a script.
    #[staticmethod]
    fn check_steps(script: &Bound<'_, PyAny>) -> Result<()> {
        steps(script).map(drop)
    }

    /// Take in a datagram at a time in nanoseconds.
    #[pyo3(signature = (now, flow, data, headers, step=None))]
    fn accept(
        &self,
        now: u64,
        flow: u32,
        data: &Bound<'_, PyAny>,
        headers: usize,
        step: Option<&Bound<'_, PyAny>>,
    ) -> Result<()> {
        let payload = Readable::new(data)?.copy()?;
        let verdict = step.map_or(Ok(None), verdict)?;
        self.state()?.path.accept(now, flow, payload, headers, verdict);
        Ok(())
    }

    /// Return when the next datagram is due.
    fn next_due(&self) -> Result<Option<u64>> {
        Ok(self.state()?.path.next_due())
    }

    /// Return the flow and the bytes of the next datagram that is due.
    fn pop<'py>(&self, py: Python<'py>, now: u64) -> Result<Option<(u32, Bound<'py, PyBytes>)>> {
        let mut state = self.state()?;
        state.last = state.path.pop_due(now);
        Ok(state.last.as_ref().map(|it| (it.flow, PyBytes::new(py, &it.payload))))
    }

    /// Correct the counters: the datagram that was popped last did not arrive.
    fn undeliver(&self) -> Result<()> {
        let mut state = self.state()?;
        if let Some(last) = state.last.take() {
            state.path.was_not_sent(&last);
        }
        Ok(())
    }

    /// Drop datagrams under way and later ones.
    fn cut(&self) -> Result<()> {
        self.state()?.path.cut();
        Ok(())
    }

    /// End a cut.
    fn heal(&self) -> Result<()> {
        self.state()?.path.heal();
        Ok(())
    }

    /// Return the counters by name.
    fn stats<'py>(&self, py: Python<'py>) -> Result<Bound<'py, PyDict>> {
        let read = self.state()?.path.counts().clone();
        Ok(counts(py, &read)?)
    }

    /// Return the records, the oldest first.
    fn log(&self) -> Result<Vec<Record>> {
        Ok(self.state()?.path.records().map(record).collect())
    }
}
