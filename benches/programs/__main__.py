"""Runs one measured program: ``python -m benches.programs MODULE FUNCTION [options]``."""

import importlib
import os

from benches.programs.run import Run, options

chosen = options().parse_args()
os.sched_setaffinity(0, {chosen.core})
program = importlib.import_module(f"benches.programs.{chosen.program}")
getattr(program, chosen.function)(Run(chosen))
