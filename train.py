"""Train one model on one dataset: train.py model=transformer dataset=tinyshakespeare (all choices: --help)."""

from zoo.config import command


@command("train")
def main(config):
    from hydra.core.hydra_config import HydraConfig

    from zoo.config.sweeps import job
    from zoo.jobs import compose, plan
    from zoo.jobs.match import matched
    from zoo.jobs.train import train

    wait = job() is None  # a sweep has other jobs to do meanwhile
    if config.dry_run:
        if not wait:
            raise ValueError("dry_run=true shows a grid; a search chooses its values as it goes")
        if config.resume is not None:
            raise ValueError(f"dry_run=true shows what would begin, and {config.resume} has begun already")
        return plan.single(config, compose.name_of(config))
    if config.match and config.resume is None:
        config = matched(config)
        print(
            f"match     {config.match.width}={config.match.value}: {config.match.reached:,.0f} {config.match.by}"
        )
    whole = compose.plain(config)
    words = list(HydraConfig.get().overrides.task)
    if whole["experiment"] and (other := compose.changed(words)):
        whole["experiment"]["changed"] = other  # what the paper found does not stand beside it
    if config.resume is None:
        return train(whole, compose.name_of(whole), choices=compose.choices(), wait=wait)
    stored, folder = compose.resumed(whole, words)
    return train(stored, folder.name, folder=folder, allow=(), wait=wait)


if __name__ == "__main__":
    main()
