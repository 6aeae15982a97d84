"""List the tests that cannot run in several threads at once, for pytest-run-parallel.

New tests of this kind are marked ``@pytest.mark.thread_unsafe(reason=…)`` instead.

The plugin runs a test in several threads with the same fixtures. It detects by itself the tests
that patch modules, capture output or warnings, or collect garbage.
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

# Suites that run programs in other processes, where threads make no difference, and suites that use
# something that exists once per process.
SUITES = {
    "test_accounting_servers": "it forks",
    "test_attacked": "it runs programs",
    "test_audit": "audit hooks see every thread",
    "test_benches": "it runs programs",
    "test_cpython": "it runs programs",
    "test_demo": "it runs programs",
    "test_documents": "it runs programs",
    "test_drops": "it forks",
    "test_examples": "it runs programs",
    "test_features": "it runs programs",
    "test_finalizing": "it runs programs",
    "test_fork": "it forks",
    "test_guard_server": "it forks",
    "test_many_audit": "audit hooks see every thread",
    "test_packaging": "it runs programs",
    "test_refused": "ports are reused",
    "test_seed": "it runs programs",
    "test_server_attacked": "it forks",
    "test_server_exit": "it runs programs",
    "test_server_interrupted": "it runs programs",
    "test_server_latch": "it sets a trace function, and only the main thread handles signals",
    "test_server_lifecycle": "it runs programs",
    "test_server_messages": "it forks",
    "test_server_own_address": "it forks",
    "test_server_queues": "it forks",
    "test_server_reload": "it runs programs",
    "test_server_signals": "it runs programs",
    "test_server_supervision": "it forks",
    "test_server_workers": "it forks",
    "test_signals": "only the main thread handles signals",
    "test_skips": "it runs programs",
    "test_spin": "it measures the process's CPU time",
    "test_stateful": "hypothesis's state machines are classes",
    "test_transport_turns": "it counts the iterations of one loop",
    "test_typing": "it runs programs",
    "test_users": "it runs programs",
    "test_workflows": "it runs programs",
}

# Single tests.
TESTS = {
    "test_call_on_a_descriptor_closed_by_other_code": "descriptor numbers are reused",
    "test_bind_to_a_privileged_port": "it drops a privilege",
    "test_scope_on_a_host_without_scopes": "its threads would bind the same address",
    "test_send_many_loses_one_datagram_to_a_pending_error": "ports are reused",
    "test_send_many_raises_a_pending_error_and_sends_nothing": "ports are reused",
    "test_exception_of_a_signal_handler_during_a_failure_is_not_lost": "it uses a signal",
    "test_recv_many_closes_received_descriptors": "descriptor numbers are reused",
    "test_steering_requires_a_socket_per_worker": "it changes its parameter",
    "test_invalid_ports": "its threads would bind the same address",
    "test_unusual_hosts": "its threads would bind the same address",
    "test_unusual_ipv6_hosts": "its threads would bind the same address",
    "test_unusual_ipv6_addresses": "its threads would bind the same address",
    "test_addresses_that_are_not_a_host_and_port": "its threads would bind the same address",
}

# Names that a test uses, directly or through functions of its module.
NAMES = {
    "active_count": "it counts the process's threads",
    "fork": "it forks",
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
    suite = item.path.stem
    if suite.startswith("test_cli"):
        yield "it runs programs"
    if suite.startswith("test_threads"):
        yield "it starts threads itself"
    if suite in SUITES:
        yield SUITES[suite]
    if item.originalname in TESTS:
        yield TESTS[item.originalname]
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
