"""Judges: alpaca_eval's configuration of a judge with an OpenAI-compatible endpoint, plus prices.

A file has one entry, NAME: {...}, with alpaca_eval's keys. The existing files of HALOs users work unchanged, and so do
the names of the judges that alpaca_eval ships. Options that cannot be honoured are rejected before any request.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field, model_validator

from halos_eval.config.alpaca_index import Template, index
from halos_eval.config.judge_client import Client, split_options
from halos_eval.config.prices import Price, listed_price
from halos_eval.config.served_judge import CLASSIFICATION_PROMPT, JudgeChoice, ServedJudge
from halos_eval.config.settings import FROZEN
from halos_eval.config.yaml_file import parse_yaml, validated
from halos_eval.digests import digest_bytes
from halos_eval.errors import BadInput
from halos_eval.shipped import shipped

ANSWERS_WITH_PROBABILITIES = "completions_all"


class Judge(BaseModel):
    """One judge. The keys are those of alpaca_eval's configs.yaml."""

    model_config = FROZEN

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    """Key of the entry."""
    prompt_template: str = CLASSIFICATION_PROMPT
    """Template file: relative to this file, absolute, or shipped with alpaca_eval."""
    fn_completions: str = "openai_completions"
    """Only OpenAI-compatible endpoints are supported."""
    completions_kwargs: dict[str, Any]
    """``model_name`` and the options of each request: max_tokens, temperature, logprobs, extra_body, ..."""
    fn_completion_parser: str = "regex_parser"
    """alpaca_eval's parser of the answer, with alpaca_eval's default."""
    completion_parser_kwargs: dict[str, Any] = {}
    """Options of the parser."""
    completion_key: Literal["completions", "completions_all"] = "completions"
    """Input of the parser: the text, or the whole completion with log-probabilities."""
    batch_size: int = 1
    """Pairs in one request."""
    price_per_million_tokens: Price | None = None
    """Price list of the file; None: that of the table that ships."""
    template_text: str | None = None
    """Text of the user's own template; None for one that alpaca_eval ships."""
    processors_to_kwargs: dict[str, dict[str, Any]] = {}
    """alpaca_eval's processors of rows, with their options."""
    is_randomize_output_order: bool = True
    """Whether the two outputs change places at random."""
    pretty_name: str | None = None
    """Only for people."""
    link: str | None = None
    """Only for people."""
    client: Client = Client()
    """How the endpoint is reached, from ``client_kwargs``."""
    alpaca_eval_name: str | None = None
    """Name of the judge if alpaca_eval ships it."""

    @model_validator(mode="before")
    @classmethod
    def _without_client(cls, entry: Any) -> Any:
        """Take alpaca_eval's options of its client out of those of a request."""
        if not isinstance(entry, dict) or not isinstance(entry.get("completions_kwargs"), dict):
            return entry
        options = entry["completions_kwargs"]
        sent, client = split_options(options, index().client_options)
        entry = {**entry, "completions_kwargs": sent, "client": client}
        if options.get("price_per_token") is not None and entry.get("price_per_million_tokens") is None:
            price = float(options["price_per_token"]) * 1e6
            entry["price_per_million_tokens"] = {"input": price, "output": price}
        return entry

    @model_validator(mode="after")
    def _supported(self) -> Judge:
        if self.fn_completions != "openai_completions":
            raise ValueError(
                f"the client {self.fn_completions} is not supported; expected fn_completions: openai_completions. "
                "Serve the model at an OpenAI-compatible endpoint and write a judge file with this prompt_template"
            )
        if self.batch_size != 1:
            raise ValueError(f"batch_size {self.batch_size} is not supported; expected 1, one pair in each request")
        if not isinstance(self.completions_kwargs.get("model_name"), str):
            raise ValueError("completions_kwargs has no model_name. Add the model's name at the endpoint")
        return self

    @model_validator(mode="after")
    def _readable(self) -> Judge:
        """Compare the parser's and the processors' options with what alpaca_eval's functions take."""
        first = _check_parsers(self.fn_completion_parser, self.completion_parser_kwargs)
        for name, options in self.processors_to_kwargs.items():
            _check_options("processor", name, options, index().processors)
        weighs = first == "logprob_parser"
        if weighs != (self.completion_key == ANSWERS_WITH_PROBABILITIES):
            expected = ANSWERS_WITH_PROBABILITIES if weighs else "completions"
            raise ValueError(f"completion_key is {self.completion_key}; {first} expects {expected}. Change it")
        extra = self.completions_kwargs.get("extra_body")
        if weighs and not (
            self.completions_kwargs.get("logprobs") or (isinstance(extra, dict) and "logprobs" in extra)
        ):
            raise ValueError("logprob_parser needs log-probabilities; add logprobs: true, top_logprobs: 5")
        return self

    @property
    def model(self) -> str:
        """Name of the model at the endpoint."""
        return str(self.completions_kwargs["model_name"])

    @property
    def price(self) -> Price | None:
        """Price list: the file's own, else the table's for this model. None if neither has one: the cost is unknown."""
        return self.price_per_million_tokens or listed_price(self.model)

    @property
    def prices(self) -> str:
        """The prices and where they are from, for the record; or why there are none."""
        if self.price is None:
            return f"unknown: {self.model} is not in the price table. Add price_per_million_tokens to the judge's file"
        return f"{self.price} ({'of the judge file' if self.price_per_million_tokens else 'of halos-eval'})"

    def inputs(self) -> dict[str, str]:
        """Return the digest of everything that determines a preference; the price and the address do not."""
        return {"annotator": digest_bytes(self.model_dump_json(exclude=self._not_digested()).encode())}

    def _not_digested(self) -> set[str]:
        """Return what determines no preference, and keys that came later, at defaults that change no digest."""
        later = {"processors_to_kwargs": {}, "is_randomize_output_order": True}
        return {key for key, default in later.items() if getattr(self, key) == default} | NO_PREFERENCE

    def alpaca_config(self) -> dict[str, Any]:
        """Return the entry for alpaca_eval, without the function that sends requests: this project has its own.

        alpaca_eval 0.6.6 documents 0 as a tie and fails on it: its lmsys_parser returns 0, where a tie is 1.5.
        """
        entry = self.model_dump(exclude={"fn_completions", "template_text"} | self._not_digested())
        if self.fn_completion_parser == "lmsys_parser":
            parsers = {"lmsys_parser": self.completion_parser_kwargs, "replace_parser": {"replacer": {0: 1.5}}}
            entry["fn_completion_parser"] = "pipeline_meta_parser"
            entry["completion_parser_kwargs"] = {"parsers_to_kwargs": parsers}
        return entry


