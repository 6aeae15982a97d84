"""The programs in ``examples`` that need more than the package."""

from pathlib import Path

import pytest

from support import Child

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_a_file_over_quic_arrives_intact_on_every_loop():
    pytest.importorskip("aioquic", reason="the dependency group `examples` is not installed")
    with Child(EXAMPLES / "quic_transfer.py", "0.125") as child:
        lines = [child.line().split() for _ in range(3)]
        status, rest, errors = child.end()
    assert (status, rest) == (0, ""), errors
    assert [line[0] for line in lines] == ["asyncio", "uvloop", "tomada"]
    assert {line[-1] for line in lines} == {"intact"}
