"""Proofs of what a model promises: each a function of a model and a batch, which says what it found."""

from zoo.evaluation.checks.bijections import invertible as invertible
from zoo.evaluation.checks.bijections import log_determinant as log_determinant
from zoo.evaluation.checks.fields import fields as fields
from zoo.evaluation.checks.finding import Finding as Finding
from zoo.evaluation.checks.processes import processes as processes
from zoo.evaluation.checks.sequences import causal as causal
from zoo.evaluation.checks.sequences import steps_are_parallel as steps_are_parallel
from zoo.evaluation.checks.weights import recomputed as recomputed
from zoo.evaluation.checks.weights import round_trip as round_trip
from zoo.evaluation.checks.weights import samples_fit as samples_fit
from zoo.evaluation.checks.weights import trains as trains

__all__ = [
    "Finding",
    "causal",
    "fields",
    "invertible",
    "log_determinant",
    "processes",
    "recomputed",
    "round_trip",
    "samples_fit",
    "steps_are_parallel",
    "trains",
]
