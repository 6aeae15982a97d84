"""The kernel's constants that the standard ``socket`` module lacks."""

from tomada import _core

__all__ = list(_core.CONSTANTS)

globals().update(_core.CONSTANTS)
