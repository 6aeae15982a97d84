"""List the tests that cannot run in several threads at once, for pytest-run-parallel.

New tests of this kind are marked ``@pytest.mark.thread_unsafe(reason=…)`` instead.

The plugin runs a test in several threads with the same fixtures. By itself, it detects tests that
patch modules, capture output or warnings, or collect garbage.
"""

import inspect

import pytest

# Fixtures that belong to the whole process or to one thread.
FIXTURES = {
    "caplog": "all threads share the log",
    "handler": "only the main thread handles signals",
    "interruptible": "only the main thread handles signals",
    "network": "a thread enters a network namespace temporarily",
    "namespaces": "a thread enters a network namespace temporarily",
    "runner": "an event loop belongs to one thread",
}

# Names that a test uses, directly or through functions of its module.
NAMES = {
    "active_count": "it counts the process's threads",
    "fork": "it forks",
    "fstat": "another thread may get the number of a closed descriptor",
    "interrupt": "only the main thread handles signals",
    "open_descriptors": "it counts the process's descriptors",
    "process_time": "it measures the process's CPU time",
    "run": "it runs programs",
    "setdefaulttimeout": "all threads share the default timeout",
    "setrlimit": "all threads share the limits",
}


def configure(config):
    """Declare the plugin's marker, for runs without the plugin."""
    config.addinivalue_line(
        "markers", "thread_unsafe(reason): the test runs in one thread at a time"
    )


def mark(items):
    """Mark the tests that cannot run in several threads at once."""
    for item in items:
        if not isinstance(item, pytest.Function):
            continue  # the plugin skips them too
        if (reason := why_not(item)) is not None:
            item.add_marker(pytest.mark.thread_unsafe(reason=reason))


def why_not(item):
    """Return the first reason why a test cannot run in several threads, or ``None``."""
    return next(reasons(item), None)


def reasons(item):
    yield from (reason for fixture, reason in FIXTURES.items() if fixture in item.fixturenames)
    if inspect.iscoroutinefunction(item.function):
        yield FIXTURES["runner"]
    if "workers" in item.fixturenames:
        yield "it forks"
    fixtures = item._fixtureinfo.name2fixturedefs  # noqa: SLF001 - there is no public interface
    if any(is_open(definitions) for definitions in fixtures.values()):
        yield "its threads would share something that a fixture has opened"
    yield from (NAMES[name] for name in sorted(names_of(item.function) & set(NAMES)))


def is_open(definitions):
    """Return whether a fixture of the suite opens something that it closes after the test."""
    last = definitions[-1]
    return last.baseid.endswith(".py") and inspect.isgeneratorfunction(last.func)


def names_of(function):
    """Return the names that a function uses, including those in functions of its module."""
    module = inspect.getmodule(function)
    found, ahead = set(), [function.__code__]
    while ahead:
        code = ahead.pop()
        ahead += [const for const in code.co_consts if inspect.iscode(const)]
        for name in set(code.co_names) - found:
            found.add(name)
            used = getattr(module, name, None)
            if inspect.isfunction(used) and used.__module__ == module.__name__:
                ahead.append(used.__code__)
    return found
