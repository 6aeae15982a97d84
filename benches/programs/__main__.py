"""Runs one measured program: ``python -m benches.programs MODULE FUNCTION [options]``."""

import importlib
import os

from benches.programs.run import Run, parser

run = parser().parse_args(namespace=Run())
os.sched_setaffinity(0, {run.core})
run.start()
# The soak's programs are elsewhere, and are named with their package.
name = run.program if "." in run.program else f"benches.programs.{run.program}"
getattr(importlib.import_module(name), run.function)(run)
