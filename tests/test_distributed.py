"""Several processes learn what one would, go on in any number, and never hang when one dies."""

import io
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from minibeit3 import build_backbone, from_pretrained, sharded
from minibeit3.batches import generator_of, read
from minibeit3.checkpoint import save_pretrained
from minibeit3.distributed import Kind, Team, joined
from minibeit3.losses import contrastive_loss
from minibeit3.masking import mask_patches, mask_text
from minibeit3.objective import MaskedBatch, MaskedDataModel, masked_data_loss
from minibeit3.pretrain import Hiding, PretrainingBatches, open_data
from minibeit3.runlog import Record, read_metrics
from minibeit3.text_tokenizer import TextTokenizer
from minibeit3.train import TrainConfig, train
from tests.test_backbones import SMALL

STEPS = 6
TIMEOUT = 120

pytestmark = pytest.mark.slow

# Children fork from a server that has imported torch already: a fresh import takes seconds each.
processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["minibeit3.train", "torch._dynamo"])


class Made:
    """Masked batches made of their number: two images, two texts, one pair among them."""

    def batch(self, number: int) -> MaskedBatch:
        g = generator_of(7, number)
        image, words = (
            torch.randn(2, 3, 32, 32, generator=g),
            torch.randint(4, 90, (2, 9), generator=g),
        )
        ids, hidden = mask_text(words, torch.ones(2, 9, dtype=torch.bool), 0.5, 96, 97, g)
        codes = torch.randint(0, 31, (2, 16), generator=g)
        return MaskedBatch(image, mask_patches(2, 4, 0.4, g), codes, ids, None, hidden, words, 1)

    def names(self, number: int) -> list[str]:
        return [f"made/{number}"]


def masked_model() -> MaskedDataModel:
    torch.manual_seed(0)
    return MaskedDataModel(build_backbone(SMALL, torch.Generator().manual_seed(0)))


def masked(model: nn.Module, batch: MaskedBatch, g: torch.Generator) -> tuple[Tensor, Any]:
    return masked_data_loss(*model(batch, g))


def config_of(**changes: Any) -> TrainConfig:
    values: dict[str, Any] = {"steps": STEPS, "batch_size": 4, "lr": 1e-2, "dtype": "float32"}
    values |= {"accumulate": 4, "log_every": 1, "save_every": 2} | changes
    return TrainConfig(**values)


def pretrain(
    folder: Path, team: Team, until: int | None = None, dies: bool = False
) -> list[Record]:
    """A run of the masked model; its finished form goes to `model`."""
    model = masked_model()
    step = DiesOnce(team, folder) if dies else masked
    records = train(model, step, Made(), config_of(), folder, until=until, team=team)
    finished = team.gather(model, masked_model)
    if team.first:
        save_pretrained(finished, folder / "model")
    return records


def poisoned(folder: Path, team: Team) -> None:
    """The batches of the second process bring no number."""

    def step(model: nn.Module, batch: MaskedBatch, g: torch.Generator) -> tuple[Tensor, Any]:
        loss, metrics = masked(model, batch, g)
        return loss * (torch.inf if team.rank == 1 else 1), metrics

    with pytest.raises(FloatingPointError, match="parameters are unchanged"):
        train(masked_model(), step, Made(), config_of(), folder, team=team)


class DiesOnce:
    """The masked step; its tenth part, if in process 1, is the end of that process, once."""

    def __init__(self, team: Team, folder: Path) -> None:
        self.seen, self.team, self.folder = 0, team, folder

    def __call__(self, model: nn.Module, batch: MaskedBatch, g: torch.Generator) -> Any:
        self.seen += 1
        if self.seen == 10 and self.team.rank == 1 and not (self.folder / "died").exists():
            (self.folder / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return masked(model, batch, g)


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def enter(job: Callable[..., Any], rank: int, port: int, kind: Kind, options: Any) -> None:
    """What torchrun does for one of two processes."""
    torch.set_num_threads(1)
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in names.items()})
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "TORCHELASTIC_RUN_ID": "test"}
    folder, recompute, rest = options
    with joined(kind, recompute, timedelta(seconds=TIMEOUT)) as team:
        job(folder, team, *rest)


