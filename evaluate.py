"""Measure a trained run: evaluate.py run=runs/<one> log_prob.samples=1000 (all keys: --cfg job)."""

from zoo.config import command


@command("evaluate")
def main(config):
    import torch

    import zoo
    from zoo.jobs import compose, evaluate
    from zoo.jobs.data import loaders, moved
    from zoo.loading import device_of, load_weights
    from zoo.runs import Run

    asked = compose.plain(config)
    if asked["threads"]:
        torch.set_num_threads(asked["threads"])
    run = Run.open(asked["run"])
    stored = run.config
    moved(None, stored["dataset"], asked["data_dir"], stored["data_dir"])
    model = zoo.load(run.folder, weights=asked["weights"], device=device_of(asked["device"]), allow=asked["allow"])
    weights = load_weights(model, run, asked["weights"])
    data = loaders(stored, stored=True, allow=asked["allow"])
    splits = [split for split in asked["splits"] if data.has(split)]
    numbers = evaluate.measure(
        model,
        data,
        splits=splits or asked["splits"],
        log_prob=asked["log_prob"],
        weights=weights,
        seed=asked["seed"],
        batch_size=asked["batch_size"],
    )
    evaluate.add(run, numbers)
    print(evaluate.told(numbers))
    picture = evaluate.sample(
        model, data, run, "evaluated", n=asked["n"], options=asked["sample"], seed=asked["seed"]
    )
    print(f"results: {run.results_path}" + (f"\nsamples: {picture}" if picture else ""))


if __name__ == "__main__":
    main()
