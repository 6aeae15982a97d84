"""Run the code of a document from top to bottom, as a reader would.

Each document has a folder. Its fenced blocks are handled in order:

* ``python title="server.py"`` writes a file.
* ``python`` is a program, which runs to its end.
* ``console`` has commands after a ``$``, each followed by its output.
* ``text`` after such a block is the program's output; elsewhere it is a drawing.
* ``ini`` is a systemd unit, which must be valid; ``yaml`` and ``json`` are parsed.
* ``toml`` writes a file for ``tomada serve``, which must be valid.

In output, ``…`` stands for any text, and alone on a line for any lines. As the last line of a
command's output it means that the command keeps running until the document ends. The port 1234 is
replaced by a free one. ``sudo`` runs a command in a network of the document's own, whose namespaces
end with the document. The comment ``<!-- skip: next "reason" -->`` skips a block.
"""

import ast
import configparser
import json
import os
import re
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path
from unittest import SkipTest

import pytest
import yaml
from sybil import Region, Sybil
from sybil.parsers.markdown import SkipParser
from sybil.parsers.markdown.lexers import RawFencedCodeBlockLexer

import skips
from support import DEVELOPMENT, Child
from tomada._cli.options import OPTIONS
from tomada._config import resolve

ROOT = Path(__file__).parents[2]
ANY = "…"
# The packages that a program may import in addition to the standard library and tomada.
PEERS = {
    "aiocoap",
    "anyio",
    "dns",
    "numpy",
    "prometheus_client",
    "sniffio",
    "trio",
    "uvloop",
}
INFO = re.compile(r'(?P<language>\w*)(?: title="(?P<title>[^"]*)")?(?P<rest>[^\n]*)\n')
# How long a program may print nothing, in seconds. In development mode, a hypothesis search takes
# 13 seconds of CPU time.
DEADLINE = 100
# Named namespaces are files in /run/netns.
NETWORK = "mount -t tmpfs tmpfs /run && echo made && exec sleep infinity"
SUDO = """#!/bin/sh
exec nsenter --target {pid} --net --mount --wd="$PWD" -- "$@"
"""
COMMAND = re.compile(r"^\$ ([^\n]*)\n((?:(?!\$ )[^\n]*\n)*)", re.MULTILINE)


def documents():
    """Find the documents, by their paths in the repository."""
    found = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]
    return sorted(str(path.relative_to(ROOT)) for path in found)


def run_document(name, folder, port):
    """Run the blocks of a document in a folder."""
    with Reader(folder, port) as reader:
        parsers = [reader.parse, SkipParser()]
        for example in Sybil(parsers=parsers).parse(ROOT / name).examples():
            try:
                example.evaluate()
            except SkipTest:
                continue
            except Exception as error:
                error.add_note(f"in {name}, line {example.line}")
                raise


