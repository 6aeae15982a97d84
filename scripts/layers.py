"""Checks what the Rust modules import from each other: `make lint` runs it.

A *room* is a file or a folder of `src/net` or `src/python`. It may import only rooms of lower
layers, so a change to a room never affects the rooms that it is built on. Tests may import
anything.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent

# The layers from the bottom up. The rooms of one layer do not import each other.
LAYERS = {
    "net": [
        "sync counters error_class cmsg split address phase",
        "sys",
        "names meta recent stats fork_mutex shared_counters waker scratch reuseport multicast gso",
        "counted descriptor dtls guard send_queue shared_options sink_counters flow_control",
        "proxy_protocol came_through",
        "recv_ring",
        "recv_backlog",
        "socket",
        "reply_source own_address send_backlog deliver",
        "send_limit socket_outlet turns link",
    ],
    "python": [
        "error",
        "audit buffer constants counters",
        "address dtls guard records",
        "link",
        "batch",
        "socket",
        "send_backlog dtls_endpoint event_loop",
        "server transport proxy_protocol",
    ],
}

# Rooms that contain unsafe code. Elsewhere in `src/net`, a block needs its reason here.
UNSAFE = {
    "sys": "system calls",
    "sync": "a cell, as loom's",
    "fork_mutex": "locks are made of unsafe cells",
    "descriptor": "it lends the number that it owns",
    "socket": "it takes over the number that a caller gives up",
    "recv_ring": "a ring that Python's memory views keep alive",
}

# Python classes with the name of the type that they wrap, and a few types still to be renamed.
NAMESAKES = {"Guard", "Socket"}


def code_of(path: Path) -> str:
    """Return a file's code without its comments, its strings and its tests."""
    text = re.sub(r"//[^\n]*", "", path.read_text())
    text = re.sub(r'"(?:[^"\\]|\\.)*"', '""', text, flags=re.DOTALL)
    return re.split(r"#\[cfg\((?:all\()?test", text)[0]


def module_of(path: Path) -> list[str]:
    """Return the path of names from the crate to a file's module."""
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
    """Yield the paths that code imports or writes in full."""
    for tree in re.findall(r"\buse\s+([^;]+);", code):
        yield from expand(" ".join(tree.split()).split(" as ")[0])
    code = re.sub(r"\buse\s+[^;]+;", "", code)
    yield from re.findall(r"\b(?:crate|super)(?:::\w+)+", code)


def absolute(path: str, module: list[str]) -> list[str]:
    """Make a path relative to the crate; leave paths of other crates unchanged."""
    names = path.replace(" ", "").split("::")
    if names[0] in {"self", "super"}:
        module = list(module)
        while names[0] in {"self", "super"}:
            if names.pop(0) == "super":
                module.pop()
        return module + names
    return names[1:] if names[0] == "crate" else names


def reexports(side: str) -> dict[str, str]:
    """Map each name that a side's `mod.rs` exports to the room that it comes from."""
    found = {}
    code = code_of(ROOT / "src" / side / "mod.rs")
    for tree in re.findall(r"\bpub(?:\([a-z ]+\))? use\s+([^;]+);", code):
        for path in expand(" ".join(tree.split())):
            names = path.replace(" ", "").split("::")
            found[names[-1]] = names[0]
    return found


def files_of(side: str) -> Iterator[tuple[Path, list[str], str]]:
    """Yield the files of a side's rooms, except tests, each with its module and its code."""
    for path in sorted((ROOT / "src" / side).rglob("*.rs")):
        module = module_of(path)
        if len(module) > 1 and path.stem not in {"tests", "progress"}:
            yield path.relative_to(ROOT), module, code_of(path)


def check(side: str) -> Iterator[str]:
    """Yield the errors in the imports of `net` or `python`."""
    level = {room: number for number, layer in enumerate(LAYERS[side]) for room in layer.split()}
    exported = reexports(side)
    for path, module, code in files_of(side):
        room = module[1]
        if room not in level:
            yield f"{path}: no layer; add it to LAYERS in scripts/layers.py"
            continue
        for names in (absolute(name, module) for name in paths_of(code)):
            if names[0] == side and len(names) > 1:
                other = exported.get(names[1], names[1])
                if other != room and level.get(other, len(level)) >= level[room]:
                    yield f"{path}: must not import {other}, which is not below {room}"


def check_engine() -> Iterator[str]:
    """Yield the places where the engine depends on Python, or has unsafe code without a reason."""
    for path, module, code in files_of("net"):
        if re.search(r"\bpyo3\b|\bcrate::python\b", code):
            yield f"{path}: the engine must not know Python"
        if "unsafe" in code and module[1] not in UNSAFE:
            yield f"{path}: unsafe code outside of sys; give a reason in scripts/layers.py"


def namesakes() -> Iterator[str]:
    """Yield the names that two types share."""
    found: dict[str, Path] = {}
    kinds = r"^\s*(?:pub(?:\([a-z: ]+\))? )?(?:struct|enum|trait|union) ([A-Z]\w*)"
    for path in sorted((ROOT / "src").rglob("*.rs")):
        for name in set(re.findall(kinds, path.read_text(), flags=re.MULTILINE)):
            where = path.relative_to(ROOT)
            if name in found and name not in NAMESAKES:
                yield f"{where}: {name} is also a type in {found[name]}"
            found[name] = where


def main() -> int:
    """Print all errors; return 1 if there are any."""
    wrong = [*check("net"), *check("python"), *check_engine(), *namesakes()]
    for line in dict.fromkeys(wrong):
        print(line)
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
