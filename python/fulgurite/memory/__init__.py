"""Where the memory of a training run goes: by formula for a recipe, or summed over real tensors.

``python -m fulgurite.memory 7e9`` prints the table; docs/howto/memory.md explains it.
"""

from fulgurite.memory.activations import Transformer
from fulgurite.memory.recipes import RECIPES, Recipe
from fulgurite.memory.report import report
from fulgurite.memory.usage import Usage

__all__ = ["RECIPES", "Recipe", "Transformer", "Usage", "report"]
