"""One training process. Knows nothing of Ray or Flower.

Importing it switches third parties' telemetry off, before any of them is imported.
"""

import logging
import os

for _name in ("HF_HUB_DISABLE_TELEMETRY", "DISABLE_TELEMETRY", "DO_NOT_TRACK", "TRANSFORMERS_NO_ADVISORY_WARNINGS"):
    os.environ.setdefault(_name, "1")
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns of optional kernels at import
