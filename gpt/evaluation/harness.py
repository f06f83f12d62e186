"""lm-eval's tasks, asked of a model in this process: pip install 'gpt-toolkit[eval]'.

What each request gives is what lm-eval's own class for transformers gives of the same model: the
same tokens are read and judged, up to rounding. Text that spells a control token stays text here.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lm_eval import simple_evaluate
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.tasks import TaskManager, get_task_dict
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window, make_table

from gpt.configuration import SamplingConfig
from gpt.errors import UserError
from gpt.evaluation.continuations import Row, judge
from gpt.language_model import LanguageModel

NEW_TOKENS = 256  # of an answer, where a task does not say it, as in lm-eval
_NAME = re.compile(r"^task:\s*([\w-]+)\s*$", re.M)
_FIELDS = {"temperature", "top_p", "top_k", "min_p"}


class HarnessModel(TemplateLM):  # type: ignore[misc]  # untyped
    """A model as lm-eval asks it."""

    def __init__(self, lm: LanguageModel):
        super().__init__()
        self._lm, self._tokens = lm, lm.tokenizer

    @property
    def eot_token_id(self) -> int:
        """What ends texts."""
        return self._tokens.end_of_text

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text of which the first token is judged."""
        begin = self._tokens.begin_of_text
        return self._tokens.end_of_text if begin is None else begin

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any
                   ) -> list[int]:
        """Ids, behind begin-of-text where there is one, unless that is not wanted."""
        if add_special_tokens is False or not string:
            return self._tokens.encode(string)
        return self._tokens.encode_prompt(string)

    def _loglikelihood_tokens(self, requests: Sequence[tuple[Any, list[int], list[int]]],
                              **_: Any) -> list[tuple[float, bool]]:
        """(log-likelihood, whether it is what the model would write) of continuations."""
        groups = [[Row([*context, *continuation], len(context))
                   for _, context, continuation in alike]
                  for _, alike in itertools.groupby(requests, key=lambda request: request[1])]
        return [(one.logprob, one.greedy) for group in judge(self._lm, groups) for one in group]

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False
                              ) -> list[float]:
        """Log-likelihoods of whole texts, in windows as long as the context."""
        windows = [[make_disjoint_window(window) for window in get_rolling_token_windows(
            self.tok_encode(request.args[0]), self.prefix_token_id, self._lm.block_size, 1)]
            for request in requests]
        judged = iter(judge(self._lm, [[Row([*before, *text], len(before))]
                                       for each in windows for before, text in each]))
        return [sum(next(judged)[0].logprob for _ in each) for each in windows]

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """What the model writes, up to one of the texts that end it."""
        asked = [(request.args[0], dict(normalize_gen_kwargs(request.args[1], NEW_TOKENS)))
                 for request in requests]
        found = self._lm.machine.replicas.dealt_out(asked, self._write)
        return [_before_first(text, options["until"])
                for text, (_, options) in zip(found, asked, strict=True)]

    def _write(self, asked: Sequence[tuple[str, dict[str, Any]]]) -> list[str]:
        written: list[list[int]] = [[] for _ in asked]
        stops = set(self._tokens.stop_tokens)
        for row, piece in self._lm.write([self._request(*each) for each in asked]):
            self._lm.machine.stop.raise_if_asked()
            if piece.new.token not in stops:
                written[row].append(piece.new.token)
        return [self._tokens.decode(ids) for ids in written]

    def _request(self, context: str, options: dict[str, Any]) -> Any:
        longest = self._lm.block_size - options["max_gen_toks"]
        if longest < 1:
            raise UserError(f"a task asks for {options['max_gen_toks']} new tokens, and the model "
                            f"reads {self._lm.block_size} in all")
        drawn: dict[str, Any] = {"temperature": 0.0}
        if options["do_sample"]:
            drawn = {name: options[name] for name in _FIELDS & {*options}}
        config = SamplingConfig(max_new_tokens=options["max_gen_toks"],
                                stop=[text for text in options["until"] if text], **drawn)
        return self._lm.request(self.tok_encode(context)[-longest:], config)


def _before_first(text: str, stops: Sequence[str]) -> str:
    for stop in stops:
        if stop:
            text = text.split(stop)[0]
    return text


def run_tasks(lm: LanguageModel, named: Sequence[str], shots: int | None = None,
              limit: int | None = None) -> dict[str, Any]:
    """lm-eval's results: {"results": {task: {metric: value}}, ...}.

    named: tasks of lm-eval by name, and files of tasks. shots: examples in the prompt; None: as the
    task says. limit: questions of each; None: all. Raises UserError for tasks that cannot be read.
    """
    files = [Path(each) for each in named if each.endswith((".yaml", ".yml"))]
    names = [each for each in named if not each.endswith((".yaml", ".yml"))]
    tasks = [*names, *map(_task_in, files)]
    try:
        manager = TaskManager(include_path=sorted({str(file.parent) for file in files}) or None,
                              include_defaults=bool(names))
        get_task_dict(tasks, manager)  # which reads their data, too
    except Exception as error:
        message = str(error).split("\n")[0]
        raise UserError(f"--tasks {','.join(named)}: cannot be read ({type(error).__name__}: "
                        f"{message}); lm-eval needs their names, and a network or a local copy of "
                        "their data") from error
    found = simple_evaluate(HarnessModel(lm), tasks=tasks, num_fewshot=shots, limit=limit,
                            task_manager=manager, log_samples=False)
    return dict(found)


def _task_in(file: Path) -> str:
    """The name of a file's task."""
    try:
        name = _NAME.search(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--tasks: cannot read {file}: {error}") from error
    if name is None:
        raise UserError(f"--tasks: {file} has no line `task: NAME`")
    return name[1]


def table(found: dict[str, Any]) -> str:
    """The results as lm-eval shows them."""
    made = make_table(found)
    groups = "\n" + make_table(found, "groups") if found.get("groups") else ""
    return str(made + groups).rstrip()
