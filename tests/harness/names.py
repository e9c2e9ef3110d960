"""Names of tests."""

import re


def named(value: object) -> str:
    """What a test is called by a value of its: the same in every process."""
    if isinstance(value, set):
        value = sorted(value)
    return re.sub(r" at 0x[0-9a-f]+", "", str(value))
