"""Draw from a trained run: scripts/sample.py run=runs/<one> n=64 (all keys: --cfg job)."""

from zoo.config import command


@command("sample")
def main(config):
    from zoo.jobs import complete, compose, evaluate, interpolate, invert, samples, stages

    asked = compose.plain(config)
    if asked["n"] < 1:
        raise ValueError(f"n={asked['n']}: at least one sample must be drawn")
    run, _, model, data, weights = evaluate.opened(asked)
    options = dict(asked["sample"])
    if asked["interpolate"] is not None:
        name = asked["name"] or "interpolation"
        many = {"n": asked["n"], "steps": asked["interpolate"], "step": weights["step"]}
        print(f"interpolation: {interpolate.interpolate(model, data, run, name, **many)}")
        return
    if asked["caption"] is None:
        y = samples.labels(model, data, asked["y"], asked["n"])
    elif asked["y"] is not None:
        raise ValueError(f"y={asked['y']} and caption= are two conditions; it takes one")
    else:
        y = samples.caption(model, data, asked["caption"], asked["n"])
    if asked["given"] == invert.GIVEN:
        name = asked["name"] or invert.GIVEN
        many = {"n": asked["n"], "options": options, "y": y, "step": weights["step"]}
        path, error = invert.invert(model, data, run, name, **many)
        print(f"inversion: {path}, {error:.3f} levels from the images")
        return
    if asked["given"] is not None:
        if asked["prompt"] is not None:
            raise ValueError(f"prompt= and given={asked['given']} are two beginnings; it takes one")
        path = complete.complete(
            model,
            data,
            run,
            asked["name"] or f"completions-{asked['seed']}",
            given=asked["given"],
            n=asked["n"],
            each=asked["completions"],
            options=options,
            seed=asked["seed"],
            y=y,
            step=weights["step"],
        )
        print(f"completions: {path}")
        return
    if asked["along"] is not None:
        many = {"n": asked["n"], "columns": asked["along"], "options": options, "y": y}
        path = stages.stages(
            model, data, run, asked["name"] or "along", seed=asked["seed"], step=weights["step"], **many
        )
        print(f"along the path: {path}")
        return
    if asked["prompt"] is not None:
        options["prompt"] = samples.prompt(data, asked["prompt"], asked["n"])
    path = samples.sample(
        model,
        data,
        run,
        asked["name"]
        or "-".join([f"samples-{asked['seed']}", *(f"{k}={v}" for k, v in asked["sample"].items())]),
        n=asked["n"],
        options=options,
        seed=asked["seed"],
        y=y,
        step=weights["step"],
    )
    if path.suffix == ".txt":
        print(path.read_text())
    print(f"samples: {path}")


if __name__ == "__main__":
    main()
