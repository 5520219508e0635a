"""README.md of an export: what the model was trained on, for how long, with what result, and how to use it.

The text is model_card_template.md; this file collects the facts for it. Some are in the checkpoint's manifest, others in
run.json and metrics.jsonl if the checkpoint is still in its run's folder. What is not known is omitted.
"""

import inspect
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData
from transformers.models.auto import modeling_auto

from mpnet_ds.checkpoint.store import CheckpointInfo
from mpnet_ds.errors import UserError
from mpnet_ds.hub.exportable import TrainedModel
from mpnet_ds.hub.part_weights import contents_of
from mpnet_ds.metrics_file import FILE_NAME as METRICS
from mpnet_ds.metrics_file import read_metrics
from mpnet_ds.models.module import Part
from mpnet_ds.objectives import Objective
from mpnet_ds.run_record import read_record
from mpnet_ds.tokenizer import MASK

TEMPLATE = Path(__file__).with_name("model_card_template.md")
FOLDER = "THIS_FOLDER"
"""Placeholder in the card's code for the folder's path or its name on the hub."""
MOST_SOURCES = 10
HEADS = ("SEQUENCE_CLASSIFICATION", "TOKEN_CLASSIFICATION", "QUESTION_ANSWERING", "MULTIPLE_CHOICE")


@dataclass(frozen=True)
class RunFacts:
    """Facts from the run's folder."""

    settings: dict
    """run.json; empty if it is missing, damaged, or of another run."""
    metrics: list[dict]
    """Lines of metrics.jsonl up to the checkpoint's step."""

    @classmethod
    def of(cls, checkpoint: Path, info: CheckpointInfo) -> "RunFacts":
        """Facts of the run in whose folder the checkpoint is."""
        folder = checkpoint.resolve().parent.parent
        try:
            settings = read_record(folder)
        except UserError:
            settings = None
        if not isinstance(settings, dict) or settings.get("identity") != info.identity:
            return cls({}, [])
        return cls(settings, [line for line in read_metrics(folder / METRICS) if line["step"] <= info.step])

    def last(self, name: str) -> dict | None:
        """Find the newest line that has this metric."""
        lines = (line for line in reversed(self.metrics) if line.get(name) is not None and "event" not in line)
        return next(lines, None)


def model_card(model: TrainedModel, part: Part, sentence_transformers: bool = False) -> str:
    """Write a part's whole card, with the YAML front matter that the hub reads.

    Args:
        sentence_transformers: the folder is also a model of that library.
    """
    info, kind, family = model.info, part.model_class.__name__, part.config.model_type
    run, name = RunFacts.of(model.checkpoint, info), info.objective["name"]
    fills_masks = kind in modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES.values()
    tags = [*dict.fromkeys([family, name, "mpnet_ds"]), *(["sentence-transformers"] if sentence_transformers else [])]
    data = ModelCardData(library_name="transformers", pipeline_tag="fill-mask" if fills_masks else None, tags=tags)
    evaluated = {"eval_loss": info.eval_loss, "step": info.step} if info.eval_loss is not None else run.last("eval_loss")
    card = ModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        kind=kind,
        imports=_imports(part.model_class),
        folder=FOLDER,
        mask=MASK,
        fills_masks=fills_masks,
        heads=_heads(family),
        sentence_transformers=sentence_transformers,
        config=part.config,
        parameters=contents_of(part).num_parameters,
        tokenizer=model.tokenizer,
        lower_case=_is_lower_case(model),
        info=info,
        objective=model.recipe.objective,
        summary=inspect.getdoc(model.recipe.objective).partition("\n")[0],
        masking=_masking(model.recipe.objective),
        tokens=_tokens(info, run),
        loss=run.last("loss"),
        eval_loss=evaluated,
        learning_rate=run.settings.get("recipe", {}).get("optimization", {}).get("learning_rate"),
        datasets=[one | {"names": _sources(one)} for one in run.settings.get("data", {}).get("training", [])],
        checksums=_checksums(info),
        versions=", ".join(f"{package} {version}" for package, version in run.settings.get("versions", {}).items()),
    )
    return f"{card}\n"


def _imports(model_class: type) -> str:
    package = model_class.__module__.partition(".")[0]
    if package == "transformers":
        return f"from transformers import AutoTokenizer, {model_class.__name__}"
    return f"from {model_class.__module__} import {model_class.__name__}\nfrom transformers import AutoTokenizer"


def _heads(family: str) -> str:
    """List the family's classes for fine-tuning, in words."""
    mappings = (getattr(modeling_auto, f"MODEL_FOR_{head}_MAPPING_NAMES") for head in HEADS)
    *others, last = [f"`{mapping[family]}`" for mapping in mappings if family in mapping] or [""]
    return f"{', '.join(others)} or {last}" if others else last


def _is_lower_case(model: TrainedModel) -> bool:
    normalizer = model.tokenizer.backend.normalizer
    return normalizer is not None and normalizer.normalize_str("A") == "a"


def _masking(objective: Objective) -> str:
    """Describe which tokens are predicted and their inputs, in words; empty if the objective masks nothing."""
    masking = getattr(objective, "masking", None)
    if masking is None:
        return ""
    unit = "whole words" if masking.whole_word else "tokens"
    if masking.max_ngram > 1:
        unit += f" in spans of up to {masking.max_ngram}"
    kinds = {"masked": "mask_probability", "left as they are": "keep_probability", "random": "random_probability"}
    shares = ", ".join(f"{getattr(masking, name):.0%} {kind}" for kind, name in kinds.items() if getattr(masking, name))
    return f"{masking.predicted_fraction:.0%} of the tokens, {unit}: {shares}"


def _tokens(info: CheckpointInfo, run: RunFacts) -> int | None:
    """Count the tokens seen, without padding, if known."""
    per_sequence = run.settings.get("data", {}).get("tokens_per_sequence")
    if per_sequence is None and info.identity.get("data", {}).get("sample_mode") == "stream":
        per_sequence = info.seq_length  # sequences are full
    return round(info.consumed_samples * per_sequence) if per_sequence else None


def _checksums(info: CheckpointInfo) -> list[tuple[str, str | None]]:
    """List the checksum of each dataset, and its share of the sequences in a mixture."""
    found = info.identity.get("dataset") or []
    return [(found, None)] if isinstance(found, str) else [(checksum, share) for checksum, share in found]


def _sources(data: dict) -> str:
    """List files without their folders, which are private; names of datasets as they are."""
    shown = [f"`{_without_folders(name)}`" for name in data["sources"][:MOST_SOURCES]]
    more = data["num_sources"] - len(shown)
    return ", ".join([*shown, *([f"{more:,} more"] if more > 0 else [])]) or "sources that are not recorded"


def _without_folders(source: str) -> str:
    path = Path(source)
    return path.name if path.is_absolute() or path.suffix else source
