"""A dataset's splits in batches: held to their facts, with chance keyed before each batch is read."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader

from zoo import chance
from zoo.training.batches import Batches, Once, Place, pieces
from zoo.training.facts import Gathered, batched, check, fingerprint
from zoo.training.stopping import patient


class Keyed:
    """A dataset read by (place, indices): whichever process does it, chance is keyed to the place first."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, where: tuple[Place, Tensor]) -> dict[str, Tensor]:
        place, indices = where
        with place.chance():
            return self.dataset[indices]


class Direct:
    """What DataLoader does without workers, at a fraction of its cost: this process reads when asked."""

    batch_sampler = None  # Lightning looks for it in whatever has a sampler

    def __init__(self, dataset: Keyed, sampler: Batches | Once) -> None:
        self.dataset, self.sampler = dataset, sampler  # Lightning calls sampler.set_epoch

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        return (self.dataset[where] for where in self.sampler)


class Loaders(LightningDataModule):
    """The splits of a dataset in batches, held to the facts that its YAML states.

    source        split -> dataset; LookupError where there is no such split
    facts         name, shape, levels, classes, sizes {split: n | None} as in configs/dataset; what is
                  missing is not checked
    batch_size    examples per optimizer step, over all devices and accumulated micro-batches
    data_device   "cpu", or a device that the data are moved to as a whole (`dataset.to`)
    Trainer needs use_distributed_sampler=False. Batches are bitwise the same for any num_workers.
    Raises ValueError where data and facts differ; a first batch of every split is compared.
    """

    def __init__(
        self,
        source: Callable[..., Any],
        facts: Mapping[str, Any],
        *,
        batch_size: int,
        seed: int,
        num_workers: int = 0,
        accumulate: int = 1,
        data_device: str = "cpu",
    ) -> None:
        super().__init__()
        if num_workers < 0:
            raise ValueError(f"num_workers={num_workers} must be 0 (read in this process) or more")
        if num_workers and data_device != "cpu":
            raise ValueError(f"data_device={data_device} is read by this process alone; set num_workers=0")
        self.source, self.facts = source, dict(facts)
        self.batch_size, self.seed, self.accumulate = batch_size, seed, accumulate
        self.num_workers, self.data_device = num_workers, data_device
        self.fingerprints: dict[str, str] = {}
        self.begin = (0, 0)
        self._datasets: dict[str, Any] = {}

    def dataset(self, split: str) -> Any:
        """The checked dataset of a split, indexed by a batch of indices; LookupError where there is none."""
        if split not in self._datasets:
            dataset = self._made(split)
            chance.at("facts", split)
            if not batched(dataset):
                dataset = Gathered(dataset)
            check(dataset, split, self.facts)
            self.fingerprints[split] = fingerprint(dataset)
            if self.data_device != "cpu":
                dataset = self._moved(dataset)
            self._datasets[split] = dataset
        return self._datasets[split]

    def has(self, split: str) -> bool:
        """Whether there is such a split."""
        try:
            self.dataset(split)
        except LookupError as error:
            if type(error) is not LookupError:  # a KeyError or IndexError is a fault of the source
                raise
            return False
        return True

    def replace(self, split: str, dataset: Any) -> None:
        """Take another dataset of the same examples for a split: one that knows more of each."""
        self._datasets[split] = dataset

    def start(self, epoch: int, batch: int) -> None:
        """Before fit: the training begins in this epoch, after this many of its micro-batches."""
        self.begin = (epoch, batch)

    def setup(self, stage: str | None = None) -> None:
        self.dataset("train")
        self.has("val")

    def loader(self, split: str, size: int | None = None, some: int | None = None) -> Direct | DataLoader:
        """What a training reads: micro-batches of "train"; of others each example once, over all its ranks.

        size    to a batch, of each example once for this process alone: for what is measured before or after
        some    only so many examples, evenly spread over the split
        """
        dataset = self.dataset(split)
        shared = size is None and self.trainer
        world, rank = (self.trainer.world_size, self.trainer.global_rank) if shared else (1, 0)
        if split == "train" and size is None:
            batches: Batches | Once = Batches(
                len(dataset),
                self.batch_size,
                seed=self.seed,
                accumulate=self.accumulate,
                world=world,
                rank=rank,
            )
            batches.start(*self.begin)
        else:
            size = size or self.batch_size // pieces(self.batch_size, self.accumulate, world)
            batches = Once(len(dataset), size, seed=self.seed, split=split, world=world, rank=rank, some=some)
        if self.num_workers == 0:
            return Direct(Keyed(dataset), batches)
        return DataLoader(
            Keyed(dataset),
            batch_size=None,
            sampler=batches,
            collate_fn=same,
            num_workers=self.num_workers,
            persistent_workers=True,
            worker_init_fn=patient,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # it draws a seed for the workers, which shall not come from ours
        )

    def train_dataloader(self) -> Direct | DataLoader:
        return self.loader("train")

    def val_dataloader(self) -> Direct | DataLoader | list:
        return self.loader("val") if self.has("val") else []

    def measuring(self) -> Iterator[dict[str, Tensor]]:
        """Training batches for `model.prepare`: whole steps of the first epoch, the same on every rank."""
        dataset = self.dataset("train")
        for place, indices in Batches(len(dataset), self.batch_size, seed=self.seed, split="prepare"):
            with place.chance():
                batch = dataset[indices]
            yield batch

    def _made(self, split: str) -> Any:
        name, size = self.facts.get("name", "the config"), (self.facts.get("sizes") or {}).get(split)
        if size == 0:
            raise LookupError(f"{name} says there is no {split} split")
        try:
            return self.source(split=split)
        except LookupError as error:
            if size and type(error) is LookupError:
                raise ValueError(f"{name} says {split} has {size} examples, but: {error}") from None
            raise

    def _moved(self, dataset: Any) -> Any:
        if not callable(getattr(dataset, "to", None)):
            raise ValueError(
                f"{type(dataset).__name__} cannot move to {self.data_device}; set data_device=cpu"
            )
        return dataset.to(self.data_device) or dataset


def same(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The batch as the dataset made it; there is nothing to collate."""
    return batch
