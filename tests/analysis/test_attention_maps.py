"""Attention maps: the layouts as the papers draw them, cell by cell, and weights equal to the stock eager ones."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from tests import tiny
from unmask import attention
from unmask.analysis.attention_maps import attention_map, layouts, shaded
from unmask.cli.main import main
from unmask.errors import SettingsError
from unmask.models.backbone import ATTENTION_NAME, Backbone
from unmask.models.loading import Checkpoint, save
from unmask.models.tokenizers import byte_tokenizer

# TiDAR (arXiv 2511.08923), figure 3, left: six tokens, blocks of three.
FIGURE_3_TRAINING = """\
#...........
##..........
###.........
####........
#####.......
######......
......###...
......###...
......###...
###......###
###......###
###......###"""
# Figure 3, right: a draft of three behind a prefix (two tokens here), and a block for each number of accepted tokens.
FIGURE_3_DECODING = """\
###...........
####..........
#####.........
###..###......
###..###......
###..###......
####....###...
####....###...
####....###...
#####......###
#####......###
#####......###"""
# Figure 7: a prompt of four and the first draft.
FIGURE_7_PREFILL = """\
#......
##.....
###....
####...
#######
#######
#######"""
SPLIT = """\
#.....
##....
###...
######
######
######"""
SDAR_TRAINING = """\
##........
##........
..##.##...
..##.##...
....#####.
.....##...
.....##...
.....####.
.....####.
.....#####"""
SDAR_STEP = """\
####..
####..
######
######"""


def model(method: str, block_length: int = 3) -> Backbone:
    if method != "tidar":
        options = {"block_length": block_length} if method == "block_diffusion" else {}
        return tiny.backbone(method, **options)
    made = tiny.backbone("block_diffusion", block_length=block_length)
    made.configure(dataclasses.replace(made.diffusion, method="tidar"))
    return made


def rule(method: str, layout: str, length: int, block_length: int) -> str:
    ids = tiny.random_ids(length).tolist()
    found = attention_map(model(method), ids, layout, block_length=block_length, weights=False)
    assert found.weights_NHQK.numel() == 0
    return "\n".join("".join("#" if one else "." for one in row) for row in found.sees_QK.tolist())


@pytest.mark.parametrize(
    ("method", "layout", "length", "block_length", "wanted"),
    [
        ("tidar", "training", 6, 3, FIGURE_3_TRAINING),
        ("tidar", "step", 5, 3, FIGURE_3_DECODING),
        ("tidar", "prefill", 4, 3, FIGURE_7_PREFILL),
        ("tidar", "split", 6, 3, SPLIT),
        ("block_diffusion", "training", 5, 2, SDAR_TRAINING),
        ("block_diffusion", "step", 6, 2, SDAR_STEP),
        ("autoregressive", "causal", 3, 3, "#..\n##.\n###"),
        ("masked_diffusion", "canvas", 2, 3, "##\n##"),
    ],
)
def test_layouts_are_those_of_the_papers(method: str, layout: str, length: int, block_length: int, wanted: str) -> None:
    assert rule(method, layout, length, block_length) == wanted


def test_the_linear_step_sees_the_text_and_itself() -> None:
    shown = rule("tidar", "linear", 4, 3).split("\n")
    assert shown == ["####..", "######", "######"]  # the token that is committed, and two masks behind it


@pytest.mark.parametrize("method", ["autoregressive", "masked_diffusion", "block_diffusion", "tidar"])
def test_weights_are_those_of_the_stock_eager_attention(method: str) -> None:
    made, ids = model(method), tiny.random_ids(7, vocabulary=22).tolist()
    for name in layouts(made.diffusion):
        found = attention_map(made, ids, name)
        assert made.network.config._attn_implementation == ATTENTION_NAME
        torch.testing.assert_close(found.weights_NHQK.sum(dim=-1), torch.ones(found.weights_NHQK.shape[:3]))
        assert not found.weights_NHQK[:, :, ~found.sees_QK].any()
        if name in ("causal", "training", "canvas", "prefill", "split"):  # layouts of which all rows are shown
            torch.testing.assert_close(found.weights_NHQK, eager(made, found.key_ids, ids, name), rtol=1e-5, atol=1e-6)


