"""YAML as every file of this program is read: by libyaml, and without a key stated twice.

What a file must hold, and how an error names it, is told where it is read (`workflow.data_files`, `judges`).
"""

from typing import Any

import yaml

from cj_pipeline.core.words import quoted


class UniqueKeyLoader(yaml.CSafeLoader):
    """CSafeLoader that refuses a key stated twice, where YAML would silently take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """The mapping of a node.

        Raises:
            yaml.MarkedYAMLError: a key is stated twice.
        """
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                message = f"key {quoted(key.value)} is stated twice"
                raise yaml.constructor.ConstructorError(None, None, message, key.start_mark)
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


def load_yaml(text: str, loader: type[UniqueKeyLoader] = UniqueKeyLoader) -> Any:
    """What a YAML text says.

    Raises:
        yaml.YAMLError: it is not well-formed, or states a key twice.
        ValueError: a date that no calendar has.
    """
    return yaml.load(text, Loader=loader)
