"""``python -m fulgurite.memory 7e9``: where the memory of a training run goes, for each recipe."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from fulgurite.memory.activations import Transformer
from fulgurite.memory.counting import load_config, parse_count, tensor_sizes
from fulgurite.memory.recipes import RECIPES
from fulgurite.memory.table import draw, rows_of, table
from fulgurite.memory.usage import GB


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m fulgurite.memory", description=__doc__)
    parser.add_argument(
        "parameters", nargs="?",
        help="their number: 7 (billions), 7B, 7e9 (default: of the model, or 7B)",
    )  # fmt: skip
    parser.add_argument("--config", type=Path, help="config.json of a transformers model")
    parser.add_argument(
        "--model", metavar="CLASS", help="its class (the configuration's first architecture)"
    )
    parser.add_argument(
        "--recipe", action="append", choices=RECIPES, metavar="NAME",
        help=f"of {', '.join(RECIPES)} (all); may be repeated",
    )  # fmt: skip
    parser.add_argument("--batch", type=int, default=1, help="sequences, for activations (1)")
    parser.add_argument("--length", type=int, default=4096, help="tokens of each (4096)")
    parser.add_argument(
        "--checkpointing", action="store_true", help="layers keep their inputs alone"
    )
    parser.add_argument("--out", type=Path, help="a picture, like memory.png")
    return parser


def main(argv: list[str] | None = None) -> int:
    from rich.console import Console

    parser = _parser()
    options = parser.parse_args(argv)
    if options.batch < 1 or options.length < 1:
        parser.error("expected --batch and --length of 1 or more")
    if options.model and not options.config:
        parser.error("--model needs --config")
    try:
        config = load_config(options.config) if options.config else None
        if options.parameters or config is None:
            sizes = [parse_count(options.parameters or "7B")]
        else:
            sizes = tensor_sizes(config, options.model)
        shape = Transformer.from_config(config) if config else None
    except ValueError as error:
        parser.error(str(error))
    batch, length, working = options.batch, options.length, {}
    tokens = batch * length
    if shape:
        working = {
            "activations": shape.activation_bytes(tokens, checkpointing=options.checkpointing),
            "logits": shape.logit_bytes(tokens),
            "attention": shape.attention_bytes(batch, length),
        }
    rows = rows_of([RECIPES[name] for name in options.recipe or RECIPES], sizes)
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(table(rows, sizes, working))
    if shape:
        eager = shape.eager_attention_bytes(batch, length)
        console.print(
            f"{batch} × {length} tokens; attention in products would keep {eager / GB:.1f} GB"
            " of probabilities instead",
            highlight=False,
        )
    if options.out:
        draw(rows, sizes, working, options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
