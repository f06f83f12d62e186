"""What is fine-tuned, on what, and how preferences are learned."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from gpt.configuration.section import Count, Fraction, Place, Section


class FinetuneSection(Section):
    """What is fine-tuned, on what."""

    base: str = Field(alias="from", description="what to start from: a run, one checkpoint of it, "
                                                "a Hugging Face folder, or a name on its Hub")
    data: Place = Field(description="file of examples: JSON lines, JSON, CSV, parquet, or plain "
                                    "text")
    val_data: Place | None = Field(None, description="file of examples to validate on")
    val_fraction: Annotated[float, Field(ge=0, lt=1)] | None = Field(
        None, description="or the share of data to hold out; 0.1 when val_data is not given; 0: "
                          "none, and nothing is validated")
    format: Literal["auto", "text", "completion", "alpaca", "messages", "sharegpt",
                    "classification", "preference"] = Field(
        "auto", description="what the fields of the examples mean; auto: by their names")
    chat: str = Field(
        "auto", description="text around the turns: plain, turns, chatml, llama3, a YAML file or a "
                            ".jinja template; auto: what the base model has, as a format or as "
                            "its own chat template; else plain for prompts and completions, and "
                            "for conversations what its control tokens suggest, else turns")
    prefix: Literal["causal", "bidirectional"] | None = Field(
        None, description="how a prompt is read; bidirectional: all of it by each of its tokens, "
                          "in training and in sampling, for examples with one answer; null: as the "
                          "chat format says")
    packing: bool = Field(
        False, description="several examples in a sequence of max_length tokens, none of which "
                           "sees another; false: one in each; batch_size counts sequences")
    max_length: Count | Literal["auto"] = Field(
        "auto", description="tokens of the longest row; auto: as the examples are, at most what "
                            "the base model reads, and 1,024 for pieces of plain text and for "
                            "rows of several examples that are no longer")
    long_rows: Literal["drop", "cut"] = Field(
        "drop", description="what happens to conversations longer than that; cut: they lose their "
                            "beginning. Long plain texts become several rows")
    on_bad_text: Literal["error", "replace", "skip"] = Field(
        "error", description="what happens to examples with characters that the base model's "
                             "tokenizer has no token for; replace: by U+FFFD")
    max_long_share: Fraction = Field(
        0.1, description="refuse to train if a larger share of the examples is dropped or cut")
    answers: Annotated[int, Field(ge=0)] = Field(
        16, description="validation prompts answered at every evaluation, greedily, to count exact "
                        "matches and answers that end")
    method: Literal["full", "lora", "dora"] = Field(
        "full", description="which weights learn: all; low-rank updates of frozen matrices "
                            "(arXiv:2106.09685); or those and each row's length (arXiv:2402.09353)")
    freeze: list[str] = Field(
        [], description="weights that do not learn, by name or pattern: embedding.*, blocks.0.*")
    pretrain_data: str | None = Field(
        None, description="prepared dataset that is mixed in, against forgetting")
    pretrain_share: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.1, description="its share of all tokens that are learned")

    @model_validator(mode="after")
    def _one_validation_set(self) -> FinetuneSection:
        if self.val_data is not None and self.val_fraction is not None:
            raise ValueError("set val_data or val_fraction, not both")
        return self


class PreferenceConfig(Section):
    """Learning from preferences: arXiv:2305.18290."""

    beta: Annotated[float, Field(gt=0)] = Field(
        0.1, description="how much a gain in log-probability counts: higher stays nearer to the "
                         "base model")
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = Field(
        0.0, description="the share of preferences taken to be the wrong way round")