NO_PREFERENCE = {"name", "price_per_million_tokens", "pretty_name", "link", "client", "alpaca_eval_name"}
"""Fields that do not determine a preference."""


def _check_parsers(name: str, options: dict[str, Any]) -> str:
    """Return the name of the parser that reads the answer itself. Raise ValueError."""
    _check_options("parser", name, options, index().parsers)
    if name != "pipeline_meta_parser":
        return name
    parsers = options["parsers_to_kwargs"]
    if not isinstance(parsers, dict) or not parsers or not all(isinstance(one, dict) for one in parsers.values()):
        raise ValueError("parsers_to_kwargs is invalid; expected PARSER: {options}, in their order")
    known = {**index().parsers, "replace_parser": {"replacer": True, "default_replacer": False}}
    for one, its_options in parsers.items():
        _check_options("parser", one, its_options, known)
    return str(next(iter(parsers)))


def _check_options(kind: str, name: str, options: dict[str, Any], known: dict[str, dict[str, bool]]) -> None:
    if name not in known:
        raise ValueError(f"unknown {kind} {name}; alpaca_eval has {', '.join(sorted(known))}. Name one of these")
    if unknown := sorted(options.keys() - known[name].keys()):
        raise ValueError(f"{name} has no option {unknown[0]}; expected {', '.join(known[name]) or 'none'}. Remove it")
    if absent := [option for option, required in known[name].items() if required and option not in options]:
        raise ValueError(f"{name} needs {absent[0]}. Add it, or name another {kind}")


def shipped_names() -> list[str]:
    """Return the names of the judges that ship with the package."""
    return sorted(path.stem for path in shipped("judges").glob("*.yaml"))


