"""What experiments begin with and no download brings: scripts/prepare.py features dataset=cifar10 [key=value ...]

features   train a small classifier of a dataset's images, in minutes, for the features by which a VQGAN compares
           pictures. It is a run like any other, in `runs`, with its accuracy on the test split; further words are
           those of train.py.
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


def main():
    """Do what the first word says."""
    if sys.argv[1:2] != ["features"] or not any(word.startswith("dataset=") for word in sys.argv):
        print(__doc__.strip(), file=sys.stderr)
        return int(not {"-h", "--help"} & set(sys.argv))
    sys.argv[1:2] = FEATURES
    return features()


if __name__ == "__main__":
    sys.exit(main())
