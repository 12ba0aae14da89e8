"""``python -m fulgurite.demo``."""

import importlib.util
import sys

NEEDED = ("matplotlib", "rich", "safetensors")

missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
if missing:
    print(
        f"fulgurite.demo: needs {', '.join(missing)}: pip install 'fulgurite[demo]'",
        file=sys.stderr,
    )
    sys.exit(2)

from fulgurite.demo.cli import main  # noqa: E402  only now can its imports succeed

sys.exit(main())