def check_shipped(name: str) -> None:
    """Raise BadInput unless a judge of this name ships. Airflow's form must not name a file."""
    if name not in shipped_names():
        available = ", ".join(shipped_names())
        raise BadInput(f"unknown judge {name!r}; available: {available}. Name a judge's file in a suite instead")


def load_judge(name: JudgeChoice) -> Judge:
    """Return a judge by its shipped name, its name in alpaca_eval, its file or folder, or its model.

    Raises BadInput.
    """
    where = f"judge {name}"
    if isinstance(name, ServedJudge):
        return _judge(_served(name), where, (Path("/"),))
    if name in index().judges and name not in shipped_names():
        return _judge(index().judges[name], where, ()).model_copy(update={"alpaca_eval_name": name})
    path = shipped("judges") / f"{name}.yaml" if name in shipped_names() else Path(name)
    path = path / "configs.yaml" if path.is_dir() else path
    try:
        data = path.read_bytes()
    except OSError as error:
        available = ", ".join(shipped_names())
        raise BadInput(
            f"unknown judge {name!r}; available: {available}, and those of alpaca_eval {index().version}. Name one of "
            "these or a YAML file"
        ) from error
    # alpaca_eval looks for templates in the folder above, which holds a folder for each judge.
    return _judge(parse_yaml(data, where), where, (path.parent, path.absolute().parent.parent))


SERVED = "served"
"""Name of a served model at its endpoint. The record has the real one."""


def _served(judge: ServedJudge) -> dict[str, Any]:
    """Return the entry of a judge that vLLM serves.

    With the choice as structured output, the five most likely tokens always contain both, so every answer is readable.
    """
    request = {
        "model_name": SERVED,
        "max_tokens": 1,
        "temperature": 1,
        "logprobs": True,
        "top_logprobs": 5,
        "extra_body": {"structured_outputs": {"choice": ["m", "M"]}},
        "client_kwargs": {"timeout": 600.0},  # nobody bills a request, and a large model takes long for 64 prompts
    }
    return {
        SERVED: {
            "prompt_template": judge.prompt_template,
            "completions_kwargs": request,
            "fn_completion_parser": "logprob_parser",
            "completion_parser_kwargs": {
                "numerator_token": "m",
                "denominator_tokens": ["m", "M"],
                "is_binarize": False,
            },
            "completion_key": ANSWERS_WITH_PROBABILITIES,
            "price_per_million_tokens": {"input": 0, "output": 0},  # its price is its GPU's time
        }
    }


def _judge(document: Any, where: str, folders: tuple[Path, ...]) -> Judge:
    """Return the one judge of a document. Its template is in one of ``folders``, or alpaca_eval's."""
    if not isinstance(document, dict) or not document:
        raise BadInput(f"{where}: expected one entry, NAME: {{prompt_template: ..., completions_kwargs: ...}}")
    if len(document) > 1:
        raise BadInput(
            f"{where}: expected one entry, found {len(document)} ({', '.join(map(str, document))}). A pool of judges "
            "gives each pair to one of them; write a file for the one that you want"
        )
    ((key, entry),) = document.items()
    judge = validated({**(entry if isinstance(entry, dict) else {}), "name": str(key)}, Judge, where)
    for folder in folders:
        if (folder / judge.prompt_template).is_file():
            text = _template_text(folder / judge.prompt_template, where)
            return judge.model_copy(update={"template_text": text})
    template = index().templates.get(judge.prompt_template)
    if template is None:
        raise BadInput(
            f"{where}: prompt_template {judge.prompt_template} does not exist; expected a file beside the judge's "
            f"file, an absolute path, or a template of alpaca_eval {index().version}, such as {CLASSIFICATION_PROMPT}"
        )
    _check_template(template, judge.prompt_template, where)
    return judge


def _template_text(path: Path, where: str) -> str:
    try:
        data = path.read_bytes()
        _check_template(Template.of(data), str(path), where)
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"prompt_template {path} cannot be read: {error}. Save it as UTF-8 text") from error
    return path.read_text(encoding="utf-8")  # with the ends of lines that alpaca_eval reads


def _check_template(template: Template, name: str, where: str) -> None:
    if problem := template.problem():
        raise BadInput(f"{where}: prompt_template {name} {problem}")
