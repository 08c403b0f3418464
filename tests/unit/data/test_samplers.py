"""The order of an epoch depends only on (seed, epoch), and a resumed training gets the same batches."""

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, Dataset

from lpips_lightning.data.samplers import EpochSampler, Mirrored, ResumableLoader

# 2026-11-21, pytorch_lightning: its advice on loaders and logging, and on the number of workers.
pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers")


class Numbers(Dataset):
    """Items that know their index."""

    def __init__(self, count=10):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        image = torch.full((3, 2, 2), float(index))
        image[..., 0] += 0.5
        return {"ref": image, "judge": torch.tensor(index / 100), "path": str(index)}


def drawn(sampler, epoch):
    sampler.set_epoch(epoch)
    return list(sampler)


def test_order_depends_on_seed_and_epoch_alone():
    torch.manual_seed(1)
    sampler = EpochSampler(Numbers(), seed=3)
    third = drawn(sampler, 3)
    assert sorted(third) == list(range(10))
    assert drawn(sampler, 4) != third
    torch.manual_seed(2)
    assert drawn(EpochSampler(Numbers(), seed=3), 3) == third
    assert drawn(EpochSampler(Numbers(), seed=4), 2) != third  # seed and epoch are not just added
    with pytest.raises(ValueError, match="seed: expected at least 0, got -1"):
        EpochSampler(Numbers(), seed=-1)


