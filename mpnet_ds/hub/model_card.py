"""README.md of an export: what the model was trained on, for how long, with what result, and how to use it.

The text is model_card_template.md; this file collects the facts for it. Some are in the checkpoint's manifest, others in
run.json and metrics.jsonl if the checkpoint is still in its run's folder. What is not known is omitted; that licence,
languages and sources were not stated is said.
"""

import inspect
import re
from dataclasses import dataclass, replace
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData
from transformers.models.auto import modeling_auto

from mpnet_ds.checkpoint.store import CheckpointInfo
from mpnet_ds.data.storage.provenance import UNKNOWN, Provenance, joined
from mpnet_ds.errors import UserError
from mpnet_ds.hub.exportable import TrainedModel
from mpnet_ds.hub.part_weights import contents_of
from mpnet_ds.metrics_file import FILE_NAME as METRICS
from mpnet_ds.metrics_file import read_metrics
from mpnet_ds.models.module import Part
from mpnet_ds.objectives import Objective
from mpnet_ds.objectives.clm import CLM
from mpnet_ds.run_record import Stretch, read_record, starts_of, stretches_of

TEMPLATE = Path(__file__).with_name("model_card_template.md")
FOLDER = "THIS_FOLDER"
"""Placeholder in the card's code for the folder's path or its name on the hub."""
MOST_SOURCES = 10
HUB_DATASET = re.compile(r"(?:https://(?:huggingface\.co|hf\.co)/datasets/)?(\w[\w.-]*/\w[\w.-]*)")
"""A data set of the hub, by its name or address."""
_LISTED = (
    "afl-3.0 agpl-3.0 apache-2.0 artistic-2.0 bigcode-openrail-m bigscience-bloom-rail-1.0 bigscience-openrail-m bsd "
    "bsd-2-clause bsd-3-clause bsd-3-clause-clear bsl-1.0 c-uda cc cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-nc-2.0 "
    "cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 "
    "cc-by-nd-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc0-1.0 cdla-permissive-1.0 cdla-permissive-2.0 cdla-sharing-1.0 "
    "creativeml-openrail-m ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 gfdl gpl gpl-2.0 gpl-3.0 isc lgpl lgpl-2.1 "
    "lgpl-3.0 lppl-1.3c mit mpl-2.0 ms-pl ncsa odbl odc-by ofl-1.1 openrail openrail++ osl-3.0 pddl postgresql unlicense "
    "wtfpl zlib"
)
HUB_LICENSES = frozenset(_LISTED.split())
"""Licences that the hub knows by name (huggingface.co/docs/hub/repositories-licenses)."""
HEADS = ("SEQUENCE_CLASSIFICATION", "TOKEN_CLASSIFICATION", "QUESTION_ANSWERING", "MULTIPLE_CHOICE")


@dataclass(frozen=True)
class RunFacts:
    """Facts from the run's folder."""

    settings: dict
    """Those with which the checkpoint was made, of run.json; empty if that is missing, damaged, or of another run."""
    stretches: list[Stretch]
    """The starts that made the checkpoint's steps, oldest first."""
    metrics: list[dict]
    """Lines of metrics.jsonl up to the checkpoint's step."""

    @classmethod
    def of(cls, checkpoint: Path, info: CheckpointInfo) -> "RunFacts":
        """Facts of the run in whose folder the checkpoint is."""
        folder = checkpoint.resolve().parent.parent
        try:
            record = read_record(folder)
        except UserError:
            record = None
        if record is None or record.get("identity") != info.identity:
            return cls({}, [], [])
        stretches = stretches_of(starts_of(record), info.step)
        settings = {**(stretches[-1].start if stretches else record), "data": record.get("data", {})}
        return cls(settings, stretches, [line for line in read_metrics(folder / METRICS) if line["step"] <= info.step])

    def last(self, name: str) -> dict | None:
        """Find the newest line that has this metric."""
        lines = (line for line in reversed(self.metrics) if line.get(name) is not None and "event" not in line)
        return next(lines, None)

    @property
    def base(self) -> dict:
        """The start that loaded the weights of ``--init_from``; empty if none did."""
        return next((part.start for part in self.stretches if part.start.get("init_from")), {})

    @property
    def provenance(self) -> Provenance:
        """What was stated of the texts; the recipe's licence counts for all of them."""
        stated = joined(Provenance(**one.get("provenance", {})) for one in self.settings.get("data", {}).get("training", []))
        licence = self.settings.get("recipe", {}).get("data", {}).get("license")
        return replace(stated, licenses=[licence]) if licence else stated


