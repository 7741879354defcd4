"""From a command line to a composed config, and from a config to objects. Nothing here imports torch by itself."""

from zoo.config.build import allowed as allowed
from zoo.config.build import build as build
from zoo.config.command import command as command

__all__ = ["allowed", "build", "command"]
