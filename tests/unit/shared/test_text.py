"""Tokenize and encode captions: dropped ones, long ones, and clip_skip."""

from __future__ import annotations

import pytest
import torch

from shared.diffusion.text import encode, tokenize
from tests.support.models import small_text_encoder, small_tokenizer

TOKENIZER = small_tokenizer()
START, END = len(TOKENIZER) - 2, len(TOKENIZER) - 1


@pytest.mark.parametrize("caption", ["", " "])
def test_a_dropped_caption_is_a_start_and_76_ends(caption: str) -> None:
    assert tokenize(TOKENIZER, [caption]).tolist() == [[START, *[END] * 76]]


def test_a_long_caption_is_cut_to_77_tokens_of_which_the_last_is_the_end() -> None:
    (ids,) = tokenize(TOKENIZER, ["wall " * 200]).tolist()

    assert (len(ids), ids[0], ids[-1], ids.count(END)) == (77, START, END, 1)


def test_clip_skip_counts_layers_from_the_end_and_always_takes_the_final_norm() -> None:
    """0 and 1 are both the last layer; the UNet was trained on normed states only."""
    torch.manual_seed(1)
    encoder = small_text_encoder(TOKENIZER)
    encoder.train(mode=False)
    ids = tokenize(TOKENIZER, ["a red wall"])
    with torch.no_grad():
        last = encoder(ids).last_hidden_state
        states = encoder(ids, output_hidden_states=True).hidden_states
        skipped = [encode(encoder, ids, skip) for skip in range(4)]

        assert len(states) == 4  # three layers and the embeddings
        assert torch.equal(skipped[0], last)
        assert torch.equal(skipped[1], last)
        assert torch.equal(skipped[2], encoder.final_layer_norm(states[-2]))
        assert torch.equal(skipped[3], encoder.final_layer_norm(states[-3]))
        assert not torch.allclose(skipped[2], last, atol=0.1)
        assert not torch.allclose(states[-2], skipped[2], atol=0.1)
