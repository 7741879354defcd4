"""Measurements, each with its protocol. It knows contracts, never a model by name."""

from zoo.evaluation.health import health as health
from zoo.evaluation.interpolation import interpolated as interpolated
from zoo.evaluation.length import by_length as by_length
from zoo.evaluation.likelihood import likelihood as likelihood
from zoo.evaluation.likelihood import options_in_force as options_in_force
from zoo.evaluation.samples import draw as draw
from zoo.evaluation.samples import drawn as drawn
from zoo.evaluation.samples import grid as grid
from zoo.evaluation.samples import nfe as nfe
from zoo.evaluation.samples import save as save
from zoo.evaluation.samples import told as told
from zoo.evaluation.samples import write_png as write_png
from zoo.evaluation.speed import speed as speed
from zoo.evaluation.stride import strided as strided

__all__ = [
    "by_length",
    "draw",
    "drawn",
    "grid",
    "health",
    "interpolated",
    "likelihood",
    "nfe",
    "options_in_force",
    "save",
    "speed",
    "strided",
    "told",
    "write_png",
]
