"""The scores of the data-constrained study: every checkpoint on the text that nothing was chosen on.

In: finished runs and the report part. Out: nats of each of its documents under the last and the best checkpoint of a
run, kept in a file each, and what follows for the arms: their figures over seeds, paired bootstrap intervals between
them, and what TDLM's loss would have said of the same checkpoints.
"""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from data_constrained_runs import ARMS, Case, Study, trajectory
from data_constrained_text import read
from torch import Tensor

from unmask.analysis.tdlm_loss import TdlmRows, tdlm_rows
from unmask.evaluation.compare import Scored, compared
from unmask.evaluation.likelihood import RowNats, is_bound
from unmask.evaluation.pieces import Piece, Reader, batches, by_document, chain_rule_nats, cut, in_order, nats_of
from unmask.lm import DiffusionLM
from unmask.settings.evaluation import EvaluationSettings
from unmask.writing import write_text

CHECKPOINTS = {"final": "latest", "best": "best"}
"""What is scored of a run, and where it lies."""
TDLM = "TDLM's number"
Score = dict[str, Any]
Scores = Mapping[tuple[Case, str], Score]


@dataclasses.dataclass(frozen=True)
class Scorer:
    """How checkpoints are scored.

    Attributes:
        study: whose runs.
        masks: of each piece of a document, for bounds.
        batch_size: rows per forward.
        chain_rule: whether diffusion models are also scored from left to right, a forward for each token.
    """

    study: Study
    masks: int
    batch_size: int
    chain_rule: bool

    @property
    def settings(self) -> EvaluationSettings:
        return EvaluationSettings(masks_per_sequence=self.masks, batch_size=self.batch_size)

    def pieces(self, lm: DiffusionLM, context_length: int) -> list[Piece]:
        """The report part, in pieces of a row each; the same for every arm, as their tokens are."""
        documents = read(self.study.folder / "text" / "report.jsonl")
        assert lm.tokenizer is not None, "runs keep their tokenizer"
        reader = Reader("the study", lm.tokenizer, context_length - 1)
        return cut(documents, [reader], at_most=sum(map(len, documents)))

    def score(self, case: Case, which: str) -> Score:
        """The nats of each document under a checkpoint, kept in a file; the last one may be the best one as well."""
        step = self._step(case, which)
        file = self.study.folder / "scores" / f"{case.name}-step-{step}.json"
        if not file.is_file():
            lm, pieces = self._opened(case, which)
            write_text(file, json.dumps(self._scored(lm, pieces) | {"step": step}))
        return json.loads(file.read_text(encoding="utf-8"))

    def left_to_right(self, case: Case) -> Score:
        """A diffusion model's nats of each document by the chain rule, kept in a file; of the best checkpoint."""
        file = self.study.folder / "scores" / f"{case.name}-left-to-right-{self._step(case, 'best')}.json"
        if not file.is_file():
            lm, pieces = self._opened(case, "best")
            nats_B = torch.tensor(chain_rule_nats(lm.codec, pieces, self.settings), dtype=torch.float64)
            bytes_B = torch.tensor([piece.bytes for piece in pieces])
            found = {
                "is_bound": False,
                "method": lm.backbone.diffusion.method,
                "nats": by_document(pieces, nats_B).tolist(),
                "bytes": by_document(pieces, bytes_B).tolist(),
            }
            write_text(file, json.dumps(found | {"stderr": [0.0] * len(found["nats"])}))
        return json.loads(file.read_text(encoding="utf-8"))

    def _opened(self, case: Case, which: str) -> tuple[DiffusionLM, list[Piece]]:
        lm = DiffusionLM.from_pretrained(self.study.run(case).root / CHECKPOINTS[which]).optimize_for_inference()
        return lm, self.pieces(lm, self.study.recipe(case).data.context_length)

    def _step(self, case: Case, which: str) -> int:
        found = self.study.run(case).checkpoint(CHECKPOINTS[which])
        assert found is not None, "a finished run has both"
        return int(found.name.removeprefix("step-"))

    def _scored(self, lm: DiffusionLM, pieces: list[Piece]) -> Score:
        extra: dict[str, Any] = {}
        if lm.backbone.diffusion.method == "masked_diffusion":
            found = [
                tdlm_rows(lm.backbone, batch, self.settings) for batch in batches(lm.codec, pieces, self.batch_size)
            ]
            rows = RowNats(*(in_order(fields, pieces) for fields in zip(*(one.bound for one in found), strict=True)))
            extra = {
                name: by_document(pieces, in_order([getattr(one, name) for one in found], pieces)).tolist()
                for name in TdlmRows._fields
                if name != "bound"
            }
        else:
            rows = nats_of(lm.codec, pieces, self.settings, name="the checkpoint")
        return {
            "is_bound": is_bound(lm.backbone),
            "method": lm.backbone.diffusion.method,
            "nats": by_document(pieces, rows.nats_B).tolist(),
            "stderr": by_document(pieces, rows.stderr_B.square()).sqrt().tolist(),
            "bytes": by_document(pieces, rows.bytes_B).tolist(),
            "tokens": int(rows.tokens_B.sum()),
            **extra,
        }


