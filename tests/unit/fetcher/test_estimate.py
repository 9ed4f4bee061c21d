"""The estimate of a job's time and storage."""

from typing import Any

import msgspec
import pytest

from services.fetcher.estimate import estimate, memory_warnings
from shared.dataset.manifest import Estimate
from shared.dataset.speed import ProbedDevice, Speed
from shared.request import Train

SD15 = {"unet": 859_520_964, "text_encoder": 123_060_480, "vae": 83_653_863}
TINY = {"unet": 2_000_000, "text_encoder": 300_000, "vae": 300_000}
FAST = Speed(gpu="NVIDIA H100", megapixels_per_second=10.0)
PROCESSOR = ProbedDevice(gpu="cpu", teraflops=0.12)
IN_8_BITS = 2.03125
"""Of AdamW, for each weight, with the scales of its blocks."""


def of(
    megapixels: float = 6000.0,
    measured: Speed | None = FAST,
    device: ProbedDevice | None = PROCESSOR,
    parameters: dict[str, int] = SD15,
    **train: Any,
) -> Estimate:
    return estimate(Train(data_url="u", **train), parameters, megapixels, measured, device)


def test_minutes_come_from_the_measured_speed_and_the_report_says_so() -> None:
    assert of().minutes == 10.0
    assert of().rate == "measured: 10 megapixels per second on NVIDIA H100"


def test_before_a_training_is_measured_the_minutes_are_those_of_the_device_that_is_there() -> None:
    found = of(measured=None)

    assert found.rate == (
        "estimated: 0.005 megapixels per second on cpu, by a test of 0.12 TFLOP/s"
    )
    assert found.minutes == pytest.approx(6000 / 0.005 / 60, rel=0.01)


@pytest.mark.parametrize("number", ["0", "-1", "5e-324", "1e-300", "1e300", "1e999", "NaN"])
def test_an_absurd_number_in_the_store_is_refused_and_fails_no_job(number: str) -> None:
    for kind, name in ((Speed, "megapixels_per_second"), (ProbedDevice, "teraflops")):
        with pytest.raises(msgspec.DecodeError):
            msgspec.json.decode(f'{{"gpu": "cpu", "{name}": {number}}}', type=kind)


def test_a_smaller_model_takes_less_time_on_the_same_device() -> None:
    large, small = of(measured=None).minutes, of(measured=None, parameters=TINY).minutes

    assert large
    assert small
    assert large / small == pytest.approx(SD15["unet"] / TINY["unet"], rel=0.01)


def test_a_faster_device_takes_less_time() -> None:
    card = ProbedDevice(gpu="NVIDIA RTX 3090", teraflops=60.0)

    slow, fast = of(measured=None).minutes, of(measured=None, device=card).minutes
    assert slow
    assert fast
    assert slow / fast == pytest.approx(500, rel=0.01)
    assert "on NVIDIA RTX 3090" in of(measured=None, device=card).rate


@pytest.mark.parametrize(
    ("device", "parameters", "why"),
    [
        (None, SD15, "no trainer has told what it computes on"),
        (PROCESSOR, {}, "no such model was trained on cpu before"),
    ],
)
def test_where_device_or_model_is_not_known_neither_are_the_minutes(
    device: ProbedDevice | None, parameters: dict[str, int], why: str
) -> None:
    found = of(measured=None, device=device, parameters=parameters)

    assert found.minutes is None
    assert found.rate == f"not known yet: {why}"


def test_one_megapixel_is_not_several() -> None:
    rates = [Speed(gpu="cpu", megapixels_per_second=rate) for rate in (1.0, 1.5)]

    assert [str(rate) for rate in rates] == [
        "1 megapixel per second on cpu", "1.5 megapixels per second on cpu",
    ]  # fmt: skip


def test_a_training_that_its_card_has_no_room_for_is_warned_of_with_what_would_fit() -> None:
    card = ProbedDevice(gpu="NVIDIA A10", teraflops=60.0, memory_bytes=int(22.5 * 2**30))
    large = Train(data_url="u", batch_size=16)

    (warning,) = memory_warnings(large, SD15, card)

    assert warning == (
        "this training needs about 27.9 GiB of memory, and NVIDIA A10 has 22.5 GiB:"
        " with gradient_checkpointing true it needs about 12.5 GiB"
    )
    assert memory_warnings(Train(data_url="u"), SD15, card) == []


