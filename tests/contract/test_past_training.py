"""A training that an earlier version has begun goes on from its resume point."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import msgspec
import pytest
import torch
from diffusers import UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from services.gateway.jobs.record import Job
from services.trainer.artifact_uploads import CHECKPOINTS, _earlier_checkpoints
from services.trainer.order import METRICS, TrainingOrder
from services.trainer.training.device import probe
from services.trainer.training.recipe import choose
from services.trainer.training.saving import resume
from services.trainer.training.saving.metrics import read_lines
from services.trainer.training.saving.resume import POSITION, ResumeState
from services.trainer.training.state import prepare
from services.trainer.training.train import train
from shared.adapters.folder import FolderStore
from shared.dataset.plan import job_seed
from shared.diffusion.device import this_device
from shared.diffusion.loading import Parts
from shared.diffusion.saving import save_folder
from shared.diffusion.weights import load_in_place, mismatch
from shared.messaging.messages import DatasetStaged, decode
from shared.storage.folders import download_folder
from shared.storage.snapshots import waiting_snapshots
from tests.contract.past import FIXTURES, each, forgotten, json_in, unseen
from tests.support.models import random_parts, small_tokenizer
from tests.support.training import RecordingCallbacks

RESUMED = each(f"home/store/jobs/*/training/*/resume/*/{POSITION}")
POSITIONS = [*RESUMED, *each(POSITION)]


def base_parts() -> Parts:
    """What the trainings of the past began with: next to nothing, so that fixtures are small."""
    torch.manual_seed(7)
    tokenizer = small_tokenizer()
    unet = UNet2DConditionModel(
        sample_size=32,
        block_out_channels=(4,),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
        cross_attention_dim=4,
        attention_head_dim=2,
        norm_num_groups=2,
    )
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=4,
            intermediate_size=4,
            num_hidden_layers=1,
            num_attention_heads=1,
            max_position_embeddings=77,
            bos_token_id=len(tokenizer) - 2,
            eos_token_id=len(tokenizer) - 1,
            pad_token_id=len(tokenizer) - 1,
        )
    )
    return dataclasses.replace(
        random_parts(), unet=unet, text_encoder=text_encoder, tokenizer=tokenizer
    )


@pytest.mark.parametrize("path", POSITIONS)
def test_a_position_of_the_past_is_understood_and_says_the_same(path: Path) -> None:
    assert forgotten(path.read_bytes(), ResumeState) == []


def test_every_field_of_a_position_of_today_has_a_fixture() -> None:
    assert unseen(ResumeState, [json_in(path) for path in FIXTURES.rglob(POSITION)]) == []


@pytest.mark.parametrize("path", RESUMED)
async def test_a_training_goes_on_from_where_the_past_has_left_it(
    path: Path, tmp_path: Path
) -> None:
    store, job = store_and_job_of(path, tmp_path)
    staged = staged_by(job)
    assert job.resume_point
    save_folder(base_parts(), tmp_path / "base", dtype=torch.float32)
    await download_folder(store, staged.dataset, tmp_path / "dataset")
    await download_folder(store, job.resume_point, tmp_path / "from")
    order = TrainingOrder(
        job=job.id, train=staged.train, seed=job_seed(job.id, staged.train),
        dataset=str(tmp_path / "dataset"), base=str(tmp_path / "base"),
        resume=str(tmp_path / "from"), out=str(tmp_path / "out"), resume_every=1e9,
    )  # fmt: skip
    left, callbacks = json_in(path), RecordingCallbacks()

    outcome = train(order, callbacks)

    done = left["position"]["steps"]
    assert callbacks.steps_begun == outcome.steps - done
    assert outcome.epochs == staged.train.max_epochs
    assert outcome.steps > done > 0
    assert outcome.validation
    assert outcome.validation.before.loss == left["measured"][0]["loss"]
    assert outcome.warnings == left["warnings"]
    earlier = [*read_lines(tmp_path / "from" / METRICS)]
    assert [*read_lines(Path(outcome.metrics))][: len(earlier)] == earlier != []
    assert _earlier_checkpoints(tmp_path / "from") == [*job.checkpoints] != []
    assert (tmp_path / "from" / CHECKPOINTS).exists()


@pytest.mark.parametrize("path", RESUMED)
def test_moments_of_the_past_are_taken_over(path: Path, tmp_path: Path) -> None:
    """Without them the optimizers would start afresh, and nothing would be reported."""
    _, job = store_and_job_of(path, tmp_path)
    request, device = staged_by(job).train, this_device()
    state = prepare(base_parts(), request, choose(request, probe(device)), device)

    resume.load(state, path.parent)

    updates = json_in(path)["position"]["updates"]
    for optimizer in state.optimizers.values():
        moments = optimizer.state_dict()["state"].values()
        assert {int(moment["step"]) for moment in moments} == {updates}


@pytest.mark.parametrize("path", RESUMED)
async def test_a_snapshot_of_the_past_is_laid_over_its_base_model(
    path: Path, tmp_path: Path
) -> None:
    store, job = store_and_job_of(path, tmp_path)
    base, left = base_parts(), await waiting_snapshots(store, job.id)

    assert left
    for number, snapshot in enumerate(left):
        manifest = await download_folder(store, snapshot.prefix, tmp_path / str(number))
        for file in manifest.files:
            network = getattr(base, file.name.removesuffix(".safetensors"))
            assert mismatch(network, tmp_path / str(number) / file.name) is None
            load_in_place(network, tmp_path / str(number) / file.name, torch.float32)


def staged_by(job: Job) -> DatasetStaged:
    staged = decode(job.stages["training"].trigger)
    assert isinstance(staged, DatasetStaged)
    return staged


def store_and_job_of(path: Path, folder: Path) -> tuple[FolderStore, Job]:
    """A copy of the store that a resume point of the past lies in, and the job that it is of."""
    root = next(above for above in path.parents if above.name == "store")
    shutil.copytree(root, folder / "store")
    records = (root.parents[1] / "records").glob("*.json")
    jobs = [msgspec.json.decode(record.read_bytes(), type=Job) for record in records]
    point = path.parent.relative_to(root).as_posix()
    (job,) = [job for job in jobs if job.resume_point == point]
    return FolderStore(folder / "store", public_url="http://gateway", key="k" * 48), job
