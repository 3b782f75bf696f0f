"""Differences between two configs: as names and values, and as the text of a config file."""

from typing import Any, Iterator, Tuple

from mmengine.config import Config


def differences(before: Any, after: Any, name: str = '') -> Iterator[Tuple[str, Any]]:
    """Yield dotted name and new value of each entry that differs between two configs.

    Args:
        before, after (dict | list): The configs.
        name (str): Dotted name of these entries in the complete config.
    """
    pairs: Any = None
    if isinstance(before, dict) and isinstance(after, dict):
        pairs = [(key, before.get(key), value) for key, value in after.items()]
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        pairs = [(number, *pair) for number, pair in enumerate(zip(before, after))]
        pairs = pairs if any(isinstance(each, dict) for each in after) else None
    if pairs is None:
        if before != after:
            yield name, after
        return
    for key, old, new in pairs:
        yield from differences(old, new, f'{name}.{key}' if name else str(key))


def fragment(before: Config, after: Config) -> str:
    """Return the text after ``_base_`` in a config file that turns one config into another.

    Args:
        before (Config): The config that ``_base_`` names.
        after (Config): The wanted config.
    """
    return Config(_changes(before.to_dict(), after.to_dict())).pretty_text


def _changes(before: dict, after: dict) -> dict:
    """Return the entries that MMEngine merges into one config to get another; lists are replaced."""
    return {
        key: _change(key, before[key], value) if key in before else value
        for key, value in after.items()
        if key not in before or before[key] != value
    }


def _change(key: str, before: Any, after: Any) -> Any:
    if not isinstance(after, dict):
        return after
    if key == 'backbone' or not isinstance(before, dict) or set(before) - set(after):
        return dict(_delete_=True, **after)  # replaced, because merging would keep the entries that `after` lacks
    return _changes(before, after)
