"""What figures are made of: finite nats, bytes of the text alone, spelled special tokens, lossy tokenizers."""

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch

from tests import tiny
from unmask import DiffusionLM
from unmask.cli.main import main
from unmask.data.batch import Batch
from unmask.data.tokenized import TokenizedText
from unmask.errors import NonFiniteError
from unmask.evaluation import answers
from unmask.evaluation.answers import Pair
from unmask.evaluation.likelihood import Versions, row_nats, summed
from unmask.evaluation.masks import systematic_stderr
from unmask.evaluation.pieces import Piece, Reader, by_document, chain_rule_nats, cut, in_order, nats_of
from unmask.evaluation.texts import kept, text_batch, text_ids
from unmask.models.loading import Checkpoint, adapted, create
from unmask.models.tokenizers import byte_tokenizer, load_tokenizer
from unmask.objectives.example import Example
from unmask.objectives.loss import loss
from unmask.settings.evaluation import AnswerSettings, EvaluationSettings
from unmask.settings.objective import ObjectiveSettings

METHODS = ["autoregressive", "masked_diffusion", "block_diffusion", "tidar"]
SPELLED = "a <|bos|> b<|eos|> c"
SETTINGS = EvaluationSettings(masks_per_sequence=4)


def lm_of(method: str) -> DiffusionLM:
    blocks = {"block_length": 4} if method in ("block_diffusion", "tidar") else {}
    made = adapted(create(tiny.SHAPE, byte_tokenizer(), seed=0), ObjectiveSettings(method=method, **blocks))  # type: ignore[arg-type]
    return DiffusionLM(Checkpoint(made.backbone.double().eval(), made.tokenizer))


def broken(method: str, value: float = math.nan) -> DiffusionLM:
    lm = lm_of(method)
    with torch.no_grad():
        lm.backbone.network.get_input_embeddings().weight[:, 0] = value  # type: ignore[operator,index]
    return lm


@pytest.mark.parametrize("method", METHODS)
def test_every_scorer_reads_a_spelled_special_token_as_text(method: str, tmp_path: Path) -> None:
    lm = lm_of(method)
    tokenizer = lm.tokenizer
    assert tokenizer is not None
    ids = text_ids(tokenizer, SPELLED)
    assert not set(ids) & {tokenizer.bos_token_id, tokenizer.eos_token_id}
    assert len(ids) == len(SPELLED.encode())
    trained = TokenizedText.build([SPELLED], tokenizer, tmp_path / "tokens")
    assert trained.tokens.tolist() == [*ids, tokenizer.eos_token_id]
    batch = text_batch(lm.codec, [SPELLED])
    assert batch.ids_BL.tolist() == [[tokenizer.bos_token_id, *ids]]
    (score,) = lm.score(SPELLED, SETTINGS)
    (by_ids,) = lm.score([ids], SETTINGS)
    assert (score.tokens, score.bytes) == (len(ids), len(SPELLED.encode()))
    assert score.log_likelihood == by_ids.log_likelihood
    pieces = cut([SPELLED], [Reader("m", tokenizer, 100)], at_most=5)
    assert [piece.text for piece in pieces] == [SPELLED]
    rows = nats_of(lm.codec, pieces, SETTINGS, name="m")
    assert float(rows.nats_B) == pytest.approx(-score.log_likelihood)
    pair = Pair((tokenizer.bos_token_id,), tuple(ids))  # type: ignore[arg-type]
    (chained,) = answers.score(lm.backbone, [pair], AnswerSettings(likelihood="chain_rule"))
    assert chain_rule_nats(lm.codec, pieces, SETTINGS) == pytest.approx([chained.nats])


