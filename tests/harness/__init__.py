"""What several test files share; no test file imports another.

`runs` has little data for whole runs, and eyes that are not the run's. `optimizers`
sets two optimizers side by side, and `pictures` looks at PNGs.
"""

import pytest

for name in ("optimizers", "pictures", "runs"):
    pytest.register_assert_rewrite(f"{__name__}.{name}")
