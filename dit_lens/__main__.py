"""``python -m dit_lens``."""

import sys

from dit_lens.cli import main

sys.exit(main())
