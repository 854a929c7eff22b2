"""`python -m nkv_core` is `nkv`."""

import sys

from nkv_core.cli import main

sys.exit(main())