def two(
    job: Callable[..., Any], folder: Path, kind: Kind, *rest: Any, recompute: bool = False
) -> list[int | None]:
    """Run job(folder, team, ...) in two processes; how they ended."""
    port, options = free_port(), (folder, recompute, rest)
    pair = [processes.Process(target=enter, args=(job, r, port, kind, options)) for r in range(2)]
    for child in pair:
        child.start()
    for child in pair:
        child.join(TIMEOUT)
    codes = [child.exitcode for child in pair]  # None = it hangs
    for child in pair:
        child.kill()
        child.join()
    return codes


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """As torchrun gives each process: sums round alike."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Record], MaskedDataModel]:
    """Records and model of one process."""
    folder = tmp_path_factory.mktemp("alone")
    records = pretrain(folder, Team())
    return records, from_pretrained(folder / "model")  # pyright: ignore[reportReturnType]


def assert_same_run(folder: Path, alone: tuple[list[Record], MaskedDataModel]) -> None:
    records, model = alone
    found = read_metrics(folder)
    assert [r["step"] for r in found] == [r["step"] for r in records]
    for one, other in zip(found, records, strict=True):
        for name in ("loss", "grad_norm", "image_loss", "pair_text_accuracy", "lr"):
            assert one[name] == pytest.approx(other[name], rel=1e-4, abs=1e-5), name
    values: Any = from_pretrained(folder / "model")
    for name, value in values.state_dict().items():
        torch.testing.assert_close(value, model.state_dict()[name], atol=2e-3, rtol=0)


@pytest.mark.parametrize(("kind", "recompute"), [("ddp", False), ("fsdp", True)])
def test_two_processes_learn_what_one_learns(
    tmp_path: Path, alone: Any, kind: Kind, recompute: bool
) -> None:
    assert two(pretrain, tmp_path, kind, recompute=recompute) == [0, 0]
    assert_same_run(tmp_path, alone)


def test_a_sharded_run_goes_on_in_one_process(tmp_path: Path, alone: Any) -> None:
    assert two(pretrain, tmp_path, "fsdp", 4) == [0, 0]
    assert [p.name for p in sharded.checkpoints(tmp_path)] == [
        "sharded-00000002",
        "sharded-00000004",
    ]
    stopped: Any = from_pretrained(tmp_path / "model")
    model = masked_model()
    optimiser = torch.optim.AdamW(model.parameters())
    about = sharded.newest(tmp_path)
    assert about is not None and about["step"] == 4
    sharded.load(about, model, optimiser)
    for name, value in model.state_dict().items():  # not a bit is lost on the way
        assert torch.equal(value, stopped.state_dict()[name]), name
    pretrain(tmp_path, Team())
    assert_same_run(tmp_path, alone)


def test_a_run_of_one_process_goes_on_sharded(tmp_path: Path, alone: Any) -> None:
    pretrain(tmp_path, Team(), until=3)
    assert two(pretrain, tmp_path, "fsdp") == [0, 0]
    assert_same_run(tmp_path, alone)


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_a_number_that_is_none_stops_all_processes(tmp_path: Path, kind: Kind) -> None:
    assert two(poisoned, tmp_path, kind) == [0, 0]


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_the_rest_ends_with_an_error_when_one_is_killed(tmp_path: Path, kind: Kind) -> None:
    first, second = two(pretrain, tmp_path, kind, None, True)
    assert first not in (0, None) and second == -signal.SIGKILL


def test_after_two_dashes_torchrun_leaves_every_option_to_minibeit3() -> None:
    from torch.distributed.run import parse_args

    command = ["-m", "--", "minibeit3", "pretrain", "run", "--start", "model", "--shard"]
    read = parse_args(command)  # without the dashes it takes --start for its own --start-method
    assert [read.training_script, *read.training_script_args] == command[2:]


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_torchrun_starts_a_killed_process_again_and_nothing_shows(
    tmp_path: Path, alone: Any, kind: Kind
) -> None:
    script = "import sys; from tests.test_distributed import under_torchrun as f; f(*sys.argv[1:])"
    (tmp_path / "go.py").write_text(script)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", "--max-restarts", "1", str(tmp_path / "go.py")]
    env = os.environ | {"OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    env["PYTHONPATH"] = str(Path(__file__).resolve().parents[1])
    run = subprocess.run(
        [*command, str(tmp_path), kind], env=env, timeout=3 * TIMEOUT, capture_output=True
    )
    assert run.returncode == 0, run.stderr.decode()[-3000:]
    assert (tmp_path / "died").exists()
    assert_same_run(tmp_path, alone)


def under_torchrun(folder: str, kind: Kind) -> None:
    """A process of the job that loses one."""
    with joined(kind, timeout=timedelta(seconds=TIMEOUT)) as team:
        pretrain(Path(folder), team, dies=True)


def damaged(folder: Path, team: Team) -> None:
    """Runs on after the newest checkpoint lost a bit."""
    train(masked_model(), masked, Made(), config_of(), folder, until=4, team=team)
    if team.first:
        victim = next((folder / "sharded-00000004").glob("*.safetensors"))
        content = bytearray(victim.read_bytes())
        content[-3] ^= 1
        victim.write_bytes(content)
    torch.distributed.barrier()
    pretrain(folder, team)


def test_a_flipped_bit_in_a_shard_is_found_and_the_older_checkpoint_taken(
    tmp_path: Path, alone: Any
) -> None:
    assert two(damaged, tmp_path, "fsdp") == [0, 0]
    assert (tmp_path / "sharded-00000004.damaged").exists()
    assert_same_run(tmp_path, alone)


# What is shared


@pytest.mark.parametrize(("size", "workers"), [(1, 2), (2, 0), (2, 2), (4, 0)])
def test_every_batch_is_read_once_whoever_and_however_many_read(size: int, workers: int) -> None:
    numbers = range(8, 24)
    shares = [Team(rank=rank, size=size).share(numbers) for rank in range(size)]
    assert sorted(n for share in shares for n in share) == list(numbers)
    found = [list(read(Made(), share, workers)) for share in shares]
    for share, batches in zip(shares, found, strict=True):
        for number, batch in zip(share, batches, strict=True):
            expected: Any = Made().batch(number)
            assert torch.equal(batch.words, expected.words)


def test_a_folder_of_tar_shards_is_shared_out_by_batch(tmp_path: Path) -> None:
    for shard in range(2):
        with tarfile.open(tmp_path / f"{shard:05}.tar", "w") as tar:
            for name in range(4):
                picture = io.BytesIO()
                Image.new("RGB", (8, 8), (40 * name, 0, 0)).save(picture, "PNG")
                for kind, content in (("png", picture.getvalue()), ("txt", b"a red square")):
                    entry = tarfile.TarInfo(f"{name:09}.{kind}")
                    entry.size = len(content)
                    tar.addfile(entry, io.BytesIO(content))
    config = replace(SMALL, vocab_size=4000)
    data = open_data([str(tmp_path), "glosses"], config.image_size)
    source = PretrainingBatches(data, 6, TextTokenizer.lab(), config, Hiding(), 20, seed=0)
    numbers = range(4)  # each picture once
    read_by = [
        [s.key for n in Team(rank=r, size=2).share(numbers) for s in source.samples(n)["pairs"]]
        for r in range(2)
    ]
    assert len(read_by[0]) == len(read_by[1]) == 4
    assert {*read_by[0], *read_by[1]} == {
        f"0000{s}/00000000{n}" for s in range(2) for n in range(4)
    }


def test_parts_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match=r"3 parts .* 2 processes: set accumulate to a multiple"):
        Team(size=2).share(range(3))


# Losses over all processes


class Couples(nn.Module):
    """Two encoders and a contrastive loss that is no `forward`."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.text = nn.Linear(6, 5), nn.Linear(4, 5)

    def loss(self, image: Tensor, text: Tensor) -> Tensor:
        unit = nn.functional.normalize
        scale = torch.tensor(10.0)
        return contrastive_loss(unit(self.image(image), dim=1), unit(self.text(text), dim=1), scale)


class Both:
    """`parts` parts make one batch of 8 couples."""

    def __init__(self, parts: int) -> None:
        self.parts = parts

    def batch(self, number: int) -> tuple[Tensor, Tensor]:
        g = generator_of(3, number // self.parts)
        couples = torch.randn(8, 6, generator=g), torch.randn(8, 4, generator=g)
        image, text = (s.chunk(self.parts)[number % self.parts] for s in couples)
        return image, text

    def names(self, number: int) -> list[str]:
        return [str(number)]


def contrast(folder: Path, team: Team) -> None:
    torch.manual_seed(0)
    config = config_of(batch_size=8, accumulate=team.size, steps=3)
    step = lambda model, batch, g: (model.loss(*batch), {})  # noqa: E731
    train(Couples(), step, Both(team.size), config, folder, team=team)


def test_the_contrastive_loss_over_processes_is_that_of_one_big_batch(tmp_path: Path) -> None:
    contrast(tmp_path / "one", Team())
    assert two(contrast, tmp_path / "two", "ddp") == [0, 0]
    for one, other in zip(*(read_metrics(tmp_path / n) for n in ("one", "two")), strict=True):
        for name in ("loss", "grad_norm"):
            assert one[name] == pytest.approx(other[name], rel=1e-4)