def test_of_a_card_without_room_at_any_setting_the_warning_says_so() -> None:
    card = ProbedDevice(gpu="GTX 1660", teraflops=9.0, memory_bytes=3 * 2**30)

    (warning,) = memory_warnings(Train(data_url="u"), SD15, card)

    assert warning.endswith(
        "GTX 1660 has 3.0 GiB: no settings make it fit into that;"
        " docs/models.md says what fits which card"
    )


@pytest.mark.parametrize(
    ("device", "parameters"),
    [(None, SD15), (PROCESSOR, SD15),
     (ProbedDevice(gpu="x", teraflops=1.0, memory_bytes=2**20), TINY)],
)  # fmt: skip
def test_where_the_memory_or_the_model_is_not_known_nothing_is_said_of_it(
    device: ProbedDevice | None, parameters: dict[str, int]
) -> None:
    assert memory_warnings(Train(data_url="u"), parameters, device) == []


def test_a_model_is_kept_once_in_the_precision_asked_for_but_for_a_pickle() -> None:
    assert of().model_bytes == pytest.approx(2.13e9, rel=0.01)
    assert of(checkpoint_format="ckpt").model_bytes == 2 * of().model_bytes
    assert of(save_full_precision=True).model_bytes == 2 * of().model_bytes


@pytest.mark.parametrize(
    ("train", "checkpoints"),
    [
        ({}, 5),
        ({"ckpt_every_n_minutes": 0}, 0),
        ({"ckpt_every_n_minutes": None}, 0),
        ({"ckpt_every_n_minutes": 30}, 3),
        ({"ckpt_every_n_minutes": 0, "max_epochs": 100, "save_every_n_epochs": 20}, 4),
        ({"max_epochs": 100, "save_every_n_epochs": 20}, 9),
        ({"keep_checkpoints": 2}, 2),
    ],
)
def test_checkpoints_are_counted_by_time_and_epochs_and_no_more_than_are_kept(
    train: dict[str, Any], checkpoints: int
) -> None:
    a_hundred_minutes = of(megapixels=60_000.0, **train)

    assert a_hundred_minutes.checkpoints == checkpoints
    assert a_hundred_minutes.checkpoint_bytes == checkpoints * of().model_bytes


def test_resume_points_hold_what_learns_in_full_precision_with_its_moments() -> None:
    trained = SD15["unet"] + SD15["text_encoder"]

    def bytes_for(weights: int, each: float) -> Any:
        return pytest.approx(2 * weights * each, abs=2)

    assert of().resume_point_bytes == bytes_for(trained, 4 + IN_8_BITS)
    assert of(useadam8bit=False).resume_point_bytes == bytes_for(trained, 4 + 8)
    assert of(ema_decay_rate=0.99).resume_point_bytes == bytes_for(trained, 4 + 4 + IN_8_BITS)
    unet, text = SD15["unet"], SD15["text_encoder"]
    assert of(disable_textenc_training=True).resume_point_bytes == bytes_for(unet, 4 + IN_8_BITS)
    assert of(disable_unet_training=True).resume_point_bytes == bytes_for(text, 4 + IN_8_BITS)
    assert of(optimizer="lion").resume_point_bytes == bytes_for(trained, 4 + 4)


def test_saved_optimizers_lie_beside_every_checkpoint_and_the_model() -> None:
    moments = int(IN_8_BITS * (SD15["unet"] + SD15["text_encoder"]))
    plain, more = of(megapixels=60_000.0), of(megapixels=60_000.0, save_optimizer=True)

    assert more.model_bytes == plain.model_bytes + moments
    assert more.checkpoint_bytes == plain.checkpoint_bytes + 5 * moments


def test_the_bytes_are_the_sum_of_their_parts() -> None:
    found = of(megapixels=60_000.0, save_optimizer=True)

    parts = (found.checkpoint_bytes, found.model_bytes, found.resume_point_bytes)
    assert found.bytes == sum(parts)
    assert all(parts)
