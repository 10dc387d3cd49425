"""A model as lm-evaluation-harness sees one: log-likelihoods of answers and of texts, and generation.

In: the harness's requests (texts). Out: what `lm_eval.api.model.LM` promises, in the order of the requests; batches are
formed here, longest first, and never change a result. For diffusion models a log-likelihood is a lower bound (or the
chain rule, by setting), and so a perplexity made of it is an upper bound. Choices of one question share their masks.

    from unmask.evaluation.harness import HarnessLM
    lm_eval.simple_evaluate(HarnessLM(DiffusionLM.from_pretrained(...)), tasks=["hellaswag"])
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.models.utils import normalize_gen_kwargs
from rich.console import Console
from rich.progress import track

from unmask.errors import CheckpointError, PromptError, SettingsError
from unmask.evaluation.answers import AnswerNats, Pair, scored
from unmask.evaluation.model import LanguageModel
from unmask.evaluation.texts import text_ids
from unmask.settings.decoding import SamplingParams
from unmask.settings.evaluation import AnswerSettings

T = TypeVar("T")
_DEFAULT_NEW_TOKENS = 256  # the harness's own, for tasks that name no length


@dataclass
class Tally:
    """What the harness has no place for, of one task.

    Attributes:
        answers: answers and texts scored.
        stderr_sum: the sum of their standard errors in nats; NaN if one is unknown.
        cut: contexts and prompts that were too long and lost tokens on the left.
        lost: tokens that they lost.
        forwards: network evaluations of generation, over all texts.
        ignored: generation options of the task that no decoding of ours has.
    """

    answers: int = 0
    stderr_sum: float = 0.0
    cut: int = 0
    lost: int = 0
    forwards: int = 0
    ignored: set[str] = field(default_factory=set)

    def add(self, nats: AnswerNats) -> None:
        """Count one answer."""
        self.answers += 1
        self.stderr_sum += nats.stderr
        self.shorten(nats.lost)

    def shorten(self, lost: int) -> None:
        """Count one context that lost tokens, if it did."""
        self.cut += lost > 0
        self.lost += lost

    @property
    def mean_stderr(self) -> float:
        """Mean standard error of a log-likelihood in nats; 0 if all are exact."""
        return self.stderr_sum / max(1, self.answers)


class HarnessLM(LM):
    """A language model for the harness.

    Args:
        lm: with a tokenizer; `unmask.lm.DiffusionLM`.
        settings: how log-likelihoods are measured.
        sampling: fields of `SamplingParams` that overrule what the tasks ask for.
        greedy_tasks: names of the tasks whose answers are compared with greedy decoding; None: all. Elsewhere the
            second half of a log-likelihood's result is False.
    """

    def __init__(
        self,
        lm: LanguageModel,
        settings: AnswerSettings | None = None,
        *,
        sampling: Mapping[str, Any] | None = None,
        greedy_tasks: Collection[str] | None = None,
    ) -> None:
        super().__init__()
        if lm.tokenizer is None:
            raise CheckpointError("Tasks are texts, and this checkpoint has no tokenizer. Save one beside the model.")
        self.lm, self.tokenizer = lm, lm.tokenizer
        self.settings = settings or AnswerSettings()
        self.sampling = dict(sampling or {})
        self.greedy_tasks = greedy_tasks
        self.tallies: defaultdict[str, Tally] = defaultdict(Tally)
        self._device = lm.backbone.device
        self._has_chats = False

    @property
    def max_length(self) -> int:
        """Tokens of context and answer, or prompt and new tokens, together."""
        return self.settings.max_length or self.lm.backbone.context_length

    @property
    def eot_token_id(self) -> int | None:
        """The id that ends a text, or None."""
        return cast("int | None", self.tokenizer.eos_token_id)

    # --- log-likelihoods ----------------------------------------------------------------------------------------

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        pairs = [self._pair(*_arguments(request)[:2], key=_key(request)) for request in requests]
        greedy = [self.greedy_tasks is None or request.task_name in self.greedy_tasks for request in requests]
        results: dict[int, tuple[float, bool]] = {}
        for number, nats in self._scored(pairs, requests, greedy):
            results[number] = (-nats.nats, bool(nats.is_greedy))
            self.cache_hook.add_partial("loglikelihood", requests[number].args, results[number])
        return [results[number] for number in range(len(requests))]

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """Log-likelihood of whole texts behind BOS, window by window; for diffusion models a lower bound."""
        pairs = [self._pair("", _arguments(request)[0], key=_key(request)) for request in requests]
        results: dict[int, float] = {}
        for number, nats in self._scored(pairs, requests, None):
            results[number] = -nats.nats
            self.cache_hook.add_partial("loglikelihood_rolling", requests[number].args, results[number])
        return [results[number] for number in range(len(requests))]

    def _scored(
        self, pairs: Sequence[Pair], requests: Sequence[Instance], greedy: Sequence[bool] | None
    ) -> Iterator[tuple[int, AnswerNats]]:
        found = scored(self.lm.backbone.eval(), pairs, self.settings, greedy=greedy)
        for number, nats in _shown(found, len(pairs), "log-likelihoods"):
            self.tallies[requests[number].task_name or ""].add(nats)
            yield number, nats

    def _pair(self, context: str, continuation: str, *, key: int) -> Pair:
        """Both as token ids; spaces at the end of the context belong to the continuation (LLaDA, lm-eval)."""
        kept = context.rstrip()
        continuation, context = context[len(kept) :] + continuation, kept
        if not context:
            return Pair(self._start(), tuple(text_ids(self.tokenizer, continuation)), key)
        before = self._encode(context)
        tokens = self._encode(context + continuation)[len(before) :]
        return Pair(tuple(before), tuple(tokens or text_ids(self.tokenizer, continuation)), key)

    def _encode(self, text: str) -> list[int]:
        """Token ids after one BOS: of a text, which holds no control tokens, or of messages that a template wrote."""
        if self._has_chats:
            return self.lm.codec.checked(self.lm.codec.read(text))
        return self.lm.codec.checked(text_ids(self.tokenizer, text, special=True))

    def _start(self) -> tuple[int, ...]:
        """What stands before a text without context: BOS, else end of text where something has to."""
        return tuple(self.lm.codec.encode(None))

    # --- generation ---------------------------------------------------------------------------------------------

    def generate_until(self, requests: list[Instance]) -> list[str]:
        repeats: Counter[int] = Counter()
        groups: defaultdict[SamplingParams, list[tuple[int, SamplingParams, list[int]]]] = defaultdict(list)
        for number, request in enumerate(requests):
            context, asked = _arguments(request)[:2]
            one = self._params(asked, self.tallies[request.task_name or ""])
            prompt = self._prompt(context, one.max_new_tokens, self.tallies[request.task_name or ""])
            seeded = dataclasses.replace(one, seed=one.seed + repeats[id(request)])
            repeats[id(request)] += 1
            groups[one].append((number, seeded, prompt))
        results: dict[int, str] = {}
        for number, text in _shown(self._generated(groups.values(), requests), len(requests), "texts"):
            results[number] = text
            self.cache_hook.add_partial("generate_until", requests[number].args, text)
        return [results[number] for number in range(len(requests))]

    def _generated(
        self, groups: Iterable[list[tuple[int, SamplingParams, list[int]]]], requests: Sequence[Instance]
    ) -> Iterator[tuple[int, str]]:
        """The text of each request, batch by batch; a batch has one set of parameters and similar lengths."""
        size = self.settings.batch_size
        for group in groups:
            group.sort(key=lambda job: (-len(job[2]), job[2]))
            for start in range(0, len(group), size):
                numbers, params, prompts = zip(*group[start : start + size], strict=True)
                outputs = self.lm.generate([ids or "" for ids in prompts], params, batch_size=size)
                for number, output in zip(numbers, outputs, strict=True):
                    self.tallies[requests[number].task_name or ""].forwards += output.forwards
                    yield number, output.text

    def _params(self, asked: Mapping[str, Any], tally: Tally) -> SamplingParams:
        """What a task asks for, overruled by what the user asks for; greedy unless the task samples."""
        wanted: dict[str, Any] = {**normalize_gen_kwargs(dict(asked), _DEFAULT_NEW_TOKENS)}
        stop, samples = [text for text in wanted.pop("until") if text], wanted.pop("do_sample")
        fields: dict[str, Any] = {"max_new_tokens": wanted.pop("max_gen_toks")}
        drawn = {name: wanted.pop(name) for name in ("temperature", "top_k", "top_p") if name in wanted}
        fields |= ({"temperature": 1.0} | drawn) if samples else {"temperature": 0.0}
        tally.ignored |= set(wanted)
        fields |= self.sampling
        fields["stop"] = tuple(dict.fromkeys([*stop, *self.sampling.get("stop", ())]))
        return SamplingParams(**fields)

    def _prompt(self, context: str, new_tokens: int, tally: Tally) -> list[int]:
        ids, room = self._encode(context), self.max_length - new_tokens
        if room < 1:
            raise SettingsError(
                f"max_new_tokens {new_tokens} leaves no room for a prompt within {self.max_length} tokens. Lower it: "
                f"--max-new-tokens {self.max_length // 2}"
            )
        tally.shorten(max(0, len(ids) - room))
        return ids[-room:]

    # --- chat templates -----------------------------------------------------------------------------------------

    @property
    def tokenizer_name(self) -> str:
        """Names the tokenizer and its template in the harness's cache of requests."""
        template = json.dumps(self.tokenizer.chat_template, default=str).encode()
        name = str(self.tokenizer.name_or_path).replace("/", "__")
        return f"{name}-{hashlib.blake2b(template, digest_size=4).hexdigest()}"

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        if chat_template is False:
            return None
        if not self.tokenizer.chat_template:
            raise PromptError("This model's tokenizer has no chat template. Leave out --apply-chat-template.")
        self._has_chats = True
        return cast(str, self.tokenizer.get_chat_template(chat_template if isinstance(chat_template, str) else None))

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        self._has_chats = True
        return self.lm.codec.chat_text(chat_history, reply=add_generation_prompt)


def _arguments(request: Instance) -> tuple[Any, ...]:
    return cast("tuple[Any, ...]", request.args)


def _key(request: Instance) -> int:
    """Names the draws of a request: those of one question, whose choices may differ in their contexts, are equal."""
    name = str(_arguments(request)[0]) if request.doc_id is None else f"{request.task_name}:{request.doc_id}"
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little", signed=True)


def _shown(items: Iterable[T], total: int, label: str) -> Iterator[T]:
    """The items, with a bar on a terminal."""
    console = Console(stderr=True)
    yield from track(items, label, total, console=console, transient=True, disable=not console.is_terminal)
