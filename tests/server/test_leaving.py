"""How a worker exits if its parent has open files, log handlers, threads and processes."""

import pytest

from forking import run_forking

# A hook runs in the thread that starts the server, right before it forks the supervisor.
HEAD = """
import gzip, io, logging, logging.handlers, os, signal, sys, tempfile, threading
import tomada

logging.basicConfig(stream=sys.stdout)  # no test expects a log line
folder = tempfile.TemporaryDirectory()
hooks = []

def before_fork():
    while hooks:
        hooks.pop()()

os.register_at_fork(before=before_fork)

def path(name):
    return os.path.join(folder.name, name)

def read(name):
    with open(path(name)) as file:
        return sorted(file.read().split())

def serve(**options):
    # A worker that hangs at its end is killed, and its buffered output is lost.
    options = {"workers": 2, "drain": 1} | options
    return tomada.Server(("127.0.0.1", 0), lambda data, _: data, **options)
"""


def leaving(program):
    return run_forking(HEAD + program)


def test_parents_buffered_output_before_the_fork_is_written_once():
    program = """
file = open(path("file"), "w")
binary = open(path("binary"), "w+b")
reader, end = os.pipe()
pipe = os.fdopen(end, "w")
memory = logging.handlers.MemoryHandler(99, target=logging.FileHandler(path("log")))
logging.getLogger("app").addHandler(memory)
logging.getLogger("app").propagate = False

def write(what):
    for text in (file, pipe, sys.stdout):
        text.write(f"{what}\\n")
    binary.write(f"{what}\\n".encode())
    logging.getLogger("app").error(what)

write("first")
hooks.append(lambda: write("late"))
with serve(exit=lambda: write("worker")):
    pass
for each in (file, pipe, binary, memory):
    each.flush()
with open(path("file")) as whole:
    assert whole.readline() == "first\\n"  # start() has flushed it
piped = sorted(os.read(reader, 999).decode().split())
print(read("file") == read("binary") == read("log") == piped)
print(*read("file"))
"""
    lines = leaving(program).splitlines()
    words = ["first", "late", "worker", "worker"]
    assert lines[-2:] == ["True", " ".join(words)]
    assert sorted(lines[:-2]) == words


def test_file_opened_by_the_parent_right_before_the_fork_stays_the_parents():
    program = """
opened = []

def open_packed():
    opened.append(gzip.open(path("packed"), "wt"))
    opened[0].write("one ")

hooks.append(open_packed)
with serve():
    opened[0].write("two")
opened[0].close()
print(gzip.open(path("packed"), "rt").read())
"""
    assert leaving(program) == "one two\n"


def test_parents_files_of_other_classes_are_not_touched():
    program = """
spooled = tempfile.SpooledTemporaryFile(1 << 20)
spooled.write(b"x")

class File(io.RawIOBase):
    def fileno(self):
        print("asked", flush=True)
        return 1
    def flush(self):
        print("flushed", flush=True)

file = File()
with serve():
    pass
print(spooled._rolled, flush=True)
os._exit(0)
"""
    assert leaving(program) == "False\n"


def test_file_written_by_a_thread_during_the_fork_does_not_delay_a_workers_exit():
    program = """
file = open(path("file"), "wb")
over = threading.Event()

def write():
    while not over.is_set():
        file.write(b"x" * (64 << 20))
        file.seek(0)

writer = threading.Thread(target=write)

def begin():
    writer.start()
    while not os.path.getsize(path("file")):
        os.sched_yield()

hooks.append(begin)
server = serve(exit=lambda: (file.write(b"x"), sys.stdout.write("end\\n")))
server.start()
over.set()
writer.join()
server.stop()
"""
    assert leaving(program) == "end\nend\n"


def test_parents_log_handlers_are_flushed_and_not_closed():
    program = """
class Background(logging.Handler):
    "Its close() waits for a thread, which a worker does not have."
    def __init__(self):
        super().__init__()
        self.asked, self.done, self.kept = threading.Event(), threading.Event(), []
        threading.Thread(target=self.run, daemon=True).start()
    def run(self):
        self.asked.wait()
        self.done.set()
    def emit(self, record):
        self.kept.append(record.getMessage())
    def flush(self):
        while self.kept:
            os.write(1, self.kept.pop().encode() + b"\\n")
    def close(self):
        self.asked.set()
        self.done.wait()
        super().close()

def init():
    global file
    file = open(path(f"file-{os.getpid()}"), "w")
    own = logging.handlers.MemoryHandler(99, target=logging.FileHandler(path("log")))
    logging.getLogger().addHandler(own)

logging.getLogger().handlers.clear()
logging.getLogger().addHandler(Background())
logging.error("parent")
with serve(init=init, exit=lambda: (logging.error("worker"), file.write("end\\n"))):
    pass
print(*read("log"))
for name in os.listdir(folder.name):
    print(*read(name))
"""
    lines = leaving(program).splitlines()
    log = ["worker worker"] * 2
    assert sorted(lines) == ["end", "end", "parent", "worker", "worker", *log]


