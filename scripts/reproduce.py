"""Run a paper's row and say whether its number comes out: uv run scripts/reproduce.py experiment=vae/binarized_mnist

What ran before is not trained again. Status 0: every number is within its tolerance; 2: one is not, or there is none to
compare with (a budget of its own, words that change the row); 1: an error.
"""

from zoo.config import command


@command("train")
def main(config):
    from hydra import compose as composed
    from hydra.core.hydra_config import HydraConfig

    from zoo.jobs import compose
    from zoo.jobs.train import train
    from zoo.runs.reproduction import changes, verdicts

    name = HydraConfig.get().runtime.choices.get("experiment")
    if not name:
        raise ValueError(
            "which row is to be reproduced? say experiment=<name>; scripts/list.py experiment names them"
        )
    whole = compose.plain(config)
    said = whole["experiment"]
    print(f"paper     {said['paper']}\nprotocol  {said['protocol']}\nbudget    {said['budget']}", flush=True)
    if not said["published"]:
        print(
            f"not comparable: experiment={name} is a budget of its own, smaller than any paper's; "
            f"train.py experiment={name} runs it"
        )
        raise SystemExit(2)
    words = [
        f"experiment={name}",
        *(w for w in HydraConfig.get().overrides.task if w.startswith("data_dir=")),
    ]
    if changed := changes(compose.plain(composed("train", overrides=words)), whole):
        said["changed"] = changed  # no number of it stands beside the paper's
    run = train(whole, compose.name_of(whole), choices=compose.choices())
    found = verdicts(said, run.results["numbers"])
    for verdict, metric, told in found:
        print(f"{verdict}: {metric} {told}")
    if changed:
        print(f"not comparable: the row was changed in {', '.join(changed)}")
    if changed or any(one.verdict != "within" for one in found):
        raise SystemExit(2)


if __name__ == "__main__":
    main()