def eager(made: Backbone, key_ids: torch.Tensor, ids: list[int], name: str) -> torch.Tensor:
    """The weights that `transformers` returns, with an additive mask and positions written out."""
    place = list(range(len(key_ids)))
    if name == "training":
        place = [at % len(ids) for at in place]
    visible = attention_map(made, ids, name, weights=False).sees_QK
    mask = torch.zeros(visible.shape, dtype=torch.float64).masked_fill(~visible, torch.finfo(torch.float64).min)
    made.network.set_attn_implementation("eager")
    try:
        out = made.network(
            key_ids[None],
            attention_mask=mask[None, None],
            position_ids=torch.tensor([place]),
            output_attentions=True,
            use_cache=False,
        )
    finally:
        made.network.set_attn_implementation(ATTENTION_NAME)
    return torch.cat(out.attentions).float()


def test_a_decoding_layout_shows_the_rows_of_its_forward_only() -> None:
    made, ids = model("tidar"), tiny.random_ids(9, vocabulary=22).tolist()
    found = attention_map(made, ids, "step")
    mask = made.diffusion.mask_token_id
    assert found.query_ids.tolist() == [*ids[-3:], *[mask] * 9]
    assert found.key_ids.tolist() == [*ids, *[mask] * 9]
    # A draft's row is that of the plain causal pass.
    causal = attention_map(made, ids, "causal")
    torch.testing.assert_close(found.weights_NHQK[:, :, :3, :9], causal.weights_NHQK[:, :, -3:])


def test_recording_leaves_the_model_as_it_was() -> None:
    made, ids_BL = model("masked_diffusion"), tiny.random_ids(1, 6)
    layout = attention.bidirectional(torch.zeros_like(ids_BL))
    with torch.inference_mode():
        before = made(ids_BL, layout.position_ids, None)
        attention_map(made, ids_BL[0].tolist(), "canvas")
        assert made(ids_BL, layout.position_ids, None).equal(before)


def test_shades_grow_with_the_weight() -> None:
    assert shaded(torch.tensor([[0.0, 0.5, 1.0], [0.05, 0.15, 0.99]])) == " +@\n .@"


def test_what_cannot_be_shown_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"autoregressive has no layout `step`.*`causal`"):
        attention_map(model("autoregressive"), [1, 2], "step")
    with pytest.raises(SettingsError, match="block of 3 behind it, got 3 tokens"):
        attention_map(model("tidar"), [1, 2, 3], "step")
    with pytest.raises(SettingsError, match="two blocks of 3, got 3 tokens"):
        attention_map(model("block_diffusion"), [1, 2, 3], "step")


def test_the_command_prints_and_draws(shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = shared_data / "checkpoints" / "stories260k"
    words = ["analyze", "attention", str(folder), "--text", "Once upon a", "--head", "1.2", "--layers", "1"]
    assert main([*words, "--output-dir", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"causal: {tmp_path / 'causal-rule.png'} {tmp_path / 'causal-weights.png'}\n#...")
    assert "layer 1, head 2:\n" in out
    assert {file.name for file in tmp_path.iterdir()} == {"causal-rule.png", "causal-weights.png"}
    assert main([*words[:-4], "--layers", "9", "--output-dir", str(tmp_path / "none")]) == 2
    assert "--layers must be numbers from 0 to 4" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()
    assert main(["analyze", "atention"]) == 2
    assert "Did you mean `attention`?" in capsys.readouterr().err


def test_the_command_shows_the_layouts_that_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = byte_tokenizer()
    bytes_model = tiny.backbone("block_diffusion", vocabulary=len(tokenizer), block_length=4).float()
    save(Checkpoint(bytes_model, tokenizer), tmp_path / "model")
    words = ["analyze", "attention", str(tmp_path / "model"), "--rule-only", "--output-dir", str(tmp_path / "out")]
    assert main([*words, "--text", "x"]) == 0
    captured = capsys.readouterr()
    assert captured.out == f"training: {tmp_path / 'out' / 'training-rule.png'}\n##..\n##..\n..##\n..##\n"
    assert captured.err.splitlines()[-1].startswith("step: step shows two blocks of 4, got 2 tokens.")
    assert main([*words, "--text", "x", "--layout", "step"]) == 2


def test_without_a_tokenizer_there_is_no_text_to_show(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(Checkpoint(tiny.backbone("block_diffusion", block_length=4).float(), None), tmp_path)
    assert main(["analyze", "attention", str(tmp_path), "--rule-only", "--text", "x"]) == 2
    assert "tokenizer" in capsys.readouterr().err