def test_worker_runs_its_own_multiprocessing_finalizers():
    program = """
import multiprocessing, multiprocessing.util

def mark(what):
    with open(path("marks"), "a") as file:
        file.write(what + "\\n")

context = multiprocessing.get_context("fork")
reader, writer = context.Pipe()
child = context.Process(target=lambda: (writer.close(), reader.poll(None)), daemon=True)
child.start()
parents = multiprocessing.util.Finalize(None, mark, ("parent",), exitpriority=10)
add = lambda: multiprocessing.util.Finalize(None, mark, ("worker",), exitpriority=10)
with serve(exit=add):
    pass
print(*read("marks"), child.is_alive())
parents.cancel()
writer.close()
child.join()
print(child.exitcode)
"""
    assert leaving(program) == "worker worker True\n0\n"


def test_start_that_interrupts_logging_waits_for_no_log_handlers_lock():
    program = """
class Handler(logging.StreamHandler):
    def emit(self, record):
        super().emit(record)
        signal.raise_signal(signal.SIGUSR1)

server = serve()
signal.signal(signal.SIGUSR1, lambda *_: server.start())
signal.alarm(20)
logging.basicConfig(handlers=[Handler(sys.stdout)], force=True, format="%(message)s")
logging.error("logged")
server.stop()
"""
    assert leaving(program) == "logged\n"


def test_start_skips_a_log_handler_that_another_thread_uses():
    program = """
class Handler(logging.Handler):
    def flush(self):
        with self.lock:
            pass

handler = Handler()
logging.getLogger().addHandler(handler)
held, over = threading.Event(), threading.Event()

def hold():
    with handler.lock:
        held.set()
        over.wait()

thread = threading.Thread(target=hold)
thread.start()
held.wait()
signal.alarm(20)
with serve():
    print("started")
over.set()
thread.join()
"""
    assert leaving(program) == "started\n"


@pytest.mark.parametrize("workers", [1, 2])
def test_child_forked_during_start_exits_and_stops_nothing(workers):
    program = f"""
import tomada._server.listeners
listen, begun, go_on = tomada._server.listeners.listen, threading.Event(), threading.Event()

def slow(*arguments, **options):
    begun.set()
    go_on.wait()
    return listen(*arguments, **options)

tomada._server.listeners.listen = slow
server = serve(workers={workers})
call = Call(server.start)
begun.wait()
pid = os.fork()
if pid == 0:
    signal.alarm(20)
    folder._finalizer.detach()
    for method in (server.stop, server.start, server.serve_forever):
        try:
            method()
        except RuntimeError as error:
            print(error)
    sys.exit()
print(os.waitpid(pid, 0)[1])
go_on.set()
call.result()
with tomada.Client(server.address) as client:
    print(client.request(b"heard"))
server.stop()
"""
    said = "a server can be started only once: create another one\n"
    assert leaving(program) == f"{said}{said}0\nb'heard'\n"


def test_another_child_forked_during_start_does_not_delay_the_end():
    program = """
reader, writer = os.pipe()

def fork():
    if os.fork() == 0:
        os.close(writer)
        os.read(reader, 1)  # until the parent has ended
        os._exit(0)

hooks.append(fork)
with serve(drain=0.1):
    pass
print("ended")
"""
    assert leaving(program) == "ended\n"


def test_start_leaves_the_warnings_of_other_threads_alone():
    program = """
import warnings
filters = warnings.filters
hooks.append(lambda: print(warnings.filters is filters))
warnings.simplefilter("error")
with serve():
    pass
"""
    assert leaving(program) == "True\n"


def test_exception_of_a_signal_handler_while_start_flushes_ends_it():
    program = """
reader, end = os.pipe()
sys.stdout = os.fdopen(end, "w", 1 << 20)
sys.stdout.write("x" * (1 << 19))  # more than a pipe holds

def ring(*_):
    raise TimeoutError("rung")

signal.signal(signal.SIGALRM, ring)
server = serve()  # which imports the module
signal.setitimer(signal.ITIMER_REAL, 0.2, 0.2)
try:
    server.start()
except TimeoutError as error:
    signal.setitimer(signal.ITIMER_REAL, 0)
    os.write(1, f"{error} {server.ready.is_set()}\\n".encode())
os._exit(0)
"""
    assert leaving(program) == "rung False\n"