def packages_of(source):
    """Return the packages that a program imports."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {name.name.partition(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add(node.module.partition(".")[0])
    return names


def fits(pattern, line):
    """Return whether a line of output matches the document."""
    parts = map(re.escape, pattern.rstrip().split(ANY))
    return re.fullmatch(".*".join(parts), line.rstrip()) is not None


class Reader:
    """A document being run: its folder, and the programs that it has started."""

    def __init__(self, folder, port):
        self._folder = folder
        self._port = str(port)
        self._running = []
        self._printed = None
        self._count = 0
        self._environment = os.environ | {
            **DEVELOPMENT,
            "PATH": os.pathsep.join(
                [f"{folder}/bin", str(Path(sys.executable).parent), os.environ["PATH"]]
            ),
            "PYTHONUNBUFFERED": "1",
            "COLUMNS": "80",
            "TMPDIR": str(folder),  # killed programs leave their temporary files here
        }

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for child in self._running:
            child.__exit__()

    def parse(self, document):
        """Find the fenced blocks: a parser for sybil."""
        for region in RawFencedCodeBlockLexer(INFO)(document):
            lexemes = region.lexemes
            language, title, rest = (lexemes[name] or "" for name in ("language", "title", "rest"))
            action = getattr(self, f"_{language}", None)
            assert action is not None, f"{document.path}: nothing runs a block of {language!r}"
            assert not rest, f"{document.path}: what does {rest!r} mean?"
            source = self._with_port(lexemes["source"])
            yield Region(region.start, region.end, (title, source), self._evaluator(action))

    @staticmethod
    def _evaluator(action):
        return lambda example: action(*example.parsed)

    def _with_port(self, text):
        return re.sub(r"\b1234\b", self._port, text)

    def _start(self, *arguments, **options):
        child = Child(*arguments, cwd=self._folder, env=self._environment, **options)
        self._running.append(child)
        return child

    def _python(self, title, source):
        self._printed = None
        path = self._folder / title
        if not title:
            self._count += 1
            path = self._folder / f"program{self._count}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(source, encoding="utf-8")
        for package in packages_of(source) & PEERS:
            if find_spec(package) is None:
                pytest.skip(f"{package} is not installed")
        if not title:
            status, self._printed, errors = self._start(path).end(DEADLINE)
            if skips.NO_DTLS in errors:
                pytest.skip(skips.NO_DTLS)
            assert (status, errors) == (0, ""), self._printed + errors

    def _provide_sudo(self):
        sudo = self._folder / "bin" / "sudo"
        if sudo.exists():
            return
        if not skips.is_privileged():
            pytest.skip(f"{skips.NO_ROOT} create networks")
        network = self._start("--net", "--mount", "sh", "-c", NETWORK, program="unshare")
        assert network.line() == "made"
        sudo.parent.mkdir()
        sudo.write_text(SUDO.format(pid=network.pid), encoding="utf-8")
        sudo.chmod(0o755)

    def _console(self, _, source):
        for line, shown in COMMAND.findall(source):
            # The tests themselves run under make.
            command = re.sub("^make ", f"make --dry-run -C {ROOT} ", line)
            if line.startswith("sudo "):
                self._provide_sudo()
            # A terminal shows standard error as well.
            child = self._start("-c", f"exec 2>&1\n{command}", program="/bin/sh")
            self._read(child, shown.splitlines())

    def _read(self, child, shown):
        self._printed = None
        lasts = shown[-1:] == [ANY]
        if lasts:
            shown = shown[:-1]
        may_skip = False
        for pattern in shown:
            if pattern == ANY:
                may_skip = True
                continue
            line = child.line(DEADLINE)
            while may_skip and not fits(pattern, line):
                line = child.line(DEADLINE)
            assert fits(pattern, line), f"it prints {line!r}, but the document shows {pattern!r}"
            may_skip = False
        if not lasts:
            status, rest, errors = child.end(DEADLINE)
            assert status == 0, rest + errors
            assert not shown or may_skip or not rest, f"it prints {rest!r}, which is not shown"

    def _text(self, _, source):
        printed, self._printed = self._printed, None
        if printed is not None:
            shown = source.splitlines()
            pattern = "".join(
                "(?s:.*)" if line == ANY else ".*".join(map(re.escape, line.split(ANY))) + "\n"
                for line in shown
            )
            assert re.fullmatch(pattern, printed), f"it prints\n{printed}\nbut shown is\n{source}"

    def _toml(self, title, source):
        path = self._folder / title
        path.write_text(source, encoding="utf-8")
        resolve(OPTIONS, {}, {}, str(path))

    @staticmethod
    def _yaml(_, source):
        assert yaml.safe_load(source)

    @staticmethod
    def _json(_, source):
        assert json.loads(source)

    def _ini(self, title, source):
        unit = configparser.ConfigParser(strict=False, interpolation=None)
        unit.optionxform = str
        unit.read_string(source)
        assert unit.sections()
        # The unit's program is not installed, so replace it by one that exists.
        source = re.sub(r"=/opt/\S+/bin/\w+", "=/bin/true", source)
        (self._folder / title).write_text(source, encoding="utf-8")
        if shutil.which("systemd-analyze"):
            verify = self._start("verify", self._folder / title, program="systemd-analyze")
            _, output, errors = verify.end(DEADLINE)
            assert title not in output + errors, output + errors
