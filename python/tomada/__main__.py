"""``python -m tomada``."""

import sys

from tomada.cli import main

sys.exit(main())
