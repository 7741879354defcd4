"""Draw from a trained run: scripts/sample.py run=runs/<one> n=64 (all keys: --cfg job)."""

from zoo.config import command


@command("sample")
def main(config):
    import torch

    from zoo.jobs import compose, evaluate

    asked = compose.plain(config)
    run, _, model, data, _ = evaluate.opened(asked)
    options = dict(asked["sample"])
    if asked["prompt"] is not None:
        options["prompt"] = evaluate.prompt(data, asked["prompt"], asked["n"])
    y = (
        None
        if asked["y"] is None
        else torch.full((asked["n"],), asked["y"], device=next(model.parameters()).device)
    )
    name = asked["name"] or f"samples-{asked['seed']}"
    path = evaluate.sample(model, data, run, name, n=asked["n"], options=options, seed=asked["seed"], y=y)
    if path.suffix == ".txt":
        print(path.read_text())
    print(f"samples: {path}")


if __name__ == "__main__":
    main()
