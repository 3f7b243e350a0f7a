"""`python -m u2export`."""

from u2export.cli import main

raise SystemExit(main())
