"""`python -m pallas_kernels.bench`."""

from pallas_kernels.bench.measure import main

if __name__ == "__main__":
    raise SystemExit(main())
