"""What several test files share; no test file imports another.

`commands` calls the commands, in this process or in one of their own. `runs` has little
data for whole runs, and eyes that are not the run's, `lives` what may befall a run;
`files` sees what is in a folder. `optimizers` sets two optimizers side by side,
`networks` has a small network and data of its shape, `small_sets` has small data sets,
and `pictures` looks at PNGs.
"""

from pathlib import Path

import pytest

for path in Path(__file__).parent.glob("[!_]*.py"):
    pytest.register_assert_rewrite(f"{__name__}.{path.stem}")
