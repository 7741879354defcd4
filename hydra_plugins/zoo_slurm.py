"""Slurm, by submitit's plugin; a job that Slurm killed is a failed one, and the others are waited for."""

from collections.abc import Sequence
from typing import Any
from unittest import mock

from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class Slurm(Launcher):
    """The plugin's launcher, which alone would leave at the first job that ended without a word.

    params    submitit's, as configs/hydra/launcher/slurm.yaml has them
    Before its time is over, and when it is preempted, a job is queued again and goes on from its last checkpoint.
    """

    def __init__(self, **params: Any) -> None:
        from hydra_plugins.hydra_submitit_launcher.submitit_launcher import SlurmLauncher

        self.inner = SlurmLauncher(**params)

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Take what Hydra hands over."""
        self.inner.setup(hydra_context=hydra_context, task_function=task_function, config=config)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Queue all jobs and wait for their ends."""
        import submitit

        wait = submitit.SlurmJob.results

        def results(job: Any) -> list[Any]:
            try:
                return list(wait(job))
            except submitit.core.utils.UncompletedJobError as error:
                print(str(error).splitlines()[0], flush=True)
            lost = JobReturn(status=JobStatus.COMPLETED)
            lost.return_value = None
            return [lost]

        with mock.patch.object(submitit.SlurmJob, "results", results):
            return self.inner.launch(job_overrides, initial_job_idx=initial_job_idx)
