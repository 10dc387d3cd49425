"""Every number of a probe's record again, from the saved checkpoint and the recipe alone.

The stock `transformers` class opens the checkpoint and runs under masks made here; the corruption is drawn again from
its definition, and every sum is a loop. Only the rows of text and the hashes behind the draws are the library's.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForCausalLM

from tests.analysis import test_schedule_optimality as optimality
from tests.training import recipes, test_sft
from unmask import config, noise
from unmask.data.rows import Rows
from unmask.models.tokenizers import byte_tokenizer
from unmask.noise import Purpose
from unmask.runs import RunFolder
from unmask.settings.recipe import Recipe
from unmask.training.preparation import TrainingText
from unmask.training.run import prepare, train

STEPS, LENGTH, BLOCK = 4, 16, 4
DRAWN_AT = 1 << 40
NAMES = ("low", "medium", "high")


@dataclass(frozen=True)
class Token:
    """One column of an input: its half, document, place there and id."""

    half: str
    document: int
    place: int
    id: int


@dataclass(frozen=True)
class Masked:
    """A token to predict: output row, target, weight, share of its group that is masked."""

    row: int
    target: int
    weight: float
    ratio: float


@dataclass(frozen=True)
class Sequence:
    """A probe row: its input without padding, what is to be predicted, how many tokens could have been masked."""

    tokens: list[Token]
    masked: list[Masked]
    size: int


# --- the corruption ---------------------------------------------------------------------------------------------------


def drawn(groups: list[list[int]], row: int, rows: int, seed: int, numbers: list[int]) -> list[tuple[int, float]]:
    """(column, ratio) of the masked ones of each group of columns: uniform counts from stratified times."""
    found = []
    for columns, number in zip(groups, numbers, strict=True):
        if not columns:
            continue
        stratum = noise.permutation(Purpose.STRATUM, rows, seed, DRAWN_AT, torch.tensor([number]))[0, row].item()
        time = (stratum + noise.uniform(Purpose.TIME, seed, DRAWN_AT, row, number).item()) / rows
        count = min(max(1, math.ceil(len(columns) * time)), len(columns))
        chance = {one: noise.uniform(Purpose.MASK, seed, DRAWN_AT, row, one).item() for one in columns}
        found += [(one, count / len(columns)) for one in sorted(columns, key=lambda one: chance[one])[:count]]
    return sorted(found)


def places(documents: list[int]) -> list[int]:
    return [documents[:column].count(one) for column, one in enumerate(documents)]


def sequences(method: str, rows: Rows, number: int, seed: int, mask: int, block: int) -> list[Sequence]:
    """The probe's rows, masked."""
    chosen = noise.permutation(Purpose.PROBE, len(rows), seed)[:number].numpy()
    batch = rows.batch(chosen, 0, number, step=0)
    found = []
    for row in range(number):
        document, learned = batch.document_BL[row].tolist(), batch.supervised_BL[row].tolist()
        ids, place = batch.ids_BL[row].tolist(), places(document)
        known = [column for column, one in enumerate(document) if one >= 0]
        clean = [Token("clean", document[c], place[c], ids[c]) for c in known]
        usable = [column for column in known if learned[column]]
        if method == "masked_diffusion":
            picked = drawn([usable], row, number, seed, [0])
        elif method == "block_diffusion":
            whole = [(document[c], place[c] // block) for c in known]
            order = list(dict.fromkeys(whole))
            groups = [[c for c in usable if (document[c], place[c] // block) == one] for one in order]
            picked = drawn(groups, row, number, seed, list(range(len(order))))
        else:
            picked = [(column, 1.0) for column in usable]
        hidden = dict(picked)
        noisy = [Token("noisy", document[c], place[c], mask if c in hidden else ids[c]) for c in known]
        if method == "masked_diffusion":
            noisy, clean = [dataclasses.replace(one, half="clean") for one in noisy], []
        if method == "tidar":  # all of it is masked, and a last block that ends in padding is completed
            last = max(document)
            size = document.count(last)
            noisy = [Token("noisy", document[c], place[c], mask) for c in known]
            noisy += [Token("noisy", last, size + more, mask) for more in range(-size % block)]
        at = {column: index + (len(known) if method == "tidar" else 0) for index, column in enumerate(known)}
        masked = [Masked(at[c], ids[c], 1 / ratio if method != "tidar" else 1.0, ratio) for c, ratio in picked]
        found.append(Sequence([*clean, *noisy] if method == "tidar" else [*noisy, *clean], masked, len(usable)))
    return found


def sees(method: str, query: Token, key: Token, block: int) -> bool:
    if query.document != key.document:
        return False
    if method == "masked_diffusion":
        return True
    own, other = query.place // block, key.place // block
    if query.half == "noisy":
        return other < own if key.half == "clean" else other == own
    if key.half == "noisy":
        return False
    return key.place <= query.place if method == "tidar" else other <= own


# --- the figures ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Seen:
    """What the network made of a sequence: law of each masked token, nats to differentiate, weights of its heads."""

    law_RV: Tensor
    nats_R: Tensor
    attentions: tuple[Tensor, ...]
    keys: list[list[int]]


def evaluated(network: Any, entry: dict[str, Any], method: str, one: Sequence, block: int) -> Seen:
    keys = [[k for k, key in enumerate(one.tokens) if sees(method, query, key, block)] for query in one.tokens]
    mask = torch.full((len(keys), len(keys)), -math.inf, dtype=torch.float64)
    for q, columns in enumerate(keys):
        mask[q, columns] = 0
    output = network(
        input_ids=torch.tensor([[token.id for token in one.tokens]]),
        position_ids=torch.tensor([[token.place for token in one.tokens]]),
        attention_mask=mask[None, None],
        output_attentions=True,
        use_cache=False,
    )
    logits = output.logits[0].clone()
    logits[:, entry["mask_token_id"]] = -math.inf
    logits[:, entry["vocabulary_size"] :] = -math.inf
    logits_RV = logits[[token.row for token in one.masked]]
    target_R = torch.tensor([token.target for token in one.masked], dtype=torch.int64)
    nats_R = F.cross_entropy(logits_RV, target_R, reduction="none")
    return Seen(logits_RV.detach().softmax(-1), nats_R, output.attentions, keys)


def ratio(above: float, below: float) -> float:
    return above / below if below else math.nan


def mean(values: list[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan


def bucket(share: float) -> str:
    return "low" if share < 0.3 + 1e-9 else "medium" if share < 0.7 + 1e-9 else "high"


def first_tier(found: list[tuple[Sequence, Seen]], usual: int) -> dict[str, float]:
    rows = [
        (
            number,
            token,
            seen.nats_R[r].item(),
            int(seen.law_RV[r].argmax()) == token.target,
            float(seen.law_RV[r].max()),
        )
        for number, (one, seen) in enumerate(found)
        for r, token in enumerate(one.masked)
    ]
    made = {
        "mask_accuracy": mean([right for _, _, _, right, _ in rows]),
        "unigram_accuracy": mean([token.target == usual for _, token, _, _, _ in rows]),
    }
    each = [[row for row in rows if row[0] == number] for number in range(len(found))]
    made["mask_accuracy_t"] = mean([mean([row[3] for row in own]) for own in each if own])
    made["unigram_accuracy_t"] = mean([mean([row[1].target == usual for row in own]) for own in each if own])
    weighted = math.fsum(row[1].weight * row[2] for row in rows)
    for name in NAMES:
        own = [row for row in rows if bucket(row[1].ratio) == name]
        made[f"corruption/{name}_count"] = len(own)
        made[f"corruption/{name}_accuracy"] = mean([row[3] for row in own])
        made[f"corruption/{name}_ce"] = mean([row[2] for row in own])
        share = math.fsum(row[1].weight * row[2] for row in own) / weighted
        made[f"loss_weight/{name}_share"] = share if own else math.nan
    weights = [math.fsum(row[1].weight for row in own) / one.size for (one, _), own in zip(found, each, strict=True)]
    losses = [
        math.fsum(row[1].weight * row[2] for row in own) / one.size for (one, _), own in zip(found, each, strict=True)
    ]
    made["loss_weight/mean"] = mean(weights)
    made["loss_weight/mean_stderr"] = statistics.stdev(weights) / math.sqrt(len(weights))
    bins: dict[int, list[float]] = {}
    for own, loss in zip(each, losses, strict=True):
        bins.setdefault(math.ceil(10 * mean([row[1].ratio for row in own]) - 1e-9), []).append(loss)
    middle = mean(losses)
    within = math.fsum((loss - mean(own)) ** 2 for own in bins.values() for loss in own) / len(losses)
    between = math.fsum(len(own) * (mean(own) - middle) ** 2 for own in bins.values()) / len(losses)
    made["loss_weight/variance_within"] = within / middle**2
    made["loss_weight/variance_between"] = between / middle**2
    pairs = [row[1].weight for row in rows], [1 - row[4] for row in rows]
    constant = max(pairs[0]) - min(pairs[0]) < 1e-9
    made["loss_weight/correlation"] = math.nan if constant else statistics.correlation(*pairs)
    return made


def calibration(found: list[tuple[Sequence, Seen]]) -> dict[str, float]:
    rows = [
        (bucket(token.ratio), law.max().item(), int(law.argmax()) == token.target, float(torch.special.entr(law).sum()))
        for one, seen in found
        for token, law in zip(one.masked, seen.law_RV, strict=True)
    ]
    made = {}
    for prefix in ("", *NAMES):
        own = [row for row in rows if prefix in ("", row[0])]
        error = math.nan if not own else 0.0
        for number in range(15):
            inside = [row for row in own if number / 15 < row[1] <= (number + 1) / 15]
            error += abs(sum(row[2] for row in inside) - math.fsum(row[1] for row in inside)) / max(len(own), 1)
        begin = f"confidence/{prefix}_" if prefix else "confidence/"
        made |= {
            f"{begin}mean": mean([row[1] for row in own]),
            f"{begin}entropy": mean([row[3] for row in own]),
            f"{begin}ece": error,
        }
    return made


def attention(found: list[tuple[Sequence, Seen]], mask: int) -> dict[str, float]:
    values: dict[str, list[float]] = {}
    for one, seen in found:
        for layer, weight_1HQK in enumerate(seen.attentions):
            for q, token in enumerate(one.tokens):
                keys = seen.keys[q]
                kind = "masked_" if token.id == mask else "visible_"
                for head in range(weight_1HQK.shape[1]):
                    chances = weight_1HQK[0, head, q, keys].tolist()
                    entropy = -math.fsum(p * math.log(p) for p in chances if p)
                    own = weight_1HQK[0, head, q, q].item() * len(keys)
                    for name in ("", kind):
                        values.setdefault(f"attention/{name}entropy", []).append(entropy)
                        values.setdefault(f"attention/{name}self", []).append(own)
                        if len(keys) > 1:
                            values.setdefault(f"attention/{name}entropy_share", []).append(
                                entropy / math.log(len(keys))
                            )
                    values.setdefault(f"attention/layer_{layer}_self", []).append(own)
    return {name: mean(one) for name, one in values.items()}


def gradients(found: list[tuple[Sequence, Seen]], parameters: list[Tensor]) -> dict[str, float]:
    tokens = sum(one.size for one, _ in found)
    each: dict[str, list[Tensor]] = {name: [] for name in NAMES}
    for one, seen in found:
        for name in NAMES:
            rows = [row for row, token in enumerate(one.masked) if bucket(token.ratio) == name]
            if rows:
                weight_R = torch.tensor([one.masked[row].weight for row in rows], dtype=torch.float64)
                loss = (weight_R * seen.nats_R[rows]).sum() / tokens
                parts = torch.autograd.grad(
                    loss, parameters, retain_graph=True, allow_unused=True, materialize_grads=True
                )
                each[name].append(torch.cat([part.flatten() for part in parts]))
    whole = torch.stack([part for own in each.values() for part in own]).sum(dim=0)
    made = {"gradient/norm": float(whole.norm())}
    norms = {}
    for name, own in each.items():
        norms[name] = float(torch.stack(own).sum(dim=0).norm()) if own else math.nan
        snr = math.nan
        if len(own) > 1:
            stack = torch.stack(own)
            noise_ = float((stack - stack.mean(dim=0)).square().sum()) / (len(own) - 1)
            snr = (float(stack.mean(dim=0).square().sum()) - noise_ / len(own)) / noise_
        made |= {
            f"gradient/{name}_norm": norms[name],
            f"gradient/{name}_sequences": len(own),
            f"gradient/{name}_norm_per_sequence": ratio(norms[name], len(own)),
            f"gradient/{name}_snr": snr,
        }
    for above, below in (("high", "low"), ("medium", "low"), ("high", "medium")):
        made[f"gradient/{above}_to_{below}"] = norms[above] / norms[below]
    return made


def counts_of(rows: Rows, size: int, *, filled: bool = False) -> list[int]:
    """How often each token is supervised in the text, or also where end of text fills up what the text leaves."""
    counts = [0] * size
    whole = rows.batch(np.arange(len(rows)), 0, len(rows), step=0)
    assert whole.fill_BL is not None
    for row in range(len(rows)):
        columns = zip(*(one[row].tolist() for one in (whole.ids_BL, whole.supervised_BL, whole.fill_BL)), strict=True)
        for token, learned, fill in columns:
            counts[token] += learned and (filled or not fill)
    return counts


def bias(found: list[tuple[Sequence, Seen]], counts: list[int]) -> dict[str, float]:
    order = sorted(range(len(counts)), key=lambda token: (-counts[token], token))
    tenth, before = {}, 0
    for token in order:
        tenth[token] = min(9, int(10 * (before + counts[token] / 2) / sum(counts)))
        before += counts[token]
    given, targets = [0.0] * 10, [0] * 10
    for one, seen in found:
        for token, law in zip(one.masked, seen.law_RV.tolist(), strict=True):
            targets[tenth[token.target]] += 1
            for candidate, chance in enumerate(law):
                given[tenth[candidate]] += chance
    return {
        f"frequency_bias/tenth_{number + 1}": math.log(given[number] / targets[number])
        if given[number] and targets[number]
        else math.nan
        for number in range(10)
    }


def runs_of(rows: Rows) -> list[list[int]]:
    """The supervised tokens of the longest document of each row."""
    found = []
    for number in range(len(rows)):
        batch = rows.batch(np.array([number]), 0, 1, step=0)
        document, ids = batch.document_BL[0].tolist(), batch.ids_BL[0].tolist()
        learned = (batch.supervised_BL & ~batch.fill_BL)[0].tolist()
        each = [
            [ids[c] for c, other in enumerate(document) if other == one and learned[c]] for one in sorted(set(document))
        ]
        found.append(max(each, key=len))
    return found


@torch.no_grad()
def written(
    network: Any, entry: dict[str, Any], prompt: list[int], size: int, end: int
) -> tuple[list[int], list[float]]:
    """A canvas of so many places, the surest one revealed in each step; its text and A_1, A_2, ..."""
    canvas: list[int | None] = [None] * size
    guesses: list[list[int | None]] = []
    while None in canvas:
        ids = prompt + [entry["mask_token_id"] if one is None else one for one in canvas]
        logits = network(input_ids=torch.tensor([ids]), attention_mask=torch.zeros(1, 1, len(ids), len(ids)).double())
        logits_NV = logits.logits[0, len(prompt) :].clone()
        logits_NV[:, entry["mask_token_id"]] = -math.inf
        logits_NV[:, entry["vocabulary_size"] :] = -math.inf
        law = logits_NV.softmax(-1)
        guesses.append([int(law[n].argmax()) if one is None else one for n, one in enumerate(canvas)])
        open_places = [n for n, one in enumerate(canvas) if one is None]
        best = max(open_places, key=lambda n: float(law[n].max()))
        canvas[best] = int(law[best].argmax())
        sure = list(itertools.takewhile(lambda one: one is not None, canvas))
        if end in sure:
            canvas = sure[: sure.index(end) + 1]
    final = [one for one in canvas if one is not None]
    return final, [mean([guess[n] == token for n, token in enumerate(final)]) for guess in guesses]


def generated(
    network: Any, entry: dict[str, Any], text: TrainingText, size: int, counts: list[int]
) -> dict[str, float]:
    tokenizer = byte_tokenizer()
    final, agreed = written(network, entry, [tokenizer.bos_token_id], size, tokenizer.eos_token_id)
    tokens = final * 4  # greedy, so the four texts are one
    real = list(itertools.chain(*runs_of(text.held_out or text.train)))[: len(tokens)]
    smooth = [(count + 0.5) / (sum(counts) + 0.5 * len(counts)) for count in counts]
    shares = {token: tokens.count(token) / len(tokens) for token in set(tokens)}
    return {
        "denoising/auc": mean(agreed),
        "denoising/steps_to_95": next(k for k, value in enumerate(agreed, start=1) if value >= 0.95),
        "denoising/forwards": len(agreed),
        "denoising/tokens_per_forward": len(final) / len(agreed),
        "denoising/remasked": 0,
        "generated/type_coverage": len(set(tokens)) / len(set(real)),
        "generated/unigram_kl": math.fsum(p * math.log(p / smooth[token]) for token, p in shares.items()),
    }


def opened(run: RunFolder) -> tuple[Any, dict[str, Any]]:
    """The checkpoint as plain `transformers` opens it, and what it says about diffusion."""
    folder = run.checkpoints / f"step-{STEPS}"
    network = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager").eval()
    return network, json.loads((folder / "config.json").read_text(encoding="utf-8"))["diffusion"]


def assert_equal(found: dict[str, float], expected: dict[str, float]) -> None:
    wrong = {
        name: (found[name], value)
        for name, value in expected.items()
        if found[name] != pytest.approx(value, rel=1e-5, abs=1e-6, nan_ok=True)
    }
    assert wrong == {}


def trained(folder: Path, tree: dict[str, Any]) -> tuple[RunFolder, dict[str, float], TrainingText]:
    """A run, its last probe record without the prefix, and its text."""
    recipe = config.from_tree(Recipe, tree)
    run = train(recipe).run
    text, _ = prepare(recipe, run, None)
    (line,) = [one for one in recipes.every_record(run) if one["step"] == STEPS and "probe/mask_accuracy" in one]
    return run, {key.removeprefix("probe/"): value for key, value in line.items() if key.startswith("probe/")}, text


def text_tree(folder: Path, method: str, **training: Any) -> dict[str, Any]:
    recipes.write_text(folder)
    every = {"detailed_metrics_steps": STEPS, "attention_analysis_steps": STEPS, "logging_steps": STEPS}
    tree = recipes.tree(folder, steps=STEPS, dropout=0.1, **(every | training))
    tree["data"]["context_length"] = LENGTH
    tree["model"] |= {"num_hidden_layers": 2, "initializer_range": 0.2}
    return tree | {"objective": {"method": method}, "seed": 3}


def shared_figures(
    run: RunFolder, method: str, rows: Rows, text: TrainingText, number: int = 8
) -> tuple[dict[str, float], Any, dict[str, Any], list[int]]:
    """What every method has, with the network, its entry and the counts of the training text."""
    network, entry = opened(run)
    block = entry["block_length"] or BLOCK
    chosen = sequences(method, rows, number, 3, entry["mask_token_id"], block)
    counts = counts_of(text.train, network.config.vocab_size)
    filled = counts_of(text.train, network.config.vocab_size, filled=True)
    found = [(one, evaluated(network, entry, method, one, block)) for one in chosen]
    return (
        first_tier(found, filled.index(max(filled)))
        | calibration(found)
        | attention(found, entry["mask_token_id"])
        | gradients(found, list(network.parameters()))
        | bias(found, counts),
        network,
        entry,
        counts,
    )


@pytest.mark.parametrize("options", [{}, {"micro_batch_size": 3, "gradient_checkpointing": True}])
def test_every_number_of_masked_diffusion(tmp_path: Path, options: dict[str, Any]) -> None:
    run, found, text = trained(tmp_path, text_tree(tmp_path, "masked_diffusion", **options))
    assert text.held_out is not None and len(text.held_out) > 8
    expected, network, entry, counts = shared_figures(run, "masked_diffusion", text.held_out, text)
    expected |= generated(network, entry, text, 4, counts)
    schedule = {name: value for name, value in found.items() if name.startswith("schedule/")}
    assert found.keys() == expected.keys() | schedule.keys()
    assert_equal(found, expected)
    assert found["loss_weight/mean"] == pytest.approx(1) and found["corruption/low_count"] > 0

    texts = runs_of(text.held_out)
    typical = statistics.median_low(map(len, texts))
    chosen = [one[:typical] for one in texts if len(one) >= typical][:128]
    rows = profile(network, entry, chosen)
    steps = [one for one in (4, 8, 16) if one < typical]
    assert schedule.keys() == {f"schedule/{name}_{one}" for name in ("excess", "optimality") for one in steps}
    for one in steps:
        optimality.assert_figures(schedule, rows, typical, one, optimality.linear(typical, one), seed=3)


@torch.no_grad()
def profile(network: Any, entry: dict[str, Any], texts: list[list[int]]) -> list[list[float]]:
    """Mean nats of the masked places behind BOS, for each text and each number of them."""
    size, mask = len(texts[0]), entry["mask_token_id"]
    lead = [byte_tokenizer().bos_token_id]
    orders = noise.permutation(Purpose.MASK, size, 3, torch.arange(len(texts))).tolist()
    found = []
    for text, order in zip(texts, orders, strict=True):
        hidden = [[place for place in range(size) if order[place] < count] for count in range(1, size + 1)]
        ids = [lead + [mask if place in one else token for place, token in enumerate(text)] for one in hidden]
        seen = torch.zeros(len(ids), 1, size + 1, size + 1, dtype=torch.float64)
        logits = network(input_ids=torch.tensor(ids), attention_mask=seen).logits[:, 1:].clone()
        logits[..., mask] = -math.inf
        logits[..., entry["vocabulary_size"] :] = -math.inf
        law = logits.log_softmax(-1)
        found.append([mean([-float(law[row, place, text[place]]) for place in one]) for row, one in enumerate(hidden)])
    return found


@pytest.mark.parametrize("method", ["block_diffusion", "tidar"])
def test_the_numbers_of_block_methods(tmp_path: Path, method: str) -> None:
    run, found, text = trained(tmp_path, text_tree(tmp_path, method))
    assert text.held_out is not None
    expected, *_ = shared_figures(run, method, text.held_out, text)
    others = found.keys() - expected.keys()
    schedule = {"schedule"} if method == "block_diffusion" else set()
    assert {name.partition("/")[0] for name in others} == {"denoising", "generated"} | schedule
    assert_equal(found, expected)
    assert (found["corruption/low_count"] > 0) == (method == "block_diffusion")


def test_conversations_mask_replies_alone(tmp_path: Path) -> None:
    chats = test_sft.write_chats(tmp_path)
    chats.write_text(chats.read_text(encoding="utf-8").replace('"red"', '"reeeeed"'), encoding="utf-8")
    every = {"detailed_metrics_steps": STEPS, "attention_analysis_steps": STEPS, "logging_steps": STEPS}
    tree = test_sft.tree(tmp_path, None, steps=STEPS, **every) | {"seed": 3}
    tree["data"] |= {"tokenizer": "byte"}
    run, found, text = trained(tmp_path, tree)
    rows = text.held_out
    assert rows is not None
    expected, *_, counts = shared_figures(run, "masked_diffusion", rows, text, number=min(8, len(rows)))
    assert_equal(found, expected)
    filled = counts_of(text.train, len(counts), filled=True)
    assert counts.index(max(counts)) != filled.index(max(filled)), "most of what is learned fills rows up"
