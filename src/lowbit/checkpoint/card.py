"""The model card that goes with a backbone or merged model, as the hub reads it."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard, ModelCardData

from lowbit.checkpoint.directory import hub_id
from lowbit.checkpoint.measure import measure
from lowbit.checkpoint.verify import read_quantization_config
from lowbit.plan import module_specs

CARD_FILE = "README.md"
THIS_REPOSITORY = "THIS-REPOSITORY"  # in a card: what pushing replaces by the name on the hub

# What the hub calls the use of a class, by the ending of its name.
_PIPELINES = {
    "ForMaskedLM": "fill-mask",
    "ForCausalLM": "text-generation",
    "LMHeadModel": "text-generation",
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForQuestionAnswering": "question-answering",
    "EncoderModel": "feature-extraction",
    "Model": "feature-extraction",
}
_KEPT = ("license", "license_name", "license_link", "language")  # of the source's card: they hold here too


def backbone_card(folder: Path, source: Path | None) -> str:
    """Markdown for ``README.md``: what it is, how to load it, what was quantized, and what it cannot do.

    ``folder`` holds the weights and ``config.json`` already. License and language are those of the card in
    ``source``, the folder it was made from; what is not known is left out.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    model_class = (config.get("architectures") or ["model"])[0]
    task = config.get("lowbit_task")
    name = model_class if source is None else hub_id(source) or source.name
    data = {**_facts(source, "quantized" if task is None else "finetune"), **_uses(model_class)}
    tags = ["lowbit", "quantized", *_bit_tags(folder)]
    size = measure(folder)
    return f"""{front_matter(library_name="transformers", tags=tags, **data)}
# {name}, quantized with lowbit

A low-bit `{model_class}`, quantized without data: {size.effective_bits:.2f} effective bits per weight of the
transformer blocks, {size.model_bits:.2f} bits per parameter over the whole model ({size.parameters:,} parameters in
{size.file_bytes:,} bytes).
{_backbone_use() if task is None else _task_use(task, data.get("pipeline_tag") == "text-generation")}
## What was quantized

{_contents(folder)}

`lowbit inspect {THIS_REPOSITORY}` shows every module, `lowbit verify DIR` checks every byte of a copy.

## Limitations

- It loads with lowbit only; without `import lowbit` transformers stops with a size mismatch.
- Quantization changes the outputs. How much that costs on your task is for you to measure: `lowbit evaluate`.
- It is smaller on disk and in memory, and not faster by that alone.
- What is said of the original model, its license, intended use and biases, holds for this one too.
"""


def front_matter(**data: Any) -> str:
    """The YAML block at the head of a card."""
    return f"---\n{ModelCardData(**data).to_yaml()}\n---"


def score_table(scores: dict[str, dict[str, float | None]]) -> str:
    """A Markdown table of metrics by evaluation set."""
    rows = [(split, metric, value) for split, metrics in scores.items() for metric, value in metrics.items()]
    lines = [f"| {s} | {m} | {'not defined' if v is None else f'{v:.4f}'} |" for s, m, v in rows]
    return "\n".join(["| Evaluation set | Metric | Score |", "| --- | --- | ---: |", *lines])


def _backbone_use() -> str:
    return f"""
```python
import lowbit  # registers the format

model = lowbit.load("{THIS_REPOSITORY}")  # or any AutoModel class of transformers
model = lowbit.load("{THIS_REPOSITORY}", adapter="ADAPTER")  # with a task adapter that was tuned on it
```
"""


def generation_example(model: str, adapter: str | None = None) -> str:
    """Python that lets a language model, with its adapter if there is one, go on from a text."""
    extra = "" if adapter is None else f', adapter="{adapter}"'
    return f"""import lowbit
from transformers import AutoTokenizer

model, tokenizer = lowbit.load("{model}"{extra}), AutoTokenizer.from_pretrained("{model}")
inputs = tokenizer("some text", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=20)[0]))"""


def _task_use(task: dict[str, Any], generates: bool) -> str:
    scores = task.get("scores")
    measured = f"\nMeasured when it was tuned:\n\n{score_table(scores)}\n" if scores else ""
    tuned = "Its outliers and head were" if "fingerprint" in task else "Before that the whole model was"
    predicting = f'import lowbit\n\nprint(list(lowbit.predict("{THIS_REPOSITORY}", ["some text"])))'
    return f"""
{tuned} tuned for the task `{task.get("task")}`.
{measured}
```python
{generation_example(THIS_REPOSITORY) if generates else predicting}
```
"""


def _contents(folder: Path) -> str:
    """One line per scheme with its number of modules, then, where a plan is there, what stayed in float and why."""
    specs = module_specs(read_quantization_config(folder)).values()
    schemes = Counter((str(spec.scheme), spec.kind) for spec in specs)
    lines = [f"- {count} x {kind}: `{scheme}`" for (scheme, kind), count in schemes.items()]
    plan = folder / "plan.json"
    if plan.is_file():
        values = json.loads(plan.read_text(encoding="utf-8"))
        skipped = Counter(entry["reason"] for entry in values["modules"] if entry["scheme"] is None)
        lines += [f"- {count} modules in float: {reason}" for reason, count in skipped.items()]
        lines += [f"- note: {note}" for note in values.get("notes", ())]
    return "\n".join(lines)


def _bit_tags(folder: Path) -> list[str]:
    """The hub's tags for widths, as in ``4-bit``; embeddings do not count."""
    specs = module_specs(read_quantization_config(folder)).values()
    return [f"{bits}-bit" for bits in sorted({spec.scheme.bits for spec in specs if spec.kind != "embedding"})]


def _uses(model_class: str) -> dict[str, str]:
    return next(({"pipeline_tag": tag} for end, tag in _PIPELINES.items() if model_class.endswith(end)), {})


def _facts(source: Path | None, relation: str) -> dict[str, Any]:
    """What is known of the source: its hub id, and license and language from its own card."""
    if source is None:
        return {}
    known = _card_data(source)
    facts = {key: known[key] for key in _KEPT if known.get(key)}
    base = hub_id(source)
    if base is None and "lowbit" in (known.get("tags") or []):  # a copy of a backbone has the same origin
        base = known.get("base_model")
    return facts if base is None else {**facts, "base_model": base, "base_model_relation": relation}


def _card_data(folder: Path) -> dict[str, Any]:
    """The front matter of a folder's card; a card that cannot be read says nothing."""
    card = folder / CARD_FILE
    if not card.is_file():
        return {}
    text = card.read_text(encoding="utf-8", errors="replace")
    if not re.match(r"\s*---", text):
        return {}
    try:
        return dict(ModelCard(text, ignore_metadata_errors=True).data.to_dict())
    except (ValueError, TypeError, yaml.YAMLError):
        return {}
