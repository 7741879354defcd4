"""The run directory: identity, results, tables of comparison. Nothing here imports torch."""

from zoo.runs.environment import environment as environment
from zoo.runs.environment import version as version
from zoo.runs.folder import DIGITS as DIGITS
from zoo.runs.folder import Run as Run
from zoo.runs.folder import find as find
from zoo.runs.folder import runs as runs
from zoo.runs.identity import execution as execution
from zoo.runs.identity import identity as identity

__all__ = ["DIGITS", "Run", "environment", "execution", "find", "identity", "runs", "version"]
