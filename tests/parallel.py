"""Which tests cannot run in several threads at once, and why: for pytest-run-parallel.

A new test that cannot is marked ``@pytest.mark.thread_unsafe(reason=…)`` where it stands.

The plugin runs a test in several threads with the same fixtures. It finds out by itself who patches
modules, captures output or warnings, or collects garbage.
"""

import inspect

import pytest

# Fixtures that are one thing for the whole process, or belong to one thread.
FIXTURES = {
    "caplog": "the log is the process's",
    "handler": "signals are the main thread's",
    "interruptible": "signals are the main thread's",
    "network": "a thread enters a network namespace for a while",
    "namespaces": "a thread enters a network namespace for a while",
    "runner": "an event loop belongs to one thread",
}

# Suites of programs in other processes, for which it makes no difference, and of what a process
# has one of.
SUITES = {
    "test_accounting_servers": "it forks",
    "test_attacked": "it runs programs",
    "test_audit": "audit hooks hear every thread",
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
    "test_many_audit": "audit hooks hear every thread",
    "test_packaging": "it runs programs",
    "test_refused": "ports are reused",
    "test_seed": "it runs programs",
    "test_server_attacked": "it forks",
    "test_server_exit": "it runs programs",
    "test_server_interrupted": "it runs programs",
    "test_server_latch": "it has a trace function, and signals are the main thread's",
    "test_server_lifecycle": "it runs programs",
    "test_server_messages": "it forks",
    "test_server_own_address": "it forks",
    "test_server_queues": "it forks",
    "test_server_reload": "it runs programs",
    "test_server_signals": "it runs programs",
    "test_server_supervision": "it forks",
    "test_server_workers": "it forks",
    "test_signals": "signals are the main thread's",
    "test_skips": "it runs programs",
    "test_spin": "it measures the process's time",
    "test_stateful": "hypothesis's state machines are no functions",
    "test_transport_turns": "it counts the turns of one loop",
    "test_typing": "it runs programs",
    "test_users": "it runs programs",
    "test_workflows": "it runs programs",
}

# Single tests.
TESTS = {
    "test_a_call_on_a_descriptor_that_was_closed_behind_the_sockets_back": "numbers are reused",
    "test_a_port_takes_a_privilege": "it gives up a privilege",
    "test_a_scope_on_a_host_that_has_none": "it binds one address",
    "test_an_earlier_error_of_the_connected_peer_costs_one_datagram": "ports are reused",
    "test_an_earlier_error_of_the_connected_peer_is_raised_and_nothing_sent": "ports are reused",
    "test_an_exception_of_a_handler_that_comes_amid_a_failure_is_not_lost": "it has a signal",
    "test_descriptors_that_come_with_datagrams_do_not_stay_open": "numbers are reused",
    "test_one_socket_for_all_workers_cannot_be_steered": "it changes its parameter",
    "test_ports_that_are_none": "it binds one address",
    "test_unusual_hosts": "it binds one address",
    "test_unusual_ipv6_hosts": "it binds one address",
    "test_unusual_ipv6_addresses": "it binds one address",
    "test_what_is_no_address_of_a_host_and_a_port": "it binds one address",
}

# What a test uses, by name: its own, or those of a function of its module's that it calls.
NAMES = {
    "active_count": "it counts the process's threads",
    "fork": "it forks",
    "interrupt": "signals are the main thread's",
    "open_descriptors": "it counts the process's descriptors",
    "process_time": "it measures the process's time",
    "run": "it runs programs",
    "setdefaulttimeout": "the default timeout is the process's",
    "setrlimit": "limits are the process's",
}


def configure(config):
    """Declare the plugin's marker, for runs without the plugin."""
    config.addinivalue_line("markers", "thread_unsafe(reason): it runs in one thread at a time")


def mark(items):
    """Mark the tests that cannot run in several threads at once."""
    for item in items:
        if not isinstance(item, pytest.Function):
            continue  # of which the plugin thinks the same
        if (reason := why_not(item)) is not None:
            item.add_marker(pytest.mark.thread_unsafe(reason=reason))


def why_not(item):
    """Return the first reason against it, or ``None``."""
    return next(reasons(item), None)


def reasons(item):
    suite = item.path.stem
    if suite.startswith("test_cli"):
        yield "it runs programs"
    if suite.startswith("test_threads"):
        yield "it has threads of its own"
    if suite in SUITES:
        yield SUITES[suite]
    if item.originalname in TESTS:
        yield TESTS[item.originalname]
    yield from (reason for fixture, reason in FIXTURES.items() if fixture in item.fixturenames)
    if inspect.iscoroutinefunction(item.function):
        yield FIXTURES["runner"]
    if "workers" in item.fixturenames:
        yield "it forks"
    fixtures = item._fixtureinfo.name2fixturedefs  # noqa: SLF001 - nothing public tells
    if any(is_open(definitions) for definitions in fixtures.values()):
        yield "its threads would share what a fixture has opened"
    yield from (NAMES[name] for name in sorted(names_of(item.function) & set(NAMES)))


def is_open(definitions):
    """Say whether a fixture of a suite's own opens something, and closes it after the test."""
    last = definitions[-1]
    return last.baseid.endswith(".py") and inspect.isgeneratorfunction(last.func)


def names_of(function):
    """Return the names that a function uses, and those that the functions of its module use."""
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