def test_the_harness_reads_a_spelled_special_token_as_text_unless_a_template_wrote_it() -> None:
    pytest.importorskip("lm_eval")
    from lm_eval.api.instance import Instance

    from unmask.evaluation.harness import HarnessLM

    lm = lm_of("autoregressive")
    tokenizer = lm.tokenizer
    assert tokenizer is not None
    harness = HarnessLM(lm)
    pair = harness._pair("a<|eos|>", " b<|bos|>", key=1)
    assert pair.context == (tokenizer.bos_token_id, *text_ids(tokenizer, "a<|eos|>"))
    assert pair.answer == tuple(text_ids(tokenizer, " b<|bos|>"))
    assert harness._pair("", SPELLED, key=1).answer == tuple(text_ids(tokenizer, SPELLED))
    request = Instance("loglikelihood_rolling", {}, (SPELLED,), 0, metadata=("t", 0, 1))
    (rolling,) = harness.loglikelihood_rolling([request])
    assert rolling == pytest.approx(lm.score(SPELLED)[0].log_likelihood)
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}<|eos|>{% endfor %}"
    text = harness.apply_chat_template([{"role": "user", "content": "a"}])
    assert harness._encode(text)[-1] == tokenizer.eos_token_id


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("method", METHODS)
def test_a_likelihood_that_is_not_finite_is_an_error(method: str, value: float) -> None:
    lm = broken(method, value)
    with pytest.raises(NonFiniteError, match="The likelihood of row 0 of a batch is"):
        lm.score("abc", SETTINGS)
    with pytest.raises(NonFiniteError, match="The likelihood of"):
        answers.score(lm.backbone, [Pair((1,), (5, 6, 7))], AnswerSettings(mc_num=4, mc_batch=4))
    with pytest.raises(NonFiniteError, match="The likelihood of"):
        nats_of(lm.codec, [Piece(0, "abc")], SETTINGS, name="m")


def test_the_command_line_says_so_and_prints_no_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken("autoregressive").save_pretrained(tmp_path / "model")
    (tmp_path / "text.txt").write_text("some text\n" * 40)
    for words in (
        ["evaluate", str(tmp_path / "model"), "--data", str(tmp_path / "text.txt"), "--json"],
        ["generate", str(tmp_path / "model"), "a", "--max-new-tokens", "4"],
    ):
        assert main(words) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert "is not finite" in err or "The likelihood of row" in err


def test_an_empty_micro_batch_has_no_correct_rows() -> None:
    """A row of weight 0 stands in for the rows that are not there; it counts for nothing."""
    model = tiny.backbone("masked_diffusion")
    empty = torch.zeros(0)
    layout = model.clean_layout(torch.zeros(1, 3, dtype=torch.int64))
    index = empty.long()
    example = Example(
        ids_BL=torch.tensor([[1, 2, 3]]),
        layout=layout,
        row_R=index,
        target_R=index,
        weight_R=empty,
        term_R=index,
        group_R=index,
        ratio_R=empty,
        source_R=index,
        terms=("one", "other"),
        denominator_T=torch.zeros(2, dtype=torch.float64),
        shares=(0.5, 0.5),
    )
    hidden = torch.zeros(1, 3, model.head_weight.shape[1], dtype=torch.float64)
    # All logits are equal, so that whatever row stands in is right.
    found = loss(hidden, example, model.logits, parameters=(model.head_weight,), scale_T=torch.ones(2))
    assert found.correct_T.tolist() == found.sum_T.tolist() == [0, 0]
    assert len(found.cross_entropy_R) == 0 and float(found.total.detach()) == 0


def test_the_standard_error_does_not_depend_on_the_order_of_the_versions() -> None:
    """Successive differences are of versions in the order of their times, whatever order they were drawn in."""
    time = torch.tensor([[0.1, 0.3, 0.5, 0.7], [0.2, 0.4, 0.6, 0.8]], dtype=torch.float64)
    value = torch.tensor([[1.0, 2, 4, 8], [3.0, 3, 5, 4]], dtype=torch.float64)
    count = torch.ones(2, dtype=torch.int64)
    for order in ([0, 1, 2, 3], [2, 0, 3, 1], [3, 2, 1, 0]):
        made = Versions(value[:, order], value[:, order], value[:, order].long(), time[:, order], count, count, count)
        assert made.bound.stderr_B.tolist() == systematic_stderr(value).tolist()
        expected = [math.sqrt((1 + 4 + 16) / (2 * 4 * 3)), math.sqrt((0 + 4 + 1) / (2 * 4 * 3))]
        assert made.bound.stderr_B.tolist() == pytest.approx(expected)


