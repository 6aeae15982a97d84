"""Files without room: captures end with a whole datagram, and the command reports the error."""

import os
import resource
import subprocess
import sys

import pytest

from command import at, captured, run
from peer import DEADLINE
from skips import NO_ROOT, needs

NO_ROOM, TOO_LARGE = "No space left on device", "File too large"


def test_capture_on_a_full_device_names_the_file():
    status, _, errors = run("listen", "127.0.0.1:0", "--pcap", "/dev/full")
    assert (status, errors) == (1, f"tomada listen: [Errno 28] {NO_ROOM}: '/dev/full'\n")


def test_capture_that_reaches_the_file_size_limit_ends_with_a_whole_datagram(
    listening, sender, tmp_path
):
    path = tmp_path / "capture.pcap"

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))

    listener = listening("127.0.0.1:0", "--pcap", path, "--timeout", DEADLINE, preexec_fn=limit)
    for number in range(10):
        sender.sendto(b"%0400d" % number, listener.address)
    status, output, errors = listener.end()
    assert status == 1
    # 24 bytes of file header, then 16, 20 and 8 bytes of headers per datagram.
    assert [packet[28:] for _, packet in captured(path)] == [b"%0400d" % n for n in range(4)]
    assert "the capture ends after 4 of them\n" in errors
    assert errors.endswith(f"tomada listen: [Errno 27] {TOO_LARGE}: '{path}'\n")
    # Received datagrams are still printed and counted.
    shown = output.count(f"{at(sender.getsockname())} 400 bytes")
    assert shown >= 5
    assert f"{shown} datagrams, {400 * shown:,} bytes" in errors


@needs("unshare")
@pytest.mark.skipif(os.geteuid() != 0, reason=f"{NO_ROOT} mount a file system")
def test_capture_on_a_full_disk_ends_with_a_whole_datagram(sender, tmp_path):
    disk, kept = tmp_path / "disk", tmp_path / "kept.pcap"
    disk.mkdir()
    command = f"{sys.executable} -m tomada listen 127.0.0.1:0 --pcap {disk}/capture.pcap"
    script = f"""
mount -t tmpfs -o size=16k none {disk} || exit 99
{command}
status=$?
cp {disk}/capture.pcap {kept}
exit $status
"""
    process = subprocess.Popen(
        ["unshare", "--mount", "sh", "-c", script],  # noqa: S607
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        said = process.stderr.readline()
        if not said.startswith("listening on "):
            process.wait()
            pytest.skip(f"{NO_ROOT} mount a file system: {said}")
        host, _, port = said.split()[2].rstrip(";").rpartition(":")
        for number in range(30):
            sender.sendto(b"%01000d" % number, (host, int(port)))
        _, errors = process.communicate(timeout=DEADLINE)
    assert process.returncode == 1
    assert errors.endswith(f"tomada listen: [Errno 28] {NO_ROOM}: '{disk}/capture.pcap'\n")
    packets = [packet[28:] for _, packet in captured(kept)]
    assert packets == [b"%01000d" % number for number in range(len(packets))]
    assert 10 <= len(packets) <= 16
    assert f"the capture ends after {len(packets)} of them\n" in errors


def test_output_to_a_full_device_is_a_failure(sender):
    command = [sys.executable, "-m", "tomada", "listen", "127.0.0.1:0"]
    with open("/dev/full", "wb") as full:  # noqa: PTH123
        process = subprocess.Popen(command, stdout=full, stderr=subprocess.PIPE, text=True)
    with process:
        host, _, port = process.stderr.readline().split()[2].rstrip(";").rpartition(":")
        sender.sendto(b"x", (host, int(port)))
        _, errors = process.communicate(timeout=DEADLINE)
    assert (process.returncode, errors) == (1, f"tomada listen: [Errno 28] {NO_ROOM}\n")


@pytest.mark.parametrize("arguments", [["info"], ["send", "127.0.0.1:9", "x", "--json"]])
def test_results_to_a_full_device_are_a_failure(arguments):
    command = [sys.executable, "-m", "tomada", *arguments]
    with open("/dev/full", "wb") as full:  # noqa: PTH123
        ended = subprocess.run(
            command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=DEADLINE, check=False
        )
    assert ended.returncode == 1
    assert ended.stderr == f"tomada {arguments[0]}: [Errno 28] {NO_ROOM}\n"
