"""What experiments begin with and no download brings.

scripts/prepare.py features dataset=cifar10 [key=value ...]
scripts/prepare.py reflow run=runs/<one> [key=value ...]

features   train a small classifier of a dataset's images, in minutes, for the features by which a VQGAN compares
           pictures. It is a run like any other, in `runs`, with its accuracy on the test split; further words are
           those of train.py.
reflow     draw pairs of noise and data by the ODE of a trained flow (rectified flow, ot_cfm ...), with its averaged
           weights if it has some, for dataset=reflow: 2-rectified flow, and with time_sampler=at one-step
           distillation. Further words are those of scripts/sample.py: n=50000 pairs, sample.solver=rk45; name= is a
           folder in data_dir, else reflow.
"""

import sys

from zoo.config import command

FEATURES = (
    "model=image_classifier",
    "optimizer=adamw",
    "optimizer.lr=2e-3",
    "schedule=cosine",
    "schedule.warmup=50",
    "trainer.max_steps=1000",
    "trainer.val_check_interval=250",
)


@command("train")
def features(config):
    """Train the classifier, and say how a VQGAN is given it."""
    from zoo.jobs import compose
    from zoo.jobs.train import train

    whole = compose.plain(config)
    run = train(whole, whole["name"] or f"features-{whole['dataset']['name']}")
    print(f"for a VQGAN: train.py model=vqgan dataset={whole['dataset']['name']} perceptual.run={run.folder}")


@command("sample")
def reflow(config):
    """Draw the pairs, and say how a flow is trained on them."""
    from pathlib import Path

    from zoo.jobs import compose, evaluate
    from zoo.jobs.reflow import pairs

    asked = compose.plain(config)
    run, _, model, data, weights = evaluate.opened({**asked, "sample": {}})
    folder = Path(asked["data_dir"]) / (asked["name"] or "reflow")
    which = f"{weights['which']} at step {weights['step']}{', averaged' if weights['averaged'] else ''}"
    path = pairs(
        model, data, run, folder, n=asked["n"], options=asked["sample"], seed=asked["seed"], which=which
    )
    print(
        f"pairs: {path}\nfor a flow: train.py model=rectified_flow dataset=reflow dataset.source.root={folder}"
    )


COMMANDS = {"features": (features, FEATURES, "dataset="), "reflow": (reflow, ("n=50000",), "run=")}


def main():
    """Do what the first word says."""
    run, words, needed = COMMANDS.get(sys.argv[1] if len(sys.argv) > 1 else "", (None, (), ""))
    if run is None or not any(word.startswith(needed) for word in sys.argv):
        print(__doc__.strip(), file=sys.stderr)
        return int(not {"-h", "--help"} & set(sys.argv))
    sys.argv[1:2] = words
    return run()


if __name__ == "__main__":
    sys.exit(main())