def test_figures_of_documents_follow_the_documents_not_the_batches() -> None:
    """Batches are formed longest first; sums and errors are those of the documents in their own order."""
    pieces = [Piece(0, "ab"), Piece(0, "abcdef"), Piece(2, "a"), Piece(5, "abcd")]
    by_length = torch.tensor([6.0, 4.0, 2.0, 1.0])
    values = in_order([by_length[:2], by_length[2:]], pieces)
    assert values.tolist() == [2, 6, 1, 4]
    assert by_document(pieces, values).tolist() == [8, 1, 4]
    lm = lm_of("masked_diffusion")
    rows = nats_of(lm.codec, pieces, SETTINGS, name="m")
    for at, piece in enumerate(pieces):
        batch = dataclasses.replace(text_batch(lm.codec, [piece.text]), uid_B=torch.tensor([at]))
        alone = row_nats(lm.backbone, batch, SETTINGS)
        assert float(rows.stderr_B[at]) == pytest.approx(float(alone.stderr_B), abs=1e-9)
    total = summed(rows, True)
    assert total.stderr == pytest.approx(math.sqrt(sum(float(one) ** 2 for one in rows.stderr_B)))


@pytest.mark.parametrize("method", METHODS)
def test_bytes_are_those_of_the_scored_text_alone(method: str) -> None:
    """A prompt has bytes that are not scored, and what fills a row up is no text."""
    lm = lm_of(method)
    ids = [[1, 10, 11, 12, 13, 14, 1, 1]]
    supervised = [[False, False, False, True, True, True, True, True]]
    batch = dataclasses.replace(
        Batch.of_rows(ids, supervised),
        bytes_BL=torch.tensor([[0, 5, 5, 1, 2, 3, 0, 0]]),
        fill_BL=torch.tensor([[False] * 6 + [True] * 2]),
    )
    found = row_nats(lm.backbone, batch, SETTINGS)
    assert found.bytes_B.tolist() == [6]
    assert found.tokens_B.tolist() == [3]


@pytest.mark.parametrize(
    ("text", "changed", "unknown"),
    [
        ("hello there", 0, 0),
        ("Hello", 1, 0),
        ("caf\u00e9", 1, 0),
        ("a \U0001f9ff b", 1, 1),
        ("  spaced  ", 0, 0),
        ("\x01", 1, 0),
    ],
)
def test_what_a_tokenizer_loses_is_counted(text: str, changed: int, unknown: int, shared_data: Path) -> None:
    tokenizer = load_tokenizer(shared_data / "tokenizers" / "bert-base-uncased")
    found = kept(tokenizer, [text, "kept as it is"])
    assert (found.documents, found.changed, found.unknown) == (2, changed, unknown)
    assert found.text_bytes == len(text.encode()) + 13
    assert bool(found.warning) == (changed > 0)
    lost = len(text.encode()) if not text_ids(tokenizer, text) else 0
    assert found.scored_bytes == found.text_bytes - lost


def test_a_byte_tokenizer_loses_nothing() -> None:
    found = kept(byte_tokenizer(), ["a<|eos|>b", "\x00\ufffd", "", " \U0001f9ff\n"])
    assert found.warning == "" and found.changed == 0 and found.scored_bytes == found.text_bytes


def test_evaluate_reports_what_the_tokenizer_loses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], shared_data: Path
) -> None:
    made = create(tiny.SHAPE, load_tokenizer(shared_data / "tokenizers" / "bert-base-uncased"), seed=0)
    DiffusionLM(made).save_pretrained(tmp_path / "model")
    (tmp_path / "text.txt").write_text("Some Words that are not all lower case.\n" * 30)
    assert main(["evaluate", str(tmp_path / "model"), "--data", str(tmp_path / "text.txt"), "--json"]) == 0
    out, err = capsys.readouterr()
    record = json.loads(out)
    assert record["tokenizer"]["changed"] == record["tokenizer"]["documents"] >= 1
    assert "warning: The tokenizer changes" in err and "'some words" in err
