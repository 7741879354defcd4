"""Draw from a trained run: scripts/sample.py run=runs/<one> n=64 (all keys: --cfg job)."""

from zoo.config import command

WAYS = ("interpolate", "given", "along", "prompt")


@command("sample")
def main(config):
    from zoo.jobs import complete, compose, evaluate, interpolate, invert, reconstruct, samples, stages

    asked = compose.plain(config)
    if asked["n"] < 1:
        raise ValueError(f"n={asked['n']}: at least one sample must be drawn")
    options = dict(asked["sample"])
    ways = [f"{key}={asked[key]}" for key in WAYS if asked[key] is not None]
    if len(ways) > 1:
        raise ValueError(f"{' and '.join(ways)} are ways to draw that do not go together; it takes one")
    spare = [key for key in ("y", "caption") if asked[key] is not None] + [f"sample.{key}" for key in options]
    coded = asked["interpolate"] is not None or asked["given"] == reconstruct.GIVEN
    if coded and spare:
        raise ValueError(f"{ways[0]} shows what a model codes of images and takes no {spare[0]}")
    run, _, model, data, weights = evaluate.opened(asked)
    if asked["interpolate"] is not None:
        name = asked["name"] or "interpolation"
        many = {"n": asked["n"], "steps": asked["interpolate"], "step": weights["step"]}
        print(f"interpolation: {interpolate.interpolate(model, data, run, name, **many)}")
        return
    if asked["given"] == reconstruct.GIVEN:
        name = asked["name"] or reconstruct.GIVEN
        many = {"n": asked["n"], "seed": asked["seed"], "step": weights["step"]}
        print(f"reconstruction: {reconstruct.reconstruct(model, data, run, name, **many)}")
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
