"""The plug-in for pytest, in runs of its own."""

import importlib.metadata
import os
import re
import subprocess
import sys
import textwrap

import pytest


def run(tmp_path, text, *arguments, plugins=()):
    """Run pytest on a module; return its exit status and its output."""
    module = tmp_path / "test_it.py"
    module.write_text(textwrap.dedent(text))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    for plugin in ("tomada._pytest_plugin", *plugins):
        command += ["-p", plugin]
    ran = subprocess.run(
        [*command, "--rootdir", str(tmp_path), str(module), *arguments],
        cwd=tmp_path,
        env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    return ran.returncode, ran.stdout + ran.stderr


def test_fixtures_serve_a_test_and_clean_up(tmp_path):
    status, output = run(
        tmp_path,
        """
        import socket, threading
        kept = []

        def test_echo_through_a_link(assert_no_udp_leaks, udp_server, udp_link):
            link = udp_link(udp_server(), script=["drop"])
            kept.extend([link, udp_server(lambda data, _: data.upper(), drain=1)])
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
                client.connect(link.address)
                client.settimeout(30)
                client.send(b"lost")
                client.send(b"x")
                assert client.recv(10) == b"x"
                client.connect(kept[1].address)
                client.send(b"x")
                assert client.recv(10) == b"X"

        def test_all_is_closed():
            assert not any("tomada" in thread.name for thread in threading.enumerate())
        """,
    )
    assert status == 0, output


def test_a_failure_shows_a_seed_that_repeats_it(tmp_path):
    text = """
        import pytest
        from tomada.testing import impaired

        def test_fails():
            seeds = [impaired(("127.0.0.1", 9)).seed for _ in range(2)]
            assert seeds == []

        def test_uses_none():
            raise LookupError
    """
    status, first = run(tmp_path, text)
    assert status == 1
    seeds = re.search(r"assert (\[\d+, \d+\]) == \[\]", first)[1]
    (base,) = re.findall(r"--udp-seed=(\d+)", first)
    _, second = run(tmp_path, text, f"--udp-seed={base}", "-k", "fails")
    assert seeds in second
    _, third = run(tmp_path, text, "-k", "fails")
    assert seeds not in third


def test_leaks_are_found(tmp_path):
    status, output = run(
        tmp_path,
        """
        import socket, subprocess, threading
        import pytest
        from tomada.testing import assert_no_udp_leaks, impaired

        @pytest.mark.parametrize("kind", ["bound", "unbound", "process", "thread", "link"])
        def test_leak(kind):
            done = threading.Event()
            with pytest.raises(AssertionError) as caught, assert_no_udp_leaks(patience=0.05):
                if kind == "process":
                    left = subprocess.Popen(["sleep", "60"])
                elif kind == "thread":
                    left = threading.Thread(target=done.wait, name="left over")
                    left.start()
                elif kind == "link":
                    left = impaired(("127.0.0.1", 9))
                    left.start()
                else:
                    left = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
                    if kind == "bound":
                        left.bind(("127.0.0.1", 0))
            assert {
                "bound": "UDP socket", "unbound": "UDP socket", "process": "process",
                "thread": "thread 'left over'", "link": "of a link",
            }[kind] in str(caught.value)
            done.set()
            if kind == "process":
                left.kill()
                left.wait()
            elif kind != "thread":
                left.close()
            with assert_no_udp_leaks():
                socket.socket(socket.AF_INET, socket.SOCK_DGRAM).close()
        """,
    )
    assert status == 0, output


RETRIES = """
    import asyncio, pytest

    async def requests(net):
        loop = asyncio.get_running_loop()
        start = loop.time()
        async with net.open_endpoint(local_addr=("10.0.0.1", 5)) as server:
            async with net.open_endpoint(remote_addr=("10.0.0.1", 5)) as client:
                waiting = asyncio.create_task(client.request(b"x", timeout=30, retries=6))
                data, address = await server.recv()
                assert loop.time() - start > 1
                server.send(data, address)
                assert await waiting == b"x"
"""


def test_a_plain_test_runs_a_coroutine_on_the_clock(tmp_path):
    text = """
    def test_it(udp_clock, udp_network):
        udp_clock.run(requests(udp_network(script=["drop"] * 4)))
        assert udp_clock.time() > 1
    """
    status, output = run(tmp_path, textwrap.dedent(RETRIES) + textwrap.dedent(text))
    assert status == 0, output


@pytest.mark.parametrize(
    ("module", "mark", "plugin"),
    [
        ("pytest_asyncio", "asyncio", "pytest_asyncio.plugin"),
        ("anyio", "anyio", "anyio.pytest_plugin"),
    ],
)
def test_coroutine_functions_run_on_the_clock(tmp_path, module, mark, plugin):
    pytest.importorskip(module)
    text = f"""
    @pytest.fixture
    def anyio_backend():
        return "asyncio"

    @pytest.mark.{mark}
    async def test_it(udp_clock, udp_network, udp_server, udp_link):
        udp_link(udp_server())
        before = udp_clock.time()
        await requests(udp_network(script=["drop"] * 4))
        assert udp_clock.time() > before + 1

    @pytest.mark.{mark}
    async def test_another_loop_has_the_usual_clock():
        await asyncio.sleep(0.001)
        assert "time" not in vars(asyncio.get_running_loop())
    """
    text = textwrap.dedent(RETRIES) + textwrap.dedent(text)
    status, output = run(tmp_path, text, plugins=[plugin])
    assert status == 0, output
    assert "2 passed" in output


def test_pytest_trio_uses_servers_and_links(tmp_path):
    pytest.importorskip("pytest_trio")
    status, output = run(
        tmp_path,
        """
        import pytest, trio

        @pytest.mark.trio
        async def test_it(udp_server, udp_link):
            link = udp_link(udp_server(), script=["duplicate"])
            with trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM) as client:
                await client.connect(link.address)
                await client.send(b"x")
                assert [await client.recv(10) for _ in range(2)] == [b"x"] * 2

        @pytest.mark.trio
        async def test_clock(udp_clock):
            pass
        """,
        plugins=["pytest_trio.plugin"],
    )
    assert "1 failed, 1 passed" in output, output
    assert "autojump_clock" in output
    assert status == 1


def test_workers_of_xdist_share_the_seed(tmp_path):
    pytest.importorskip("xdist")
    text = """
        import pytest
        from tomada.testing import impaired

        @pytest.mark.parametrize("number", range(3))
        def test_fails(number):
            assert impaired(("127.0.0.1", 9)).seed == 0
    """
    _, output = run(tmp_path, text, "-n", "2", "--udp-seed=77", plugins=["xdist"])
    assert output.count("--udp-seed=77") == 3, output
    _, alone = run(tmp_path, text, "--udp-seed=77")
    seeds = re.compile(r"assert (\d+) == 0")
    assert sorted(seeds.findall(output)) == sorted(seeds.findall(alone))


def test_pytest_finds_the_plug_in():
    points = importlib.metadata.entry_points(group="pytest11", name="tomada")
    assert {point.value for point in points} == {"tomada._pytest_plugin"}


def test_the_plug_in_imports_little():
    code = (
        "import sys, pytest; before = set(sys.modules); import tomada._pytest_plugin;"
        "new = set(sys.modules) - before;"
        "print([name for name in new if not name.startswith('tomada')])"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert ran.stdout.strip() in {"[]", "['zlib']", "['secrets']"}, ran.stdout
    code = code.replace("not name.startswith('tomada')", "name.startswith('tomada')")
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert "asyncio" not in ran.stdout
    assert "tomada.testing" not in ran.stdout