def test_ranks_share_an_epoch_and_the_last_items_repeat_the_first():
    whole = drawn(EpochSampler(Numbers(10), seed=1), 5)
    parts = [drawn(EpochSampler(Numbers(10), 1, 4, rank), 5) for rank in range(4)]
    assert [len(part) for part in parts] == [3] * 4
    assert [parts[place % 4][place // 4] for place in range(12)] == [*whole, *whole[:2]]


def test_mirrored_data_shows_each_item_in_one_of_two_forms_an_epoch():
    data = Mirrored(Numbers(50))
    assert len(data) == 100
    assert torch.equal(data[57]["ref"], Numbers(50)[7]["ref"].flip(-1)) and data[57]["path"] == "7"
    assert torch.equal(data[7]["ref"], Numbers(50)[7]["ref"])
    assert data[57]["judge"] == data[7]["judge"]
    indices = drawn(EpochSampler(data, seed=0), 0)
    assert sorted(index % 50 for index in indices) == list(range(50))
    assert 10 < sum(index >= 50 for index in indices) < 40
    assert [index >= 50 for index in sorted(indices)] != [
        index >= 50 for index in sorted(drawn(EpochSampler(data, seed=0), 1))
    ]


@pytest.mark.parametrize("ranks", [1, 2])
def test_loader_resumes_where_its_state_was_taken(ranks):
    def make(epoch=2, seed=5, batch_size=3):
        data = Mirrored(Numbers())
        sampler = EpochSampler(data, seed, ranks, ranks - 1)
        sampler.set_epoch(epoch)
        return ResumableLoader(data, batch_size=batch_size, sampler=sampler)

    loader = make()
    whole = [batch["path"] for batch in loader]
    assert len(whole) == len(loader) == {1: 4, 2: 2}[ranks]
    iterator = iter(loader)
    assert next(iterator)["path"] == whole[0]
    state = loader.state_dict()
    other = make(epoch=0)
    other.load_state_dict(state)
    assert other.state_dict() == state
    assert len(other) == len(whole)
    assert [batch["path"] for batch in other] == whole[1:]
    assert [batch["path"] for batch in other] == whole  # once: the next iteration begins at the start

    other.load_state_dict(state)
    other.sampler.set_epoch(7)  # the trainer goes on elsewhere
    assert len(list(other)) == len(whole)
    other.load_state_dict(loader.state_dict() | {"batches": len(whole)})
    assert other.sampler.epoch == 3 and len(list(other)) == len(whole)

    with pytest.raises(ValueError, match="batch_size: expected 3, as in the checkpoint, .* mid-epoch, got 2"):
        make(batch_size=2).load_state_dict(state)
    with pytest.raises(ValueError, match="seed: expected 5, as in the checkpoint"):
        make(seed=6).load_state_dict(state)


def test_loader_leaves_the_global_generator_alone_when_it_has_its_own():
    data = Numbers()
    loader = ResumableLoader(data, sampler=EpochSampler(data), generator=torch.Generator())
    before = torch.get_rng_state()
    list(loader)
    assert torch.equal(torch.get_rng_state(), before)


class Recorder(pl.LightningModule):
    """Records its batches."""

    def __init__(self, loader, val_loader=None):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.loader, self.val_loader, self.seen = loader, val_loader, []

    def train_dataloader(self):
        return self.loader

    def training_step(self, batch, batch_idx):
        self.seen.append((self.current_epoch, batch_idx, [float(number) for number in batch["ref"][:, 0, 0, 0]]))
        return self.weight * 0

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


class SaveAt(pl.Callback):
    def __init__(self, step, path):
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer, *args):
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


class SaveAtEpochEnd(SaveAt):
    def on_train_batch_end(self, trainer, *args):
        pass

    def on_train_epoch_end(self, trainer, *args):
        super().on_train_batch_end(trainer)


def run(workers, callbacks=(), checkpoint=None, **options):
    data = Mirrored(Numbers())
    sampler = EpochSampler(data, seed=5)
    generator = torch.Generator()
    loader = ResumableLoader(data, batch_size=3, sampler=sampler, num_workers=workers, generator=generator)
    module = Recorder(loader)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    trainer = pl.Trainer(max_epochs=3, callbacks=[*callbacks], enable_model_summary=False, **quiet, **options)
    val = DataLoader(Numbers(2), generator=torch.Generator())
    trainer.fit(module, val_dataloaders=val, ckpt_path=checkpoint)
    return module.seen


@pytest.mark.parametrize(("callback", "step"), [(SaveAt, 2), (SaveAt, 6), (SaveAt, 8), (SaveAtEpochEnd, 8)])
def test_a_resumed_training_gets_the_batches_of_an_uninterrupted_one(tmp_path, callback, step):
    whole = run(0, [callback(step, tmp_path / "a.ckpt")])
    assert len(whole) == 12
    resumed = run(0, checkpoint=tmp_path / "a.ckpt")
    assert resumed == whole[step:]


def test_worker_processes_change_nothing_also_on_resume(tmp_path):
    whole = run(0, [SaveAt(6, tmp_path / "a.ckpt")])
    assert run(2, checkpoint=tmp_path / "a.ckpt") == whole[6:]


def test_lightning_may_limit_or_overfit_batches(tmp_path):
    whole = run(0)
    limited = run(0, [SaveAtEpochEnd(6, tmp_path / "a.ckpt")], limit_train_batches=3)
    assert [step for step in limited if step[0] == 1] == [step for step in whole if step[0] == 1][:3]
    assert run(0, checkpoint=tmp_path / "a.ckpt", limit_train_batches=3) == limited[6:]
    with pytest.warns(match="You requested to overfit"):
        overfitted = run(0, [SaveAt(4, tmp_path / "a.ckpt")], overfit_batches=2)
    assert [numbers for _, _, numbers in overfitted] == [[0.5, 1.5, 2.5], [3.5, 4.5, 5.5]] * 3


class Drawn(Dataset):
    """Items with a random number."""

    def __len__(self):
        return 7

    def __getitem__(self, index):
        return torch.cat([torch.tensor([float(index)]), torch.rand(1)])


@pytest.mark.parametrize("own", [False, True], ids=["global generator", "own generator"])
@pytest.mark.parametrize(("position", "workers"), [(1, 0), (3, 0), (4, 0), (1, 2)])
def test_a_loader_with_shuffle_resumes_with_the_same_random_numbers(position, workers, own):
    def make():
        generator = torch.Generator().manual_seed(4) if own else None
        return ResumableLoader(Drawn(), batch_size=2, shuffle=True, num_workers=workers, generator=generator)

    torch.manual_seed(3)
    loader = make()
    whole = [batch.tolist() for _ in range(2) for batch in loader] + torch.rand(1).tolist()
    torch.manual_seed(3)
    interrupted = make()
    batches = iter(interrupted)
    first = [next(batches).tolist() for _ in range(position)]
    state = interrupted.state_dict()
    torch.manual_seed(99)
    resumed = make()
    resumed.load_state_dict(state)
    epochs = 1 if position == len(loader) else 2
    rest = [batch.tolist() for _ in range(epochs) for batch in resumed] + torch.rand(1).tolist()
    assert first + rest == whole
    assert len({str(batch) for batch in whole}) == 9  # nothing is drawn twice


def test_a_loader_with_shuffle_does_not_resume_in_an_epoch_of_another_length():
    loader = ResumableLoader(Drawn(), batch_size=2, shuffle=True)
    next(iter(loader))
    with pytest.raises(ValueError, match="length: expected 4 batches, as in the checkpoint.* got 7"):
        ResumableLoader(Drawn(), shuffle=True).load_state_dict(loader.state_dict())
