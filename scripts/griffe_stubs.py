"""A griffe extension for stubs, and for docstrings with Sphinx roles.

In a stub, a function may have only overloads, which griffe does not recognize as a function. The
socket class gets the methods of its base in the core, under its public name. In docstrings, Sphinx
roles and names of manual pages become Markdown links, and literal blocks become fenced ones.
Comments that begin with ``#:`` above an attribute become its docstring.
"""

from __future__ import annotations

import builtins
import re
import sys
import textwrap
from typing import Any

import griffe

ROLE = re.compile(r":(?:py:)?(class|meth|attr|func|mod|data|exc|pep|rfc):`(~?)([^`<]+)`")
MANUAL = re.compile(r"``?([a-z_]\w*)\((\d)\)``?")

LITERAL = re.compile(r"^(.*)::\n\n((?:(?: {4}.*)?\n)+)", re.MULTILINE)

# Methods that pass on their arguments, with the object itself as the first one.
FORWARDED = {"asyncio.EventLoop.create_datagram_endpoint": "asyncio.create_datagram_endpoint"}
# Classes of the core whose members the reference shows as those of another class.
SHOWN = {
    "tomada._core.DtlsContext": "tomada.dtls.Context",
    "tomada._core.Socket": "tomada.socket.socket",
    "tomada._sockets.socket": "tomada.socket.socket",
}
PYTHON = "https://docs.python.org/3/library/"
MANUALS = "https://man7.org/linux/man-pages"


class Stubs(griffe.Extension):
    """Completes a package after it is loaded."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """Complete the package's modules, classes and functions."""
        self._complete(pkg, pkg)
        _publish_socket(pkg)
        for method, function in FORWARDED.items():
            own, *_ = pkg[method].parameters
            pkg[method].parameters = griffe.Parameters(own, *list(pkg[function].parameters)[1:])

    def _complete(self, obj: Any, package: griffe.Module) -> None:
        if isinstance(obj, griffe.Module | griffe.Class):
            for name, overloads in obj.overloads.items():
                if name not in obj.members and overloads:
                    obj.set_member(name, _function(name, overloads))
            obj.overloads.clear()
            if "__new__" in obj.members and "__init__" not in obj.members:
                obj.set_member("__init__", obj.members["__new__"])
            for member in list(obj.members.values()):
                if not member.is_alias:
                    self._complete(member, package)
        if obj.docstring is None and obj.is_attribute and (text := _comment_above(obj)):
            obj.docstring = griffe.Docstring(text, parent=obj)
        if obj.docstring is not None:
            obj.docstring.value = _links(obj.docstring.value, obj, package)


def _publish_socket(package: griffe.Module) -> None:
    cls, base = package["_sockets.socket"], package["_core.Socket"]
    for member in cls.members.values():
        member.lineno = (member.lineno or 0) + base.endlineno  # below the others
    for name, member in base.members.items():
        if name not in cls.members and not name.startswith("_"):
            cls.set_member(name, member)
    cls.docstring = griffe.Docstring(base.docstring.value, parent=cls)
    private, public = package["_sockets"], package["socket"]
    private.members["socket"] = griffe.Alias("socket", "tomada.socket.socket", parent=private)
    public.members["socket"] = cls
    cls.parent = public


def _comment_above(attribute: griffe.Attribute) -> str:
    lines: list[str] = []
    source = attribute.lines_collection[attribute.filepath][: (attribute.lineno or 1) - 1]
    for line in reversed(source):
        if not line.strip().startswith("#:"):
            break
        lines.insert(0, line.strip().removeprefix("#:").strip())
    return "\n".join(lines)


def _function(name: str, overloads: list[griffe.Function]) -> griffe.Function:
    first, longest = overloads[0], max(overloads, key=lambda one: len(one.parameters))
    function = griffe.Function(
        name,
        lineno=first.lineno,
        endlineno=overloads[-1].endlineno,
        parameters=longest.parameters,
        returns=first.returns,
        docstring=first.docstring,
    )
    function.overloads = overloads
    if function.docstring is not None:
        function.docstring.parent = function
    return function


def _links(text: str, obj: griffe.Object, package: griffe.Module) -> str:
    text = MANUAL.sub(rf"[`\1(\2)`]({MANUALS}/man\2/\1.\2.html)", text)
    text = ROLE.sub(lambda role: _link(*role.groups(), obj, package), text)
    return LITERAL.sub(_fenced, text.replace("``", "`") + "\n")


def _fenced(block: re.Match[str]) -> str:
    text = f"{block[1]}:" if block[1].strip() else ""
    return f"{text}\n\n```python\n{textwrap.dedent(block[2]).strip()}\n```\n\n"


def _link(role: str, is_short: str, target: str, obj: Any, package: griffe.Module) -> str:
    shown = target.rpartition(".")[2] if is_short else target
    shown += "()" if role == "meth" else ""
    shown = f"{role.upper()} {target}" if role in {"pep", "rfc"} else shown
    if role == "mod":
        return f"`{shown}`"  # only members of modules have pages
    place = _ours(target, obj, package)
    if place is not None:
        for base, cls in SHOWN.items():
            if place == base or place.startswith(f"{base}."):
                place = cls + place.removeprefix(base)
        return f"[`{shown}`][{place}]"
    place = _elsewhere(role, target)
    return f"[`{shown}`]({place})" if place else f"`{shown}`"


def _ours(target: str, obj: Any, package: griffe.Module) -> str | None:
    scope: Any = obj
    while scope is not None:
        if path := _path(scope, target):
            return path
        scope = scope.parent
    if not target.startswith(f"{package.name}."):
        return None
    return _path(package, target.removeprefix(f"{package.name}.")) or target


def _elsewhere(role: str, target: str) -> str | None:
    module = target.partition(".")[0]
    if role == "pep":
        return f"https://peps.python.org/pep-{int(target):04}/"
    if role == "rfc":
        return f"https://www.rfc-editor.org/rfc/rfc{target}"
    if hasattr(builtins, target):
        return f"{PYTHON}exceptions.html#{target}"
    if module == "asyncio":
        return f"{PYTHON}asyncio.html"  # asyncio's names are spread over many pages
    return f"{PYTHON}{module}.html#{target}" if module in sys.stdlib_module_names else None


def _path(scope: griffe.Object, target: str) -> str | None:
    """Return the full name of a name in a scope."""
    if scope.name == target and not scope.is_module:
        return scope.path
    try:
        return scope[target].canonical_path if target else None
    except (KeyError, griffe.AliasResolutionError):
        return None
