"""Makes variants of swept options, and cells of variants and seeds."""

import hashlib
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import attrgetter
from typing import Any

import yaml

from util import cli
from util.arguments import peek_mapping, take
from util.config import Config
from util.errors import UserError
from util.ranges import check_ranges

LONGEST_NAME = 120  # characters of a folder's name; file systems end at 255 bytes
# Options that the sweep decides itself, with the reason.
TAKEN = {
    "train.output": "each run gets a folder of its own below --output",
    "train.resume": "unfinished runs are resumed anyway",
    "train.seed": "give --seeds",
    "train.fast_dev_run": "its runs leave no score",
}


@dataclass(frozen=True)
class Variant:
    """One row of the table.

    Attributes:
        name: a name that no other variant has.
        values: the values it changes, by dotted option name.
    """

    name: str
    values: Mapping[str, Any] = field(default_factory=dict)

    @property
    def folder(self) -> str:
        """The name, in characters that are safe in file systems and shells."""
        safe = re.sub(r"[^A-Za-z0-9._+=,-]+", "_", self.name).strip("._,") or "_"
        if len(safe) <= LONGEST_NAME:
            return safe
        return f"{safe[: LONGEST_NAME - 9]}-{hashlib.sha256(safe.encode()).hexdigest()[:8]}"


@dataclass(frozen=True)
class Cell:
    """One run: a variant with a seed.

    Attributes:
        variant: the variant.
        seed: the run's seed.
        config: the run's whole configuration.
    """

    variant: Variant
    seed: int
    config: Config

    @property
    def name(self) -> str:
        """Variant and seed as a path below the sweep's folder."""
        return f"{self.variant.folder}/seed{self.seed}"


def parse_grid(texts: Sequence[str]) -> dict[str, list[Any]]:
    """Read `key=value,value,...` from the command line into values by key. A value that is a list stands in brackets.

    Raises:
        UserError: a text has another form, or two have the same key.
    """
    grid: dict[str, list[Any]] = {}
    for text in texts:
        key, equals, values = text.partition("=")
        if not (equals and key and values):
            raise UserError(f"--grid is '{text}'; write an option and its values, like model.num_points=1,2,4")
        if key in grid:
            raise UserError(f"--grid names {key} twice; list all its values in one")
        try:
            grid[key] = yaml.safe_load(f"[{values}]")
        except yaml.YAMLError:
            raise UserError(
                f"--grid {key}: '{values}' is no list of values; write {key}=1,2 or {key}=[4,2],[1,1]"
            ) from None
    return grid


def variants_of(grid: Mapping[str, Sequence[Any]], named: Mapping[str, Mapping[str, Any]]) -> list[Variant]:
    """Every combination of the grid's values, with each of the named variants if there are any.

    Args:
        grid: values by dotted option.
        named: changed options by name.

    Raises:
        UserError: an option has no values or a value twice, the sweep decides an option itself, an option is in both
            arguments, or two variants would share a folder.
    """
    for key, values in grid.items():
        if not isinstance(values, Sequence) or isinstance(values, str) or not values:
            raise UserError(f"grid: {key} has no list of values, but {values!r}; write {key}: [1, 2, 4]")
        if any(a == b and type(a) is type(b) for a, b in itertools.combinations(values, 2)):
            raise UserError(f"grid: {key} lists a value twice: {list(values)}")
    for name, changes in named.items():
        if not isinstance(changes, Mapping):
            raise UserError(f"variants: '{name}' must map options to values, like {{model.num_points: 1}}")
        both = set(changes) & set(grid)
        if both:
            raise UserError(f"{sorted(both)[0]} is in the grid and in the variant '{name}'; leave one of them out")
    for key in [*grid, *(key for changes in named.values() for key in changes)]:
        if key in TAKEN:
            raise UserError(f"{key} cannot be swept: {TAKEN[key]}")
    leaves = short_names(list(grid))
    variants = []
    for name, changes in (named or {"": {}}).items():
        for values in itertools.product(*grid.values()):
            swept = dict(zip(grid, values))
            parts = [str(name)] if name else []
            parts += [f"{leaves[key]}={_text(value)}" for key, value in swept.items()]
            variants.append(Variant(",".join(parts) or "base", {**changes, **swept}))
    for first, second in itertools.combinations(variants, 2):
        # Some file systems do not tell A from a.
        if first.folder.casefold() == second.folder.casefold():
            raise UserError(f"'{first.name}' and '{second.name}' would share the folder {first.folder}; name them anew")
    return variants


def cells_of(base: Config, variants: Sequence[Variant], seeds: int) -> list[Cell]:
    """All runs: every variant with the first seed, then with the next, so a whole table exists early.

    Raises:
        UserError: a variant has an unknown option, or a value of another type or out of range; two variants have the
            same configuration; or the base configuration sets an option that the sweep decides.
    """
    for option in ("resume", "fast_dev_run"):
        if getattr(base.train, option):
            raise UserError(f"train.{option} cannot be used in a sweep: {TAKEN[f'train.{option}']}")
    typed: list[tuple[Variant, Config]] = []
    for variant in variants:
        try:
            config = cli.override(base, dict(variant.values))
            check_ranges(config)
        except UserError as error:
            raise UserError(f"variant '{variant.name}': {error}") from None
        same = next((v.name for v, c in typed if c == config), None)
        if same is not None:
            raise UserError(f"the variants '{same}' and '{variant.name}' come to the same configuration; leave one out")
        # Take the values from the configuration, because 1e-4 is text in YAML.
        values = {key: attrgetter(key)(config) for key in variant.values}
        typed.append((Variant(variant.name, values), config))
    cells = []
    for seed in range(base.train.seed, base.train.seed + seeds):
        cells += [Cell(v, seed, replace(c, train=replace(c.train, seed=seed))) for v, c in typed]
    return cells


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """The last word of each dotted option if no other option ends in it, else the whole option."""
    leaves = [key.rsplit(".", 1)[-1] for key in keys]
    return {key: leaf if leaves.count(leaf) == 1 else key for key, leaf in zip(keys, leaves)}


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return "-".join(map(_text, value))
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def with_grid(argv: Sequence[str]) -> list[str]:
    """Join every --grid KEY=VALUES of the command line into one option, and add the grids of the files before it."""
    texts, rest = take(argv, "grid")
    if not texts:
        return list(argv)
    grid = peek_mapping(rest, "grid") | parse_grid(texts)
    return [*rest, f"--grid={json.dumps(grid, default=str)}"]  # YAML reads some text as dates
