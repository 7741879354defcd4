"""The types of the top-level keys and of those in `evaluate`: YAML alone would take `seed=abc`.

All else is typed by constructors' signatures.
"""

from dataclasses import dataclass, field, is_dataclass
from typing import Any


@dataclass
class Measured:
    """The keys of configs/evaluation, which are in both; what they mean is said there."""

    weights: str = "best"
    splits: list[str] = field(default_factory=lambda: ["test"])
    examples: int | None = None
    metrics: list[str] | None = None
    samples: int = 10_000
    reference: str = "train"
    features: str | None = None
    stride: int | None = None
    lengths: Any = None  # a measurement of its own says what it takes
    speed: bool = False
    log_prob: dict[str, Any] = field(default_factory=dict)
    sample: dict[str, Any] = field(default_factory=dict)
    n: int = 64


@dataclass
class Train:
    """The keys of configs/train.yaml; what they mean is said there."""

    seed: int = 0
    name: str | None = None
    runs: str = "runs"
    data_dir: str = "data"
    batch_size: int = 128
    num_workers: int = 0
    data_device: str = "cpu"
    ema: Any = None
    gradient_checkpointing: Any = "none"
    checkpoint_every: int | None = 1000
    keep: int | None = 2
    threads: int | None = None
    train_flops: float | None = None
    init: str | None = None
    resume: str | None = None
    rerun: bool = False
    dry_run: bool = False
    match: Any = None
    optimize: str = "val/loss"
    dataset: Any = None
    model: Any = None
    optimizer: Any = None
    schedule: Any = None
    trainer: Any = None
    logger: Any = None
    callbacks: Any = None
    evaluate: Measured = field(default_factory=Measured)
    debug: Any = None
    experiment: Any = None


@dataclass
class Evaluate(Measured):
    """The keys of configs/evaluate.yaml; what they mean is said there."""

    run: str = "???"
    batch_size: int | None = None
    seed: int = 0
    data_dir: str = "data"
    device: str = "auto"
    threads: int | None = None
    allow: list[str] = field(default_factory=list)
    logger: Any = None
    debug: Any = None


@dataclass
class Sample:
    """The keys of configs/sample.yaml; what they mean is said there."""

    run: str = "???"
    weights: str = "best"
    n: int = 64
    y: int | None = None
    caption: str | None = None
    prompt: str | None = None
    given: str | None = None
    completions: int = 4
    interpolate: int | None = None
    along: int | None = None
    seed: int = 0
    name: str | None = None
    data_dir: str = "data"
    device: str = "auto"
    threads: int | None = None
    allow: list[str] = field(default_factory=list)
    sample: dict[str, Any] = field(default_factory=dict)
    debug: Any = None


SCHEMAS = {"train": Train, "evaluate": Evaluate, "sample": Sample}


def check(config: Any, schema: type, above: str = "") -> None:
    """Hold a composed config's scalars to their types. ValueError: "seed=abc: ... not be converted to Integer".

    above   where the config stands in the whole: "evaluate."
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import ValidationError

    typed = OmegaConf.structured(schema)
    for name in typed:
        if name in config and not OmegaConf.is_missing(config, name):
            value = config[name]
            if OmegaConf.is_dict(value) and is_dataclass(inner := OmegaConf.get_type(typed, name)):
                check(value, inner, f"{above}{name}.")
                continue
            try:
                typed[name] = value
            except ValidationError as error:
                raise ValueError(f"{above}{name}={value}: {str(error).splitlines()[0]}") from None
