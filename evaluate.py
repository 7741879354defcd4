"""Measure a trained run: evaluate.py run=runs/<one> log_prob.samples=1000 (all keys: --cfg job)."""

from zoo.config import command


@command("evaluate")
def main(config):
    from zoo.jobs import compose, evaluate, measure, samples, tell

    asked = compose.plain(config)
    run, stored, model, data, weights = evaluate.opened(asked)
    logs = evaluate.loggers(asked["logger"], run, stored, job_type="eval")
    try:
        numbers, curves = measure.answered(
            model,
            data,
            asked,
            weights,
            seed=asked["seed"],
            batch_size=asked["batch_size"],
            places=evaluate.places(asked, run),
        )
        evaluate.add(run, numbers, curves)
        print(tell.told(numbers))
        path = samples.sample(
            model,
            data,
            run,
            "evaluated",
            n=asked["n"],
            options=asked["sample"],
            seed=asked["seed"],
            loggers=logs,
            step=weights["step"],
        )
        evaluate.show(numbers, logs, weights["step"])
    finally:
        for log in logs:
            log.finish()
    print(f"results: {run.results_path}" + (f"\nsamples: {path}" if path else ""))


if __name__ == "__main__":
    main()