def model_card(model: TrainedModel, part: Part, sentence_transformers: bool = False) -> str:
    """Write a part's whole card, with the YAML front matter that the hub reads.

    Args:
        sentence_transformers: the folder is also a model of that library.
    """
    info, kind, family = model.info, part.model_class.__name__, part.config.model_type
    run, name = RunFacts.of(model.checkpoint, info), info.objective["name"]
    generates = name == CLM.name
    fills_masks = kind in modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES.values() and not generates
    tags = [*dict.fromkeys([family, name, "mpnet_ds"]), *(["sentence-transformers"] if sentence_transformers else [])]
    pipeline_tag = "fill-mask" if fills_masks else "text-generation" if generates else None
    data = ModelCardData(library_name="transformers", pipeline_tag=pipeline_tag, tags=tags, **_origins(run))
    evaluated = {"eval_loss": info.eval_loss, "step": info.step} if info.eval_loss is not None else run.last("eval_loss")
    card = ModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        kind=kind,
        imports=_imports(part.model_class),
        folder=FOLDER,
        mask=model.tokenizer.layout.mask,
        fills_masks=fills_masks,
        generates=generates,
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
        learning_rates=_learning_rates(run),
        base=run.base.get("base_model") or Path(run.base.get("init_from", "")).name,
        provenance=run.provenance,
        datasets=[one | {"names": _sources(one)} for one in run.settings.get("data", {}).get("training", [])],
        checksums=_checksums(info),
        versions=", ".join(f"{package} {version}" for package, version in run.settings.get("versions", {}).items()),
    )
    return f"{card}\n"


def _origins(run: RunFacts) -> dict:
    """Collect what the hub's front matter has of licence, languages, data and base; nothing that was not stated."""
    stated = run.provenance
    licences, languages = ([text for text in texts if text != UNKNOWN] for texts in (stated.licenses, stated.languages))
    datasets = [found[1] for text in stated.sources if (found := HUB_DATASET.fullmatch(text))]
    single = _license(*licences) if len(stated.licenses) == len(licences) == 1 else {}
    return single | {"language": languages or None, "datasets": datasets or None, "base_model": run.base.get("base_model")}


def _license(text: str) -> dict:
    """Name a licence as the hub does: one that it does not list is ``other``, with a name and perhaps a link."""
    if text.lower() in HUB_LICENSES:
        return {"license": text.lower()}
    is_link = text.startswith(("https://", "http://"))
    name = re.sub(r"[^a-z0-9.]+", "-", text.rstrip("/").rpartition("/")[2].lower() if is_link else text.lower()).strip("-")
    return {"license": "other", "license_name": name or "other", "license_link": text if is_link else None}


def _learning_rates(run: RunFacts) -> str:
    """List the highest learning rates of the starts, where they changed: ``0.003 (then 0.001 from step 20 on)``."""
    found: list[tuple[float, str]] = []
    for start, first, last in run.stretches:
        optimization = start.get("recipe", {}).get("optimization", {})
        rate, warmup = optimization.get("learning_rate"), optimization.get("warmup_steps", 0)
        if rate is None or (found and found[-1][0] == rate):
            continue
        unreached = f", not reached in its warm-up of {warmup:,} steps" if last < warmup else ""
        found.append((rate, f"{rate:g}" + (f" from step {first:,} on" if first else "") + unreached))
    first, *others = [text for _, text in found] or [""]
    return f"{first} (then {'; '.join(others)})" if others else first


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
