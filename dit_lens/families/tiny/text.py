"""A word-level tokenizer and a small text encoder, for tiny pipelines and the models that ship."""

from __future__ import annotations

from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

#: The vocabulary of the prompts of all tasks.
_VOCABULARY = """
<pad> </s> <unk> draw the path from green to red blue yellow orange purple move circle square triangle star and then
behind wall left right up down sort by size next in pattern play x o win goes stays comes out bars fill gap
"""
WORDS = tuple(_VOCABULARY.split())


def build_tokenizer(words: tuple[str, ...]) -> PreTrainedTokenizerFast:
    """A word-level tokenizer that ends every prompt with ``</s>``."""
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    end = words.index("</s>")
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", end)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>", eos_token="</s>")


def build_text_encoder(width: int, layers: int = 1, words: tuple[str, ...] = WORDS) -> UMT5EncoderModel:
    """A small UMT5 encoder whose vocabulary is that of `build_tokenizer`."""
    return UMT5EncoderModel(
        UMT5Config(
            vocab_size=len(words),
            d_model=width,
            d_kv=8,
            d_ff=2 * width,
            num_layers=layers,
            num_heads=4,
            pad_token_id=0,
            eos_token_id=1,
            decoder_start_token_id=0,
        )
    )
