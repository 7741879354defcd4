"""Draw from a trained run: scripts/sample.py run=runs/<one> n=64 (all keys: --cfg job)."""

from zoo.config import command


@command("sample")
def main(config):
    from zoo.jobs import compose, evaluate

    asked = compose.plain(config)
    if asked["n"] < 1:
        raise ValueError(f"n={asked['n']}: at least one sample must be drawn")
    run, _, model, data, weights = evaluate.opened(asked)
    options = dict(asked["sample"])
    if asked["prompt"] is not None:
        options["prompt"] = evaluate.prompt(data, asked["prompt"], asked["n"])
    path = evaluate.sample(
        model,
        data,
        run,
        asked["name"] or f"samples-{asked['seed']}",
        n=asked["n"],
        options=options,
        seed=asked["seed"],
        y=evaluate.labels(model, data, asked["y"], asked["n"]),
        step=weights["step"],
    )
    if path.suffix == ".txt":
        print(path.read_text())
    print(f"samples: {path}")


if __name__ == "__main__":
    main()
