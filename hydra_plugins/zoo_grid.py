"""Hydra's grid of values, of which only what is missing is launched: zoo.jobs.sweep."""

from collections.abc import Sequence
from typing import Any

from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from zoo.config import explain


class Grid(Sweeper):
    """All combinations of the values that a command line, or `params`, lists."""

    def __init__(self, params: DictConfig | None) -> None:
        self.params = params

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Take what Hydra hands over, and make the launcher."""
        self.context, self.config = hydra_context, config
        if "joblib" in config.hydra.launcher._target_:
            raise ValueError(explain.ELSEWHERE["hydra/launcher/joblib"])
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        """Launch the jobs that are missing; with dry_run=true show them all."""
        from zoo.jobs import sweep

        composed = sweep.Composer(self.context, self.config)
        jobs = self.jobs([*(f"{key}={values}" for key, values in (self.params or {}).items()), *arguments])
        if self.config.get("dry_run"):
            from zoo.jobs.plan import show  # torch

            show(jobs, composed)
            return []
        return sweep.run(jobs, composed, self.launch)

    def jobs(self, words: Sequence[str]) -> list[list[str]]:
        """The words of each job: of later words for the same key the last holds."""
        from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
        from hydra.core.override_parser.overrides_parser import OverridesParser

        parser = OverridesParser.create(config_loader=self.context.config_loader)
        return BasicSweeper.split_arguments(parser.parse_overrides(list(words)), None)[0]

    def launch(self, jobs: list[list[str]], first: int) -> Any:
        """Hand jobs to the launcher."""
        return self.launcher.launch(jobs, initial_job_idx=first)
