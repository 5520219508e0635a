"""README.md of an export: what the model was trained on, how far, what came of it, and how to use it.

What is known of a run stands in the checkpoint's manifest; in the run's folder, where the checkpoint still lies in it, also
in run.json and metrics.jsonl. What is not known is left out.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from transformers import MPNetConfig

from mpnet_ds.checkpoint.store import CheckpointInfo, read_info
from mpnet_ds.metrics_file import FILE_NAME as METRICS
from mpnet_ds.metrics_file import read_metrics
from mpnet_ds.models.mpnet.sizes import parameter_count
from mpnet_ds.tokenizer import PretrainingTokenizer

PLACE = "THIS_FOLDER"
"""Stands in the card's code for the folder's path or its name on the hub."""
MOST_SOURCES = 10
OBJECTIVES = {
    "mpnet": "MPNet (masked and permuted language modelling)",
    "plm": "PLM (permuted language modelling)",
    "mlm": "MLM (masked language modelling)",
}
Row = tuple[str, str]


@dataclass(frozen=True)
class RunRecord:
    """What the run's folder tells."""

    settings: dict
    """run.json; empty if it is not there, or of another run."""
    metrics: list[dict]
    """Lines of metrics.jsonl up to the checkpoint's update."""

    @classmethod
    def of(cls, checkpoint: Path, info: CheckpointInfo) -> "RunRecord":
        """Of the run in whose folder the checkpoint lies."""
        folder = checkpoint.resolve().parent.parent
        try:
            settings = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return cls({}, [])
        if not isinstance(settings, dict) or settings.get("identity") != info.identity:
            return cls({}, [])
        return cls(settings, [line for line in read_metrics(folder / METRICS) if line["step"] <= info.step])

    def last(self, name: str) -> dict | None:
        """The newest line that has this number."""
        lines = (line for line in reversed(self.metrics) if line.get(name) is not None and "event" not in line)
        return next(lines, None)