def results(study: Study, cases: Sequence[Case], scores: Scores) -> list[dict[str, Any]]:
    """A line for each run."""
    lines = []
    for case in cases:
        course = trajectory(study.run(case))
        last = course[-1]["step"]
        line: dict[str, Any] = dataclasses.asdict(case) | {
            "steps": last,
            "tokens": course[-1]["tokens"],
            "best_epoch": scores[case, "best"]["step"] / last * case.epochs,
            "select_best": min(one["bits_per_byte"] for one in course),
            "select_final": course[-1]["bits_per_byte"],
        }
        for which in CHECKPOINTS:
            score = scores[case, which]
            line[which] = bits(score["nats"], score)
            line[f"{which}_stderr"] = bits([math.hypot(*score["stderr"])], score)
            if "weighted_B" in score:
                line[f"{which}_tdlm"] = bits(tdlm_nats(score), score)
        lines.append(line)
    return lines


def bits(nats: Sequence[float], score: Score) -> float:
    """Bits per byte of the report part."""
    return math.fsum(nats) / sum(score["bytes"]) / math.log(2)


def tdlm_nats(score: Score) -> list[float]:
    """TDLM's number, shared out over the documents so that their sum over the tokens is what it prints."""
    scale = score["tokens"] / math.fsum(score["masked_B"])
    return [weighted * scale for weighted in score["weighted_B"]]


def chosen(lines: Sequence[Mapping[str, Any]], arm: str) -> list[Case]:
    """For each seed of an arm, the run whose best checkpoint is lowest on the selection part."""
    own = [line for line in lines if line["arm"] == arm]
    found = []
    for seed in sorted({line["seed"] for line in own}):
        best = min((line for line in own if line["seed"] == seed), key=lambda line: line["select_best"])
        found.append(Case(arm, best["epochs"], seed))
    return found


def over_seeds(name: str, scores: Sequence[Score], nats: Sequence[Sequence[float]] | None = None) -> Scored:
    """The mean over seeds of each document's nats, as one contender; `nats` in place of the scores' own."""
    first = scores[0]
    values_SN = torch.tensor([one["nats"] for one in scores] if nats is None else nats, dtype=torch.float64)
    stderr_SN = torch.tensor([one["stderr"] for one in scores], dtype=torch.float64)
    if nats is not None:
        stderr_SN = torch.zeros_like(stderr_SN)
    bounded = first["is_bound"] and nats is None
    return Scored(name, first["method"], bounded, values_SN.mean(dim=0), _mean_stderr(stderr_SN))


def comparison(contenders: Mapping[str, Sequence[Score]]) -> dict[str, Any]:
    """Paired intervals of all pairs of arms; a contender has a score for each of its seeds."""
    models = [over_seeds(name, scores) for name, scores in contenders.items()]
    bytes_N = torch.tensor(next(iter(contenders.values()))[0]["bytes"])
    record = compared(models, bytes_N, seed=0)
    for model, scores in zip(record["models"], contenders.values(), strict=True):
        model["seeds"] = [bits(score["nats"], score) for score in scores]
        model["seeds_spread"] = statistics.stdev(model["seeds"]) if len(scores) > 1 else None
    return record


