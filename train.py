"""Train one model on one dataset: train.py model=transformer dataset=tinyshakespeare (all choices: --help)."""

from zoo.config import command


@command("train")
def main(config):
    from hydra.core.hydra_config import HydraConfig

    from zoo.jobs import compose
    from zoo.jobs.train import train

    whole = compose.plain(config)
    if config.resume is None:
        train(whole, compose.name_of(whole))
        return
    stored, folder = compose.resumed(whole, list(HydraConfig.get().overrides.task))
    train(stored, folder.name, folder=folder, allow=())


if __name__ == "__main__":
    main()
