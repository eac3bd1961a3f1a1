"""How to train: recipes as data, random transforms, and what a run is given in either framework."""

from .recipe import RECIPES, Recipe, get_recipe, parse_size_schedule

__all__ = ["RECIPES", "Recipe", "get_recipe", "parse_size_schedule"]