def model_card(
    checkpoint: Path, config: MPNetConfig, tokenizer: PretrainingTokenizer, sentence_transformers: bool = False
) -> str:
    """The whole text, with the YAML front matter that the hub reads.

    Args:
        config: of the export.
        sentence_transformers: the folder is one of that library too.
    """
    info = read_info(checkpoint)
    run = RunRecord.of(checkpoint, info)
    parts = [
        _front_matter(info, sentence_transformers),
        "# MPNet encoder",
        f"A text encoder, pre-trained with mpnet_ds: {parameter_count(config):,} parameters, "
        f"{config.num_hidden_layers} layers of width {config.hidden_size}, {tokenizer.vocab_size:,} pieces.",
        "## Use",
        _USE.format(place=PLACE),
        _SENTENCES_WITH_LIBRARY.format(place=PLACE) if sentence_transformers else _SENTENCES.format(place=PLACE),
        "## Training",
        _table(_training_rows(info, run)),
        "## Data",
        _data(info, run),
        "## Model",
        _table(_model_rows(config, tokenizer, info, run)),
        "## Limits",
        _limits(info, tokenizer),
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def _front_matter(info: CheckpointInfo, sentence_transformers: bool) -> str:
    name = info.objective["name"]
    tags = ["mpnet", name, "mpnet_ds"] if name != "mpnet" else ["mpnet", "mpnet_ds"]
    tags += ["sentence-transformers"] if sentence_transformers else []
    lines = "".join(f"- {tag}\n" for tag in tags)
    return f"---\nlibrary_name: transformers\npipeline_tag: fill-mask\ntags:\n{lines}---"


def _training_rows(info: CheckpointInfo, run: RunRecord) -> list[Row]:
    rows = [("objective", OBJECTIVES[info.objective["name"]]), ("updates", f"{info.step:,}")]
    rows += [("rows of text", f"{info.consumed_samples:,} of up to {info.seq_length} tokens")]
    tokens = _tokens_per_row(info, run)
    if tokens:
        rows.append(("tokens", f"{round(info.consumed_samples * tokens):,}"))
    rows += _masking_rows(info)
    if losses := run.last("loss"):
        rows.append(("training loss", f"{losses['loss']:.4f} nats a predicted token (update {losses['step']:,})"))
    rows += _held_out_rows(info, run)
    batch = info.identity.get("global_batch_size")
    rows += [("rows an update", f"{batch:,}")] if batch else []
    optimization = run.settings.get("recipe", {}).get("optimization", {})
    if "learning_rate" in optimization:
        rows.append(("highest learning rate", f"{optimization['learning_rate']:g}"))
    return [*rows, ("precision", info.precision)]


def _masking_rows(info: CheckpointInfo) -> list[Row]:
    masking = info.objective.get("masking")
    if masking is None:
        return []
    unit = "whole words" if masking["whole_word"] else "tokens"
    if masking["max_ngram"] > 1:
        unit += f" in spans of up to {masking['max_ngram']}"
    kinds = {"masked": "mask_probability", "left as they are": "keep_probability", "random": "random_probability"}
    shares = ", ".join(f"{masking[name]:.0%} {kind}" for kind, name in kinds.items() if masking[name])
    return [("predicted", f"{masking['predicted_fraction']:.0%} of the tokens, {unit}: {shares}")]


def _held_out_rows(info: CheckpointInfo, run: RunRecord) -> list[Row]:
    found = {"eval_loss": info.eval_loss, "step": info.step} if info.eval_loss is not None else run.last("eval_loss")
    if found is None:
        return []
    return [("loss on held-out text", f"{found['eval_loss']:.4f} nats a predicted token (update {found['step']:,})")]


def _tokens_per_row(info: CheckpointInfo, run: RunRecord) -> float | None:
    known = run.settings.get("data", {}).get("tokens_per_row")
    if known is None and info.identity.get("data", {}).get("sample_mode") == "stream":
        return info.seq_length  # rows are full
    return known


def _data(info: CheckpointInfo, run: RunRecord) -> str:
    """A table of the datasets, or nothing but the checksum where the run's folder is not at hand."""
    datasets = run.settings.get("data", {}).get("training", [])
    lines = []
    for data in datasets:
        share = f"{data['share']:.2%} of the rows: " if len(datasets) > 1 else ""
        size = f"{data['documents']:,} documents, {data['tokens']:,} tokens"
        lines.append(f"* {share}{size}, from {_sources(data['sources'], data['num_sources'])}")
    checksum = info.identity.get("dataset")
    if isinstance(checksum, str):
        lines.append(f"* checksum of the dataset: `{checksum}`")
    elif checksum:
        lines += [f"* checksum of a dataset ({share} of the rows): `{one}`" for one, share in checksum]
    return "\n".join(lines) or "Not known: the checkpoint was exported without its run's folder."


def _sources(names: list[str], count: int) -> str:
    """Files without the folders they lay in, which concern nobody else; names of sets as they are."""
    shown = [f"`{_without_folders(name)}`" for name in names[:MOST_SOURCES]]
    more = [f"{count - len(shown):,} more"] if count > len(shown) else []
    return ", ".join([*shown, *more]) or "sources that are not recorded"


def _without_folders(source: str) -> str:
    path = Path(source)
    return path.name if path.is_absolute() or path.suffix else source


def _model_rows(config: MPNetConfig, tokenizer: PretrainingTokenizer, info: CheckpointInfo, run: RunRecord) -> list[Row]:
    rows = [
        ("layers", f"{config.num_hidden_layers} of width {config.hidden_size}, {config.num_attention_heads} heads"),
        ("inner width", f"{config.intermediate_size:,}"),
        ("parameters", f"{parameter_count(config):,}"),
        ("vocabulary", f"{tokenizer.vocab_size:,} pieces ({tokenizer.kind})"),
        ("longest input", f"{info.seq_length} tokens in training, the table of positions has {_reach(config)}"),
    ]
    versions = run.settings.get("versions", {})
    if versions:
        rows.append(("made with", ", ".join(f"{name} {version}" for name, version in versions.items())))
    return rows


def _reach(config: MPNetConfig) -> int:
    return config.max_position_embeddings - 2


def _limits(info: CheckpointInfo, tokenizer: PretrainingTokenizer) -> str:
    lines = [
        "It knows the language, the subjects and the prejudices of the text that it was trained on, and no others.",
        f"Texts of more than {info.seq_length} tokens are cut.",
        "It is an encoder: it fills masks and represents text, it does not write.",
    ]
    normalizer = tokenizer.backend.normalizer
    if normalizer is not None and normalizer.normalize_str("A") == "a":
        lines.append("Capital letters are not told from small ones.")
    return "\n".join(f"* {line}" for line in lines)


def _table(rows: list[Row]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])


_USE = """The likeliest words for a mask:

```python
from transformers import pipeline

fill_mask = pipeline("fill-mask", model="{place}")
for guess in fill_mask("the <mask> of the list."):
    print(guess["token_str"], guess["score"])
```

The encoder's hidden states, for a model of your own:

```python
import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{place}")
encoder = AutoModelForMaskedLM.from_pretrained("{place}").base_model
batch = tokenizer(["One text.", "Another one."], padding=True, truncation=True, return_tensors="pt")
with torch.no_grad():
    hidden = encoder(**batch).last_hidden_state  # (texts, tokens, width)
```

To fine-tune it, load the same folder as `MPNetForSequenceClassification`, `MPNetForTokenClassification`,
`MPNetForQuestionAnswering` or `MPNetForMultipleChoice`: they take the encoder's weights over and begin with a new head."""

_WARNING = """A sentence's embedding is the mean of its hidden states. **A model that was only pre-trained gives poor ones:
fine-tune it on pairs of sentences, with sentence-transformers for example, before you compare sentences by them.**"""

_SENTENCES = (
    _WARNING
    + """

```python
import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{place}")
encoder = AutoModelForMaskedLM.from_pretrained("{place}").base_model
batch = tokenizer(["One text.", "Another one."], padding=True, truncation=True, return_tensors="pt")
with torch.no_grad():
    hidden = encoder(**batch).last_hidden_state
real = batch["attention_mask"].unsqueeze(-1)
embeddings = (hidden * real).sum(dim=1) / real.sum(dim=1)  # (texts, width)
```"""
)

_SENTENCES_WITH_LIBRARY = (
    _WARNING
    + """

```python
from sentence_transformers import SentenceTransformer

encoder = SentenceTransformer("{place}")
embeddings = encoder.encode(["One text.", "Another one."])  # (texts, width)
```"""
)
