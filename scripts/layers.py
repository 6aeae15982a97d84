"""Checks what the Rust modules import from each other: `make lint` runs it.

A *room* is a file or a folder of `src/net` or `src/python`. It may import only rooms of the layers
below its own, so no change of a room concerns those that it is built on. Tests may import anything.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent

# From the bottom up. The rooms of one layer do not know each other.
LAYERS = {
    "net": [
        "sync counters error_class cmsg split address",
        "sys",
        "names meta stats fork_mutex shared_counters waker scratch reuseport multicast gso",
        "counted descriptor guard send_queue shared_options",
        "recv_ring",
        "recv_backlog",
        "socket",
        "reply_source send_backlog",
        "send_limit",
    ],
    "python": [
        "error",
        "audit buffer constants counters",
        "address guard records",
        "batch",
        "socket",
        "send_backlog",
        "server transport",
    ],
}

# Rooms that contain unsafe code. Elsewhere in `src/net`, a block needs its reason here.
UNSAFE = {
    "sys": "system calls",
    "cmsg": "the format consists of pointers",
    "sync": "a cell, as loom's",
    "fork_mutex": "locks are made of unsafe cells",
    "descriptor": "it lends the number that it owns",
    "socket": "it takes over the number that a caller gives up",
    "recv_ring": "a ring that Python's memory views keep alive",
}

# Types that Python knows by the name of what they wrap, and others that still need a name of their own.
NAMESAKES = {"Guard", "Socket"} | {"Delivery", "End", "Received", "Waiting"}


def code_of(path: Path) -> str:
    """Return a file's code without its comments, its strings and its tests."""
    text = re.sub(r"//[^\n]*", "", path.read_text())
    text = re.sub(r'"(?:[^"\\]|\\.)*"', '""', text, flags=re.DOTALL)
    return re.split(r"#\[cfg\((?:all\()?test", text)[0]


def module_of(path: Path) -> list[str]:
    """Return the names that lead from the crate to a file's module."""
    names = list(path.relative_to(ROOT / "src").with_suffix("").parts)
    return names[:-1] if names[-1] == "mod" else names


def expand(tree: str) -> Iterator[str]:
    """Return the paths of a `use` tree, such as `a::{b, c::d}`."""
    head, brace, rest = tree.partition("{")
    if not brace:
        yield tree.strip()
        return
    depth, start = 0, 0
    for index, sign in enumerate(rest):
        if depth == 0 and sign in ",}":
            if rest[start:index].strip():
                yield from (head.strip() + path for path in expand(rest[start:index]))
            start = index + 1
        depth += (sign == "{") - (sign == "}")


def paths_of(code: str) -> Iterator[str]:
    """Return the paths that some code names: those that it imports, and those that it spells out."""
    for tree in re.findall(r"\buse\s+([^;]+);", code):
        yield from expand(" ".join(tree.split()).split(" as ")[0])
    code = re.sub(r"\buse\s+[^;]+;", "", code)
    yield from re.findall(r"\b(?:crate|super)(?:::\w+)+", code)


def absolute(path: str, module: list[str]) -> list[str]:
    """Return a path from the crate on; other crates' paths stay as they are."""
    names = path.replace(" ", "").split("::")
    if names[0] in {"self", "super"}:
        module = list(module)
        while names[0] in {"self", "super"}:
            if names.pop(0) == "super":
                module.pop()
        return module + names
    return names[1:] if names[0] == "crate" else names


def reexports(side: str) -> dict[str, str]:
    """Return for each name that a side's `mod.rs` exports the room that it comes from."""
    found = {}
    code = code_of(ROOT / "src" / side / "mod.rs")
    for tree in re.findall(r"\bpub(?:\([a-z ]+\))? use\s+([^;]+);", code):
        for path in expand(" ".join(tree.split())):
            names = path.replace(" ", "").split("::")
            found[names[-1]] = names[0]
    return found


def check(side: str) -> Iterator[str]:
    """Return what is wrong with the imports of `net` or `python`."""
    level = {
        room: number for number, layer in enumerate(LAYERS[side]) for room in layer.split()
    }
    exported = reexports(side)
    for path in sorted((ROOT / "src" / side).rglob("*.rs")):
        module, code = module_of(path), code_of(path)
        where = path.relative_to(ROOT)
        if len(module) == 1 or path.stem.endswith("tests") or path.stem == "progress":
            continue
        room = module[1]
        if room not in level:
            yield f"{where}: no layer; add it to LAYERS in scripts/layers.py"
            continue
        if side == "net" and "unsafe" in code and room not in UNSAFE:
            yield f"{where}: unsafe code outside of sys; give a reason in scripts/layers.py"
        for names in (absolute(name, module) for name in paths_of(code)):
            if side == "net" and names[0] in {"pyo3", "python"}:
                yield f"{where}: the engine must not know Python, but imports {'::'.join(names)}"
            if names[0] != side or len(names) == 1:
                continue
            other = exported.get(names[1], names[1])
            if other == room:
                continue
            if other not in level:
                yield f"{where}: imports {'::'.join(names)}, which is in no room"
            elif level[other] >= level[room]:
                yield f"{where}: must not import {other}, which is not below {room}"


def namesakes() -> Iterator[str]:
    """Return the names that two types have."""
    found: dict[str, Path] = {}
    kinds = r"^\s*(?:pub(?:\([a-z: ]+\))? )?(?:struct|enum|trait|union) ([A-Z]\w*)"
    for path in sorted((ROOT / "src").rglob("*.rs")):
        for name in set(re.findall(kinds, path.read_text(), flags=re.MULTILINE)):
            where = path.relative_to(ROOT)
            if name in found and name not in NAMESAKES:
                yield f"{where}: {name} is also a type in {found[name]}"
            found[name] = where


def main() -> int:
    """Print what is wrong."""
    wrong = [*check("net"), *check("python"), *namesakes()]
    for line in dict.fromkeys(wrong):
        print(line)
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
