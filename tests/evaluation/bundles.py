"""A small bundle in the layout of the one that CORE is published with."""

from __future__ import annotations

import json
from pathlib import Path

CAPITALS = [("France", "Paris"), ("Italy", "Rome"), ("Spain", "Madrid"), ("Peru", "Lima"),
            ("Cuba", "Havana"), ("Kenya", "Nairobi"), ("Norway", "Oslo"), ("Japan", "Tokyo")]
TASKS = """icl_tasks:
-
  label: capitals
  dataset_uri: world/capitals.jsonl
  num_fewshot: [2]
  icl_task_type: multiple_choice
  continuation_delimiter: "\\nAnswer: "
  has_categories: true
-
  label: capitals_zeroshot
  dataset_uri: world/capitals.jsonl
  num_fewshot:
  - 0
  icl_task_type: multiple_choice
-
  label: winograd
  dataset_uri: language/winograd.jsonl
  num_fewshot: [0]
  icl_task_type: schema
-
  label: repeats
  dataset_uri: language/repeats.jsonl
  num_fewshot: [3]
  icl_task_type: language_modeling
"""
CHANCES = """Eval Task,Task Category,Task Type,#shots,#datapoints,Random baseline,Centered Metric?
capitals,world,multiple choice,2,8,25,yes
capitals_zeroshot,world,multiple choice,0,8,25.0,yes
winograd,language,schema,0,4,50,yes
repeats,language,language modeling,3,6,0,yes
elsewhere,language,unknown,,,,
"""
QUESTIONS = {
    "world/capitals.jsonl": [
        {"query": f"What is the capital of {country}?", "gold": (i * 3) % 4, "choices": [
            CAPITALS[(i + n - (i * 3) % 4) % len(CAPITALS)][1] for n in range(4)],
         "category": "capitals"} for i, (country, _) in enumerate(CAPITALS)],
    "language/winograd.jsonl": [
        {"context_options": [f"The {a} would not fit, since the {a}", f"The {a} would not fit, "
                             f"since the {b}"], "continuation": f"was too {what}.", "gold": gold}
        for a, b, what, gold in (("trophy", "case", "large", 0), ("trophy", "case", "small", 1),
                                 ("cup", "cupboard", "tall", 0), ("foot", "shoe", "narrow", 1))],
    "language/repeats.jsonl": [
        {"context": f"{word} {word} {word} ", "continuation": word}
        for word in ("aa", "b", "cc", "a", "dd", "e")]}


def write_bundle(folder: Path) -> Path:
    folder.mkdir()
    (folder / "core.yaml").write_text(TASKS)
    (folder / "eval_meta_data.csv").write_text(CHANCES)
    for name, questions in QUESTIONS.items():
        path = folder / "eval_data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(each) + "\n" for each in questions))
    return folder