def control(autoregressive: Sequence[Score], diffusion: Sequence[Score]) -> dict[str, Any]:
    """What TDLM's loss says of the same diffusion checkpoints, and what the bound says, against exact AR."""
    models = [
        over_seeds("AR", autoregressive),
        over_seeds("bound", diffusion),
        over_seeds(TDLM, diffusion, [tdlm_nats(score) for score in diffusion]),
    ]
    record = compared(models, torch.tensor(diffusion[0]["bytes"]), seed=0)
    tokens = diffusion[0]["tokens"]
    for model, scored in zip(record["models"], models, strict=True):
        model["nats_per_token"] = float(scored.nats_N.sum()) / tokens
    return record


def controls(
    scores: Scores, chosen_from: Mapping[str, Mapping[str, Sequence[Case]]], budgets: Sequence[int]
) -> dict[str, Any]:
    """The control at each budget, of best checkpoints, and of the choices over several budgets."""
    pairs = {}
    for budget in budgets:
        both = [
            [case for case, which in scores if (case.arm, case.epochs, which) == (arm, budget, "best")]
            for arm in ("autoregressive", "masked-diffusion")
        ]
        pairs[f"{budget} epochs"] = both
    for name, by_arm in chosen_from.items():
        pairs[name] = [[*by_arm.get(arm, ())] for arm in ("autoregressive", "masked-diffusion")]
    return {
        name: control(*([scores[case, "best"] for case in cases] for cases in both))
        for name, both in pairs.items()
        if all(both)
    }


def summary(scorer: Scorer, cases: Sequence[Case]) -> dict[str, Any]:
    """All figures of the finished runs: `best` and `longest` of the budgets that all arms have, `further` of all."""
    scores = {(case, which): scorer.score(case, which) for case in cases for which in CHECKPOINTS}
    lines = results(scorer.study, cases, scores)
    arms = [arm for arm in ARMS if any(case.arm == arm for case in cases)]
    budgets = {arm: {case.epochs for case in cases if case.arm == arm} for arm in arms}
    shared = set.intersection(*budgets.values())
    longest = max(shared, default=0)
    best = {arm: chosen([line for line in lines if line["epochs"] in shared], arm) for arm in arms}
    picked = {
        "best": {arm: [scores[case, "best"] for case in best[arm]] for arm in arms},
        "longest": {
            arm: [scores[case, "final"] for case in cases if (case.arm, case.epochs) == (arm, longest)] for arm in arms
        },
    }
    chosen_from = {"best": best}
    if any(own != shared for own in budgets.values()):
        chosen_from["further"] = {arm: chosen(lines, arm) for arm in arms}
        picked["further"] = {arm: [scores[case, "best"] for case in chosen_from["further"][arm]] for arm in arms}
    found: dict[str, Any] = {"results": lines, "longest_shared": longest}
    found["budget"] = {
        name: {arm: [one.epochs for one in own] for arm, own in by_arm.items()} for name, by_arm in chosen_from.items()
    }
    for name, contenders in picked.items():
        given = {arm: own for arm, own in contenders.items() if own}
        if len(given) > 1:
            found[name] = comparison({ARMS[arm]: own for arm, own in given.items()})
    found["control"] = controls(scores, chosen_from, sorted(shared))
    if scorer.chain_rule:
        last = [*chosen_from][-1]
        contenders = {ARMS[arm]: own for arm, own in picked[last].items() if own and not own[0]["is_bound"]} | {
            f"{ARMS[arm]}, left to right": [scorer.left_to_right(case) for case in chosen_from[last][arm]]
            for arm, own in picked[last].items()
            if own and own[0]["is_bound"]
        }
        if len(contenders) > 1:
            found["left_to_right"] = comparison(contenders)
    found["trajectories"] = [
        dataclasses.asdict(case) | {"points": trajectory(scorer.study.run(case))}
        for case in cases
        if case.epochs == max(budgets[case.arm])
    ]
    return found


def _mean_stderr(stderr_SN: Tensor) -> Tensor:
    """Of the mean over seeds: each seed's model errs on the same masks, so their errors are not taken to cancel."""
    return stderr_SN.mean(dim=0)
