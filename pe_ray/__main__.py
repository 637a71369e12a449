"""`python -m pe_ray` is `pe-ray`."""

from pe_ray.cli import main

raise SystemExit(main())
